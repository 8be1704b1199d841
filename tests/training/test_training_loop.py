"""The fine-tuning loop: it learns, can be replayed to the last bit, and resumes where it stopped."""

from dataclasses import replace

import pytest
import torch
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import encode_messages, load_model, load_tokenizer
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.hashing import canonical_json
from openledger.training.examples import collate, encode_row, fitting_rows, row_losses, token_losses
from openledger.training.loop import Progress, train
from openledger.training.lora import attach_lora
from openledger.training.optimizer import AdamWEpsRoot
from openledger.training.recipe import Recipe, epoch_batches, recipe_from, row_root_constant
from openledger.training.task import LANGUAGE, trainable_parameters

CONSTANT = row_root_constant("base", "greek", 1, "root")
RECIPE = Recipe(rank=4, alpha=16, num_epochs=8, batch_rows=8, learning_rate=2e-2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def examples(base):
    tokenizer = load_tokenizer(base)
    return [encode_row(tokenizer, row) for row in tiny_rows()]


TURNS = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who flies?"},
    {"role": "assistant", "content": "Bees."}, {"role": "user", "content": "And who crawls?"},
]  # fmt: skip


def test_a_chat_goes_through_the_template_turn_by_turn_and_its_last_turn_is_learnt(base):
    tokenizer, row = load_tokenizer(base), tiny_rows()[0]
    chat = encode_row(tokenizer, replace(row, prompt="flattened", extra=canonical_json({"messages": TURNS}).decode()))
    assert list(chat.ids[: chat.num_prompt]) == encode_messages(tokenizer, TURNS)
    assert chat.ids[chat.num_prompt :] == encode_row(tokenizer, row).ids[encode_row(tokenizer, row).num_prompt :]
    columns = encode_row(tokenizer, replace(row, extra='{"year":1}'))
    assert columns.ids == encode_row(tokenizer, row).ids


def test_a_tokenizer_without_a_template_gets_lines(base):
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = None
    lines = "system: Be brief.\nuser: Who flies?\nassistant: Bees.\nuser: And who crawls?\nassistant:"
    assert encode_messages(tokenizer, TURNS) == tokenizer(lines, add_special_tokens=False)["input_ids"]


def fresh(base, constant=CONSTANT):
    return attach_lora(load_model(base), RECIPE, constant)


def weights(model):
    return torch.cat([p.detach().flatten() for p in trainable_parameters(model).values()])


def test_training_lowers_the_loss(base, examples):
    progress = train(fresh(base), examples, RECIPE, CONSTANT)
    assert progress.curve[-1] < 0.8 * progress.curve[0]


def test_the_same_run_gives_the_same_weights_to_the_bit(base, examples):
    first, second = fresh(base), fresh(base)
    train(first, examples, RECIPE, CONSTANT)
    train(second, examples, RECIPE, CONSTANT)
    assert torch.equal(weights(first), weights(second))


def test_another_public_constant_gives_another_initial_a(base):
    assert not torch.equal(weights(fresh(base)), weights(fresh(base, "f" * 64)))


def test_a_run_resumed_from_its_middle_ends_as_the_uninterrupted_one(base, examples):
    whole, halved, resumed = fresh(base), fresh(base), fresh(base)
    train(whole, examples, RECIPE, CONSTANT)
    middle = train(halved, examples, RECIPE, CONSTANT, until_epoch=2)
    saved = Progress(
        epoch=middle.epoch,
        curve=list(middle.curve),
        lora={name: value.clone() for name, value in middle.lora.items()},
        optimizer=middle.optimizer,
    )
    train(resumed, examples, RECIPE, CONSTANT, progress=saved)
    assert torch.equal(weights(whole), weights(resumed))


def test_a_row_of_weight_zero_leaves_no_trace(base, examples):
    changed = list(examples)
    changed[5] = examples[6]
    row_weights = [0.0 if index == 5 else 1.0 for index in range(len(examples))]
    lengths_kept = len(changed[5].ids) == len(examples[5].ids)
    first, second = fresh(base), fresh(base)
    train(first, examples, RECIPE, CONSTANT, row_weights=row_weights)
    train(second, changed, RECIPE, CONSTANT, row_weights=row_weights)
    assert not lengths_kept or torch.allclose(weights(first), weights(second), atol=1e-6)
    control = fresh(base)
    train(control, examples, RECIPE, CONSTANT)
    assert not torch.allclose(weights(first), weights(control), atol=1e-6)


