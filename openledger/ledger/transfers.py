"""Transfers: the only thing that moves nano-OPEN. Immutable; a mistake is mended by another transfer.

Results, one for each transfer of a batch, in order of precedence (the first that applies is given):

    exists                                  the id is known, with the same content: it was created before
    exists_with_different_<field>           the id is known, with other content; `statement` counts as a field
    pending_transfer_not_found              post and void: nothing of that id
    pending_transfer_not_pending            post and void: that id is no hold
    pending_transfer_already_posted         post and void: the hold was taken before
    pending_transfer_already_voided         post and void: the hold was released before
    pending_transfer_has_different_accounts post and void name the accounts of their hold
    pending_transfer_has_different_amount   void releases the whole hold
    exceeds_pending_amount                  post takes at most the hold
    pending_transfer_expired                post: the hold timed out (void is always allowed)
    debit_account_not_found                 single and pending
    credit_account_not_found                single and pending
    exceeds_credits                         single and pending: the debit account has less than that
    overflows_debits, overflows_credits     a running sum would leave 64 bits
    linked_transfer_failed                  this one could be, but another of its chain couldn't, or existed before
    created                                 done, and durable

A chain is what is created whole or not at all: the whole batch of `Ledger.commit`, what `linked` ties together in
`Ledger.submit`. `RESULTS` numbers them all, as `Ledger.submit_packed` gives them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openledger.core.errors import InvalidInput
from openledger.core.money import SUPPLY_NANO, shown_unit
from openledger.ledger.accounts import check_account_id

TransferKind = Literal["single", "pending", "post", "void"]
CREATED = "created"
EXISTS = "exists"
LINKED_FAILED = "linked_transfer_failed"
RESULTS = (
    CREATED,
    EXISTS,
    *(
        f"exists_with_different_{field}"
        for field in ("debit", "credit", "amount_nano", "code", "reference", "kind", "pending_id", "timeout_ms")
    ),
    "exists_with_different_statement",
    "pending_transfer_not_found",
    "pending_transfer_not_pending",
    "pending_transfer_already_posted",
    "pending_transfer_already_voided",
    "pending_transfer_has_different_accounts",
    "pending_transfer_has_different_amount",
    "exceeds_pending_amount",
    "pending_transfer_expired",
    "debit_account_not_found",
    "credit_account_not_found",
    "exceeds_credits",
    "overflows_debits",
    "overflows_credits",
    LINKED_FAILED,
)
_KINDS = frozenset({"single", "pending", "post", "void"})
_escaped = json.JSONEncoder(ensure_ascii=False).encode
_ID = re.compile(r"[a-z0-9][a-z0-9._:-]{0,159}")
_CODE = re.compile(r"[a-z][a-z_]{0,31}")
_MAX_REFERENCE = 300
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """`amount_nano` from `debit` to `credit`; `code` says what for, `reference` for which answer, period or grant.

    `pending` reserves, `post` takes all or part of the hold `pending_id` and releases the rest, `void` releases it.
    `timeout_ms` (pending; 0 is never) counts from the ledger's own time of the hold. Raises InvalidInput for anything
    that could never be a transfer.
    """

    transfer_id: str
    debit: str
    credit: str
    amount_nano: int
    code: str
    reference: str = ""
    kind: TransferKind = "single"
    pending_id: str = ""
    timeout_ms: int = 0

    def __post_init__(self) -> None:
        _check_texts(self)
        _check_amount(self.amount_nano)
        _check_phases(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A transfer as it stands in the log: batch `seq`, place `ordinal` in it, the ledger's time."""

    transfer: Transfer
    seq: int
    ordinal: int
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one leaf of the log commits to. `packed` are the transfers as records, where the leaf is over those."""

    seq: int
    time_ms: int
    transfers: tuple[Transfer, ...]
    statement: dict[str, Any] | None
    packed: bytes = b""


def transfer_to_dict(transfer: Transfer) -> dict[str, Any]:
    """Its fields by name, in the order of canonical JSON."""
    return {
        "amount_nano": transfer.amount_nano,
        "code": transfer.code,
        "credit": transfer.credit,
        "debit": transfer.debit,
        "kind": transfer.kind,
        "pending_id": transfer.pending_id,
        "reference": transfer.reference,
        "timeout_ms": transfer.timeout_ms,
        "transfer_id": transfer.transfer_id,
    }


def transfer_bytes(transfer: Transfer) -> bytes:
    """Canonical JSON of its fields, as `hashing.canonical_json` makes it, in a seventh of the time: of its texts only
    the reference can hold what JSON escapes."""
    return (
        f'{{"amount_nano":{transfer.amount_nano},"code":"{transfer.code}","credit":"{transfer.credit}",'
        f'"debit":"{transfer.debit}","kind":"{transfer.kind}","pending_id":"{transfer.pending_id}",'
        f'"reference":{_escaped(transfer.reference)},"timeout_ms":{transfer.timeout_ms},'
        f'"transfer_id":"{transfer.transfer_id}"}}'
    ).encode()


def transfer_from_dict(values: Mapping[str, Any]) -> Transfer:
    """Raises InvalidInput where a field is missing, unknown or of another type."""
    if not isinstance(values, dict) or set(values) != set(Transfer.__dataclass_fields__):
        raise InvalidInput("not the fields of a transfer", code="invalid_transfer", param="transfer")
    return Transfer(**values)


def compare(given: Transfer, known: Transfer) -> str:
    """`exists`, or `exists_with_different_` and the first field that differs."""
    for field in Transfer.__dataclass_fields__:
        if getattr(given, field) != getattr(known, field):
            return f"exists_with_different_{field}"
    return EXISTS


def _check_texts(transfer: Transfer) -> None:
    if not isinstance(transfer.transfer_id, str) or not _ID.fullmatch(transfer.transfer_id):
        _refuse(f"{transfer.transfer_id!r} is no transfer id", "invalid_transfer_id", "transfer_id")
    check_account_id(transfer.debit, "debit")
    check_account_id(transfer.credit, "credit")
    if transfer.debit == transfer.credit:
        _refuse("a transfer to itself moves nothing", "same_account", "credit")
    if not isinstance(transfer.code, str) or not _CODE.fullmatch(transfer.code):
        _refuse(f"{transfer.code!r} is no transfer code", "invalid_code", "code")
    if not isinstance(transfer.reference, str) or len(transfer.reference) > _MAX_REFERENCE:
        _refuse(f"a reference is text of at most {_MAX_REFERENCE} characters", "invalid_reference", "reference")
    if not transfer.reference.isascii() and _SURROGATE.search(transfer.reference):
        _refuse("a reference holds half a character", "invalid_reference", "reference")


def _check_amount(amount_nano: int) -> None:
    if type(amount_nano) is not int or not 0 < amount_nano <= SUPPLY_NANO:
        raise InvalidInput(
            f"{amount_nano!r} can't be transferred",
            code="invalid_amount",
            param="amount_nano",
            fix=f"send a whole number of {shown_unit().smallest} from 1 to {SUPPLY_NANO}",
        )


def _check_phases(transfer: Transfer) -> None:
    if transfer.kind not in _KINDS:
        _refuse(f"no kind of transfer is called {transfer.kind!r}", "invalid_kind", "kind")
    resolves = transfer.kind in ("post", "void")
    is_id = isinstance(transfer.pending_id, str) and _ID.fullmatch(transfer.pending_id) is not None
    if is_id != resolves or (not resolves and transfer.pending_id != ""):
        _refuse("post and void name a hold, others don't", "invalid_pending_id", "pending_id")
    timeout = transfer.timeout_ms
    if type(timeout) is not int or not 0 <= timeout < 2**53 or (timeout and transfer.kind != "pending"):
        _refuse("only a hold has a timeout, in whole milliseconds", "invalid_timeout", "timeout_ms")


def _refuse(message: str, code: str, param: str) -> None:
    raise InvalidInput(message, code=code, param=param)
