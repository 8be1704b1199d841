"""The shares rule, version 1: from influence scores to shares that sum to one. Integers only.

    w_c = max(0, I_c - z SE_c)        D = max(G, sum over j of max(0, I_j))        share_c = w_c / D

I_c is contributor c's influence summed over the period, SE_c its standard error, G the adapter's gain over the base
in the same unit. What the w_c leave of D is `unattributed`: weak evidence pays nobody, and nothing is blown up to
100 %. Sums are clipped once for each contributor, after the period's sum, so that rows may be negative.

A pool has parts, each with scores, gain and shares of its own. A share of the whole pool is

    share_c = sum over parts p of ppm_p x share_pc / 10^6
"""

from collections.abc import Iterable, Mapping

from openledger.core.errors import InvalidInput
from openledger.core.money import split
from openledger.core.values import UNATTRIBUTED

RULE = "shares/1"
WHOLE_PPB = 10**9
WHOLE_PPM = 10**6


def shares_ppb(
    scores_nano: Mapping[str, int], errors_nano: Mapping[str, int], gain_nano: int, z_milli: int
) -> dict[str, int]:
    """Parts per billion for each contributor and `unattributed`, summing to 10^9. Zero shares are kept.

    Raises InvalidInput where an error is negative or missing, or a contributor is called `unattributed`.
    """
    if UNATTRIBUTED in scores_nano:
        raise InvalidInput("no contributor may be called 'unattributed'", code="invalid_scores", param="scores")
    if set(scores_nano) != set(errors_nano) or any(error < 0 for error in errors_nano.values()) or z_milli < 0:
        raise InvalidInput("each score needs one non-negative error", code="invalid_scores", param="errors")
    whole = 1000 * max(gain_nano, sum(max(0, score) for score in scores_nano.values()))
    if whole <= 0:
        return {**dict.fromkeys(scores_nano, 0), UNATTRIBUTED: WHOLE_PPB}
    weights = {
        contributor: max(0, 1000 * score - z_milli * errors_nano[contributor])
        for contributor, score in scores_nano.items()
    }
    weights[UNATTRIBUTED] = whole - sum(weights.values())
    return split(WHOLE_PPB, weights)


def combined_ppb(parts: Iterable[tuple[int, Mapping[str, int]]]) -> dict[str, int]:
    """Shares of a whole from (ppm, shares in parts per billion) of each of its parts; rounded once, summing to 10^9.

    The parts' ppm sum to 10^6, the shares of each to 10^9. Zero shares are kept.
    """
    weights: dict[str, int] = {}
    for ppm, shares in parts:
        for name, share_ppb in shares.items():
            weights[name] = weights.get(name, 0) + ppm * share_ppb
    return split(WHOLE_PPB, weights)
