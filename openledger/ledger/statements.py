"""What a batch can state beside its transfers, and the arithmetic that binds the two together.

`openledger.accounts/1`: accounts opened. `openledger.usage/1`: an answer's metered fee and its parts.
`openledger.settlement/2`: how a pool became payouts, in two parts, `use` and `improvement`, each by its own scores.
`openledger.settlement/1`: the same of one part, as it was written before pools had two. The economy writes usages and
settlements; they are read here so that proof and audit need nothing but this package and `core`. Every check raises
Corrupt with a code that names what is wrong.

    pool_p    = split(pool, ppm)[p]                      unreadable_use = split(pool_use, readable : unreadable)[1]
    payout_pc = split(pool_p - unreadable_p, share_p)[c]
    payout_c  = sum over parts p of payout_pc            share_c   = sum over parts p of ppm_p x share_pc / 10^6

What answers paid into `use` whose content isn't there is nobody's: `unreadable_p` is 0 for improvement, and goes to
`unattributed` beside what the shares leave. Shares are of the rest. Which answers can be read the log doesn't say, so
the statement's `unreadable_nano` is checked against the pool, and what follows from it is recomputed.

A settlement names its rule, and is checked by it: `shares/1` has no ceilings, and only since `shares/3` some rows are
unpaid (`repeated_rows`: row, the earlier row that it repeats, that one's contributor, likeness in thousandths;
`unpaid_nano` of each part: what of the scores is theirs). By `shares/3` the contributor is the row's own, and isn't
named. `ceilings` of `use` are (mean gain on held-out answers, fees) of each adapter that served; the fees are those of
the answers that could be read, marked ones included, and so are known to the log where all could
(`check_ceiling_fees`). The gains are the operator's word.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from openledger.core import merkle
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.hashing import canonical_json
from openledger.core.money import split
from openledger.core.shares import (
    RULE_1,
    RULE_3,
    RULES,
    WHOLE_PPB,
    WHOLE_PPM,
    combined_ppb,
    leaves_unpaid,
    shares_ppb,
    terms_of,
)
from openledger.core.values import UNATTRIBUTED
from openledger.ledger.accounts import HOLDS, Account, pool_account
from openledger.ledger.transfers import Transfer

ACCOUNTS = "openledger.accounts/1"
USAGE = "openledger.usage/1"
SETTLEMENT_1 = "openledger.settlement/1"
SETTLEMENT = "openledger.settlement/2"
SETTLEMENTS = frozenset({SETTLEMENT_1, SETTLEMENT})
PARTS = ("use", "improvement")
NO_CHANNELS = {"verbatim": 0, "citation": 0}
Statement = Mapping[str, Any]
Evidence = Sequence[Sequence[Any]]
Value = TypeVar("Value")
_LINEAGE = {"adapter_digest", "datanet", "datanet_version", "row_root"}
_PART = {"ppm", "pool_nano", "unreadable_nano", "measured", "shares_ppb", "payouts_nano"}
_MEASURED_PART = _PART | {"method", "quality", "scores_nano", "errors_nano", "gain_nano"}
_BY_RULE = {rule: _MEASURED_PART | set(terms_of(rule, (), {})) for rule in RULES}


def format_of(statement: Statement | None) -> str:
    return "" if statement is None else str(statement.get("format", ""))


def accounts_statement(accounts: Sequence[Account]) -> dict[str, Any]:
    return {
        "format": ACCOUNTS,
        "accounts": [
            {"account_id": account.account_id, "kind": account.kind, "may_go_negative": account.may_go_negative}
            for account in accounts
        ],
    }


def accounts_in(statement: Statement) -> list[Account]:
    return _guarded(lambda: [Account(**values) for values in statement["accounts"]])


def fee_nano(num_prompt_tokens: int, num_completion_tokens: int, prices: Statement) -> int:
    """Tokens times `prompt_price_nano` and `completion_price_nano`, at least `minimum_fee_nano`, all of `prices`."""
    metered: int = (
        num_prompt_tokens * prices["prompt_price_nano"] + num_completion_tokens * prices["completion_price_nano"]
    )
    return max(prices["minimum_fee_nano"], metered)


def parts_by_account(parts: Mapping[str, int], accounts: Mapping[str, str]) -> dict[str, int]:
    """Amounts by name, gathered by the account each name is paid to; zeros are left out."""
    gathered: dict[str, int] = {}
    for name in sorted(parts):
        if parts[name]:
            gathered[accounts[name]] = gathered.get(accounts[name], 0) + parts[name]
    return gathered


def evidence_of(usages: Iterable[Statement]) -> list[list[Any]]:
    """What answers put into a pool: [salted commitment, nano-OPEN], in the order given."""
    return _guarded(lambda: [[usage["commitment"], usage["parts_nano"]["contributors"]] for usage in usages])


def answers_root(evidence: Evidence) -> str:
    """RFC 9162 root (hex) over canonical JSON of each [commitment, nano-OPEN]."""
    return merkle.root([merkle.leaf_hash(canonical_json(list(item))) for item in evidence]).hex()


def unreadable_part(part_nano: int, pool_nano: int, unreadable_nano: int) -> int:
    """What of a part of a pool was paid by the answers that paid `unreadable_nano` of the pool (all nano-OPEN)."""
    paid = {"readable": pool_nano - unreadable_nano, "unreadable": unreadable_nano}
    return split(part_nano, paid)["unreadable"]


def divided(part_nano: int, unreadable_nano: int, shares_ppb: Mapping[str, int]) -> dict[str, int]:
    """Nano-OPEN of one part by name: shares divide what isn't unreadable, the rest is `unattributed`."""
    payouts = split(part_nano - unreadable_nano, shares_ppb)
    return {**payouts, UNATTRIBUTED: payouts.get(UNATTRIBUTED, 0) + unreadable_nano}


