"""The red team's other ways of paying do what they say: else their figures would speak for or against another rule."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import redteam_ways as ways
from benchmarks.digits_task import Digit
from benchmarks.redteam_pay import shipped_pay
from benchmarks.redteam_world import Constants, DigitsKit, Observed
from openledger.attribution.coalitions import deal_blocks, design
from openledger.attribution.index import IndexEntry
from openledger.attribution.likeness import Repeat, Repeats
from openledger.core.values import UNATTRIBUTED

SOLD, HELD_OUT = 6, 4


def entry(row_id: str, contributor: str, *, trained: bool = True) -> IndexEntry:
    return IndexEntry(row_id=row_id, contributor_id=contributor, trained=trained)


def digits(number: int, contributors: int) -> list[Digit]:
    draw = np.random.default_rng(3)
    return [Digit(f"d{n:03}", f"c{n % contributors}", tuple(draw.random(64).tolist()), n % 10) for n in range(number)]


def banked(effect_RQ: list[list[float]], who: list[str], repeats: tuple[Repeat, ...] = ()) -> ways.Banked:
    """A bank of a run in which every row moves every question by what `effect_RQ` says, nearly."""
    effects, draw = np.array(effect_RQ), np.random.default_rng(0)
    rows = [(f"r{n:02}", name) for n, name in enumerate(who)]
    plan = design(rows, 32, "constant")
    group_R = plan.numbers(rows)
    blocks_GQ = np.stack([effects[group_R == group].sum(axis=0) for group in range(len(plan.groups))])
    outcomes_MQ = plan.members_MG @ blocks_GQ
    observed = Observed(
        who=tuple(who),
        row_ids=tuple(row_id for row_id, _ in rows),
        num_sold=SOLD,
        wrong_Q=np.zeros(SOLD + HELD_OUT, dtype=bool),
        groups=plan.groups,
        members_MG=plan.members_MG,
        outcomes_MQ=outcomes_MQ + 0.01 * draw.standard_normal(outcomes_MQ.shape),
        gains_Q=effects.sum(axis=0),
        index_RQ=effects + 0.01 * draw.standard_normal(effects.shape),
        repeats=Repeats(own=(), anybodys=repeats),
    )
    return ways.Banked.of(observed, np.ones(SOLD))


def good_and_false() -> ways.Banked:
    """Four contributors of eight rows: `f` makes the answers sold likelier, and the held-out ones less likely."""
    who = [name for name in "abcf" for _ in range(8)]
    effects = [[0.1] * SOLD + [0.1 if name != "f" else -0.1] * HELD_OUT for name in who]
    return banked(effects, who)


# the index alone


def test_a_tenth_of_a_version_are_decoys_of_everybody_in_proportion() -> None:
    rows = digits(80, 4)
    trained, decoys = ways.chosen(rows, 10**6, "lot")
    assert Counter(row.contributor_id for row in trained) == {f"c{n}": 18 for n in range(4)}
    assert Counter(row.contributor_id for row in decoys) == {f"c{n}": 2 for n in range(4)}
    assert not {row.row_id for row in trained} & {row.row_id for row in decoys}


def test_an_index_holds_trained_rows_decoys_and_strangers_and_is_found_again(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = digits(60, 4)
    trained, decoys = ways.chosen(rows[:50], 10**6, "lot")
    parts = (DigitsKit(), tmp_path, trained, decoys, rows[50:54], (rows[54:57], [], rows[57:]), Constants("i", "o"))
    found = ways.indexed(*parts)
    assert [row.trained for row in found.entries] == [True] * 45 + [False] * 9
    assert found.scores_RQ.shape == (54, 6)
    own, strangers = found.with_decoys(strangers=False), found.with_decoys(strangers=True)
    assert [e.row_id for e in own.entries[45:]] == [row.row_id for row in decoys]
    assert [e.row_id for e in strangers.entries[45:]] == [row.row_id for row in rows[50:54]]
    (kept,) = (tmp_path / "ways").glob("*.npz")
    before = kept.stat().st_mtime_ns
    assert np.array_equal(ways.indexed(*parts).scores_RQ, found.scores_RQ)
    assert kept.stat().st_mtime_ns == before


def an_index(influences: list[float], decoys: list[float]) -> ways.Indexed:
    """Eight contributors of two rows; each row's influence on the one answer sold and the one held out."""
    entries = [entry(f"r{n:02}", f"c{n // 2}") for n in range(len(influences))]
    entries += [entry(f"d{n:02}", "c0", trained=False) for n in range(len(decoys))]
    return ways.Indexed(
        entries=tuple(entries),
        scores_RQ=np.array([[value, value] for value in [*influences, *decoys]]),
        gains_Q=np.ones(2),
        num_sold=1,
        wrong_Q=np.zeros(2, dtype=bool),
    )


