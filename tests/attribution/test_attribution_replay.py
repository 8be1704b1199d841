"""The replay's derivatives against finite differences of real retraining, and what it does when it is killed.

The classifier is a small MLP in double precision, so that finite differences are sharp; steps of row weights are powers
of two, which training keeps exactly in single precision.
"""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openledger.attribution.replay import check_replayable, initial_lora, replay, replay_run
from openledger.core.errors import Conflict, Corrupt, InvalidInput
from openledger.training.loop import train
from openledger.training.recipe import Recipe
from openledger.training.task import LANGUAGE, trainable_parameters

ORDER = "b" * 64
RECIPE = Recipe(num_epochs=3, batch_rows=4, learning_rate=2e-2, eps_root=1e-6)
STEP = 2.0**-8


@dataclass(frozen=True)
class Point:
    row_id: str
    x: tuple[float, ...]
    label: int
    contributor_id: str = "c"
    num_tokens: int = 1


class PointTask:
    def losses(self, module, examples):
        x_BI = torch.tensor([point.x for point in examples], dtype=next(module.parameters()).dtype)
        labels_B = torch.tensor([point.label for point in examples])
        return torch.nn.functional.cross_entropy(module(x_BI), labels_B, reduction="none")

    def sampled_losses(self, module, examples, seed):
        raise NotImplementedError


TASK = PointTask()


def make_points(count, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 3))
    return [Point(f"row_{n}", tuple(x[n].tolist()), int(x[n].sum() > 0) + int(x[n, 0] > 1)) for n in range(count)]


def make_mlp():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()


POINTS, QUERIES = make_points(14), make_points(5, seed=1)
TARGET = [(query, 0.5 + number) for number, query in enumerate(QUERIES)]


def replay_points(module=None, **options):
    options = {"targets": [TARGET], "task": TASK, **options}
    return replay(module or make_mlp(), POINTS, options.pop("recipe", RECIPE), ORDER, **options)


def outcome(weights, target=TARGET):
    """The target's value after real training under row weights."""
    module = make_mlp()
    train(module, POINTS, RECIPE, ORDER, task=TASK, row_weights=weights)
    with torch.no_grad():
        losses = TASK.losses(module, [query for query, _ in target])
    return -float((losses * torch.tensor([weight for _, weight in target], dtype=torch.float64)).sum())


def slope(direction):
    """Derivative of the outcome along a direction of row weights, by central differences of two widths."""
    narrow, wide = (
        (outcome(1 + size * direction) - outcome(1 - size * direction)) / (2 * size) for size in (STEP, 2 * STEP)
    )
    return (4 * narrow - wide) / 3


@pytest.fixture(scope="module")
def found():
    return replay_points()


def test_scores_equal_finite_differences_of_single_row_weights(found):
    rows = (0, 5, 13)
    expected = [slope(np.eye(14)[row]) for row in rows]
    assert found.scores_RT[list(rows), 0] == pytest.approx(expected, rel=1e-4)


def test_scores_equal_the_finite_difference_over_all_row_weights_at_once(found):
    direction = np.sign(np.random.default_rng(5).normal(size=14))
    assert float(direction @ found.scores_RT[:, 0]) == pytest.approx(slope(direction), rel=1e-4)


def test_scores_are_those_of_a_run_with_its_own_row_weights():
    weights = np.ones(14)
    weights[[2, 9]] = 0.0
    found = replay_points(row_weights=weights.tolist())
    row = np.eye(14)[9]
    expected = (outcome(weights + STEP * row) - outcome(weights - STEP * row)) / (2 * STEP)
    assert found.scores_RT[9, 0] == pytest.approx(expected, rel=1e-3)


def test_a_run_on_some_rows_scores_them_and_no_others():
    rows = [1, 2, 3, 5, 8, 13]
    found = replay_points(rows=rows)
    assert np.flatnonzero(found.scores_RT[:, 0]).tolist() == rows


def test_several_targets_are_scored_as_if_each_were_alone(found):
    other = [(QUERIES[0], -2.0)]
    both = replay_points(targets=[TARGET, other])
    assert np.array_equal(both.scores_RT[:, :1], found.scores_RT)
    assert np.array_equal(both.scores_RT[:, 1:], replay_points(targets=[other]).scores_RT)


def test_scores_are_linear_in_the_targets(found):
    parts = replay_points(targets=[[pair] for pair in TARGET])
    assert parts.scores_RT.sum(axis=1) == pytest.approx(found.scores_RT[:, 0], rel=1e-5, abs=1e-7)
    assert parts.values_T.sum() == pytest.approx(float(found.values_T[0]))


