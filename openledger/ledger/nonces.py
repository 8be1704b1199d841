"""A round of nonces: what the log says of how a Datanet version's public constant was drawn, and in which order.

    open      names the Datanet, the version to come, and its owner; everybody else who commits is a witness
    commit    a party's digest of a nonce that nobody else knows, against a deposit
    close     nobody commits any more; names what the constant is for: the version's rows, the base, the recipe
    reveal    the nonce behind a digest; the deposit is released

The constant is a hash over the nonces of all who committed. So it is decided at the close, when each party knows no
more than its own nonce, and no later act can change it: a party can reveal, or hold the round up, and has no third way.
A reveal that stays out is not replaced, for whoever saw the other nonces would then choose between two constants.

The ledger itself refuses a late commitment, also where several processes write. An open round's account holds one
nano-OPEN, which every commitment reserves and frees within its batch; the close returns it to genesis. Every batch
follows from its statement (`transfers_of`), and `Rounds` replays them all for the audit.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound
from openledger.core.hashing import digest_json
from openledger.core.ids import check_name, derived_id
from openledger.ledger.accounts import GENESIS, check_account_id
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Batch, Transfer, TransferKind

OPEN = "openledger.nonces-open/1"
COMMIT = "openledger.nonces-commit/1"
CLOSE = "openledger.nonces-close/1"
REVEAL = "openledger.nonces-reveal/1"
_FIELDS = {
    OPEN: {"owner"},
    COMMIT: {"party", "digest", "deposit_nano"},
    CLOSE: {"purpose"},
    REVEAL: {"party", "nonce"},
}
_HEX = re.compile(r"[0-9a-f]{64}")
_ACCOUNT_PREFIX = "holds:nonces:"
_SEAT_NANO = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What a constant will be used on, as digests: nobody can pick one of these by the constant it goes with.
    `recipe_digest` covers the version's order of credit as well, where it has one (`platform.point_of_sale`)."""

    row_root: str
    base_digest: str
    recipe_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """How far one version's round has come. `digests`, `deposits_nano` and `nonces` are by party."""

    datanet: str
    version: int
    owner: str
    digests: Mapping[str, str] = field(default_factory=dict)
    deposits_nano: Mapping[str, int] = field(default_factory=dict)
    purpose: Purpose | None = None
    nonces: Mapping[str, str] = field(default_factory=dict)

    @property
    def withheld(self) -> tuple[str, ...]:
        """Parties whose nonce is due; nobody before the close."""
        return () if self.purpose is None else tuple(sorted(self.digests.keys() - self.nonces.keys()))

    @property
    def drawn(self) -> tuple[str, ...]:
        """Every nonce, in the order of their parties' ids; empty until the last one is revealed."""
        complete = self.purpose is not None and not self.withheld
        return tuple(self.nonces[party] for party in sorted(self.nonces)) if complete else ()


@dataclass(slots=True)
class Rounds:
    """Every round of a log, as its batches tell it."""

    by_version: dict[tuple[str, int], Round] = field(default_factory=dict)

    def take(self, batch: Batch) -> None:
        """Raises Corrupt, its code saying which rule the batch breaks; batches of other kinds pass."""
        statement = batch.statement or {}
        if format_of(statement) not in _FIELDS:
            if any(_touches_round(transfer) for transfer in batch.transfers):
                raise _corrupt("money goes through a round of nonces without saying why", "unexplained_deposit")
            return
        try:
            check_shape(statement)
            key = (statement["datanet"], statement["version"])
            known = self.by_version.get(key)
            self.by_version[key] = advance(known, statement)
            expected = transfers_of(statement, known)
        except (Conflict, InvalidInput, NotFound) as error:
            raise _corrupt(error.message, error.code) from error
        if batch.transfers != tuple(expected):
            raise _corrupt("the transfers aren't those of the nonces' statement", "deposits_differ")


def commitment(datanet: str, version: int, party: str, nonce: str) -> str:
    """The digest that binds `party` to `nonce` (32 random bytes in hex) and hides it. Copied, it fits nobody else."""
    return digest_json(["openledger.nonce/1", datanet, version, party, nonce])


def round_account(datanet: str, version: int) -> str:
    """The account whose history is the round: deposits are held towards it."""
    return f"{_ACCOUNT_PREFIX}{datanet}:{version}"


def open_statement(datanet: str, version: int, owner: str) -> dict[str, Any]:
    return {"format": OPEN, "datanet": datanet, "version": version, "owner": owner}


def commit_statement(datanet: str, version: int, party: str, digest: str, deposit_nano: int) -> dict[str, Any]:
    values = {"party": party, "digest": digest, "deposit_nano": deposit_nano}
    return {"format": COMMIT, "datanet": datanet, "version": version, **values}


def close_statement(datanet: str, version: int, purpose: Purpose) -> dict[str, Any]:
    return {"format": CLOSE, "datanet": datanet, "version": version, "purpose": asdict(purpose)}


def reveal_statement(datanet: str, version: int, party: str, nonce: str) -> dict[str, Any]:
    return {"format": REVEAL, "datanet": datanet, "version": version, "party": party, "nonce": nonce}


def check_shape(statement: Statement) -> None:
    """Raises InvalidInput unless `statement` is one of the four, with its fields and their types."""
    own = _FIELDS.get(format_of(statement))
    if own is None or set(statement) != {"format", "datanet", "version"} | own:
        raise _malformed("not the fields of a round's statement", "statement")
    if not isinstance(statement["datanet"], str):
        raise _malformed("a Datanet has a name", "datanet")
    check_name(statement["datanet"], "datanet")
    if type(statement["version"]) is not int or statement["version"] < 1:
        raise _malformed("versions count from 1", "version")
    for name in own:
        _CHECKS[name](statement[name], name)


