"""Where the stages meet: contribute -> datanet -> train -> index -> answer -> attribute -> shares -> pay -> proof.

Each function is one arrow of that picture. It takes plain values, asks the actor that owns a stage, and hands plain
values on. What an answer needs while a person waits is in `live`.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard, checked_card, load_card
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.audit import audited_quality, load_audit
from openledger.attribution.bank_folder import find_bank
from openledger.attribution.period import Measurement, fit_outcomes
from openledger.attribution.trainer import train_bank_of
from openledger.core.errors import InvalidInput, NotFound
from openledger.core.files import write_durably
from openledger.core.hashing import digest_json
from openledger.core.money import NANO_PER_OPEN
from openledger.core.scoring import gain
from openledger.core.signing import SigningKey
from openledger.core.values import (
    AdapterTerms,
    Answer,
    ContributionReceipt,
    ContributorScores,
    DatanetVersion,
    Pool,
    Row,
    RowDraft,
    Settlement,
)
from openledger.datanets.contribution import sign_contribution
from openledger.economy.nonces import NonceBook, find_nonce, kept_nonce
from openledger.factory.selection import choose_rows
from openledger.ledger.nonces import Purpose, commitment
from openledger.ledger.proofs import encode_proof
from openledger.training.examples import fitting_rows
from openledger.training.members import Member
from openledger.training.recipe import Recipe
from openledger.training.record import load_held_out
from openledger.training.trainer import TrainingJob, middle_folder, train_adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterAttribution:
    """The answers that one adapter (by digest) gave in a period, and what they were measured to owe. `improvement` is
    None where no rows were held out to measure it on."""

    scores: ContributorScores
    improvement: ContributorScores | None
    measured: Measurement
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodAttribution:
    """What a pool's settlement rests on: `scores` on the answers sold, `improvement` on the held-out rows. `parts` has
    one item for each adapter that served under the name: more than one where it was retrained within the period.
    `left_out` are the answers that were marked wrong; None: not known."""

    scores: ContributorScores
    improvement: ContributorScores | None
    parts: tuple[AdapterAttribution, ...]
    left_out: tuple[str, ...] | None = None


def contribute(datanets: Any, key: SigningKey, datanet: str, drafts: Sequence[RowDraft]) -> ContributionReceipt:
    """Sign and hand in rows. The nonce is fixed: the same rows signed again are the same contribution."""
    contribution = sign_contribution(key, datanet, tuple(drafts), nonce="once")
    return ray.get(datanets.contribute.remote(contribution))


def publish(datanets: Any, name: str) -> tuple[DatanetVersion, list[Row]]:
    version = ray.get(datanets.publish.remote(name))
    return version, ray.get(datanets.rows.remote(name, version.number))


def next_version(datanets: Any, name: str) -> int:
    return len(ray.get(datanets.versions.remote(name))) + 1


def find_copies(datanets: Any, version: DatanetVersion) -> dict[str, str]:
    """Rows of `version` that say what an earlier row of any Datanet says, each with that row's id."""
    return ray.get(datanets.copies.remote(version.datanet, version.number))


def find_alike(datanets: Any, version: DatanetVersion) -> dict[str, str]:
    """Rows of `version` that say what an earlier row of it says, whoever wrote them, each with that row's id."""
    return ray.get(datanets.alike.remote(version.datanet, version.number))


def commit_nonces(
    book: NonceBook, folder: Path, datanet: str, version: int, owner: str, witnesses: Sequence[str]
) -> None:
    """Before the contributions of `version` close: put commitments of its owner and `witnesses` in the log. Their
    nonces are kept in `folder` until `draw_nonces`; may be repeated."""
    book.open(datanet, version, owner)
    for party in (owner, *witnesses):
        nonce = kept_nonce(folder, datanet, version, party)
        book.commit(datanet, version, party, commitment(datanet, version, party, nonce))


