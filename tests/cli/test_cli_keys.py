"""`keys`: named, rotated and recovered from the command line, through economy, ledger and Datanets."""

import json
from pathlib import Path
from typing import Any

import pytest
from house import ADA_ID, House

from openledger.cli.main import main
from openledger.core.errors import Unavailable
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution


@pytest.fixture
def run(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `openledger keys` beside Ada's `my.key`; gives (exit code, what it printed as JSON, standard error)."""
    monkeypatch.setenv("OPENLEDGER_URL", house.url)  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    Path("my.key").write_text((b"a" * 32).hex())

    def command(*words: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        code = main(["keys", *words, "--json"])
        printed = capsys.readouterr()
        return code, json.loads(printed.out or "{}"), printed.err

    return command


def named(run: Any) -> None:
    assert run("recovery", "--key", "my.key", "--out", "recovery.key")[0] == 0


def key(name: str) -> SigningKey:
    return SigningKey.load_or_create(Path(name))


def test_a_lost_key_is_replaced_by_the_recovery_keys_file_alone(run: Any):
    named(run)
    Path("my.key").unlink()
    code, told, _ = run("recover", "--recovery-key", "recovery.key", "--out", "new.key")
    assert (code, told["contributor_id"], told["public_key"]) == (0, ADA_ID, key("new.key").public_key)
    shown = run("show", "--key", "new.key")[1]
    assert (shown["signs"], shown["contributor_id"], shown["num_changes"]) == ("yes", ADA_ID, 2)


def test_without_a_recovery_key_a_key_rotates_itself_and_then_signs_no_more(run: Any):
    assert run("rotate", "--key", "my.key", "--out", "new.key")[0] == 0
    assert run("show", "--key", "my.key")[1]["signs"] == "no: it was replaced"
    code, _, error = run("rotate", "--key", "my.key", "--out", "third.key")
    assert (code != 0, "recovery_key_needed" in error, Path("third.key").exists()) == (True, True, False)


def test_once_a_recovery_key_is_named_it_is_needed_and_nothing_is_written_without_it(run: Any):
    named(run)
    code, _, error = run("rotate", "--key", "my.key", "--out", "new.key")
    assert (code != 0, "--recovery-key" in error, Path("new.key").exists()) == (True, True, False)
    assert run("rotate", "--key", "my.key", "--recovery-key", "recovery.key", "--out", "new.key")[0] == 0


def test_a_recovery_key_is_replaced_by_itself(run: Any):
    named(run)
    given = ("--key", "my.key", "--recovery-key", "recovery.key")
    told = run("recovery", *given, "--out", "second.key")[1]
    assert told["recovery_key"] == key("second.key").public_key
    assert run("recover", "--recovery-key", "recovery.key", "--out", "new.key")[0] != 0
    assert run("recover", "--recovery-key", "second.key", "--out", "new.key")[0] == 0


def test_the_same_command_again_is_done_already(run: Any):
    named(run)
    first = run("rotate", "--key", "my.key", "--recovery-key", "recovery.key", "--out", "new.key")
    assert run("rotate", "--key", "my.key", "--recovery-key", "recovery.key", "--out", "new.key") == first


def test_a_dry_run_signs_and_writes_nothing(run: Any, house: House):
    code, told, _ = run("rotate", "--key", "my.key", "--out", "new.key", "--dry-run")
    assert (code, told["would_write"], Path("new.key").exists()) == (0, "new.key", False)
    assert house.economy.contributor_keys(ADA_ID) == []


def test_a_file_that_holds_another_key_is_not_overwritten(run: Any):
    SigningKey.load_or_create(Path("other.key"))
    code, _, error = run("rotate", "--key", "my.key", "--out", "other.key")
    assert (code != 0, "key_exists" in error) == (True, True)


class TestWithTheFirstRows:
    """`contribute --recovery FILE`: the rows first, and then the recovery key, by one command."""

    @pytest.fixture
    def contribute(self, run: Any, capsys: pytest.CaptureFixture[str]) -> Any:
        Path("rows.jsonl").write_text(
            json.dumps({"prompt": "What does heap.push do?", "completion": "Put an item onto the heap, in log time."})
        )

        def command(*words: str) -> tuple[int, str, str]:
            capsys.readouterr()
            code = main(["contribute", "docs", "rows.jsonl", "--key", "my.key", *words])
            return code, *capsys.readouterr()

        return command

    def test_the_recovery_key_is_named_and_written(self, run: Any, contribute: Any):
        code, out, err = contribute("--recovery", "recovery.key")
        assert (code, "accept" in out, "recovery.key" in err) == (0, True, True)
        assert run("show", "--key", "my.key")[1]["recovery_key"] == key("recovery.key").public_key

    def test_no_number_of_strangers_changes_stands_before_it(
        self, run: Any, contribute: Any, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("openledger.datanets.holders.MAX_OF_STRANGERS_A_DAY", 1)
        Path("stranger.key").write_text((b"s" * 32).hex())
        assert run("recovery", "--key", "stranger.key", "--out", "strange.key")[0] == 0
        assert "too_many_key_changes" in run("recovery", "--key", "my.key", "--out", "recovery.key")[2]
        assert contribute("--recovery", "recovery.key")[0] == 0

    def test_the_same_again_changes_nothing(self, run: Any, contribute: Any):
        for _ in range(2):
            assert contribute("--recovery", "recovery.key")[0] == 0
        assert run("show", "--key", "my.key")[1]["num_changes"] == 1

    def test_where_one_is_named_already_the_rows_go_on_and_a_note_tells_it(self, run: Any, contribute: Any):
        named(run)
        code, out, err = contribute("--recovery", "second.key")
        assert (code, "accept" in out, "it isn't in second.key" in err) == (0, True, True)
        assert not Path("second.key").exists()
        assert run("show", "--key", "my.key")[1]["num_changes"] == 1

    def test_it_is_named_with_the_first_of_many_rows(
        self, run: Any, contribute: Any, house: House, monkeypatch: pytest.MonkeyPatch
    ):
        line = {"prompt": "What does heap.push do?", "completion": "Put an item onto the heap, in log time."}
        Path("rows.jsonl").write_text("".join(f"{json.dumps(line)}\n" for _ in range(1_001)))
        sent, stored = list[Contribution](), house.contribute

        async def cut_off(contribution: Contribution) -> Any:
            sent.append(contribution)
            if len(sent) > 1:
                raise Unavailable("it went away", code="actor_unavailable")
            return await stored(contribution)

        monkeypatch.setattr(house, "contribute", cut_off)
        code, _, err = contribute("--recovery", "recovery.key")
        assert (code, len(sent) > 1, "run the same command again" in err) == (10, True, True)
        assert run("show", "--key", "my.key")[1]["recovery_key"] == key("recovery.key").public_key

    @pytest.mark.parametrize(
        ("name", "code"), [("my.key", "key_exists"), ("strange.key", "key_exists"), ("none/recovery.key", "unwritable")]
    )
    def test_a_file_that_will_not_do_is_told_before_a_row_is_sent(
        self, contribute: Any, house: House, name: str, code: str
    ):
        Path("strange.key").write_text((b"s" * 32).hex())
        status, _, err = contribute("--recovery", name)
        assert (status != 0, code in err, "--out" in err) == (True, True, False)
        assert house.rows.contributors() == []

    def test_a_replaced_key_is_told_before_a_row_is_sent(self, run: Any, contribute: Any):
        assert run("rotate", "--key", "my.key", "--out", "new.key")[0] == 0
        code, out, err = contribute("--recovery", "recovery.key")
        assert (code != 0, out, "keys show" in err) == (True, "", True)
        assert not Path("recovery.key").exists()

    def test_a_seal_is_something_of_his_too(self, run: Any, contribute: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("openledger.datanets.holders.MAX_OF_STRANGERS_A_DAY", 0)
        assert contribute("--seal", "--recovery", "recovery.key")[0] == 0
        assert run("show", "--key", "my.key")[1]["recovery_key"] == key("recovery.key").public_key

    def test_a_dry_run_names_none(self, contribute: Any):
        code, _, err = contribute("--recovery", "recovery.key", "--dry-run")
        assert (code != 0, "not allowed with" in err) == (True, True)
        assert not Path("recovery.key").exists()
