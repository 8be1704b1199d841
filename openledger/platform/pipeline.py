"""Where the stages meet: contribute -> datanet -> train -> index -> answer -> attribute -> shares -> pay -> proof.

Each function is one arrow of that picture. It takes plain values, asks the actor that owns a stage, and hands plain
values on. What an answer needs while a person waits is in `live`.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard, checked_card, load_card
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.index import IndexEntry
from openledger.attribution.period import contributor_scores
from openledger.core.errors import NotFound
from openledger.core.files import write_durably
from openledger.core.hashing import digest_json
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
from openledger.training.recipe import Recipe
from openledger.training.trainer import TrainingJob, middle_folder, train_adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterAttribution:
    """The answers that one adapter (by digest) gave in a period: `row_scores` is [num_entries, num_answers]."""

    scores: ContributorScores
    answers: tuple[Answer, ...]
    entries: tuple[IndexEntry, ...]
    row_scores: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodAttribution:
    """What a pool's settlement rests on. `parts` has one item for each adapter that served under the name: more than
    one where it was retrained within the period."""

    scores: ContributorScores
    parts: tuple[AdapterAttribution, ...]


def contribute(datanets: Any, key: SigningKey, datanet: str, drafts: Sequence[RowDraft]) -> ContributionReceipt:
    """Sign and hand in rows. The nonce is fixed: the same rows signed again are the same contribution."""
    contribution = sign_contribution(key, datanet, tuple(drafts), nonce="once")
    return ray.get(datanets.contribute.remote(contribution))


def publish(datanets: Any, name: str) -> tuple[DatanetVersion, list[Row]]:
    version = ray.get(datanets.publish.remote(name))
    return version, ray.get(datanets.rows.remote(name, version.number))


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
    nonces: tuple[str, ...] = (),
) -> tuple[TrainingJob, list[Row]]:
    """The job that trains `version`'s adapter, and its decoys. The folder's name says what the adapter is made of.

    With `nonces` (of `draw_nonces`) they decide which rows are drawn too.
    """
    job = TrainingJob(
        name=version.datanet, base=base, version=version, rows=(), recipe=recipe, output="", nonces=nonces
    )
    fitting = fitting_rows(rows, base, recipe.max_row_tokens)
    trained, decoys = choose_rows(fitting, recipe.max_rows, job.constant if nonces else version.row_root)
    return replace(job, rows=tuple(trained)).at(adapters), decoys


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
    if not parts:
        raise NotFound(
            f"the pool of {pool.adapter} in {pool.period} has no answers to attribute",
            code="empty_pool",
            param="period",
        )
    return PeriodAttribution(scores=_summed([part.scores for part in parts]), parts=tuple(parts))


def _attribute_part(
    pool: Pool,
    adapter: RegisteredAdapter,
    answers: Sequence[Answer],
    host: Any,
    score: Any,
    indexes: Path,
    withdrawn: Collection[str],
) -> AdapterAttribution:
    folder, views = index_folder(indexes, adapter.digest), index_views(adapter.folder)
    entries, row_scores = ray.get(
        host.score.remote(views, adapter.digest, str(folder), list(answers), tuple(withdrawn))
    )
    gains = [_gain(score, answer) for answer in answers]
    fees_nano = [answer.fee_nano for answer in answers]
    scores = contributor_scores(pool.adapter, pool.period, entries, row_scores, fees_nano, gains)
    return AdapterAttribution(scores=scores, answers=tuple(answers), entries=tuple(entries), row_scores=row_scores)


def _summed(parts: Sequence[ContributorScores]) -> ContributorScores:
    """Scores, errors and gains of several adapters' parts of a period, added: an error's sum is its upper bound."""
    if len(parts) == 1:
        return parts[0]
    people = sorted({contributor for part in parts for contributor in part.scores_nano})
    return ContributorScores(
        adapter=parts[0].adapter,
        period=parts[0].period,
        method=parts[0].method,
        scores_nano={person: sum(part.scores_nano.get(person, 0) for part in parts) for person in people},
        errors_nano={person: sum(part.errors_nano.get(person, 0) for part in parts) for person in people},
        gain_nano=sum(part.gain_nano for part in parts),
        quality={f"{number}.{name}": text for number, part in enumerate(parts) for name, text in part.quality.items()},
    )


def _registered(registry: AdapterRegistry, name: str) -> RegisteredAdapter | None:
    try:
        return registry.get(name)
    except NotFound:
        return None


def settle(economy: Any, attribution: PeriodAttribution) -> Settlement:
    """Pay the pool once; a replay pays nobody and gives the first result."""
    accounts = {contributor: f"contributor:{contributor}" for contributor in attribution.scores.scores_nano}
    return ray.get(economy.settle.remote(attribution.scores, accounts))


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


def _gain(score: Any, answer: Answer) -> float:
    """Mean log-likelihood of the answer's tokens under the adapter minus that under the base, in nats."""
    adapter, base = score(answer.prompt_ids, answer.completion_ids, (answer.adapter_digest, ""))
    return float(adapter.mean() - base.mean())
