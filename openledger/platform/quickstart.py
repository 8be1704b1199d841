"""The main job, from end to end: contribute, train, index, serve, ask, attribute, pay, prove, report.

What a working folder already holds is not made again: contributions, adapters, indexes and evaluations are found by
what they are made of. Every run asks and settles once more, as the next period.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from openledger.adapters.base_model import BaseModel, encode_prompt, find_base_model, load_tokenizer
from openledger.adapters.card import AdapterCard, save_card
from openledger.adapters.registry import AdapterRegistry
from openledger.attribution.actor import index_task, start_index_host
from openledger.attribution.planner import FLOOR_COALITIONS
from openledger.client import OpenLedger
from openledger.core.config import save_settings
from openledger.core.errors import Corrupt, InvalidInput, invariant
from openledger.core.files import write_json_durably, write_secret
from openledger.core.hashing import digest_json
from openledger.core.ids import new_id
from openledger.core.money import NANO_PER_OPEN, format_money, format_open, showing, shown_unit
from openledger.core.signing import SigningKey, contributor_id
from openledger.core.values import (
    UNATTRIBUTED,
    DatanetVersion,
    GenerationRequest,
    Row,
    RowDraft,
    SamplingParameters,
    Settlement,
)
from openledger.economy.actor import RemoteLedger
from openledger.economy.nonces import DEPOSIT_NANO, NonceBook
from openledger.factory.evaluation import measure
from openledger.platform import actors, pipeline, report
from openledger.platform.cluster import Cluster, check_port, connected, free_port
from openledger.platform.credit import credit_to_train, rows_and_credit
from openledger.platform.demonstration import (
    DATANETS,
    Contributor,
    DemonstrationDatanet,
    contributors,
    new_questions,
)
from openledger.platform.prices import prices_in
from openledger.platform.report_file import changing
from openledger.platform.serving import engine_score, start_serving
from openledger.platform.stages import Stage, StageLog
from openledger.platform.workdir import Workdir
from openledger.training.members import Member
from openledger.training.recipe import Recipe
from openledger.training.trainer import TrainingJob, check_workers

CUSTOMER = "user:customer"
OPERATOR = "user:operator"
_CUSTOMER_GRANT = 1000 * NANO_PER_OPEN  # as everything here: of another unit as many
_CONCURRENCY = 8
_ANSWER_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartSettings:
    """Sizes are for each Datanet, but for `evaluated_questions`, which counts held-in and new ones in all. The adapters
    of `bank_datanets` get a bank of `bank_coalitions` trainings; the others are attributed by their index alone. An
    index is measured at `index_views` points of the first half of its training: a view costs what an epoch does."""

    base_model: str = ""
    host: str = "127.0.0.1"
    port: int = 8420
    num_workers: int = 2
    rows_per_contributor: int = 90
    held_in_questions: int = 16
    new_questions: int = 4
    evaluated_questions: int = 100
    bank_coalitions: int = 8
    index_views: int = 2
    bank_datanets: tuple[str, ...] = ("python-stdlib",)
    datanets: tuple[str, ...] = tuple(datanet.name for datanet in DATANETS)
    recipe: Recipe = field(default_factory=lambda: Recipe(alpha=64, batch_rows=8, num_epochs=7, max_rows=200))

    def __post_init__(self) -> None:
        unknown = sorted(set(self.datanets) - {datanet.name for datanet in DATANETS})
        if unknown or not self.datanets:
            raise InvalidInput(
                f"no demonstration Datanet {', '.join(unknown) or 'is named'}",
                code="unknown_datanet",
                param="datanets",
                fix=f"choose among {', '.join(datanet.name for datanet in DATANETS)}",
            )
        if self.bank_coalitions < FLOOR_COALITIONS or self.bank_coalitions % 2:
            raise InvalidInput(
                f"a bank has at least {FLOOR_COALITIONS} coalitions, in pairs: bank_coalitions is even",
                code="invalid_config",
                param="bank_coalitions",
            )
        counts = (
            "num_workers",
            "rows_per_contributor",
            "held_in_questions",
            "new_questions",
            "evaluated_questions",
            "index_views",
        )
        for name in counts:
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InvalidInput(f"{name} must be a positive number", code="invalid_config", param=name)
        if not isinstance(self.port, int) or not 0 <= self.port <= 65535:
            raise InvalidInput(f"{self.port} is no port: 0 to 65535", code="invalid_config", param="port")


@dataclass(slots=True)
class Demonstration:
    """What the stages hand on, one after another, in one run."""

    settings: QuickstartSettings
    workdir: Workdir
    log: StageLog
    base: BaseModel
    cluster: Cluster
    datanets: Any = None
    ledger: Any = None
    economy: Any = None
    engine: Any = None
    host: Any = None
    people: dict[str, Contributor] = field(default_factory=dict)
    versions: list[tuple[DatanetVersion, list[Row]]] = field(default_factory=list)
    nonces: list[tuple[str, ...]] = field(default_factory=list)
    copies: list[dict[str, str]] = field(default_factory=list)
    alike: list[dict[str, str]] = field(default_factory=list)
    jobs: list[TrainingJob] = field(default_factory=list)
    decoys: list[list[Row]] = field(default_factory=list)
    cards: list[AdapterCard] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    url: str = ""

    @property
    def chosen(self) -> list[DemonstrationDatanet]:
        return [datanet for datanet in DATANETS if datanet.name in self.settings.datanets]

    @property
    def registry(self) -> AdapterRegistry:
        return AdapterRegistry(self.workdir.adapters)


@contextmanager
def demonstration(settings: QuickstartSettings, workdir: Workdir, log: StageLog) -> Iterator[Demonstration]:
    """Run every stage; while the block is open the platform keeps serving. Leaves no process behind.

    Raises Conflict (`workdir_in_use`) where another quickstart runs on the same folder.
    """
    base = find_base_model(settings.base_model or None)
    port = settings.port or free_port()
    check_port(settings.host, port)
    with ExitStack() as open_parts:
        with log.stage("start") as stage:
            stage.tell("starting Ray")
            cluster = open_parts.enter_context(connected(workdir))
            check_workers(settings.recipe.num_gpus, settings.num_workers)  # before anything is published
            run = Demonstration(settings, workdir, log, base, cluster, url=f"http://{settings.host}:{port}")
            start_actors(run, stage)
        open_parts.enter_context(showing(ray.get(run.economy.unit.remote())))
        save_settings(settings, workdir.config)
        for name, step in STAGES:
            with log.stage(name) as stage:
                step(run, stage)
            _write_report(run)
        yield run


def start_actors(run: Demonstration, stage: Stage) -> None:
    stage.tell("starting ledger, economy and Datanet shards")
    run.ledger = actors.ledger_actor(run.workdir)
    run.economy = actors.economy_actor(run.workdir)
    run.datanets = actors.datanets_actor(run.workdir)
    actors.wait_until_ready(run.ledger, run.economy, run.datanets)
    run.report["base_model"] = {"name": run.base.name, "digest": run.base.digest}
    run.report["urls"] = {"console": f"{run.url}/console", "api": f"{run.url}/v1", "dashboard": run.cluster.dashboard}
    stage.detail = f"ledger, economy, {actors.NUM_SHARDS} shard actors; base model {run.base.name}"


def fill_datanets(run: Demonstration, stage: Stage) -> None:
    """Owner and operator commit to nonces, everybody signs and hands in rows, each Datanet publishes a version, and
    the nonces are revealed."""
    entries = []
    book = NonceBook(RemoteLedger(run.ledger))
    for number, datanet in enumerate(run.chosen):
        stage.count(number, len(run.chosen))
        owner = f"user:{datanet.name}-owner"
        ray.get(run.economy.charge_datanet.remote(owner, datanet.name))
        ray.get(run.datanets.create.remote(datanet.name, datanet.summary, owner))
        ray.get(run.datanets.set_display.remote(datanet.name, "text"))
        _commit_nonces(run, book, datanet.name)
        for person in contributors(datanet, run.settings.rows_per_contributor):
            stage.tell(f"{datanet.name}: {person.name}")
            _hand_in(run, person)
        version, rows = pipeline.publish(run.datanets, datanet.name, owner)
        run.versions.append((version, rows))
        run.copies.append(pipeline.find_copies(run.datanets, version))
        run.alike.append(pipeline.find_alike(run.datanets, version))
        run.nonces.append(pipeline.draw_nonces(book, run.workdir.nonces, version, run.base, run.settings.recipe))
        statistics = ray.get(run.datanets.statistics.remote(datanet.name))
        entries.append(report.datanet_entry(datanet.name, datanet.summary, version, statistics, run.people))
    run.report["datanets"] = entries
    counts = report.totals(run.report)
    stage.detail = (
        f"{counts['rows_in']} rows in, {counts['accepted']} accepted, {counts['rejected']} rejected, "
        f"{counts['review']} in review"
    )


def _commit_nonces(run: Demonstration, book: NonceBook, datanet: str) -> None:
    """For the version that is to come; where no row changes, the commitments wait for the next run's."""
    owner, version = f"user:{datanet}-owner", pipeline.next_version(run.datanets, datanet)
    for party in (owner, OPERATOR):
        name = f"quickstart-nonce-{datanet}-{version}-{party}"
        ray.get(run.economy.grant.remote(party, shown_unit().as_many(DEPOSIT_NANO), name))
    pipeline.commit_nonces(book, run.workdir.nonces, datanet, version, owner, [OPERATOR])