def test_the_value_is_the_trained_modules(found):
    assert float(found.values_T[0]) == pytest.approx(outcome(np.ones(14)), rel=1e-12)


def test_a_replay_that_keeps_no_gradients_gives_the_same_numbers(found):
    assert np.array_equal(replay_points(keep_bytes=0).scores_RT, found.scores_RT)


def test_rows_of_a_double_backward_may_be_grouped_in_any_way(found):
    assert replay_points(pass_rows=3).scores_RT == pytest.approx(found.scores_RT, rel=1e-6)


def test_one_pass_takes_no_more_tokens_however_long_rows_and_answers_are(found):
    taken = []

    class Counting(PointTask):
        def losses(self, module, examples):
            if len({id(example) for example in examples} & long) == len(examples):
                taken.append(len(examples))
            return super().losses(module, examples)

    lengths = 900, 3000, 700, 600, 5
    target = [(replace(query, num_tokens=tokens), 1.0) for query, tokens in zip(QUERIES, lengths, strict=True)]
    long = {id(query) for query, _ in target}
    said = replay_points(targets=[target], task=Counting())
    assert taken == [2, 2, 1]  # 5 and 600 tokens; 700 and 900; 3000
    plain = replay_points(targets=[[(replace(query, num_tokens=1), weight) for query, weight in target]])
    assert said.scores_RT == pytest.approx(plain.scores_RT, rel=1e-6)


def test_the_module_stands_where_it_stood(found):
    module, before = make_mlp(), make_mlp()
    replay_points(module)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before.parameters(), strict=True))


def test_deviation_is_zero_for_the_run_itself_and_the_largest_difference_for_another():
    module = make_mlp()
    train(module, POINTS, RECIPE, ORDER, task=TASK)
    final = {name: parameter.detach().clone() for name, parameter in trainable_parameters(module).items()}
    assert replay_points(final=final).deviation == 0.0
    final["0.weight"][2, 1] += 0.25
    final["2.bias"][0] -= 0.125
    assert replay_points(final=final).deviation == 0.25


def test_a_run_that_ends_elsewhere_is_told_before_the_way_back(tmp_path):
    module, steps = make_mlp(), []
    train(module, POINTS, RECIPE, ORDER, task=TASK)
    final = {name: parameter.detach().clone() for name, parameter in trainable_parameters(module).items()}
    final["0.weight"][2, 1] += 0.25
    for _ in range(2):  # also where the way there lies on disk
        with pytest.raises(Conflict, match=r"ends 0.25 from .* 0.2 is allowed") as caught:
            replay_points(
                final=final, within=0.2, checkpoints=tmp_path, on_step=lambda done, total: steps.append(done / total)
            )
        assert caught.value.code == "run_deviates"
        assert max(steps) == 0.5
    assert replay_points(final=final, within=0.25).deviation == 0.25


class Stopped(Exception):
    pass


def test_a_replay_stopped_on_its_way_forward_goes_on_to_the_same_numbers(found, tmp_path):
    def stop(done, total):
        if done == 8:
            raise Stopped

    steps = []
    for keep_bytes in (0, 1 << 20):
        options = {"checkpoints": tmp_path / str(keep_bytes), "keep_bytes": keep_bytes}
        with pytest.raises(Stopped):
            replay_points(**options, on_step=stop)
        again = replay_points(**options, on_step=lambda done, total: steps.append(done))
        assert np.array_equal(again.scores_RT, found.scores_RT)
        assert 1 < steps[0] <= 9
        steps.clear()


def killed_replay(folder):
    """In a process of its own: a replay that is gone on its way back, without a word."""
    import os

    replay_points(checkpoints=Path(folder), on_step=lambda done, total: os._exit(9) if done == 17 else None)


def test_a_replay_killed_on_its_way_back_goes_on_to_the_same_numbers(found, tmp_path):
    code = f"import test_attribution_replay as t; t.killed_replay({str(tmp_path)!r})"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=False).returncode == 9
    steps = []
    again = replay_points(checkpoints=tmp_path, on_step=lambda done, total: steps.append(done))
    assert np.array_equal(again.scores_RT, found.scores_RT)
    assert 12 < steps[0] <= 17


def test_a_finished_replay_is_read_and_not_computed_again(found, tmp_path):
    replay_points(checkpoints=tmp_path)
    steps = []
    again = replay_points(checkpoints=tmp_path, on_step=lambda done, total: steps.append(done))
    assert np.array_equal(again.scores_RT, found.scores_RT)
    assert not steps


