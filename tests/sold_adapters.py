"""Adapters as training leaves them, made in this process and put on sale in a working folder: with held-out rows, index
and bank. And what a customer buys of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trained_world import OWNER, PRICES, RECIPE

from openledger.adapters.base_model import BaseModel, load_model, load_tokenizer
from openledger.adapters.registry import AdapterRegistry
from openledger.attribution.actor import IndexHost
from openledger.attribution.bank import Bank, BankPlan, plan_bank, run_bank
from openledger.attribution.bank_folder import finish_bank
from openledger.core.values import AdapterTerms, Answer, DatanetVersion, Row
from openledger.platform import pipeline
from openledger.platform.workdir import Workdir
from openledger.training.examples import encode_row
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe
from openledger.training.record import load_run, save_checkpoint, save_held_out
from openledger.training.trainer import TrainingJob, write_adapter

ALICE = "user:alice"


@dataclass(frozen=True)
class Sold:
    """An adapter with its index, that was sold under its Datanet's name."""

    base: BaseModel
    job: TrainingJob
    terms: AdapterTerms
    index: Path
    bank: tuple[Bank, BankPlan]

    @property
    def digest(self) -> str:
        return self.terms.adapter_digest


def put_on_sale(
    workdir: Workdir,
    registry: AdapterRegistry,
    base: BaseModel,
    version: DatanetVersion,
    rows: Sequence[Row],
    *,
    recipe: Recipe = RECIPE,
    credit: Sequence[str] = (),
) -> Sold:
    """What was sold under the Datanet's name before is replaced."""
    job, decoys = pipeline.plan_training(base, version, rows, recipe, workdir.adapters, credit=credit)
    module, tokenizer = attach_lora(load_model(base), recipe, job.constant), load_tokenizer(base)
    examples, folder = [encode_row(tokenizer, row) for row in job.rows], Path(job.output)
    done = train(
        module, examples, recipe, job.constant, on_epoch=lambda now: save_checkpoint(folder, now.epoch, now.lora)
    )
    save_held_out(folder, [encode_row(tokenizer, row) for row in job.held_out])
    card = write_adapter(module, job, examples, done.curve, 1)
    index = pipeline.index_folder(workdir.indexes, card.digest)
    views = pipeline.index_views(job.output)
    IndexHost(base).build(views, card.digest, job.rows, decoys, str(index), job.output)
    terms = pipeline.put_on_sale(registry, job.name, folder, card, OWNER, PRICES)
    record = load_run(folder)
    plan = plan_bank(record, examples, num_coalitions=8, num_twins=0)
    bank = run_bank(folder / "bank", record, base, examples)
    bank.train(plan.members)
    finish_bank(bank, plan, record.adapter_digest)
    return Sold(base, job, terms, index, (bank, plan))


def sell(economy: Any, sold: Sold, name: str, rows: Sequence[Row]) -> None:
    """Alice buys what `rows` say; `name` makes the purchases others than those before."""
    import ray

    tokenizer = load_tokenizer(sold.base)
    for row in rows:
        example = encode_row(tokenizer, row)
        prompt, completion = example.ids[: example.num_prompt], example.ids[example.num_prompt :]
        key = f"{name}-{row.row_id}"
        held = ray.get(economy.authorize.remote(ALICE, sold.terms, len(prompt), len(completion), key))
        answer = Answer(
            answer_id=held.answer_id, adapter=sold.terms.adapter, adapter_digest=sold.digest, period=held.period,
            prompt_ids=prompt, completion_ids=completion,
        )  # fmt: skip
        ray.get(economy.complete.remote(answer))
