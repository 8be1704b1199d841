"""What other libraries say about the digits: kronfluence and dattri on the same model, rows and answers.

    peers/bin/python -m benchmarks.digits_peers FOLDER [--method kronfluence-ekfac dattri-trak]

FOLDER is that of benchmarks/attribution_digits.py, which leaves FOLDER/peers; the libraries' environment is that of
benchmarks/attribution_peers.py, and like that file this one imports nothing of OpenLedger. Each method writes
FOLDER/scores/peers/NAME.npy, float32 [rows, answers], and NAME.json; what is there is not computed again.
benchmarks/attribution_digits.py then scores every array on the same truth.

bergson is not here: it loads causal language models of transformers and nothing else (docs/attribution/log.md).

Shapes: R rows, Q queries, B rows of a batch, I pixels, P parameters.
"""

import argparse
import sys
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.attribution_peers import (
    Clock,
    Method,
    dattri_datainf,
    dattri_ekfac,
    dattri_tracin,
    kronfluence,
    measure_all,
)

PROJECTED = 128  # TRAK's numbers for each gradient: it inverts their second moment, of 360 rows


class DigitPeers:
    """The task as the libraries see it; what it has in common with `attribution_peers.Peers` has the same names."""

    collate = None

    def __init__(self, folder: Path, scratch: Path):
        self.folder, self.scratch = folder / "peers", scratch
        self.rows, self.queries = (self._examples(name) for name in ("rows", "queries"))

    def model(self) -> torch.nn.Sequential:
        """The run's end."""
        weights = load_file(self.checkpoints[-1])
        (hidden, inputs), (outputs, _) = weights["0.weight"].shape, weights["2.weight"].shape
        model = torch.nn.Sequential(
            torch.nn.Linear(inputs, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, outputs)
        )  # fmt: skip
        model.load_state_dict(weights)
        return model.eval()

    @property
    def checkpoints(self) -> list[Path]:
        """The run's weights after each epoch."""
        return sorted(self.folder.glob("epoch-*.safetensors"), key=lambda path: int(path.stem.split("-")[1]))

    @property
    def ends(self) -> list[Path]:
        """The run's end and its twins'."""
        return [self.checkpoints[-1], *sorted(self.folder.glob("twin-*.safetensors"))]

    @cached_property
    def dot(self) -> np.ndarray[Any, Any]:
        """Gradient dot product, [R, Q]."""
        rows_RP, queries_QP = (self.gradients(examples) for examples in (self.rows, self.queries))
        return (rows_RP @ queries_QP.T).numpy()

    def gradients(self, examples: TensorDataset) -> torch.Tensor:
        """[number of examples, P], by a backward pass each."""
        model, found = self.model(), []
        for pixels_I, label in examples:
            loss = cross_entropy(model(pixels_I[None]), label[None])
            found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))]))
        return torch.stack(found)

    def modules(self, model: Any) -> list[str]:
        return ["0", "2"]

    def kronfluence_task(self, modules: list[str]) -> Any:
        from kronfluence.task import Task

        class LabelTask(Task):  # type: ignore[misc]
            def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
                pixels_BI, labels_B = batch
                logits_BC = model(pixels_BI)
                if sample:
                    labels_B = torch.multinomial(logits_BC.detach().softmax(-1), 1)[:, 0]
                return cross_entropy(logits_BC, labels_B, reduction="sum")

            def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
                return self.compute_train_loss(batch, model)

            def get_influence_tracked_modules(self) -> list[str]:
                return modules

        return LabelTask()

    def dattri_task(self, checkpoints: list[Path], target: Any = None) -> tuple[Any, list[str]]:
        from dattri.task import AttributionTask

        def load(into: Any, path: Path) -> Any:
            into.load_state_dict(load_file(path))
            return into

        model = self.model()
        task = AttributionTask(target or loss_of(model), model, checkpoints, checkpoints_load_func=load)
        return task, [name for name, _ in model.named_parameters()]

    def dattri_loaders(self) -> tuple[Any, Any]:
        """Each whole, in one batch."""
        return tuple(DataLoader(own, batch_size=len(own), shuffle=False) for own in (self.rows, self.queries))

    def _examples(self, name: str) -> TensorDataset:
        found = load_file(self.folder / f"{name}.safetensors")
        return TensorDataset(found["pixels"], found["labels"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", nargs="+", choices=sorted(METHODS), default=sorted(METHODS), metavar="NAME",
                        help=f"one or more of {', '.join(sorted(METHODS))}; all of them without it")  # fmt: skip
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="peers-") as scratch:
        peers = DigitPeers(options.folder, Path(scratch))
        chosen = {name: METHODS[name] for name in options.method}
        return measure_all(peers, chosen, options.folder / "scores" / "peers")


def loss_of(model: torch.nn.Module) -> Any:
    """Of a batch, or of one example, as dattri calls it."""

    def loss(parameters: Any, data: Any) -> torch.Tensor:
        pixels, labels = data
        logits = torch.func.functional_call(model, parameters, (pixels.reshape(-1, pixels.shape[-1]),))
        return cross_entropy(logits, labels.reshape(-1))

    return loss


def dattri_trak(every_run: bool) -> Method:
    """Park et al., 2023: of the run's end, or of the ends of the run and its twins."""

    def scores(peers: DigitPeers, clock: Clock) -> np.ndarray[Any, Any]:
        from dattri.algorithm.trak import TRAKAttributor

        loss = loss_of(peers.model())

        def margin(parameters: Any, data: Any) -> torch.Tensor:
            """log p / (1 - p) of the label."""
            log_p = -loss(parameters, data)
            return log_p - torch.log1p(-log_p.exp())

        def probability(parameters: Any, data: Any) -> torch.Tensor:
            return (-loss(parameters, data)).exp()

        task, _ = peers.dattri_task(peers.ends if every_run else peers.ends[:1], margin)
        attributor = TRAKAttributor(task, probability, projector_kwargs={"proj_dim": PROJECTED, "device": "cpu"})
        rows, queries = peers.dattri_loaders()
        clock.run("build", lambda: attributor.cache(rows))
        return clock.run("query", lambda: attributor.attribute(queries)).detach().numpy()

    return scores


METHODS: dict[str, Method] = {
    "kronfluence-ekfac": kronfluence("ekfac"),
    "kronfluence-kfac": kronfluence("kfac"),
    "kronfluence-dot": kronfluence("identity"),
    "dattri-dot": dattri_tracin(every_epoch=False),
    "dattri-tracin": dattri_tracin(every_epoch=True),
    "dattri-datainf": dattri_datainf,
    "dattri-ekfac": dattri_ekfac,
    "dattri-trak": dattri_trak(every_run=False),
    "dattri-trak-5-runs": dattri_trak(every_run=True),
}


if __name__ == "__main__":
    sys.exit(main())
