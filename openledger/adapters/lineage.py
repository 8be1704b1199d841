"""Where an adapter comes from, and how what it earns is split over its ancestors' contributors.

Owns the graph that the cards' `parents` make, the merge of LoRA adapters, and the lineage rule. Doesn't measure: gains
and shares of every generation are handed in, all on the same answers and in the same unit (`ContributorScores`).

**Merge.** Each LoRA adapter adds  s B A  to a base matrix (s its scale, A [r, in], B [out, r]). A sum of them with
weights w is again a LoRA adapter, of the ranks' sum:

    sum over i of w_i s_i B_i A_i  =  [w_1 s_1 B_1 ... w_k s_k B_k] [A_1; ...; A_k]

so nothing is lost but the rounding of w s B to fp32. (Averaging the A and the B, as some merges do, is another map.)

**The rule, version 1.** G(x) is adapter x's gain over the base. It began from its parents at gain P(x), so training on
its own rows brought G(x) - P(x), and P(x) is divided over the parents as P_1 + ... + P_k. Of what comes to x, its own
rows and its parents get, in proportion,

    max(0, G(x) - P(x))     max(0, P_1)   ...   max(0, P_k)

and each parent's part is divided by the same rule down its own line. For continued fine-tunes P(x) = G(parent): the
parts of a line telescope to G(1), G(2) - G(1), G(3) - G(2), each generation paid for what it added, and a generation
that added nothing gets nothing. Where no part is positive, all goes to `unattributed`. Weights of a merge pay nobody:
whoever merges chooses them.

**A parent's part of a merge**, P_i, is the Aumann-Shapley value of the gain as all parents are scaled up together from
nothing to their weights (Billera and Heath, 1982): it sums to P exactly, and naming one parent as two halves changes
nothing. `parent_gains` walks that path in steps, and in each step moves one parent after the other, forwards and
backwards, which makes every sum exact and the error quadratic in the step.

All numbers are integers or fractions; sums are exact.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger import __version__
from openledger.adapters.card import AdapterCard, adapter_digest, save_card
from openledger.core.errors import Conflict, InvalidInput, NotFound, TooLarge
from openledger.core.files import write_durably, write_json_durably
from openledger.core.money import split
from openledger.core.shares import WHOLE_PPB
from openledger.core.values import UNATTRIBUTED

if TYPE_CHECKING:  # torch is only needed where adapters are merged
    from openledger.adapters.checks import AdapterLimits, AdapterWeights, BaseShapes

LINEAGE_RULE = "lineage/1"
Weight = int | float | str | Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What was measured of one adapter. `gain_nano` is over the base; `parent_gains_nano` has one number for each
    parent, summing to the gain of what it began from; `own_shares_ppb` are the shares of those whose rows it was
    trained on (with `unattributed`, summing to 10^9), empty for a merge that was not trained."""

    gain_nano: int
    parent_gains_nano: Mapping[str, int | Fraction]
    own_shares_ppb: Mapping[str, int]


