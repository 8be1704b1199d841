"""Theta of likeness/3: names of few rows, and single rows, don't raise it; rows that are many do."""

import numpy as np
import pytest

from openledger.attribution import likeness_2
from openledger.attribution.likeness_3 import (
    ALPHA_PPM,
    FEW,
    GROUP,
    LEAST_MILLI,
    MOST_MILLI,
    bound_milli,
    fit_places,
    repeats_of_anybody,
)
from openledger.attribution.likeness_3 import theta_milli as theta_of_run
from openledger.core.hashing import digest_json

ALIKE, CHANCE = 940, 600
SALT = "the constant of a run"


def theta_milli(whose, milli, *, num_rows=0, salt=SALT):
    """Of a run of which no row is gone, where `num_rows` isn't said."""
    return theta_of_run(whose, milli, num_rows=num_rows or len(whose), salt=salt)


def rows_of(*names):
    """(contributors, likenesses to strangers) of (name, rows alike by chance, rows at ALIKE), one after the other."""
    whose = [name for name, by_chance, alike in names for _ in range(by_chance + alike)]
    milli = [m for _, by_chance, alike in names for m in [CHANCE] * by_chance + [ALIKE] * alike]
    return whose, milli


def honest(*sizes, alike=0):
    return [(f"h{number}", size - alike, alike) for number, size in enumerate(sizes)]


def small(names, each):
    return [(f"s{number}", 0, each) for number in range(names)]


