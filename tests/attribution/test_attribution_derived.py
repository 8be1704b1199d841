"""Bank, replay, index and recomputation of a run that went on from another adapter: all begin where it did."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.adapters.card import AdapterCard, adapter_digest, save_card
from openledger.attribution.audit import plan_audit
from openledger.attribution.bank import plan_bank
from openledger.attribution.index import GradientIndex, build_index
from openledger.attribution.instruments import index_views, make, subject_plan
from openledger.attribution.recompute import recompute
from openledger.attribution.replay import replay_run
from openledger.attribution.subject import Subject
from openledger.attribution.trainer import train_bank
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.values import Answer
from openledger.training.examples import encode_row
from openledger.training.loop import train
from openledger.training.lora import attach_lora, load_lora
from openledger.training.members import Member
from openledger.training.packed import PackedRuns
from openledger.training.recipe import Recipe
from openledger.training.record import load_weights, train_run
from openledger.training.start import Parent, start_folder
from openledger.training.task import LANGUAGE

RECIPE = Recipe(rank=2, alpha=4, num_epochs=2, batch_rows=8, learning_rate=1e-2)


def card_of(folder, base):
    return AdapterCard(
        name="parent", digest=adapter_digest(folder), base_model=base.name, base_digest=base.digest, datanet="d",
        datanet_version=1, row_root="00", rows_trained=("row_000",), contributors={"ctr_0": 1}, recipe={},
        environment={}, code_version="0", initial_a="", final_loss=1.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A run on 24 rows that went on from an adapter of 24 others."""
    torch.set_num_threads(1)
    base, folder = make_tiny_base(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("runs")
    tokenizer = load_tokenizer(base)
    examples = tuple(encode_row(tokenizer, row) for row in tiny_rows())
    parent = folder / "parent"
    train_run(base, examples[:24], RECIPE, parent)
    save_card(parent, card_of(parent, base))
    own = Parent(folder=str(parent), digest=adapter_digest(parent))
    record = train_run(base, examples[24:], RECIPE, folder / "run", parent=own)
    return Subject(base=base, folder=folder / "run", examples=examples[24:], record=record)


@pytest.fixture(scope="module")
def queries(subject):
    return [replace(example, contributor_id="") for example in subject.examples[:6]]


def test_the_replay_is_the_run_to_the_bit(subject, queries):
    found = make("replay", subject, num_coalitions=4, num_twins=0, weights=[1.0] * 6, report=lambda _: None)
    assert found.attribute(queries).quality["deviation"] == 0.0


def test_a_replay_without_the_runs_beginning_is_refused(subject, queries):
    with pytest.raises(Corrupt) as caught:
        replay_run(subject.base, subject.record, subject.examples, [[(queries[0], 1.0)]])
    assert caught.value.code == "corrupt_start"


def test_replayed_scores_are_what_changed_row_weights_do(subject, queries):
    record, number = subject.record, len(subject.examples)
    start = start_folder(subject.folder)
    found = replay_run(subject.base, record, subject.examples, [[(q, 1.0) for q in queries]], start=start)
    direction = np.sign(np.random.default_rng(2).normal(size=number))

    def value(size):
        module = attach_lora(load_model(subject.base), RECIPE, record.initial, start).double()
        train(module, subject.examples, RECIPE, record.order, row_weights=(1 + size * direction).tolist())
        with torch.no_grad():
            return -float(LANGUAGE.losses(module, queries).sum())

    expected = (value(2.0**-11) - value(-(2.0**-11))) / 2.0**-10
    assert float(direction @ found.scores_RT[:, 0]) == pytest.approx(expected, rel=0.02)


def test_a_member_that_learns_from_no_row_ends_at_the_parent(subject):
    record, number = subject.record, len(subject.examples)
    still = Member(
        name="still", rows=tuple(range(number)), initial=record.initial, order=record.order,
        row_weights=(0.0,) * number,
    )  # fmt: skip
    start = start_folder(subject.folder)
    (weights,) = PackedRuns(base=subject.base, examples=subject.examples, recipe=RECIPE, start=start).train([still])
    parent = load_file(start / "adapter_model.safetensors")
    assert all(torch.equal(weights[n], parent[n.replace(".default.", ".")]) for n in weights)


def test_the_bank_and_the_adapter_without_a_contributor_begin_at_the_parent(subject, queries):
    plan = plan_bank(subject.record, subject.examples, num_coalitions=4, num_twins=1, without=["ctr_1"])
    assert {member.initial for member in plan.members} == {subject.record.initial}
    bank = subject.bank()
    bank.train(plan.members)
    forgotten = [
        replace(e, ids=(*e.ids[:-2], 7, 9)) if e.contributor_id == "ctr_1" else e for e in subject.examples
    ]  # his rows may say anything
    start = start_folder(subject.folder)
    (again,) = PackedRuns(base=subject.base, examples=forgotten, recipe=RECIPE, start=start).train(plan.withouts)
    for name, tensor in load_weights(bank.path(plan.withouts[0])).items():
        assert torch.allclose(tensor, again[name], atol=1e-6)
    # every coalition knows what the parent taught it, which none was trained on
    base = PackedRuns(base=subject.base, examples=subject.examples, recipe=RECIPE)
    start_weights = {
        name.replace(".weight", ".default.weight"): tensor
        for name, tensor in load_file(start / "adapter_model.safetensors").items()
    }
    parent = base.score([start_weights], queries)
    none = base.score([{name: torch.zeros_like(tensor) for name, tensor in start_weights.items()}], queries)
    assert (parent - none).mean() > 0.1
    assert (bank.score(plan.coalitions, queries) - none).mean() > 0.1


def test_a_second_initial_a_is_refused_because_the_run_had_none(subject):
    audit = plan_audit(subject, subject_plan(subject, 2, 0), 4, second_initial=True)
    with pytest.raises(InvalidInput) as caught:
        subject.bank().train(audit.second_initial)
    assert (caught.value.code, caught.value.param) == ("invalid_run", "initial")


def test_the_index_looks_at_the_runs_own_checkpoints(subject):
    (view,) = index_views(subject)
    assert view.name == "epoch-1"
    assert any(tensor.abs().max() > 0 for name, tensor in view.weights.items() if ".lora_B." in name)


class Scorer:
    """Says that the parent gained 1 nat on every token, the adapter 3, and the one that answered 4."""

    def score(self, prompt_ids, completion_ids, adapter_digests):
        told = {"": -5.0, "parent": -4.0, "served": -1.0}
        return np.stack([np.full(len(completion_ids), told.get(d, -2.0), np.float32) for d in adapter_digests])


def test_a_second_scorer_measures_a_generation_against_what_it_began_from(subject, queries, tmp_path):
    module = load_lora(load_model(subject.base), subject.folder).eval()
    build_index(module, subject.examples, (), tmp_path / "index", subject.digest)
    answers = [
        Answer(
            answer_id=f"ans_{number}", adapter="greek", adapter_digest="served", period="p1", fee_nano=10**9,
            prompt_ids=q.ids[: q.num_prompt], completion_ids=q.ids[q.num_prompt :],
        )
        for number, q in enumerate(queries)
    ]  # fmt: skip
    index = GradientIndex.open(tmp_path / "index", subject.digest)
    again = {"module": module, "index": index, "scorer": Scorer(), "held_out": (), "answers": answers}
    found = recompute("greek", "p1", **again, answered_by="served", began_from="parent").use()
    assert found.gain_nano == 6 * 2 * 10**9
    again["held_out"] = [replace(q, row_id="held") for q in queries[:2]]
    bounded = recompute("greek", "p1", **again, answered_by="served", began_from="parent").use()
    assert bounded.ceilings == ((4 * 10**9, 6 * 10**9),)  # of the adapter that answered, not of what this one added
    with pytest.raises(InvalidInput) as caught:
        recompute("greek", "p1", **again)
    assert caught.value.code == "wrong_adapter"


@pytest.mark.cluster
def test_members_trained_by_ray_tasks_begin_at_the_parent_too(cluster, subject, tmp_path):
    plan = plan_bank(subject.record, subject.examples, num_coalitions=2, num_twins=0)
    bank = train_bank(
        tmp_path / "bank", subject.record, subject.base, subject.examples, plan.members,
        start=start_folder(subject.folder),
    )  # fmt: skip
    start = start_folder(subject.folder)
    (here, _) = PackedRuns(base=subject.base, examples=subject.examples, recipe=RECIPE, start=start).train(plan.members)
    there = load_weights(bank.path(plan.members[0]))
    assert all(torch.allclose(there[name], tensor, atol=1e-5) for name, tensor in here.items())
