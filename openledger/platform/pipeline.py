"""Where the stages meet: contribute -> datanet -> train -> index -> answer -> attribute -> shares -> pay -> proof.

Each function is one arrow of that picture. It takes plain values, asks the actor that owns a stage, and hands plain
values on. What an answer needs while a person waits is in `live`.
"""

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard, checked_card, load_card
from openledger.adapters.checks import read_shapes
from openledger.adapters.lineage import merge_lora
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.attribution.index import GradientIndex
from openledger.attribution.index_folder import is_finished
from openledger.attribution.likeness import lacks_repeats
from openledger.attribution.parts import mean_improvement, summed
from openledger.attribution.period import Measurement
from openledger.attribution.trainer import train_bank_of
from openledger.core.errors import NotFound, OpenLedgerError
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
from openledger.ledger.nonces import commitment
from openledger.ledger.proofs import encode_proof
from openledger.platform.bulk import version_rows
from openledger.platform.completing import RowsOf, complete_lists
from openledger.platform.generations import Ancestry, find_ancestry, measure
from openledger.platform.generations import index_folder as index_folder
from openledger.platform.generations import index_views as index_views
from openledger.platform.hosts import HostNeeds, HostOf, gpus_of
from openledger.platform.point_of_sale import check_offer, log_offer, purpose_of
from openledger.platform.point_of_sale import check_plan as check_plan
from openledger.platform.replaying import Replays, forget_checkpoints, one_at_a_time, replayed
from openledger.training.examples import fitting_rows
from openledger.training.members import Member
from openledger.training.recipe import Recipe
from openledger.training.record import check_places, credit_of, load_run
from openledger.training.start import Parent, check_parent
from openledger.training.trainer import TrainingJob, train_adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterAttribution:
    """The answers that one adapter (by digest) gave in a period, and what they were measured to owe. `improvement` is
    None where no rows were held out to measure it on. `measured` is of the adapter's own rows, None for a merge;
    `lineage` names every generation that is paid, as the settlement's statement does; `needs` which index actor
    measured it, and replays it."""

    scores: ContributorScores
    improvement: ContributorScores | None
    measured: Measurement | None
    answers: tuple[Answer, ...]
    digest: str
    held_out: tuple[Answer, ...] = ()
    lineage: tuple[dict[str, Any], ...] = ()
    needs: HostNeeds = field(default_factory=HostNeeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodAttribution:
    """What a pool's settlement rests on: `scores` on the answers sold, `improvement` on the held-out rows. `parts` has
    one item for each adapter that served under the name: more than one where it was retrained within the period.
    `left_out` are the answers that were marked wrong, and refunds (`Pool.left_out`); None: not known."""

    scores: ContributorScores
    improvement: ContributorScores | None
    parts: tuple[AdapterAttribution, ...]
    left_out: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledPool:
    """What came of one pool that waited: its settlement, with what it states of how its scores of use were measured, or
    why it couldn't be paid."""

    adapter: str
    period: str
    settlement: Settlement | None = None
    quality: Mapping[str, str] = field(default_factory=dict)
    error: OpenLedgerError | None = None


def contribute(datanets: Any, key: SigningKey, datanet: str, drafts: Sequence[RowDraft]) -> ContributionReceipt:
    """Sign and hand in rows. The nonce is fixed: the same rows signed again are the same contribution."""
    contribution = sign_contribution(key, datanet, tuple(drafts), nonce="once")
    return ray.get(datanets.contribute.remote(contribution))


def publish(datanets: Any, name: str, trainer: str) -> tuple[DatanetVersion, list[Row]]:
    """The version of now, with its rows for the account `trainer` to train on. Raises Forbidden, and publishes nothing,
    where that may not (`Datanets.check_training`)."""
    ray.get(datanets.check_training.remote(name, trainer))
    version = ray.get(datanets.publish.remote(name))
    return version, version_rows(datanets, name, version.number, trainer)


def published(datanets: Any, name: str, number: int, trainer: str = "") -> tuple[DatanetVersion, list[Row]]:
    """A version that was published before, with its rows: for `trainer` to train on, or (empty) to measure or
    serve what was trained on them before. Raises NotFound (`unknown_version`), and Forbidden as `publish`."""
    version = ray.get(datanets.version.remote(name, number))
    if trainer:
        return version, version_rows(datanets, name, number, trainer)
    return version, ray.get(datanets.rows.remote(name, number))


def next_version(datanets: Any, name: str) -> int:
    return len(ray.get(datanets.versions.remote(name))) + 1


def find_copies(datanets: Any, version: DatanetVersion) -> dict[str, str]:
    """Rows of `version` that say what an earlier row of any Datanet says, each with that row's id."""
    return ray.get(datanets.copies.remote(version.datanet, version.number))


def find_alike(datanets: Any, version: DatanetVersion) -> dict[str, str]:
    """Rows of `version` that say what an earlier row of it says, whoever wrote them, each with that row's id."""
    return ray.get(datanets.alike.remote(version.datanet, version.number))


def find_credit(datanets: Any, version: DatanetVersion) -> list[str]:
    """Ids of `version`'s rows, first credited first; empty for a version of before, of which nobody knows that."""
    return ray.get(datanets.credit.remote(version.datanet, version.number))


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
    purpose = purpose_of(version.row_root, base.digest, recipe.to_dict(), version.credit_root)
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
    credit: Sequence[str] = (),
    parent: Ancestry | None = None,
) -> tuple[TrainingJob, list[Row]]:
    """The job that trains `version`'s adapter, and its decoys. The folder's name says what the adapter is made of.

    With `nonces` (of `draw_nonces`) they decide which rows are drawn too. Rows in `copies` (ids; `find_copies`) are
    neither trained on nor measured with; no row is held out whose like (`alike`; `find_alike`) is trained on. The run's
    record says whose rows were first, where `credit` (`find_credit`) does. With
    `parent` (of `find_parent`) the adapter goes on from that one, and is measured on no row that its ancestors know.
    Raises as `check_parent`.
    """
    job = TrainingJob(
        name=version.datanet, base=base, version=version, rows=(), recipe=recipe, output="", nonces=nonces
    )
    seen: Collection[str] = ()
    if parent is not None:
        job = replace(job, parent=Parent(folder=parent.served.folder, digest=parent.served.digest))
        seen = parent.rows_trained
    fitting = fitting_rows(rows, base, recipe.max_row_tokens)
    lot = job.constant if nonces else version.row_root
    chosen = choose_rows(fitting, recipe.max_rows, lot, copies=copies, seen=seen, alike=alike)
    places = credit_of([row.row_id for row in chosen.trained], credit)
    job = replace(job, rows=chosen.trained, held_out=chosen.held_out, credit=places)
    return job.at(adapters), list(chosen.decoys)


