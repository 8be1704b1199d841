"""The instruments on one run: the index is built once and kept, and what can't be measured is said."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_tokenizer
from openledger.attribution import index as index_module
from openledger.attribution.audit import _null_level
from openledger.attribution.bank import plan_bank
from openledger.attribution.index import build_index
from openledger.attribution.instruments import (
    EXPECTED,
    THIS_RUN,
    IndexAttributor,
    index_views,
    make,
    subject_index,
)
from openledger.attribution.subject import Subject
from openledger.core.errors import Corrupt, InvalidInput
from openledger.training.examples import encode_row
from openledger.training.recipe import Recipe
from openledger.training.record import train_run
from openledger.training.task import trainable_parameters

RECIPE = Recipe(rank=2, alpha=8, num_epochs=4, batch_rows=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def examples(base):
    tokenizer = load_tokenizer(base)
    return tuple(encode_row(tokenizer, row) for row in tiny_rows()[:16])


@pytest.fixture
def subject(base, examples, tmp_path):
    return make_subject(base, examples, tmp_path)


def make_subject(base, examples, folder, recipe=RECIPE):
    record = train_run(base, examples, recipe, folder / "run")
    return Subject(base=base, folder=folder / "run", examples=tuple(examples), record=record)


def attribute(subject, queries, method="index"):
    told = []
    found = make(method, subject, num_coalitions=4, num_twins=1, weights=[1.0] * len(queries), report=told.append)
    return found.attribute(queries)


def refuse(*_):
    raise AssertionError("a row's gradient was computed again")


def test_other_queries_are_scored_against_the_same_index(subject, examples, monkeypatch):
    first = attribute(subject, examples[:2])
    monkeypatch.setattr(index_module, "row_vectors", refuse)
    monkeypatch.setattr(index_module, "fit", refuse)
    second = attribute(replace(subject), examples[1:3])  # as another process would open it
    assert len(list((subject.folder / "index").glob("*/*/index.json"))) == 1
    assert np.allclose(second.scores[:, 0], first.scores[:, 1], rtol=1e-3, atol=1e-7)
    assert (first.quantity, first.quality["views"]) == (THIS_RUN, ["epoch-1", "epoch-2"])


def test_each_view_says_what_its_own_index_says(subject, examples, tmp_path):
    names, scores_VRQ = IndexAttributor(subject=subject, report=lambda line: None).views(examples[:2])
    module = subject.module
    assert scores_VRQ.shape == (2, 16, 2)
    for view, scores in zip(index_views(subject), scores_VRQ, strict=True):
        assert view.name == names.pop(0)
        alone = build_index(module, examples, [], tmp_path / view.name, "digest", views=[view])
        vectors = alone.query_vectors(module, examples[:2], views=[view])
        assert np.allclose(alone.score(vectors), scores, rtol=1e-5, atol=1e-9)


def test_decoys_are_scored_by_the_index_of_the_trained_rows(subject, examples):
    plain = attribute(subject, examples[:2])
    decoys = tuple(replace(example, row_id=f"decoy-{example.row_id}") for example in examples[:4])
    instrument = IndexAttributor(subject=subject, report=lambda line: None, decoys=decoys)
    names, trained, strange = instrument.with_decoys(examples[:2])
    assert names == ["epoch-1", "epoch-2"]
    assert (trained.shape, strange.shape) == ((2, 16, 2), (2, 4, 2))
    assert np.allclose(trained.mean(axis=0), plain.scores, rtol=1e-3, atol=1e-7)
    assert np.allclose(strange, trained[:, :4], rtol=1e-3, atol=1e-7)  # same words, same index: the same score
    assert np.array_equal(attribute(subject, examples[:2]).scores, plain.scores)


def test_the_null_level_of_rows_that_read_as_the_trained_ones_is_theirs(subject, examples):
    plan = plan_bank(subject.record, examples, num_coalitions=4, num_twins=0)
    decoys = [replace(example, row_id=f"decoy-{example.row_id}") for example in examples]
    found = _null_level(subject, plan, decoys, examples[:2], lambda line: None)
    assert found["ratio"] == pytest.approx(1, abs=1e-3)
    trained = attribute(subject, examples[:2]).scores
    assert found["trained_rms"] == pytest.approx(float(np.sqrt((trained**2).mean())), rel=1e-3)
    with pytest.raises(InvalidInput) as caught:
        _null_level(subject, plan, examples, examples[:2], lambda line: None)
    assert caught.value.code == "invalid_decoys"


def test_the_module_stands_as_it_did(subject, examples):
    before = {name: p.detach().clone() for name, p in trainable_parameters(subject.module).items()}
    attribute(subject, examples[:1])
    assert all(bool((p == before[name]).all()) for name, p in trainable_parameters(subject.module).items())


def test_a_trained_twin_makes_another_index_of_which_only_its_own_views_are_built(subject, examples, monkeypatch):
    attribute(subject, examples[:1])
    fitted, fit = [], index_module.fit
    monkeypatch.setattr(index_module, "fit", lambda *args, **more: fitted.append(1) or fit(*args, **more))
    plan = plan_bank(subject.record, examples, num_coalitions=4, num_twins=1)
    subject.bank().train(plan.twins)
    found = attribute(subject, examples[:1])
    assert found.quality["views"] == ["epoch-1", "epoch-2", "twin-1-epoch-1", "twin-1-epoch-2"]
    assert found.quantity == EXPECTED
    assert len(fitted) == 2
    alone = replace(subject, folder=shutil.copytree(subject.folder, subject.folder.with_name("copy")))
    shutil.rmtree(alone.folder / "index")
    assert np.array_equal(attribute(alone, examples[:1]).scores, found.scores)
    assert len(fitted) == 6


def test_an_adapter_in_a_folder_that_cant_be_written_to_is_refused(subject, examples):
    (subject.folder / "index").write_text("in the way")
    with pytest.raises(InvalidInput) as caught:
        attribute(subject, examples[:1])
    assert caught.value.code == "unwritable_folder"


def test_rows_of_other_words_have_another_index(subject, examples):
    other = replace(subject, examples=(replace(examples[0], ids=(*examples[0].ids[:-2], 5, 1)), *examples[1:]))
    folders = {subject_index(own, index_views(own)).folder for own in (subject, other)}
    assert len(folders) == 2


def test_an_index_of_something_else_in_its_place_is_refused(subject, examples):
    views = index_views(subject)
    folder = subject_index(subject, views).folder
    other = subject_index(replace(subject, examples=examples[:8]), views).folder
    shutil.rmtree(folder)
    other.rename(folder)
    with pytest.raises(InvalidInput) as caught:
        attribute(subject, examples[:1])
    assert caught.value.code == "wrong_index"


def test_a_damaged_shard_of_the_kept_index_is_named_and_built_again_as_the_error_says(subject, examples):
    scores = attribute(subject, examples[:1]).scores
    (shard,) = (subject.folder / "index").glob("*/*/view-01/rows-00000.f16")
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(Corrupt, match="rows-00000") as caught:
        attribute(subject, examples[:1])
    assert caught.value.code == "corrupt_shard"
    Path(caught.value.param).unlink()
    (shard.parent.parent / "index.json").unlink()
    assert np.array_equal(attribute(subject, examples[:1]).scores, scores)


@pytest.mark.parametrize("method", ["bank", "estimate"])
def test_one_contributor_is_attributed_by_the_index_and_it_says_so(base, examples, tmp_path, method):
    alone = make_subject(base, [replace(example, contributor_id="solo") for example in examples], tmp_path)
    found, rows = attribute(alone, examples[:2], method), attribute(alone, examples[:2])
    assert (found.method, found.quantity) == ("index", THIS_RUN)
    assert found.quality == {**rows.quality, "instead_of": method, "because": "one_contributor"}
    assert not (alone.folder / "bank").exists()
    if method == "bank":
        assert found.players == ("solo",)
        assert found.scores == pytest.approx(rows.scores.sum(axis=0, keepdims=True))
        assert found.errors == pytest.approx(np.sqrt((rows.errors**2).sum(axis=0, keepdims=True)))
    else:
        assert found.players == rows.players
        assert np.array_equal(found.scores, rows.scores)


def test_a_contributor_with_one_row_is_measured_as_any_other(base, examples, tmp_path):
    lone = [replace(e, contributor_id="lone" if n == 3 else f"ctr_{n % 2}") for n, e in enumerate(examples)]
    subject = make_subject(base, lone, tmp_path)
    bank, rows = attribute(subject, examples[:2], "bank"), attribute(subject, examples[:2], "estimate")
    assert bank.players == ("ctr_0", "ctr_1", "lone")
    assert np.isfinite(bank.scores).all()
    assert (bank.errors > 0).all()
    assert rows.scores[3] == pytest.approx(bank.scores[2], rel=1e-4, abs=1e-9)  # all that the bank gives is the row's


def test_a_run_whose_recipe_cant_be_replayed_is_refused(base, examples, tmp_path):
    subject = make_subject(base, examples, tmp_path, replace(RECIPE, eps_root=0.0))
    with pytest.raises(InvalidInput, match="can't be replayed") as caught:
        attribute(subject, examples[:1], "replay")
    assert (caught.value.code, caught.value.param) == ("not_replayable", "eps_root")
