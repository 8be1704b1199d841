"""A version as a Ray Dataset: the rows that the actors would give, read beside them."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayTaskError
from tiny_model import make_tiny_base

from openledger.adapters.base_model import BaseModel, load_model, load_tokenizer
from openledger.core.errors import Forbidden, Unavailable
from openledger.core.hashing import digest_bytes
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, Row, RowDraft
from openledger.datanets.actor import start_datanets
from openledger.datanets.bulk import Part
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.docstrings import package_rows
from openledger.datanets.rows import SCHEMA
from openledger.datanets.shard import Shard
from openledger.platform import bulk, pipeline
from openledger.training.examples import encode_row, fitting_rows
from openledger.training.loop import train
from openledger.training.lora import attach_lora
from openledger.training.recipe import Recipe, row_root_constant
from openledger.training.task import trainable_parameters

NAMESPACE = "openledger-bulk-test"


def documentation(module: str) -> Contribution:
    drafts = [RowDraft(prompt=row.prompt, completion=row.completion) for row in package_rows(module)]
    return sign_contribution(SigningKey(b"a" * 32), "docs", drafts, module)


def sample_rows(number: int) -> list[Row]:
    return [
        Row(
            row_id=f"row_{place}", datanet="docs", contributor_id="ctr_a", contribution_id="ctb_a", ordinal=place,
            source="", prompt=f"What is {place}?", completion="A number.",
        )
        for place in range(number)
    ]  # fmt: skip


@pytest.mark.parametrize("is_on_disk", [True, False])
def test_tasks_that_are_bound_to_the_disks_node_need_no_cpu_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_on_disk: bool
) -> None:
    """A head node may have none to give: then they would wait for ever, without an error."""
    place = tmp_path / "s" if is_on_disk else f"file-object-store://{tmp_path}/docs.lance"
    shard, asked = Shard(place), dict[str, Any]()
    shard.append(sample_rows(3), "a")
    parts = shard.parts(shard.row_ids())
    monkeypatch.setattr(bulk, "_answered", lambda found: found)
    monkeypatch.setattr(bulk.ray, "get", lambda found: found)
    monkeypatch.setattr(bulk.ray.data, "read_datasource", lambda source, **options: asked.update(options))
    node = "0" * 56
    actor = SimpleNamespace(bulk_parts=Method(parts), __ray_call__=Method(node))
    bulk.version_dataset(actor, "docs", 1, "acct_owner")
    assert asked.pop("override_num_blocks") == len(parts) == 1
    if is_on_disk:  # Ray Data warns of a concurrency over the number of tasks
        assert asked == {"num_cpus": 0, "label_selector": {"ray.io/node-id": node}, "concurrency": 1}
    else:
        assert asked == {}


class Owner:
    """As the Datanets actor's handle, over one shard, a part for each of its appends; its tasks are run here. `before`
    comes before each."""

    def __init__(self, place: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("openledger.datanets.shard.MAX_SMALL_BYTES", 0)  # the journal has one part for several
        self.shard = Shard(place)
        for number in range(0, len(rows), 10):
            self.shard.append(rows[number : number + 10], str(number))
        self.standing = {row.row_id for row in rows}
        self.num_asked = 0
        self.before: Callable[[], Any] = bool
        self.read: list[str] = []
        monkeypatch.setattr("openledger.datanets.shard.PART_ROWS", 10)
        monkeypatch.setattr(bulk, "_answered", lambda found: found)
        monkeypatch.setattr(bulk.ray, "get", lambda found: found)
        monkeypatch.setattr(bulk.ray.data, "read_datasource", lambda source, **_: Inline(source, self))
        self.bulk_parts = SimpleNamespace(remote=self.parts)
        self.__ray_call__ = Method("0" * 56)

    def parts(self, *_: Any) -> list[Part]:
        self.num_asked += 1
        return self.shard.parts(sorted(self.standing))

    def withdraw(self, row_id: str) -> None:
        self.standing.discard(row_id)
        self.shard.remove([row_id])


class Inline:
    def __init__(self, source: bulk.PartsDatasource, owner: Owner):
        self._source, self._owner = source, owner

    def iter_batches(self, **_: Any) -> Iterator[Any]:
        for task in self._source.get_read_tasks(1):
            self._owner.before()
            for table in task():
                self._owner.read += table.column("row_id").to_pylist()
                yield table


def test_rows_that_are_taken_back_one_after_the_other_make_nothing_be_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sample_rows(50)
    owner = Owner(tmp_path / "s", rows, monkeypatch)
    doomed = [f"row_{number}" for number in range(49, 33, -1)]
    owner.before = lambda: owner.withdraw(doomed.pop()) if doomed else None
    expected = sorted((row for row in rows if row.ordinal < 34), key=lambda row: row.row_id)
    found = bulk.version_rows(owner, "docs", 1, "acct_owner")
    assert [row for row in found if row.ordinal < 34] == expected
    assert len(owner.read) == len(set(owner.read))
    assert {row.row_id for row in found} <= owner.standing
    assert owner.num_asked == 2


def test_rows_that_were_read_and_are_gone_when_it_is_asked_again_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sample_rows(20)
    owner = Owner(tmp_path / "s", rows, monkeypatch)
    moments = iter([lambda: None, lambda: [owner.withdraw(f"row_{number}") for number in (1, 11)]])
    owner.before = lambda: next(moments)()
    assert {row.ordinal for row in bulk.version_rows(owner, "docs", 1, "acct_owner")} == {*range(20)} - {1, 11}


@pytest.mark.parametrize("problem", ["rows_changed", "storage_unavailable"])
def test_rows_that_stand_and_are_not_found_are_told_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    owner = Owner(tmp_path / "s", sample_rows(20), monkeypatch)
    parts = owner.parts()
    lost = {"row_ids": (*parts[1].row_ids, "row_lost")} if problem == "rows_changed" else {"uri": str(tmp_path / "no")}
    asked = iter(range(99))
    owner.bulk_parts = SimpleNamespace(remote=lambda *_: next(asked) < 99 and [parts[0], replace(parts[1], **lost)])
    with pytest.raises(Unavailable) as caught:
        bulk.version_rows(owner, "docs", 1, "acct_owner")
    assert caught.value.code == problem
    assert next(asked) == bulk._TRIES
    assert owner.read.count("row_0") == 1


@pytest.mark.parametrize("depth", [1, 3])
def test_the_error_of_ours_comes_out_of_all_that_ray_wraps_it_in(monkeypatch: pytest.MonkeyPatch, depth: int) -> None:
    error: Exception = Forbidden("no", code="not_permitted")
    for _ in range(depth):
        error = RayTaskError("read", "traceback", error).as_instanceof_cause()

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(bulk, "_dataset", refuse)
    monkeypatch.setattr(bulk, "_answered", lambda found: found)
    part = Part(uri="docs", options=None, files=(), num_rows=1, row_ids=("row_0",))
    with pytest.raises(Forbidden) as caught:
        bulk.version_rows(SimpleNamespace(bulk_parts=Method([part])), "docs", 1, "acct_owner")
    assert type(caught.value) is Forbidden
    assert caught.value.code == "not_permitted"


def adapter_digest(base: BaseModel, rows: list[Row]) -> str:
    """Of what is trained on the rows, in their order."""
    recipe, tokenizer = Recipe(rank=4, alpha=16, num_epochs=1, batch_rows=8), load_tokenizer(base)
    constant = row_root_constant(base.digest, "docs", 1, "root")
    model = attach_lora(load_model(base), recipe, constant)
    examples = [encode_row(tokenizer, row) for row in fitting_rows(rows, base, recipe.max_row_tokens)[:16]]
    train(model, examples, recipe, constant)
    return digest_bytes(b"".join(one.detach().numpy().tobytes() for one in trainable_parameters(model).values()))


class Method:
    def __init__(self, answer: Any):
        self._answer = answer

    def remote(self, *arguments: Any) -> Any:
        return self._answer


@pytest.mark.cluster
def test_ray_reads_a_version_from_storage(cluster: Any, tmp_path: Path) -> None:
    import ray

    class Busy:
        def there(self) -> bool:
            return True

    datanets = start_datanets(tmp_path, num_shards=2, namespace=NAMESPACE)
    try:
        ray.get(datanets.create.remote("docs", "What functions do", "acct_owner"))
        ray.get(datanets.contribute.remote(documentation("argparse")))
        ray.get(datanets.publish.remote("docs"))
        ray.get(datanets.contribute.remote(documentation("zipfile")))
        expected = {row.row_id: row for row in ray.get(datanets.rows.remote("docs", 1))}
        assert len(expected) > 10

        busy = ray.remote(Busy).options(num_cpus=ray.cluster_resources()["CPU"]).remote()
        ray.get(busy.there.remote())  # no CPU is free, as on a head node without any
        dataset = bulk.version_dataset(datanets, "docs", 1, "acct_owner")
        assert dataset.schema().base_schema.equals(SCHEMA)
        found = dataset.take_all()
        assert {row["row_id"]: row["completion"] for row in found} == {i: row.completion for i, row in expected.items()}
        assert len(found) == len(expected)

        ray.kill(busy)

        through_actors = ray.get(datanets.rows.remote("docs", 1))
        _, rows = pipeline.published(datanets, "docs", 1, "acct_owner")
        assert rows == through_actors
        base = make_tiny_base(tmp_path / "base")
        assert adapter_digest(base, rows) == adapter_digest(base, through_actors)
        assert adapter_digest(base, rows) != adapter_digest(base, rows[::-1])

        ray.get(datanets.change_terms.remote("docs", {"train": "private"}, "acct_owner"))
        for refused in (bulk.version_dataset, bulk.version_rows):
            with pytest.raises(Forbidden):
                refused(datanets, "docs", 1, "acct_stranger")
        ray.get(datanets.remove.remote("docs", [row.row_id for row in rows], "acct_owner", "court_order"))
        assert bulk.version_rows(datanets, "docs", 1, "acct_owner") == []
    finally:
        for name in ("openledger-shard-0", "openledger-shard-1", "openledger-datanets"):
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))