def _hand_in(run: Demonstration, person: Contributor) -> None:
    key = SigningKey.load_or_create(run.workdir.keys / "contributors" / f"{digest_json(person.name)[:16]}.key")
    run.people[contributor_id(key.public_key)] = person
    ray.get(run.datanets.register_contributor.remote(key.public_key, person.name))
    if person.drafts:
        pipeline.contribute(run.datanets, key, person.datanet, person.drafts)


def train_adapters(run: Demonstration, stage: Stage) -> None:
    for number, (version, rows) in enumerate(run.versions):
        credit = credit_to_train(run.datanets, version, rows, RemoteLedger(run.ledger), stage.tell)
        job, decoys = pipeline.plan_training(
            run.base, version, rows, run.settings.recipe, run.workdir.adapters,
            nonces=run.nonces[number], copies={**run.copies[number], **credit.left_out}, alike=run.alike[number],
            credit=credit.order,
        )  # fmt: skip
        pipeline.check_plan(run.economy, run.registry, job, f"user:{job.name}-owner")
        run.jobs.append(job)
        run.decoys.append(decoys)
    recipe, num_rows = run.settings.recipe, sum(len(job.rows) for job in run.jobs)
    stage.tell(f"{len(run.jobs)} adapters, {num_rows} rows, {recipe.num_epochs} epochs, LoRA rank {recipe.rank}")
    run.cards = pipeline.train(run.jobs, run.workdir.runs, run.settings.num_workers)
    for entry, job, card in zip(run.report["datanets"], run.jobs, run.cards, strict=True):
        curve = json.loads((Path(job.output) / "curve.json").read_text())
        entry["adapter"] = report.adapter_entry(card, curve)
    losses = ", ".join(f"{card.name} {card.final_loss:.2f}" for card in run.cards)
    stage.detail = f"{len(run.cards)} adapters on {num_rows} rows; loss {losses}"


