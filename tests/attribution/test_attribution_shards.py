"""Shards on disk: products, ties, withdrawn rows, and what happens when files are missing, damaged or another's."""

import asyncio

import numpy as np
import pytest
from synthetic_index import (
    add_shard,
    make_index,
    make_plan,
    make_queries,
    open_index,
    slow_scores,
)

from openledger.attribution.index import GradientIndex
from openledger.attribution.index_folder import IndexFolder, shard_path
from openledger.attribution.shards import Batcher, Top
from openledger.core.errors import Corrupt, InvalidInput


@pytest.fixture
def index(tmp_path):
    return make_index(tmp_path / "index")


def slow_top(scores_R, rows, k):
    return sorted(rows, key=lambda row: (-scores_R[row], row))[:k]


def test_scores_are_plain_products_averaged_over_views(index):
    queries = make_queries()
    assert np.allclose(index.score(queries), slow_scores(queries), atol=1e-7)
    assert index.view_scores(queries).shape == (2, 40, 5)


def test_the_top_rows_are_trained_ones_and_of_equal_scores_the_first(index):
    queries = make_queries()
    scores, top = slow_scores(queries), index.top(queries, 9)
    for query, rows in enumerate(top.rows_QK.tolist()):
        assert rows == slow_top(scores[:, query], range(37), 9)
    assert any(len(set(own)) < 9 for own in top.scores_QK.tolist())  # there were ties


def test_a_contributor_with_one_row_has_that_rows_score(index):
    queries = make_queries()
    assert index.contributors == ["ctr_0", "ctr_1", "ctr_2", "ctr_3", "lone"]
    assert np.allclose(index.contributor_scores(queries)[4], slow_scores(queries)[36])


def test_withdrawn_rows_are_left_out_everywhere(index, tmp_path):
    queries, gone = make_queries(), [2, 7, 36]
    without = open_index(tmp_path / "index", withdrawn=[f"row_{n:02}" for n in gone])
    left = [n for n in range(40) if n not in gone]
    scores = slow_scores(queries)
    assert without.withdrawn == ["row_02", "row_07", "row_36"]
    assert not set(without.withdrawn) & {entry.row_id for entry in without.entries}
    assert np.allclose(without.score(queries), scores[left], atol=1e-7)
    assert without.view_scores(queries).shape == (2, 37, 5)
    assert without.contributors == ["ctr_0", "ctr_1", "ctr_2", "ctr_3"]  # the lone row was all that its owner had
    sums = [sum(scores[n] for n in range(36) if n % 4 == who and n not in gone) for who in range(4)]
    assert np.allclose(without.contributor_scores(queries), sums, atol=1e-6)
    for query, listed in enumerate(without.top_rows(queries, 37)):
        expected = slow_top(scores[:, query], [n for n in left if n < 37], 37)
        assert [row.row_id for row in listed] == [f"row_{n:02}" for n in expected]


@pytest.mark.parametrize("damage", ["changed", "cut off", "missing"])
def test_a_damaged_shard_is_named(index, tmp_path, damage):
    path = shard_path(tmp_path / "index", 1, 3)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data if damage == "changed" else data[:-2])
    with pytest.raises(Corrupt, match="rows-00003") as caught:
        open_index(tmp_path / "index").score(make_queries())
    assert (caught.value.code, caught.value.param) == ("corrupt_shard", str(path))


def test_a_damaged_shard_is_named_before_an_index_is_called_finished(tmp_path):
    folder = tmp_path / "index"
    make_index(folder)
    (folder / "index.json").unlink()
    path = shard_path(folder, 0, 2)
    path.write_bytes(path.read_bytes()[::-1])
    building = IndexFolder(folder, make_plan())
    with pytest.raises(Corrupt, match="rows-00002"):
        building.finish()
    path.unlink()  # as the error says
    assert building.missing() == {0: [2]}
    add_shard(building, 0, 2)
    building.finish()
    assert np.allclose(open_index(folder).score(make_queries()), slow_scores(make_queries()), atol=1e-7)


def test_a_shard_whose_digest_was_not_written_is_built_again(tmp_path):
    folder = tmp_path / "index"
    make_index(folder)
    (folder / "index.json").unlink()
    shard_path(folder, 1, 0).with_suffix(".sha256").unlink()
    assert IndexFolder(folder, make_plan()).missing() == {1: [0]}


def test_the_index_of_another_adapter_or_base_is_refused(index, tmp_path):
    folder = tmp_path / "index"
    for digest, base, said in (("other", "base", "another adapter's"), ("digest", "other", "another base model's")):
        with pytest.raises(InvalidInput, match=said) as caught:
            GradientIndex.open(folder, digest, base_digest=base)
        assert caught.value.code == "wrong_index"
        with pytest.raises(InvalidInput) as caught:
            IndexFolder(folder, make_plan(base, digest))
        assert caught.value.code == "wrong_index"


@pytest.mark.parametrize("shape", [(1, 5, 12), (2, 5, 11), (5, 12)])
def test_queries_that_dont_fit_are_refused(index, shape):
    for ask in (index.score, index.contributor_scores, lambda queries: index.top(queries, 3)):
        with pytest.raises(InvalidInput) as caught:
            ask(np.ones(shape, np.float32))
        assert caught.value.code == "invalid_query"


def test_requests_that_come_meanwhile_are_answered_by_one_product(index):
    asked = []

    def compute(queries, k):
        asked.append(queries.shape[1])
        return index.top(queries, k)

    async def ask_all():
        batcher, queries = Batcher(compute), make_queries(8)
        return await asyncio.gather(*(batcher.top(queries[:, n : n + 1], 2 + n) for n in range(8)))

    answers = asyncio.run(ask_all())
    assert sum(asked) == 8
    assert len(asked) <= 2
    together = index.top(make_queries(8), 9)
    for number, top in enumerate(answers):
        assert top.rows_QK.tolist() == [together.rows_QK[number, : 2 + number].tolist()]


def test_those_who_asked_get_the_error_and_the_next_are_answered():
    def compute(queries, k):
        if queries.sum() < 0:
            raise Corrupt("damaged", code="corrupt_shard")
        return Top(queries[0], np.zeros((queries.shape[1], k), np.int64))

    async def ask():
        batcher = Batcher(compute)
        with pytest.raises(Corrupt):
            await batcher.top(np.full((1, 1, 1), -1, np.float32), 1)
        return await batcher.top(np.ones((1, 1, 1), np.float32), 1)

    assert asyncio.run(ask()).scores_QK.tolist() == [[1.0]]
