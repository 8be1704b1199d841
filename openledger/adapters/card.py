"""The lineage card: what an adapter is made of, stored as `card.json` beside its weights."""

import json
import re
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from openledger.core.errors import Corrupt
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_file, digest_json

CARD_FORMAT = "openledger.adapter-card/1"
_LARGE_EXPONENT = re.compile(r"[eE][-+]?[\d_]{4,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCard:
    """`digest` covers weights and configuration: it is the adapter's identity in caches, metering and proofs.

    `rows_trained` are the row ids in training order of the source; `contributors` counts them by contributor.
    `recipe` and `environment` are what a replay needs; so is `initial_a`, the public constant, which comes from
    `initial_from`: the `nonces` of owner and witnesses, or the version's `row_root`, which its last contributor can
    influence. An adapter that went on from its `parent` began with that one's matrices, and `initial_a` names it
    (`adapter:DIGEST`); `order` is the constant that the order of its rows, and which were drawn, come from (empty in
    cards of before, and the same as `initial_a` for one without a parent). `evaluation` is measured after training.

    `credit_root` is the version's root over its order of credit (`datanets.versions`), empty for a version without one.
    With the rows' root it is part of what the log has of the run (`point_of_sale.purpose_of`).

    `parents` are what the adapter began from, as (digest, weight) with the weight an exact number in text ("1/2"): one
    of weight 1 for a continued fine-tune, several for a merge, none for an adapter of its own. See `lineage`. A merge
    that was not trained any further has no rows, and its loss is not a number.
    """

    name: str
    digest: str
    base_model: str
    base_digest: str
    datanet: str
    datanet_version: int
    row_root: str
    rows_trained: tuple[str, ...]
    contributors: dict[str, int]
    recipe: dict[str, Any]
    environment: dict[str, Any]
    code_version: str
    initial_a: str
    initial_from: str = "row_root"
    order: str = ""
    final_loss: float
    evaluation: dict[str, float] = field(default_factory=dict)
    parents: tuple[tuple[str, str], ...] = ()
    credit_root: str = ""
    format: str = CARD_FORMAT

    def with_evaluation(self, evaluation: dict[str, float]) -> "AdapterCard":
        return replace(self, evaluation={**self.evaluation, **evaluation})


def adapter_digest(folder: Path) -> str:
    """Identity of the PEFT adapter in `folder`: its weights and the configuration that changes the mathematics."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return identity_of(config, digest_file(folder / "adapter_model.safetensors"))


def identity_of(config: dict[str, Any], weights_digest: str) -> str:
    """As `adapter_digest`, of what was read before."""
    relevant = ("r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
    settings = {name: _plain(config.get(name)) for name in relevant}
    return digest_json({"weights": weights_digest, "config": settings})


def save_card(folder: Path, card: AdapterCard) -> None:
    write_json_durably(folder / "card.json", asdict(card))


def load_card(folder: Path) -> AdapterCard:
    """Raises Corrupt where there is no readable card of a known format."""
    path = folder / "card.json"
    try:
        values = json.loads(path.read_text())
        parents = tuple((str(digest), _exact(weight)) for digest, weight in values.get("parents", ()))
        card = AdapterCard(**{**values, "rows_trained": tuple(values["rows_trained"]), "parents": parents})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise _corrupt(folder, f"card.json can't be read ({error})") from error
    if card.format != CARD_FORMAT:
        raise _corrupt(folder, f"card.json has the unknown format {card.format!r}")
    return card


def checked_card(folder: Path) -> AdapterCard:
    """The card, once the weights beside it are found to be the ones it names. Raises Corrupt."""
    card = load_card(folder)
    try:
        digest = adapter_digest(folder)
    except (OSError, ValueError) as error:
        raise _corrupt(folder, str(error)) from error
    if digest != card.digest:
        raise _corrupt(folder, "its weights or configuration are not those that its card names")
    return card


def _exact(weight: Any) -> str:
    """Cards come from strangers: a power of ten takes as many digits as its exponent says."""
    if _LARGE_EXPONENT.search(str(weight)):
        raise ValueError(f"the weight {weight!r} is no number that a merge takes")
    return str(Fraction(weight))


def _corrupt(folder: Path, reason: str) -> Corrupt:
    return Corrupt(
        f"the adapter in {folder} is damaged: {reason}",
        code="corrupt_adapter",
        param=str(folder),
        fix="remove the folder and run again: the adapter is trained again from its rows",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | set | tuple):
        return sorted(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
