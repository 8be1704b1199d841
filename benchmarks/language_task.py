"""The language task of the attribution benchmark: a small Llama, 480 rows by 12 contributors, 96 answers.

Everything is made from what is installed: the base model is pretrained on documentation strings of the libraries in
CORPUS, the rows are documentation strings of twelve other modules. The same Python and library versions make the same
files; their digest stands beside every figure.
"""

import json
import random
from pathlib import Path

import torch

from openledger.core.files import write_durably
from openledger.core.hashing import digest_json
from openledger.datanets.docstrings import DocstringRow, package_rows

CORPUS = ("torch", "transformers", "ray", "peft", "fastapi", "pydantic", "rich", "aiohttp", "huggingface_hub", "jinja2")
CONTRIBUTORS = (
    "asyncio", "email", "http", "logging", "xml", "importlib", "multiprocessing", "unittest", "numpy.lib", "numpy.ma",
    "pandas.core", "pandas.io",
)  # fmt: skip
ROWS_EACH, HELD_OUT_EACH, GENERATED_EACH = 40, 5, 3
MAX_TOKENS, GENERATED_TOKENS = 56, 20
SEED = 20261123


def make_base(folder: Path) -> Path:
    """Pretrain the base model (1.3 million parameters) at `folder`, or find it there."""
    from openledger.training import pretraining as pre

    if (folder / "done").exists():
        return folder
    recipe = pre.PretrainingRecipe(
        vocab_size=2048, hidden_size=128, num_layers=4, num_heads=4, intermediate_size=352, max_positions=256,
        rows_per_step=48, num_epochs=2, max_row_tokens=96, warmup_steps=60, seed=SEED,
    )  # fmt: skip
    rows = _drawn([row for package in CORPUS for row in package_rows(package)], 24_000, "corpus")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = pre.train_tokenizer((text for row in rows for text in (row.prompt, row.completion)), recipe.vocab_size)
    tokenizer.save_pretrained(folder)
    encoded = [
        (ids, 1) for row in rows if len(ids := tokenizer(_text(row))["input_ids"]) <= recipe.max_row_tokens
    ]  # fmt: skip
    model = pre.new_model(recipe)
    optimizer = torch.optim.AdamW(
        pre.parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.95)
    )
    pre.pretrain(
        pre.AnswerLoss(model), optimizer, encoded, recipe, pre.Rank(0, 1),
        first_step=0, report_every=100, on_report=lambda metrics: print(json.dumps(metrics), flush=True),
    )  # fmt: skip
    model.save_pretrained(folder)
    (folder / "done").touch()
    return folder


def make_rows(base: Path, folder: Path) -> tuple[Path, Path]:
    """Write rows.jsonl (training) and held_out.jsonl (the first queries); no completion stands in both."""
    from openledger.adapters.base_model import load_tokenizer_from

    rows_file, held_out_file = folder / "rows.jsonl", folder / "held_out.jsonl"
    if held_out_file.exists():
        return rows_file, held_out_file
    tokenizer = load_tokenizer_from(base)
    rows, held_out, seen = [], [], set()
    for contributor in CONTRIBUTORS:
        fitting = []
        for row in _drawn(package_rows(contributor), 10**6, "rows"):
            if len(tokenizer(_text(row))["input_ids"]) <= MAX_TOKENS and row.completion not in seen:
                seen.add(row.completion)
                fitting.append({"row_id": row.source, "contributor": contributor, **_parts(row)})
        rows += fitting[:ROWS_EACH]
        held_out += fitting[ROWS_EACH : ROWS_EACH + HELD_OUT_EACH]
    random.Random(SEED).shuffle(rows)
    _write(rows_file, rows)
    _write(held_out_file, held_out)
    return rows_file, held_out_file


def write_queries(folder: Path, generated: list[dict[str, str]]) -> Path:
    """queries.jsonl: held-out rows first, then what the adapter answered to questions it was trained on."""
    held_out = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    _write(folder / "queries.jsonl", held_out + generated)
    return folder / "queries.jsonl"


def _write(path: Path, records: list[dict[str, str]]) -> None:
    write_durably(path, "".join(json.dumps(record) + "\n" for record in records).encode())


def _parts(row: DocstringRow) -> dict[str, str]:
    return {"prompt": f"{row.prompt}\n", "completion": f"{row.completion}\n"}


def _text(row: DocstringRow) -> str:
    return "".join(_parts(row).values())


def _drawn(rows: list[DocstringRow], limit: int, purpose: str) -> list[DocstringRow]:
    """At most `limit` rows, drawn by a hash of their names; one for each completion."""
    by_completion = {row.completion: row for row in sorted(rows, key=lambda row: row.source)}
    return sorted(by_completion.values(), key=lambda row: digest_json([purpose, SEED, row.source]))[:limit]
