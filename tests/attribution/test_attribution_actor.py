"""The index actors: builds and scores of several views, and one index held by three actors."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from synthetic_index import make_index, make_queries, open_index
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_model, load_tokenizer
from openledger.attribution import actor as actor_module
from openledger.attribution.actor import (
    IndexHost,
    IndexShardHost,
    index_task,
    scores_of_hosts,
    start_shard_hosts,
    top_of_hosts,
)
from openledger.attribution.index import build_index
from openledger.attribution.index_folder import read_index
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.values import Answer
from openledger.training.examples import encode_row
from openledger.training.lora import attach_lora, load_lora
from openledger.training.recipe import Recipe, row_root_constant

ROWS = tiny_rows()[:20]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A host, two points of an adapter as PEFT folders, and a folder for indexes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    base = make_tiny_base(folder / "base")
    module = attach_lora(load_model(base), Recipe(rank=2, alpha=8), row_root_constant("base", "greek", 1, "root"))
    for name in ("early", "late"):
        torch.manual_seed(len(name))
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.05 * torch.randn_like(parameter))
        module.save_pretrained(folder / name)
    return IndexHost(base), base, [str(folder / "early"), str(folder / "late")], folder


def answer(ids=(5, 6, 7), prompt=(1, 4)):
    return Answer(
        answer_id="ans_1", adapter="greek", adapter_digest="digest", period="p", prompt_ids=prompt, completion_ids=ids
    )


def build(world, name, views=None):
    host, _, both, folder = world
    index = str(folder / name)
    assert host.build(views or both, "digest", ROWS[:16], ROWS[16:], index) == 20
    return index


def test_several_points_of_an_adapter_are_one_index(world):
    host, base, views, folder = world
    entries, scores = host.score(views, "digest", build(world, "both"), [answer()])
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in ROWS]
    alone = []
    for path in views:
        module = load_lora(load_model(base), path)
        name = path.rpartition("/")[2]
        index = build_index(module, examples[:16], examples[16:], folder / f"one-{name}", "digest")
        alone.append(
            index.score(index.query_vectors(module, [replace(examples[0], ids=(1, 4, 5, 6, 7), num_prompt=2)]))
        )
    assert [entry.row_id for entry in entries] == [row.row_id for row in ROWS]
    assert not np.allclose(alone[0], alone[1], rtol=1e-2)
    assert np.allclose(scores, np.mean(alone, axis=0), rtol=1e-4, atol=1e-7)


@pytest.mark.cluster
def test_a_task_builds_the_hosts_index(cluster, world):
    host, base, views, folder = world
    there = str(folder / "by a task")
    assert ray.get(index_task(base)(views, "digest", ROWS[:16], ROWS[16:], there)) == 20
    scores = [host.score(views, "digest", index, [answer()])[1] for index in (there, build(world, "both"))]
    assert np.array_equal(*scores)


def test_answers_that_cant_be_scored_are_refused_by_name(world):
    host, base, views, _ = world
    index = build(world, "both")
    for bad, code in ((answer(ids=()), "empty_row"), (answer(ids=(5,) * base.max_positions), "row_too_long")):
        with pytest.raises(InvalidInput, match="ans_1") as caught:
            host.score(views, "digest", index, [answer(), bad])
        assert caught.value.code == code


def test_a_row_that_is_longer_than_the_context_is_refused_by_name(world):
    host, _, views, folder = world
    rows = [*ROWS[:3], replace(ROWS[3], row_id="row_long", completion="It joins alpha. " * 100)]
    with pytest.raises(InvalidInput, match="row_long") as caught:
        host.build(views, "digest", rows, [], str(folder / "long"))
    assert caught.value.code == "row_too_long"
    assert not (folder / "long").exists()


def test_withdrawn_rows_are_not_scored(world):
    host, _, views, _ = world
    entries, scores = host.score(views, "digest", build(world, "both"), [answer()], withdrawn=["row_003"])
    assert "row_003" not in {entry.row_id for entry in entries}
    assert scores.shape == (19, 1)


def test_the_index_of_other_adapters_points_or_bases_is_refused(world, tmp_path):
    host, base, views, _ = world
    index, other = build(world, "both"), IndexHost(replace(base, digest="other"))
    for ask in (
        lambda: host.score(views, "other", index, [answer()]),
        lambda: host.score(views[:1], "digest", index, [answer()]),
        lambda: other.score(views, "digest", index, [answer()]),
        lambda: other.build(views, "digest", ROWS, [], index),
    ):
        with pytest.raises(InvalidInput) as caught:
            ask()
        assert caught.value.code == "wrong_index"


def test_an_index_of_an_older_format_is_built_again(world):
    host, _, views, folder = world
    index = folder / "older"
    index.mkdir()
    (index / "index.json").write_text('{"format": "openledger.index/1", "adapter_digest": "digest"}')
    build(world, "older")
    assert host.score(views, "digest", str(index), [answer()])[1].shape == (20, 1)


def test_a_host_of_shards_refuses_what_doesnt_fit_before_it_is_batched(tmp_path):
    make_index(tmp_path / "index")
    host, queries = IndexShardHost(str(tmp_path / "index"), "digest", [0, 2]), make_queries()

    async def ask():
        return await asyncio.gather(host.top(queries, 3), host.top(queries[:1], 3), return_exceptions=True)

    good, bad = asyncio.run(ask())
    assert isinstance(bad, InvalidInput)
    assert np.array_equal(good.rows_QK, open_index(tmp_path / "index").top(queries, 3, [0, 2]).rows_QK)


@pytest.mark.cluster
def test_three_actors_answer_as_one_process_and_again_after_one_was_killed(cluster, tmp_path):
    index, queries = make_index(tmp_path / "index"), make_queries()
    hosts = start_shard_hosts(tmp_path / "index", "digest", 3, withdrawn=["row_05"], num_cpus=0)
    assert len(hosts) == 3
    index = open_index(tmp_path / "index", withdrawn=["row_05"])
    for k in (1, 7, 60):
        assert index.listed(top_of_hosts(hosts, queries, k)) == index.top_rows(queries, k)
    equal = [entry.score for entry in index.top_rows(queries, 30)[0]]
    assert len(set(equal)) < len(equal)  # there were ties
    ray.kill(hosts[1], no_restart=False)
    assert index.listed(top_of_hosts(hosts, queries, 7)) == index.top_rows(queries, 7)
    with pytest.raises(InvalidInput, match="top 0"):
        top_of_hosts(hosts, queries, 0)
    for host in hosts:
        ray.kill(host)


@pytest.mark.cluster
def test_every_row_is_scored_once_by_three_actors_of_which_one_was_killed(cluster, tmp_path):
    make_index(tmp_path / "index")
    index, queries = open_index(tmp_path / "index", withdrawn=["row_05"]), make_queries()
    hosts = start_shard_hosts(tmp_path / "index", "digest", 3, withdrawn=["row_05"], num_cpus=0)
    asked = [scores_of_hosts(hosts, queries)]
    ray.kill(hosts[2], no_restart=False)
    asked.append(scores_of_hosts(hosts, queries))
    for found in asked:
        assert found.shape == (39, 5)
        assert np.array_equal(found, index.score(queries))
    for host in hosts:
        ray.kill(host)


@pytest.mark.cluster
def test_an_index_larger_than_a_host_may_hold_is_scored_by_several_that_end_with_the_call(cluster, world, monkeypatch):
    host, base, views, _ = world
    index = build(world, "held", views)
    started, start = [], actor_module.start_shard_hosts
    monkeypatch.setattr(
        actor_module, "start_shard_hosts", lambda *a, **k: started.extend(found := start(*a, **k)) or found
    )
    size = read_index(Path(index))[0].num_bytes
    spread = IndexHost(base, held_bytes=size // 2).score(views, "digest", index, [answer()], ["row_003"])
    assert len(started) == 1  # all of it is one shard
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(started[0].scores.remote(make_queries()))
    entries, scores = host.score(views, "digest", index, [answer()], ["row_003"])
    assert len(entries) == 19
    assert spread[0] == entries
    assert np.array_equal(spread[1], scores)
    assert len(started) == 1


@pytest.mark.cluster
def test_an_actor_names_the_damaged_shard_and_the_others_answer(cluster, tmp_path):
    make_index(tmp_path / "index")
    path = tmp_path / "index" / "view-01" / "rows-00001.f16"
    path.write_bytes(path.read_bytes()[::-1])
    hosts = start_shard_hosts(tmp_path / "index", "digest", 2, num_cpus=0)
    with pytest.raises(Corrupt, match="rows-00001"):
        top_of_hosts(hosts, make_queries(), 3)
    assert top_of_hosts(hosts[:1], make_queries(), 3).rows_QK.shape == (5, 3)
    for host in hosts:
        ray.kill(host)
