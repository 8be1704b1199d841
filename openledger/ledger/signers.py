"""Signers: whose keys may decide. Second scorers of pools, and reviewers of a Datanet's rows, by Ed25519 key.

    signer        an account's key, for one role; signed by that key, so nobody registers a key that isn't his
    signer-end    the key decides nothing any more; what it decided stays. Where its holder was registered by several of
                  his keys, each has its end

No money moves: each batch holds one nano-OPEN of genesis and releases it at once. A role is `scorer`, of any pool, or
`reviewer`, of one Datanet. The operator writes who is one; that it was written, and when, is in the log for everybody.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, OpenLedgerError
from openledger.core.hashing import canonical_json
from openledger.core.ids import check_name, derived_id
from openledger.core.signing import SigningKey, verify
from openledger.ledger.accounts import check_account_id
from openledger.ledger.contributor_keys import ContributorKeys
from openledger.ledger.seats import seat_transfers
from openledger.ledger.statements import Statement, format_of
from openledger.ledger.transfers import Batch, Transfer

SIGNER = "openledger.signer/1"
SIGNER_END = "openledger.signer-end/1"
FORMATS = frozenset({SIGNER, SIGNER_END})
SIGNERS_ACCOUNT = "holds:signers"
Role = Literal["scorer", "reviewer"]
_KEY = re.compile(r"[0-9a-f]{64}")
_OWN = ("role", "datanet", "account", "public_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """`account` decides by `public_key`. `datanet` is empty for a scorer."""

    role: Role
    account: str
    public_key: str
    datanet: str = ""


@dataclass(slots=True)
class Signers:
    """The signers of a log as its batches tell them, those of before among them. `keys` are of the same log: who has
    replaced the key of a role decides by the new one, and nobody any more by the old one."""

    keys: ContributorKeys = field(default_factory=ContributorKeys)
    active: set[Signer] = field(default_factory=set)
    ended: set[Signer] = field(default_factory=set)

    def take(self, batch: Batch) -> None:
        """Raises Corrupt, its code saying which rule the batch breaks; batches of other kinds pass."""
        statement = batch.statement or {}
        if format_of(statement) not in FORMATS:
            if any(SIGNERS_ACCOUNT in (transfer.debit, transfer.credit) for transfer in batch.transfers):
                raise _corrupt("a signer's seat is held without saying whose", "unexplained_signer")
            return
        try:
            check_statement(statement)
            self._advance(statement)
        except OpenLedgerError as error:
            raise _corrupt(error.message, error.code) from error
        if batch.transfers != tuple(transfers_of(statement)):
            raise _corrupt("the transfers aren't those of the signer's statement", "signer_differs")

    def decides(self, signer: Signer) -> bool:
        """Whether the role is his by this key, or by one that this key replaced. A key that was ended itself decides
        by no other's registration."""
        holder = self.keys.holder(signer.public_key)
        if signer in self.ended or not self.keys.sign_for(holder, signer.public_key):
            return False
        return any(same_role(one, signer) and self.keys.holder(one.public_key) == holder for one in self.active)

    def keys_of(self, account: str, held_by: Callable[[str], str]) -> set[str]:
        """The keys that are, or were, `account`'s, each as the contributor for whom it signs or signed (`held_by`)."""
        keys = {held_by(one.public_key) for one in self.active | self.ended if one.account == account}
        kind, _, name = account.partition(":")
        return keys | {name} if kind == "contributor" else keys

    def has(self, role: Role) -> bool:
        """Whether anybody has, or had, that role."""
        return any(signer.role == role for signer in self.active | self.ended)

    def _advance(self, statement: Statement) -> None:
        signer = _signer(statement)
        if format_of(statement) == SIGNER_END:
            if signer not in self.active:
                raise NotFound("there is no such signer", code="unknown_signer", param="public_key")
            self.active.discard(signer)
            self.ended.add(signer)
        elif signer in self.active | self.ended:
            raise Conflict("this key was registered before", code="signer_exists", param="public_key")
        else:
            self.active.add(signer)


