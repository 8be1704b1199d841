"""The bank: its members are the run again on parts of the rows; it resumes, and refuses what is not its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.adapters.card import adapter_digest
from openledger.attribution.bank import plan_bank, run_bank
from openledger.attribution.bank_folder import bank_outcomes, find_bank, finish_bank, write_without
from openledger.core.errors import Corrupt, InvalidInput, NotFound
from openledger.training.examples import encode_row
from openledger.training.lora import load_lora
from openledger.training.packed import PackedRuns
from openledger.training.recipe import Recipe
from openledger.training.record import load_weights, train_run
from openledger.training.task import LANGUAGE

RECIPE = Recipe(rank=2, alpha=4, num_epochs=2, batch_rows=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    base = make_tiny_base(tmp_path_factory.mktemp("base"))
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in tiny_rows()]
    folder = tmp_path_factory.mktemp("runs") / "run"
    record = train_run(base, examples, RECIPE, folder)
    plan = plan_bank(record, examples, num_coalitions=6, num_twins=1, without=["ctr_1"])
    bank = run_bank(folder / "bank", record, base, examples)
    bank.train(plan.members)
    return base, examples, folder, record, plan, bank


def test_members_hold_the_rows_of_their_coalition_and_start_where_the_run_did(world):
    _, examples, _, record, plan, _ = world
    for member, present in zip(plan.coalitions, plan.design.members_MG, strict=True):
        there = {row_id for group, on in zip(plan.design.groups, present, strict=True) if on for row_id in group}
        assert {examples[row].row_id for row in member.rows} == there
        assert member.initial == record.initial
    assert len({member.order for member in plan.coalitions + plan.twins}) == 7


def test_the_adapter_without_a_contributor_is_the_run_with_his_rows_at_weight_zero(world):
    base, examples, _, record, plan, bank = world
    (without,) = plan.withouts
    assert without.order == record.order
    assert [weight == 0 for weight in without.row_weights] == [e.contributor_id == "ctr_1" for e in examples]
    forgotten = [
        replace(e, ids=(*e.ids[:-2], 7, 9)) if e.contributor_id == "ctr_1" else e for e in examples
    ]  # his rows may say anything
    (again,) = PackedRuns(base=base, examples=forgotten, recipe=RECIPE).train([without])
    for name, tensor in load_weights(bank.path(without)).items():
        assert torch.allclose(tensor, again[name], atol=1e-6)


def test_an_answer_is_likelier_where_its_contributor_was_trained_on(world):
    _, examples, _, _, plan, bank = world
    scores = bank.score(plan.coalitions, examples)
    present = np.array(plan.design.members_MG)
    own = [int(example.contributor_id[-1]) for example in examples]
    gains = [scores[present[:, g], q].mean() - scores[~present[:, g], q].mean() for q, g in enumerate(own)]
    assert np.mean(gains) > 0


def test_a_bank_that_was_stopped_trains_only_what_is_missing(world):
    _, _, _, _, plan, bank = world
    lost = plan.coalitions[3]
    before = load_weights(bank.path(lost))
    bank.path(lost).unlink()
    with pytest.raises(NotFound) as caught:
        bank.score(plan.coalitions, [])
    assert caught.value.code == "incomplete_bank"
    assert "coalition-003" in caught.value.message
    trained = []
    bank.train(plan.members, on_member=trained.append)
    assert trained == [lost]
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_weights(bank.path(lost)).items())


def test_a_twin_keeps_where_it_stood_after_each_epoch(world):
    _, _, _, _, plan, bank = world
    found = bank.epochs(plan.twins[0])
    assert list(found) == [1, 2]
    (final,) = bank.weights(plan.twins)
    assert all(torch.equal(tensor, found[2][name]) for name, tensor in final.items())
    assert bank.epochs(plan.coalitions[0]) == {}


def test_a_larger_bank_keeps_the_members_it_has(world):
    _, examples, _, record, plan, bank = world
    larger = plan_bank(record, examples, num_coalitions=8, num_twins=2)
    assert set(plan.coalitions) <= set(larger.coalitions)
    assert len(bank.missing(larger.members)) == 3


def test_a_damaged_member_is_named(world):
    _, examples, _, _, plan, bank = world
    path = bank.path(plan.twins[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(Corrupt, match="twin-1"):
        bank.score(plan.twins, examples[:1])
    path.write_bytes(whole)


def test_another_base_other_rows_and_an_unknown_contributor_are_refused(world):
    base, examples, folder, record, _, _ = world
    with pytest.raises(InvalidInput, match="another base"):
        run_bank(folder / "bank", record, replace(base, digest="0" * 64), examples)
    with pytest.raises(InvalidInput, match="other rows"):
        run_bank(folder / "bank", record, base, examples[:-1])
    with pytest.raises(NotFound, match="nobody"):
        plan_bank(record, examples, without=["nobody"])


def test_one_contributor_has_no_bank(world):
    _, examples, _, record, _, _ = world
    with pytest.raises(InvalidInput) as caught:
        plan_bank(record, [replace(example, contributor_id="one") for example in examples])
    assert caught.value.code == "one_contributor"


def test_a_finished_bank_is_found_by_its_folder_and_scores_as_the_bank_does(world):
    base, examples, folder, record, plan, bank = world
    finish_bank(bank, plan, record.adapter_digest)
    kept = find_bank(folder, record.adapter_digest)
    assert (kept.design.groups, kept.design.players) == (plan.design.groups, "blocks")
    assert np.array_equal(kept.design.members_MG, plan.design.members_MG)
    assert kept.withouts == {"ctr_1": bank.path(plan.withouts[0])}
    outcomes = bank_outcomes(folder, kept, base, examples[:3])
    assert np.allclose(outcomes, bank.score(plan.coalitions, examples[:3]), atol=1e-6)


def test_a_bank_of_the_format_before_has_contributors_for_players(world):
    _, examples, folder, record, plan, bank = world
    finish_bank(bank, plan, record.adapter_digest)
    document = folder / "bank" / "bank.json"
    values = json.loads(document.read_text())
    del values["players"]
    names = sorted({example.contributor_id for example in examples})
    old = {**values, "format": "openledger.bank/1", "groups": [[name] for name in names]}
    old["coalitions"] = [{**coalition, "groups": [0]} for coalition in values["coalitions"]]
    document.write_text(json.dumps(old))
    found = find_bank(folder, record.adapter_digest).design
    assert (found.players, found.groups) == ("contributors", tuple((name,) for name in names))
    numbers = found.numbers([(example.row_id, example.contributor_id) for example in examples])
    assert [names[number] for number in numbers] == [example.contributor_id for example in examples]
    for wrong in ({**values, "format": "openledger.bank/3"}, {**values, "players": "teams"}, values):
        document.write_text(json.dumps(wrong))
        with pytest.raises(Corrupt) as caught:
            find_bank(folder, record.adapter_digest)
        assert caught.value.code == "corrupt_bank"
    document.unlink()


def test_an_unfinished_bank_is_not_found_and_cannot_be_finished(world, tmp_path):
    base, examples, _folder, record, plan, _ = world
    other = run_bank(tmp_path / "bank", record, base, examples)
    with pytest.raises(NotFound) as caught:
        finish_bank(other, plan, record.adapter_digest)
    assert caught.value.code == "incomplete_bank"
    assert find_bank(tmp_path, record.adapter_digest) is None


def test_another_adapters_bank_and_a_damaged_one_are_refused(world):
    _, _, folder, record, plan, bank = world
    finish_bank(bank, plan, record.adapter_digest)
    with pytest.raises(InvalidInput) as caught:
        find_bank(folder, "0" * 64)
    assert caught.value.code == "wrong_bank"
    document = folder / "bank" / "bank.json"
    document.write_text(document.read_text().replace('"groups"', '"grups"', 1))
    with pytest.raises(Corrupt) as caught:
        find_bank(folder, record.adapter_digest)
    assert caught.value.code == "corrupt_bank"
    document.unlink()


def test_the_adapter_without_a_contributor_can_be_served(world, tmp_path):
    base, examples, folder, record, plan, bank = world
    finish_bank(bank, plan, record.adapter_digest)
    kept = find_bank(folder, record.adapter_digest)
    digest = write_without(folder, kept, "ctr_1", tmp_path / "without")
    assert digest == adapter_digest(tmp_path / "without") != record.adapter_digest
    module = load_lora(load_model(base), tmp_path / "without")
    with torch.no_grad():
        scores = -LANGUAGE.losses(module, examples[:4]).numpy()
    assert np.allclose(scores, bank.score(plan.withouts, examples[:4])[0], atol=1e-5)
    with pytest.raises(NotFound) as caught:
        write_without(folder, kept, "ctr_2", tmp_path / "other")
    assert caught.value.code == "no_such_member"