class Lineage:
    """The adapters of `cards` and which began from which.

    Raises NotFound (`missing_parent`), InvalidInput (`lineage_cycle`, `lineage_base`, `lineage_parents`), Conflict
    (`lineage_conflict`) where two cards of one digest name different parents.
    """

    def __init__(self, cards: Iterable[AdapterCard]):
        self._cards: dict[str, AdapterCard] = {}
        for card in cards:
            known = self._cards.setdefault(card.digest, card)
            if known.parents != card.parents:
                raise Conflict(
                    f"the cards {known.name!r} and {card.name!r} are of one digest and name different parents",
                    code="lineage_conflict",
                    param=card.name,
                )
        for card in self._cards.values():
            self._check(card)
        try:
            self._oldest_first = tuple(
                TopologicalSorter({digest: self.parents(digest) for digest in sorted(self._cards)}).static_order()
            )
        except CycleError as error:
            names = [self._cards[digest].name for digest in reversed(error.args[1])]
            raise InvalidInput(
                f"these adapters each began from the next: {', '.join(names)}", code="lineage_cycle", param="parents"
            ) from error

    def parents(self, digest: str) -> tuple[str, ...]:
        return tuple(parent for parent, _ in self.card(digest).parents)

    def card(self, digest: str) -> AdapterCard:
        """Raises NotFound (`unknown_adapter`)."""
        if digest not in self._cards:
            raise NotFound(f"no card of the adapter {digest}", code="unknown_adapter", param="digest")
        return self._cards[digest]

    def generations(self, digest: str) -> tuple[str, ...]:
        """The adapter and all that it comes from, every adapter before its parents."""
        wanted, left = {self.card(digest).digest}, [digest]
        while left:
            new = [parent for parent in self.parents(left.pop()) if parent not in wanted]
            wanted.update(new)
            left.extend(new)
        return tuple(each for each in reversed(self._oldest_first) if each in wanted)

    def _check(self, card: AdapterCard) -> None:
        named = [digest for digest, _ in card.parents]
        if len(set(named)) < len(named) or any(_fraction(weight) == 0 for _, weight in card.parents):
            raise InvalidInput(
                f"the card {card.name!r} names a parent twice, or one of weight 0",
                code="lineage_parents",
                param=card.name,
            )
        for digest in named:
            parent = self._cards.get(digest)
            if parent is None:
                raise NotFound(
                    f"{card.name!r} began from the adapter {digest}, whose card is not here",
                    code="missing_parent",
                    param=digest,
                    fix="fetch the parent's card: without it, those whose data made the parent can't be paid",
                )
            if parent.base_digest != card.base_digest:
                raise InvalidInput(
                    f"{card.name!r} and its parent {parent.name!r} are of different bases",
                    code="lineage_base",
                    param=card.name,
                )


def contributor_shares(lineage: Lineage, digest: str, measured: Mapping[str, Generation]) -> dict[str, Fraction]:
    """Each contributor's part of what the adapter earns, over all generations, and `unattributed`; they sum to one.

    Raises NotFound (`unmeasured_generation`), InvalidInput (`invalid_generation`) for measures that don't fit the
    cards.
    """
    parts = generation_shares(lineage, digest, measured)
    totals: defaultdict[str, Fraction] = defaultdict(Fraction)
    totals[UNATTRIBUTED] = parts.pop(UNATTRIBUTED)
    for generation, part in parts.items():
        for contributor, share_ppb in (measured[generation].own_shares_ppb or {UNATTRIBUTED: WHOLE_PPB}).items():
            totals[contributor] += part * Fraction(share_ppb, WHOLE_PPB)
    return {contributor: totals[contributor] for contributor in sorted(totals)}


def contributor_shares_ppb(lineage: Lineage, digest: str, measured: Mapping[str, Generation]) -> dict[str, int]:
    """As `contributor_shares`, in parts per billion that sum to 10^9: what settlement pays a pool by."""
    shares = contributor_shares(lineage, digest, measured)
    common = math.lcm(*(share.denominator for share in shares.values()))
    return split(WHOLE_PPB, {contributor: int(share * common) for contributor, share in shares.items()})


def generation_shares(lineage: Lineage, digest: str, measured: Mapping[str, Generation]) -> dict[str, Fraction]:
    """The part that goes to each generation's own rows, by digest, and `unattributed`; they sum to one."""
    coming: defaultdict[str, Fraction] = defaultdict(Fraction, {digest: Fraction(1)})
    staying = {UNATTRIBUTED: Fraction(0)}
    for generation in lineage.generations(digest):
        parts = _parts(lineage, generation, measured)
        whole = sum(parts.values())
        staying[generation] = coming[generation] * parts.pop(generation) / whole if whole else Fraction(0)
        if not whole:
            staying[UNATTRIBUTED] += coming[generation]
            continue
        for parent, part in parts.items():
            coming[parent] += coming[generation] * part / whole
    return staying


