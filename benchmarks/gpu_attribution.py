"""What attribution computes in a second on a GPU and, by the same code, on the CPU of the same machine (all its cores);
and how far the two results are apart. Parts of benchmarks/gpu.py.

Rows are random tokens, 24 asked and 40 answered, of 16 contributors; recipe by default (rank 8 on all linears, batches
of 16) with one epoch. The CPU takes fewer rows where it would take minutes; what is compared is computed by both.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.openlora_world import SEED
from openledger.adapters.base_model import EMBEDDED, BaseModel, load_model, load_tokenizer_from
from openledger.attribution.ekfac import fit
from openledger.attribution.index import build_index, gradient_vectors, row_vectors
from openledger.attribution.replay import replay
from openledger.training.examples import Example
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.members import Member, Weights
from openledger.training.packed import score_members, train_members
from openledger.training.recipe import Recipe
from openledger.training.task import trainable_parameters

ASKED, ANSWERED, CONTRIBUTORS = 24, 40, 16
FEW, MANY = 32, 256  # rows, on the CPU and on the GPU alone
MEMBERS, BANK, QUERIES = 8, 32, 16
CONSTANT = "benchmarks/gpu"
RECIPE = Recipe(num_epochs=1)

Table = dict[str, dict[str, str]]


def training(base: BaseModel) -> Table:
    """One adapter, and 8 side by side."""

    def one(device: str, count: int) -> torch.Tensor:
        module = attach_lora(load_model(base).to(device), RECIPE, CONSTANT)
        train(module, rows(count), RECIPE, CONSTANT)
        return flat({name: p.detach() for name, p in trainable_parameters(module).items()})

    def several(device: str, count: int) -> torch.Tensor:
        members = [
            Member(name=str(number), rows=tuple(range(count)), initial=f"{CONSTANT} {number}", order=CONSTANT)
            for number in range(MEMBERS)
        ]
        return torch.cat([flat(own) for own in train_members(base, rows(count), members, RECIPE, device=device)])

    return {
        "training one adapter": both(one, FEW, MANY, ASKED + ANSWERED, "tokens"),
        f"training {MEMBERS} side by side": both(several, FEW, 4 * FEW, MEMBERS * (ASKED + ANSWERED), "tokens"),
    }


def index(base: BaseModel) -> Table:
    """Vectors and answers by one curvature, fitted on the CPU; and whole indexes, which differ by more: the samples of
    a fit come from each device's own generator."""
    basis, asked = fit(trained(base, "cpu"), rows(FEW)), rows(FEW, "query")

    def whole(device: str, count: int) -> torch.Tensor:
        module = trained(base, device)
        with TemporaryDirectory() as folder:
            found = build_index(module, rows(count), (), Path(folder) / "index", "benchmark")
            return torch.from_numpy(found.score(found.query_vectors(module, asked)))[:FEW]

    def vectors(device: str, count: int) -> torch.Tensor:
        found = row_vectors(trained(base, device), basis, rows(count))
        return torch.from_numpy(found.rows_RP[:FEW].astype(np.float32) * found.scale_R[:FEW, None])

    def gradients(device: str, count: int) -> torch.Tensor:
        return torch.from_numpy(gradient_vectors(trained(base, device), rows(count, "query"))[:FEW])

    return {
        "an index, its curvature fitted on up to 64 rows": both(whole, FEW, 4 * FEW, 1, "rows"),
        "vectors of rows": both(vectors, FEW, MANY, 1, "rows"),
        "vectors of answers": both(gradients, FEW, MANY, 1, "answers"),
    }


def replayed(base: BaseModel) -> Table:
    targets = [[(answer, 1.0) for answer in rows(QUERIES, "query")]]

    def one(device: str, count: int) -> torch.Tensor:
        module = attach_lora(load_model(base).to(device), RECIPE, CONSTANT)
        return torch.from_numpy(replay(module, rows(count), RECIPE, CONSTANT, targets=targets).scores_RT)

    return {"settlement replay of a run of one epoch": both(one, FEW, 4 * FEW, 1, "rows")}


def bank(base: BaseModel) -> Table:
    """Answers under 32 adapters, in packs of 16."""
    shapes = {name: p.shape for name, p in trainable_parameters(trained(base, "cpu")).items()}
    generator = torch.Generator().manual_seed(SEED)
    members = [
        {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()} for _ in range(BANK)
    ]

    def scored(device: str, count: int) -> torch.Tensor:
        return score_members(base, RECIPE, members, rows(count, "query"), device=device)

    return {f"scoring under {BANK} adapters": both(scored, QUERIES, 8 * QUERIES, BANK, "answers x adapters")}


# Measuring


def both(work: Callable[[str, int], torch.Tensor], few: int, many: int, units: int, unit: str) -> dict[str, str]:
    """`work` on so many rows, each of which counts `units`, on the CPU and on the GPU. What a row takes is the
    difference between twice as many and as many: loading the model isn't counted. Results of `few` are compared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    on_gpu, on_cpu = (work(device, few).double().flatten().cpu() for device in ("cuda", "cpu"))
    print("compared", flush=True)
    cpu_hz, gpu_hz, most_hz = speed(work, "cpu", few), speed(work, "cuda", few), speed(work, "cuda", many)
    torch.set_num_threads(threads)
    return {
        f"{unit}/s, CPU": f"{units * cpu_hz:,.0f} ({few})",
        "GPU": f"{units * gpu_hz:,.0f} ({few}), {units * most_hz:,.0f} ({many})",
        "GPU to CPU": f"{most_hz / cpu_hz:.1f}",
        "difference": f"{float((on_gpu - on_cpu).norm() / on_cpu.norm()):.1e}",
        "correlation": f"{float(torch.corrcoef(torch.stack([on_gpu, on_cpu]))[0, 1]):.6f}",
    }


def speed(work: Callable[[str, int], torch.Tensor], device: str, count: int) -> float:
    """Rows a second."""
    once_s, twice_s = (timed(work, device, number * count) for number in (1, 2))
    return count / max(1e-9, twice_s - once_s)


def timed(work: Callable[[str, int], torch.Tensor], device: str, count: int) -> float:
    begin_s = time.perf_counter()
    work(device, count)
    torch.cuda.synchronize()
    taken_s = time.perf_counter() - begin_s
    print(f"{device}, {count}: {taken_s:.2f} s", flush=True)
    return taken_s


def trained(base: BaseModel, device: str) -> Any:
    """An adapter whose matrices B aren't 0, the same on every device."""
    module = attach_lora(load_model(base).to(device), RECIPE, CONSTANT)
    generator = torch.Generator().manual_seed(SEED)
    for _, parameter in sorted(trainable_parameters(module).items()):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return module


def rows(count: int, kind: str = "row") -> list[Example]:
    generator = torch.Generator().manual_seed(SEED + (kind == "row"))
    ids = torch.randint(5, len(load_tokenizer_from(EMBEDDED)), (count, ASKED + ANSWERED), generator=generator).tolist()
    return [
        Example(row_id=f"{kind}-{n}", contributor_id=f"c{n % CONTRIBUTORS:02}", ids=tuple(own), num_prompt=ASKED)
        for n, own in enumerate(ids)
    ]


def flat(weights: Weights) -> torch.Tensor:
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


PARTS: dict[str, Callable[[BaseModel], Table]] = {
    "training": training,
    "index": index,
    "replay": replayed,
    "bank": bank,
}
