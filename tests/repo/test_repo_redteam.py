"""The red team's attacks do what they say, and its arithmetic is right: a broken attack's table would comfort."""

import json
import random
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import redteam
from benchmarks import redteam_attacks as attacks
from benchmarks import redteam_pay as pay
from benchmarks.digits_task import TASK, Digit, make_module
from benchmarks.redteam import DigitsWorld
from benchmarks.redteam_world import DigitsKit, Observed, admitted, first_sold, without_restated
from openledger.core.values import UNATTRIBUTED, ContributorScores
from openledger.datanets.clusters import ClusterRow, WordWeights

WORDS = (
    "array", "window", "signal", "filter", "parser", "buffer", "thread", "header", "socket", "kernel", "matrix",
    "vector",
)  # fmt: skip


def text_rows(name: str, number: int) -> list[ClusterRow]:
    draw = random.Random(name)
    rows = []
    for place in range(number):
        some = draw.sample(WORDS, 8)
        prompt = f"What does the function {name}.{some[0]}_{some[1]}{place}({some[2]}) do?"
        rows.append(
            ClusterRow(row_id=f"{name}-{place}", contributor_id=name, order=place, prompt=prompt,
                       completion=" ".join(some) + f" {name}{place}.")
        )  # fmt: skip
    return rows


def digits(number: int) -> list[Digit]:
    draw = np.random.default_rng(7)
    return [Digit(f"d{n}", "c7", tuple(draw.uniform(0.3, 0.7, 64).tolist()), n % 10) for n in range(number)]


# attacks on text


def test_a_copy_has_the_same_words_another_name_and_a_later_place() -> None:
    rows = text_rows("a", 3)
    copies = attacks.copied(rows, "x")
    assert [(c.prompt, c.completion) for c in copies] == [(r.prompt, r.completion) for r in rows]
    assert {c.contributor_id for c in copies} == {"x"}
    assert min(c.order for c in copies) > max(r.order for r in rows)


@pytest.mark.parametrize(("percent", "changed"), [(5, 1), (20, 2), (40, 4)])
def test_an_edit_replaces_its_part_of_the_words(percent: int, changed: int) -> None:
    row = replace(text_rows("a", 1)[0], completion=" ".join(f"w{n}" for n in range(10)))
    (edited,) = attacks.edited([row], percent, ["new"], seed=0)
    assert edited.completion.split().count("new") == changed
    assert edited.prompt == row.prompt


def test_a_paraphrase_changes_question_and_known_words() -> None:
    row = replace(text_rows("a", 1)[0], completion="Returns the value.")
    (told,) = attacks.paraphrased([row])
    assert told.completion == "gives the value."
    assert told.prompt.startswith("Please explain")


def test_a_split_keeps_every_row_and_deals_them_evenly_over_the_names() -> None:
    rows = [*text_rows("a", 3), *text_rows("b", 4)]
    found = attacks.split_names(rows, "b", 2)
    assert [row.row_id for row in found] == [row.row_id for row in rows]
    assert [row.contributor_id for row in found] == ["a"] * 3 + ["b.0", "b.1", "b.0", "b.1"]


def test_a_merge_puts_both_under_the_first_name() -> None:
    rows = [*text_rows("a", 1), *text_rows("b", 1), *text_rows("c", 1)]
    assert [row.contributor_id for row in attacks.merged_names(rows, ["c", "a"])] == ["c", "b", "c"]


def test_repetitions_have_ids_and_places_of_their_own() -> None:
    found = attacks.repeated(text_rows("a", 3), 4)
    assert len(found) == len({row.row_id for row in found}) == len({row.order for row in found}) == 12
    assert len({row.completion for row in found}) == 3


def test_seeded_rows_hold_the_phrases_that_most_answers_hold() -> None:
    rows = [replace(row, completion=f"gives back the whole thing {row.row_id}") for row in text_rows("a", 5)]
    phrases = attacks.common_phrases(rows, 4, 1)
    assert phrases == ["back the whole thing"]
    assert all("back the whole thing." in row.completion for row in attacks.seeded(text_rows("b", 2), phrases, each=1))