def parent_gains(
    parents: Sequence[str], gain_nano: Callable[[Mapping[str, Fraction]], int], steps: int = 4
) -> dict[str, Fraction]:
    """Each parent's part of the gain of all of them together; the parts sum to it exactly.

    `gain_nano` is asked for the gain over the base of the merge in which each parent's weight is multiplied by the
    given factor, 0 to 1, at most 2 k `steps` times for k parents. Raises InvalidInput for no parents, or no steps.
    """
    if not parents or steps < 1 or len(set(parents)) < len(parents):
        raise InvalidInput("name each parent once, and at least one step", code="invalid_lineage_path", param="parents")
    told: dict[tuple[Fraction, ...], int] = {(Fraction(0),) * len(parents): 0}

    def gain_at(factors: Sequence[Fraction]) -> int:
        key = tuple(factors)
        if key not in told:
            told[key] = gain_nano(dict(zip(parents, key, strict=True)))
        return told[key]

    totals = dict.fromkeys(parents, Fraction(0))
    for step in range(steps):
        for order in (range(len(parents)), reversed(range(len(parents)))):
            factors = [Fraction(step, steps)] * len(parents)
            for place in order:
                before = gain_at(factors)
                factors[place] = Fraction(step + 1, steps)
                totals[parents[place]] += Fraction(gain_at(factors) - before, 2)
    return totals


def asked_factors(parents: Sequence[str], steps: int = 4) -> list[dict[str, Fraction]]:
    """The factors for which `parent_gains` asks, for whoever measures them all at once."""
    asked: list[dict[str, Fraction]] = []

    def note(factors: Mapping[str, Fraction]) -> int:
        asked.append(dict(factors))
        return 0

    parent_gains(parents, note, steps)
    return asked


def merge_lora(
    folders: Sequence[Path],
    weights: Sequence[Weight],
    out: Path,
    *,
    base: "BaseShapes",
    limits: "AdapterLimits | None" = None,
) -> str:
    """Write the weighted sum of the adapters in `folders` as one PEFT adapter to `out`; returns its digest.

    A card that names the parents is written where every parent has one. Negative weights take an adapter away.
    Raises what `checks.read_adapter` raises, InvalidInput (`invalid_merge`), TooLarge (`adapter_rank`) where the ranks'
    sum is over the limit, Conflict (`adapter_exists`) where `out` holds something.
    """
    from openledger.adapters.checks import CONFIG_FILE, WEIGHTS_FILE, AdapterLimits, read_adapter

    limits = limits or AdapterLimits()
    exact = _merge_weights(folders, weights)
    if out.exists() and any(out.iterdir()):
        raise Conflict(f"{out} is not empty", code="adapter_exists", param="out", fix="take another folder")
    adapters = [read_adapter(folder, base, limits) for folder in folders]
    digests = [adapter.description.digest for adapter in adapters]
    if len(set(digests)) < len(digests):
        raise InvalidInput(
            "one adapter is named twice", code="invalid_merge", param="folders", fix="add its weights up"
        )
    tensors, ranks = _merged_tensors(adapters, exact)
    if max(ranks.values()) > limits.max_rank:
        raise TooLarge(
            f"the merge has rank {max(ranks.values())}, the limit is {limits.max_rank}",
            code="adapter_rank",
            param="folders",
            fix="merge fewer adapters, or adapters of lower rank",
        )
    write_durably(out / WEIGHTS_FILE, tensors)
    write_json_durably(out / CONFIG_FILE, _merged_config(folders, ranks))
    digest = adapter_digest(out)
    cards = [adapter.description.card for adapter in adapters]
    known = [card for card in cards if card is not None]
    if len(known) == len(cards):
        save_card(out, _merged_card(out.name, digest, known, exact))
    return digest


