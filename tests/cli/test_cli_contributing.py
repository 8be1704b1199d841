"""`openledger contribute`: from a JSONL file to signed rows at the server."""

import json
from pathlib import Path

import pytest
from memory_service import MemoryService
from served_app import served

from openledger.api import create_app
from openledger.cli.main import main
from openledger.datanets.seals import digest_of

contribution = pytest.importorskip("openledger.datanets.contribution")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"What is {n}?", "completion": f"It is the number {n}.", "source": "me"} for n in range(3)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    key = tmp_path / "my.key"
    assert main(["keys", "new", "--out", str(key)]) == 0
    return ["contribute", "os-docs", str(rows), "--key", str(key)]


def test_rows_arrive_signed_by_the_key(files: list[str], capsys: pytest.CaptureFixture[str]):
    service = MemoryService()
    with served(create_app(service)) as url:
        assert main([*files, "--url", url]) == 0
    sent = service.contributed[0]
    contribution.check_signature(sent)
    assert [draft.prompt for draft in sent.drafts] == ["What is 0?", "What is 1?", "What is 2?"]
    assert "noise" in capsys.readouterr().out


def test_the_same_file_again_is_the_same_contribution(files: list[str]):
    service = MemoryService()
    with served(create_app(service)) as url:
        main([*files, "--url", url])
        main([*files, "--url", url])
        main([*files, "--url", url, "--nonce", "1"])
    first, again, other = service.contributed
    assert first == again != other


def test_a_dry_run_sends_nothing(files: list[str], capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert main([*files, "--dry-run", "--json", "--url", "http://127.0.0.1:9"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["sent"]) == (3, False)


def test_sealing_sends_no_row_and_the_rows_then_open_the_seal(files: list[str], capsys: pytest.CaptureFixture[str]):
    service = MemoryService()
    with served(create_app(service)) as url:
        assert main([*files, "--url", url, "--seal"]) == 0
        printed = capsys.readouterr()
        assert service.contributed == []
        service.seal_state = "opened"
        assert main([*files, "--url", url]) == 0
    assert ("expires" in printed.out, "the place is yours" in printed.err) == (True, True)
    (seal,) = service.sealed.values()
    assert seal.digest == digest_of(service.contributed[0])
    assert "sealed 2023-11-14 22:13:20 UTC: that is their place" in capsys.readouterr().err


def test_rows_that_come_too_late_for_their_seal_are_told_so(files: list[str], capsys: pytest.CaptureFixture[str]):
    service = MemoryService(seal_state="expired")
    with served(create_app(service)) as url:
        main([*files, "--url", url, "--seal"])
        assert main([*files, "--url", url]) == 0
    assert "their seal had expired" in capsys.readouterr().err


def test_a_dry_run_tells_the_seal_and_sends_nothing(files: list[str], capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert main([*files, "--seal", "--dry-run", "--json", "--url", "http://127.0.0.1:9"]) == 0
    assert len(json.loads(capsys.readouterr().out)["seal"]) == 64


def test_a_malformed_line_is_named(files: list[str], capsys: pytest.CaptureFixture[str]):
    Path(files[2]).write_text('{"prompt": "p", "completion": "c"}\n{"prompt": \n')
    assert main([*files, "--dry-run"]) == 2
    assert "malformed_row" in capsys.readouterr().err


def test_a_mistyped_key_does_not_become_an_identity(files: list[str], tmp_path: Path):
    assert main([*files[:-1], str(tmp_path / "other.key"), "--dry-run"]) == 6
    assert not (tmp_path / "other.key").exists()


def test_a_file_that_is_not_there_is_named(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*files[:2], str(tmp_path / "none.jsonl"), *files[3:], "--dry-run"]) == 6
    assert "none.jsonl" in capsys.readouterr().err


def test_an_empty_file_is_refused(files: list[str], capsys: pytest.CaptureFixture[str]):
    Path(files[2]).write_text("")
    assert main([*files, "--dry-run"]) == 2
    assert "empty_contribution" in capsys.readouterr().err
