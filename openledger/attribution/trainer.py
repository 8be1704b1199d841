"""A bank trained by Ray tasks: one task for each member, on whatever nodes there are.

A member is a file that is written whole or not at all. So a task that died with its worker is simply run again, a
member that is there is never trained twice, and a bank that was stopped goes on.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from openledger.adapters.base_model import BaseModel
from openledger.attribution.bank import Bank, run_bank
from openledger.core.errors import Unavailable
from openledger.training.examples import Example
from openledger.training.members import Member
from openledger.training.record import RunRecord

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


def _train_member(shared: tuple[str, RunRecord, BaseModel, tuple[Example, ...]], member: Member) -> None:
    import torch

    folder, record, base, examples = shared
    torch.set_num_threads(record.recipe.threads)
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    run_bank(Path(folder), record, base, examples, device=device).train([member])
