"""Appeals against verdicts of the gate: what the log says of a row that its contributor wants judged again.

    appeal      the contributor's, signed, against a deposit
    decision    a reviewer's of the Datanet, signed with a registered key (`signers`): overturned, or upheld
    lapse       nobody decided in time

    deposit     held from the contributor towards the treasury; released by a lapse or an overturned verdict, taken
                where the verdict is upheld

The log has the row's id, a salted digest, and no word of it. What the gate had said stands here as the operator says
it: verdicts themselves aren't in the log. A row is appealed once. Nobody decides on his own row, nor on one that is
said to repeat his. Every batch follows from its statement (`transfers_of`); `Appeals` replays them for the audit.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from openledger.core.appealing import (
    APPEALED,
    DECIDED,
    Appeal,
    AppealState,
    Decision,
    Judged,
    check_appeal_signature,
    check_decision_signature,
)
from openledger.core.errors import Conflict, Corrupt, Forbidden, InvalidInput, NotFound, OpenLedgerError
from openledger.core.ids import check_name, derived_id
from openledger.core.money import format_open
from openledger.core.signing import contributor_id
from openledger.ledger.accounts import TREASURY, check_account_id
from openledger.ledger.contributor_keys import by_key
from openledger.ledger.signers import Signer, Signers
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Batch, Transfer, TransferKind

OPENED = "openledger.appeal-opened/1"
DECIDED_FORMAT = "openledger.appeal-decided/1"
LAPSED = "openledger.appeal-lapsed/1"
FORMATS = frozenset({OPENED, DECIDED_FORMAT, LAPSED})
_PREFIX = "apl"
_CLOCKS_APART_MS = 3_600_000  # between who writes a statement and the ledger that dates it


@dataclass(frozen=True, slots=True, kw_only=True)
class AppealTerms:
    """`window_ms` after the contribution an appeal is opened, `resolve_ms` after that decided, against a deposit."""

    deposit_nano: int
    window_ms: int
    resolve_ms: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedAppeal:
    """`claim` and `closing` are the log's statements; no `closing`: open."""

    claim: Statement
    closing: Statement | None = None

    @property
    def state(self) -> AppealState:
        if self.closing is None:
            return "open"
        if format_of(self.closing) == LAPSED:
            return "lapsed"
        return "overturned" if self.closing["overturned"] else "upheld"

    @property
    def deadline_ms(self) -> int:
        return int(self.claim["opened_ms"]) + int(self.claim["resolve_ms"])


@dataclass(slots=True)
class Appeals:
    """Every appeal of a log, by row, as the batches tell them. `signers` are of the same log."""

    signers: Signers
    by_row: dict[str, LoggedAppeal] = field(default_factory=dict)

    def take(self, batch: Batch) -> None:
        """Raises Corrupt, its code saying which rule the batch breaks; batches of other kinds pass."""
        statement = batch.statement or {}
        if format_of(statement) not in FORMATS:
            if any(_touches_appeal(transfer) for transfer in batch.transfers):
                raise _corrupt("an appeal's deposit moves without saying why", "unexplained_appeal")
            return
        try:
            self._advance(statement, batch.time_ms)
        except Corrupt:
            raise
        except OpenLedgerError as error:
            raise _corrupt(error.message, error.code) from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _corrupt(f"the statement lacks or misstates something: {error}", "malformed_statement") from error
        if batch.transfers != tuple(transfers_of(statement)):
            raise _corrupt("the transfers aren't those of the appeal's statement", "deposit_differs")

    def _advance(self, statement: Statement, time_ms: int) -> None:
        claim = statement if format_of(statement) == OPENED else statement["appeal"]
        known = self.by_row.get(claim["row_id"])
        if statement != again(statement):
            raise _corrupt("the statement doesn't follow from what it says", "wrong_appeal")
        if format_of(statement) == OPENED:
            check_new(known, claim["row_id"])
            self.signers.keys.check(claim["contributor_id"], claim["public_key"])
            self.by_row[claim["row_id"]] = LoggedAppeal(claim=claim)
        else:
            if check_open(known, claim["row_id"]).claim != claim:
                raise _corrupt("the appeal isn't the one that was opened", "wrong_appeal")
            self._check_reviewer(statement)
            self.by_row[claim["row_id"]] = LoggedAppeal(claim=claim, closing=statement)
        if abs(time_ms - statement.get("closed_ms", claim["opened_ms"])) > _CLOCKS_APART_MS:
            raise _corrupt("the statement's time is far from its batch's", "wrong_time")

    def _check_reviewer(self, closing: Statement) -> None:
        if format_of(closing) == LAPSED:
            return
        reviewer = Signer(
            role="reviewer", account=closing["account"], public_key=closing["public_key"], datanet=closing["datanet"]
        )
        if self.signers.keys.holder(reviewer.public_key) in parties_of(closing["appeal"]):
            raise _corrupt(f"{reviewer.account} decided on his own row", "not_a_second_party")
        if not self.signers.decides(reviewer):
            raise _corrupt(f"{reviewer.account} is no reviewer of {reviewer.datanet} by that key", "not_a_signer")


