"""From row scores to a period's contributor scores."""

from dataclasses import replace

import numpy as np
import pytest

from openledger.attribution import coalitions
from openledger.attribution.index import IndexEntry
from openledger.attribution.likeness import Repeat
from openledger.attribution.period import Measurement, contributor_scores, fit_bank, fit_outcomes, fitted_scores
from openledger.core.errors import InvalidInput
from openledger.core.shares import shares_ppb
from openledger.core.values import UNATTRIBUTED


def bank_scores(adapter, period, rows, scores, weights_nano, gains, bank, *, least_error_scale=1.0, **more):
    fit = fit_bank(rows, scores, weights_nano, gains, bank, least_error_scale=least_error_scale)
    return fitted_scores(adapter, period, rows, fit, **more)


def entries(*trained_by: str, decoys: int = 2) -> list[IndexEntry]:
    rows = [IndexEntry(row_id=f"r{n}", contributor_id=c, trained=True) for n, c in enumerate(trained_by)]
    return rows + [IndexEntry(row_id=f"d{n}", contributor_id="a", trained=False) for n in range(decoys)]


def period(rows, scores, fees=(10**9,), gains=(1.0,)):
    matrix = np.array(scores, dtype=np.float32).reshape(len(rows), -1)
    return contributor_scores("adapter", "p0001", rows, matrix, list(fees), list(gains))


def test_scores_sum_to_the_measured_gain():
    result = period(entries("a", "a", "b"), [0.3, 0.1, 0.2, 0.0, 0.0])
    assert sum(result.scores_nano.values()) == result.gain_nano == 10**9


def test_decoys_earn_nothing_and_widen_everyones_error():
    quiet = period(entries("a", "b"), [0.3, 0.1, 0.0, 0.0])
    noisy = period(entries("a", "b"), [0.3, 0.1, 0.1, -0.1])
    assert quiet.scores_nano == noisy.scores_nano
    assert quiet.errors_nano == {"a": 0, "b": 0}
    assert min(noisy.errors_nano.values()) > 0


def test_splitting_rows_over_two_names_changes_no_sum():
    alone = period(entries("a", "a", "b"), [0.3, 0.1, 0.2, 0.0, 0.0])
    split = period(entries("a1", "a2", "b"), [0.3, 0.1, 0.2, 0.0, 0.0])
    assert split.scores_nano["a1"] + split.scores_nano["a2"] == pytest.approx(alone.scores_nano["a"], abs=1)


def test_an_adapter_that_gained_nothing_pays_nobody():
    result = period(entries("a", "b"), [0.3, 0.1, 0.0, 0.0], gains=(-0.5,))
    shares = shares_ppb(result.scores_nano, result.errors_nano, result.gain_nano, 1000)
    assert shares[UNATTRIBUTED] == 10**9


def test_without_decoys_nobody_is_paid_on_a_score_of_unknown_error():
    result = period(entries("a", "b", decoys=0), [0.3, 0.1])
    shares = shares_ppb(result.scores_nano, result.errors_nano, result.gain_nano, 1000)
    assert shares == {"a": 0, "b": 0, UNATTRIBUTED: 10**9}
    assert result.quality["decoy_rms"] == "unknown"


def test_an_answer_counts_as_much_as_was_paid_for_it():
    rows = entries("a", "b", decoys=0)
    result = period(rows, [[1.0, 0.0], [0.0, 1.0]], fees=(3 * 10**9, 10**9), gains=(1.0, 1.0))
    assert result.scores_nano["a"] == 3 * result.scores_nano["b"]


@pytest.mark.parametrize("scores", [[0.3, 0.1, 0.0], [0.3, float("nan"), 0.0, 0.0]])
def test_scores_that_do_not_fit_or_are_not_finite_are_refused(scores):
    matrix = np.array(scores, dtype=np.float32).reshape(-1, 1)
    with pytest.raises(InvalidInput):
        contributor_scores("x", "p", entries("a", "b"), matrix, [1], [1.0])


