"""Which GPUs the work for an adapter asks the cluster for: those of its recipe, unless whoever starts the work says
otherwise.

Training, bank, index, replay and scoring all ask here, and check before they begin: Ray queues a task that no node can
run, without an end.
"""

from typing import Any

import ray

from openledger.core.errors import Unavailable
from openledger.training.recipe import Recipe, check_gpu_share


def gpus_for(recipe: Recipe | None, asked: float | None = None) -> float:
    """What each task takes: `asked`, else the recipe's; none without either."""
    if asked is not None:
        return asked
    return recipe.num_gpus if recipe is not None else 0.0


def check_gpus(num_gpus: float) -> None:
    """Raises Unavailable (`no_gpu`) where no node of the cluster has so much of a GPU, nor any that its autoscaler may
    start; InvalidInput (`invalid_gpus`) for what no task can take."""
    check_gpu_share(num_gpus)
    if num_gpus and max([*_of_nodes(), *_of_nodes_to_come()], default=0.0) < num_gpus:
        raise Unavailable(
            f"{num_gpus:g} GPUs for each task were asked for, and no node of the cluster has one",
            code="no_gpu",
            param="num_gpus",
            fix="add a node with a GPU (a worker group, where the cluster scales itself), or go on without: --gpus 0",
        )


def device_of(num_gpus: float) -> str:
    """Where a task with so much of a GPU computes. It is told, not looked for: without one Ray doesn't hide the
    node's."""
    return "cuda" if num_gpus else "cpu"


def _of_nodes() -> list[float]:
    return [float(node["Resources"].get("GPU", 0.0)) for node in ray.nodes() if node["Alive"]]


def _of_nodes_to_come() -> list[float]:
    """Of each kind of node that the autoscaler, where there is one, says that it may start."""
    from ray._private.state import state  # no public call tells it

    config: Any = state.get_cluster_config()
    return [float(group.resources.get("GPU", 0.0)) for group in config.node_group_configs] if config else []
