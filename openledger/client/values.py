"""What the SDK returns, and how it is read from JSON. A server's answer of another shape raises Corrupt."""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from openledger.core.errors import Corrupt
from openledger.core.sealing import SealReceipt
from openledger.core.values import ContributionReceipt, Verdict

T = TypeVar("T")
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Prices in nano-OPEN for each token. The base model alone has an empty `datanet` and `adapter_digest`."""

    id: str
    owned_by: str
    datanet: str
    datanet_version: int
    adapter_digest: str
    prompt_price_nano: int
    completion_price_nano: int
    base_model: str = ""
    base_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReceipt:
    """What several adapters' answer cost by one of them: a sale of its own, with an id of its own."""

    answer_id: str
    adapter: str
    weight: float
    fee_nano: int
    parts: dict[str, int]
    signed: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """`parts` maps accounts to nano-OPEN and sums to `fee_nano`. `signed` is the ledger's promise that the sale stands
    in its log; `OpenLedger.receipt` gives it as a file, also later. `cached_tokens` of the prompt weren't computed
    again, `engine_ms` is the engine's time; neither changes the fee. Where several adapters answered, `adapters` has
    each one's sale, and `signed` stands there."""

    answer_id: str
    prompt_tokens: int
    completion_tokens: int
    fee_nano: int
    parts: dict[str, int]
    signed: dict[str, Any] | None = None
    cached_tokens: int = 0
    engine_ms: float = 0.0
    adapters: tuple[AdapterReceipt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    text: str
    model: str
    finish_reason: str
    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """New text of a streamed answer; the last piece has no text but the reason and the receipt."""

    text: str
    finish_reason: str | None = None
    receipt: Receipt | None = None


def segment(name: str) -> str:
    """`name` as one segment of a path, whatever it holds."""
    return quote(name, safe="")


def idempotency(key: str | None) -> dict[str, str]:
    """The header; a fresh key where none is given."""
    return {"Idempotency-Key": key or str(uuid.uuid4())}


def read_as(reader: Callable[[Any], T], value: Any) -> T:
    """`reader(value)`. Raises Corrupt where the value hasn't the parts the reader looks for."""
    try:
        return reader(value)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise Corrupt(
            f"the server's answer can't be read: {type(error).__name__} {error}",
            code="unexpected_answer",
            fix="check that the URL is an OpenLedger server of the same version",
        ) from error


def read_model(value: Json) -> Model:
    return Model(id=value["id"], owned_by=value["owned_by"], **_known(value["openledger"], Model))


def read_answer(value: Json) -> Answer:
    choice = value["choices"][0]
    return Answer(
        text=choice["message"]["content"],
        model=value["model"],
        finish_reason=choice["finish_reason"],
        receipt=read_receipt(value["openledger"]),
    )


def read_piece(value: Json) -> Piece:
    choice = value["choices"][0]
    receipt = value.get("openledger")
    return Piece(
        text=choice["delta"].get("content") or "",
        finish_reason=choice["finish_reason"],
        receipt=read_receipt(receipt) if receipt else None,
    )


def read_receipt(value: Json) -> Receipt:
    adapters = tuple(AdapterReceipt(**_known(each, AdapterReceipt)) for each in value.get("adapters", ()))
    return Receipt(**{**_known(value, Receipt), "adapters": adapters})


def read_contribution(value: Json) -> ContributionReceipt:
    return ContributionReceipt(
        contribution_id=value["contribution_id"],
        datanet=value["datanet"],
        contributor_id=value["contributor_id"],
        verdicts=tuple(read_verdicts(value)),
    )


def read_seal(value: Json) -> SealReceipt:
    return SealReceipt(**_known(value, SealReceipt))


def read_verdicts(value: Json) -> list[Verdict]:
    return [
        Verdict(**{**_known(verdict, Verdict), "reasons": tuple(verdict["reasons"])}) for verdict in value["verdicts"]
    ]


def read_list(value: Json) -> list[dict[str, Any]]:
    items = value["data"]
    if not isinstance(items, list):
        raise TypeError("data is no list")
    return items


def read_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no object")
    return value


def _known(value: Json, cls: type) -> dict[str, Any]:
    """The parts of `value` that `cls` has: a newer server may send more."""
    return {name: value[name] for name in cls.__dataclass_fields__ if name in value}  # type: ignore[attr-defined]
