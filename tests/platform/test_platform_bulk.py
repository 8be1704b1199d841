"""A version as a Ray Dataset: the rows that the actors would give, read beside them."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openledger.core.errors import Forbidden
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, Row, RowDraft
from openledger.datanets.actor import start_datanets
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.docstrings import package_rows
from openledger.datanets.rows import SCHEMA
from openledger.datanets.shard import Shard
from openledger.platform import bulk

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
    options = asked["ray_remote_args"]
    if is_on_disk:
        assert (options["num_cpus"], options["scheduling_strategy"].node_id) == (0, node)
        assert asked["concurrency"] == len(parts) == 1  # Ray Data warns of more than there are tasks
    else:
        assert (options, asked["concurrency"]) == ({}, None)


class Method:
    def __init__(self, answer: Any):
        self._answer = answer

    def remote(self, *arguments: Any) -> Any:
        return self._answer


@pytest.mark.cluster
def test_ray_reads_a_version_from_storage(cluster: Any, tmp_path: Path) -> None:
    import ray

    from openledger.platform.bulk import version_dataset

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
        dataset = version_dataset(datanets, "docs", 1, "acct_owner")
        assert dataset.schema().base_schema.equals(SCHEMA)
        found = dataset.take_all()
        assert {row["row_id"]: row["completion"] for row in found} == {i: row.completion for i, row in expected.items()}
        assert len(found) == len(expected)
        prompts = version_dataset(datanets, "docs", 1, "acct_owner", ["prompt"]).take_all()
        assert sorted(row["prompt"] for row in prompts) == sorted(row.prompt for row in expected.values())

        ray.get(datanets.change_terms.remote("docs", {"train": "private"}, "acct_owner"))
        with pytest.raises(Forbidden):
            version_dataset(datanets, "docs", 1, "acct_stranger")
        ray.kill(busy)
    finally:
        for name in ("openledger-shard-0", "openledger-shard-1", "openledger-datanets"):
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))