def find_parent(registry: AdapterRegistry, named: str, base: BaseModel, recipe: Recipe) -> Ancestry:
    """The adapter to go on from, called by its name, its digest or its folder below the registry's, with all that it
    came from: whose data made it must be known before more is built on it.

    An adapter that isn't registered yet, as one named by its folder may be, is from now on: settlements find it by its
    digest. Raises NotFound (`unknown_adapter`, `missing_parent`), and as `check_parent`.
    """
    folder = Path(named)
    if (folder / "card.json").exists():
        digest = checked_card(folder).digest
        if not any(adapter.digest == digest for adapter in registry.list()):
            registry.register(f"{load_card(folder).name}.{digest[:12]}", folder, digest)
    else:
        adapters = {adapter.digest: adapter.digest for adapter in registry.list()}
        adapters |= {adapter.name: adapter.digest for adapter in registry.list()}
        if named not in adapters:
            raise NotFound(
                f"no adapter {named!r} is registered, and it is no adapter's folder",
                code="unknown_adapter",
                param="parent",
                fix="name an adapter as it is served, its digest, or its folder",
            )
        digest = adapters[named]
    found = find_ancestry(registry, digest)
    check_parent(Parent(folder=found.served.folder, digest=digest), base, recipe)
    return found


def train(jobs: Sequence[TrainingJob], runs: Path, num_workers: int) -> list[AdapterCard]:
    """Train what isn't trained yet; the cards of all. Raises Corrupt for an adapter that was damaged since, Unavailable
    (`no_gpu`) where a recipe asks for a GPU and the cluster has none."""
    if not all((Path(job.output) / "card.json").exists() for job in jobs):
        # with all jobs, finished ones too: the run's name, and so its checkpoints, are those of the interrupted one
        train_adapters(jobs, folder=runs, num_workers=num_workers)
    return [checked_card(Path(job.output)) for job in jobs]