def bank_period(people, true, groups=None, number=32, noise=0.05, answers=6, decoy=0.0, gain=2.0, **more):
    """A simulated bank whose members' outcomes are sums of `true` influence (per contributor), and an index that is
    right up to scale."""
    random = np.random.default_rng(0)
    rows = [IndexEntry(row_id=f"r{n}", contributor_id=who, trained=True) for n, who in enumerate(people)]
    rows.append(IndexEntry(row_id="d0", contributor_id="a", trained=False))
    design = coalitions.contributor_design({who: people.count(who) for who in people}, number, "constant", groups)
    members = [
        {who for group, on in zip(design.groups, line, strict=True) if on for who in group}
        for line in design.members_MG
    ]
    outcomes = np.array([[sum(true[who] for who in there)] * answers for there in members])
    outcomes = outcomes + random.normal(size=outcomes.shape) * noise
    index = np.array(
        [
            [true[e.contributor_id] / people.count(e.contributor_id) * 9 if e.trained else 9 * decoy] * answers
            for e in rows
        ]
    )
    scores = index.astype(np.float32)
    bank = fit_outcomes(design, outcomes, rows, scores)
    return bank_scores("adapter", "p0001", rows, scores, [10**9] * answers, [gain] * answers, bank, **more)


def test_a_banks_scores_are_the_true_influence_within_their_errors():
    true = {"a": 0.5, "b": 0.1, "c": -0.2, "d": 0.0}
    result = bank_period(["a", "a", "b", "c", "d"], true)
    for who, value in true.items():
        assert abs(result.scores_nano[who] - value * 6 * 10**9) < 3 * result.errors_nano[who]
        assert 0 < result.errors_nano[who] < 0.3 * 6 * 10**9
    assert result.gain_nano == 12 * 10**9
    assert (result.method, result.quality["quantity"]) == ("bank/2", "expected")


EIGHT = dict(zip("abcdefgh", (0.6, 0.0, 0.2, 0.2, 0.1, 0.3, -0.1, 0.1), strict=True))


def test_contributors_of_one_group_are_told_apart_by_the_index():
    result = bank_period(list(EIGHT), EIGHT, groups=4, number=8)
    assert result.quality["groups"] == "4"
    assert max(result.scores_nano, key=lambda who: result.scores_nano[who]) == "a"
    assert sum(result.scores_nano.values()) == pytest.approx(6 * 1.4 * 10**9, rel=0.2)


def test_two_in_one_group_are_each_known_less_well_than_alone():
    together = bank_period(list(EIGHT), EIGHT, groups=4, number=8)
    alone = bank_period(list(EIGHT), EIGHT, number=32)
    assert all(together.errors_nano[who] > alone.errors_nano[who] for who in EIGHT)


def test_a_group_whose_index_is_worth_nothing_is_not_divided_by_one_outlier():
    """The index says that one row is worth more than all others and is wrong: the bank finds its scale to be zero."""
    rows = [IndexEntry(row_id=f"r{n}", contributor_id=who, trained=True) for n, who in enumerate("abcdefgh")]
    design = coalitions.contributor_design(dict.fromkeys("abcdefgh", 1), 8, "constant", 4)
    outcomes = design.members_MG.sum(axis=1, keepdims=True) * 0.5 + np.zeros((1, 6))
    scores = np.zeros((8, 6), dtype=np.float32)
    scores[0] = -5.0
    bank = fit_outcomes(design, outcomes + 0.01 * np.random.default_rng(0).normal(size=outcomes.shape), rows, scores)
    result = bank_scores("adapter", "p0001", rows, scores, [10**9] * 6, [2.0] * 6, bank)
    partner = next(name for group in design.groups if "a" in group for name in group if name != "a")
    assert abs(result.scores_nano["a"] - result.scores_nano[partner]) < result.errors_nano["a"]


def test_a_bank_of_an_adapter_that_gained_nothing_pays_nobody():
    result = bank_period(list("abcd"), {"a": 0.5, "b": 0.1, "c": -0.2, "d": 0.0}, gain=-0.5)
    assert set(result.scores_nano.values()) == set(result.errors_nano.values()) == {0}
    shares = shares_ppb(result.scores_nano, result.errors_nano, result.gain_nano, 1000)
    assert shares[UNATTRIBUTED] == 10**9


