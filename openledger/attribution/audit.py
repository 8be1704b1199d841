"""The audit: what the instruments said against trainings that none of them has seen.

Audit runs have orders of their own and the recipe's own initial A. `coalitions` are exact halves of the contributors
that the bank doesn't have, `rows` halves of the rows, each trained twice so that the truth's own noise is known (the
ceiling); `without` are the run's rows without one contributor, batches formed anew. A run from a second initial A,
where asked for, says how much of the number belongs to the initialisation. `perturbed` are the run itself with every
row's weight changed at random, in pairs on either side, by 1 % (is the replay the derivative?) and by 10 % (how far
does it reach?).

The report is kept in the adapter's folder as audit.json, with the instrument that it is about: bank and views of the
index; its figures also stand on the adapter's card. A settlement that pays by this bank quotes the bank's figures, and
enlarges its errors where the audit found them too small, if it looked at 400 pairs of training and answer or more:
fewer decide neither. One that pays by another bank, or by the index alone, quotes what was found of the index, and of
which views. One of an adapter that nobody audited says so.

Shapes: N audit runs, C contributors, R rows, Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openledger.adapters.card import load_card, save_card
from openledger.attribution.bank import Bank, BankPlan
from openledger.attribution.bank_folder import KeptBank, kept_bank
from openledger.attribution.estimate import contributor_sums, group_sums
from openledger.attribution.evaluation import (
    coverage,
    datamodeling_scores,
    noise_ceiling,
    pooled_ceiling,
    recall_of_planted,
    spearman,
)
from openledger.attribution.expected import fit_expected
from openledger.attribution.halves import DEFAULT_HALVES, ORDERS, unseen_halves
from openledger.attribution.instruments import (
    BankAttributor,
    EstimateAttributor,
    IndexAttributor,
    ReplayAttributor,
    Report,
    index_views,
    train_bank,
)
from openledger.attribution.subject import Subject
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import read_document, write_json_durably
from openledger.core.hashing import digest_json
from openledger.training.examples import Example
from openledger.training.members import Member
from openledger.training.recipe import generator
from openledger.training.record import RunRecord

Array = npt.NDArray[np.float64]
LEVEL = 0.9
COPY, MISLABELLED = "copy", "mislabelled"
PERTURBATIONS, PERTURBED_PERCENT = 2, (1, 10)
LEAST_PAIRS = 400  # of a new training and an answer, before a coverage says anything
AUDIT_FORMAT = "openledger.audit/1"
QUOTED = {
    "audit_ceiling_contributors": ("contributors", "ceiling", "per_answer"),
    "audit_decoys": ("decoys", "ratio"),
    "audit_replay_error": ("replay", "error_at_1_percent"),
}
OF_BANK = {
    "audit_lds_contributors": ("contributors", "bank", "per_answer"),
    "audit_lds_sum": ("contributors", "bank", "sum"),
    "audit_lds_rows": ("rows", "estimate", "per_answer"),
    "audit_leave_one_out": ("leave_one_out", "bank"),
}
OF_COVERAGE = {
    "audit_coverage_90": ("coverage", "found"),
    "audit_error_scale": ("coverage", "error_scale"),
}
OF_INDEX = {
    "audit_lds_index_contributors": ("contributors", "index", "per_answer"),
    "audit_lds_index_sum": ("contributors", "index", "sum"),
    "audit_lds_index_rows": ("rows", "index", "per_answer"),
    "audit_leave_one_out_index": ("leave_one_out", "index"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """Runs in pairs of two orders: `coalitions[2k]` and `coalitions[2k + 1]` have the same rows."""

    coalitions: tuple[Member, ...]
    coalition_members_NC: npt.NDArray[np.bool_]
    rows: tuple[Member, ...]
    row_members_NR: npt.NDArray[np.bool_]
    without: tuple[Member, ...]
    second_initial: tuple[Member, ...]
    perturbed: tuple[Member, ...]

    @property
    def members(self) -> tuple[Member, ...]:
        return self.coalitions + self.rows + self.without + self.second_initial + self.perturbed


def plan_audit(
    subject: Subject,
    plan: BankPlan,
    num_halves: int = DEFAULT_HALVES,
    *,
    second_initial: bool = False,
    check_replay: bool = False,
) -> AuditPlan:
    """Trainings that a bank of `plan` hasn't seen. Raises InvalidInput as `unseen_halves`, and for one contributor."""
    record, names = subject.needed_record(), subject.contributors
    if len(names) < 2:
        raise InvalidInput("an audit needs two contributors", code="one_contributor", param="rows")
    who = [example.contributor_id for example in subject.examples]
    halves = unseen_halves(subject.rows, plan.design, num_halves, record.order)
    row_halves = [_half(len(who), record.order, f"audit-rows-{k}") for k in range(num_halves)]
    own_rows = [tuple(row for row, name in enumerate(who) if half[names.index(name)]) for half in halves]

    def member(name: str, rows: tuple[int, ...], initial: str = record.initial) -> Member:
        return Member(name=name, rows=rows, initial=initial, order=digest_json([record.order, name]))

    other = digest_json(["second initial", record.initial])
    return AuditPlan(
        coalitions=tuple(member(f"audit-{k}-{o}", rows) for k, rows in enumerate(own_rows) for o in range(ORDERS)),
        coalition_members_NC=halves,
        rows=tuple(
            member(f"audit-rows-{k}-{o}", tuple(np.flatnonzero(half).tolist()))
            for k, half in enumerate(row_halves)
            for o in range(ORDERS)
        ),
        row_members_NR=np.array(row_halves),
        without=tuple(
            Member(
                name=f"audit-without-{name}",
                rows=tuple(row for row, own in enumerate(who) if own != name),
                initial=record.initial,
                order=record.order,
            )
            for name in names
        ),
        second_initial=tuple(member(f"audit-second-{k}", rows, other) for k, rows in enumerate(own_rows))
        if second_initial
        else (),
        perturbed=tuple(
            _perturbed(record, len(who), percent, k, sign)
            for percent in PERTURBED_PERCENT
            for k in range(PERTURBATIONS)
            for sign in (1, -1)
        )
        if check_replay
        else (),
    )