def advance(known: Round | None, statement: Statement) -> Round:
    """The round after `statement`, of which `check_shape` approves.

    Raises Conflict, InvalidInput or NotFound where it may not follow on what is there.
    """
    if statement["format"] == OPEN:
        if known is not None:
            raise Conflict(f"the round of {_name(statement)} was opened before", code="round_exists", param="version")
        return Round(datanet=statement["datanet"], version=statement["version"], owner=statement["owner"])
    if known is None:
        raise NotFound(f"no round of nonces was opened for {_name(statement)}", code="round_not_found", param="version")
    return _STEPS[statement["format"]](known, statement)


def transfers_of(statement: Statement, known: Round | None) -> list[Transfer]:
    """The batch that carries `statement`; `known` is the round before it."""
    house = round_account(statement["datanet"], statement["version"])
    if statement["format"] == OPEN:
        return [_transfer(statement, "open", GENESIS, house, _SEAT_NANO)]
    if statement["format"] == CLOSE:
        return [_transfer(statement, "close", house, GENESIS, _SEAT_NANO)]
    party = statement["party"]
    if statement["format"] == COMMIT:
        return [
            _transfer(statement, "commit", party, house, statement["deposit_nano"], kind="pending"),
            _transfer(statement, "seat", house, GENESIS, _SEAT_NANO, kind="pending"),
            _transfer(statement, "unseat", house, GENESIS, _SEAT_NANO, kind="void", pending="seat"),
        ]
    deposit_nano = known.deposits_nano[party] if known else 0
    return [_transfer(statement, "reveal", party, house, deposit_nano, kind="void", pending="commit")]


def _commit(known: Round, statement: Statement) -> Round:
    party = statement["party"]
    if known.purpose is not None:
        raise Conflict(
            f"the round of {_name(statement)} is closed: nobody commits to a nonce any more",
            code="round_closed",
            param="version",
            fix="commit to the next version, before its contributions close",
        )
    if party in known.digests:
        raise Conflict(f"{party} has committed to a nonce before", code="commitment_exists", param="party")
    return replace(
        known,
        digests={**known.digests, party: statement["digest"]},
        deposits_nano={**known.deposits_nano, party: statement["deposit_nano"]},
    )


def _close(known: Round, statement: Statement) -> Round:
    if known.purpose is not None:
        raise Conflict(f"the round of {_name(statement)} was closed before", code="round_closed", param="version")
    if known.owner not in known.digests or len(known.digests) < 2:
        raise Conflict(
            f"{_name(statement)} needs commitments of its owner and of at least one witness",
            code="commitments_missing",
            param="version",
            fix="let them commit before contributions close",
        )
    return replace(known, purpose=Purpose(**statement["purpose"]))


def _reveal(known: Round, statement: Statement) -> Round:
    party, nonce = statement["party"], statement["nonce"]
    if known.purpose is None:
        raise Conflict(
            f"the round of {_name(statement)} is still open: a nonce told now could be shopped with",
            code="round_not_closed",
            param="version",
            fix="close contributions first",
        )
    if party not in known.digests:
        raise NotFound(f"{party} has committed to no nonce", code="commitment_not_found", param="party")
    if party in known.nonces:
        raise Conflict(f"{party} has revealed a nonce before", code="nonce_exists", param="party")
    if commitment(known.datanet, known.version, party, nonce) != known.digests[party]:
        raise InvalidInput(f"this isn't the nonce that {party} committed to", code="wrong_nonce", param="nonce")
    return replace(known, nonces={**known.nonces, party: nonce})


def _transfer(
    statement: Statement,
    code: str,
    debit: str,
    credit: str,
    amount_nano: int,
    *,
    kind: TransferKind = "single",
    pending: str = "",
) -> Transfer:
    return Transfer(
        transfer_id=_transfer_id(statement, code),
        debit=debit,
        credit=credit,
        amount_nano=amount_nano,
        code=f"nonces_{code}",
        reference=f"{statement['datanet']}:{statement['version']}",
        kind=kind,
        pending_id=_transfer_id(statement, pending) if pending else "",
    )


def _transfer_id(statement: Statement, code: str) -> str:
    return derived_id("nce", statement["datanet"], str(statement["version"]), statement.get("party", ""), code)


def _touches_round(transfer: Transfer) -> bool:
    return transfer.debit.startswith(_ACCOUNT_PREFIX) or transfer.credit.startswith(_ACCOUNT_PREFIX)


def _check_hex(value: Any, param: str) -> None:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise _malformed(f"{param} is 32 bytes in lower-case hex", param)


def _check_amount(value: Any, param: str) -> None:
    if type(value) is not int or value < 1:
        raise _malformed("a deposit is a positive whole number of nano-OPEN", param)


def _check_purpose(value: Any, param: str) -> None:
    names = set(Purpose.__dataclass_fields__)
    if not isinstance(value, dict) or set(value) != names or not all(isinstance(v, str) and v for v in value.values()):
        raise _malformed(f"the purpose has {', '.join(sorted(names))}", param)


def _check_party(value: Any, param: str) -> None:
    check_account_id(value, param)


_CHECKS: dict[str, Callable[[Any, str], None]] = {
    "owner": _check_party,
    "party": _check_party,
    "digest": _check_hex,
    "nonce": _check_hex,
    "deposit_nano": _check_amount,
    "purpose": _check_purpose,
}
_STEPS: dict[str, Callable[[Round, Statement], Round]] = {COMMIT: _commit, CLOSE: _close, REVEAL: _reveal}


def _name(statement: Statement) -> str:
    return f"{statement['datanet']} version {statement['version']}"


def _malformed(reason: str, param: str) -> InvalidInput:
    return InvalidInput(reason, code="malformed_statement", param=param)


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")
