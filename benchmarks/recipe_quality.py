"""What the attributable recipe costs in model quality: held-out loss under it, and as LoRA is usually trained.

    python -m benchmarks.recipe_quality OUT.json

Rows are documentation strings of four packages of the standard library, over the embedded base model. Each order of
rows is trained once in each way, from one initial A:

    attributable    the recipe's defaults: eps_root 1e-8 in AdamW, fp32, mathematical attention, no dropout
    adamw           torch's AdamW, which has no eps_root; the rest as above
    bf16            torch's AdamW, bfloat16 autocast, PyTorch's fused attention
    usual           as bf16, with dropout of 0.05 before LoRA's A

With learning rate, schedule and epochs alike, another way's loss less the attributable one's is taken within each
order. Held-out loss is taken in fp32 without dropout for all. Stopped on the way, it goes on when it is run again.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from openledger.adapters.base_model import (
    BaseModel,
    encode_completion,
    encode_messages,
    find_base_model,
    load_model,
    load_tokenizer,
)
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_json
from openledger.datanets.docstrings import package_rows
from openledger.training import loop
from openledger.training.examples import Example, collate, row_losses
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe, epoch_batches, learning_rate_at
from openledger.training.task import LANGUAGE, trainable_parameters

SEED = 20261126
PACKAGES = ("asyncio", "email", "http", "logging")
NUM_HELD_OUT, MOST_TOKENS, DROPOUT = 64, 56, 0.05
WAYS = ("attributable", "adamw", "bf16", "usual")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", help="a folder or hub id; default: the embedded model")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=Recipe().num_epochs)
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    base, recipe = find_base_model(options.base), Recipe(num_epochs=options.epochs)
    trained, held_out = make_rows(base, options.rows)
    drawn = digest_json([row.row_id for row in (*trained, *held_out)])[:12]
    setting = {
        "base": base.digest[:12],
        "rows": drawn,
        "recipe": recipe.to_dict(),
        "torch": torch.__version__,
        "seed": SEED,
    }
    losses = found_before(options.out, setting)
    losses.setdefault("base", {})["-"] = held_out_loss(load_model(base), held_out)
    for number in range(options.orders):
        for way in options.ways:
            if str(number) not in losses.setdefault(way, {}):
                losses[way][str(number)] = trained_loss(base, trained, held_out, recipe, way, number)
                write_json_durably(options.out, {"setting": setting, "losses": losses})
                print(f"{way}, order {number}: {losses[way][str(number)]:.4f}", file=sys.stderr, flush=True)
    print(printed(losses))
    return 0


def make_rows(base: BaseModel, num_rows: int) -> tuple[list[Example], list[Example]]:
    """Rows to train on and to hold out, drawn by `SEED`; none has the other's answer."""
    tokenizer = load_tokenizer(base)
    rows = {row.completion: row for package in PACKAGES for row in package_rows(package)}
    examples = []
    for row in sorted(rows.values(), key=lambda row: row.source):
        prompt = encode_messages(tokenizer, [{"role": "user", "content": row.prompt}])
        ids = (*prompt, *encode_completion(tokenizer, row.completion))
        if len(ids) <= MOST_TOKENS:
            examples.append(Example(row_id=row.source, contributor_id="", ids=ids, num_prompt=len(prompt)))
    random.Random(SEED).shuffle(examples)
    return examples[NUM_HELD_OUT : NUM_HELD_OUT + num_rows], examples[:NUM_HELD_OUT]


def found_before(out: Path, setting: dict[str, Any]) -> dict[str, dict[str, float]]:
    found = json.loads(out.read_text()) if out.exists() else {}
    same = found.get("setting") == json.loads(json.dumps(setting))
    return dict(found["losses"]) if same else {}


def trained_loss(
    base: BaseModel, rows: Sequence[Example], held_out: Sequence[Example], recipe: Recipe, way: str, number: int
) -> float:
    constant = digest_json(["recipe-quality", SEED, number])
    fused = way in ("bf16", "usual")
    module = attach_lora(load_model(base, "sdpa" if fused else "eager"), recipe, constant)
    if way == "attributable":
        loop.train(module, rows, recipe, constant)
    else:
        torch.manual_seed(SEED + number)
        train_usually(module, rows, recipe, constant, dropout=DROPOUT if way == "usual" else 0.0, half=fused)
    return held_out_loss(module, held_out)


def train_usually(
    module: Any, rows: Sequence[Example], recipe: Recipe, constant: str, *, dropout: float, half: bool
) -> None:
    """The recipe's rows, order, learning rates and epochs, with torch's AdamW."""
    set_dropout(module, dropout)
    parameters = list(trainable_parameters(module).values())
    optimizer = torch.optim.AdamW(parameters, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, weight_decay=0.0)
    lengths = [row.num_tokens for row in rows]
    batches = [batch for epoch in range(recipe.num_epochs) for batch in epoch_batches(lengths, recipe, constant, epoch)]
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, len(batches), recipe)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = LANGUAGE.losses(module, [rows[row] for row in batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    set_dropout(module, 0.0)


def set_dropout(module: Any, rate: float) -> None:
    """Before LoRA's A alone: PEFT has an identity there where the rate is 0."""
    for layer in module.modules():
        if hasattr(layer, "lora_dropout"):
            layer.lora_dropout["default"] = torch.nn.Dropout(rate).train(rate > 0)


@torch.no_grad()
def held_out_loss(module: Any, held_out: Sequence[Example]) -> float:
    """Mean over rows of each row's mean over its answer's tokens, in nats."""
    losses = [row_losses(module, collate(held_out[at : at + 16])) for at in range(0, len(held_out), 16)]
    return float(torch.cat(losses).mean())


def printed(losses: dict[str, dict[str, float]]) -> str:
    lines = [f"base model alone: {losses['base']['-']:.4f}", "", "| way | held-out loss | less attributable |",
             "| --- | --- | --- |"]  # fmt: skip
    for way in WAYS:
        own = losses.get(way, {})
        if own:
            differences = [loss - losses["attributable"][order] for order, loss in own.items()
                           if order in losses.get("attributable", {})]  # fmt: skip
            lines.append(f"| {way} | {told(list(own.values()))} | {told(differences) if differences else ''} |")
    return "\n".join(lines)


def told(values: Sequence[float]) -> str:
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{mean(values):.4f} +- {error:.4f} ({len(values)})"


if __name__ == "__main__":
    sys.exit(main())