def test_what_a_withdrawn_row_was_owed_is_nobodys():
    whole = period(entries("a", "a", "b"), [0.3, 0.1, 0.2, 0.0, 0.0])
    rows, matrix = entries("a", "a", "b"), np.array([[0.3], [0.1], [0.2], [0.0], [0.0]], dtype=np.float32)
    left = contributor_scores("adapter", "p0001", rows, matrix, [10**9], [1.0], withdrawn={"r0"})
    assert left.scores_nano["b"] == whole.scores_nano["b"]
    assert left.scores_nano["a"] == pytest.approx(whole.scores_nano["a"] / 4, rel=1e-6)
    assert left.gain_nano == whole.gain_nano
    people = ["a", "a", "b", "c", "d"]
    true = {"a": 0.5, "b": 0.1, "c": 0.2, "d": 0.0}
    full, less = bank_period(people, true), bank_period(people, true, withdrawn={"r0"})
    assert less.scores_nano["a"] == pytest.approx(full.scores_nano["a"] / 2, rel=1e-6)
    assert {who: less.scores_nano[who] for who in "bcd"} == {who: full.scores_nano[who] for who in "bcd"}


def test_what_repeated_rows_moved_is_stated_beside_the_score_and_changes_nothing_else():
    rows, matrix = entries("a", "a", "b"), np.array([[0.3], [0.1], [0.2], [0.0], [0.0]], dtype=np.float32)
    whole = contributor_scores("adapter", "p0001", rows, matrix, [10**9], [1.0])
    stated = contributor_scores("adapter", "p0001", rows, matrix, [10**9], [1.0], repeats={"r1"})
    assert stated.unpaid_nano == {"a": pytest.approx(10**9 / 6, rel=1e-6)}  # 0.1 of 0.6, of a gain of 1
    assert replace(stated, unpaid_nano={}, repeated_nano={}) == whole
    people, true = ["a", "a", "b", "c", "d"], {"a": 0.5, "b": 0.1, "c": 0.2, "d": 0.0}
    full, less = bank_period(people, true), bank_period(people, true, repeats={"r0"})
    assert less.unpaid_nano == {"a": pytest.approx(full.scores_nano["a"] / 2, rel=1e-6)}
    assert replace(less, unpaid_nano={}, repeated_nano={}) == full


def test_repeated_rows_that_moved_answers_to_the_worse_still_count():
    rows, matrix = entries("a", "a", "b"), np.array([[0.4], [-0.1], [0.2], [0.0], [0.0]], dtype=np.float32)
    stated = contributor_scores("adapter", "p0001", rows, matrix, [10**9], [1.0], repeats={"r1"})
    assert (stated.unpaid_nano, stated.repeated_nano) == ({}, {"a": pytest.approx(-(10**9) / 5, rel=1e-6)})
    assert stated.scores_nano["a"] == pytest.approx(10**9 * 0.3 / 0.5, rel=1e-6)


def test_a_withdrawn_row_is_no_unpaid_repeat_too():
    rows, matrix = entries("a", "a", "b"), np.array([[0.3], [0.1], [0.2], [0.0], [0.0]], dtype=np.float32)
    given = {"withdrawn": {"r1"}, "repeats": {"r1"}}
    assert contributor_scores("adapter", "p0001", rows, matrix, [10**9], [1.0], **given).unpaid_nano == {}
    people, true = ["a", "a", "b", "c", "d"], {"a": 0.5, "b": 0.1, "c": 0.2, "d": 0.0}
    assert bank_period(people, true, withdrawn={"r0"}, repeats={"r0"}).unpaid_nano == {}


def test_outcomes_of_another_number_of_answers_and_a_bank_of_two_are_refused():
    design = coalitions.contributor_design({"a": 1, "b": 1}, 2, "constant")
    scores = np.ones((4, 2), dtype=np.float32)
    with pytest.raises(InvalidInput):
        fit_outcomes(design, np.ones((2, 3)), entries("a", "b"), scores)
    bank = fit_outcomes(design, np.array([[0.0, 1.0], [1.0, 0.0]]), entries("a", "b"), scores)
    with pytest.raises(InvalidInput) as caught:
        bank_scores("adapter", "p", entries("a", "b"), scores, [1, 1], [1.0, 1.0], bank)
    assert caught.value.code == "small_bank"