def test_checkpoints_of_another_replay_are_refused(tmp_path):
    replay_points(checkpoints=tmp_path)
    with pytest.raises(Conflict) as caught:
        replay_points(checkpoints=tmp_path, targets=[TARGET[:2]])
    assert caught.value.code == "other_replay"


def changed(path):
    """One bit of the last number."""
    data = bytearray(path.read_bytes())
    data[-2] ^= 4
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("damage", [changed, cut])
@pytest.mark.parametrize("name", ["segment-0.safetensors", "segment-1.safetensors", "adjoint.safetensors"])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 20])
def test_a_damaged_checkpoint_is_named_and_made_again(found, tmp_path, caplog, name, damage, keep_bytes):
    def stop(done, total):
        if done == 17:  # the last segment is behind it
            raise Stopped

    options = {"checkpoints": tmp_path, "keep_bytes": keep_bytes}
    with pytest.raises(Stopped):
        replay_points(**options, on_step=stop)
    damage(tmp_path / name)
    again = replay_points(**options)
    assert np.array_equal(again.scores_RT, found.scores_RT)
    assert np.array_equal(again.values_T, found.values_T)
    (told,) = {record.getMessage().partition(":")[0] for record in caplog.records}
    assert told == f"the replay's checkpoint {tmp_path / name} can't be used, and is made again"


@pytest.mark.parametrize("left", ["", "[]", '{"format": "openledger.replay/1", "identity": "of another format"}'])
def test_checkpoints_of_nobody_knows_which_replay_are_made_again(found, tmp_path, caplog, left):
    replay_points(checkpoints=tmp_path, targets=[TARGET[:2]])
    (tmp_path / "replay.json").write_text(left)
    assert np.array_equal(replay_points(checkpoints=tmp_path).scores_RT, found.scores_RT)
    assert str(tmp_path / "replay.json") in caplog.text


def flash(module):
    module[0].config = type("Config", (), {"_attn_implementation": "flash_attention_2"})()
    return module


@pytest.mark.parametrize(
    ("module", "recipe", "param"),
    [
        (make_mlp(), replace(RECIPE, eps_root=0.0), "eps_root"),
        (make_mlp().bfloat16(), RECIPE, "dtype"),
        (flash(make_mlp()), RECIPE, "attention"),
        (torch.nn.Sequential(make_mlp(), torch.nn.Dropout(0.1)), RECIPE, "dropout"),
        (torch.nn.Sequential(make_mlp(), torch.nn.BatchNorm1d(3)), RECIPE, "module"),
        (make_mlp().requires_grad_(False), RECIPE, "module"),
    ],
    ids=["eps_root", "half precision", "flash attention", "dropout", "batch norm", "nothing trainable"],
)
def test_what_cannot_be_replayed_is_refused(module, recipe, param):
    with pytest.raises(InvalidInput) as caught:
        check_replayable(module, recipe)
    assert (caught.value.code, caught.value.param) == ("not_replayable", param)


def test_dropout_that_is_switched_off_is_no_hindrance():
    check_replayable(torch.nn.Sequential(make_mlp(), torch.nn.Dropout(0.1)).eval(), RECIPE)


def test_a_module_that_draws_is_refused():
    class Drawing(PointTask):
        def losses(self, module, examples):
            return super().losses(module, examples) * torch.rand(())

    with pytest.raises(InvalidInput) as caught:
        replay_points(task=Drawing())
    assert caught.value.code == "not_replayable"


def test_a_module_that_is_not_where_the_run_began_is_refused():
    initial = {name: parameter.detach().clone() for name, parameter in trainable_parameters(make_mlp()).items()}
    initial["0.bias"][1] += 1e-6
    with pytest.raises(InvalidInput) as caught:
        replay_points(initial=initial)
    assert caught.value.code == "other_initial"
    assert "0.bias" in caught.value.message


@pytest.mark.parametrize(
    ("targets", "code"),
    [([], "empty_target"), ([TARGET, []], "empty_target"), ([[(QUERIES[0], float("nan"))]], "invalid_weights")],
)
def test_targets_that_say_nothing_are_refused(targets, code):
    with pytest.raises(InvalidInput) as caught:
        replay_points(targets=targets)
    assert caught.value.code == code