def test_by_the_index_an_outlier_is_paid_for_its_size_and_bounded_for_one_row() -> None:
    paid = ways.index_pays(an_index([1.0] * 15 + [15.0], [0.01, -0.01]), np.ones(1), "constant")
    assert paid["index"]["c7"] == pytest.approx(16 / 30, abs=1e-3)
    assert paid["bounded"]["c7"] == pytest.approx(1 / 8, abs=1e-3)


def test_own_errors_take_more_from_whose_rows_disagree() -> None:
    found = an_index([1.0] * 12 + [4.0, -2.0, 1.0, 1.0], [0.01])
    paid = ways.index_pays(found, np.ones(1), "constant")
    assert paid["index"]["c6"] == pytest.approx(paid["index"]["c7"], abs=1e-3)
    assert paid["own errors"]["c6"] < 0.5 * paid["own errors"]["c7"]


def test_in_blocks_a_block_keeps_its_sum_and_its_rows_are_paid_alike() -> None:
    entries = [entry(f"r{n:02}", f"c{n}") for n in range(32)] + [entry("d", "c0", trained=False)]
    influence_R = np.arange(33) * 1.0
    trained_R = np.array([True] * 32 + [False])
    found = ways.in_blocks(entries, "constant", divided=False)(influence_R, trained_R)
    blocks = deal_blocks([(row.row_id, row.contributor_id) for row in entries[:32]], 8, "constant")
    for block in blocks:
        places = [int(row_id[1:]) for row_id in block]
        assert found[places] == pytest.approx([influence_R[places].mean()] * len(places))
    assert found[32] == 32.0


# with a bank


def test_a_block_redivided_by_one_median_is_what_a_period_divides() -> None:
    draw = np.random.default_rng(1)
    who = [f"n{n}" for n in range(32)]
    bank = banked((1 + draw.standard_normal((32, SOLD + HELD_OUT))).tolist(), who)
    for name, part in (("use", bank.scores.use), ("improvement", bank.scores.improvement)):
        rows = bank.rows(name)
        prior_R = float(part.quality["index_scale"]) * bank.index_sums(name)
        found = ways.redivided(prior_R, ways.block_sums(rows.influence_R, rows.group_R), rows.group_R, 1.0)
        assert found == pytest.approx(rows.influence_R, rel=1e-4, abs=1e-4 * np.abs(rows.influence_R).max())


def test_falsehoods_get_use_by_the_house_and_none_by_each_gate() -> None:
    paid = ways.falsehood_pays(good_and_false())
    assert paid["shares/4"]["f"] == pytest.approx(0.7 / 4, abs=0.02)
    for gate in ("contributor, k = 1/2", "block, k = 1/2", "block, k = 0", "row, by the bank", "row, by the index"):
        assert paid[gate]["f"] == 0, gate
        assert paid[gate]["a"] == pytest.approx(paid["shares/4"]["a"], abs=1e-3), gate