def test_gate_and_clusters_stop_copies_and_let_honest_rows_pass() -> None:
    honest = [*text_rows("a", 5), *text_rows("b", 5)]
    accepted, representatives = admitted([*honest, *attacks.copied(text_rows("a", 5), "x")], WordWeights.of(honest))
    assert representatives == accepted
    assert {row.row_id for row in accepted} == {row.row_id for row in honest}


def test_an_early_copy_takes_the_originals_place() -> None:
    early = attacks.copied(text_rows("a", 3), "x", -attacks.LAST)
    _, kept = admitted([*text_rows("a", 3), *early], WordWeights.of(text_rows("a", 3)))
    assert [row.contributor_id for row in kept] == ["x"] * 3


def test_the_stricter_rule_drops_own_rows_told_again_and_nobody_elses() -> None:
    rows = text_rows("a", 4)
    again = [
        replace(row, row_id=f"{row.row_id}#", order=row.order + 10) for row in attacks.edited(rows, 20, ["new"], 0)
    ]
    other = [replace(row, row_id=f"{row.row_id}x", contributor_id="x") for row in again]
    weights = WordWeights.of(rows)
    assert without_restated([*rows, *again], weights) == rows
    assert len(without_restated([*rows, *other], weights)) == 8


# attacks on pixels


def test_flipping_makes_every_label_wrong_or_every_second() -> None:
    rows = digits(20)
    for every, wrong in ((1, 20), (2, 10)):
        found = attacks.flipped(rows, every)
        assert sum(a.label != b.label for a, b in zip(rows, found, strict=True)) == wrong
        assert [row.pixels for row in found] == [row.pixels for row in rows]


def test_outliers_are_less_likely_within_their_step_and_keep_their_labels() -> None:
    rows, module = digits(10), make_module("toy")
    found = attacks.outliers(rows, module, 0.05)
    moved = np.abs(np.array([row.pixels for row in found]) - np.array([row.pixels for row in rows]))
    assert moved.max() == pytest.approx(0.05, abs=1e-6)
    assert (TASK.losses(module, found) > TASK.losses(module, rows)).all()
    assert [row.label for row in found] == [row.label for row in rows]


def test_the_shadow_attack_aligns_gradients_with_the_targets() -> None:
    rows, targets, modules = digits(6), digits(30), [make_module(f"shadow-{n}") for n in range(3)]
    found = attacks.shadowed(rows, modules, targets, 0.03)
    before, after = (sum(_alignment(module, some, targets) for module in modules) for some in (rows, found))
    assert after > before


def _alignment(module: Any, rows: list[Digit], targets: list[Digit]) -> float:
    parameters = list(module.parameters())
    own, wanted = (torch.autograd.grad(TASK.losses(module, some).sum(), parameters) for some in (rows, targets))
    return float(sum((a * b).sum() for a, b in zip(own, wanted, strict=True)))


def test_repetitions_under_many_names_are_as_many_as_said_and_none_is_the_same_file() -> None:
    rows = digits(6)
    found = attacks.many_repeated(rows, "c7", names=4, each=5)
    assert Counter(row.contributor_id for row in found) == dict.fromkeys(("c7.0", "c7.1", "c7.2", "c7.3"), 5)
    assert len({row.row_id for row in [*rows, *found]}) == len({row.pixels for row in [*rows, *found]}) == 26
    for row in found:
        original = next(own for own in rows if own.row_id == row.row_id.partition("#")[0])
        assert row.label == original.label
        assert np.abs(np.array(row.pixels) - np.array(original.pixels)).max() < 0.3


def test_contributors_of_few_rows_have_the_same_rows_between_them() -> None:
    rows = [*text_rows("a", 5), *text_rows("b", 4)]
    found = attacks.in_pieces(rows, 2)
    assert [row.row_id for row in found] == [row.row_id for row in rows]
    assert [row.contributor_id for row in found] == [
        *("a.piece-0", "a.piece-0", "a.piece-1", "a.piece-1", "a.piece-2"),
        *("b.piece-0", "b.piece-0", "b.piece-1", "b.piece-1"),
    ]