def build_indexes(
    build: Callable[..., Any],
    jobs: Sequence[TrainingJob],
    decoys: Sequence[Sequence[Row]],
    indexes: Path,
    *,
    most_views: int | None = None,
) -> list[int]:
    """Build what isn't built yet, at `most_views` points of each run (`index_views`); the number of rows in each index.
    `build` is an `IndexHost`'s `build.remote`, or an `index_task`.

    An index's list of repeated rows goes by the run's record: none is built, and InvalidInput (`other_credit`) raised,
    where that has its rows in another order of credit than the job, which has it from the version's manifest."""
    counts: list[Any] = []
    for job, own_decoys in zip(jobs, decoys, strict=True):
        card = load_card(Path(job.output))
        folder = index_folder(indexes, card.digest)
        if (count := _built_rows(folder, card, Path(job.output))) is None:
            check_places(load_run(Path(job.output)), job.credit, job.credit_root)
            views = index_views(job.output, most_views)
            count = build(views, card.digest, job.rows, list(own_decoys), str(folder), job.output)
        counts.append(count)
    return [count if isinstance(count, int) else ray.get(count) for count in counts]


def _built_rows(folder: Path, card: AdapterCard, run: Path) -> int | None:
    """The rows in an index that lacks nothing; None for any other. Raises as `GradientIndex.open`."""
    if not is_finished(folder) or lacks_repeats(folder, run):
        return None
    return len(GradientIndex.open(folder, card.digest, base_digest=card.base_digest).entries)


def build_bank(
    job: TrainingJob,
    num_coalitions: int,
    *,
    num_gpus: float | None = None,
    on_member: Callable[[Member], None] | None = None,
) -> int:
    """Train the coalition bank of a trained job where it isn't there; the number of members trained now."""
    return train_bank_of(Path(job.output), job.base, job.rows, num_coalitions, num_gpus=num_gpus, on_member=on_member)


def register(
    registry: AdapterRegistry, job: TrainingJob, card: AdapterCard, owner: str, prices: tuple[int, int], economy: Any
) -> AdapterTerms:
    """Offer the adapter under its Datanet's name at `prices` (nano-OPEN for each prompt and completion token). Raises
    as `offer`."""
    return offer(registry, job.name, Path(job.output), card, owner, prices, economy)


