"""The shares rule: from influence scores to shares that sum to one. Integers only.

I_c is contributor c's influence summed over the period, SE_c its standard error, G the adapter's gain over the base
in the same unit, and z is governed. A settlement names the rule that it was made by, and is checked by that one.

    shares/5    w_c = max(0, I_c - U_c - z SE_c^2 / E)      E = sqrt(sum over j that are paid of SE_j^2)
                D   = max(G, sum over j of max(0, I_j), sum over adapters of max(0, g) F)
    shares/4    the same with U_c of fewer rows
    shares/3    the same with U_c of fewer still
    shares/2    the same with U_c = 0
    shares/1    w_c = max(0, I_c - z SE_c)            D = max(G, sum over j of max(0, I_j))

    share_c = w_c / D

What the w_c leave of D is `unattributed`: weak evidence pays nobody, and nothing is blown up to 100 %. Sums are
clipped once for each contributor, after the period's sum, so that rows may be negative.

U_c is what of I_c comes from rows that repeat earlier ones (`attribution.likeness`), 0 where these moved nothing or to
the worse: earlier ones of anybody's by likeness/3 for shares/5 and by likeness/2 for shares/4, of the contributor's own
alone (likeness/1) for shares/3. Nobody is paid for it, and nobody else gets it, the earlier row's contributor neither:
D is of the whole I_c.

E is the standard error of the sum of the influences that are paid, as if the errors were independent, and z E is what
is left out of that sum. Each contributor bears of it what he brought into it: SE_c^2 / E is Euler's division of E
(Tasche, 1999), which is additive. So it makes no difference under how many names rows are sent, as long as their errors
are independent, and somebody who brings little influence and much error bears his error himself. shares/1 took
z SE_c from each name: two names lost sqrt(2) times what one would have lost.

Who is paid nothing bears nothing, and must not lower what others bear: else junk is sent beside weak evidence to make
it look certain. So E is taken over all with a positive I_c - U_c, those whom that leaves nothing are left out, and E is
taken again, until nobody more falls out. E only falls and what is taken from each only rises, so the order doesn't
matter.

(g, F) are an adapter's *ceilings*: its mean gain on held-out answers, each counted up to their mean, and the fees of
the answers it sold, which count up to the same mean. An answer is taken to owe g times its fee to the data, and what it
does not owe is nobody's, not another answer's.

A pool has parts, each with scores, gain and shares of its own. A share of the whole pool is

    share_c = sum over parts p of ppm_p x share_pc / 10^6
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isqrt
from typing import Any

from openledger.core.errors import InvalidInput
from openledger.core.money import split
from openledger.core.values import UNATTRIBUTED

RULE_1 = "shares/1"
RULE_2 = "shares/2"
RULE_3 = "shares/3"
RULE_4 = "shares/4"
RULE = "shares/5"
RULES = (RULE_1, RULE_2, RULE_3, RULE_4, RULE)
WHOLE_PPB = 10**9
WHOLE_PPM = 10**6
_NANO = 10**9


def shares_ppb(
    scores_nano: Mapping[str, int],
    errors_nano: Mapping[str, int],
    gain_nano: int,
    z_milli: int,
    *,
    rule: str = RULE,
    ceilings: Sequence[Sequence[int]] = (),
    unpaid_nano: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Parts per billion for each contributor and `unattributed`, summing to 10^9. Zero shares are kept.

    `ceilings` are (g in billionths of a nat, F in nano-OPEN) of each adapter, `unpaid_nano` the U_c that aren't 0.
    Raises InvalidInput where an error is negative or missing, a contributor is called `unattributed`, or the rule is
    unknown or has no such terms (`terms_of`).
    """
    unpaid_nano = unpaid_nano or {}
    _check(scores_nano, errors_nano, z_milli, rule, ceilings)
    check_unpaid(unpaid_nano, scores_nano, rule)
    whole = max(gain_nano, sum(max(0, score) for score in scores_nano.values()), ceiling_nano(ceilings))
    if whole <= 0:
        return {**dict.fromkeys(scores_nano, 0), UNATTRIBUTED: WHOLE_PPB}
    if rule == RULE_1:
        scale = 1000
        weights = {name: scale * score - z_milli * errors_nano[name] for name, score in scores_nano.items()}
    else:
        paid_for = {name: score - unpaid_nano.get(name, 0) for name, score in scores_nano.items()}
        scale, weights = _borne_together(paid_for, errors_nano, z_milli)
    weights = {name: max(0, weights.get(name, 0)) for name in scores_nano}
    weights[UNATTRIBUTED] = scale * whole - sum(weights.values())
    return split(WHOLE_PPB, weights)


