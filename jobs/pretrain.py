"""Pretrain the embedded base model with Ray Train.

    # the packages to learn from: any folder with installed packages, one sub-folder for each `pip install --target`
    python jobs/pretrain.py --packages packages/ --output build/base_model --workers 2

    ray job submit --working-dir . -- python jobs/pretrain.py --packages /data/packages --output /data/base_model

Packages that Datanets or the quickstart's new questions come from, and near-duplicates of their answers, are left out
of the corpus; `seen.bloom`, written beside the weights, lets anyone check that without the text.
"""

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "token")


def main() -> None:
    arguments = parse_arguments()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    corpus = output / "corpus.jsonl"
    if not corpus.exists():
        build_corpus(arguments.packages, corpus)
    prepare_tokenizer(corpus, output)
    result = train(arguments, corpus, output)
    write_record(output, corpus, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder of folders of installed packages")
    parser.add_argument("--output", type=Path, required=True, help="where the model goes")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--gpu", action="store_true", help="one GPU for each worker")
    parser.add_argument("--checkpoint-every", type=int, default=200, help="steps")
    return parser.parse_args()


def build_corpus(packages: Path, corpus: Path) -> None:
    from openledger.datanets.docstrings import package_rows
    from openledger.platform.demonstration import contributed_modules, new_packages
    from openledger.training.corpus import disjoint_rows, folder_rows, write_rows

    modules = [*contributed_modules(), *new_packages()]
    protected = [row for module in modules for row in package_rows(module)]
    candidates = [row for folder in sorted(packages.iterdir()) if folder.is_dir() for row in folder_rows(folder)]
    rows = disjoint_rows(candidates, protected, {module.split(".")[0] for module in modules})
    write_rows(corpus, rows)
    print(f"{len(candidates)} rows found, {len(rows)} kept, {len(protected)} protected", flush=True)


def prepare_tokenizer(corpus: Path, output: Path) -> None:
    from openledger.training.pretraining import PretrainingRecipe, train_tokenizer

    if not (output / "tokenizer.json").exists():
        rows = [json.loads(line) for line in corpus.read_text().splitlines()]
        texts = (text for row in rows for text in (row["prompt"], row["completion"]))
        train_tokenizer(texts, PretrainingRecipe().vocab_size).save_pretrained(output)


def train(arguments: argparse.Namespace, corpus: Path, output: Path) -> dict[str, Any]:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from openledger.training.pretraining import PretrainingRecipe

    if os.environ.get("RAY_ADDRESS"):
        ray.init()  # inside a job, or to a cluster that is named: its resources are its own
    else:
        ray.init(num_cpus=None if arguments.gpu else arguments.workers, object_store_memory=150 * 2**20)
    trainer = TorchTrainer(
        worker,
        train_loop_config={
            "recipe": asdict(PretrainingRecipe(num_epochs=arguments.epochs)),
            "corpus": str(corpus),
            "output": str(output),
            "threads": 1,
            "checkpoint_every": arguments.checkpoint_every,
        },
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        run_config=RunConfig(
            name="pretrain",
            storage_path=str(output / "run"),
            failure_config=FailureConfig(max_failures=2),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )
    return trainer.fit().return_value


def worker(config: dict[str, Any]) -> dict[str, Any]:
    """What each Ray Train worker runs: the loop, its checkpoints and reports."""
    import ray.train
    import torch
    from ray.train.torch import prepare_model

    from openledger.adapters.base_model import load_tokenizer_from
    from openledger.training.pretraining import (
        AnswerLoss,
        PretrainingRecipe,
        Rank,
        encode_rows,
        new_model,
        parameter_groups,
        pretrain,
    )  # fmt: skip

    torch.set_num_threads(config["threads"])
    recipe, output = PretrainingRecipe(**config["recipe"]), Path(config["output"])
    context = ray.train.get_context()
    rank = Rank(context.get_world_rank(), context.get_world_size())
    rows = [json.loads(line) for line in Path(config["corpus"]).read_text().splitlines()]
    encoded = encode_rows(load_tokenizer_from(output), rows, recipe.max_row_tokens)
    model = new_model(recipe)
    loss_of = prepare_model(AnswerLoss(model), move_to_device=torch.cuda.is_available())
    groups = parameter_groups(model, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))
    first_step, curve = restore(ray.train.get_checkpoint(), model, optimizer)

    def on_report(metrics: dict[str, float]) -> None:
        curve.append(metrics)
        report(curve, model, optimizer, output if rank.number == 0 else None)

    every = config["checkpoint_every"]
    pretrain(loss_of, optimizer, encoded, recipe, rank, first_step=first_step, report_every=every, on_report=on_report)
    return {"curve": curve, "num_rows": len(encoded), "recipe": asdict(recipe)}


def restore(checkpoint: Any, model: Any, optimizer: Any) -> tuple[int, list[dict[str, float]]]:
    """The step to go on from and the curve so far; 0 and nothing without a checkpoint."""
    import torch

    if checkpoint is None:
        return 0, []
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), state["curve"]


def report(curve: list[dict[str, float]], model: Any, optimizer: Any, output: Path | None) -> None:
    """Every rank reports; rank 0 (which is handed `output`) adds the checkpoint and writes the model for use."""
    import ray.train
    import torch

    if output is None:
        ray.train.report(curve[-1])
        return
    model.save_pretrained(output)
    with tempfile.TemporaryDirectory() as folder:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": curve[-1]["step"]}
        torch.save({**state, "curve": curve}, Path(folder) / "state.pt")
        ray.train.report(curve[-1], checkpoint=ray.train.Checkpoint.from_directory(folder))


def write_record(output: Path, corpus: Path, result: dict[str, Any]) -> None:
    from openledger.core.files import write_json_durably
    from openledger.core.hashing import digest_file
    from openledger.datanets.shingles import ShingleFilter, shingles

    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    ShingleFilter.build(value for row in rows for value in shingles(row["completion"])).save(output / "seen.bloom")
    packages = sorted({row["source"].split(".")[0] for row in rows})
    record = {**result, "corpus_rows": len(rows), "corpus_digest": digest_file(corpus), "packages": packages}
    write_json_durably(output / "pretraining.json", record)


if __name__ == "__main__":
    main()
