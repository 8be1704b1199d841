"""The audit of an adapter that is sold: `attribution.audit` of its own bank and index, its trainings as Ray tasks.

What is asked are the rows that were held out from it: nobody trained on them, and the improvement part pays by them.
The report lies beside the adapter and its figures on the card; from then on settlements quote them. Stopped on the way
it goes on when it is run again: a training that is there is not made twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openledger.adapters.base_model import BaseModel, load_tokenizer
from openledger.adapters.card import checked_card
from openledger.attribution import trainer
from openledger.attribution.audit import AuditPlan, audit, plan_audit, save_audit
from openledger.attribution.bank import BankPlan
from openledger.attribution.bank_folder import find_bank, finish_bank, kept_bank
from openledger.attribution.halves import DEFAULT_HALVES
from openledger.attribution.instruments import subject_plan
from openledger.attribution.subject import Subject
from openledger.core.errors import InvalidInput, NotFound
from openledger.core.values import Row
from openledger.training.examples import encode_row
from openledger.training.members import Member
from openledger.training.record import check_run, load_held_out, load_run, rows_in_order


@dataclass(frozen=True, kw_only=True)
class AdapterAudit:
    """What an audit would train. `finishes_bank` where the adapter has no bank yet: it is paid by this one then."""

    subject: Subject
    bank: BankPlan
    audit: AuditPlan
    finishes_bank: bool

    @property
    def missing(self) -> list[Member]:
        return self.subject.bank().missing([*self.bank.members, *self.audit.members])


def plan_adapter_audit(
    folder: Path, base: BaseModel, rows: Sequence[Row], *, num_coalitions: int = 0, num_halves: int = DEFAULT_HALVES
) -> AdapterAudit:
    """Of the adapter in `folder`, trained on some of `rows`. Its bank is audited; one of `num_coalitions` is trained
    where it has none.

    Raises NotFound (`no_bank`, `no_held_out`, `rows_gone`), InvalidInput (`other_bank`, and as `plan_audit`), and as
    `checked_card`, `check_run`.
    """
    digest, record = checked_card(folder).digest, load_run(folder)
    if not load_held_out(folder):
        raise NotFound(
            f"no rows were held out from {folder.name}: there is nothing to ask it about",
            code="no_held_out",
            param="adapter",
            fix="audit it on questions of your own: jobs/rows.py, then openledger attribution evaluate",
        )
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in rows_in_order(record.row_ids, rows, folder.name)]
    check_run(record, base, examples)
    subject = Subject(base=base, folder=folder, examples=tuple(examples), record=record)
    kept = find_bank(folder, digest)
    if kept is None and not num_coalitions:
        raise NotFound(
            f"{folder.name} has no bank to audit",
            code="no_bank",
            param="bank",
            fix="--bank 32 trains one; settlements pay by it from then on",
        )
    numbers = (len(kept.coalitions), len(kept.twins)) if kept else (num_coalitions, 0)
    plan = subject_plan(subject, *numbers)
    if kept is not None and kept_bank(subject.bank(), plan, digest).digest != kept.digest:
        raise InvalidInput(
            f"the bank of {folder.name} was drawn in another way than banks are now",
            code="other_bank",
            param="bank",
            fix="jobs/rows.py writes its rows; openledger attribution evaluate audits another bank on them",
        )
    return AdapterAudit(
        subject=subject, bank=plan, audit=plan_audit(subject, plan, num_halves), finishes_bank=kept is None
    )


def audit_adapter(
    plan: AdapterAudit, *, num_gpus: float | None = None, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train what is missing, build the index, measure and keep the report; the report. Raises as
    `attribution.trainer.prepare`."""
    subject, total, done = plan.subject, len(plan.missing), 0

    def told(member: Member) -> None:
        nonlocal done
        done += 1
        tell(f"{member.name} trained, {done} of {total}")

    trainer.prepare(subject, plan.bank, num_gpus=num_gpus, on_member=told)
    record = subject.needed_record()
    trainer.train_bank(
        subject.folder / "bank", record, subject.base, subject.examples, plan.audit.members,
        start=subject.start, num_gpus=num_gpus, on_member=told,
    )  # fmt: skip
    found = audit(subject, plan.bank, plan.audit, load_held_out(subject.folder), report=tell)
    if plan.finishes_bank:
        finish_bank(subject.bank(), plan.bank, subject.digest)
    save_audit(subject.folder, subject.digest, found)
    return found
