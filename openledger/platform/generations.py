"""The generations of a served adapter: found by their digests, measured each on its own rows, and brought together.

An adapter that began from no other is one generation, and its measurement is its scores. Of a derived one every
ancestor must be at hand, with card, weights and, where it was trained on rows, its index: what it brought is its own
contributors' (`adapters.lineage`, `attribution.generations`). While one is missing nothing is measured, and nobody is
paid.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from openledger.adapters.card import AdapterCard, checked_card
from openledger.adapters.lineage import Lineage, asked_factors, parent_gains
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.audit import audited_quality, load_audit
from openledger.attribution.bank_folder import find_bank
from openledger.attribution.generations import GenerationScores, combined
from openledger.attribution.index_folder import is_finished, method_at, read_index
from openledger.attribution.instruments import first_half
from openledger.attribution.likeness import UNMEASURED, Repeat, likeness_stated, load_repeats
from openledger.attribution.merges import Merge
from openledger.attribution.period import Measurement, capped, ceiling_of, fit_outcomes
from openledger.core.errors import InvalidInput, NotFound
from openledger.core.money import NANO_PER_OPEN
from openledger.core.scoring import gains
from openledger.core.values import Answer, ContributorScores, Pool
from openledger.platform.scoring import bank_outcomes, gains_stated
from openledger.training.examples import Example
from openledger.training.record import checkpoint_paths, load_held_out
from openledger.training.trainer import middle_folder

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestry:
    """A served adapter and all that it came from, each before its parents. `lineage` is None for an adapter without a
    card, of which nothing is known but its digest."""

    lineage: Lineage | None
    adapters: Mapping[str, RegisteredAdapter]

    @property
    def served(self) -> RegisteredAdapter:
        return next(iter(self.adapters.values()))

    @property
    def is_derived(self) -> bool:
        return len(self.adapters) > 1

    @property
    def rows_trained(self) -> frozenset[str]:
        """Ids of all rows that any generation was trained on."""
        cards = (self.card(digest) for digest in self.adapters)
        return frozenset(row for card in cards if card is not None for row in card.rows_trained)

    def card(self, digest: str) -> AdapterCard | None:
        return None if self.lineage is None else self.lineage.card(digest)

    def lines(self) -> list[dict[str, Any]]:
        """What the settlement's statement says of each generation."""
        cards = [card for digest in self.adapters if (card := self.card(digest)) is not None]
        return [
            {
                "adapter_digest": card.digest,
                "datanet": card.datanet,
                "datanet_version": card.datanet_version,
                "row_root": card.row_root,
            }
            for card in cards
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`own` is the measurement of the served adapter's own rows; None for a merge, which has none. `held_out` are the
    rows that improvement was measured on, as answers."""

    scores: ContributorScores
    improvement: ContributorScores | None
    own: Measurement | None
    held_out: tuple[Answer, ...]


def find_ancestry(registry: AdapterRegistry, digest: str) -> Ancestry:
    """The adapter `digest` with every adapter that it came from.

    Raises NotFound (`missing_parent`) where one isn't registered or has no card, Corrupt where its weights aren't those
    that its card names, and what `Lineage` raises.
    """
    served = _find_kept(registry, digest)
    if not (Path(served.folder) / "card.json").exists():
        return Ancestry(lineage=None, adapters={digest: served})
    found, cards, left = {digest: served}, list[AdapterCard](), [digest]
    while left:
        card = checked_card(Path(found[left.pop()].folder))
        cards.append(card)
        for parent, _ in card.parents:
            if parent not in found:
                found[parent] = _find_parent(registry, parent, card.name)
                left.append(parent)
    lineage = Lineage(cards)
    return Ancestry(lineage=lineage, adapters={each: found[each] for each in lineage.generations(digest)})


def measure(
    pool: Pool,
    ancestry: Ancestry,
    answers: Sequence[Answer],
    host: Any,
    score: Any,
    indexes: Path,
    withdrawn: Collection[str] = (),
) -> Measured:
    """What the answers, and the adapter's held-out rows, owe to the rows of every generation.

    Raises NotFound (`missing_index`) naming a generation whose index is gone, before anything is measured.
    """
    _check_at_hand(ancestry, indexes)
    held_out = tuple(_held_out(pool, ancestry))
    gained = _gained(ancestry, score, (*answers, *held_out))
    asked = _Asked(pool=pool, answers=tuple(answers), held_out=held_out, gains=gained[ancestry.served.digest])
    rows = {
        digest: _measure_rows(
            asked, adapter, ancestry.card(digest), _added(ancestry, digest, gained), host, score, indexes, withdrawn
        )
        for digest, adapter in ancestry.adapters.items()
        if not is_merge(ancestry.card(digest))
    }
    if ancestry.lineage is None or not ancestry.is_derived:
        only = rows[ancestry.served.digest]
        return Measured(scores=only.use(), improvement=only.improvement(), own=only.measured, held_out=held_out)
    own = rows.get(ancestry.served.digest)
    merges = {digest: _path_gains(ancestry, digest, host, asked) for digest in ancestry.adapters if digest not in rows}
    combine = partial(_combined, ancestry.lineage, tuple(ancestry.adapters), gained, merges, asked)
    return Measured(
        scores=combine(asked.use, {digest: each.use() for digest, each in rows.items()}),
        improvement=combine(asked.kept_out, {digest: each.improvement() for digest, each in rows.items()})
        if asked.held_out
        else None,
        own=None if own is None else own.measured,
        held_out=held_out,
    )


def index_folder(indexes: Path, adapter_digest: str) -> Path:
    return indexes / adapter_digest[:24]


def index_views(adapter_folder: str, most: int | None = None) -> list[str]:
    """Where an index of the adapter is to be measured: after each epoch of the first half of its training, as an audit
    does (`attribution.instruments.index_views`), or after `most` of these, the first and the last among them. In the
    middle alone where no checkpoints were kept (docs/decisions/0003-index-in-the-middle.md).
    """
    paths = list(first_half(checkpoint_paths(Path(adapter_folder))).values())
    if not paths:
        return [middle_folder(adapter_folder)]
    number = min(most or len(paths), len(paths))
    if number == 1:
        return [str(paths[-1])]
    return [str(paths[round(place * (len(paths) - 1) / (number - 1))]) for place in range(number)]


def built_views(adapter_folder: str, folder: Path) -> list[str]:
    """Where the finished index at `folder` was measured. Raises Corrupt (`corrupt_index`)."""
    names, kept = [name for name, _ in read_index(folder)[0].views], checkpoint_paths(Path(adapter_folder))
    return [str(kept.get(_epoch(name), Path(adapter_folder) / name)) for name in names]


def _find_kept(registry: AdapterRegistry, digest: str) -> RegisteredAdapter:
    """The adapter with what its index is measured at, where any entry has it: the same weights may be registered again
    under another name, from a folder that has nothing else. Raises NotFound (`unknown_adapter`)."""
    first = registry.find_digest(digest)
    if _is_kept(first):
        return first
    again = (each for each in registry.list() if each.digest == digest)
    return next(filter(_is_kept, again), first)


def _is_kept(adapter: RegisteredAdapter) -> bool:
    return bool(adapter.folder) and all(Path(path).exists() for path in index_views(adapter.folder))


def _find_parent(registry: AdapterRegistry, digest: str, child: str) -> RegisteredAdapter:
    try:
        found = _find_kept(registry, digest)
        if (Path(found.folder) / "card.json").exists():
            return found
    except NotFound:
        pass
    raise NotFound(
        f"{child} began from the adapter {digest}, which isn't registered here with its card",
        code="missing_parent",
        param=digest,
        fix="restore its folder and its entry in the registry, then settle again: nothing was paid",
    )


def _check_at_hand(ancestry: Ancestry, indexes: Path) -> None:
    for digest, adapter in ancestry.adapters.items():
        if is_merge(ancestry.card(digest)):
            continue
        folder = index_folder(indexes, digest)
        views = built_views(adapter.folder, folder) if is_finished(folder) else [str(folder / "index.json")]
        lost = [path for path in views if not Path(path).exists()]
        if lost:
            raise NotFound(
                f"the index of {adapter.name}, by which {ancestry.served.name} is settled, lacks {lost[0]}",
                code="missing_index",
                param=digest,
                fix="restore the folder, or build the index again: jobs/train.py with --datanet and --version of its"
                " card; then settle again: nothing was paid",
            )


def _epoch(name: str) -> int:
    """The epoch that a view is called after; 0 for another's name."""
    number = name.removeprefix("epoch-")
    return int(number) if number.isdigit() else 0


def is_merge(card: AdapterCard | None) -> bool:
    return card is not None and bool(card.parents) and not card.rows_trained


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is asked of every generation: the pool's answers, then the held-out rows as answers. `gains` are the served
    adapter's over the base on each; they set the ceiling that every generation's answers count under."""

    pool: Pool
    answers: tuple[Answer, ...]
    held_out: tuple[Answer, ...]
    gains: tuple[float, ...]

    @property
    def all(self) -> tuple[Answer, ...]:
        return self.answers + self.held_out

    @property
    def use(self) -> slice:
        return slice(0, len(self.answers))

    @property
    def kept_out(self) -> slice:
        return slice(len(self.answers), None)

    def total_nano(self, part: slice, gains_Q: Sequence[float] | Array) -> int:
        """Gains on all that was asked, weighted as the scores of `part` are, and summed over it."""
        counted = capped([answer.weight_nano for answer in self.answers], self.gains[self.use], self._ceiling)
        weights_nano = np.asarray([*counted, *(row.weight_nano for row in self.held_out)], dtype=np.float64)
        return round(float(np.asarray(gains_Q, dtype=np.float64)[part] @ weights_nano[part]))

    @property
    def _ceiling(self) -> float:
        return ceiling_of(self.gains[self.kept_out])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """A generation's own rows, measured, and what is `stated` of the instruments: their audit, the index's views."""

    measured: Measurement
    stated: Mapping[str, str]

    def use(self) -> ContributorScores:
        return self._quoting(self.measured.use())

    def improvement(self) -> ContributorScores | None:
        found = self.measured.improvement()
        return None if found is None else self._quoting(found)

    def _quoting(self, scores: ContributorScores) -> ContributorScores:
        return replace(scores, quality={**scores.quality, **self.stated})


@dataclass(frozen=True, slots=True, kw_only=True)
class _PathGains:
    """What a merge gained on each answer at the points of its parents' path: gains_NQ[n] at points[n]."""

    points: list[dict[str, Fraction]]
    gains_NQ: Array

    def parent_gains(self, asked: _Asked, part: slice) -> dict[str, Fraction]:
        """Each parent's part of what the merge gained in `part`; they sum to it exactly, in nano-OPEN x nats."""

        def gain_nano(factors: Mapping[str, Fraction]) -> int:
            return asked.total_nano(part, self.gains_NQ[self.points.index(dict(factors))])

        return parent_gains(list(self.points[0]), gain_nano)


def _gained(ancestry: Ancestry, score: Any, asked: Sequence[Answer]) -> dict[str, tuple[float, ...]]:
    """Each generation's gain over the base on each answer, [Q]: asked of the engine that served it."""
    digests = tuple(ancestry.adapters)
    told_QG = [gains(score, each.prompt_ids, each.completion_ids, digests) for each in asked]
    return {digest: tuple(told_G[place] for told_G in told_QG) for place, digest in enumerate(digests)}


def _added(ancestry: Ancestry, digest: str, gained: Mapping[str, Sequence[float]]) -> tuple[float, ...]:
    """What the adapter gained on each answer by its own rows, over what it began from, [Q]."""
    card = ancestry.card(digest)
    if card is None or not card.parents:
        return tuple(gained[digest])
    if len(card.parents) > 1:
        raise InvalidInput(
            f"{card.name} was trained on rows and names {len(card.parents)} parents: it began from one adapter",
            code="lineage_parents",
            param=card.name,
            fix="the merge that it began from has a card of its own, and is its parent",
        )
    return tuple(np.subtract(gained[digest], gained[card.parents[0][0]]).tolist())


def _measure_rows(
    asked: _Asked,
    adapter: RegisteredAdapter,
    card: AdapterCard | None,
    added: tuple[float, ...],
    host: Any,
    score: Any,
    indexes: Path,
    withdrawn: Collection[str],
) -> _Rows:
    folder, bank = Path(adapter.folder), find_bank(Path(adapter.folder), adapter.digest)
    audited = audited_quality(load_audit(folder, adapter.digest), bank)
    index = index_folder(indexes, adapter.digest)
    views = built_views(adapter.folder, index) if is_finished(index) else index_views(adapter.folder)
    entries, scores = ray.get(host.score.remote(views, adapter.digest, str(index), asked.all))
    outcomes, scored = None, dict[str, str]()
    if bank is not None:
        told = bank_outcomes(score, host, adapter, bank, asked.all)
        outcomes, scored = fit_outcomes(bank.design, told.outcomes_MQ, entries, scores), dict(told.stated)
    repeats, likeness = _repeats(index, asked.pool.shares_rule)
    measured = Measurement(
        adapter=asked.pool.adapter,
        period=asked.pool.period,
        entries=tuple(entries),
        scores=scores,
        weights_nano=tuple(answer.weight_nano for answer in asked.answers),
        gains=added,
        bank=outcomes,
        least_error_scale=float(audited.get("audit_error_scale", 1.0)),
        withdrawn=frozenset(withdrawn),
        fees_nano=tuple(answer.fee_nano for answer in asked.answers),
        served_gains=asked.gains,
        num_gone=0
        if card is None
        else len({*card.rows_trained} - {entry.row_id for entry in entries if entry.trained}),
        repeats=repeats,
        index_method=method_at(index),
    )
    stated = {
        "constant": "unknown" if card is None else card.initial_from,
        "index_views": " ".join(Path(view).stem for view in views),
        **likeness,
        **gains_stated(score, adapter.base_digest),
        **scored,
    }
    return _Rows(measured=measured, stated={**stated, **audited})


def _repeats(index: Path, shares_rule: str) -> tuple[tuple[Repeat, ...], dict[str, str]]:
    """The rows of the adapter that `shares_rule` leaves unpaid, and what is stated of them: how they were found, and by
    which order of credit."""
    found = load_repeats(index)
    if found is None:
        return (), {"likeness": UNMEASURED}
    rule, repeats = found.listed(shares_rule)
    return repeats, {"likeness": likeness_stated(rule, repeats), "credit": found.credit_root or "unknown"}


def _path_gains(ancestry: Ancestry, digest: str, host: Any, asked: _Asked) -> _PathGains:
    card = ancestry.card(digest)
    weights = dict(card.parents) if card else {}
    merge = Merge(
        folder=ancestry.adapters[digest].folder,
        digest=digest,
        parents={parent: ancestry.adapters[parent].folder for parent in weights},
        weights=weights,
    )
    points = asked_factors(list(weights))
    return _PathGains(points=points, gains_NQ=ray.get(host.merge_gains.remote(merge, points, asked.all)))


def _combined(
    lineage: Lineage,
    digests: Sequence[str],
    gained: Mapping[str, Sequence[float]],
    merges: Mapping[str, _PathGains],
    asked: _Asked,
    part: slice,
    scores: Mapping[str, ContributorScores | None],
) -> ContributorScores:
    """The scores of all generations on one part of what was asked; `digests` begins with the served adapter's."""
    measured = {}
    for digest in digests:
        parents: dict[str, int | Fraction] = {p: asked.total_nano(part, gained[p]) for p in lineage.parents(digest)}
        gain_nano = asked.total_nano(part, gained[digest])
        if digest in merges:
            parents = dict(merges[digest].parent_gains(asked, part))
            gain_nano = int(sum(parents.values()))  # all of it is its parents'; the engine's differs in the last bits
        measured[digest] = GenerationScores(gain_nano=gain_nano, parent_gains_nano=parents, scores=scores.get(digest))
    return combined(lineage, digests[0], measured)


def _held_out(pool: Pool, ancestry: Ancestry) -> list[Answer]:
    """The adapter's held-out rows as answers to attribute, one OPEN each: all count alike. A merge has its parents'.
    Rows that any generation was trained on are none: it knows them by heart."""
    seen = ancestry.rows_trained
    rows = {row.row_id: row for row in _held_out_of(ancestry, ancestry.served.digest) if row.row_id not in seen}
    return [
        Answer(
            answer_id=row.row_id,
            adapter=pool.adapter,
            adapter_digest=ancestry.served.digest,
            period=pool.period,
            prompt_ids=row.ids[: row.num_prompt],
            completion_ids=row.ids[row.num_prompt :],
            fee_nano=NANO_PER_OPEN,
        )
        for row in rows.values()
    ]


def _held_out_of(ancestry: Ancestry, digest: str) -> list[Example]:
    card = ancestry.card(digest)
    if card is None or not is_merge(card):
        return load_held_out(Path(ancestry.adapters[digest].folder))
    return [row for parent, _ in card.parents for row in _held_out_of(ancestry, parent)]