def opened_statement(appeal: Appeal, judged: Judged, terms: AppealTerms, opened_ms: int) -> dict[str, Any]:
    """What opens an appeal. Raises InvalidInput (`invalid_signature` and others), Conflict where the row was accepted
    (`row_accepted`) or judged too long ago (`appeal_window_closed`)."""
    values = {name: getattr(appeal, name) for name in (*APPEALED, "public_key", "signature")}
    return _opened(values, judged, terms, opened_ms)


def decided_statement(claim: Statement, decision: Decision, closed_ms: int) -> dict[str, Any]:
    """What closes an appeal by a decision. Raises InvalidInput for another row's, or another key's signature, Forbidden
    where the reviewer is a party (`not_a_second_party`), Conflict past the deadline (`appeal_lapsed`)."""
    return _decided(claim, asdict(decision), closed_ms)


def lapsed_statement(claim: Statement, closed_ms: int) -> dict[str, Any]:
    """What closes an appeal that nobody decided. Raises Conflict (`appeal_open`) before its deadline."""
    if closed_ms <= claim["opened_ms"] + claim["resolve_ms"]:
        raise Conflict("the appeal can still be decided", code="appeal_open", param="row_id")
    return {"format": LAPSED, "appeal": claim, "closed_ms": closed_ms}


def again(statement: Statement) -> dict[str, Any]:
    """`statement` built again from what it says. Raises what building it raises."""
    if format_of(statement) == OPENED:
        terms = AppealTerms(**{name: statement[name] for name in AppealTerms.__dataclass_fields__})
        judged = Judged(**{name: statement[name] for name in Judged.__dataclass_fields__ if name != "reasons"},
                        reasons=tuple(statement["reasons"]))  # fmt: skip
        return _opened(statement, judged, terms, statement["opened_ms"])
    claim = again(statement["appeal"])
    if format_of(statement) == LAPSED:
        return lapsed_statement(claim, statement["closed_ms"])
    return _decided(claim, statement, statement["closed_ms"])


def check_new(known: LoggedAppeal | None, row_id: str) -> None:
    if known is not None:
        raise Conflict(
            f"the verdict on {row_id} was appealed before, for another reason",
            code="appeal_exists",
            param="row_id",
            fix="a verdict is appealed once; show the appeal to see how it stands",
        )


def check_open(known: LoggedAppeal | None, row_id: str) -> LoggedAppeal:
    """`known` if it waits for a decision. Raises NotFound or Conflict (`appeal_closed`)."""
    if known is None:
        raise NotFound(f"nobody appealed against the verdict on {row_id}", code="appeal_not_found", param="row_id")
    if known.closing is not None:
        raise Conflict(f"the appeal was closed before: {known.state}", code="appeal_closed", param="row_id")
    return known


def transfers_of(statement: Statement) -> list[Transfer]:
    """The batch that carries `statement`. The ids derive from the row: its appeal is opened once, and closed once."""
    if format_of(statement) == OPENED:
        return [_transfer(statement, "open", "pending", "appeal_deposit")]
    upheld = format_of(statement) == DECIDED_FORMAT and not statement["overturned"]
    if upheld:
        return [_transfer(statement["appeal"], "close", "post", "deposit_lost")]
    return [_transfer(statement["appeal"], "close", "void", "deposit_return")]


def parties_of(claim: Statement) -> set[str]:
    """Who contributed the row, and the one that it is said to repeat."""
    return {claim["contributor_id"], claim["rival"]} - {""}


def appeal_transfer_id(row_id: str, step: str) -> str:
    """Of the batch that opens (`open`) or closes (`close`) the appeal of a row."""
    return derived_id(_PREFIX, row_id, step)


def contributor_account(contributor: str) -> str:
    return f"contributor:{contributor}"