def audit(
    subject: Subject,
    plan: BankPlan,
    audit_plan: AuditPlan,
    queries: Sequence[Example],
    *,
    decoys: Sequence[Example] = (),
    planted: dict[str, str] | None = None,
    report: Report = print,
) -> dict[str, Any]:
    """The report: LDS of index, bank and estimate beside the noise ceilings, agreement with leave-one-out, coverage of
    the intervals, null level of decoys, recall of planted rows (`planted`: row id -> `copy` or `mislabelled`)."""
    bank = subject.bank()
    train_bank(bank, [*plan.members, *audit_plan.members], report)
    index = IndexAttributor(subject=subject, plan=plan, report=report).attribute(queries).scores
    contributors = BankAttributor(subject=subject, plan=plan, report=report).attribute(queries)
    rows = EstimateAttributor(subject=subject, plan=plan, report=report).attribute(queries).scores
    who, names = [example.contributor_id for example in subject.examples], subject.contributors
    index_sums = contributor_sums(index, who, names)
    found: dict[str, Any] = {
        "instrument": _instrument(subject, plan),
        "halves": {"contributors": len(audit_plan.coalition_members_NC), "rows": len(audit_plan.row_members_NR)},
        "contributors": _against_halves(
            bank.score(audit_plan.coalitions, queries),
            audit_plan.coalition_members_NC,
            {"index": index_sums, "bank": contributors.scores},
        ),
        "rows": _against_halves(
            bank.score(audit_plan.rows, queries), audit_plan.row_members_NR, {"index": index, "estimate": rows}
        ),
        "coverage": _coverage(bank.score(plan.coalitions, queries), plan, index, subject, audit_plan, queries),
    }
    lost = _whole(subject, bank, plan, queries) - bank.score(audit_plan.without, queries)
    found["leave_one_out"] = {
        "bank": _mean(spearman(contributors.scores, lost)),
        "index": _mean(spearman(index_sums, lost)),
        "bank_sum": _mean(spearman(contributors.scores.sum(1, keepdims=True), lost.sum(1, keepdims=True))),
    }
    if audit_plan.second_initial:
        first = bank.score(audit_plan.coalitions[0::2], queries)
        second = bank.score(audit_plan.second_initial, queries)
        found["second_initial_agreement"] = _mean(spearman(first, second))
    if audit_plan.perturbed:
        found["replay"] = _finite_differences(subject, bank, audit_plan.perturbed, queries, report)
    if decoys:
        found["decoys"] = _null_level(subject, plan, decoys, queries, report)
    if planted:
        found["planted"] = _planted(subject, rows, planted)
    return found