def test_use_is_paid_up_to_so_many_times_improvement() -> None:
    who = [name for name in "abcd" for _ in range(8)]
    asked = banked([[0.1] * SOLD + [0.1 if name != "d" else 0.02] * HELD_OUT for name in who], who)
    paid = ways.falsehood_pays(asked)
    use, improvement = paid["use alone"]["d"], paid["improvement alone"]["d"]
    assert use > 2.5 * improvement
    assert paid["use up to 2 times"]["d"] == pytest.approx(0.7 * 2 * improvement + 0.3 * improvement)
    assert paid["use up to 2 times"]["a"] == pytest.approx(paid["shares/4"]["a"], abs=1e-8)
    assert sum(paid["use up to 2 times"].values()) == pytest.approx(1)
    assert paid["50 : 50"]["d"] == pytest.approx(0.5 * use + 0.5 * improvement)


def test_rows_alike_across_contributors_are_one_group_with_the_first_of_each() -> None:
    entries = [entry(f"r{n}", name) for n, name in enumerate("abcaa")]
    repeats = [Repeat(row_id=row, earlier=earlier, likeness_milli=900) for row, earlier in
               (("r1", "r0"), ("r2", "r1"), ("r4", "r3"), ("r3", "r0"))]  # fmt: skip
    assert ways.alike(entries, repeats) == [(0, 1, 2)]


def test_of_rows_alike_the_earlier_both_or_nobody_is_paid() -> None:
    who = [name for name in "abcd" for _ in range(8)]
    repeats = tuple(
        Repeat(row_id=f"r{8 + n:02}", earlier=f"r{n:02}", likeness_milli=950, contributor_id="a") for n in range(8)
    )
    bank = banked([[0.1] * (SOLD + HELD_OUT)] * 32, who, repeats)
    paid = ways.early_pays(bank)
    whole = paid["shares/4"]["c"]
    expected = {
        "shares/4": (1, 0), "each a part of his own": (0.5, 0.5), "the sum, evenly": (1, 1), "neither": (0, 0),
    }  # fmt: skip
    for name, (first, second) in expected.items():
        assert paid[name]["a"] == pytest.approx(first * whole, abs=0.02), name
        assert paid[name]["b"] == pytest.approx(second * whole, abs=0.02), name
        assert sum(paid[name].values()) == pytest.approx(1), name


def test_shared_blocks_are_laid_in_another_order_and_whole_ones_stay() -> None:
    rows = [(f"a{n:02}", "a") for n in range(20)] + [(f"{name}{n}", name) for name in "bcdef" for n in range(4)]
    dealt = deal_blocks(rows, 8, "constant")
    whose = dict(rows)
    laid = ways.laid_blocks(rows, 8, "constant", lambda _, own: own[0])
    assert sorted(row for block in laid for row in block) == sorted(whose)
    assert [len(block) for block in laid] == [len(block) for block in dealt]
    assert [block for block in laid if {whose[row] for row in block} == {"a"}] == list(dealt[:4])
    assert [whose[row] for block in laid[4:] for row in block] == [name for name in "bcdef" for _ in range(4)]


def test_where_nobody_tells_wrong_answers_count() -> None:
    bank = good_and_false()
    told = bank.with_fees(np.zeros(SOLD))
    assert shipped_pay(told.scores)[UNATTRIBUTED] == pytest.approx(0.7, abs=0.05)
    assert shipped_pay(told.with_fees(np.ones(SOLD)).scores) == shipped_pay(bank.scores)


def test_each_attack_of_a_part_has_a_file_of_its_own() -> None:
    for part, tables in ways.PARTS.items():
        for attacks in tables.values():
            assert attacks, part
            assert len({ways._file(name) for name in attacks}) == len(attacks), part


def test_a_table_has_a_line_for_each_attack_and_each_change() -> None:
    record = ways.Record(attacker={"p": 2.0}, honest={"p": 1.0}, alone={"p": 1.0}, alone_honest={"p": 1.0})
    lines = ways.table({"split": [record, replace(record, attacker={"p": 4.0})]}).splitlines()
    assert lines[2] == "| split | 2 | 3.00 ± 1.00 |"
    assert lines[3] == "| split: change | 2 | +200.0 ± 100.0 % |"