def pool_payouts(parts: Mapping[str, Statement]) -> dict[str, int]:
    """Nano-OPEN of a whole pool by name: the sum of its parts' payouts."""
    gathered: dict[str, int] = {}
    for part in parts.values():
        for name, amount in part["payouts_nano"].items():
            gathered[name] = gathered.get(name, 0) + amount
    return gathered


def pool_shares(parts: Mapping[str, Statement]) -> dict[str, int]:
    """Parts per billion of a whole pool by name: its parts' shares, weighed by their ppm."""
    return combined_ppb((part["ppm"], part["shares_ppb"]) for part in parts.values())


def not_counted(settlement: Statement) -> list[str]:
    """Commitments of the answers that count nothing in `use`, because they were marked wrong."""
    return list(settlement.get("not_counted", ()))


def check_usage(usage: Statement) -> None:
    """That the fee follows from tokens and prices, and its parts from the split."""
    _guarded(lambda: _check_usage(usage))


def check_usage_transfers(usage: Statement, transfers: Sequence[Transfer]) -> None:
    """That the batch takes just that fee from its hold and pays just those parts."""
    _guarded(lambda: _check_usage_transfers(usage, transfers))


def check_settlement(settlement: Statement, evidence: Evidence) -> None:
    """That answers make the pool, scores the shares, and shares the payouts."""
    _guarded(lambda: _check_settlement(settlement, evidence))


def repeated_rows(repeats: Sequence[Sequence[Any]], rule: str) -> list[list[Any]]:
    """The rows of scores' `repeats` as a settlement by `rule` names them."""
    return [[row, earlier, milli] if rule == RULE_3 else [row, earlier, *more, milli]
            for row, earlier, *more, milli in repeats]  # fmt: skip


def check_repeats(rows: Sequence[Sequence[Any]], unpaid_nano: Statement, rule: str = "") -> None:
    """Raises InvalidInput for anything but [row, earlier row, its contributor, thousandths], without the contributor by
    `shares/3` and either way by no rule, each row once, or where something is unpaid and no row is why."""
    lengths = {"": (3, 4), RULE_3: (3,)}.get(rule, (4,))
    ids = [row[0] for row in rows if len(row) in lengths]
    if len(set(ids)) != len(rows) or not all(_is_repeat(*row) for row in rows) or (unpaid_nano and not rows):
        raise InvalidInput(
            "rows that aren't paid are named once each, with an earlier row, whose that is, and how alike they are, in"
            " thousandths",
            code="invalid_scores",
            param="repeats",
        )


def _is_repeat(row: Any, earlier: Any, *told: Any) -> bool:
    *contributor, likeness_milli = told
    named = all(isinstance(name, str) and name for name in (row, earlier, *contributor)) and row != earlier
    return named and type(likeness_milli) is int and 0 < likeness_milli <= 1000


def bounded_fee(usage: Statement) -> int:
    """What an answer adds to the fees under its adapter's ceiling: its fee, where it has a token to be measured on and
    paid into its pool."""
    return _guarded(
        lambda: int(usage["fee_nano"]) if usage["num_completion_tokens"] and usage["parts_nano"]["contributors"] else 0
    )


def check_ceiling_fees(settlement: Statement, fees_nano: int) -> None:
    """That the fees under the ceilings are `fees_nano`, the sum of the pool's `bounded_fee`s, or no more than that
    where some answers can't be read."""
    _guarded(lambda: _check_ceiling_fees(settlement, fees_nano))


