"""Sealed rows in the log: who kept a place for which digest when, and that the rows which came are the sealed ones.

    seal       a contributor's digest, and until when its rows may come
    opening    what the contribution's signature covers, and that signature: the digest follows from them

No money moves: each batch holds one nano-OPEN of genesis and releases it at once. The order of seals is the log's. An
opening is checked by anybody: the digest is that of `core.sealing`, the signature the contributor's over the root of
the rows, and the rows themselves can be proved to lead to that root.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, OpenLedgerError
from openledger.core.hashing import canonical_json
from openledger.core.ids import check_name, derived_id
from openledger.core.sealing import FORMAT as SEAL
from openledger.core.sealing import seal_digest
from openledger.core.signing import verify
from openledger.ledger.contributor_keys import ContributorKeys, by_key
from openledger.ledger.seats import seat_transfers
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Batch, Transfer

OPENING = "openledger.seal-opening/1"
FORMATS = frozenset({SEAL, OPENING})
SEALS_ACCOUNT = "holds:seals"
_CLOCKS_APART_MS = 3_600_000  # between who dates an opening and the ledger that dates its batch
_HEX = re.compile(r"[0-9a-f]{64}")
_FIELDS = {
    SEAL: {"format", "datanet", "contributor_id", "digest", "expires_ms"},
    OPENING: {"format", "datanet", "contributor_id", "digest", "public_key", "signed", "signature", "opened_ms"},
}


@dataclass(slots=True)
class Seals:
    """Every seal of a log and its opening, by contributor and digest, as the batches tell them. `keys` are of the same
    log: rows are opened by a key that was the contributor's when they were sealed."""

    keys: ContributorKeys = field(default_factory=ContributorKeys)
    sealed: dict[tuple[str, str], Statement] = field(default_factory=dict)
    opened: dict[tuple[str, str], Statement] = field(default_factory=dict)
    places: dict[tuple[str, str], int] = field(default_factory=dict)  # of the seals in the log

    def take(self, batch: Batch) -> None:
        """Raises Corrupt, its code saying which rule the batch breaks; batches of other kinds pass."""
        statement = batch.statement or {}
        if format_of(statement) not in FORMATS:
            if any(SEALS_ACCOUNT in (transfer.debit, transfer.credit) for transfer in batch.transfers):
                raise _corrupt("a seal is held without saying of what", "unexplained_seal")
            return
        try:
            check_statement(statement)
            self._advance(statement, batch.time_ms, batch.seq)
        except Corrupt:
            raise
        except OpenLedgerError as error:
            raise _corrupt(error.message, error.code) from error
        if batch.transfers != tuple(transfers_of(statement)):
            raise _corrupt("the transfers aren't those of the seal's statement", "seal_differs")

    def openings(self) -> list[tuple[int, int, Statement]]:
        """Of each seal whose rows came: its place in the log, when it expired, and what the contribution's signature
        covers; in the order of the log. What `datanets.versions.check_sealed` takes."""
        return sorted(
            (self.places[own], self.sealed[own]["expires_ms"], opening["signed"])
            for own, opening in self.opened.items()
        )

    def _advance(self, statement: Statement, time_ms: int, seq: int) -> None:
        own = statement["contributor_id"], statement["digest"]
        if format_of(statement) == SEAL:
            if own in self.sealed:
                raise Conflict("this digest was sealed before", code="seal_exists", param="digest")
            self.sealed[own], self.places[own] = statement, seq
            return
        seal = self.sealed.get(own)
        if seal is None or seal["datanet"] != statement["datanet"]:
            raise NotFound("there is no such seal", code="unknown_seal", param="digest")
        if own in self.opened:
            raise Conflict("this seal was opened before", code="seal_opened", param="digest")
        if statement["opened_ms"] > min(seal["expires_ms"], time_ms + _CLOCKS_APART_MS):
            raise Conflict("the rows came after the seal had expired", code="seal_expired", param="opened_ms")
        self.keys.check(own[0], statement["public_key"], self.places[own])
        self.opened[own] = statement


