"""Scores of several generations brought together: what each added, and nothing twice."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openledger.adapters.card import AdapterCard
from openledger.adapters.lineage import Lineage
from openledger.attribution.generations import GenerationScores, combined
from openledger.core.errors import InvalidInput, NotFound
from openledger.core.shares import shares_ppb
from openledger.core.values import ContributorScores


def card(digest, *parents):
    return AdapterCard(
        name=digest, digest=digest, base_model="b", base_digest="base", datanet="d", datanet_version=1, row_root="00",
        rows_trained=(), contributors={}, recipe={}, environment={}, code_version="0", initial_a="", final_loss=1.0,
        parents=tuple((parent, "1") for parent in parents),
    )  # fmt: skip


LINE = Lineage([card("one"), card("two", "one"), card("three", "two")])


def own(gain_nano, errors=None, **scores_nano):
    return ContributorScores(
        adapter="greek", period="p1", method="bank/1", scores_nano=scores_nano,
        errors_nano=errors or dict.fromkeys(scores_nano, 1), gain_nano=gain_nano, quality={"lds": "0.5"},
    )  # fmt: skip


def generation(gain_nano, scores, **parents):
    return GenerationScores(gain_nano=gain_nano, parent_gains_nano=parents, scores=scores)


MEASURED = {
    "one": generation(600, own(600, ada=500, bob=100)),
    "two": generation(900, own(300, bob=300), one=600),
    "three": generation(1000, own(100, cyd=80), two=900),
}


def test_where_every_generation_added_something_influences_add_up():
    found = combined(LINE, "three", MEASURED)
    assert found.scores_nano == {"ada": 500, "bob": 400, "cyd": 80}
    assert found.errors_nano == {"ada": 1, "bob": 2, "cyd": 1}  # bob's two errors may be one
    assert found.gain_nano == 1000
    assert found.method == "bank/1 through lineage/1"


def test_what_is_unpaid_adds_up_as_scores_do_and_a_row_of_two_generations_is_named_once():
    one, two = (
        replace(MEASURED[name].scores, repeated_nano={"bob": 40}, repeats=rows) for name, rows in REPEATS.items()
    )
    measured = {
        **MEASURED,
        "one": replace(MEASURED["one"], scores=one),
        "two": replace(MEASURED["two"], scores=two),
    }
    found = combined(LINE, "three", measured)
    assert found.unpaid_nano == {"bob": 80}
    assert sorted(found.repeats) == [("r1", "r0", 900), ("r2", "r0", 850)]


def test_what_repeated_rows_moved_is_clipped_once_over_all_generations():
    def found(**repeated):
        told = {name: replace(MEASURED[name].scores, repeated_nano={"bob": nano}) for name, nano in repeated.items()}
        return combined(LINE, "three", MEASURED | {n: replace(MEASURED[n], scores=own) for n, own in told.items()})

    assert (found(one=50, two=-30).unpaid_nano, found(one=50, two=-30).repeated_nano) == ({"bob": 20}, {"bob": 20})
    assert (found(one=50, two=-60).unpaid_nano, found(one=50, two=-60).repeated_nano) == ({}, {"bob": -10})


REPEATS = {"one": (("r1", "r0", 900),), "two": (("r1", "r0", 900), ("r2", "r0", 850))}


def test_the_quality_says_how_each_generation_was_measured():
    quality = combined(LINE, "three", MEASURED).quality
    assert quality["generations"] == "3"
    assert (quality["0.adapter"], quality["2.adapter"]) == ("three", "one")
    assert (quality["1.added_nano"], quality["1.gain_nano"], quality["1.factor"]) == ("300", "900", "1")
    assert (quality["2.method"], quality["2.lds"]) == ("bank/1", "0.5")


def test_a_generation_that_added_nothing_gets_nothing_and_scales_what_came_before_to_what_is_left():
    measured = {
        **MEASURED,
        "two": generation(450, own(-150, bob=0), one=600),
        "three": generation(500, own(50, cyd=50), two=450),
    }
    found = combined(LINE, "three", measured)
    # the third's part is 50 of 500, the rest is the first's: 450 of the 600 that it brought
    assert found.scores_nano == {"ada": 375, "bob": 75, "cyd": 50}
    assert found.quality["1.factor"] == "0"


def under(pair, scores):
    return replace(scores, ceilings=(pair,))


def test_the_ceiling_that_every_generation_was_measured_under_is_that_of_the_whole():
    pair = (1_500_000_000, 1000)
    measured = {name: replace(each, scores=under(pair, each.scores)) for name, each in MEASURED.items()}
    found = combined(LINE, "three", measured)
    assert found.ceilings == (pair,)
    shares = shares_ppb(found.scores_nano, found.errors_nano, found.gain_nano, 0, ceilings=found.ceilings)
    assert shares["ada"] == 500 * 10**9 // 1500
    assert combined(LINE, "three", MEASURED).ceilings == ()
    measured["two"] = replace(MEASURED["two"], scores=under((2_000_000_000, 1000), MEASURED["two"].scores))
    with pytest.raises(InvalidInput) as caught:
        combined(LINE, "three", measured)
    assert (caught.value.code, caught.value.param) == ("invalid_generation", "ceilings")


def test_an_adapter_that_gained_nothing_owes_nobody():
    found = combined(LINE, "three", {**MEASURED, "three": generation(-5, own(-905, cyd=0), two=900)})
    assert set(found.scores_nano.values()) == {0}
    shares = shares_ppb(found.scores_nano, found.errors_nano, found.gain_nano, 1000)
    assert shares["unattributed"] == 10**9


def test_a_merge_pays_both_lines_and_has_no_part_of_its_own():
    lineage = Lineage([card("left"), card("right"), card("merge", "left", "right")])
    measured = {
        "left": generation(400, own(400, ada=400)),
        "right": generation(500, own(500, dan=500)),
        "merge": generation(800, None, left=Fraction(700, 2), right=450),
    }
    found = combined(lineage, "merge", measured)
    assert found.scores_nano == {"ada": 350, "dan": 450}
    assert (found.gain_nano, found.quality["0.gain_nano"]) == (800, "800")
    assert "0.factor" not in found.quality


def test_a_contributor_is_clipped_once_over_all_generations():
    measured = {**MEASURED, "two": generation(900, own(300, bob=-250, eve=550), one=600)}
    found = combined(LINE, "three", measured)
    assert found.scores_nano["bob"] == -150
    assert shares_ppb(found.scores_nano, found.errors_nano, found.gain_nano, 0)["bob"] == 0


@pytest.mark.parametrize(
    ("measured", "code"),
    [
        ({name: MEASURED[name] for name in ("two", "three")}, "unmeasured_generation"),
        ({**MEASURED, "two": replace(MEASURED["two"], parent_gains_nano={"other": 600})}, "invalid_generation"),
        ({name: replace(each, scores=None) for name, each in MEASURED.items()}, "invalid_generation"),
    ],
)
def test_measures_that_do_not_fit_the_cards_are_refused(measured, code):
    with pytest.raises((NotFound, InvalidInput)) as caught:
        combined(LINE, "three", measured)
    assert caught.value.code == code


@given(st.lists(st.integers(-(10**12), 10**12), min_size=3, max_size=3), st.integers(0, 10**6))
def test_by_an_index_all_that_is_owed_is_the_gain_at_most(gains, part):
    """An index's scores sum to what a generation added, or are zero."""
    measured = {}
    for place, name in enumerate(("one", "two", "three")):
        before = gains[place - 1] if place else 0
        added = max(0, gains[place] - before)
        first = added * part // 10**6
        measured[name] = generation(
            gains[place], own(added, **{f"a{place}": first, f"b{place}": added - first}),
            **({("one", "two")[place - 1]: before} if place else {}),
        )  # fmt: skip
    found = combined(LINE, "three", measured)
    assert all(score >= 0 for score in found.scores_nano.values())
    assert abs(sum(found.scores_nano.values()) - max(0, gains[2])) <= 3  # rounded once for each of six