def draw_nonces(
    book: NonceBook, folder: Path, version: DatanetVersion, base: BaseModel, recipe: Recipe
) -> tuple[str, ...]:
    """Once `version` is published: close its round for `base` and `recipe`, and reveal the nonces kept in `folder`.

    Empty where the version has no round, or one that was closed for another base or recipe: those nonces are known by
    now. Raises Unavailable (`nonces_withheld`) while another party's is missing.
    """
    name, number = version.datanet, version.number
    found = book.find(name, number)
    if found is None:
        return ()
    purpose = Purpose(
        row_root=version.row_root,
        base_digest=base.digest,
        recipe_digest=digest_json(json.dumps(recipe.to_dict(), sort_keys=True)),
    )
    if found.purpose is None:
        found = book.close(name, number, purpose)
    if found.purpose != purpose:
        return ()
    for party in found.withheld:
        if nonce := find_nonce(folder, name, number, party):
            book.reveal(name, number, party, nonce)
    return book.nonces(name, number)


def plan_training(
    base: BaseModel,
    version: DatanetVersion,
    rows: Sequence[Row],
    recipe: Recipe,
    adapters: Path,
    *,
    nonces: tuple[str, ...] = (),
    copies: Collection[str] = (),
    alike: Mapping[str, str] | None = None,
) -> tuple[TrainingJob, list[Row]]:
    """The job that trains `version`'s adapter, and its decoys. The folder's name says what the adapter is made of.

    With `nonces` (of `draw_nonces`) they decide which rows are drawn too. Rows in `copies` (ids; `find_copies`) are
    neither trained on nor measured with; no row is held out whose like (`alike`; `find_alike`) is trained on.
    """
    job = TrainingJob(
        name=version.datanet, base=base, version=version, rows=(), recipe=recipe, output="", nonces=nonces
    )
    fitting = fitting_rows(rows, base, recipe.max_row_tokens)
    lot = job.constant if nonces else version.row_root
    chosen = choose_rows(fitting, recipe.max_rows, lot, copies=copies, alike=alike)
    job = replace(job, rows=chosen.trained, held_out=chosen.held_out)
    return job.at(adapters), list(chosen.decoys)


def train(jobs: Sequence[TrainingJob], runs: Path, num_workers: int, use_gpu: bool = False) -> list[AdapterCard]:
    """Train what isn't trained yet; the cards of all. Raises Corrupt for an adapter that was damaged since."""
    if not all((Path(job.output) / "card.json").exists() for job in jobs):
        # with all jobs, finished ones too: the run's name, and so its checkpoints, are those of the interrupted one
        train_adapters(jobs, folder=runs, num_workers=num_workers, use_gpu=use_gpu)
    return [checked_card(Path(job.output)) for job in jobs]


def build_indexes(
    hosts: Sequence[Any], jobs: Sequence[TrainingJob], decoys: Sequence[Sequence[Row]], indexes: Path
) -> list[int]:
    """Build what isn't built yet, spread over the index actors; the number of rows in each index."""
    pending = []
    for number, (job, own_decoys) in enumerate(zip(jobs, decoys, strict=True)):
        card = load_card(Path(job.output))
        host = hosts[number % len(hosts)]
        folder = index_folder(indexes, card.digest)
        pending.append(host.build.remote(index_views(job.output), card.digest, job.rows, list(own_decoys), str(folder)))
    return ray.get(pending)


def build_bank(
    job: TrainingJob, num_coalitions: int, *, num_gpus: float = 0, on_member: Callable[[Member], None] | None = None
) -> int:
    """Train the coalition bank of a trained job where it isn't there; the number of members trained now."""
    return train_bank_of(Path(job.output), job.base, job.rows, num_coalitions, num_gpus=num_gpus, on_member=on_member)


def register(
    registry: AdapterRegistry, job: TrainingJob, card: AdapterCard, owner: str, prices: tuple[int, int]
) -> AdapterTerms:
    """Offer the adapter under its Datanet's name at `prices` (nano-OPEN for each prompt and completion token)."""
    terms = AdapterTerms(
        adapter=job.name,
        adapter_digest=card.digest,
        datanet=card.datanet,
        datanet_version=card.datanet_version,
        row_root=card.row_root,
        owner_account=owner,
        prompt_price_nano=prices[0],
        completion_price_nano=prices[1],
    )
    known = _registered(registry, job.name)
    if known is not None and known.digest != card.digest:
        # answers that wait for settlement were given by the old one: it stays findable by its digest
        registry.register(f"{job.name}.{known.digest[:12]}", Path(known.folder), known.digest, None)
        registry.remove(job.name)
    registry.register(job.name, Path(job.output), card.digest, terms)
    return terms