def _borne_together(
    scores_nano: Mapping[str, int], errors_nano: Mapping[str, int], z_milli: int
) -> tuple[int, dict[str, int]]:
    """A scale, and w_c times it of those who are paid by shares/2."""
    paid = {name for name, score in scores_nano.items() if score > 0}
    while True:
        total = max(1, isqrt(sum(errors_nano[name] ** 2 for name in paid)))
        scale = 1000 * total
        weights = {name: scale * scores_nano[name] - z_milli * errors_nano[name] ** 2 for name in paid}
        left = {name for name in paid if weights[name] > 0}
        if left == paid:
            return scale, weights
        paid = left


def terms_of(rule: str, ceilings: Sequence[Sequence[int]], unpaid_nano: Mapping[str, int]) -> dict[str, Any]:
    """What `rule` takes into account beside scores, errors and gain: `shares_ppb`'s other arguments."""
    terms = {"ceilings": [list(pair) for pair in ceilings], "unpaid_nano": dict(unpaid_nano)}
    known = {RULE_1: (), RULE_2: ("ceilings",)}
    return {name: terms[name] for name in known.get(rule, tuple(terms))}


def leaves_unpaid(rule: str) -> bool:
    """Whether rows that repeat others may go unpaid by `rule`."""
    return rule in (RULE_3, RULE_4, RULE)


def ceiling_nano(ceilings: Sequence[Sequence[int]]) -> int:
    """What answers can owe to the data at most, in nano-OPEN x nats: D is at least that."""
    return sum(max(0, gain_nano) * fees_nano for gain_nano, fees_nano in ceilings) // _NANO


def combined_ppb(parts: Iterable[tuple[int, Mapping[str, int]]]) -> dict[str, int]:
    """Shares of a whole from (ppm, shares in parts per billion) of each of its parts; rounded once, summing to 10^9.

    The parts' ppm sum to 10^6, the shares of each to 10^9. Zero shares are kept.
    """
    weights: dict[str, int] = {}
    for ppm, shares in parts:
        for name, share_ppb in shares.items():
            weights[name] = weights.get(name, 0) + ppm * share_ppb
    return split(WHOLE_PPB, weights)


def check_ceilings(ceilings: Sequence[Sequence[int]]) -> None:
    """Raises InvalidInput (`invalid_scores`) for anything but pairs of whole numbers with no negative fees."""
    for pair in ceilings:
        if len(pair) != 2 or any(type(number) is not int for number in pair) or pair[1] < 0:
            raise InvalidInput(
                "a ceiling is a gain and the fees it bounds, in whole numbers", code="invalid_scores", param="ceilings"
            )


def check_unpaid(unpaid_nano: Mapping[str, int], scores_nano: Mapping[str, int], rule: str = RULE) -> None:
    """Raises InvalidInput (`invalid_scores`) for anything but positive whole numbers of contributors with a score, or
    by a rule that pays for every row (`unknown_rule`)."""
    if not leaves_unpaid(rule) and unpaid_nano:
        raise InvalidInput(f"{rule} pays for every row: it leaves nothing unpaid", code="unknown_rule", param="rule")
    if not set(unpaid_nano) <= set(scores_nano) or any(type(v) is not int or v <= 0 for v in unpaid_nano.values()):
        raise InvalidInput(
            "what isn't paid of a score is a positive whole number, of a contributor with a score",
            code="invalid_scores",
            param="unpaid_nano",
        )


def _check(
    scores_nano: Mapping[str, int],
    errors_nano: Mapping[str, int],
    z_milli: int,
    rule: str,
    ceilings: Sequence[Sequence[int]],
) -> None:
    if rule not in RULES or (rule == RULE_1 and ceilings):
        raise InvalidInput(
            f"shares are made by {', '.join(RULES)}, and the first has no ceilings: not by {rule!r}",
            code="unknown_rule",
            param="rule",
        )
    if UNATTRIBUTED in scores_nano:
        raise InvalidInput("no contributor may be called 'unattributed'", code="invalid_scores", param="scores")
    if set(scores_nano) != set(errors_nano) or any(error < 0 for error in errors_nano.values()) or z_milli < 0:
        raise InvalidInput("each score needs one non-negative error", code="invalid_scores", param="errors")
    check_ceilings(ceilings)