def test_an_adjoint_that_is_not_finite_names_the_step_and_the_row():
    class Kinked(PointTask):
        """|x|^1.5 at 0 has a gradient, and no second derivative."""

        def losses(self, module, examples):
            losses_B = super().losses(module, examples)
            kink = (next(module.parameters()).sum() * 0).abs() ** 1.5
            bad = [point.row_id == "row_6" for point in examples]
            return torch.stack([loss + kink if is_bad else loss for loss, is_bad in zip(losses_B, bad, strict=True)])

    with pytest.raises(Corrupt) as caught:
        replay_points(task=Kinked())
    assert caught.value.code == "not_finite"
    assert "step" in caught.value.message
    assert caught.value.message.endswith("row_6")


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A tiny language model, the rows' tokens, and the record and final weights of a run."""
    from tiny_model import make_tiny_base, tiny_rows

    from openledger.adapters.base_model import load_tokenizer
    from openledger.training.examples import encode_row
    from openledger.training.record import load_weights, train_run

    base = make_tiny_base(tmp_path_factory.mktemp("base"))
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in tiny_rows()[:20]]
    recipe = Recipe(rank=2, alpha=4, num_epochs=2, batch_rows=8, learning_rate=1e-2, eps_root=1e-6)
    folder = tmp_path_factory.mktemp("run") / "run"
    record = train_run(base, examples[:16], recipe, folder)
    return base, examples, record, load_weights(folder / "checkpoints" / "epoch-2.safetensors")


def test_a_recorded_language_run_is_replayed_bit_for_bit(language):
    base, examples, record, final = language
    found = replay_run(base, record, examples[:16], [[(query, 1.0) for query in examples[16:]]], final=final)
    assert found.deviation == 0.0
    assert found.scores_RT.shape == (16, 1)


def test_language_scores_equal_the_finite_difference_over_all_row_weights(language):
    """fp32 in attention's softmax and a tenth of a percent of curvature: 2 %."""
    from openledger.adapters.base_model import load_model
    from openledger.training.lora import attach_lora

    base, examples, record, _ = language
    rows, queries = examples[:16], examples[16:]
    direction = np.sign(np.random.default_rng(2).normal(size=16))

    def value(size):
        module = attach_lora(load_model(base), record.recipe, record.initial).double()
        train(module, rows, record.recipe, record.order, row_weights=(1 + size * direction).tolist())
        with torch.no_grad():
            return -float(LANGUAGE.losses(module, queries).sum())

    found = replay_run(base, record, rows, [[(query, 1.0) for query in queries]])
    expected = (value(2.0**-5) - value(-(2.0**-5))) / 2.0**-4
    assert float(direction @ found.scores_RT[:, 0]) == pytest.approx(expected, rel=0.02)


def test_the_trained_adapter_is_no_place_to_begin(language):
    from openledger.adapters.base_model import load_model
    from openledger.training.lora import attach_lora

    base, examples, record, final = language
    module = attach_lora(load_model(base), record.recipe, record.initial)
    initial = initial_lora(module, record.initial)
    for name, parameter in trainable_parameters(module).items():
        parameter.data.copy_(final[name])
    with pytest.raises(InvalidInput) as caught:
        replay(module, examples, record.recipe, record.order, targets=[[(examples[0], 1.0)]], initial=initial)
    assert caught.value.code == "other_initial"


def test_fused_attention_is_replayed_with_its_mathematical_form(language):
    from openledger.adapters.base_model import load_model
    from openledger.training.lora import attach_lora

    base, examples, record, _ = language
    target = [[(query, 1.0) for query in examples[16:]]]
    eager, fused = (
        replay(
            attach_lora(load_model(base, attention), record.recipe, record.initial),
            examples[:16],
            record.recipe,
            record.order,
            targets=target,
        )
        for attention in ("eager", "sdpa")
    )
    assert fused.scores_RT == pytest.approx(eager.scores_RT, rel=1e-2, abs=1e-4)


@pytest.mark.cluster
def test_a_ray_task_whose_worker_dies_goes_on_where_it_was(cluster, language, tmp_path):
    import ray

    base, examples, record, final = language
    targets = [[(query, 1.0) for query in examples[16:]]]
    steps_file, folder = tmp_path / "steps", tmp_path / "replay"

    def die_once(done, total):
        import os

        with steps_file.open("a") as stream:
            stream.write(f"{done}\n")
        if done == 7 and steps_file.read_text().split().count("7") == 1:
            os._exit(9)

    task = ray.remote(max_retries=1)(replay_run)
    reference = task.remote(base, record, examples[:16], targets, final=final, checkpoints=folder, on_step=die_once)
    found = ray.get(reference)
    assert found.deviation == 0.0
    assert np.array_equal(found.scores_RT, replay_run(base, record, examples[:16], targets).scores_RT)
    assert steps_file.read_text().split().count("1") == 1
