"""Contributions: rows that their contributor signs, checked without asking anyone but the key.

Owns what is signed, how ids follow from it, and the limits on what one contribution may hold. Knows neither the gate
nor storage. The signature (Ed25519) stands over the root of an RFC 9162 tree whose leaves are the drafts, so one check
covers all rows, and a single row can be proved to belong to a signed contribution.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

from openledger.core import merkle
from openledger.core.errors import InvalidInput, TooLarge
from openledger.core.hashing import canonical_json, digest_bytes
from openledger.core.ids import check_name, derived_id
from openledger.core.signed import contribution_bytes
from openledger.core.signing import SigningKey, check_public_key, verify
from openledger.core.values import Contribution, Row, RowDraft

MAX_ROWS = 10_000
MAX_ROW_BYTES = 16 * 1024
BATCH_ROWS = 1_000
BATCH_BYTES = 4 * 1024 * 1024  # escaped in JSON, it stays below what the API takes
_MAX_NONCE_CHARS = 128
_ESCAPED = bytes([*range(ord(" ")), *b'"\\'])  # of a JSON string's characters


def sign_contribution(key: SigningKey, datanet: str, drafts: Sequence[RowDraft], nonce: str) -> Contribution:
    """Drafts made into a contribution by the holder of `key`. The same `nonce` again makes the same contribution.

    Raises InvalidInput for a bad name, nonce or text, TooLarge over a limit.
    """
    root = content_root(drafts)
    _check_nonce(nonce)
    contributor = key.contributor_id
    message = contribution_bytes(check_name(datanet, "datanet"), contributor, root, len(drafts), nonce)
    return Contribution(
        datanet=datanet,
        contributor_id=contributor,
        public_key=key.public_key,
        nonce=nonce,
        drafts=tuple(drafts),
        content_root=root,
        signature=key.sign(message),
    )


def sign_batches(
    key: SigningKey, datanet: str, drafts: Iterable[RowDraft], nonce: str, max_rows: int = BATCH_ROWS
) -> Iterator[Contribution]:
    """As many contributions as the drafts need, one at a time, so that a stream of any length can be sent.

    The same drafts with the same `nonce` make the same contributions: sending them again after a broken connection
    stores nothing twice.
    """
    batch: list[RowDraft] = []
    size = 0
    for draft in drafts:
        draft_size = len(draft_bytes(draft, len(batch)))
        if batch and (len(batch) >= max_rows or size + draft_size > BATCH_BYTES):
            yield sign_contribution(key, datanet, batch, nonce)
            batch, size = [], 0
        batch.append(draft)
        size += draft_size
    if batch:
        yield sign_contribution(key, datanet, batch, nonce)


def check_signature(contribution: Contribution) -> None:
    """Raises InvalidInput (`invalid_signature`) unless the contribution is what its key signed; whose key that is,
    `Datanets.check_key` says.

    Also raises InvalidInput for text that can't be stored and TooLarge over a limit.
    """
    check_public_key(contribution.public_key)
    check_name(contribution.datanet, "datanet")
    _check_nonce(contribution.nonce)
    if contribution.content_root != content_root(contribution.drafts):
        raise _invalid_signature("the content root is not the one of the rows", "content_root")
    if not verify(contribution.public_key, contribution.signature, signed_bytes(contribution)):
        raise _invalid_signature("the signature was not made with this key over this content", "signature")


def signed_bytes(contribution: Contribution) -> bytes:
    """What the signature stands over: canonical JSON of the contribution without its rows, which the root covers."""
    given = contribution
    return contribution_bytes(given.datanet, given.contributor_id, given.content_root, len(given.drafts), given.nonce)


def row_ids(contribution: Contribution) -> list[str]:
    """One id for each draft. The salt (contributor and nonce) keeps ids apart when two people send the same rows, and
    keeps a tombstone from telling what it stood for."""
    one = contribution
    salt = canonical_json([one.contributor_id, one.nonce])
    return [_row_id(salt, one.content_root, ordinal, draft) for ordinal, draft in enumerate(one.drafts)]


def is_row_of(row: Row, signed: Mapping[str, Any]) -> bool:
    """Whether `row` is of the contribution whose signature covers `signed` (`core.signed.contribution_fields`): its id
    follows from that and from what it says."""
    if (row.datanet, row.contributor_id) != (signed["datanet"], signed["contributor_id"]):
        return False
    salt = canonical_json([row.contributor_id, signed["nonce"]])
    draft = RowDraft(prompt=row.prompt, completion=row.completion, source=row.source, extra=row.extra)
    return row.row_id == _row_id(salt, signed["content_root"], row.ordinal, draft)


def _row_id(salt: bytes, root: str, ordinal: int, draft: RowDraft) -> str:
    digest = digest_bytes(b"[%b,%b]" % (salt, draft_bytes(draft, ordinal)))  # of the canonical JSON of [salt, draft]
    return derived_id("row", root, str(ordinal), digest)


def content_root(drafts: Sequence[RowDraft]) -> str:
    """The RFC 9162 root (hex) over the canonical JSON of the drafts, in order."""
    if not drafts:
        raise InvalidInput("a contribution needs a row", code="empty_contribution", param="drafts", fix="send one")
    if len(drafts) > MAX_ROWS:
        raise TooLarge(
            f"{len(drafts)} rows; a contribution holds at most {MAX_ROWS}",
            code="too_many_rows",
            param="drafts",
            fix="split them over several contributions",
        )
    return merkle.root([merkle.leaf_hash(draft_bytes(draft, n)) for n, draft in enumerate(drafts)]).hex()


def row_path(drafts: Sequence[RowDraft], ordinal: int) -> list[str]:
    """The audit path (RFC 9162, hex) of one draft to the root of all."""
    hashes = [merkle.leaf_hash(draft_bytes(draft, n)) for n, draft in enumerate(drafts)]
    return [item.hex() for item in merkle.inclusion_proof(ordinal, hashes)]


def leads_to(draft: RowDraft, ordinal: int, num_rows: int, path: Sequence[str], root: str) -> bool:
    """Whether `path` leads from `draft` to the `root` of `num_rows`. Malformed hex is False."""
    try:
        items = [bytes.fromhex(item) for item in path]
    except ValueError:
        return False
    leaf = merkle.leaf_hash(draft_bytes(draft, ordinal))
    return merkle.verify_inclusion(ordinal, num_rows, leaf, items, bytes.fromhex(root))


def draft_json(draft: RowDraft) -> dict[str, str]:
    """What is signed of a row. One without `extra` is signed as rows were before there was any."""
    value = {"prompt": draft.prompt, "completion": draft.completion, "source": draft.source}
    return {**value, "extra": draft.extra} if draft.extra else value


def draft_bytes(draft: RowDraft, ordinal: int) -> bytes:
    """What is signed of one draft. Raises InvalidInput (`invalid_text`), TooLarge (`row_too_large`)."""
    try:
        data = _draft_json(draft)
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"row {ordinal} is not valid Unicode text: {error}",
            code="invalid_text",
            param=f"drafts[{ordinal}]",
            fix="remove unpaired surrogates",
        ) from error
    if len(data) > MAX_ROW_BYTES:
        raise TooLarge(
            f"row {ordinal} has {len(data)} bytes; at most {MAX_ROW_BYTES} are allowed",
            code="row_too_large",
            param=f"drafts[{ordinal}]",
            fix="shorten the row or split it",
        )
    return data


def drafts_json(drafts: Sequence[RowDraft]) -> str:
    """What is signed of each, as one JSON array."""
    return (b"[%b]" % b",".join(draft_bytes(draft, n) for n, draft in enumerate(drafts))).decode()


def _draft_json(draft: RowDraft) -> bytes:
    """The canonical JSON of `draft_json`, written out: contributions are made of little else."""
    extra = b'"extra":%b,' % _quoted(draft.extra) if draft.extra else b""
    said = _quoted(draft.completion), extra, _quoted(draft.prompt), _quoted(draft.source)
    return b'{"completion":%b,%b"prompt":%b,"source":%b}' % said


def _quoted(text: str) -> bytes:
    data = text.encode()
    if len(data.translate(None, _ESCAPED)) == len(data):  # the same by a shorter way
        return b'"%b"' % data
    return encode_basestring(text).encode()


def _check_nonce(nonce: str) -> None:
    if not 1 <= len(nonce) <= _MAX_NONCE_CHARS or not nonce.isascii() or not nonce.isprintable():
        raise InvalidInput(
            f"a nonce has 1 to {_MAX_NONCE_CHARS} printable ASCII characters", code="invalid_nonce", param="nonce"
        )


def _invalid_signature(message: str, param: str) -> InvalidInput:
    return InvalidInput(
        message, code="invalid_signature", param=param, fix="sign the unchanged rows with the contributor's own key"
    )
