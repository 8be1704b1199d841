"""Taking rows back: what a contributor signs to withdraw rows, what an owner says, and what stays of a row.

Owns the signed form, the checks that need no storage, and the tombstone: a hash of the row under a salt of its own.
Without the salt nobody can tell whether it stood for a text that he guesses. Knows neither registry nor shards.
"""

import re
import secrets
from collections.abc import Sequence

from openledger.core.errors import InvalidInput, TooLarge
from openledger.core.hashing import digest_json
from openledger.core.ids import check_name, derived_id
from openledger.core.signed import withdrawal_bytes
from openledger.core.signing import Holder, SigningKey, check_public_key, contributor_id, signed_by
from openledger.core.values import Removal, Row, Tombstone, Withdrawal
from openledger.datanets.versions import row_root

TOMBSTONE_FORMAT = "openledger/tombstone/1"
MAX_ROWS = 10_000
_REASON = re.compile(r"[a-z][a-z_]{0,63}")
_NONCE = re.compile(r"[!-~]{1,128}")


def sign_withdrawal(key: SigningKey, datanet: str, row_ids: Sequence[str], nonce: str) -> Withdrawal:
    """The wish of the holder of `key` that these rows of his be forgotten. Signed again, it is the same one."""
    contributor = key.contributor_id
    ordered = tuple(sorted(set(row_ids)))
    return Withdrawal(
        datanet=datanet,
        contributor_id=contributor,
        public_key=key.public_key,
        row_ids=ordered,
        nonce=nonce,
        signature=key.sign(_signed_bytes(datanet, contributor, ordered, nonce)),
    )


def check_withdrawal(withdrawal: Withdrawal, holder: Holder = contributor_id) -> None:
    """Raises InvalidInput (`invalid_signature` and others) unless it is what the holder of its key signed."""
    check_public_key(withdrawal.public_key)
    check_rows(withdrawal.row_ids)
    if not _NONCE.fullmatch(withdrawal.nonce):
        raise InvalidInput("a nonce has 1 to 128 printable ASCII characters", code="invalid_nonce", param="nonce")
    signed = _signed_bytes(withdrawal.datanet, withdrawal.contributor_id, withdrawal.row_ids, withdrawal.nonce)
    own = withdrawal.contributor_id, withdrawal.public_key, withdrawal.signature
    if not signed_by(*own, signed, holder):
        raise InvalidInput(
            "the withdrawal was not signed with this key",
            code="invalid_signature",
            param="signature",
            fix="sign it with the key of who contributed the rows",
        )


def withdrawn(withdrawal: Withdrawal, now_ms: int) -> Removal:
    """The removal that a withdrawal calls for; what its signature stands over goes into the log with it."""
    signed = {name: getattr(withdrawal, name) for name in ("public_key", "nonce", "signature")}
    return _removal(withdrawal.datanet, "withdrawn", withdrawal.contributor_id, "", withdrawal.row_ids, signed, now_ms)


def removed(datanet: str, row_ids: Sequence[str], by: str, reason: str, now_ms: int) -> Removal:
    """An owner's removal. `reason` is a word of a few (`court_order`, `personal_data`): it stands in the public log."""
    ordered = tuple(sorted(set(row_ids)))
    check_rows(ordered)
    if not _REASON.fullmatch(reason):
        raise InvalidInput(
            f"{reason!r} is no reason",
            code="invalid_reason",
            param="reason",
            fix="one word in lower case, such as court_order or personal_data; it stands in the public log",
        )
    return _removal(datanet, "removed", by, reason, ordered, {}, now_ms)


def check_rows(row_ids: Sequence[str]) -> None:
    if not row_ids or list(row_ids) != sorted(set(row_ids)):
        raise InvalidInput(
            "a removal names rows, each once and in order", code="invalid_row_ids", param="row_ids", fix="sort the ids"
        )
    if len(row_ids) > MAX_ROWS:
        raise TooLarge(
            f"{len(row_ids)} rows; one removal takes at most {MAX_ROWS}",
            code="too_many_rows",
            param="row_ids",
            fix="split them over several removals",
        )


def tombstone(row: Row) -> Tombstone:
    salt = secrets.token_hex(32)
    return Tombstone(row_id=row.row_id, salt=salt, digest=tombstone_digest(row, salt))


def tombstone_digest(row: Row, salt: str) -> str:
    text = [row.prompt, row.completion, row.source, *([row.extra] if row.extra else [])]
    return digest_json([TOMBSTONE_FORMAT, salt, row.row_id, *text])


def _removal(
    datanet: str, kind: str, by: str, reason: str, row_ids: tuple[str, ...], signed: dict[str, str], now_ms: int
) -> Removal:
    root = row_root(row_ids)
    return Removal(
        removal_id=derived_id("rmv", datanet, kind, by, reason, root, signed.get("nonce", "")),
        datanet=datanet,
        kind="withdrawn" if kind == "withdrawn" else "removed",
        by=by,
        reason=reason,
        row_ids=row_ids,
        rows_root=root,
        signed=signed,
        removed_ms=now_ms,
    )


def _signed_bytes(datanet: str, contributor: str, row_ids: Sequence[str], nonce: str) -> bytes:
    return withdrawal_bytes(check_name(datanet, "datanet"), contributor, row_root(row_ids), len(row_ids), nonce)
