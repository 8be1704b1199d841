"""All that computes for an adapter whose recipe asks for half a GPU, on one node that declares to have one.

    python gpu_node.py WORLD OUT

WORLD holds what the test wrote. There is no GPU in the node: what a worker puts on `cuda` stays on the CPU, and is
noted in OUT, a file for each piece of work, with what Ray gave it of the GPU.
"""

import json
import os
import pickle
import shutil
import sys
import tempfile
from pathlib import Path


def note_gpus() -> None:
    """In each worker: modules and tensors that are put on `cuda` stay where they are, and who put them is noted."""
    import torch

    def noting(put):
        def to(self, *places, **options):
            if places and places[0] == "cuda":
                note("cuda")
                places = ("cpu", *places[1:])
            elif places and places[0] == "cpu" and isinstance(self, torch.nn.Module):
                note("cpu")
            return put(self, *places, **options)

        return to

    torch.nn.Module.to = noting(torch.nn.Module.to)
    torch.Tensor.to = noting(torch.Tensor.to)


def note(device: str) -> None:
    import ray

    context = ray.get_runtime_context()
    name = context.get_task_name() or ""
    told = {"name": name, "device": device, "num_gpus": context.get_assigned_resources().get("GPU", 0)}
    path = Path(os.environ["NOTES"]) / f"{name}-{device}-{told['num_gpus']}.json"
    path.write_text(json.dumps(told))


def main(world: Path, out: Path) -> None:
    folder = tempfile.mkdtemp(prefix="ol", dir="/tmp")  # AF_UNIX paths end at 107 bytes
    out.mkdir()
    import ray

    ray.init(
        num_cpus=2, num_gpus=1, _temp_dir=folder, object_store_memory=100 * 2**20, include_dashboard=False,
        log_to_driver=False, logging_level="ERROR",
        runtime_env={"worker_process_setup_hook": note_gpus, "env_vars": {"NOTES": str(out)}},
    )  # fmt: skip
    try:
        asked = pickle.loads((world / "world.pickle").read_bytes())
        compute(**asked, folder=world)
        withdraw(asked["base"], asked["run"], asked["rows"], folder=world)
        print(json.dumps(refused_where_the_gpu_is_taken(asked["base"])))
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def compute(base, run, rows, answer, folder: Path) -> None:
    import ray

    from openledger.adapters.base_model import load_tokenizer
    from openledger.attribution.actor import index_task, start_index_host
    from openledger.attribution.bank_folder import find_bank
    from openledger.attribution.subject import Subject
    from openledger.attribution.trainer import index_tasks, prepare, replay_distributed, train_bank_of
    from openledger.training.examples import encode_answer, encode_row
    from openledger.training.record import load_run

    record, tokenizer = load_run(run), load_tokenizer(base)
    examples = tuple(encode_row(tokenizer, row) for row in rows)
    train_bank_of(run, base, rows, 2)
    prepare(Subject(base=base, folder=run, examples=examples, record=record), None)
    replay_distributed(base, record, examples, [[(encode_answer(answer), 1.0)]], folder / "replay")
    views, digest = [str(run / "checkpoints" / "epoch-1.safetensors")], record.adapter_digest
    ray.get(index_task(base)(views, digest, rows, [], str(folder / "task"), str(run)))
    index_tasks(base, spread_from=1)(views, digest, rows, [], str(folder / "spread"), str(run))
    host = start_index_host(base, 1, record.recipe.num_gpus)
    ray.get(host.build.remote(views, digest, rows, [], str(folder / "index"), str(run)))
    ray.get(host.score.remote(views, digest, str(folder / "index"), [answer]))
    ray.get(host.bank_outcomes.remote(str(run), find_bank(run, digest), [answer]))
    ray.get(host.replay.remote(str(run), rows, [[(answer, 1.0)]], str(folder / "host")))
    ray.kill(host)


def withdraw(base, run, rows, folder: Path) -> None:
    """As jobs/withdraw.py: a training that has the one GPU, then an index that has it."""
    import ray

    from openledger.attribution.actor import index_task
    from openledger.attribution.trainer import train_without

    train_without(run, base, rows, rows[0].contributor_id, num_gpus=1)
    views = [str(run / "checkpoints" / "epoch-1.safetensors")]
    ray.get(index_task(base, num_gpus=1)(views, "without", rows, [], str(folder / "without"), str(run)))


def refused_where_the_gpu_is_taken(base) -> dict[str, str]:
    """What is said to whom wants an actor on the GPU that another actor has for good."""
    import ray

    from openledger.attribution.actor import start_index_host
    from openledger.core.errors import Unavailable

    @ray.remote(num_cpus=0, num_gpus=0.75)
    class Replica:
        pass

    replica = Replica.remote()
    ray.get(replica.__ray_ready__.remote())
    try:
        start_index_host(base, 1, 0.5, wait_s=2)
    except Unavailable as error:
        return {"code": error.code, "message": error.message, "fix": error.fix}
    return {}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