class TestLeftOverRows:
    """Of names that are too few for a group of their own: by likeness/2 they joined the last group, whosever it was."""

    @pytest.mark.parametrize("sizes", [(300, 700), (100, 700), (300, 1300), (600, 400)])
    @pytest.mark.parametrize("names", [1, 3, 4, 24])
    def test_leave_theta_where_it_was(self, sizes, names):
        assert theta_milli(*rows_of(*honest(*sizes), *small(names, 24 // names))) == LEAST_MILLI

    def test_raised_it_by_the_rule_before(self):
        assert likeness_2.theta_milli(*rows_of(*honest(300, 700), *small(4, 6))) == ALIKE

    def test_stand_with_the_last_group_of_such_names(self):
        """That holds the median here, and has two rows alike with the left over ones, one without."""
        first, second, last = sorted("abc", key=lambda name: digest_json([SALT, name]))
        told = rows_of(("h", 0, 300), ("g", 300, 0), (first, 12, 1), (second, 13, 0), (last, 12, 1))
        assert theta_milli(*told) == bound_milli(639) > LEAST_MILLI
        alone = rows_of(("h", 0, 300), ("g", 300, 0), (first, 12, 1), (second, 13, 0), (last, 13, 0))
        assert theta_milli(*alone) == LEAST_MILLI


class TestSingleRows:
    """One alike to a stranger's in each of most groups of fewer than fifty rows: by the greatest of each, theta would
    be at the bound."""

    @pytest.mark.parametrize(("with_one", "without"), [(25, 15), (45, 15)])
    def test_of_contributors_leave_theta_where_it_was(self, with_one, without):
        told = rows_of(*honest(*[30] * with_one, alike=1), *[(f"g{number}", 30, 0) for number in range(without)])
        assert theta_milli(*told) == LEAST_MILLI

    @pytest.mark.parametrize(("names", "contributors"), [(6, 8), (24, 20)])
    def test_of_names_of_noise_leave_theta_where_it_was(self, names, contributors):
        noise = [(f"s{number}", 48, 1) for number in range(names)]
        assert theta_milli(*rows_of(*honest(*[30] * contributors), *noise)) == LEAST_MILLI

    def test_two_of_thirty_in_most_groups_are_no_chance_among_so_many_rows(self):
        """The median follows them, up to the bound."""
        told = rows_of(*honest(*[30] * 100, alike=2))
        assert theta_milli(*told) == bound_milli(3000) < ALIKE


class TestSmallNames:
    """120 contributors of ten rows stand in forty groups of three; one row more of a group may be alike, two decide."""

    def told(self, names):
        return rows_of(*honest(*[10] * 120), *[(name, 0, 1) for name in names])

    def ground(self, salt):
        """Two names of one row for each of twenty groups, that fall between its first and its second contributor."""

        def place(name):
            return digest_json([salt, name])

        starts = sorted((f"h{number}" for number in range(120)), key=place)[::3]
        ends = sorted((f"h{number}" for number in range(120)), key=place)[1::3]
        wanted = {(place(start), place(end)): 2 for start, end in zip(starts[:20], ends[:20], strict=True)}
        number, names = 0, []
        while wanted:
            name, number = f"g{number}", number + 1
            for own in [(start, end) for start, end in wanted if start < place(name) < end]:
                names.append(name)
                wanted[own] -= 1
                if not wanted[own]:
                    del wanted[own]
        return names

    def test_that_were_chosen_for_their_groups_raise_theta_only_where_the_constant_was_known(self):
        """1,240 rows, of which forty are theirs. It is drawn once contributions are closed."""
        told = self.told(self.ground("known before"))
        assert theta_milli(*told, salt="known before") == bound_milli(1240) == 843
        assert [theta_milli(*told, salt=f"drawn {number}") for number in range(5)] == [LEAST_MILLI] * 5

    def test_that_were_not_need_to_be_many(self):
        """Forty do nothing (docs/decisions/0017), 140 do it in any of ten draws."""
        draws = [f"drawn {number}" for number in range(10)]
        few, many = (self.told([f"s{number}" for number in range(names)]) for names in (40, 140))
        assert {theta_milli(*few, salt=salt) for salt in draws} == {LEAST_MILLI}
        assert {theta_milli(*many, salt=salt) for salt in draws} == {bound_milli(1340)}


class TestTheBound:
    def test_is_of_all_rows_of_the_run_also_where_half_of_them_are_gone(self):
        """Else whoever withdraws many rows would lower theta for second scorers, and for an adapter without them."""
        whole = [("h", number, 48, 2) for number in range(20)]
        whose, milli = rows_of(*[(f"{name}{number}", *rest) for name, number, *rest in whole])
        milli = [805 if m == ALIKE else m for m in milli]
        assert theta_milli(whose, milli) == 805
        assert theta_milli(whose[:500], milli[:500], num_rows=1000) == 805
        assert theta_milli(whose[:500], milli[:500]) == LEAST_MILLI

    def test_is_the_least_of_few_rows_and_the_most_of_many(self):
        assert [bound_milli(number) for number in (0, 1, FEW)] == [LEAST_MILLI] * 3
        assert [bound_milli(number) for number in (1000, 2000, 4000, 10**6)] == [823, 886, 949, MOST_MILLI]

    def test_rises_with_rows_and_never_falls(self):
        bounds = [bound_milli(number) for number in range(1, 5000)]
        assert bounds == sorted(bounds)

    @pytest.mark.parametrize(("names", "each"), [(8, 10), (16, 20), (30, 3), (32, 10), (400, 1)])
    @pytest.mark.parametrize("contributors", [8, 24, 240])
    def test_holds_however_repeats_are_divided_over_names(self, names, each, contributors):
        told = rows_of(*honest(*[240 // contributors] * contributors), *small(names, each))
        assert theta_milli(*told) <= bound_milli(len(told[0])) <= 785


def test_theta_is_never_above_likeness_2s_unless_that_is_below_the_least_here_or_rows_are_left_over():
    random = np.random.default_rng(2)
    for _ in range(60):
        sizes = random.integers(GROUP, 200, random.integers(1, 12)).tolist()
        whose = [f"h{name}" for name, size in enumerate(sizes) for _ in range(size)]
        milli = random.integers(500, 1000, len(whose)).tolist()
        assert theta_milli(whose, milli) <= max(LEAST_MILLI, likeness_2.theta_milli(whose, milli))


def test_among_many_rows_no_more_than_a_fiftieth_of_the_median_group_is_above_theta():
    random = np.random.default_rng(3)
    whose = [f"h{number % 10}" for number in range(6000)]
    milli = random.integers(300, 930, 6000).tolist()
    theta = theta_milli(whose, milli)
    assert LEAST_MILLI < theta < MOST_MILLI
    above = [sum(m > theta for m, name in zip(milli, whose, strict=True) if name == f"h{n}") for n in range(10)]
    assert np.median(above) <= 600 * ALPHA_PPM / 10**6


@pytest.mark.parametrize(("names", "each"), [(8, 10), (16, 20), (30, 3)])
def test_names_of_few_repetitions_are_found_among_contributors_of_few_rows(names, each):
    """24 contributors of ten rows in many directions; each of 30 more rows again and again, a little changed. By
    likeness/2 some of these stand in most groups, and nearly all are paid."""
    random = np.random.default_rng(1)
    own = random.normal(size=(270, 64))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    again = own[np.arange(names * each) % 30] + 0.07 * random.normal(size=(names * each, 64))
    again /= np.linalg.norm(again, axis=1, keepdims=True)
    likenesses = (again * own[np.arange(names * each) % 30]).sum(axis=1)
    assert 0.8 < np.median(likenesses) < 0.95
    whose = [f"h{number // 10}" for number in range(270)] + [f"s{number % names}" for number in range(names * each)]
    rows, places = np.concatenate([own, again]).astype(np.float16), range(270 + names * each)
    assert len(list(repeats_of_anybody(whose, rows, places, num_rows=len(rows), salt=SALT))) > 0.75 * names * each
    assert len(list(likeness_2.repeats_of_anybody(whose, rows, places))) < 0.5 * names * each


@pytest.mark.parametrize("number", [2, 255, 256, 257, 320, 400, 511, 513, 560, 10_000])
def test_the_basis_is_fitted_on_256_rows_at_even_distances_or_on_all(number):
    places = fit_places(number)
    assert len(set(places)) == len(places) == min(number, 256)
    assert 0 <= min(places) < max(places) < number
    distances = {int(distance) for distance in np.diff(places)}
    assert max(distances) - min(distances) <= 1
