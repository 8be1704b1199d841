"""What other libraries say about the language task: kronfluence, dattri and bergson on the same adapter, rows, answers.

The libraries live in an environment of their own and this file imports nothing of OpenLedger:

    python -m venv peers
    peers/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    peers/bin/pip install --no-deps -r benchmarks/peers_requirements.txt
    peers/bin/python -m benchmarks.attribution_peers FOLDER
    peers/bin/python -m benchmarks.attribution_peers FOLDER --method kronfluence-ekfac bergson-ekfac

FOLDER is that of benchmarks/attribution.py, once its run is trained. Each method writes FOLDER/scores/peers/NAME.npy,
float32 [rows, queries], positive where the row makes the answer likelier, and its CPU seconds into NAME.json; what is
there is not computed again. benchmarks/attribution.py then scores every array on the same truth.

Rows and answers are encoded as OpenLedger does: prompt with the tokenizer's defaults, completion without special
tokens, prompts masked, a row's loss is the mean over its completion's tokens, fp32, eager attention. Curvature is taken
where a library can as it is here: the true Fisher, token losses over the root of their number, damping a tenth of the
mean eigenvalue. A score's sign is checked against gradient dot, made here with plain autograd.

Shapes: R rows, Q queries, B rows of a batch, T tokens, P trained parameters.
"""

import argparse
import importlib.metadata
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100  # a label that no loss is taken of
BATCH_ROWS = 16
SEED = 20261125


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row or an answer. `labels` are its tokens, IGNORED where they belong to the prompt."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(kw_only=True)
class Clock:
    """CPU seconds of building whatever is reused for later answers, and of the answers."""

    seconds: dict[str, float] = field(default_factory=lambda: {"build": 0.0, "query": 0.0})

    def run(self, part: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        try:
            return work()
        finally:
            self.seconds[part] += time.process_time() - start


class Peers:
    """The task as the libraries see it: a PEFT model, rows and answers as token ids."""

    def __init__(self, folder: Path, scratch: Path):
        self.folder, self.scratch = folder, scratch
        self.base = (folder / "base").resolve()
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        self.rows, self.queries = (
            [encode(tokenizer, record) for record in read_records(folder / name)]
            for name in ("rows.jsonl", "queries.jsonl")
        )

    def model(self) -> Any:
        """The adapter over its base: fp32, eager attention, LoRA's matrices requiring gradients."""
        base = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32, attn_implementation="eager")
        return PeftModel.from_pretrained(base, str(self.adapter), is_trainable=True).eval()

    @cached_property
    def adapter(self) -> Path:
        """A copy of the PEFT directory that names its base by the path where it lies now."""
        return self._peft_folder("adapter")

    @cached_property
    def checkpoints(self) -> list[Path]:
        """The run's matrices after each epoch, by the model's parameter names."""
        found = (self.folder / "run" / "checkpoints").glob("epoch-*.safetensors")
        return sorted(found, key=lambda path: int(path.stem.split("-")[1]))

    @cached_property
    def dot(self) -> np.ndarray[Any, Any]:
        """Gradient dot product, [R, Q], a backward pass for each row and answer."""
        rows_RP, queries_QP = (self.gradients(examples) for examples in (self.rows, self.queries))
        return (rows_RP @ queries_QP.T).numpy()

    def gradients(self, examples: Sequence[Encoded]) -> torch.Tensor:
        return gradients(self.model(), examples)

    @property
    def collate(self) -> Callable[..., Any]:
        return collate

    def modules(self, model: Any) -> list[str]:
        return trained_modules(model)

    def kronfluence_task(self, modules: list[str]) -> Any:
        return kronfluence_task(modules)

    def dattri_task(self, checkpoints: list[Path]) -> tuple[Any, list[str]]:
        return dattri_task(self, checkpoints)

    def dattri_loaders(self) -> tuple[Any, Any]:
        return dattri_loaders(self)

    def _peft_folder(self, name: str) -> Path:
        folder = self.scratch / name
        folder.mkdir()
        config = json.loads((self.folder / "run" / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(self.base)}))
        shutil.copy(self.folder / "run" / "adapter_model.safetensors", folder)
        return folder