def _parts(lineage: Lineage, digest: str, measured: Mapping[str, Generation]) -> dict[str, Fraction]:
    """What the generation's own rows (under its own digest) and each parent brought, nothing below zero."""
    generation = measured.get(digest)
    if generation is None:
        raise NotFound(
            f"nothing was measured of the adapter {digest}", code="unmeasured_generation", param=digest,
            fix="measure every generation's gain on the period's answers",
        )  # fmt: skip
    shares = generation.own_shares_ppb
    if set(generation.parent_gains_nano) != set(lineage.parents(digest)):
        raise InvalidInput(
            f"the gains of {digest} are not those of its parents", code="invalid_generation", param="parent_gains_nano"
        )
    if shares and (sum(shares.values()) != WHOLE_PPB or min(shares.values()) < 0):
        raise InvalidInput(
            f"the shares of {digest} don't sum to 10^9", code="invalid_generation", param="own_shares_ppb"
        )
    own = generation.gain_nano - sum(generation.parent_gains_nano.values())
    parts = {parent: Fraction(gain) for parent, gain in generation.parent_gains_nano.items()}
    return {key: max(Fraction(0), part) for key, part in {digest: Fraction(own), **parts}.items()}


def _merge_weights(folders: Sequence[Path], weights: Sequence[Weight]) -> list[Fraction]:
    if len(folders) != len(weights) or not folders:
        raise InvalidInput("a merge takes one weight for each adapter", code="invalid_merge", param="weights")
    exact = [_fraction(weight) for weight in weights]
    if 0 in exact:
        raise InvalidInput("an adapter of weight 0 is no part of a merge", code="invalid_merge", param="weights")
    return exact


def _fraction(weight: Weight) -> Fraction:
    """The number as it is written: 0.1 is a tenth, not the nearest binary fraction."""
    try:
        return Fraction(str(weight))
    except (ValueError, ZeroDivisionError) as error:
        raise InvalidInput(f"{weight!r} is no finite number", code="invalid_merge", param="weights") from error


def _merged_tensors(adapters: Sequence["AdapterWeights"], weights: Sequence[Fraction]) -> tuple[bytes, dict[str, int]]:
    import torch
    from safetensors.torch import save

    tensors, ranks = {}, {}
    for module in sorted({module for adapter in adapters for module in adapter.factors}):
        present = [
            (*adapter.factors[module], float(weight))
            for adapter, weight in zip(adapters, weights, strict=True)
            if module in adapter.factors
        ]
        a_RI = torch.cat([a for a, _, _, _ in present], dim=0)
        b_OR = torch.cat([(b.double() * (scale * weight)).float() for _, b, scale, weight in present], dim=1)
        ranks[module] = a_RI.shape[0]
        for side, tensor in (("A", a_RI), ("B", b_OR)):
            tensors[f"base_model.model.{module}.lora_{side}.weight"] = tensor.contiguous()
    return save(tensors, metadata={"format": "pt"}), ranks


def _merged_config(folders: Sequence[Path], ranks: Mapping[str, int]) -> dict[str, Any]:
    """All scales are in B already, so alpha equals the rank in every module."""
    from openledger.adapters.checks import CONFIG_FILE

    first = json.loads((folders[0] / CONFIG_FILE).read_bytes())
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {module: number for module, number in ranks.items() if number != rank}
    return {
        "peft_type": "LORA",
        "task_type": first.get("task_type"),
        "base_model_name_or_path": first.get("base_model_name_or_path"),
        "fan_in_fan_out": first.get("fan_in_fan_out", False),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _merged_card(name: str, digest: str, parents: Sequence[AdapterCard], weights: Sequence[Fraction]) -> AdapterCard:
    return AdapterCard(
        name=name,
        digest=digest,
        base_model=parents[0].base_model,
        base_digest=parents[0].base_digest,
        datanet="",
        datanet_version=0,
        row_root="",
        rows_trained=(),
        contributors={},
        recipe={"merge": "linear"},
        environment={},
        code_version=__version__,
        initial_a="",
        final_loss=math.nan,
        parents=tuple((card.digest, str(weight)) for card, weight in zip(parents, weights, strict=True)),
    )