def same_role(one: Signer, other: Signer) -> bool:
    """By whatever key."""
    return (one.role, one.account, one.datanet) == (other.role, other.account, other.datanet)


def sign_signer(key: SigningKey, role: Role, account: str, datanet: str = "") -> dict[str, Any]:
    """The statement by which the holder of `key` becomes a signer. Raises InvalidInput for what can't be."""
    signer = Signer(role=role, account=account, public_key=key.public_key, datanet=datanet)
    return signer_statement(signer, key.sign(_signed_bytes(signer)))


def signer_statement(signer: Signer, signature: str) -> dict[str, Any]:
    statement = {"format": SIGNER, **{name: getattr(signer, name) for name in _OWN}, "signature": signature}
    check_statement(statement)
    return statement


def end_statement(signer: Signer) -> dict[str, Any]:
    return {"format": SIGNER_END, **{name: getattr(signer, name) for name in _OWN}}


def check_statement(statement: Statement) -> None:
    """Raises InvalidInput unless `statement` is one of the two and holds in itself."""
    more = {"signature"} if format_of(statement) == SIGNER else set()
    if set(statement) != {"format", *_OWN} | more or not all(isinstance(v, str) for v in statement.values()):
        raise _malformed("not the fields of a signer's statement", "statement")
    if statement["role"] not in get_args(Role) or bool(statement["datanet"]) != (statement["role"] == "reviewer"):
        raise _malformed("a signer is a scorer, or a reviewer of a Datanet", "role")
    if statement["datanet"]:
        check_name(statement["datanet"], "datanet")
    check_account_id(statement["account"])
    if not _KEY.fullmatch(statement["public_key"]):
        raise InvalidInput("a public key is 32 bytes in lower-case hex", code="invalid_key", param="public_key")
    if more and not verify(statement["public_key"], statement["signature"], _signed_bytes(_signer(statement))):
        raise InvalidInput(
            "the signer's statement was not signed with the key that it names",
            code="invalid_signature",
            param="signature",
            fix="sign it with the private half of that key",
        )


def transfers_of(statement: Statement) -> list[Transfer]:
    """The batch that carries `statement`. The ids derive from role, Datanet, account and key."""
    step = "end" if format_of(statement) == SIGNER_END else "begin"
    ids = signer_id(_signer(statement), step), signer_id(_signer(statement), f"{step}_end")
    codes, reference = (f"signer_{step}", f"signer_{step}_void"), f"{statement['role']}:{statement['account']}"
    return seat_transfers(ids, codes, SIGNERS_ACCOUNT, reference)


def signer_id(signer: Signer, step: Literal["begin", "end"] | str = "begin") -> str:
    return derived_id("sgn", signer.role, signer.datanet, signer.account, signer.public_key, step)


def checked_lines(statement: Statement, transfer: Transfer) -> list[str]:
    """What a signer's batch says, in words. Raises Corrupt where it doesn't hold in itself."""
    try:
        check_statement(statement)
    except OpenLedgerError as error:
        raise _corrupt(error.message, error.code) from error
    if transfer not in transfers_of(statement):
        raise _corrupt(f"{transfer.transfer_id} isn't what its statement calls for", "signer_differs")
    return lines(statement)


def lines(statement: Statement) -> list[str]:
    """A signer's statement in words."""
    what = f"{statement['role']} of {statement['datanet']}" if statement["datanet"] else statement["role"]
    ended = " no longer" if format_of(statement) == SIGNER_END else ""
    return [f"{statement['account']} is{ended} {what} by the key {statement['public_key']}; no money moves"]


def _signer(statement: Statement) -> Signer:
    return Signer(**{name: statement[name] for name in _OWN})


def _signed_bytes(signer: Signer) -> bytes:
    return canonical_json({"format": SIGNER, **{name: getattr(signer, name) for name in _OWN}})


def _malformed(reason: str, param: str) -> InvalidInput:
    return InvalidInput(reason, code="malformed_statement", param=param)


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")
