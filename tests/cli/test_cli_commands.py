"""The command over HTTP: what it prints, how it refuses, and that text from elsewhere can't drive the terminal."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_service import API_KEY, POOR_KEY, PROOF, RECEIPT, MemoryService
from served_app import served

from openledger import __version__
from openledger.api import create_app
from openledger.cli.main import main


@pytest.fixture(scope="module")
def service() -> MemoryService:
    return MemoryService()


@pytest.fixture(scope="module")
def url(service: MemoryService) -> Iterator[str]:
    with served(create_app(service)) as url:
        yield url


@pytest.fixture
def here(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server and the account by environment, as users set them."""
    monkeypatch.setenv("OPENLEDGER_URL", url)
    monkeypatch.setenv("OPENLEDGER_API_KEY", API_KEY)


@pytest.mark.usefixtures("here")
class TestOverHttp:
    @pytest.mark.parametrize(
        ("words", "shown"),
        [
            (["models"], ["os-docs", "os-docs v1", "0.00000004"]),
            (["balance"], ["user:alice", "2.5 OPEN", "0.000001 OPEN"]),
            (["datanets"], ["os-docs", "701", "570"]),
            (["payouts"], ["trf_2", "0.0000015 OPEN"]),
            (["report"], ["0.04821 OPEN", "os.path", "copier", "path-copier"]),
            (["status"], ["ok", __version__, "42"]),
        ],
    )
    def test_shows_people_the_gist(self, capsys: pytest.CaptureFixture[str], words: list[str], shown: list[str]):
        assert main(words) == 0
        printed = capsys.readouterr().out
        assert [text for text in shown if text not in printed] == []

    @pytest.mark.parametrize("command", ["models", "balance", "datanets", "payouts", "report", "status"])
    def test_gives_programs_json_alone(self, capsys: pytest.CaptureFixture[str], command: str):
        assert main([command, "--json"]) == 0
        json.loads(capsys.readouterr().out)

    def test_report_as_json_is_the_whole_report(self, capsys: pytest.CaptureFixture[str], service: MemoryService):
        main(["report", "--json"])
        assert json.loads(capsys.readouterr().out) == service.told

    def test_a_balance_before_any_payment_is_zero_and_says_why(
        self, capsys: pytest.CaptureFixture[str], service: MemoryService, monkeypatch: pytest.MonkeyPatch
    ):
        async def unpaid(account: str) -> dict[str, Any]:
            return {"account": account, "available_nano": 0, "held_nano": 0, "is_open": False}

        monkeypatch.setattr(service, "balance", unpaid)
        assert main(["balance"]) == 0
        printed = capsys.readouterr()
        assert ("available  0 OPEN" in printed.out, "is open" in printed.out) == (True, False)
        assert printed.err.startswith("nothing has been paid to this account yet")
        assert main(["balance", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["is_open"] is False

    def test_ask_prints_the_answer_alone_on_stdout(self, capsys: pytest.CaptureFixture[str]):
        assert main(["ask", "os-docs", "What?", "--max-tokens", "9"]) == 0
        printed = capsys.readouterr()
        assert printed.out == "Join one or more path segments.\n"
        assert "7 + 6 tokens, 0.00000031 OPEN, ans_1" in printed.err

    def test_ask_passes_sampling_on(self, service: MemoryService):
        main(["ask", "os-docs", "What?", "--max-tokens", "9", "--temperature", "0.5", "--seed", "4", "--json"])
        sampling = service.asked[-1]["sampling"]
        assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (9, 0.5, 4)

    def test_proof_is_written_byte_for_byte(self, tmp_path: Path):
        target = tmp_path / "payout.json"
        assert main(["proof", "trf_1", "-o", str(target)]) == 0
        assert target.read_bytes() == PROOF

    def test_receipt_is_written_byte_for_byte(self, tmp_path: Path):
        target = tmp_path / "receipt.json"
        assert main(["receipt", "ans_1", "-o", str(target)]) == 0
        assert target.read_bytes() == RECEIPT

    def test_proof_goes_to_stdout_without_a_file(self, capsysbinary: pytest.CaptureFixture[bytes]):
        assert main(["proof", "trf_1"]) == 0
        assert capsysbinary.readouterr().out == PROOF

    def test_a_proof_that_is_not_there_leaves_no_file(self, tmp_path: Path):
        target = tmp_path / "payout.json"
        assert main(["proof", "trf_none", "-o", str(target)]) == 6
        assert not target.exists()


class TestErrors:
    def test_are_one_block_on_stderr_with_the_class_exit_code(self, capsys: pytest.CaptureFixture[str], url: str):
        assert main(["ask", "os-docs", "x", "--url", url, "--api-key", POOR_KEY]) == 4
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err == (
            "error: 0.000000100 OPEN are missing\n"
            "  code  insufficient_funds\n"
            "  param account\n"
            "  fix   top the account up\n"
        )

    def test_are_the_envelope_under_json(self, capsys: pytest.CaptureFixture[str], url: str):
        assert main(["balance", "--json", "--url", url, "--api-key", "wrong"]) == 3
        told = json.loads(capsys.readouterr().err)["error"]
        assert told["code"] == "invalid_api_key"

    @pytest.mark.parametrize(
        ("words", "exit_code", "code"),
        [
            ([], 2, "usage"),
            (["frobnicate"], 2, "usage"),
            (["models", "--what"], 2, "usage"),
            (["ask", "os-docs"], 2, "usage"),
            (["ask", "os-docs", "x", "--max-tokens", "0"], 2, "usage"),
            (["quickstart", "--port", "70000"], 2, "usage"),
            (["quickstart", "--port", "http"], 2, "usage"),
            (["ledger", "verify", "p.json"], 2, "usage"),
            (["models", "--url", "nowhere"], 2, "invalid_url"),
            (["models", "--url", "http://127.0.0.1:9"], 10, "unreachable"),
            (["contribute", "os-docs", "no-such.jsonl", "--key", "no-such.key"], 6, "unknown_file"),
            (["status", "--url", "http://127.0.0.1:9"], 10, "unreachable"),
        ],
    )
    def test_have_a_code(self, capsys: pytest.CaptureFixture[str], words: list[str], exit_code: int, code: str):
        assert main(words) == exit_code
        printed = capsys.readouterr()
        assert printed.out == ""
        assert f"  code  {code}\n" in printed.err

    def test_an_environment_that_names_no_server_is_refused(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("OPENLEDGER_URL", "localhost")
        assert main(["datanets"]) == 2
        assert "invalid_url" in capsys.readouterr().err

    def test_ctrl_c_is_told_with_130(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
        def interrupted(path: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "exists", interrupted)
        assert main(["keys", "new"]) == 130
        assert "interrupted" in capsys.readouterr().err


class TestHostileText:
    def test_cannot_drive_the_terminal(self, capsys: pytest.CaptureFixture[str]):
        hostile = "\x1b[2J\x1b]0;owned\x07 \u202etxet \x9b31m [red]plain[/red]"
        told = {"datanets": [{"name": hostile, "summary": hostile, "version": 1}]}
        service = MemoryService(words=(hostile,), told=told)
        with served(create_app(service)) as url:
            main(["datanets", "--url", url])
            main(["ask", "os-docs", "x", "--url", url, "--api-key", API_KEY])
        printed = capsys.readouterr().out
        assert "owned" in printed
        assert "[red]plain[/red]" in printed
        assert not set("\x1b\x07\x9b\u202e") & set(printed)


class TestHelp:
    @pytest.mark.parametrize("words", [["--help"], ["quickstart", "--help"], ["contribute", "--help"]])
    def test_is_not_an_error(self, capsys: pytest.CaptureFixture[str], words: list[str]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 0
        assert "usage: openledger" in capsys.readouterr().out

    def test_has_examples(self, capsys: pytest.CaptureFixture[str]):
        with pytest.raises(SystemExit):
            main(["--help"])
        assert "openledger quickstart --exit" in capsys.readouterr().out

    def test_version(self, capsys: pytest.CaptureFixture[str]):
        with pytest.raises(SystemExit):
            main(["--version"])
        assert capsys.readouterr().out == f"openledger {__version__}\n"


class TestKeys:
    def test_new_makes_a_private_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        path = tmp_path / "my.key"
        assert main(["keys", "new", "--out", str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["contributor_id"].startswith("ctr_")
        assert path.stat().st_mode & 0o777 == 0o600

    def test_new_never_overwrites(self, tmp_path: Path):
        path = tmp_path / "my.key"
        main(["keys", "new", "--out", str(path)])
        before = path.read_bytes()
        assert main(["keys", "new", "--out", str(path)]) == 7
        assert path.read_bytes() == before