def save_audit(folder: Path, adapter_digest: str, found: dict[str, Any]) -> None:
    """Beside the adapter, and its figures on the adapter's card where it has one."""
    write_json_durably(folder / "audit.json", {"format": AUDIT_FORMAT, "adapter_digest": adapter_digest, **found})
    if (folder / "card.json").exists():
        save_card(folder, load_card(folder).with_evaluation(_figures(found, QUOTED | OF_BANK | OF_COVERAGE | OF_INDEX)))


def load_audit(folder: Path, adapter_digest: str) -> dict[str, Any]:
    """The adapter's audit report; empty where it was never audited. Raises Corrupt (`corrupt_audit`) where it can't be
    read or is another adapter's."""
    path = folder / "audit.json"
    if not path.exists():
        return {}

    def own(values: dict[str, Any]) -> dict[str, Any]:
        if values["adapter_digest"] != adapter_digest:
            raise ValueError("it is another adapter's")
        return values

    return read_document(path, AUDIT_FORMAT, own, partial(_unusable, path))


def _unusable(path: Path, reason: str) -> Corrupt:
    return Corrupt(
        f"the audit report {path} can't be used: {reason}",
        code="corrupt_audit",
        param=str(path),
        fix="remove it, and audit the adapter again: openledger attribution evaluate",
    )


def audited_quality(found: dict[str, Any], bank: KeptBank | None) -> dict[str, str]:
    """What an attribution by `bank` quotes of an audit, as text; `audit: none` without one. Figures of the bank only
    where it is the audited one, figures of the index otherwise, or where the index alone attributes."""
    if not found:
        return {"audit": "none"}
    audited = found.get("instrument", {})
    of_bank = bank is not None and audited.get("bank") == bank.digest
    enough = (_at(found, ("coverage", "pairs")) or 0) >= LEAST_PAIRS
    own = OF_INDEX if not of_bank else OF_BANK | OF_COVERAGE if enough else OF_BANK
    quality = {name: f"{value:.3f}" for name, value in _figures(found, QUOTED | own).items()}
    views = {"audit_views": " ".join(audited["views"])} if "views" in audited else {}
    return {**quality, **views}


def _instrument(subject: Subject, plan: BankPlan) -> dict[str, Any]:
    return {
        "bank": kept_bank(subject.bank(), plan, subject.digest).digest,
        "coalitions": len(plan.coalitions),
        "twins": len(plan.twins),
        "views": [view.name for view in index_views(subject, plan)],
    }


def _figures(found: dict[str, Any], paths: dict[str, tuple[str, ...]]) -> dict[str, float]:
    values = {name: _at(found, path) for name, path in paths.items()}
    return {name: value for name, value in values.items() if value is not None}


def _at(found: dict[str, Any], path: Sequence[str]) -> float | None:
    value: Any = found
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return None if value is None else float(value)


def _whole(subject: Subject, bank: Bank, plan: BankPlan, queries: Sequence[Example]) -> Array:
    """[Q]: what the queries are worth after training on all rows; by the bank's twins, or by the run itself."""
    if plan.twins:
        return bank.score(plan.twins, queries).mean(axis=0)
    return bank.score_weights([subject.checkpoints()[subject.needed_record().recipe.num_epochs]], queries)[0]


def _against_halves(
    outcomes_NQ: Array, members: npt.NDArray[np.bool_], scores: dict[str, Array]
) -> dict[str, dict[str, float]]:
    first, second = outcomes_NQ[0::2], outcomes_NQ[1::2]
    true = (first + second) / 2
    total = true.sum(1, keepdims=True)
    sums = noise_ceiling(first.sum(1, keepdims=True), second.sum(1, keepdims=True))
    found = {"ceiling": {"per_answer": round(pooled_ceiling(first, second), 4), "sum": _mean(sums)}}
    for name, own in scores.items():
        found[name] = {
            "per_answer": _mean(datamodeling_scores(own, members, true)),
            "sum": _mean(datamodeling_scores(own.sum(1, keepdims=True), members, total)),
        }
    return found