def attribute(
    pool: Pool,
    host: Any,
    score: Any,
    registry: AdapterRegistry,
    indexes: Path,
    withdrawn: Collection[str] = (),
) -> PeriodAttribution:
    """Measure what the pool's answers owe to each row and contributor. Rows `withdrawn` since (by id) get nothing.

    `score` is a core.Scorer's method: what the adapter gained over its base is measured by the engine that served it.
    """
    answers: dict[str, list[Answer]] = {}
    for answer in pool.answers:
        if answer.completion_ids:
            answers.setdefault(answer.adapter_digest, []).append(answer)
    parts = [
        _attribute_part(pool, registry.find_digest(digest), own, host, score, indexes, withdrawn)
        for digest, own in sorted(answers.items())
    ]
    if not parts and not pool.total_nano:
        raise NotFound(
            f"the pool of {pool.adapter} in {pool.period} has no answers to attribute",
            code="empty_pool",
            param="period",
        )
    scores = _summed([part.scores for part in parts]) if parts else _unmeasured(pool)
    return PeriodAttribution(
        scores=_with_loss(scores, pool),
        improvement=_mean_improvement(parts),
        parts=tuple(parts),
        left_out=pool.marked,
    )


def _check_parents(adapter: RegisteredAdapter) -> None:
    """Raises InvalidInput for an adapter that began from others: its gain is partly theirs, and dividing it
    (adapters/lineage.py) is not a part of the settlement yet."""
    folder = Path(adapter.folder)
    if (folder / "card.json").exists() and load_card(folder).parents:
        raise InvalidInput(
            f"{adapter.name} began from other adapters, and settlements can't divide its gain over them yet",
            code="unsupported_lineage",
            param="adapter",
        )


def _attribute_part(
    pool: Pool,
    adapter: RegisteredAdapter,
    answers: Sequence[Answer],
    host: Any,
    score: Any,
    indexes: Path,
    withdrawn: Collection[str],
) -> AdapterAttribution:
    _check_parents(adapter)
    kept = find_bank(Path(adapter.folder), adapter.digest)
    audited = audited_quality(load_audit(Path(adapter.folder), adapter.digest), kept)
    asked = [*answers, *_held_out(pool, adapter)]
    folders = index_views(adapter.folder), adapter.digest, str(index_folder(indexes, adapter.digest))
    entries, scores = ray.get(host.score.remote(*folders, asked))
    bank = ray.get(host.bank_outcomes.remote(adapter.folder, adapter.digest, asked))
    measured = Measurement(
        adapter=pool.adapter,
        period=pool.period,
        entries=tuple(entries),
        scores=scores,
        weights_nano=tuple(answer.weight_nano for answer in answers),
        gains=tuple(gain(score, a.prompt_ids, a.completion_ids, a.adapter_digest) for a in asked),
        bank=None if bank is None else fit_outcomes(bank[0], bank[1], entries, scores),
        least_error_scale=float(audited.get("audit_error_scale", 1.0)),
        withdrawn=frozenset(withdrawn),
        fees_nano=tuple(answer.fee_nano for answer in answers),
    )
    improvement = measured.improvement()
    return AdapterAttribution(
        scores=_quoting(measured.use(), audited),
        improvement=None if improvement is None else _quoting(improvement, audited),
        measured=measured,
        answers=tuple(answers),
    )


def _quoting(scores: ContributorScores, audited: dict[str, str]) -> ContributorScores:
    return replace(scores, quality={**scores.quality, **audited})