Method = Callable[[Any, Clock], np.ndarray[Any, Any]]  # of `Peers`, or of another task's


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", nargs="+", choices=sorted(METHODS), default=sorted(METHODS), metavar="NAME",
                        help=f"one or more of {', '.join(sorted(METHODS))}; all of them without it")  # fmt: skip
    parser.add_argument("--out", type=Path, help="where scores are written, instead of FOLDER/scores/peers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out or options.folder / "scores" / "peers"
    with TemporaryDirectory(prefix="peers-") as scratch:
        peers = Peers(options.folder, Path(scratch))
        return measure_all(peers, {name: METHODS[name] for name in options.method}, out)


def measure_all(peers: Any, methods: Mapping[str, Method], out: Path) -> int:
    """Scores of each method whose are missing, and the table of what is there; 1 where a method failed."""
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name, method in methods.items():
        if (out / f"{name}.npy").exists():
            continue
        try:
            measure(peers, name, method, out)
        except Exception as error:  # noqa: BLE001 - one library's failure is a result and must not end the others
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    print(summary(out))
    return 1 if failed else 0


def measure(peers: Any, name: str, method: Method, out: Path) -> None:
    torch.manual_seed(SEED)
    clock = Clock()
    scores_RQ = np.asarray(method(peers, clock), dtype=np.float32)
    if scores_RQ.shape != (len(peers.rows), len(peers.queries)) or not np.isfinite(scores_RQ).all():
        raise ValueError(f"scores of shape {scores_RQ.shape}, or not finite")
    agreement = float(np.mean([rank_correlation(scores_RQ[:, q], peers.dot[:, q]) for q in range(scores_RQ.shape[1])]))
    if agreement <= 0:
        raise ValueError(f"rank correlation with gradient dot is {agreement:.3f}: the sign is wrong")
    library = name.partition("-")[0]
    values = {
        "method": name,
        "version": importlib.metadata.version(library),
        "torch": torch.__version__,
        "threads": 1,
        "seed": SEED,
        "rows": len(peers.rows),
        "queries": len(peers.queries),
        "build_cpu_s": round(clock.seconds["build"], 2),
        "query_cpu_s": round(clock.seconds["query"], 2),
        "rank_correlation_with_gradient_dot": round(agreement, 4),
    }
    temporary = out / f".{name}.new.npy"
    np.save(temporary, scores_RQ)
    (out / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(out / f"{name}.npy")
    print(f"{name}: {json.dumps(values)}", file=sys.stderr, flush=True)


def summary(out: Path) -> str:
    lines = [
        "| method | version | build, CPU-s | queries, CPU-s | with gradient dot |",
        "| --- | --- | --- | --- | --- |",
    ]
    for path in sorted(out.glob("*.json")):
        own = json.loads(path.read_text())
        lines.append(
            f"| {own['method']} | {own['version']} | {own['build_cpu_s']:.1f} | {own['query_cpu_s']:.1f} | "
            f"{own['rank_correlation_with_gradient_dot']:.3f} |"
        )
    return "\n".join(lines)


# The task


def read_records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def encode(tokenizer: Any, record: dict[str, str]) -> Encoded:
    """As openledger/attribution/records.py does."""
    if "text" in record:
        ids = list(tokenizer(record["text"])["input_ids"])
        num_prompt = 1
    else:
        prompt = list(tokenizer(record["prompt"])["input_ids"])
        ids = prompt + list(tokenizer(record["completion"], add_special_tokens=False)["input_ids"])
        num_prompt = len(prompt)
    return Encoded(tuple(ids), (*[IGNORED] * num_prompt, *ids[num_prompt:]))


def collate(examples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Padded on the right: token ids, attention mask and labels, each [B, T]."""
    width = max(len(example.ids) for example in examples)
    fills = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    batch = {name: torch.full((len(examples), width), fill) for name, fill in fills.items()}
    for row, example in enumerate(examples):
        length = len(example.ids)
        batch["input_ids"][row, :length] = torch.tensor(example.ids)
        batch["attention_mask"][row, :length] = 1
        batch["labels"][row, :length] = torch.tensor(example.labels)
    return batch


def losses(logits_BTV: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
    """Each row's mean loss over its completion's tokens, [B]."""
    target_BT = labels_BT[:, 1:]
    losses_BT = token_losses(logits_BTV, target_BT)
    return losses_BT.sum(dim=1) / (target_BT != IGNORED).sum(dim=1)


def token_losses(logits_BTV: torch.Tensor, target_BT: torch.Tensor) -> torch.Tensor:
    flat = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), target_BT.flatten(), reduction="none", ignore_index=IGNORED)
    return flat.view(target_BT.shape)


def gradients(model: Any, examples: Sequence[Encoded]) -> torch.Tensor:
    """[number of examples, P]"""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for example in examples:
        batch = collate([example])
        loss = losses(model(input_ids=batch["input_ids"], use_cache=False).logits, batch["labels"]).sum()
        found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]))
    return torch.stack(found)


def trained_modules(model: Any) -> list[str]:
    """Names of the linear layers whose weights require gradients: LoRA's A and B."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name.removesuffix(".weight") for name in names]


def rank_correlation(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])


# kronfluence (Grosse et al., 2023)


def kronfluence(strategy: str) -> Method:
    def scores(peers: Any, clock: Clock) -> np.ndarray[Any, Any]:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.utils.dataset import DataLoaderKwargs

        model = peers.model()
        task = peers.kronfluence_task(peers.modules(model))
        model = prepare_model(model, task)
        analyzer = Analyzer(
            analysis_name=strategy, model=model, task=task, cpu=True, disable_tqdm=True, output_dir=str(peers.scratch)
        )
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(collate_fn=peers.collate))
        clock.run(
            "build",
            lambda: analyzer.fit_all_factors(
                "factors",
                peers.rows,
                per_device_batch_size=BATCH_ROWS,
                factor_args=FactorArguments(strategy=strategy),
            ),
        )
        clock.run(
            "query",
            lambda: analyzer.compute_pairwise_scores(
                "scores",
                "factors",
                query_dataset=peers.queries,
                train_dataset=peers.rows,
                per_device_query_batch_size=len(peers.queries),
                per_device_train_batch_size=BATCH_ROWS,
                score_args=ScoreArguments(damping_factor=None),
            ),
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"].T.numpy()

    return scores


def kronfluence_task(modules: list[str]) -> Any:
    from kronfluence.task import Task

    class AnswerTask(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            if not sample:
                return losses(logits, batch["labels"]).sum()
            target_BT = batch["labels"][:, 1:].clone()
            predicts_BT = target_BT != IGNORED
            probabilities_NV = logits[:, :-1][predicts_BT].detach().softmax(-1)
            target_BT[predicts_BT] = torch.multinomial(probabilities_NV, 1)[:, 0]
            return (token_losses(logits, target_BT).sum(dim=1) / predicts_BT.sum(dim=1).sqrt()).sum()

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return modules  # without it frozen layers are scored too

        def get_attention_mask(self, batch: Any) -> torch.Tensor:
            return batch["attention_mask"]

    return AnswerTask()


# dattri (Deng et al., 2024)


def dattri_tracin(every_epoch: bool, cosine: bool = False) -> Method:
    """Gradient dot or cosine of the run's end, or TracIn: of each epoch's end, weighted with the learning rate in the
    epoch's middle."""

    def scores(peers: Any, clock: Clock) -> np.ndarray[Any, Any]:
        from dattri.algorithm.tracin import TracInAttributor

        chosen = peers.checkpoints if every_epoch else peers.checkpoints[-1:]
        weights = [1 - (epoch + 0.5) / len(chosen) for epoch in range(len(chosen))] if every_epoch else [1.0]
        task, names = peers.dattri_task(chosen)
        attributor = TracInAttributor(task, torch.tensor(weights), normalized_grad=cosine, layer_name=names)
        attributor.projector_kwargs = None  # its default projects every gradient to 512 numbers
        return clock.run("query", lambda: attributor.attribute(*peers.dattri_loaders())).numpy()

    return scores


def dattri_datainf(peers: Any, clock: Clock) -> np.ndarray[Any, Any]:
    """Kwon et al., 2024. The regularization is a tenth of the mean squared gradient, as the paper has it, but of all
    layers together: dattri takes one number."""
    from dattri.algorithm.influence_function import IFAttributorDataInf

    size = float(peers.gradients(peers.rows).square().mean())
    task, names = peers.dattri_task(peers.checkpoints[-1:])
    attributor = IFAttributorDataInf(task, layer_name=names, regularization=0.1 * size)
    rows, queries = peers.dattri_loaders()
    with torch.no_grad():  # without it every batch's graph is kept: 21 GB for the language task
        clock.run("build", lambda: attributor.cache(rows))
        return clock.run("query", lambda: attributor.attribute(rows, queries)).numpy()


def dattri_ekfac(peers: Any, clock: Clock) -> np.ndarray[Any, Any]:
    from dattri.algorithm.influence_function import IFAttributorEKFAC

    task, _ = peers.dattri_task(peers.checkpoints[-1:])
    modules = peers.modules(task.get_model())
    attributor = IFAttributorEKFAC(task, module_name=modules, damping=1e-6)
    rows, queries = peers.dattri_loaders()
    clock.run("build", lambda: attributor.cache(rows))
    return clock.run("query", lambda: attributor.attribute(rows, queries)).detach().numpy()


def dattri_task(peers: Peers, checkpoints: list[Path]) -> tuple[Any, list[str]]:
    """The task and the names of the trained parameters. No attention mask: padding stands after what is scored."""
    from dattri.task import AttributionTask

    def loss(parameters: Any, data: Any) -> torch.Tensor:
        ids_BT, labels_BT = (part.view(-1, part.shape[-1]) for part in data)
        output = torch.func.functional_call(model, parameters, (), {"input_ids": ids_BT, "use_cache": False})
        return losses(output.logits, labels_BT).mean()

    def load(into: Any, path: Path) -> Any:
        into.load_state_dict(load_file(path), strict=False)
        return into

    model = peers.model()
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return AttributionTask(loss, model, checkpoints, checkpoints_load_func=load), names


def dattri_loaders(peers: Peers) -> tuple[Any, Any]:
    """Of all rows and of all queries; large batches, since dattri asks every query again for each batch of rows."""

    def loader(examples: Sequence[Encoded], batch_rows: int) -> Any:
        whole = collate(examples)
        data = torch.utils.data.TensorDataset(whole["input_ids"], whole["labels"])
        return torch.utils.data.DataLoader(data, batch_size=batch_rows, shuffle=False)

    return loader(peers.rows, 120), loader(peers.queries, 48)


# bergson (Quirke et al., 2026)


def bergson_dot(peers: Peers, clock: Clock) -> np.ndarray[Any, Any]:
    from bergson.build import build, build_query
    from bergson.config.config import PreprocessConfig, ScoreConfig
    from bergson.score.score import score_dataset

    query_set = bergson_queries(peers)
    run = peers.scratch / "bergson-dot"
    clock.run("build", lambda: build(bergson_config(peers, run / "index"), PreprocessConfig()))
    clock.run("query", lambda: build_query(bergson_config(peers, run / "query"), query_set, PreprocessConfig()))
    scoring = ScoreConfig(query_path=str(run / "query"))
    clock.run("query", lambda: score_dataset(bergson_config(peers, run / "scores"), scoring, PreprocessConfig()))
    return bergson_scores(run / "scores")


def bergson_hessian(method: str, *, corrected: bool) -> Method:
    """Its Hessian pipeline: factors fitted, every query preconditioned, rows scored in a pass of their own."""

    def scores(peers: Peers, clock: Clock) -> np.ndarray[Any, Any]:
        from bergson.config.config import (
            HessianConfig,
            HessianPipelineConfig,
            PreprocessConfig,
            ScoreConfig,
        )
        from bergson.hessians import pipeline

        run = peers.scratch / f"bergson-{method}-{corrected}"
        settings = (
            bergson_config(peers, run),
            HessianConfig(method=method, ev_correction=corrected),
            ScoreConfig(),
            PreprocessConfig(),
            HessianPipelineConfig(query=bergson_queries(peers)),
        )
        bergson_timed(pipeline, clock, lambda: pipeline.hessian_pipeline(*settings))
        return bergson_scores(run / "scores")

    return scores


def bergson_trackstar(peers: Peers, clock: Clock) -> np.ndarray[Any, Any]:
    """Chang et al., 2024: second moments of rows and queries mixed, both sides of unit length. Each matrix's gradient
    is projected to 16 by 16: LoRA's have rank 8, so that a wider projection makes them larger."""
    from bergson.cli import trackstar
    from bergson.config.config import PreprocessConfig, TrackstarConfig

    run = peers.scratch / "bergson-trackstar"
    config = TrackstarConfig(query=bergson_queries(peers), preprocess_cfg=PreprocessConfig(unit_normalize=True))
    settings = bergson_config(peers, run, projection=16)
    bergson_timed(trackstar, clock, lambda: trackstar.trackstar(settings, config))
    return bergson_scores(run / "scores")


def bergson_timed(module: Any, clock: Clock, work: Callable[[], Any]) -> None:
    """What `module`'s pipeline spends on fitting curvature counts as building, the rest as asking."""
    fit = module.approximate_hessians
    module.approximate_hessians = lambda *given: clock.run("build", lambda: fit(*given))
    start = time.process_time()
    try:
        work()
    finally:
        module.approximate_hessians = fit
    clock.seconds["query"] += time.process_time() - start - clock.seconds["build"]


def bergson_config(peers: Peers, run: Path, projection: int = 0) -> Any:
    from bergson.config.config import DataConfig, IndexConfig

    run.parent.mkdir(parents=True, exist_ok=True)
    return IndexConfig(
        run_path=str(run),
        model=str(peers.adapter),
        tokenizer=str(peers.base),
        model_kwargs="attn_implementation=eager",
        data=DataConfig(dataset=str(bergson_data(peers, "rows"))),
        projection_dim=projection,
        loss_reduction="mean",
        token_batch_size=256,  # it refuses more than the model has positions
    )


def bergson_queries(peers: Peers) -> Any:
    from bergson.config.config import QuerySetConfig

    return QuerySetConfig(dataset=str(bergson_data(peers, "queries")))


def bergson_data(peers: Peers, name: str) -> Path:
    """Token ids and labels as a data set on disk."""
    from datasets import Dataset

    path = peers.scratch / f"bergson-{name}"
    if not path.exists():
        examples = getattr(peers, name)
        columns = {"input_ids": [list(e.ids) for e in examples], "labels": [list(e.labels) for e in examples]}
        Dataset.from_dict({**columns, "length": [len(e.ids) for e in examples]}).save_to_disk(str(path))
    return path


def bergson_scores(path: Path) -> np.ndarray[Any, Any]:
    from bergson.data import load_scores

    return np.asarray(load_scores(path)[:])


METHODS: dict[str, Method] = {
    "kronfluence-ekfac": kronfluence("ekfac"),
    "kronfluence-kfac": kronfluence("kfac"),
    "kronfluence-dot": kronfluence("identity"),
    "dattri-dot": dattri_tracin(every_epoch=False),
    "dattri-cosine": dattri_tracin(every_epoch=False, cosine=True),
    "dattri-tracin": dattri_tracin(every_epoch=True),
    "dattri-datainf": dattri_datainf,
    "dattri-ekfac": dattri_ekfac,
    "bergson-dot": bergson_dot,
    "bergson-ekfac": bergson_hessian("kfac", corrected=True),
    "bergson-kfac": bergson_hessian("kfac", corrected=False),
    "bergson-shampoo": bergson_hessian("shampoo", corrected=True),
    "bergson-trackstar": bergson_trackstar,
}


if __name__ == "__main__":
    sys.exit(main())
