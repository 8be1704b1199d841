"""Shards in an object store: durable when answered, one copy of every row whoever else writes, nothing left of a
removed one. On a folder through Lance's object-store API, and on a local S3 server where `moto` is installed."""

import importlib.util
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import key_of, sample_drafts, signed
from test_datanets_shard import grep, sample_rows

from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Corrupt, NotFound, Unavailable
from openledger.core.values import Row
from openledger.datanets import objects, storage
from openledger.datanets.datanets import Datanets
from openledger.datanets.objects import ObjectFiles
from openledger.datanets.rows import table_of
from openledger.datanets.shard import Shard, ShardHost, _keyed
from openledger.datanets.storage import check_forgets
from openledger.platform.cluster import free_port


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file-object-store://{tmp_path}/docs.lance"


class TestShard:
    def test_a_new_process_finds_everything_once(self, uri: str) -> None:
        rows, shard = sample_rows(6), Shard(uri)
        shard.append(rows[:3], "a")
        shard.append(rows[3:], "b")
        again = Shard(uri)
        again.append(rows[:3], "a")
        assert again.count == 6
        assert again.rows([rows[5].row_id, rows[0].row_id]) == [rows[5], rows[0]]

    def test_a_successor_reads_what_the_process_before_it_still_writes(self, uri: str) -> None:
        rows, before = sample_rows(6), Shard(uri)
        before.append(rows[:2], "a")
        successor = Shard(uri)
        before.append(rows[2:4], "b")
        assert successor.rows([rows[3].row_id]) == [rows[3]]
        with pytest.raises(NotFound):
            successor.rows(["row_none"])

    def test_an_append_that_two_processes_make_is_stored_once(self, uri: str) -> None:
        rows, before = sample_rows(6), Shard(uri)
        before.append(rows[:2], "a")
        successor = Shard(uri)
        before.append(rows[2:], "b")
        successor.append(rows[2:], "b")  # it was not there when the successor opened
        for shard in (successor, Shard(uri)):
            assert shard.count == 6
            assert shard.rows([row.row_id for row in rows]) == rows
        assert sum(len(batch) for batch in Shard(uri).scan()) == 6

    def test_of_appends_that_share_a_commit_only_the_repeated_one_is_dropped(self, uri: str) -> None:
        rows, before = sample_rows(6), Shard(uri)
        before.append(rows[:2], "a")
        successor = Shard(uri)
        before.append(rows[2:4], "b")
        with ThreadPoolExecutor(2) as pool:
            with successor._lock:  # both wait, and are stored together
                found = [pool.submit(successor.append, *one) for one in ((rows[2:4], "b"), (rows[4:], "c"))]
                deadline = time.monotonic() + 60
                while len(successor._waiting) < 2:
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
            assert [one.exception() for one in found] == [None, None]
        for shard in (successor, Shard(uri)):
            assert sorted(row.row_id for row in shard.rows([row.row_id for row in rows])) == [r.row_id for r in rows]
            assert sum(len(batch) for batch in shard.scan()) == 6

    def test_no_object_keeps_a_removed_row(self, uri: str, tmp_path: Path) -> None:
        shard, rows = Shard(uri), sample_rows(6)
        secret = replace(rows[2], completion="xylophonesecret " * 8)
        shard.append([*rows[:2], secret], "a")
        shard.append(rows[3:], "b")
        assert grep(tmp_path, secret.row_id.encode())  # the control: it can be found
        assert shard.remove([secret.row_id]) == 1
        assert grep(tmp_path, b"xylophonesecret") == grep(tmp_path, secret.row_id.encode()) == []
        assert Shard(uri).count == 5

    @pytest.mark.parametrize("refused", [(Shard, "_compact"), (ObjectFiles, "forget_old_versions")])
    def test_a_removal_that_the_store_broke_off_is_finished_by_the_same_again(
        self, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: tuple[type, str]
    ) -> None:
        shard, rows = Shard(uri), sample_rows(3)
        secret = replace(rows[2], completion="xylophonesecret " * 8)
        shard.append([*rows[:2], secret], "a")
        with monkeypatch.context() as broken:
            broken.setattr(*refused, refuse)
            with pytest.raises(Unavailable):
                shard.remove([secret.row_id])
        assert shard.held([secret.row_id]) == []
        assert grep(tmp_path, b"xylophonesecret")
        shard.remove([secret.row_id])
        assert grep(tmp_path, b"xylophonesecret") == []
        assert shard.rows([rows[1].row_id]) == [rows[1]]

    def test_opening_finishes_a_removal_whose_files_were_not_written_anew(
        self, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shard, rows = Shard(uri), sample_rows(3)
        secret = replace(rows[2], completion="xylophonesecret " * 8)
        shard.append([*rows[:2], secret], "a")
        with monkeypatch.context() as broken:
            broken.setattr(Shard, "_compact", refuse)
            with pytest.raises(Unavailable):
                shard.remove([secret.row_id])
        assert Shard(uri).count == 2
        assert grep(tmp_path, b"xylophonesecret") == []

    @pytest.mark.parametrize("then", ["reading", "appending", "removing again"])
    def test_after_a_change_that_could_not_be_rolled_back_either_no_row_is_taken_for_another(
        self, uri: str, monkeypatch: pytest.MonkeyPatch, then: str
    ) -> None:
        shard, rows, others = Shard(uri), sample_rows(5), sample_rows(2, "other")
        shard.append(rows, "a")
        with monkeypatch.context() as broken:
            broken.setattr(Shard, "_compact", refuse)
            broken.setattr(ObjectFiles, "open", gone)
            with pytest.raises(Unavailable) as caught:
                shard.remove([rows[0].row_id])
            assert caught.value.code == "storage_unavailable"
            with pytest.raises(Unavailable):  # what is there isn't known
                shard.rows([rows[1].row_id])
            with pytest.raises(Unavailable):
                shard.append(others, "b")
        if then == "appending":
            shard.append(others, "b")
            assert shard.rows([others[0].row_id]) == [others[0]]
        elif then == "removing again":
            shard.remove([rows[0].row_id])
        assert shard.rows([rows[2].row_id, rows[1].row_id]) == [rows[2], rows[1]]
        assert shard.held([rows[0].row_id]) == []
        assert shard.count == Shard(uri).count == (6 if then == "appending" else 4)

    def test_a_first_change_that_broke_off_between_its_two_writes_is_read_again(
        self, uri: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shard, rows = Shard(uri), sample_rows(4)
        with monkeypatch.context() as broken:
            broken.setattr("lance.fragment.write_fragments", refuse)
            broken.setattr(ObjectFiles, "open", gone)
            with pytest.raises(Unavailable):
                shard._write([(table_of(rows[:2]), "a"), (table_of(rows[2:]), "b")])
        shard.append(rows[2:], "b")
        shard.append(rows[:2], "a")
        assert shard.rows([row.row_id for row in rows]) == rows
        assert shard.count == Shard(uri).count == 4

    def test_other_rows_than_were_asked_for_are_not_handed_out(self, uri: str) -> None:
        shard, rows = Shard(uri), sample_rows(3)
        shard.append(rows, "a")
        shard._dataset.delete(f"row_id = '{rows[0].row_id}'")  # behind the shard's back
        with pytest.raises(Corrupt) as caught:
            shard.rows([rows[1].row_id])
        assert caught.value.code == "corrupt_shard_file"
        assert "this Datanet's objects alone" in str(caught.value.fix)

    def test_all_rows_can_be_removed_and_others_come(self, uri: str) -> None:
        shard, rows = Shard(uri), sample_rows(2)
        shard.append(rows, "a")
        shard.remove([row.row_id for row in rows])
        assert shard.count == Shard(uri).count == 0
        shard.append(sample_rows(3, "other"), "b")
        assert Shard(uri).count == 3


class TestAProcessThatWasCutOff:
    """It has written an append's file, and commits it after its successor has changed the shard."""

    @pytest.fixture
    def rows(self) -> list[Row]:
        return sample_rows(8)

    @pytest.fixture
    def shards(self, uri: str, rows: list[Row]) -> tuple[Shard, Shard]:
        before = Shard(uri)
        before.append(rows[:5], "a")
        return before, Shard(uri)

    def test_that_its_successor_was_sent_the_same_append_doubles_and_loses_nothing(
        self, uri: str, shards: tuple[Shard, Shard], rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, successor = shards

        def meanwhile() -> None:
            successor.append(rows[5:], "b")
            successor.remove([rows[1].row_id])  # and every file goes that no version names

        stalling(monkeypatch, meanwhile)
        before.append(rows[5:], "b")
        expected = [rows[0], *rows[2:]]
        successor.append(sample_rows(1, "new"), "c")
        for shard in (before, successor, Shard(uri)):
            assert shard.rows([row.row_id for row in expected]) == expected
            assert shard.count == 8 - (shard is before)
        assert sum(map(len, Shard(uri).scan())) == 8

    def test_an_append_whose_file_is_gone_is_written_again(
        self, uri: str, shards: tuple[Shard, Shard], rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, successor = shards
        stalling(monkeypatch, lambda: successor.remove([rows[1].row_id]))
        before.append(rows[5:], "b")
        assert Shard(uri).count == 7
        successor.append(rows[5:], "b")
        assert Shard(uri).count == successor.count == 7

    def test_one_that_no_fence_stops_any_more_is_written_again_too(
        self, uri: str, shards: tuple[Shard, Shard], rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, successor = shards

        def meanwhile() -> None:
            successor.remove([rows[1].row_id])
            with monkeypatch.context() as soon:
                soon.setattr("openledger.datanets.shard.MAX_SMALL_FRAGMENTS", 2)
                successor.append(sample_rows(1, "new"), "c")
            assert len(successor._dataset.versions()) == 1  # the fence's is gone

        stalling(monkeypatch, meanwhile)
        before.append(rows[5:], "b")
        expected = [rows[0], *rows[2:], *sample_rows(1, "new")]
        for shard in (before, successor, Shard(uri)):
            assert shard.rows([row.row_id for row in expected]) == expected
        assert sum(map(len, Shard(uri).scan())) == 8

    def test_rows_that_its_successor_took_back_before_it_answered_do_not_come_again(
        self, uri: str, shards: tuple[Shard, Shard], rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, successor = shards
        note = Shard._note

        def late(shard: Shard, *arguments: Any) -> None:
            monkeypatch.setattr(Shard, "_note", note)
            successor._see_others()
            assert successor.remove([row.row_id for row in rows[5:]]) == 3
            shard._dataset = shard._files.open()
            note(shard, *arguments)

        monkeypatch.setattr(Shard, "_note", late)
        with pytest.raises(Unavailable):
            before.append(rows[5:], "b")
        assert Shard(uri).row_ids() == [row.row_id for row in rows[:5]]

    def test_one_that_ended_before_it_could_write_again_locks_nobody_out(
        self, uri: str, shards: tuple[Shard, Shard], rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, successor = shards
        stalling(monkeypatch, lambda: successor.remove([rows[1].row_id]))
        with monkeypatch.context() as ended:
            ended.setattr("openledger.datanets.shard._TRIES", 1)
            with pytest.raises(Unavailable) as caught:
                before.append(rows[5:], "b")
        assert caught.value.code == "storage_unavailable"
        assert Shard(uri).count == 4
        successor.append(rows[5:], "b")
        assert Shard(uri).count == successor.count == 7

    @pytest.mark.parametrize("moment", ["listed", "fenced", "deleting", "deleted"])
    def test_an_append_that_a_removal_meets_halfway_is_there_once_it_is_answered(
        self,
        uri: str,
        tmp_path: Path,
        shards: tuple[Shard, Shard],
        rows: list[Row],
        monkeypatch: pytest.MonkeyPatch,
        moment: str,
    ) -> None:
        before, successor = shards
        written_already(monkeypatch, before, rows[5:], "b")
        moments = interleaving(monkeypatch, moment, lambda: before.append(rows[5:], "b"))
        successor.remove([rows[1].row_id])
        assert moment in moments
        expected = [rows[0], *rows[2:]]
        assert Shard(uri).rows([row.row_id for row in expected]) == expected
        assert Shard(uri).count == 7
        successor.append(sample_rows(1, "new"), "c")
        assert Shard(uri).rows([row.row_id for row in expected]) == expected
        assert grep(tmp_path, rows[1].completion.encode()) == []

    def test_files_that_its_successor_makes_few_of_many_cost_no_append(
        self, uri: str, shards: tuple[Shard, Shard], rows: list[Row], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before, successor = shards
        monkeypatch.setattr("openledger.datanets.shard.MAX_SMALL_FRAGMENTS", 2)
        stalling(monkeypatch, lambda: successor.append(sample_rows(1, "new"), "c"))
        before.append(rows[5:], "b")
        assert Shard(uri).count == 9
        assert Shard(uri).rows([row.row_id for row in rows]) == rows

    def test_a_lost_object_is_named_and_what_it_held_is_not_given_up(
        self, uri: str, tmp_path: Path, shards: tuple[Shard, Shard]
    ) -> None:
        (data,) = (tmp_path / "docs.lance" / "data").iterdir()
        data.rename(tmp_path / "away")
        with pytest.raises(Corrupt) as caught:
            Shard(uri)
        assert (caught.value.code, caught.value.param) == ("corrupt_shard_file", f"{uri}/data/{data.name}")
        (tmp_path / "away").rename(data)
        assert Shard(uri).count == 5


def stalling(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """`meanwhile` comes between the next file of an append and its commit."""
    import lance

    write = lance.fragment.write_fragments

    def late(*arguments: Any, **options: Any) -> Any:
        written = write(*arguments, **options)
        monkeypatch.setattr(lance.fragment, "write_fragments", write)
        meanwhile()
        return written

    monkeypatch.setattr(lance.fragment, "write_fragments", late)


def written_already(monkeypatch: pytest.MonkeyPatch, shard: Shard, rows: list[Row], key: str) -> None:
    """The file of the shard's next append lies there, uncommitted."""
    import lance

    write, (table,) = lance.fragment.write_fragments, [_keyed(table_of(rows), key).cast(shard._schema)]
    written = iter([write(table, shard._dataset)])
    monkeypatch.setattr(
        lance.fragment, "write_fragments", lambda *a, **options: next(written, None) or write(*a, **options)
    )


def interleaving(monkeypatch: pytest.MonkeyPatch, moment: str, act: Callable[[], object]) -> list[str]:
    """Have `act` come at one moment of the next cleaning up; the moments, as they come."""
    moments: list[str] = []
    fenced, session = ObjectFiles._fenced, objects._session

    def reach(name: str) -> None:
        if name not in moments:
            moments.append(name)
            if name == moment:
                act()

    class Session:
        def __init__(self, *arguments: Any):
            self._session = session(*arguments)

        def list(self) -> Any:
            found = self._session.list()
            reach("listed")
            return found

        def delete_file(self, path: str) -> None:
            reach("deleting")
            self._session.delete_file(path)
            reach("deleted")

    def then(files: ObjectFiles) -> Any:
        dataset = fenced(files)
        reach("fenced")
        return dataset

    monkeypatch.setattr(objects, "_session", Session)
    monkeypatch.setattr(ObjectFiles, "_fenced", then)
    return moments


def refuse(*_: object, **__: object) -> None:
    raise OSError("connection reset")


def gone(_: ObjectFiles) -> None:
    raise Unavailable("the store is gone", code="storage_unavailable")


def test_datanets_over_an_object_store_publish_what_was_accepted(tmp_path: Path) -> None:
    check_datanets(tmp_path, [ShardHost(f"file-object-store://{tmp_path}/rows/{number}") for number in range(2)])


def test_what_cannot_be_checked_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "minio.error", None)
    check_forgets("", {})
    check_forgets("gs://bucket/rows", {})
    assert caplog.messages == []
    check_forgets("s3://bucket/rows", {})
    assert "openledger[s3]" in caplog.text


class TestS3:
    @pytest.fixture
    def options(self) -> Iterator[dict[str, str]]:
        missing = [name for name in ("moto", "boto3", "flask", "blinker") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"{', '.join(missing)} is not installed (pip install 'moto[server]')")
        port = free_port()
        environment = {**os.environ, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
        server = subprocess.Popen(
            [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        endpoint = f"http://127.0.0.1:{port}"
        try:
            make_bucket(f"{endpoint}/datanets", server)
            yield {
                "aws_endpoint": endpoint, "aws_region": "us-east-1", "aws_access_key_id": "k",
                "aws_secret_access_key": "s", "allow_http": "true",
            }  # fmt: skip
        finally:
            server.kill()
            server.wait()

    def test_rows_are_stored_found_and_forgotten(self, options: dict[str, str], tmp_path: Path) -> None:
        rows, uri = sample_rows(6), "s3://datanets/docs.lance"
        before = Shard(uri, options)
        before.append(rows[:2], "a")
        successor = Shard(uri, options)
        before.append(rows[2:], "b")
        successor.append(rows[2:], "b")
        assert successor.rows([row.row_id for row in rows]) == rows
        assert successor.remove([rows[0].row_id]) == 1
        assert Shard(uri, options).count == 5
        check_datanets(tmp_path, [ShardHost("s3://datanets/shard-0", options)])

    def test_endpoint_and_keys_come_from_the_environment_where_none_are_given(
        self, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in options.items():
            monkeypatch.setenv(name.upper() if name.startswith("aws_") else f"AWS_{name.upper()}", value)
        Shard("s3://datanets/environment.lance").append(sample_rows(3), "a")
        assert Shard("s3://datanets/environment.lance", options).count == 3

    def test_a_bucket_that_keeps_versions_is_refused(
        self, options: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        pytest.importorskip("minio")
        from minio.versioningconfig import ENABLED, VersioningConfig

        environment = {"AWS_ENDPOINT": options["aws_endpoint"]}
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        check_forgets("s3://datanets/rows", environment)
        assert caplog.messages == []
        storage._client(environment).set_bucket_versioning("datanets", VersioningConfig(ENABLED))
        with pytest.raises(Conflict) as caught:
            check_forgets("s3://datanets/rows", environment)
        assert (caught.value.code, caught.value.param) == ("bucket_keeps_versions", "OPENLEDGER_STORAGE")
        check_forgets("s3://elsewhere/rows", environment)
        assert "NoSuchBucket" in caplog.text

    def test_a_store_that_is_gone_is_named_and_nothing_is_lost(self, options: dict[str, str]) -> None:
        gone = {**options, "aws_endpoint": f"http://127.0.0.1:{free_port()}", "client_max_retries": "0"}
        with pytest.raises(Unavailable) as caught:
            Shard("s3://datanets/docs.lance", gone)
        assert caught.value.code == "storage_unavailable"
        assert "s3://datanets/docs.lance" in caught.value.message


def check_datanets(folder: Path, shards: list[ShardHost]) -> None:
    datanets = Datanets(folder / "metadata", shards, ManualClock())
    datanets.create("docs", "What functions do", "acct_owner")
    datanets.register_contributor(key_of("ada").public_key, "ada")
    receipt = datanets.contribute(signed("ada", sample_drafts(20)))
    assert datanets.publish("docs").num_rows == 20
    assert {row.row_id for row in datanets.rows("docs", 1)} == {verdict.row_id for verdict in receipt.verdicts}
    datanets.close()


def make_bucket(url: str, server: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()
        except OSError:
            assert server.poll() is None, "the S3 server ended"
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the S3 server doesn't answer")