def _held_out(pool: Pool, adapter: RegisteredAdapter) -> list[Answer]:
    """The adapter's held-out rows as answers to attribute, one OPEN each: all count alike."""
    return [
        Answer(
            answer_id=row.row_id,
            adapter=pool.adapter,
            adapter_digest=adapter.digest,
            period=pool.period,
            prompt_ids=row.ids[: row.num_prompt],
            completion_ids=row.ids[row.num_prompt :],
            fee_nano=NANO_PER_OPEN,
        )
        for row in load_held_out(Path(adapter.folder))
    ]


def _mean_improvement(parts: Sequence[AdapterAttribution]) -> ContributorScores | None:
    """Improvement of the adapters that served, each weighted by its part of the fees. None where one has none: what it
    earned can't be divided by what another improved."""
    fees_nano = [sum(answer.fee_nano for answer in part.answers) for part in parts]
    found = [part.improvement for part in parts if part.improvement is not None]
    if len(found) < len(parts) or not sum(fees_nano):
        return None
    weighted = [_scaled(own, fee, sum(fees_nano)) for own, fee in zip(found, fees_nano, strict=True)]
    return found[0] if len(found) == 1 else _summed(weighted)


def _scaled(scores: ContributorScores, part: int, whole: int) -> ContributorScores:
    return replace(
        scores,
        scores_nano={name: value * part // whole for name, value in scores.scores_nano.items()},
        errors_nano={name: -(-value * part // whole) for name, value in scores.errors_nano.items()},
        gain_nano=scores.gain_nano * part // whole,
    )


def _summed(parts: Sequence[ContributorScores]) -> ContributorScores:
    """Scores, errors and gains of several adapters' parts of a period, added: an error's sum is its upper bound."""
    if len(parts) == 1:
        return parts[0]
    people = sorted({contributor for part in parts for contributor in part.scores_nano})
    return ContributorScores(
        adapter=parts[0].adapter,
        period=parts[0].period,
        method="+".join(sorted({part.method for part in parts})),
        scores_nano={person: sum(part.scores_nano.get(person, 0) for part in parts) for person in people},
        errors_nano={person: sum(part.errors_nano.get(person, 0) for part in parts) for person in people},
        gain_nano=sum(part.gain_nano for part in parts),
        quality={f"{number}.{name}": text for number, part in enumerate(parts) for name, text in part.quality.items()},
        ceilings=tuple(pair for part in parts for pair in part.ceilings),
    )


def _unmeasured(pool: Pool) -> ContributorScores:
    """Nobody's influence: no content is left on which it could be measured, and all of the pool is unattributed."""
    return ContributorScores(
        adapter=pool.adapter, period=pool.period, method="unmeasured/1", scores_nano={}, errors_nano={}, gain_nano=0
    )


def _with_loss(scores: ContributorScores, pool: Pool) -> ContributorScores:
    """`scores` with a word on the answers whose content wasn't kept, where there are any."""
    if not pool.num_unreadable:
        return scores
    loss = {"unreadable_answers": str(pool.num_unreadable), "unreadable_nano": str(pool.unreadable_nano)}
    return replace(scores, quality={**scores.quality, **loss})


def _registered(registry: AdapterRegistry, name: str) -> RegisteredAdapter | None:
    try:
        return registry.get(name)
    except NotFound:
        return None


def settle(economy: Any, attribution: PeriodAttribution) -> Settlement:
    """Pay the pool once, its improvement part by `improvement` where that was measured; a replay pays nobody and gives
    the first result. Raises Conflict (`verdicts_changed`) where an answer was marked wrong after it was attributed."""
    found = economy.settle.remote(attribution.scores, {}, attribution.improvement, attribution.left_out)
    return ray.get(found)


def prove(ledger: Any, transfer_id: str, folder: Path) -> Path:
    """Export the proof of one transfer; verifying it needs only this file and the ledger's public key."""
    path = folder / f"{transfer_id}.proof.json"
    write_durably(path, encode_proof(ray.get(ledger.proof.remote(transfer_id))))
    return path


def index_folder(indexes: Path, adapter_digest: str) -> Path:
    return indexes / adapter_digest[:24]


def index_views(adapter_folder: str) -> list[str]:
    """Where the adapter is measured: in the middle of its training (docs/decisions/0003-index-in-the-middle.md)."""
    return [middle_folder(adapter_folder)]