def checked_lines(statement: Statement, transfer: Transfer) -> list[str]:
    """What an appeal's batch says, in words. Raises Corrupt where it doesn't hold in itself."""
    try:
        holds = statement == again(statement) and transfer in transfers_of(statement)
    except OpenLedgerError as error:
        raise _corrupt(error.message, error.code) from error
    if not holds:
        raise _corrupt(f"{transfer.transfer_id} isn't what its statement calls for", "wrong_appeal")
    return lines(statement)


def lines(statement: Statement) -> list[str]:
    claim = statement if format_of(statement) == OPENED else statement["appeal"]
    told = [
        f"{claim['contributor_id']} appeals against the verdict {claim['outcome']} on {claim['row_id']} of"
        f" {claim['datanet']} ({', '.join(claim['reasons'])}), with a deposit of {format_open(claim['deposit_nano'])}"
        f"{by_key(claim['contributor_id'], claim['public_key'])}",
    ]
    if format_of(statement) == OPENED:
        return told
    if format_of(statement) == LAPSED:
        return [*told, "nobody decided in time: the deposit went back, and the verdict stands"]
    outcome = "overturned, and the deposit went back" if statement["overturned"] else "upheld, and the deposit is lost"
    return [
        *told,
        f"{statement['account']}, with the key {statement['public_key']}, signature good: {outcome}",
    ]


def _opened(values: Mapping[str, Any], judged: Judged, terms: AppealTerms, opened_ms: int) -> dict[str, Any]:
    check_name(values["datanet"], "datanet")
    check_account_id(contributor_account(values["contributor_id"]), "contributor_id")
    check_appeal_signature(values, holder=lambda _: values["contributor_id"])  # whose key it is: `ContributorKeys`
    numbers = (opened_ms, judged.received_ms, *asdict(terms).values())
    if any(type(number) is not int or number < 0 for number in numbers):
        raise InvalidInput("an appeal's amounts and times are whole numbers", code="invalid_appeal", param="opened_ms")
    if judged.outcome not in ("reject", "review"):
        raise Conflict(f"{values['row_id']} was accepted", code="row_accepted", param="row_id")
    if opened_ms > judged.received_ms + terms.window_ms:
        raise Conflict(
            f"{values['row_id']} was judged too long ago to be appealed",
            code="appeal_window_closed",
            param="row_id",
            fix="send the row again, in a new contribution: it is judged anew",
        )
    return {
        "format": OPENED,
        **{name: values[name] for name in (*APPEALED, "public_key", "signature")},
        **asdict(judged),
        "reasons": list(judged.reasons),
        **asdict(terms),
        "opened_ms": opened_ms,
    }


def _decided(claim: Statement, values: Mapping[str, Any], closed_ms: int) -> dict[str, Any]:
    if (values["datanet"], values["row_id"]) != (claim["datanet"], claim["row_id"]):
        raise InvalidInput("the decision is on another row", code="invalid_decision", param="row_id")
    check_account_id(values["account"], "account")
    check_decision_signature(values)
    parties = parties_of(claim)
    if contributor_id(values["public_key"]) in parties or values["account"] in map(contributor_account, parties):
        raise Forbidden(
            f"{values['account']} contributed the row, or the one that it is said to repeat",
            code="not_a_second_party",
            param="account",
            fix="let another reviewer decide",
        )
    if type(closed_ms) is not int or not claim["opened_ms"] <= closed_ms <= claim["opened_ms"] + claim["resolve_ms"]:
        raise Conflict("the time to decide this appeal is over", code="appeal_lapsed", param="row_id")
    kept = {name: values[name] for name in (*DECIDED, "public_key", "signature")}
    return {"format": DECIDED_FORMAT, "appeal": claim, **kept, "closed_ms": closed_ms}


def _transfer(claim: Statement, step: str, kind: TransferKind, code: str) -> Transfer:
    return Transfer(
        transfer_id=appeal_transfer_id(claim["row_id"], step),
        debit=contributor_account(claim["contributor_id"]),
        credit=TREASURY,
        amount_nano=claim["deposit_nano"],
        code=code,
        reference=claim["row_id"],
        kind=kind,
        pending_id="" if kind == "pending" else appeal_transfer_id(claim["row_id"], "open"),
    )


def _touches_appeal(transfer: Transfer) -> bool:
    return any(name.startswith(f"{_PREFIX}_") for name in (transfer.transfer_id, transfer.pending_id))


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")