def test_a_larger_world_has_forty_contributors_and_the_insiders_rows_come_last(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed (pip install 'openledger[bench]')")
    large = DigitsWorld(tmp_path, DigitsKit(), 500).of_many_rows()
    assert Counter(Counter(row.contributor_id for row in large.rows).values()) == {30: 40}
    assert [row.contributor_id for row in large.rows[-30:]] == ["c7"] * 30 == [r.contributor_id for r in large.own()]
    assert (len(large.sold), len(large.held_out)) == (60, 40)
    assert not {row.pixels for row in large.rows} & {row.pixels for row in [*large.sold, *large.held_out]}
    assert len({row.contributor_id for row in large.of_few_rows().rows}) == 120


# pay


def observed(index: list[list[float]], who: tuple[str, ...], num_sold: int) -> Observed:
    scores = np.array(index)
    questions = scores.shape[1]
    return Observed(
        who=who, row_ids=tuple(f"r{n}" for n in range(len(who))), num_sold=num_sold,
        wrong_Q=np.zeros(questions, dtype=bool), groups=(), members_MG=np.zeros((0, 0), dtype=bool),
        outcomes_MQ=np.zeros((0, questions)), gains_Q=np.arange(questions) * 1.0,
        index_RQ=scores,
    )  # fmt: skip


def test_naive_payers_divide_each_answer_by_itself() -> None:
    found = observed([[1.0, 2.0, 9.0], [-1.0, 2.0, 9.0]], ("a", "b"), num_sold=2)
    assert pay.naive_pay(found, "absolute") == pytest.approx({"a": 0.5, "b": 0.5})
    assert pay.naive_pay(found, "clipped") == pytest.approx({"a": 0.75, "b": 0.25})
    assert pay.naive_pay(found, "sums") == pytest.approx({"a": 0.75, "b": 0.25})


def test_leaving_out_bought_answers_keeps_the_held_out_ones() -> None:
    found = first_sold(observed([[1.0, 2.0, 3.0, 4.0]], ("a",), num_sold=3), 1)
    assert found.num_sold == 1
    assert found.index_RQ.tolist() == [[1.0, 4.0]]
    assert found.gains_Q.tolist() == [0.0, 3.0]


def scores(values: dict[str, tuple[float, float]], gain: float = 10.0) -> pay.Scores:
    part = ContributorScores(
        adapter="a", period="p", method="m", gain_nano=round(gain * 1e9),
        scores_nano={name: round(value * 1e9) for name, (value, _) in values.items()},
        errors_nano={name: round(error * 1e9) for name, (_, error) in values.items()},
    )  # fmt: skip
    return pay.Scores(use=part, improvement=part)


RULES = (pay.shipped_pay, pay.first_pay, pay.pooled_pay)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_pays_out_the_whole_pool(rule: Any) -> None:
    paid = rule(scores({"a": (4.0, 1.0), "b": (-1.0, 0.5), "c": (2.0, 0.5)}))
    assert sum(paid.values()) == pytest.approx(1.0, abs=1e-8)
    assert paid["b"] == 0
    assert paid[UNATTRIBUTED] > 0


def test_the_shipped_rule_pays_a_split_contributor_the_same_and_the_first_one_less() -> None:
    whole, split = scores({"a": (4.0, 1.0), "b": (2.0, 0.5)}), {"a.0": (2.0, 0.5**0.5), "a.1": (2.0, 0.5**0.5)}
    parts = scores({**split, "b": (2.0, 0.5)})
    assert pay.total_pay(pay.shipped_pay(parts), "a") == pytest.approx(pay.shipped_pay(whole)["a"])
    assert pay.total_pay(pay.first_pay(parts), "a") < pay.first_pay(whole)["a"]


def test_noise_rides_on_the_others_certainty_where_the_error_is_taken_in_proportion_to_influence() -> None:
    noise = scores({**{f"h{n}": (1.0, 0.05) for n in range(8)}, "x": (0.1, 0.6)})
    assert pay.shipped_pay(noise)["x"] == 0
    assert pay.pooled_pay(noise)["x"] > 0


def sold(gains: list[float], number: int) -> Observed:
    """Two contributors' rows and a bank of eight; answers sold, then held-out ones, of `gains`."""
    found = observed([[0.2] * len(gains), [0.1] * len(gains)], ("a", "b"), number)
    members = np.array([[True, False], [False, True], [True, True], [False, False]] * 2)
    outcomes = members @ np.array([[0.4] * len(gains), [0.2] * len(gains)])
    outcomes = outcomes + 0.01 * np.random.default_rng(0).normal(size=outcomes.shape)
    return replace(found, groups=(("r0",), ("r1",)), members_MG=members, outcomes_MQ=outcomes, gains_Q=np.array(gains))


def test_answers_that_owe_nothing_leave_their_fees_to_nobody() -> None:
    world, fees = sold([1.0, 1.0, 1.0, 1.0], 2), np.ones(2)
    alone, beside = (pay.defended_payments(world, fees, idle)["shipped"] for idle in (0, 6))
    improvement = pay.shipped_pay(pay.period_scores(world, fees)).get("a", 0.0)
    assert 0 < beside["a"] < alone["a"] == pytest.approx(improvement)
    assert sum(beside.values()) == pytest.approx(1.0, abs=1e-8)


def test_without_the_ceiling_an_answer_counts_whole() -> None:
    world, fees = sold([4.0, 1.0, 1.0, 1.0], 2), np.ones(2)
    bounded, whole = (pay.period_scores(world, fees, ceiling=some).use for some in (True, False))
    assert (bounded.gain_nano, whole.gain_nano) == (2 * 10**9, 5 * 10**9)


def test_names_of_one_person_share_his_rows_in_turn() -> None:
    assert [row.contributor_id for row in attacks.sybils(text_rows("x", 3), "x", 2)] == ["x.0", "x.1", "x.0"]


# return on investment


def test_an_outsiders_return_is_the_ratio_of_sums() -> None:
    records = [pay.Record(attacker={"p": 1.0}, honest={"p": 4.0}), pay.Record(attacker={"p": 3.0}, honest={"p": 4.0})]
    found = pay.roi(records, "p")
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert found.error == pytest.approx(0.25)
    assert pay.roi(records, "unknown") is None


def test_an_insiders_return_is_over_what_he_earns_honestly() -> None:
    """He is paid half as much again as without the attack; that he was worth twice the others is taken out."""
    record = pay.Record(attacker={"p": 3.0}, honest={"p": 1.0}, alone={"p": 2.0}, alone_honest={"p": 1.0})
    found, moved = pay.roi([record] * 3, "p"), pay.change([record] * 3, "p")
    assert found is not None
    assert moved is not None
    assert found.value == pytest.approx(1.5)
    assert moved.value == pytest.approx(0.5)
    assert moved.error == pytest.approx(0.0)


def test_a_rivals_loss_is_told_as_a_negative_change() -> None:
    record = pay.Record(attacker={"p": 0.0}, honest={"p": 1.0}, rival={"p": 0.6}, rival_alone={"p": 0.8})
    found = pay.change([record, record], "p", rival=True)
    assert found is not None
    assert found.value == pytest.approx(-0.25)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = [1.0, 4.0, 2.0, 9.0]
    found = pay.jackknife(values, lambda some: float(np.mean(some)))
    assert found.error == pytest.approx(np.std(values, ddof=1) / 2)


def test_pay_of_all_of_a_persons_names_is_summed() -> None:
    told = {"c7": 1.0, "c7.bad": 2.0, "c70": 4.0}
    assert pay.total_pay(told, "c7") == 3.0
    assert pay.mean_pay(told, ["c7", "c70"]) == 3.5


def test_a_record_of_another_rule_or_z_is_no_result_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a folder of before would be told as what this rule pays."""
    world, name = SimpleNamespace(kit=SimpleNamespace(name="digits"), seed=1), "split, 2 names"
    record = pay.Record(attacker={"shipped": 0.3}, honest={"shipped": 0.1}, sent=3, trained=3)

    def told() -> Any:
        return redteam.run(tmp_path, [world], {name: lambda _: record}, [name], True)["attacks"]

    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "digits-split--2-names-1.json").write_text(json.dumps(asdict(record)))
    assert told() == {}
    redteam.run(tmp_path, [world], {name: lambda _: record}, [name])
    assert told()[name]["roi"]["shipped"]["value"] == pytest.approx(3.0)
    monkeypatch.setattr(redteam, "PARAMETERS", replace(redteam.PARAMETERS, z_milli=redteam.PARAMETERS.z_milli + 1))
    assert told() == {}
    monkeypatch.undo()
    monkeypatch.setattr(redteam, "RULE", "shares/6")
    assert told() == {}
