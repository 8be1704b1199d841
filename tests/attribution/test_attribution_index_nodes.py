"""The index built by Ray tasks on four nodes, one of which dies and one worker of which is killed, is the index of one
process, byte for byte."""

import json
import pickle
import subprocess
import sys

import index_nodes
import numpy as np
import pytest
import torch
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.attribution.index import GradientIndex, build_index, standing
from openledger.attribution.index_folder import View
from openledger.training.examples import Example, encode_row
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe, row_root_constant

COPIES = 8


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An adapter with 352 trained rows and 32 decoys, measured at two points of its weights."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    base = make_tiny_base(folder / "base")
    module = attach_lora(load_model(base), Recipe(rank=4, alpha=16), row_root_constant("base", "greek", 1, "root"))
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    module.eval().save_pretrained(folder / "adapter")
    first = standing(module, "first")
    views = [first, View(name="half", weights={name: tensor / 2 for name, tensor in first.weights.items()})]
    rows = [row for copy in range(COPIES) for row in copied(load_tokenizer(base), copy)]
    asked = {
        "base": base, "adapter": folder / "adapter", "trained": rows[:352], "decoys": rows[352:],
        "adapter_digest": "digest", "views": views,
    }  # fmt: skip
    (folder / "world.pickle").write_bytes(pickle.dumps(asked))
    return folder, module, asked


def copied(tokenizer, copy):
    """The tiny rows again, as rows of other names whose prompts differ."""
    for example in (encode_row(tokenizer, row) for row in tiny_rows()):
        ids = (*example.ids[: copy % 5], *example.ids)
        yield Example(
            row_id=f"{example.row_id}-{copy}", contributor_id=example.contributor_id, ids=ids,
            num_prompt=example.num_prompt + copy % 5,
        )  # fmt: skip


@pytest.fixture(scope="module")
def built(world, tmp_path_factory):
    folder, module, asked = world
    out = tmp_path_factory.mktemp("indexes")
    command = [sys.executable, index_nodes.__file__, str(folder), str(out / "nodes")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    rest = {name: value for name, value in asked.items() if name not in ("base", "adapter")}
    rest["base_digest"] = asked["base"].digest
    index = build_index(module, folder=out / "here", **rest, **index_nodes.BUILDING)
    return json.loads((out / "nodes.json").read_text()), out, index


@pytest.mark.cluster
def test_a_worker_and_a_node_were_killed_while_shards_were_built(built, world):
    told, _, index = built
    num_shards = 2 * len(index.plan.shards)
    assert told["rows"] == len(index.entries) == 384
    assert 0 < told["worker"]["finished"] <= told["node"]["finished"] < num_shards
    assert told["worker"]["pid"] != told["node"]["pid"]


@pytest.mark.cluster
def test_the_index_of_four_nodes_is_that_of_one_process_byte_for_byte(built):
    _, out, _ = built
    files = {path.relative_to(out / "here") for path in (out / "here").rglob("*") if path.is_file()}
    assert len([path for path in files if path.suffix == ".f16"]) == 48
    for path in files:
        assert (out / "nodes" / path).read_bytes() == (out / "here" / path).read_bytes(), path


@pytest.mark.cluster
def test_rows_and_scores_are_the_same(built, world):
    _, module, asked = world
    _, out, here = built
    nodes = GradientIndex.open(out / "nodes", "digest", base_digest=asked["base"].digest)
    assert nodes.entries == here.entries
    vectors = here.query_vectors(module, asked["trained"][:3], views=asked["views"])
    assert np.array_equal(nodes.score(vectors), here.score(vectors))


@pytest.mark.cluster
def test_nothing_half_written_is_left(built):
    _, out, _ = built
    assert not list((out / "nodes").rglob("*.new"))
