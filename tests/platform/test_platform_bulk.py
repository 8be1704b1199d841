"""A version as a Ray Dataset: the rows that the actors would give, read beside them."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from openledger.core.errors import Forbidden
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, RowDraft
from openledger.datanets.actor import start_datanets
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.docstrings import package_rows
from openledger.datanets.rows import SCHEMA

NAMESPACE = "openledger-bulk-test"


def documentation(module: str) -> Contribution:
    drafts = [RowDraft(prompt=row.prompt, completion=row.completion) for row in package_rows(module)]
    return sign_contribution(SigningKey(b"a" * 32), "docs", drafts, module)


@pytest.mark.cluster
def test_ray_reads_a_version_from_storage(cluster: Any, tmp_path: Path) -> None:
    import ray

    from openledger.platform.bulk import version_dataset

    datanets = start_datanets(tmp_path, num_shards=2, namespace=NAMESPACE)
    try:
        ray.get(datanets.create.remote("docs", "What functions do", "acct_owner"))
        ray.get(datanets.contribute.remote(documentation("argparse")))
        ray.get(datanets.publish.remote("docs"))
        ray.get(datanets.contribute.remote(documentation("zipfile")))
        expected = {row.row_id: row for row in ray.get(datanets.rows.remote("docs", 1))}
        assert len(expected) > 10

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
    finally:
        for name in ("openledger-shard-0", "openledger-shard-1", "openledger-datanets"):
            with contextlib.suppress(ValueError):
                ray.kill(ray.get_actor(name, namespace=NAMESPACE))