def build_banks(run: Demonstration, stage: Stage) -> None:
    """Train the chosen adapters again on coalitions of their contributors."""
    chosen = [job for job in run.jobs if job.name in run.settings.bank_datanets]
    trained = 0
    for job in chosen:
        stage.tell(f"{job.name}: {run.settings.bank_coalitions} coalitions")
        trained += pipeline.build_bank(
            job, run.settings.bank_coalitions, num_gpus=run.settings.recipe.num_gpus,
            on_member=partial(_tell_member, stage, job),
        )  # fmt: skip
    names = ", ".join(job.name for job in chosen)
    told = f"{run.settings.bank_coalitions} coalitions for {names}, {trained} trained now"
    stage.detail = told if chosen else "no bank"


def _tell_member(stage: Stage, job: TrainingJob, member: Member) -> None:
    stage.tell(f"{job.name}: {member.name}")


def build_indexes(run: Demonstration, stage: Stage) -> None:
    missing = [card for card in run.cards if not pipeline.index_folder(run.workdir.indexes, card.digest).exists()]
    stage.tell(f"{len(missing)} indexes to build")
    counts = pipeline.build_indexes(
        index_task(run.base, num_gpus=run.settings.recipe.num_gpus),
        run.jobs, run.decoys, run.workdir.indexes, most_views=run.settings.index_views,
    )  # fmt: skip
    stage.detail = f"{sum(counts)} rows' gradients in {len(counts)} indexes, {len(missing)} built now"