@pytest.mark.parametrize("with_bank", [False, True])
def test_a_measurement_tells_answers_held_out_rows_and_one_answer_apart(with_bank):
    rows = [IndexEntry(row_id=f"r{n}", contributor_id=who, trained=True) for n, who in enumerate("abcd")]
    rows.append(IndexEntry(row_id="d0", contributor_id="a", trained=False))
    random = np.random.default_rng(1)
    scores = np.abs(random.normal(size=(5, 6))).astype(np.float32)
    scores[4] *= 0.01
    design = coalitions.contributor_design(dict.fromkeys("abcd", 1), 8, "constant")
    outcomes = design.members_MG @ scores[:4] + 0.05 * random.normal(size=(8, 6))
    measured = Measurement(
        adapter="adapter", period="p0001", entries=tuple(rows), scores=scores,
        weights_nano=(10**9, 2 * 10**9, 0, 10**9),
        gains=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
        fees_nano=(10**9, 2 * 10**9, 10**9, 10**9),
        bank=fit_outcomes(design, outcomes, rows, scores) if with_bank else None,
    )  # fmt: skip
    assert measured.use().gain_nano == 9 * 10**9
    assert measured.use().ceilings == ((5_250_000_000, 5 * 10**9),)  # the mean of 5 and min(6, 5.5)
    assert measured.improvement().ceilings == measured.answer(0).ceilings == ()
    assert measured.improvement().gain_nano == 11 * 10**9
    assert [measured.answer(number).gain_nano for number in range(4)] == [10**9, 2 * 10**9, 3 * 10**9, 4 * 10**9]
    assert replace(measured, scores=scores[:, :4], gains=(1.0, 2.0, 3.0, 4.0), bank=None).improvement() is None


def test_a_bank_is_fitted_once_to_each_part_for_contributors_and_for_rows(monkeypatch):
    people = [who for who in "abcd" for _ in range(4)]
    rows, random = entries(*people, decoys=1), np.random.default_rng(1)
    found = coalitions.design([(e.row_id, e.contributor_id) for e in rows if e.trained], 8, "constant", 4)
    scores = random.normal(size=(len(rows), 5)).astype(np.float32)
    outcomes = found.members_MG @ random.normal(size=(len(found.groups), 5))
    measured = Measurement(
        adapter="adapter", period="p0001", entries=tuple(rows), scores=scores, weights_nano=(10**9,) * 3,
        gains=(1.0,) * 5, bank=fit_outcomes(found, outcomes, rows, scores),
    )  # fmt: skip
    fitted = []

    def counted(*given, **named):
        fitted.append(given)
        return fit_bank(*given, **named)

    monkeypatch.setattr("openledger.attribution.period.fit_bank", counted)
    use, improvement = (measured.use(), measured.use_rows()), (measured.improvement(), measured.improvement_rows())
    for scored, rows_of in (use, improvement):
        for name, nano in scored.scores_nano.items():
            own = [entry.contributor_id == name for entry in rows if entry.trained]
            assert rows_of.influence_R[own].sum() * 1e9 == pytest.approx(nano, abs=1)
    assert len(fitted) == 2
    assert (measured.use(), len(fitted)) == (measured.use(), 2)
    assert measured.answer(0) != measured.answer(1)