def check_settlement_transfers(settlement: Statement, transfers: Sequence[Transfer]) -> None:
    """That the batch pays just those payouts out of that pool."""
    _guarded(lambda: _check_settlement_transfers(settlement, transfers))


def check_paid(statement: Statement, transfer: Transfer) -> None:
    """That `transfer`, one of its batch, is one that the statement (usage or settlement) calls for."""
    _guarded(lambda: _check_paid(statement, transfer))


def _check_usage(usage: Statement) -> None:
    fee = fee_nano(usage["num_prompt_tokens"], usage["num_completion_tokens"], usage)
    if usage["fee_nano"] != fee:
        raise _wrong("wrong_fee", f"the fee is {usage['fee_nano']}, tokens and prices make {fee}")
    if usage["parts_nano"] != split(fee, usage["split"]):
        raise _wrong("wrong_parts", "the parts of the fee don't follow from the split")
    if usage["accounts"]["contributors"] != pool_account(usage["adapter"], usage["period"]):
        raise _wrong("wrong_pool", "the contributors' part goes to another pool than it says")


def _check_usage_transfers(usage: Statement, transfers: Sequence[Transfer]) -> None:
    expected = [(usage["account"], HOLDS, usage["fee_nano"])]
    parts = parts_by_account(usage["parts_nano"], usage["accounts"])
    expected += [(HOLDS, account, amount) for account, amount in parts.items()]
    if _moves(transfers) != sorted(expected):
        raise _wrong("fee_and_parts_differ", f"answer {usage['answer_id']}: the transfers aren't the fee and its parts")


def _check_settlement(settlement: Statement, evidence: Evidence) -> None:
    commitments = [item[0] for item in evidence]
    amounts = [item[1] for item in evidence]
    if len(set(commitments)) != len(commitments) or any(type(amount) is not int or amount < 0 for amount in amounts):
        raise _wrong("wrong_evidence", "an answer stands twice among the answers, or with no amount")
    if answers_root(evidence) != settlement["answers_root"] or len(evidence) != settlement["num_answers"]:
        raise _wrong("wrong_answers_root", "the answers aren't those that the settlement commits to")
    if sum(amounts) != settlement["pool_nano"]:
        raise _wrong("wrong_pool_total", "the answers' parts don't sum to the pool")
    if settlement["rule"] not in RULES:
        known = " and ".join(RULES)
        raise _wrong("unknown_rule", f"this version knows the rules {known}, not {settlement['rule']!r}")
    if format_of(settlement) == SETTLEMENT_1 and settlement["rule"] != RULE_1:
        raise _wrong("unknown_rule", f"a settlement of one part is by {RULE_1}")
    for line in settlement["lineage"]:
        if set(line) != _LINEAGE:
            raise _wrong("malformed_statement", "the lineage names adapter, Datanet, version and row root")
    if format_of(settlement) == SETTLEMENT_1:
        _check_division(settlement, settlement)
        return
    marked = settlement["not_counted"]
    if marked != sorted(set(marked)) or not set(marked) <= set(commitments):
        raise _wrong("wrong_verdicts", "the answers marked wrong aren't some of the pool's")
    _check_parts(settlement)
    _check_unpaid(settlement)


def _check_unpaid(settlement: Statement) -> None:
    unpaid = {name: nano for part in settlement["parts"].values() for name, nano in part.get("unpaid_nano", {}).items()}
    if leaves_unpaid(settlement["rule"]):
        check_repeats(settlement["repeated_rows"], unpaid, settlement["rule"])
    elif "repeated_rows" in settlement:
        raise _wrong("malformed_statement", f"by {settlement['rule']} every row is paid")


def _check_ceiling_fees(settlement: Statement, fees_nano: int) -> None:
    ceilings = settlement.get("parts", {}).get("use", {}).get("ceilings", ())
    stated = sum(fees for _, fees in ceilings)
    if ceilings and (stated > fees_nano or (stated < fees_nano and not settlement["unreadable_nano"])):
        raise _wrong("wrong_ceilings", f"the fees under the ceilings are {stated}, the pool's answers cost {fees_nano}")


