"""Rows that repeat earlier ones of their contributor's: found by their gradients at the start, or left alone."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import make_tiny_base

from openledger.adapters.base_model import load_model
from openledger.attribution import likeness
from openledger.attribution.index import gradient_vectors
from openledger.attribution.likeness import (
    LEAST_MILLI,
    MOST_MILLI,
    Repeat,
    build_repeats,
    find_repeats,
    likeness_stated,
    load_repeats,
    repeats_among,
    sketches,
)
from openledger.core.errors import Corrupt, NotFound
from openledger.training.examples import Example
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe
from openledger.training.record import train_run


def vectors(*rows):
    found = np.array(rows, dtype=np.float64)
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def random_vectors(number, size=400, seed=0):
    return vectors(*np.random.default_rng(seed).normal(size=(number, size)))


def found(names, sketches_RK):
    rows = [f"r{number:04}" for number in range(len(names))]
    return {repeat.row_id: repeat for repeat in repeats_among(rows, list(names), sketches_RK)}


class TestRepeats:
    def test_name_the_likest_earlier_row_and_how_alike_they_are(self):
        repeats = found("aaa", vectors([1, 0, 0], [0.9, (1 - 0.9**2) ** 0.5, 0], [1, 0.1, 0]))
        assert repeats["r0001"] == Repeat(row_id="r0001", earlier="r0000", likeness_milli=900)
        assert (repeats["r0002"].earlier, repeats["r0002"].likeness_milli) == ("r0000", 995)
        assert "r0000" not in repeats

    def test_are_of_one_contributor(self):
        assert found("ab", vectors([1, 0], [1, 0])) == {}

    def test_are_above_the_least_likeness(self):
        height = LEAST_MILLI / 1000
        at, above = (vectors([1, 0], [c, (1 - c * c) ** 0.5]) for c in (height - 0.002, height + 0.002))
        assert (len(found("aa", at)), len(found("aa", above))) == (0, 1)

    def test_a_row_without_a_gradient_repeats_nothing(self):
        assert found("aa", np.zeros((2, 4), np.float16)) == {}

    def test_are_the_same_whatever_the_blocks(self, monkeypatch):
        rows = random_vectors(50, 6)
        names = ["ab"[number % 2] for number in range(50)]
        whole = found(names, rows)
        monkeypatch.setattr(likeness, "_BLOCK", 7)
        assert found(names, rows) == whole != {}

    def test_where_strangers_are_as_alike_only_those_that_are_more_so(self):
        """400 rows on a low sphere: chance makes most of them alike to an earlier one, strangers' no less than own."""
        rows = random_vectors(400, 6)
        rows[396] = rows[0]
        names = ["abcd"[number % 4] for number in range(400)]
        repeats = found(names, rows)
        assert repeats["r0396"].earlier == "r0000"
        assert len(repeats) <= 24  # a fiftieth of 400 is 8
        assert len(found("a" * 400, rows)) > 200  # without strangers the least alone decides

    def test_two_strangers_are_too_few_to_tell_what_chance_does(self):
        rows = random_vectors(400, 6)
        assert len(found(["abc"[number % 3] for number in range(400)], rows)) > 100
        assert len(found(["abcd"[number % 4] for number in range(400)], rows)) <= 24

    def test_where_all_are_alike_the_most_decides(self):
        """Else rows that repeat one text under many names would be paid, however alike."""
        one = np.random.default_rng(0).normal(size=400)
        rows = vectors(*[one + 0.01 * noise for noise in np.random.default_rng(1).normal(size=(40, 400))])
        assert {repeat.likeness_milli for repeat in found("abcdefgh" * 5, rows).values()} == {1000}
        near = vectors(*[one + 0.3 * noise for noise in np.random.default_rng(1).normal(size=(40, 400))])
        assert LEAST_MILLI < 1000 * float(near[0].astype(float) @ near[8].astype(float)) < MOST_MILLI
        assert len(found("a" * 40, near)) == 39
        assert len(found("abcdefgh" * 5, near)) <= 4