def measured_with(held_out, gains=(1.0, 4.0, -1.0), weights=(10**9, 10**9, 10**9)):
    """Two contributors, each answer owing something else to them; answers of `gains`, held-out rows of `held_out`."""
    scores = np.array([[0.3, 0.1, 0.2], [0.1, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    scores = np.hstack([scores, np.full((3, len(held_out)), 0.1, dtype=np.float32)])
    return Measurement(
        adapter="adapter", period="p0001", entries=tuple(entries("a", "b", decoys=1)), scores=scores,
        weights_nano=weights, gains=(*gains, *held_out), fees_nano=(10**9,) * 3,
    )  # fmt: skip


def test_an_answer_above_the_held_out_gain_counts_for_as_much_of_its_fee():
    use = measured_with([1.0, 3.0]).use()
    assert use.gain_nano == (1 + 2 - 1) * 10**9  # the second counts for half of its fee
    assert use.ceilings == ((1_500_000_000, 3 * 10**9),)  # 1, and 3 up to 2
    assert (use.quality["ceiling"], use.quality["fees_counted"]) == ("2", "0.833333")


def test_an_answer_marked_wrong_counts_nothing_and_its_fee_goes_to_nobody_elses_answer():
    use = measured_with([2.0, 2.0], weights=(10**9, 0, 10**9), gains=(1.0, 4.0, 0.5)).use()
    assert use.gain_nano == 1_500_000_000
    shares = shares_ppb(use.scores_nano, use.errors_nano, use.gain_nano, 0, ceilings=use.ceilings)
    assert 10**9 - shares[UNATTRIBUTED] == pytest.approx(10**9 * 1.5 / 6, abs=3)  # of 2 nats for each of three fees


def test_what_rows_that_the_index_lacks_brought_is_nobodys():
    whole = measured_with([])
    use, part = whole.use(), replace(whole, num_gone=1).use()  # of three trained rows
    assert part.gain_nano == use.gain_nano
    assert part.scores_nano == {name: value * 2 // 3 for name, value in use.scores_nano.items()}
    assert part.errors_nano == {name: -(-value * 2 // 3) for name, value in use.errors_nano.items()}
    assert part.quality["gone_rows"] == "1"
    own = whole.entries[0]
    repeats = (Repeat(row_id=own.row_id, earlier="other", likeness_milli=900, contributor_id="x"),)
    stated, half = (replace(whole, repeats=repeats, num_gone=gone).use() for gone in (0, 1))
    assert stated.repeats == ((own.row_id, "other", "x", 900),)
    assert half.unpaid_nano == {own.contributor_id: -(-stated.unpaid_nano[own.contributor_id] * 2 // 3)}
    assert "gone_rows" not in use.quality


def test_a_repeat_names_whose_the_earlier_row_is_and_none_is_named_that_the_index_lacks():
    """Lists of before have rows of one contributor alone, and don't say whose."""
    whole = measured_with([])
    own = whole.entries[0]
    of_before = Repeat(row_id=own.row_id, earlier="other", likeness_milli=900)
    gone = Repeat(row_id="gone", earlier=own.row_id, likeness_milli=900, contributor_id=own.contributor_id)
    stated = replace(whole, repeats=(of_before, gone)).use()
    assert stated.repeats == ((own.row_id, "other", own.contributor_id, 900),)


@pytest.mark.parametrize("held_out", [[], [-1.0, 0.5], [0.0]])
def test_without_a_gain_on_held_out_rows_fees_count_whole(held_out):
    use = measured_with(held_out, gains=(1.0, 4.0, 1.0)).use()
    assert use.gain_nano == 6 * 10**9
    assert use.ceilings == ((0, 3 * 10**9),)
    assert (use.quality["ceiling"], use.quality["fees_counted"]) == ("none", "1")


def test_with_blocks_rows_are_worth_the_same_under_any_number_of_names():
    """Every row is worth as much as any other; `a` sends eight of forty under one name or under eight."""
    for names in (["a"] * 8, [f"a{n}" for n in range(8)]):
        people = [*names, *(who for who in "bcde" for _ in range(8))]
        found = block_period(people)
        own = sum(value for name, value in found.scores_nano.items() if name.startswith("a"))
        assert own == pytest.approx(6 * 10**9 * 8 * 0.05, rel=0.1)
        assert found.quality["players"] == "blocks"


def block_period(people):
    random = np.random.default_rng(0)
    rows = entries(*people, decoys=1)
    found = coalitions.design([(e.row_id, e.contributor_id) for e in rows if e.trained], 32, "constant", 8)
    outcomes = 0.05 * found.members_MG @ np.array([[len(group)] * 6 for group in found.groups])
    outcomes = outcomes + 0.002 * random.normal(size=outcomes.shape)
    scores = np.array([[0.05 if entry.trained else 0.0] * 6 for entry in rows], dtype=np.float32)
    bank = fit_outcomes(found, outcomes, rows, scores)
    return bank_scores("adapter", "p0001", rows, scores, [10**9] * 6, [2.0] * 6, bank)


def test_an_audit_that_found_errors_too_small_makes_them_larger():
    true = {"a": 0.5, "b": 0.1, "c": -0.2, "d": 0.0}
    plain = bank_period(list("abcd"), true)
    audited = bank_period(list("abcd"), true, least_error_scale=3.0)
    assert audited.scores_nano == plain.scores_nano
    ratio = float(audited.quality["error_scale"]) / float(plain.quality["error_scale"])
    assert audited.errors_nano["a"] == pytest.approx(ratio * plain.errors_nano["a"], rel=1e-3)
    assert float(audited.quality["error_scale"]) == pytest.approx(3 * (31 / 29) ** 0.5, abs=0.3)