def merge(
    registry: AdapterRegistry,
    adapters: Path,
    base: BaseModel,
    parts: Mapping[str, str],
    name: str,
    owner: str,
    prices: tuple[int, int],
    charge: Callable[[str], Any],
    economy: Any,
) -> AdapterTerms:
    """Merge registered adapters, called by name with their weights (exact, in text), in a folder below `adapters`, and
    offer the merge as `name`. The same merge again is found as it is. `charge` takes what deploying an adapter of that
    digest costs, once everything else is found right.

    Raises as `merge_lora`, `find_ancestry`, `offer` and `charge`, and NotFound (`missing_parent`) for a parent without
    a card.
    """
    parents = [registry.get(part) for part in parts]
    for parent in parents:
        if find_ancestry(registry, parent.digest).lineage is None:
            raise NotFound(
                f"{parent.name} has no card: nobody knows whose data made it",
                code="missing_parent",
                param=parent.name,
                fix="merge adapters that were trained here",
            )
    made_of = digest_json([[parent.digest, weight] for parent, weight in zip(parents, parts.values(), strict=True)])
    folder = adapters / f"{name}-{made_of[:12]}"
    if not (folder / "card.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # what a crash left of it
        merge_lora([Path(p.folder) for p in parents], list(parts.values()), folder, base=read_shapes(base))
    card = checked_card(folder)
    check_offer(economy, registry, name, card, owner)
    charge(card.digest)
    return _offered(registry, name, folder, card, owner, prices, economy)


def offer(
    registry: AdapterRegistry,
    name: str,
    folder: Path,
    card: AdapterCard,
    owner: str,
    prices: tuple[int, int],
    economy: Any,
) -> AdapterTerms:
    """Sell the adapter in `folder` as `name` from now on, if its constant may be (`check_offer`). Raises Conflict
    (`constant_unwitnessed`) and leaves on sale what was."""
    check_offer(economy, registry, name, card, owner)
    return _offered(registry, name, folder, card, owner, prices, economy)


def _offered(
    registry: AdapterRegistry,
    name: str,
    folder: Path,
    card: AdapterCard,
    owner: str,
    prices: tuple[int, int],
    economy: Any,
) -> AdapterTerms:
    """In the log first: what the registry has and the log hasn't isn't sold."""
    log_offer(economy, registry, sale_terms(name, card, owner, prices), card)
    return put_on_sale(registry, name, folder, card, owner, prices)


def put_on_sale(
    registry: AdapterRegistry, name: str, folder: Path, card: AdapterCard, owner: str, prices: tuple[int, int]
) -> AdapterTerms:
    """Without asking for its constant: for what `offer` let pass, or the same run less a contributor's rows. Those who
    could ask `name` before can now; an adapter that was sold under it stays findable."""
    terms = sale_terms(name, card, owner, prices)
    enter = registry.register if _registered(registry, name) is None else registry.switch
    enter(name, folder, card.digest, terms, base_digest=card.base_digest)
    return terms


def sale_terms(name: str, card: AdapterCard, owner: str, prices: tuple[int, int]) -> AdapterTerms:
    return AdapterTerms(
        adapter=name,
        adapter_digest=card.digest,
        datanet=card.datanet,
        datanet_version=card.datanet_version,
        row_root=card.row_root,
        owner_account=owner,
        prompt_price_nano=prices[0],
        completion_price_nano=prices[1],
    )


def attribute(
    pool: Pool,
    hosts: HostOf,
    score: Any,
    registry: AdapterRegistry,
    indexes: Path,
    withdrawn: Collection[str] = (),
    rows_of: RowsOf | None = None,
) -> PeriodAttribution:
    """Measure what the pool's answers owe to each row and contributor. Rows in `withdrawn` (by id) get nothing;
    settlement names none: a row that left its Datanet earns until no adapter that is served contains it.

    `score` is a core.Scorer's method: what the adapter gained over its base is measured by the engine that served it,
    and its rows by its base's one of `hosts`: a name may go over to another base within a period. Of an adapter that
    came from others, every generation is measured. Lists of repeated rows that the pool's rule of shares needs and an
    index of before lacks are added from the rows that `rows_of` gives. Raises as `find_ancestry`, `hosts`,
    `complete_lists` and `measure`.
    """
    answers: dict[str, list[Answer]] = {}
    for answer in pool.answers:
        if answer.completion_ids and not _is_base(registry, answer.adapter_digest):
            answers.setdefault(answer.adapter_digest, []).append(answer)
    parts = [
        _attribute_part(pool, registry, digest, own, hosts, score, indexes, withdrawn, rows_of)
        for digest, own in sorted(answers.items())
    ]
    if not parts and not pool.total_nano:
        raise NotFound(
            f"the pool of {pool.adapter} in {pool.period} has no answers to attribute",
            code="empty_pool",
            param="period",
        )
    scores = summed([part.scores for part in parts]) if parts else _unmeasured(pool)
    return PeriodAttribution(
        scores=_with_loss(scores, pool),
        improvement=mean_improvement(
            [(part.improvement, sum(answer.fee_nano for answer in part.answers)) for part in parts]
        ),
        parts=tuple(parts),
        left_out=pool.left_out,
    )


def _is_base(registry: AdapterRegistry, digest: str) -> bool:
    """Whether a base model answered by itself: no data here made it, and what it earned is nobody's share."""
    return registry.find_digest(digest).is_base


def _attribute_part(
    pool: Pool,
    registry: AdapterRegistry,
    digest: str,
    answers: Sequence[Answer],
    hosts: HostOf,
    score: Any,
    indexes: Path,
    withdrawn: Collection[str],
    rows_of: RowsOf | None,
) -> AdapterAttribution:
    ancestry = find_ancestry(registry, digest)
    needs = _needs(ancestry)
    host = hosts(needs)
    complete_lists(ancestry, pool.shares_rule, registry, indexes, host, rows_of)
    found = measure(pool, ancestry, answers, host, score, indexes, withdrawn)
    return AdapterAttribution(
        scores=found.scores,
        improvement=found.improvement,
        measured=found.own,
        answers=tuple(answers),
        digest=digest,
        held_out=found.held_out,
        lineage=tuple(ancestry.lines()),
        needs=needs,
    )


def _needs(ancestry: Ancestry) -> HostNeeds:
    """One actor for all generations, so that an answer's gradients and scores come from one kind of arithmetic."""
    card = ancestry.card(ancestry.served.digest)
    base_digest = ancestry.served.base_digest if card is None else card.base_digest
    return HostNeeds(base_digest=base_digest, num_gpus=gpus_of(map(ancestry.card, ancestry.adapters)))


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
    the first result. Raises Conflict (`verdicts_changed`) where an answer was marked wrong, or refunded, after it was
    attributed."""
    lineage = tuple(line for part in attribution.parts for line in part.lineage)
    found = economy.settle.remote(
        attribution.scores, {}, attribution.improvement, attribution.left_out, ancestors=lineage
    )
    return ray.get(found)


def settle_pool(
    economy: Any,
    adapter: str,
    period: str,
    hosts: HostOf,
    score: Any,
    registry: AdapterRegistry,
    indexes: Path,
    replays: Replays | None = None,
    rows_of: RowsOf | None = None,
) -> tuple[PeriodAttribution, Settlement]:
    """Attribute one pool and pay it, withdrawn and removed rows too: the adapter that answered was trained on them.
    With `replays` the settlement's replay is made before, where its fees buy it; `rows_of` is `attribute`'s. Raises as
    `attribute` and `settle`."""

    def attributed() -> PeriodAttribution:
        pool = ray.get(economy.pool.remote(adapter, period))
        return attribute(pool, hosts, score, registry, indexes, rows_of=rows_of)

    if replays is None:
        found = attributed()
        return found, settle(economy, found)
    with one_at_a_time(replays, adapter, period):
        found = attributed()
        if stated := ray.get(economy.settlement_quality.remote(adapter, period)):  # by whom this one waited for
            found = replace(found, scores=replace(found.scores, quality=stated))
        else:
            found = replayed(found, hosts, registry, replays)
        settlement = settle(economy, found)
        forget_checkpoints(replays, found)
    return found, settlement


def settle_waiting(
    economy: Any,
    hosts: HostOf,
    score: Any,
    registry: AdapterRegistry,
    indexes: Path,
    replays: Replays | None = None,
    rows_of: RowsOf | None = None,
) -> Iterator[SettledPool]:
    """Attribute and pay every pool of a closed period that waits, one after another. One that can't be paid comes with
    its error, and keeps no other waiting; one that nobody paid into is passed over."""
    current = ray.get(economy.current_period.remote())
    for adapter, period in _by_host(ray.get(economy.pools.remote()), registry):
        if period == current:
            continue
        try:
            found = ray.get(economy.pool.remote(adapter, period))
            if not found.total_nano:
                continue
            scored, settlement = settle_pool(
                economy, adapter, period, hosts, score, registry, indexes, replays, rows_of
            )
        except OpenLedgerError as error:
            yield SettledPool(adapter=adapter, period=period, error=error)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one pool, the others' people are due
            yield SettledPool(adapter=adapter, period=period, error=_unexpected(error))
        else:
            yield SettledPool(adapter=adapter, period=period, settlement=settlement, quality=scored.scores.quality)


def _by_host(pools: Sequence[tuple[str, str]], registry: AdapterRegistry) -> list[tuple[str, str]]:
    """Those of one base and part of a GPU side by side: `hosts` has to start another's anew."""
    needs = {one.name: (one.base_digest, _recipe_gpus(Path(one.folder))) for one in registry.list()}
    return sorted(pools, key=lambda pool: needs.get(pool[0], ("", 0.0)))


def _recipe_gpus(folder: Path) -> float:
    """Of an adapter without a readable card nothing is known: its pool is told what is wrong when its turn comes."""
    try:
        return gpus_of([load_card(folder)])
    except OpenLedgerError:
        return 0.0


def _unexpected(error: Exception) -> OpenLedgerError:
    return OpenLedgerError(
        f"{type(error).__name__}: {error}",
        param="pool",
        fix="nothing was paid; mend what it names and settle again",
    )


def prove(ledger: Any, transfer_id: str, folder: Path) -> Path:
    """Export the proof of one transfer; verifying it needs only this file and the ledger's public key."""
    path = folder / f"{transfer_id}.proof.json"
    write_durably(path, encode_proof(ray.get(ledger.proof.remote(transfer_id))))
    return path
