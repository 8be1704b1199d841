"""An index of small whole numbers, made without a module: products are exact, and equal rows tie exactly."""

import numpy as np
import torch

from openledger.attribution.ekfac import Eigenbasis
from openledger.attribution.gradients import Site
from openledger.attribution.index import GradientIndex
from openledger.attribution.index_folder import IndexFolder, plan_index
from openledger.attribution.shards import RowVectors
from openledger.training.examples import Example

SITE = Site("w", 3, 4)
VIEWS = (("first", "1" * 64), ("second", "2" * 64))


def rows_of(numbers, names="row"):
    """Rows of five contributors; the last one's is his only one."""
    return [
        Example(
            row_id=f"{names}_{n:02}", contributor_id="lone" if n == 36 else f"ctr_{n % 4}", ids=(1, 2), num_prompt=1
        )
        for n in numbers
    ]


def make_plan(base_digest="base", adapter_digest="digest"):
    """37 trained rows and 3 decoys in 7 shards of 6."""
    return plan_index(
        [SITE], VIEWS, rows_of(range(37)), rows_of(range(3), "decoy"), adapter_digest,
        base_digest=base_digest, fit_rows=8, shard_rows=6,
    )  # fmt: skip


def make_vectors():
    random = np.random.default_rng(5)
    vectors = random.integers(-1, 2, size=(2, 40, SITE.size)).astype(np.float32)
    vectors[:, 20] = vectors[:, 33] = vectors[:, 2]
    return vectors


def make_queries(count=5):
    return np.random.default_rng(6).integers(-2, 3, size=(2, count, SITE.size)).astype(np.float32)


def make_index(folder):
    building = IndexFolder(folder, make_plan())
    for view in range(2):
        building.add_basis(view, {"w": Eigenbasis(torch.eye(3), torch.eye(4), torch.ones(3, 4))})
        for shard in building.missing_of(view):
            add_shard(building, view, shard)
    building.finish()
    return open_index(folder)


def add_shard(building, view, shard):
    rows_RP = make_vectors()[view][building.plan.shards[shard]]
    building.add_shard(view, shard, RowVectors(rows_RP.astype(np.float16), np.ones(len(rows_RP), np.float32)))


def open_index(folder, **more):
    return GradientIndex.open(folder, "digest", **more)


def slow_scores(queries):
    """[R, Q], all 40 rows."""
    return np.mean([rows @ q.T for rows, q in zip(make_vectors(), queries, strict=True)], axis=0) / np.float32(37)
