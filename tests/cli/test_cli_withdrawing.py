"""`openledger withdraw` and `openledger remove`."""

import io
import json
from pathlib import Path

import pytest
from memory_service import API_KEY, MemoryService
from served_app import served

from openledger.api import create_app
from openledger.cli.main import main
from openledger.datanets.removal import check_withdrawal


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "my.key"
    assert main(["keys", "new", "--out", str(path)]) == 0
    return str(path)


def test_a_withdrawal_arrives_signed_and_the_adapters_are_told(key: str, capsys: pytest.CaptureFixture[str]):
    service = MemoryService()
    with served(create_app(service)) as url:
        assert main(["withdraw", "os-docs", "row_b", "row_a", "--key", key, "--url", url]) == 0
    check_withdrawal(service.withdrawn[0])
    assert service.withdrawn[0].row_ids == ("row_a", "row_b")
    told = capsys.readouterr().out
    assert "rmv_1" in told
    assert "os-docs" in told


def test_row_ids_come_from_standard_input(key: str, monkeypatch: pytest.MonkeyPatch):
    service = MemoryService()
    monkeypatch.setattr("sys.stdin", io.StringIO("row_a\nrow_b\n"))
    with served(create_app(service)) as url:
        assert main(["withdraw", "os-docs", "-", "--key", key, "--url", url]) == 0
    assert service.withdrawn[0].row_ids == ("row_a", "row_b")


def test_a_dry_run_sends_nothing(key: str, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    words = ["withdraw", "os-docs", "row_a", "--key", key, "--dry-run", "--json", "--url", "http://127.0.0.1:9"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["sent"]) == (1, False)


def test_an_owner_removes_with_a_reason(capsys: pytest.CaptureFixture[str]):
    service = MemoryService()
    with served(create_app(service)) as url:
        words = ["remove", "os-docs", "row_a", "--reason", "court_order", "--url", url, "--api-key", API_KEY]
        assert main(words) == 0
    assert service.removed == [("user:alice", "os-docs", ("row_a",), "court_order")]
