"""By which method an index is: a new one by the newest, and one of before by its own for as long as it is there."""

import json

import numpy as np
import pytest
import torch

from benchmarks.digits_task import TASK, Digit, make_module
from openledger.attribution import likeness_3, sketches
from openledger.attribution.ekfac import Damping, fit
from openledger.attribution.gradients import Site, sites
from openledger.attribution.index import METHOD, METHODS, GradientIndex, build_index, digests, fit_view, standing
from openledger.attribution.index_folder import IndexFolder, method_at, plan_index
from openledger.attribution.recompute import Measurement
from openledger.core.errors import InvalidInput

OLDER = "index/ekfac-2"


@pytest.fixture(scope="module")
def rows():
    torch.set_num_threads(1)
    random = np.random.default_rng(5)
    return [Digit(f"r{n:03}", f"c{n % 4}", tuple(random.random(64).tolist()), n % 10) for n in range(24)]


def build(rows, folder, method="", **more):
    return build_index(make_module("method"), rows, (), folder, "digest", task=TASK, method=method, **more)


def scores(index, rows):
    return index.score(index.query_vectors(make_module("method"), rows[:5], task=TASK))


def test_a_matrix_is_damped_the_more_the_less_the_fit_saw_of_it():
    damping, matrix = Damping(), Site("w", outputs=8, inputs=128)
    assert damping.of(matrix, 3200) == pytest.approx(0.01 + 0.25 * 128 / 3200)
    assert damping.of(matrix, 64) == pytest.approx(0.51)
    assert damping.of(matrix, 0) == damping.of(matrix, 1)


def test_a_new_index_is_by_the_newest_method_and_others_are_by_those_that_are_asked_for(rows, tmp_path):
    new, old = build(rows, tmp_path / "new"), build(rows, tmp_path / "old", OLDER)
    assert (new.plan.method, old.plan.method) == (METHOD, OLDER) == ("index/ekfac-3", "index/ekfac-2")
    module = make_module("method")
    for index, damping in ((new, Damping()), (old, Damping(least=0.01, unseen=0.0))):
        balance = [own.balance for own in fit(module, rows, task=TASK, damping=damping).values()]
        stated = json.loads((index.folder / "index.json").read_text())["finished"][0]["balance"]
        assert stated == pytest.approx(balance)
    assert not np.allclose(scores(new, rows), scores(old, rows), rtol=0.1)


def test_what_a_method_means_does_not_change():
    assert {name: (own.least, own.unseen) for name, own in METHODS.items()} == {
        "index/ekfac-2": (0.01, 0.0), "index/ekfac-3": (0.01, 0.25),
    }  # fmt: skip


def test_an_index_of_before_stays_as_it_is(rows, tmp_path):
    before = build(rows, tmp_path / "index", OLDER)
    files = {path: path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()}
    again = build(rows, tmp_path / "index")
    assert (again.plan.method, method_at(tmp_path / "index")) == (OLDER, OLDER)
    assert {path: path.read_bytes() for path in (tmp_path / "index").rglob("*") if path.is_file()} == files
    assert np.array_equal(scores(before, rows), scores(again, rows))
    assert GradientIndex.open(tmp_path / "index", "digest").plan.method == OLDER


def test_an_index_that_was_begun_before_is_finished_by_its_own_method(rows, tmp_path):
    module = make_module("method")
    views = [standing(module)]
    plan = plan_index(
        sites(module), digests(views), rows, (), "digest", base_digest="", fit_rows=64, shard_rows=16, method=OLDER
    )
    fit_view(module, IndexFolder(tmp_path / "begun", plan), 0, rows, TASK)
    finished, whole = (build(rows, tmp_path / name, method, shard_rows=16) for name, method in
                       (("begun", ""), ("whole", OLDER)))  # fmt: skip
    assert finished.plan.method == OLDER
    assert np.array_equal(scores(finished, rows), scores(whole, rows))


def test_another_method_than_the_folders_is_refused(rows, tmp_path):
    build(rows, tmp_path / "index", OLDER)
    with pytest.raises(InvalidInput, match="it differs in method") as caught:
        build(rows, tmp_path / "index", METHOD)
    assert caught.value.code == "wrong_index"
    assert method_at(tmp_path / "index") == OLDER


def test_an_unknown_method_is_refused_and_leaves_nothing(rows, tmp_path):
    with pytest.raises(InvalidInput) as caught:
        build(rows, tmp_path / "index", "index/ekfac-9")
    assert (caught.value.code, caught.value.param) == ("unknown_method", "method")
    assert all(method in caught.value.fix for method in METHODS)
    assert not (tmp_path / "index").exists()


def test_views_by_another_method_are_not_taken_over(rows, tmp_path):
    old = build(rows, tmp_path / "old", OLDER)
    mixed = build(rows, tmp_path / "new", others=[old.folder])
    same = build(rows, tmp_path / "same", OLDER, others=[old.folder])
    basis = "view-00/basis.pt"
    assert (same.folder / basis).samefile(old.folder / basis)
    assert not (mixed.folder / basis).samefile(old.folder / basis)
    assert np.array_equal(scores(mixed, rows), scores(build(rows, tmp_path / "alone"), rows))


def test_scores_state_the_method_of_their_index(rows, tmp_path):
    index = build(rows, tmp_path / "index", OLDER)
    measured = Measurement(
        adapter="adapter", period="p0001", entries=tuple(index.entries), scores=scores(index, rows),
        weights_nano=(10**9,) * 5, gains=(1.0,) * 5, index_method=index.plan.method,
    )  # fmt: skip
    assert measured.use().method == OLDER


def test_the_basis_of_published_rules_of_likeness_stays(monkeypatch, rows):
    """Rows are paid by these rules: another basis would find other repeats under the same name."""
    asked = []
    monkeypatch.setattr(sketches, "fit", lambda *given, **named: asked.append(named) or fit(*given, **named))
    sketches.sketches_by(make_module("method"), rows, (sketches.fit_places(len(rows)),), TASK)
    assert [(own["fit_rows"], own["damping"]) for own in asked] == [(24, Damping(least=0.01, unseen=0.0))]
    assert (sketches.FIT_ROWS, likeness_3.FIT_ROWS, sketches.SKETCH) == (64, 256, 4096)