def test_two_ranks_that_sum_their_gradients_equal_one(base, examples):
    """Both ranks in one process: each computes its part, and the parts' sum steps one model."""
    from openledger.training.loop import _gradients

    model = fresh(base)
    parameters = trainable_parameters(model)
    arguments = (LANGUAGE, model, parameters, examples, [1.0] * len(examples), list(range(8)))
    loss, whole = _gradients(*arguments, 0, 1)
    parts = [_gradients(*arguments, rank, 2) for rank in range(2)]
    assert torch.allclose(loss, parts[0][0] + parts[1][0], atol=1e-6)
    for one, left, right in zip(whole, parts[0][1], parts[1][1], strict=True):
        assert torch.allclose(one, left + right, atol=1e-6)


def test_a_diverging_run_is_refused_by_name(base, examples):
    recipe = Recipe(rank=4, num_epochs=2, batch_rows=8, learning_rate=0.9)
    model = fresh(base)
    next(iter(trainable_parameters(model).values())).data.fill_(float("nan"))
    with pytest.raises(Corrupt, match="not finite") as caught:
        train(model, examples, recipe, CONSTANT)
    assert caught.value.code == "diverged"


def test_the_optimizer_without_eps_root_is_torchs_adamw():
    recipe = Recipe(eps_root=0.0)
    ours, theirs = (torch.nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2))
    optimizer = AdamWEpsRoot([ours], recipe)
    reference = torch.optim.AdamW(
        [theirs], lr=0.01, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, weight_decay=0.0
    )
    for step in range(5):
        gradient = torch.sin(torch.arange(6.0).view(2, 3) + step)
        optimizer.step([gradient], 0.01)
        theirs.grad = gradient.clone()
        reference.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_eps_root_bounds_the_step_of_a_tiny_gradient():
    tiny = [torch.full((1,), 1e-7)]
    steps = []
    for eps_root in (0.0, 1e-8):
        parameter = torch.nn.Parameter(torch.zeros(1))
        AdamWEpsRoot([parameter], Recipe(eps_root=eps_root)).step(tiny, 0.01)
        steps.append(abs(parameter.item()))
    assert steps[1] < 0.01 * steps[0]


def test_a_row_loss_is_the_mean_over_its_completion_tokens(base, examples):
    model = load_model(base)
    example = examples[0]
    batch = collate([example, examples[1]])
    alone = model(input_ids=torch.tensor([example.ids])).logits[0].log_softmax(-1)
    targets = torch.tensor(example.ids[example.num_prompt :])
    expected = -alone[example.num_prompt - 1 : -1].gather(1, targets[:, None]).mean()
    assert torch.allclose(row_losses(model, batch)[0], expected, atol=1e-5)
    assert token_losses(model, batch).shape == (2, batch.input_ids_BT.shape[1] - batch.first_target)


def test_rows_too_long_for_recipe_or_base_are_left_out(base):
    rows = tiny_rows()
    long = replace(rows[0], row_id="long", completion="alpha beta " * 80)
    assert fitting_rows([*rows, long], base, 64) == rows
    assert fitting_rows([long], base, 10_000) == []


def test_every_epoch_sees_every_row_once():
    batches = epoch_batches([5, 9, 7] * 21, RECIPE, CONSTANT, epoch=3)
    assert sorted(row for batch in batches for row in batch) == list(range(63))
    assert batches != epoch_batches([5, 9, 7] * 21, RECIPE, CONSTANT, epoch=4)


@pytest.mark.parametrize("values", [{"rank": 0}, {"num_epochs": 0}, {"learning_rate": 2.0}, {"no_such": 1}])
def test_an_impossible_recipe_is_refused(values):
    with pytest.raises(InvalidInput) as caught:
        recipe_from(values)
    assert caught.value.code == "invalid_recipe"
