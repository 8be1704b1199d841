"""A second scorer's work: a pool's scores once more, from the record, and whether two scorers agree.

The record is what the first scorer had: the pool's answers, the adapter, its index on disk and, where there is one, its
bank of trained members. Knows nothing of disputes; what a recomputed share is worth is `ledger.disputes`' to say.

Two scorers agree where no share differs by more than a stated part of the pool. On one kind of machine the same record
gives the same scores; another kind of processor or BLAS changes their last bits, which is what a tolerance is for.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from openledger.attribution.bank import Bank, BankPlan
from openledger.attribution.index import GradientIndex
from openledger.attribution.index_folder import View
from openledger.attribution.likeness import Repeat, with_pairs_of
from openledger.attribution.period import Measurement, fit_outcomes
from openledger.core.errors import InvalidInput
from openledger.core.scoring import Scorer, gains
from openledger.core.shares import shares_ppb
from openledger.core.values import Answer, ContributorScores
from openledger.training.examples import Example, encode_answer

_PPB_PER_PPM = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """`differences_ppb` is the second's share minus the first's, for each contributor and `unattributed`."""

    differences_ppb: dict[str, int]
    tolerance_ppm: int

    @property
    def differing(self) -> tuple[str, ...]:
        """Who is out of tolerance."""
        most_ppb = self.tolerance_ppm * _PPB_PER_PPM
        return tuple(name for name, value in sorted(self.differences_ppb.items()) if abs(value) > most_ppb)

    @property
    def agrees(self) -> bool:
        return not self.differing


def recompute(
    adapter: str,
    period: str,
    answers: Sequence[Answer],
    held_out: Sequence[Example],
    module: Any,
    index: GradientIndex,
    scorer: Scorer,
    bank: tuple[Bank, BankPlan] | None = None,
    *,
    views: Sequence[View] = (),
    least_error_scale: float = 1.0,
    answered_by: str = "",
    began_from: str = "",
    num_gone: int = 0,
    repeats: Sequence[Repeat] = (),
) -> Measurement:
    """What one adapter's answers in a pool and its held-out rows are measured to owe: by the bank where it is given,
    else by the index alone. Its `use()` and `improvement()` are the scores of the pool's two parts.

    `module` and `views` are the adapter over its base and the points of its run at which the index was built
    (`views.load_views`); without `views` the module stands as it did then. `scorer` tells what the adapter gained over
    the base; `least_error_scale` is what the adapter's audit says, as in the first scorer's `quality`; so is `num_gone`
    (`gone_rows`), the rows of the adapter's card that its index lacks. `repeats` are those that `likeness.find_repeats`
    finds among the rows where the run began, or that `likeness.load_repeats` reads beside the index: the list of either
    that the settlement's rule of shares goes by (`Repeats.listed`). Where rows were taken back since, what is found
    among the others is to be completed by `with_gone`.

    Of a derived adapter each generation is recomputed on the answers that `answered_by` (a digest) gave, against what
    it gained over the adapter that it `began_from`, and under the ceiling of the one that answered;
    `generations.combined` then makes scores of them. Raises InvalidInput for another adapter's answers or other views,
    NotFound for a bank that lacks a member, Corrupt for damaged files.
    """
    digest = index.plan.adapter_digest
    served = answered_by or digest
    other = [answer.answer_id for answer in answers if answer.adapter_digest != served]
    if other or not answers:
        raise InvalidInput(
            f"{', '.join(other[:3]) or 'no answer'}: not by the adapter that the index is of",
            code="wrong_adapter",
            param="answers",
        )
    queries = [*(encode_answer(answer) for answer in answers), *held_out]
    scores = index.score(index.query_vectors(module, queries, views=views))
    outcomes = None
    if bank is not None:
        members, plan = bank
        outcomes = fit_outcomes(plan.design, members.score(plan.coalitions, queries), index.entries, scores)
    compared = (served, digest, began_from) if began_from else (served, digest)
    told_QD = [gains(scorer.score, q.ids[: q.num_prompt], q.ids[q.num_prompt :], compared) for q in queries]
    return Measurement(
        adapter=adapter,
        period=period,
        entries=tuple(index.entries),
        scores=scores,
        weights_nano=tuple(answer.weight_nano for answer in answers),
        gains=tuple(told_D[1] - sum(told_D[2:]) for told_D in told_QD),
        bank=outcomes,
        least_error_scale=least_error_scale,
        fees_nano=tuple(answer.fee_nano for answer in answers),
        served_gains=tuple(told_D[0] for told_D in told_QD),
        num_gone=num_gone,
        repeats=tuple(repeats),
        index_method=index.plan.method,
    )


def with_gone(found: Sequence[Repeat], stated: Sequence[Sequence[Any]], gone: Collection[str]) -> tuple[Repeat, ...]:
    """`found` among the rows that are left of a run, and those of a settlement's `repeated_rows` (`stated`) that nobody
    can compare any more: of a pair whose row or whose earlier row is `gone`, which is the rows with a tombstone.

    They are taken as they stand there. Else a copy would be paid by a dispute, once its original is withdrawn: the
    list is of what was trained on, and for as long as that adapter is served. A pair of two rows that are there counts
    only where it is found.
    """
    return with_pairs_of(found, (_stated(*row) for row in stated), gone)


def _stated(row_id: str, earlier: str, *told: Any) -> Repeat:
    """Of a settlement by shares/3 the contributor isn't told: it is the row's own."""
    *contributor, likeness_milli = told
    return Repeat(row_id=row_id, earlier=earlier, likeness_milli=likeness_milli, contributor_id="".join(contributor))


def agreement(
    first: ContributorScores, second: ContributorScores, tolerance_ppm: int, z_milli: int = 1000
) -> Agreement:
    """Compare the shares that two scorers' scores of one pool come to, under the same z. Raises InvalidInput for
    scores of different pools, or a negative tolerance."""
    if (first.adapter, first.period) != (second.adapter, second.period) or tolerance_ppm < 0:
        raise InvalidInput("two scorers are compared over one pool", code="invalid_scores", param="scores")
    ours, theirs = (
        shares_ppb(s.scores_nano, s.errors_nano, s.gain_nano, z_milli, ceilings=s.ceilings, unpaid_nano=s.unpaid_nano)
        for s in (first, second)
    )
    names = sorted(ours.keys() | theirs.keys())
    return Agreement(
        differences_ppb={name: theirs.get(name, 0) - ours.get(name, 0) for name in names}, tolerance_ppm=tolerance_ppm
    )
