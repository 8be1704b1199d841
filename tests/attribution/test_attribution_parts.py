"""Several adapters' parts of a pool in one: what adds up, what is weighted, and what can't be said."""

from dataclasses import replace

import pytest

from openledger.attribution.parts import mean_improvement, summed
from openledger.core.values import ContributorScores

ONE = ContributorScores(
    adapter="greek", period="p1", method="bank/2", scores_nano={"a": 50, "b": -10}, errors_nano={"a": 5, "b": 3},
    gain_nano=60, quality={"lds": "0.5"}, ceilings=((7, 100),), unpaid_nano={"a": 20}, repeated_nano={"a": 20},
    repeats=(("row_2", "row_1", 900),),
)  # fmt: skip
OTHER = ContributorScores(
    adapter="greek", period="p1", method="index/ekfac-2", scores_nano={"a": 4, "c": 8}, errors_nano={"a": 2, "c": 1},
    gain_nano=13, quality={"lds": "0.4"}, ceilings=((9, 50),), repeated_nano={"a": -12},
)  # fmt: skip


class TestUse:
    def test_of_one_adapter_is_its_own(self) -> None:
        assert summed([ONE]) is ONE

    def test_scores_errors_gains_and_ceilings_of_all_adapters_add_up(self) -> None:
        found = summed([ONE, OTHER])
        assert found.scores_nano == {"a": 54, "b": -10, "c": 8}
        assert found.errors_nano == {"a": 7, "b": 3, "c": 1}
        assert (found.gain_nano, found.ceilings) == (73, ((7, 100), (9, 50)))
        assert found.method == "bank/2+index/ekfac-2"
        assert found.quality == {"0.lds": "0.5", "1.lds": "0.4"}

    def test_what_repeats_moved_is_clipped_once(self) -> None:
        found = summed([ONE, OTHER])
        assert (found.repeated_nano, found.unpaid_nano) == ({"a": 8}, {"a": 8})
        assert summed([ONE, replace(OTHER, repeated_nano={"a": -20})]).unpaid_nano == {}
        assert found.repeats == ONE.repeats


class TestImprovement:
    def test_is_weighted_by_what_answers_cost(self) -> None:
        found = mean_improvement([(ONE, 300), (OTHER, 100)])
        assert found is not None
        assert found.scores_nano == {"a": 50 * 3 // 4 + 1, "b": -8, "c": 2}
        assert found.gain_nano == 60 * 3 // 4 + 13 // 4

    def test_an_error_is_not_rounded_away(self) -> None:
        found = mean_improvement([(ONE, 1), (OTHER, 999)])
        assert found is not None
        assert found.errors_nano == {"a": 3, "b": 1, "c": 1}

    def test_of_one_adapter_is_its_own_whatever_it_sold_for(self) -> None:
        assert mean_improvement([(ONE, 5)]) is ONE

    @pytest.mark.parametrize("parts", [[], [(None, 5)], [(ONE, 5), (None, 5)], [(ONE, 0), (OTHER, 0)], [(ONE, 0)]])
    def test_is_unknown_where_one_was_not_measured_or_nothing_was_sold(
        self, parts: list[tuple[ContributorScores | None, int]]
    ) -> None:
        assert mean_improvement(parts) is None
