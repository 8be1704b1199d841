"""A second scorer on the same record comes to the same shares; whoever changed a score is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.attribution.bank import plan_bank, run_bank
from openledger.attribution.index import GradientIndex, build_index
from openledger.attribution.index_folder import View
from openledger.attribution.likeness import Repeat
from openledger.attribution.recompute import agreement, recompute, with_gone
from openledger.core.errors import InvalidInput
from openledger.core.values import Answer, ContributorScores
from openledger.training.examples import Example, encode_row
from openledger.training.lora import load_lora
from openledger.training.recipe import Recipe
from openledger.training.record import train_run
from openledger.training.task import trainable_parameters

RECIPE = Recipe(rank=2, alpha=4, num_epochs=4, batch_rows=8, learning_rate=1e-2)
Z = 1000


class PlainScorer:
    """What the engine does, by two plain forward passes."""

    def __init__(self, module):
        self.module = module

    def score(self, prompt_ids, completion_ids, adapter_digests):
        return np.stack([self._one((*prompt_ids, *completion_ids), len(prompt_ids), d) for d in adapter_digests])

    def _one(self, ids, num_prompt, digest):
        with torch.no_grad():
            if digest:
                logits = self.module(torch.tensor([ids])).logits[0]
            else:
                with self.module.disable_adapter():
                    logits = self.module(torch.tensor([ids])).logits[0]
        told = logits.log_softmax(-1)[torch.arange(num_prompt - 1, len(ids) - 1), list(ids[num_prompt:])]
        return told.numpy()


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """What a scorer needs, opened from disk as a stranger to the first would: the function opens it anew each time."""
    torch.set_num_threads(1)
    base = make_tiny_base(tmp_path_factory.mktemp("base"))
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in tiny_rows()]
    trained, decoys = examples[:40], examples[40:]
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = train_run(base, trained, RECIPE, folder)
    plan = plan_bank(run, trained, num_coalitions=6, num_twins=1)
    run_bank(folder / "bank", run, base, trained).train(plan.coalitions)
    indexed = load_lora(load_model(base), folder).eval()
    build_index(indexed, trained, decoys, folder / "index", run.adapter_digest)
    answers = [
        Answer(
            answer_id=f"ans_{number}", adapter="greek", adapter_digest=run.adapter_digest, period="p0001",
            prompt_ids=e.ids[: e.num_prompt], completion_ids=e.ids[e.num_prompt :], fee_nano=10**9, pool_nano=5 * 10**8,
        )
        for number, e in enumerate(trained[:12])
    ]  # fmt: skip

    def opened():
        module = load_lora(load_model(base), folder).eval()
        bank = run_bank(folder / "bank", run, base, trained)
        return (
            answers,
            module,
            GradientIndex.open(folder / "index", run.adapter_digest),
            PlainScorer(module),
            bank,
            plan,
        )

    return opened


def once(record, with_bank):
    answers, module, index, scorer, bank, plan = record()
    held_out = [example(answer) for answer in answers[8:]]
    chosen = (bank, plan) if with_bank else None
    return recompute("greek", "p0001", answers[:8], held_out, module, index, scorer, chosen, least_error_scale=2.0)


def example(answer):
    ids = (*answer.prompt_ids, *answer.completion_ids)
    return Example(row_id=answer.answer_id, contributor_id="", ids=ids, num_prompt=len(answer.prompt_ids))


@pytest.mark.parametrize(("with_bank", "method"), [(False, "index/ekfac-3"), (True, "bank/2")])
def test_recomputing_on_the_same_record_gives_the_same_scores(record, with_bank, method):
    measured, again = once(record, with_bank), once(record, with_bank)
    first, second = measured.use(), again.use()
    assert first == second
    assert measured.improvement() == again.improvement() != first
    assert first.method == method
    assert first.quality.get("index_method") == ("index/ekfac-3" if with_bank else None)
    assert first.gain_nano > 0
    assert set(first.scores_nano) == {"ctr_0", "ctr_1", "ctr_2", "ctr_3"}
    assert agreement(first, second, 0, Z).agrees


def test_a_tampered_score_is_found_and_named(record):
    honest = once(record, with_bank=False).use()
    best = max(honest.scores_nano, key=lambda name: honest.scores_nano[name])
    tampered = replace(honest, scores_nano={**honest.scores_nano, best: honest.scores_nano[best] // 2})
    found = agreement(tampered, honest, 10_000, Z)
    assert not found.agrees
    assert best in found.differing
    assert found.differences_ppb[best] > 0
    assert sum(found.differences_ppb.values()) == 0


def test_a_contributor_who_was_left_out_is_found(record):
    honest = once(record, with_bank=False).use()
    best = max(honest.scores_nano, key=lambda name: honest.scores_nano[name])
    kept = {name: value for name, value in honest.scores_nano.items() if name != best}
    without = replace(honest, scores_nano=kept, errors_nano={name: honest.errors_nano[name] for name in kept})
    assert best in agreement(without, honest, 10_000, Z).differing


def test_a_difference_is_tolerated_up_to_the_stated_part_of_the_pool():
    first, second = (
        ContributorScores(
            adapter="py", period="p0001", method="m", scores_nano={"a": a}, errors_nano={"a": 0}, gain_nano=1000
        )
        for a in (500, 510)
    )
    assert agreement(first, second, 10_000, Z).agrees
    assert agreement(first, second, 9_999, Z).differing == ("a", "unattributed")


def test_scores_of_two_pools_are_not_compared(record):
    honest = once(record, with_bank=False).use()
    with pytest.raises(InvalidInput):
        agreement(honest, replace(honest, period="p0002"), 0)


def test_answers_of_another_adapter_are_refused(record):
    answers, module, index, scorer, _, _ = record()
    with pytest.raises(InvalidInput) as caught:
        recompute("greek", "p0001", [replace(answers[0], adapter_digest="other")], [], module, index, scorer)
    assert caught.value.code == "wrong_adapter"


def test_an_index_of_several_views_is_recomputed_where_it_was_built(record, tmp_path):
    answers, module, _, scorer, _, _ = record()
    examples, digest = [example(answer) for answer in answers], answers[0].adapter_digest
    weights = trainable_parameters(module)
    half = {name: tensor * 0.5 for name, tensor in weights.items()}
    views = [View(name="epoch-1", weights=half), View(name="epoch-2", weights=weights)]
    index = build_index(module, examples, (), tmp_path / "index", digest, views=views)
    found = recompute("greek", "p0001", answers, [], module, index, scorer, views=views)
    assert np.array_equal(found.scores, index.score(index.query_vectors(module, examples, views=views)))
    with pytest.raises(InvalidInput) as caught:
        recompute("greek", "p0001", answers, [], module, index, scorer, views=views[:1])
    assert caught.value.code == "wrong_index"


def test_a_settlement_of_before_is_recomputed_on_an_index_by_the_method_that_it_states(record, tmp_path):
    answers, module, _, scorer, _, _ = record()
    rows, digest = [example(answer) for answer in answers], answers[0].adapter_digest
    older = build_index(module, rows, (), tmp_path / "index", digest, method="index/ekfac-2")
    assert recompute("greek", "p0001", answers, [], module, older, scorer).use().method == "index/ekfac-2"


def repeat(row_id, earlier, likeness_milli, contributor_id=""):
    return Repeat(row_id=row_id, earlier=earlier, likeness_milli=likeness_milli, contributor_id=contributor_id)


def test_pairs_with_a_row_that_is_gone_are_taken_as_they_were_settled_and_no_others():
    found = (repeat("r5", "r3", 900, "ctr_1"),)
    stated = [
        ["r2", "r1", "ctr_0", 950],  # the earlier row is gone
        ["r1", "r0", "ctr_2", 870],  # the row itself
        ["r4", "r3", "ctr_1", 990],  # both are there, and aren't found alike
        ["r5", "r1", "ctr_0", 940],  # alike to another that is there
    ]
    taken = repeat("r1", "r0", 870, "ctr_2"), repeat("r2", "r1", 950, "ctr_0")
    assert with_gone(found, stated, {"r1", "r9"}) == (*found, *taken)
    assert with_gone(found, stated, set()) == found


def test_a_settlement_by_the_third_rule_names_no_contributor():
    assert with_gone((), [["r2", "r1", 950]], {"r1"}) == (repeat("r2", "r1", 950),)
