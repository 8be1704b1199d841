"""Where rows lie, as it was set up and as it is found again."""

from pathlib import Path

import pytest
from datanet_samples import open_datanets

from openledger.core.errors import Conflict, Corrupt, InvalidInput
from openledger.datanets.storage import SETTING, shard_places, storage_uri


def test_without_a_setting_rows_lie_in_the_folder(tmp_path: Path) -> None:
    assert storage_uri({}) == ""
    assert shard_places(tmp_path, 2) == [tmp_path / "shard-0", tmp_path / "shard-1"]


def test_with_one_each_shard_has_its_place_below_the_uri(tmp_path: Path) -> None:
    uri = storage_uri({SETTING: " s3://bucket/rows/ "})
    assert shard_places(tmp_path, 2, uri) == ["s3://bucket/rows/shard-0", "s3://bucket/rows/shard-1"]


@pytest.mark.parametrize("value", ["/var/rows", "memory://rows", "s3://", "http://host/rows", "s3://b/a b", "s3:/b/a"])
def test_a_value_that_is_no_object_store_is_refused(value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        storage_uri({SETTING: value})
    assert (caught.value.code, caught.value.param) == ("invalid_storage", SETTING)


def test_shards_that_were_more_before_are_found_again(tmp_path: Path) -> None:
    shard_places(tmp_path, 3, "s3://bucket/rows")
    assert len(shard_places(tmp_path, 1, "s3://bucket/rows")) == 3


@pytest.mark.parametrize(
    ("before", "after"), [("", "s3://b/rows"), ("s3://b/rows", ""), ("s3://b/rows", "s3://c/rows")]
)
def test_rows_are_looked_for_where_they_were_put_alone(tmp_path: Path, before: str, after: str) -> None:
    shard_places(tmp_path, 2, before)
    with pytest.raises(Conflict) as caught:
        shard_places(tmp_path, 2, after)
    assert caught.value.code == "storage_changed"


def test_a_folder_of_before_there_was_a_choice_keeps_its_rows(tmp_path: Path) -> None:
    open_datanets(tmp_path, 2).close()
    (tmp_path / "shard-0").mkdir(exist_ok=True)
    with pytest.raises(Conflict):
        shard_places(tmp_path, 2, "s3://bucket/rows")


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "storage.json").write_text("{")
    with pytest.raises(Corrupt) as caught:
        shard_places(tmp_path, 1)
    assert (caught.value.code, caught.value.param) == ("corrupt_storage_record", str(tmp_path / "storage.json"))