def _coverage(
    outcomes_MQ: Array,
    plan: BankPlan,
    index_RQ: Array,
    subject: Subject,
    audit_plan: AuditPlan,
    queries: Sequence[Example],
) -> dict[str, float]:
    """How often a new training falls into the interval that the bank's model gives for it. Where a half of the
    contributors cuts a block in two, the block is there by the part of its rows that is."""
    found = plan.design
    prior_GQ = group_sums(index_RQ, found.numbers(subject.rows), len(found.groups))
    _, predictor = fit_expected(found.members_MG, outcomes_MQ, prior_GQ)
    halves_NG = audit_plan.coalition_members_NC @ found.parts(subject.rows, subject.contributors)
    members = np.repeat(halves_NG, ORDERS, axis=0)
    true = subject.bank().score(audit_plan.coalitions, queries)
    scale = float(np.sqrt(np.mean(((true - predictor.predict(members)) / predictor.errors(members)) ** 2)))
    return {
        "stated": LEVEL,
        "found": round(coverage(*predictor.interval(members, LEVEL), true), 4),
        "pairs": float(true.size),
        "error_scale": round(scale, 4),
    }


def _finite_differences(
    subject: Subject, bank: Bank, perturbed: Sequence[Member], queries: Sequence[Example], report: Report
) -> dict[str, float]:
    """The replay's derivative of the queries' sum along each direction, against the two runs on either side."""
    instrument = ReplayAttributor(subject=subject, weights=[1.0] * len(queries), report=report)
    found = instrument.attribute(queries)
    outcomes = bank.score(perturbed, queries).sum(axis=1)
    actual = (outcomes[0::2] - outcomes[1::2]) / 2
    predicted = (np.array([member.row_weights for member in perturbed[0::2]]) - 1.0) @ found.scores[:, 0]
    result = {"deviation": float(found.quality["deviation"])}
    for number, percent in enumerate(PERTURBED_PERCENT):
        own = slice(number * PERTURBATIONS, (number + 1) * PERTURBATIONS)
        error = np.linalg.norm(predicted[own] - actual[own]) / np.linalg.norm(actual[own])
        result[f"error_at_{percent}_percent"] = round(float(error), 4)
    return result


def _perturbed(record: RunRecord, num_rows: int, percent: int, number: int, sign: int) -> Member:
    direction = generator(record.order, f"perturbed-{number}").standard_normal(num_rows)
    return Member(
        name=f"audit-perturbed-{percent}-{number}-{'plus' if sign > 0 else 'minus'}",
        rows=tuple(range(num_rows)),
        initial=record.initial,
        order=record.order,
        row_weights=tuple((1.0 + sign * percent / 100 * direction).tolist()),
    )


def _null_level(
    subject: Subject, plan: BankPlan, decoys: Sequence[Example], queries: Sequence[Example], report: Report
) -> dict[str, float]:
    """Root mean square of the scores of rows that were never trained on, whose true influence is none, beside that of
    the trained rows: of one index, so that views, curvature and scale are the same for both."""
    trained = set(subject.examples)
    strangers = tuple(row for row in decoys if row not in trained)
    if not strangers:
        raise InvalidInput("the decoys are rows of the run", code="invalid_decoys", param="decoys")
    instrument = IndexAttributor(subject=subject, plan=plan, report=report, decoys=strangers)
    _, *scores = instrument.with_decoys(queries)
    trained_rms, decoy_rms = (float(np.sqrt(np.mean(own_VEQ.mean(axis=0) ** 2))) for own_VEQ in scores)
    return {
        "decoy_rms": round(decoy_rms, 6),
        "trained_rms": round(trained_rms, 6),
        "ratio": round(decoy_rms / trained_rms, 4),
    }


def _planted(subject: Subject, rows_RQ: Array, planted: dict[str, str]) -> dict[str, float]:
    """Copies of what was asked should stand at the top, mislabelled rows at the bottom of the sum over queries."""
    places = {example.row_id: number for number, example in enumerate(subject.examples)}
    unknown = sorted(set(planted) - set(places))
    if unknown:
        raise InvalidInput(f"the run has no row {unknown[0]!r}", code="unknown_row", param="planted")
    total = rows_RQ.sum(axis=1, keepdims=True)
    found = {}
    for kind, sign in ((COPY, 1.0), (MISLABELLED, -1.0)):
        chosen = [places[row] for row, own in planted.items() if own == kind]
        if chosen:
            found[f"{kind}_recall"] = _mean(recall_of_planted(sign * total, chosen))
            found[f"{kind}_chance"] = round(len(chosen) / len(total), 4)
    return found


def _half(size: int, constant: str, seed: str) -> npt.NDArray[np.bool_]:
    half = np.zeros(size, dtype=bool)
    half[generator(constant, seed).permutation(size)[: size // 2]] = True
    return half


def _mean(values: Array) -> float:
    return round(float(np.mean(values)), 4)