def serve_adapters(run: Demonstration, stage: Stage) -> None:
    """Offer every adapter, and deploy gateway and engine by import path: the API lies above this package."""
    for job, card in zip(run.jobs, run.cards, strict=True):
        owner = f"user:{card.datanet}-owner"
        ray.get(run.economy.charge_adapter.remote(owner, card.digest))
        pipeline.register(run.registry, job, card, owner, prices_in(shown_unit()), run.economy)
    stage.tell("starting Ray Serve")
    run.engine = start_serving(
        run.workdir,
        run.settings.base_model,
        run.url,
        base_owner=OPERATOR,
    )
    # it is ready by the time that answers are attributed
    run.host = start_index_host(run.base, num_gpus=run.settings.recipe.num_gpus)
    stage.detail = f"{len(run.cards)} adapters over one base model at {run.url}/v1"


def evaluate(run: Demonstration, stage: Stage) -> None:
    """ROUGE-L of adapter and base on held-in and new questions; measured once for each adapter."""
    tokenizer = load_tokenizer(run.base)
    each = max(1, run.settings.evaluated_questions // len(run.jobs))
    for number, (datanet, job, card) in enumerate(zip(run.chosen, run.jobs, run.cards, strict=True)):
        stage.count(number, len(run.jobs))
        stage.tell(card.name)
        if "rouge_new_base" not in card.evaluation:
            run.cards[number] = asyncio.run(_evaluated(run, tokenizer, datanet, job, card, each))
            save_card(Path(job.output), run.cards[number])
        run.report["datanets"][number]["adapter"]["evaluation"] = run.cards[number].evaluation
    run.report["quality"] = _mean_quality(run.cards)
    quality = run.report["quality"]
    stage.detail = (
        f"ROUGE-L held-in {quality['rouge_held_in_adapter']:.3f} (base {quality['rouge_held_in_base']:.3f}), "
        f"new {quality['rouge_new_adapter']:.3f} (base {quality['rouge_new_base']:.3f})"
    )


async def _evaluated(
    run: Demonstration, tokenizer: Any, datanet: DemonstrationDatanet, job: TrainingJob, card: AdapterCard, each: int
) -> AdapterCard:
    async def generate(question: str, digest: str) -> str:
        request = GenerationRequest(
            request_id=new_id("eval", time.time_ns() // 10**6),
            prompt_ids=tuple(encode_prompt(tokenizer, question)),
            adapter_digest=digest,
            sampling=SamplingParameters(max_tokens=_ANSWER_TOKENS),
        )
        return "".join([event.text async for event in run.engine.generate.options(stream=True).remote(request)])

    held_in = await measure(generate, held_in_drafts(job.rows, each), card.digest)
    new = await measure(generate, new_questions(datanet, each), card.digest)
    return card.with_evaluation(
        {
            "rouge_held_in_adapter": round(held_in.adapter, 4),
            "rouge_held_in_base": round(held_in.base, 4),
            "rouge_new_adapter": round(new.adapter, 4),
            "rouge_new_base": round(new.base, 4),
            "questions_held_in": held_in.num_questions,
            "questions_new": new.num_questions,
        }
    )


def held_in_drafts(rows: Sequence[Row], limit: int) -> list[RowDraft]:
    """Rows that were trained on, as questions."""
    return [
        RowDraft(prompt=row.prompt, completion=row.completion, source=row.source) for row in _drawn_rows(rows, limit)
    ]


def _drawn_rows(rows: Sequence[Row], limit: int) -> list[Row]:
    """By a hash of what they ask: customers don't know contributors, and whoever stands behind several names must not
    be asked about more often for it."""
    return sorted(rows, key=lambda row: digest_json(["openledger.question/1", row.prompt]))[:limit]


def ask(run: Demonstration, stage: Stage) -> None:
    """Paid questions over HTTP, eight at a time, as a customer would ask them."""
    period = ray.get(run.economy.current_period.remote())
    grant_nano = shown_unit().as_many(_CUSTOMER_GRANT)
    ray.get(run.economy.grant.remote(CUSTOMER, grant_nano, f"quickstart-grant-{period}"))
    api_key = _customer_key(run)
    questions: list[tuple[str, Row | RowDraft]] = []
    for datanet, job, card in zip(run.chosen, run.jobs, run.cards, strict=True):
        asked: list[Row | RowDraft] = [*_drawn_rows(job.rows, run.settings.held_in_questions)]
        asked += new_questions(datanet, run.settings.new_questions)
        questions += [(card.name, one) for one in asked]
    stage.tell(f"{len(questions)} questions")
    with OpenLedger(f"{run.url}", api_key) as client, ThreadPoolExecutor(_CONCURRENCY) as pool:
        digests = {card.name: card.digest[:12] for card in run.cards}
        keys = [f"quickstart-{period}-{digests[model]}-{number}" for number, (model, _) in enumerate(questions)]
        answers = pool.map(lambda key, question: _ask_one(client, key, question), keys, questions)
        run.report["answers"] = list(answers)
    run.report["period"] = period
    fees_nano = sum(answer["fee_nano"] for answer in run.report["answers"])
    stage.detail = f"{len(questions)} answers for {format_money(fees_nano)}"


def _customer_key(run: Demonstration) -> str:
    """The customer's API key: made once, kept for its owner in the working folder, stored elsewhere as a digest."""
    path = run.workdir.customer_key
    if not path.exists():
        write_secret(path, ray.get(run.economy.create_key.remote(CUSTOMER)).encode())
    return path.read_text()


def _ask_one(client: OpenLedger, key: str, question: tuple[str, Row | RowDraft]) -> dict[str, Any]:
    """A row's answer names it: should it be taken back, the report forgets what was asked."""
    model, draft = question
    of_row = {"kind": "held_in", "asked_row": draft.row_id} if isinstance(draft, Row) else {"kind": "new"}
    answer = client.chat(
        model,
        [{"role": "user", "content": draft.prompt}],
        sampling=SamplingParameters(max_tokens=_ANSWER_TOKENS),
        idempotency_key=key,
    )
    return {
        "answer_id": answer.receipt.answer_id,
        "adapter": model,
        **of_row,
        "question": draft.prompt,
        "expected": draft.completion,
        "answer": answer.text,
        "fee_nano": answer.receipt.fee_nano,
        "parts": answer.receipt.parts,
        "sources": [],
    }


def attribute_and_pay(run: Demonstration, stage: Stage) -> None:
    """Measure the period's pools, pay each once, and show every answer's top rows."""
    rows = {row.row_id: row for _, own in run.versions for row in own}
    names = {contributor: person.name for contributor, person in run.people.items()}
    by_answer = {answer["answer_id"]: answer for answer in run.report["answers"]}
    displays = ray.get(run.datanets.displays.remote())
    measuring = (lambda _: run.host), engine_score(), run.registry, run.workdir.indexes
    paid_nano = unattributed_nano = 0
    z_milli = ray.get(run.economy.parameters.remote()).z_milli
    ray.get(run.economy.open_period.remote())  # closes the period: its pools stand still from here on
    for entry, card in zip(run.report["datanets"], run.cards, strict=True):
        stage.tell(card.name)
        found, settlement = pipeline.settle_pool(run.economy, card.name, run.report["period"], *measuring)
        _check_replay(run, found, settlement)
        report.add_settlement(entry, settlement, found.scores, card.contributors, found.improvement)
        for part in found.parts:
            for column, answer in enumerate(part.answers):
                if part.measured and (shown := by_answer.get(answer.answer_id)):
                    scores = part.measured.scores[:, column].tolist()
                    shown["sources"] = report.sources(part.measured.entries, scores, rows, names)
                    shown["contributors"] = report.answer_shares(part.measured.answer(column), z_milli, names)
                    shown.update(report.displayed(shown, displays))
        unattributed_nano += settlement.payouts_nano.get(UNATTRIBUTED, 0)
        paid_nano += settlement.pool_nano - settlement.payouts_nano.get(UNATTRIBUTED, 0)
    _settle_left_over(run)
    run.report["gaming"] = report.gaming_entries(run.report["datanets"], run.people)
    stage.detail = f"{format_money(paid_nano)} to contributors, {format_open(unattributed_nano)} unattributed"


def _settle_left_over(run: Demonstration) -> None:
    """Pay pools of earlier periods that an interrupted run left behind."""
    measuring = (lambda _: run.host), engine_score(), run.registry, run.workdir.indexes
    rows_of = partial(rows_and_credit, run.datanets, RemoteLedger(run.ledger))
    for pool in pipeline.settle_waiting(run.economy, *measuring, rows_of=rows_of):
        if pool.error:
            run.log.console.print(f"[yellow]not settled:[/] {pool.adapter} {pool.period}: {pool.error.message}")


def _check_replay(run: Demonstration, found: pipeline.PeriodAttribution, settlement: Settlement) -> None:
    """Settle again, as a crashed settlement would: the ledger must give the first result and pay nobody."""
    again = pipeline.settle(run.economy, found)
    invariant(again.payouts_nano == settlement.payouts_nano, "a replayed settlement gave another result")


def prove(run: Demonstration, stage: Stage) -> None:
    """Export the largest payout's proof, verify it in a process that knows only the file and the key; audit."""
    best = max(
        (c for entry in run.report["datanets"] for c in entry["contributors"] if c.get("transfer_id")),
        key=lambda contributor: contributor["earned_nano"],
        default=None,
    )
    vkey = ray.get(run.ledger.verification_key.remote())
    run.report["ledger"] = {
        "checkpoint": ray.get(run.ledger.checkpoint.remote()),
        "audit": report.audit_entry(ray.get(run.ledger.audit.remote())),
        "vkey": vkey,
    }
    stage.detail = f"audit: {run.report['ledger']['audit']['message']}"
    if best is None:
        stage.detail += "; no contributor was paid, so there is nothing to prove"
        return
    path = pipeline.prove(run.ledger, best["transfer_id"], run.workdir.proofs)
    verdict = verify_offline(path, vkey)
    run.report["proof"] = {"path": str(path), "contributor": best["name"], "amount_nano": best["earned_nano"]}
    stage.detail = f"{best['name']}'s payout of {format_money(best['earned_nano'])}: {verdict}; {stage.detail}"


def describe_plan(settings: QuickstartSettings, workdir: Path, console: Console) -> None:
    """What a run would do, without doing any of it."""
    base = find_base_model(settings.base_model or None)
    console.print(f"base model  {base.name} ({base.path})", highlight=False)
    console.print(f"workdir     {workdir}", highlight=False)
    for datanet in (datanet for datanet in DATANETS if datanet.name in settings.datanets):
        people = contributors(datanet, settings.rows_per_contributor)
        num_rows = sum(len(person.drafts) for person in people)
        bad = ", ".join(sorted({person.kind for person in people} - {"honest"})) or "nobody bad"
        console.print(
            f"Datanet     {datanet.name}: {num_rows} rows by {len(people)} contributors; {bad}", highlight=False
        )
    recipe = settings.recipe
    console.print(
        f"training    at most {recipe.max_rows} rows for each Datanet, {recipe.num_epochs} epochs, LoRA rank "
        f"{recipe.rank}, {settings.num_workers} workers",
        highlight=False,
    )
    console.print(
        f"serving     http://{settings.host}:{settings.port}",
        highlight=False,
    )


def verify_offline(proof: Path, vkey: str) -> str:
    """Verify in a child process, which imports nothing of the platform. Raises Corrupt when it doesn't hold."""
    command = [sys.executable, "-m", "openledger.ledger", "verify", str(proof), "--key", vkey]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode:
        raise Corrupt(f"the proof {proof} doesn't verify: {result.stderr.strip()}", code="invalid_proof")
    return "verified offline"


STAGES = (
    ("datanets", fill_datanets),
    ("train", train_adapters),
    ("bank", build_banks),
    ("index", build_indexes),
    ("serve", serve_adapters),
    ("evaluate", evaluate),
    ("ask", ask),
    ("attribute", attribute_and_pay),
    ("prove", prove),
)


def _mean_quality(cards: Sequence[AdapterCard]) -> dict[str, float]:
    names = ("rouge_held_in_adapter", "rouge_held_in_base", "rouge_new_adapter", "rouge_new_base")
    return {name: round(sum(card.evaluation[name] for card in cards) / len(cards), 4) for name in names}


def _write_report(run: Demonstration) -> None:
    """Without rows that were taken back while it ran."""
    run.report["stages"] = run.log.records
    with changing(run.workdir.report):
        if "answers" in run.report:
            gone = ray.get(run.datanets.removed_among.remote(report.told_rows(run.report["answers"])))
            run.report["answers"] = [report.without_rows(answer, gone) for answer in run.report["answers"]]
            run.report["totals"] = report.totals(run.report)
        write_json_durably(run.workdir.report, run.report)
