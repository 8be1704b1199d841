"""Appeals against the gate's verdict on a row, and the decisions on them: what is signed, by whom.

The text of a rejected row is not kept. So an appeal carries the row again, with its audit path (RFC 9162) to the root
of the contribution that was judged: it is the same row, or it is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from openledger.core.errors import InvalidInput
from openledger.core.hashing import canonical_json
from openledger.core.signing import Holder, SigningKey, contributor_id, verify
from openledger.core.values import RowDraft

APPEAL = "openledger.appeal/1"
DECISION = "openledger.appeal-decision/1"
AppealState = Literal["open", "overturned", "upheld", "lapsed"]
MAX_REASON = 2000
APPEALED = ("datanet", "contributor_id", "contribution_id", "row_id", "reason")
DECIDED = ("datanet", "row_id", "account", "overturned", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class Appeal:
    """A contributor contests the verdict on his row `ordinal` of a contribution. `path` is hex, lowest level first."""

    datanet: str
    contributor_id: str
    public_key: str
    contribution_id: str
    row_id: str
    ordinal: int
    draft: RowDraft
    path: tuple[str, ...]
    reason: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the gate said of the row, and when its contribution came. `rival` is the contributor of the row that it is
    said to repeat, or empty."""

    outcome: str
    reasons: tuple[str, ...]
    duplicate_of: str
    rival: str
    received_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`account`, a reviewer of the Datanet, says whether the verdict on `row_id` is overturned; `note` says why."""

    datanet: str
    row_id: str
    account: str
    public_key: str
    overturned: bool
    note: str
    signature: str


def sign_appeal(
    key: SigningKey, datanet: str, contribution_id: str, row_id: str, ordinal: int, draft: RowDraft,
    path: Sequence[str], reason: str,
) -> Appeal:  # fmt: skip
    signed = {
        "datanet": datanet,
        "contributor_id": key.contributor_id,
        "contribution_id": contribution_id,
        "row_id": row_id,
        "reason": reason,
    }
    return Appeal(
        **signed,
        public_key=key.public_key,
        ordinal=ordinal,
        draft=draft,
        path=tuple(path),
        signature=key.sign(_bytes(APPEAL, APPEALED, signed)),
    )


def sign_decision(
    key: SigningKey, datanet: str, row_id: str, account: str, *, overturned: bool, note: str = ""
) -> Decision:
    signed = {"datanet": datanet, "row_id": row_id, "account": account, "overturned": overturned, "note": note}
    return Decision(
        datanet=datanet,
        row_id=row_id,
        account=account,
        public_key=key.public_key,
        overturned=overturned,
        note=note,
        signature=key.sign(_bytes(DECISION, DECIDED, signed)),
    )


def check_appeal_signature(values: Mapping[str, Any], holder: Holder = contributor_id) -> None:
    """`values` has at least an appeal's `APPEALED`, `public_key` and `signature`. Raises InvalidInput."""
    is_own = values["contributor_id"] == holder(values["public_key"])
    _check(values, APPEAL, APPEALED, is_own, "the appeal was not signed with the contributor's key")
    _check_text(values["reason"], "reason")


def check_decision_signature(values: Mapping[str, Any]) -> None:
    """`values` has at least a decision's `DECIDED`, `public_key` and `signature`. Raises InvalidInput."""
    if type(values["overturned"]) is not bool:
        raise InvalidInput("a verdict is overturned or it isn't", code="invalid_decision", param="overturned")
    _check(values, DECISION, DECIDED, True, "the decision was not signed with this key")
    _check_text(values["note"], "note")


def _check(values: Mapping[str, Any], kind: str, names: Sequence[str], is_own: bool, problem: str) -> None:
    if not is_own or not verify(values["public_key"], values["signature"], _bytes(kind, names, values)):
        raise InvalidInput(
            problem, code="invalid_signature", param="signature", fix="sign it, unchanged, with your own key"
        )


def _check_text(text: Any, param: str) -> None:
    if not isinstance(text, str) or len(text) > MAX_REASON:
        raise InvalidInput(f"a {param} is text of at most {MAX_REASON} characters", code="invalid_reason", param=param)


def _bytes(kind: str, names: Sequence[str], values: Mapping[str, Any]) -> bytes:
    return canonical_json({"format": kind, **{name: values[name] for name in names}})
