"""A bank trained by Ray tasks: one task for each member, on whatever nodes there are.

A member is a file that is written whole or not at all. So a task that died with its worker is simply run again, a
member that is there is never trained twice, and a bank that was stopped goes on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from openledger.adapters.base_model import BaseModel, load_tokenizer
from openledger.attribution.bank import Bank, plan_bank, run_bank
from openledger.attribution.bank_folder import finish_bank
from openledger.core.errors import Unavailable
from openledger.core.values import Row
from openledger.training.examples import Example, encode_row
from openledger.training.members import Member
from openledger.training.record import RunRecord, load_run

_RETRIES = 3


def train_bank(
    folder: Path,
    record: RunRecord,
    base: BaseModel,
    examples: Sequence[Example],
    members: Sequence[Member],
    *,
    num_gpus: float = 0,
    on_member: Callable[[Member], None] | None = None,
) -> Bank:
    """Train what is missing of `members` into `folder`, which every node must see; the bank.

    Raises Unavailable where a member's task failed more often than it is retried.
    """
    bank = run_bank(folder, record, base, examples)
    shared = ray.put((str(folder), record, base, tuple(examples)))
    train = ray.remote(_train_member).options(num_cpus=1, num_gpus=num_gpus, max_retries=_RETRIES, name="bank-member")
    pending = {train.remote(shared, member): member for member in bank.missing(members)}
    while pending:
        (done,), _ = ray.wait(list(pending), num_returns=1)
        member = pending.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.RayError as error:
            for task in pending:
                ray.cancel(task, force=True)
            raise Unavailable(
                f"the bank's {member.name} could not be trained: {error}",
                code="training_failed",
                fix="run again: what is trained is kept",
            ) from error
        if on_member is not None:
            on_member(member)
    return bank


def train_bank_of(
    adapter_folder: Path,
    base: BaseModel,
    rows: Sequence[Row],
    num_coalitions: int,
    *,
    num_twins: int = 0,
    num_gpus: float = 0,
    on_member: Callable[[Member], None] | None = None,
) -> int:
    """Train what is missing of the bank of a recorded adapter, and finish it; the number of members trained now.

    `rows` are those that the adapter was trained on, in its record's order. Raises as `train_bank`, and InvalidInput
    (`one_contributor`, `other_rows`).
    """
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in rows]
    record, folder = load_run(adapter_folder), adapter_folder / "bank"
    plan = plan_bank(record, examples, num_coalitions=num_coalitions, num_twins=num_twins)
    bank = run_bank(folder, record, base, examples)
    missing = bank.missing(plan.members)
    train_bank(folder, record, base, examples, missing, num_gpus=num_gpus, on_member=on_member)
    finish_bank(bank, plan, record.adapter_digest)
    return len(missing)


def _train_member(shared: tuple[str, RunRecord, BaseModel, tuple[Example, ...]], member: Member) -> None:
    import torch

    folder, record, base, examples = shared
    torch.set_num_threads(record.recipe.threads)
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    run_bank(Path(folder), record, base, examples, device=device).train([member])