class TestNamesOfOneAttacker:
    """100 rows that teach the same among 900 that don't, of 30 contributors."""

    def unpaid(self, *attackers, honest=900, copies=0, seed=0):
        """How many rows of each name repeat others; the last attacker has `copies` of the honest rows beside."""
        random = np.random.default_rng(seed)
        own, one = random.normal(size=(honest, 256)), random.normal(size=256)
        alike = one + 0.02 * random.normal(size=(len(attackers), 256))
        names = [f"h{number % 30}" for number in range(honest)] + list(attackers) + [attackers[-1]] * copies
        rows, order = vectors(*own, *alike, *own[:copies]), random.permutation(len(names))
        names = [names[place] for place in order]
        return Counter(names[int(row[1:])] for row in found(names, rows[order]))

    def test_one_name(self):
        assert self.unpaid(*["a"] * 100) == {"a": 99}

    @pytest.mark.parametrize("parts", [(50, 50), (95, 5), (90, 10), (40, 30, 30)])
    def test_more_names_raise_nobodys_theta(self, parts):
        names = [name for name, number in zip("abc", parts, strict=False) for _ in range(number)]
        assert self.unpaid(*names) == {name: number - 1 for name, number in zip("abc", parts, strict=False)}

    def test_as_many_names_as_honest_ones_that_have_a_row_each(self):
        names = [f"s{number}" for number in range(90)]
        assert self.unpaid(*["a"] * 60, *names) == {"a": 59}

    def test_one_name_with_as_many_rows_as_all_the_others_that_copies_some_of_each(self):
        """Pairs of rows would be outvoted by these, pairs of contributors aren't."""
        assert self.unpaid(*["a"] * 60, *["b"] * 400, copies=300) == {"a": 59, "b": 399}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two contributors of random text: c0's last row is the first with one token changed."""
    random = np.random.default_rng(3)

    def example(row_id, who, ids):
        return Example(row_id=row_id, contributor_id=who, ids=tuple(int(i) for i in ids), num_prompt=4)

    texts = random.integers(3, 90, size=(8, 24))
    rows = [example(f"r{n}", f"c{n % 2}", ids) for n, ids in enumerate(texts)]
    again = texts[0].copy()
    again[-1] = 3 + (again[-1] - 2) % 87
    rows.append(example("r8", "c0", again))
    return make_tiny_base(tmp_path_factory.mktemp("base")), rows


def test_a_row_again_with_a_token_changed_is_found_by_loras_first_gradients(world):
    base, rows = world
    module = attach_lora(load_model(base), Recipe(rank=2), "constant").eval()
    assert all(not p.any() for name, p in module.named_parameters() if ".lora_B." in name)
    (repeat,) = find_repeats(module, rows)
    assert (repeat.row_id, repeat.earlier) == ("r8", "r0")
    assert repeat.likeness_milli > LEAST_MILLI


def test_sketches_keep_cosines(world):
    base, rows = world
    module = attach_lora(load_model(base), Recipe(rank=2), "constant").eval()
    rows = [*rows, replace(rows[0], row_id="r9")]
    found_RK = sketches(module, rows).astype(np.float64)
    assert found_RK.shape == (len(rows), likeness.SKETCH)
    assert np.linalg.norm(found_RK, axis=1) == pytest.approx(1, abs=1e-2)
    gradients = gradient_vectors(module, rows)
    cosines = gradients @ gradients.T / np.outer(*[np.linalg.norm(gradients, axis=1)] * 2)
    assert found_RK[0] @ found_RK[9] == pytest.approx(1, abs=1e-2)  # the same text
    assert np.corrcoef((found_RK @ found_RK.T).ravel(), cosines.ravel())[0, 1] > 0.8  # they differ by the curvature
    torch.manual_seed(1)
    assert np.array_equal(sketches(module, rows), sketches(module, rows))


def trained_names(module):
    return {name for name, own in module.named_parameters() if own.requires_grad}


def test_matrices_without_a_gradient_at_the_start_are_left_out_and_the_sketches_are_the_same(world, monkeypatch):
    base, rows = world
    module = attach_lora(load_model(base), Recipe(rank=2), "constant").eval()
    everything = trained_names(module)
    with likeness._without_idle(module):
        assert trained_names(module) == {name for name in everything if ".lora_B." in name}
    found_RK = sketches(module, rows)
    assert trained_names(module) == everything
    monkeypatch.setattr(likeness, "_without_idle", lambda module: nullcontext())
    assert np.array_equal(sketches(module, rows), found_RK)


def test_of_a_run_that_went_on_from_an_adapter_no_matrix_is_left_out(world):
    module = attach_lora(load_model(world[0]), Recipe(rank=2), "constant").eval()
    for name, own in module.named_parameters():
        own.data += 0.01 if ".lora_B." in name else 0
    everything = trained_names(module)
    with likeness._without_idle(module):
        assert trained_names(module) == everything


def test_the_list_is_written_once_and_read_again(world, tmp_path):
    base, rows = world
    train_run(base, rows, Recipe(rank=2, num_epochs=1), tmp_path / "run")
    assert load_repeats(tmp_path / "index") is None
    written = build_repeats(base, tmp_path / "run", rows, tmp_path / "index")
    assert load_repeats(tmp_path / "index") == written
    assert [repeat.row_id for repeat in written] == ["r8"]
    assert build_repeats(base, tmp_path / "gone", rows, tmp_path / "index") == written
    with pytest.raises(NotFound):
        build_repeats(base, tmp_path / "gone", rows, tmp_path / "other")


def test_a_list_that_was_changed_is_refused(world, tmp_path):
    base, rows = world
    train_run(base, rows, Recipe(rank=2, num_epochs=1), tmp_path / "run")
    build_repeats(base, tmp_path / "run", rows, tmp_path)
    values = json.loads((tmp_path / "repeats.json").read_text())
    (tmp_path / "repeats.json").write_text(json.dumps({**values, "rows": []}))
    with pytest.raises(Corrupt) as caught:
        load_repeats(tmp_path)
    assert caught.value.code == "corrupt_repeats"


def test_scores_say_whether_likeness_was_measured():
    repeat = Repeat(row_id="b", earlier="a", likeness_milli=900)
    assert likeness_stated(None) == "unmeasured"
    assert likeness_stated([repeat, replace(repeat, row_id="c")]) == "likeness/1 2"
