"""Adapters trained in this process, one from another, with what serves, measures, sells and settles them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from nonce_values import draw_round
from tiny_model import tiny_rows

from openledger.adapters.base_model import load_tokenizer
from openledger.adapters.card import load_card
from openledger.adapters.registry import AdapterRegistry
from openledger.attribution.actor import IndexHost
from openledger.attribution.bank import plan_bank, run_bank
from openledger.attribution.bank_folder import finish_bank
from openledger.core.clock import ManualClock
from openledger.core.signing import SigningKey
from openledger.core.values import Answer, DatanetVersion
from openledger.datanets.versions import credit_root
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.openlora.torch_engine import EngineOptions, TorchEngine
from openledger.platform import pipeline
from openledger.platform.point_of_sale import purpose_of
from openledger.training import trainer
from openledger.training.examples import encode_row
from openledger.training.recipe import Recipe
from openledger.training.record import load_run, run_start

RECIPE = Recipe(rank=4, alpha=16, num_epochs=4, batch_rows=4, learning_rate=2e-2)
OWNER, PRICES = "user:owner", (10, 30)
NONCES = {OWNER: "0a" * 32, "user:witness": "0b" * 32}


def in_this_process(patch):
    """Remote calls answered at once, and training without Ray Train's worker."""
    patch.setattr(pipeline.ray, "get", lambda value: value)
    patch.setattr(trainer, "_to_device", lambda model: model)


class Remote:
    """Methods of an object behind `.remote`, answered at once."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self._target, name))


class World:
    """A folder of adapters with their indexes, and what measures them; its ledger knows the rounds of nonces."""

    def __init__(self, base, folder):
        self.base, self.folder, self.host = base, folder, Remote(IndexHost(base))
        self.adapters, self.indexes = folder / "adapters", folder / "indexes"
        self.registry = AdapterRegistry(self.adapters)
        self.engine = TorchEngine(base, EngineOptions(max_batch=2))
        self._loaded = set()
        books = folder / "books"
        books.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger(books / "ledger.db", ManualClock(), SigningKey(b"w" * 32), "openledger/test")
        self._economy = Economy(self.ledger, books, ManualClock())
        self.economy = Remote(self._economy)

    def draw(self, version, recipe):
        """A round of known nonces for the version."""
        purpose = purpose_of(version.row_root, self.base.digest, recipe.to_dict(), version.credit_root)
        return draw_round(self._economy, self.ledger, version.datanet, version.number, purpose, NONCES)

    def train(self, name, rows, parent=None, recipe=RECIPE, credit=()):
        """What pipeline.train and build_indexes do, in this process. `credit` are the rows' ids in the order of credit,
        where the version knows that."""
        number = len(rows)
        version = DatanetVersion(
            datanet=name, number=2, row_root=name[0] * 64, num_rows=number, gate_version="g/1", published_ms=1,
            credit_root=credit_root(credit) if credit else "",
        )  # fmt: skip
        found = pipeline.find_parent(self.registry, parent, self.base, recipe) if parent else None
        job, decoys = pipeline.plan_training(
            self.base, version, rows, recipe, self.adapters, nonces=self.draw(version, recipe), parent=found,
            credit=credit,
        )  # fmt: skip
        pipeline.check_plan(self.economy, self.registry, job, OWNER)
        if job.parent:
            trainer.keep_start(Path(job.output), job.parent)
        progress = trainer._train_until(job, recipe.middle_epoch, None, 0, 1)
        trainer._train_until(job, recipe.num_epochs, progress, 0, 1)
        card = load_card(Path(job.output))
        pipeline.register(self.registry, job, card, OWNER, PRICES, self.economy)
        pipeline.build_indexes(self.host.build.remote, [job], [decoys], self.indexes)
        return job, card

    def bank(self, job, without=()):
        folder = Path(job.output)
        record, examples = load_run(folder), [encode_row(load_tokenizer(self.base), row) for row in job.rows]
        plan = plan_bank(record, examples, num_coalitions=6, num_twins=0, without=without)
        bank = run_bank(folder / "bank", record, self.base, examples, start=run_start(folder, record))
        bank.train(plan.members)
        finish_bank(bank, plan, record.adapter_digest)

    def score(self, prompt_ids, completion_ids, digests):
        for digest in set(digests) - self._loaded - {""}:
            self.engine.load(digest, Path(self.registry.find_digest(digest).folder))
            self._loaded.add(digest)
        return self.engine.score(prompt_ids, completion_ids, digests)

    def attribute(self, pool):
        return pipeline.attribute(pool, lambda _: self.host, self.score, self.registry, self.indexes)


class Market:
    """A ledger and an economy, and a customer who buys what a row says."""

    def __init__(self, folder, base, parameters=None):
        self.folder, self.tokenizer, self.parameters = folder, load_tokenizer(base), parameters
        self.open()
        self.economy.grant("user:alice", 10**9, "start")

    def open(self):
        self.ledger = Ledger(self.folder / "ledger.db", ManualClock(), SigningKey(b"k" * 32), "openledger/test")
        self.economy = Economy(self.ledger, self.folder, ManualClock(), self.parameters)

    def close(self):
        self.economy.close()
        self.ledger.close()

    def sell(self, terms, rows):
        for row in rows:
            example = encode_row(self.tokenizer, row)
            prompt, completion = example.ids[: example.num_prompt], example.ids[example.num_prompt :]
            held = self.economy.authorize(
                "user:alice", terms, len(prompt), len(completion), f"{terms.adapter}-{row.row_id}"
            )
            self.economy.complete(
                Answer(
                    answer_id=held.answer_id, adapter=terms.adapter, adapter_digest=terms.adapter_digest,
                    period=held.period, prompt_ids=prompt, completion_ids=completion,
                )
            )  # fmt: skip
        return self.economy.pool(terms.adapter, held.period)


def rows_of(*people):
    """Rows of each one's two accounts: a bank needs more than two contributors."""
    return [
        replace(row, contributor_id=f"{row.contributor_id}{'ab'[row.ordinal // 4 % 2]}")
        for row in tiny_rows()
        if row.contributor_id in people
    ]


def paid_nano(settled, person):
    """What both accounts of `person` got of a settlement, or of one part of it."""
    return sum(amount for name, amount in settled.payouts_nano.items() if name.startswith(person))