def seal_statement(datanet: str, contributor: str, digest: str, expires_ms: int) -> dict[str, Any]:
    values = {"contributor_id": contributor, "digest": digest, "expires_ms": expires_ms}
    return {"format": SEAL, "datanet": datanet, **values}


def opening_statement(
    datanet: str,
    contributor: str,
    digest: str,
    public_key: str,
    signed: Mapping[str, Any],
    signature: str,
    time_ms: int,
) -> dict[str, Any]:
    """`signed` is what the contribution's signature covers; `time_ms` when the rows came."""
    return {
        "format": OPENING,
        "datanet": datanet,
        "contributor_id": contributor,
        "digest": digest,
        "public_key": public_key,
        "signed": dict(signed),
        "signature": signature,
        "opened_ms": time_ms,
    }


def check_statement(statement: Statement) -> None:
    """Raises InvalidInput unless `statement` is one of the two and holds in itself."""
    if set(statement) != _FIELDS.get(format_of(statement)):
        raise _malformed("not the fields of a seal's statement", "statement")
    texts = {name: statement[name] for name in set(statement) - {"expires_ms", "opened_ms", "signed"}}
    if not all(isinstance(text, str) for text in texts.values()) or not _HEX.fullmatch(statement["digest"]):
        raise _malformed("a seal's digest is 32 bytes in lower-case hex, and its names are text", "digest")
    check_name(statement["datanet"], "datanet")
    moment = statement.get("expires_ms", statement.get("opened_ms"))
    if type(moment) is not int or moment < 0:
        raise _malformed("a seal's times are whole milliseconds", "expires_ms")
    if format_of(statement) == OPENING:
        _check_opening(statement)


def transfers_of(statement: Statement) -> list[Transfer]:
    """The batch that carries `statement`. The ids derive from contributor and digest: it is sealed and opened once."""
    step = "seal" if format_of(statement) == SEAL else "opening"
    own = statement["contributor_id"], statement["digest"]
    ids = derived_id("sel", *own, step), derived_id("sel", *own, f"{step}_end")
    codes, reference = (f"seal_{step}", f"seal_{step}_end"), f"{statement['datanet']}:{statement['digest']}"
    return seat_transfers(ids, codes, SEALS_ACCOUNT, reference)


def checked_lines(statement: Statement, transfer: Transfer) -> list[str]:
    """What a seal's batch says, in words. Raises Corrupt where it doesn't hold in itself."""
    try:
        check_statement(statement)
    except OpenLedgerError as error:
        raise _corrupt(error.message, error.code) from error
    if transfer not in transfers_of(statement):
        raise _corrupt(f"{transfer.transfer_id} isn't what its statement calls for", "seal_differs")
    return lines(statement)


def lines(statement: Statement) -> list[str]:
    who, datanet, digest = (statement[name] for name in ("contributor_id", "datanet", "digest"))
    if format_of(statement) == SEAL:
        return [f"{who} sealed rows for {datanet} as {digest}; no money moves"]
    signed, key = statement["signed"], statement["public_key"]
    return [
        f"{signed['num_rows']} rows of {who} for {datanet} with the root {signed['content_root']}, signature good"
        f"{by_key(who, key)}",
        f"they are what was sealed as {digest}; no money moves",
    ]


def _check_opening(statement: Statement) -> None:
    signed, key = statement["signed"], statement["public_key"]
    if not isinstance(signed, dict) or not {"content_root", "num_rows"} <= set(signed):
        raise _malformed("what was signed has a root and a number of rows", "signed")
    names = ("datanet", "contributor_id")
    if any(signed.get(name) != statement[name] for name in names):
        raise _malformed("the rows are not the contributor's, or for another Datanet", "signed")
    if not verify(key, statement["signature"], canonical_json(signed)):
        raise InvalidInput("the rows were not signed by the contributor", code="invalid_signature", param="signature")
    if seal_digest(signed, statement["signature"]) != statement["digest"]:
        raise InvalidInput("the rows are not those that were sealed", code="wrong_seal", param="digest")


def _malformed(reason: str, param: str) -> InvalidInput:
    return InvalidInput(reason, code="malformed_statement", param=param)


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")