def _check_parts(settlement: Statement) -> None:
    parts = settlement["parts"]
    if settlement["channels_ppm"] != NO_CHANNELS:
        raise _wrong("unsupported_channel_weight", "spans and citations weigh nothing in the shares")
    if set(parts) != set(PARTS) or sum(parts[name]["ppm"] for name in PARTS) != WHOLE_PPM:
        raise _wrong("wrong_pool_parts", f"a pool has the parts {' and '.join(PARTS)}, which make the whole of it")
    pool_nano, unreadable_nano = settlement["pool_nano"], settlement["unreadable_nano"]
    if type(unreadable_nano) is not int or not 0 <= unreadable_nano <= pool_nano:
        raise _wrong("wrong_unreadable", "what could not be read isn't a part of the pool")
    due = split(pool_nano, {name: parts[name]["ppm"] for name in PARTS})
    lost = {"use": unreadable_part(due["use"], pool_nano, unreadable_nano), "improvement": 0}
    for name in PARTS:
        if parts[name]["pool_nano"] != due[name]:
            raise _wrong("wrong_pool_parts", f"{name} isn't its part of the pool")
        if parts[name]["unreadable_nano"] != lost[name]:
            raise _wrong("wrong_unreadable", f"{name} says otherwise what of it could not be read")
        _check_part(name, settlement)
    if settlement["shares_ppb"] != pool_shares(parts):
        raise _wrong("wrong_shares", "the pool's shares don't follow from its parts'")
    if settlement["payouts_nano"] != pool_payouts(parts):
        raise _wrong("wrong_payouts", "the payouts aren't the sums of the parts' payouts")


def _check_part(name: str, settlement: Statement) -> None:
    part = settlement["parts"][name]
    if set(part) != (_BY_RULE[settlement["rule"]] if part["measured"] is True else _PART):
        raise _wrong("malformed_statement", "a part of the pool has other fields than it should")
    if name != "use" and part.get("ceilings"):
        raise _wrong("wrong_ceilings", "only answers that were sold have a ceiling")
    if part["measured"] is True:
        _check_division(part, settlement)
    elif part["shares_ppb"] != {UNATTRIBUTED: WHOLE_PPB} or part["payouts_nano"] != {UNATTRIBUTED: part["pool_nano"]}:
        raise _wrong("wrong_shares", "a part that wasn't measured pays somebody")


def _check_division(part: Statement, settlement: Statement) -> None:
    """That scores make the shares, and shares divide `pool_nano`; of a whole /1 settlement, or of one part."""
    shares = shares_ppb(
        part["scores_nano"],
        part["errors_nano"],
        part["gain_nano"],
        settlement["z_milli"],
        rule=settlement["rule"],
        ceilings=part.get("ceilings", ()),
        unpaid_nano=part.get("unpaid_nano", {}),
    )
    if part["shares_ppb"] != shares:
        raise _wrong("wrong_shares", "the shares don't follow from the scores")
    if part["payouts_nano"] != divided(part["pool_nano"], part.get("unreadable_nano", 0), part["shares_ppb"]):
        raise _wrong("wrong_payouts", "the payouts don't follow from the shares")


def _check_settlement_transfers(settlement: Statement, transfers: Sequence[Transfer]) -> None:
    pool = pool_account(settlement["adapter"], settlement["period"])
    payouts = parts_by_account(settlement["payouts_nano"], settlement["accounts"])
    if _moves(transfers) != sorted((pool, account, amount) for account, amount in payouts.items()):
        raise _wrong("pool_and_payouts_differ", f"{pool}: the transfers aren't the payouts")


def _check_paid(statement: Statement, transfer: Transfer) -> None:
    if format_of(statement) in SETTLEMENTS:
        source = pool_account(statement["adapter"], statement["period"])
        due = parts_by_account(statement["payouts_nano"], statement["accounts"])
    else:
        source, due = HOLDS, parts_by_account(statement["parts_nano"], statement["accounts"])
        if transfer.kind == "post":
            source, due = statement["account"], {HOLDS: statement["fee_nano"]}
    if transfer.debit != source or due.get(transfer.credit) != transfer.amount_nano:
        raise _wrong("wrong_amount", f"{transfer.transfer_id} isn't what its statement calls for")


def _moves(transfers: Sequence[Transfer]) -> list[tuple[str, str, int]]:
    if any(transfer.kind not in ("single", "post") for transfer in transfers):
        raise _wrong("wrong_kind", "a paying batch holds only singles and posts")
    return sorted((transfer.debit, transfer.credit, transfer.amount_nano) for transfer in transfers)


def _guarded(check: Callable[[], Value]) -> Value:
    try:
        return check()
    except (KeyError, TypeError, AttributeError, IndexError, InvalidInput) as error:
        raise _wrong("malformed_statement", f"the statement lacks or misstates something: {error}") from error


def _wrong(code: str, message: str) -> Corrupt:
    return Corrupt(message, code=code, param="statement")
