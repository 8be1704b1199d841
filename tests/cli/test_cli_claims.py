"""`disputes`, `appeals`, `reviewers` and `retention`: from the command line through economy, ledger and Datanets."""

import json
from pathlib import Path
from typing import Any

import pytest
from economy_values import scores
from house import ADA_ID, AUDITOR, DEPOSIT, NOISE, POOL, ROWS, House

from openledger.cli.main import main
from openledger.economy.spot_checks import SpotCheckBook

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def run(house: House, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> Any:
    """Runs a command and gives (exit code, standard output, standard error)."""
    monkeypatch.setenv("OPENLEDGER_URL", house.url)  # type: ignore[attr-defined]

    def command(*words: str, account: str = "") -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([*words, *(["--api-key", f"olk_{account}"] if account else [])])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


@pytest.fixture
def key(tmp_path: Path) -> Any:
    """The file of a key by its seed's letter: `a` is Ada's."""

    def made(letter: str) -> str:
        path = tmp_path / f"{letter}.key"
        path.write_text((letter.encode() * 32).hex())
        return str(path)

    return made


class TestSpotChecks:
    def test_are_listed_and_closed(self, house: House, run: Any):
        house.economy._spot_checks = SpotCheckBook(house.economy._db, lambda _: 0)
        house.economy.draw_spot_checks(ADA_ID, "docs", "ctb_1", ["row_1"])
        code, out, _ = run("spot-checks", "list", "docs", account="user:owner")
        assert (code, "row_1" in out, ADA_ID in out) == (0, True, True)
        code, out, _ = run("spot-checks", "close", "docs", "row_1", "spam", "--json", account="user:owner")
        assert (code, json.loads(out)["finding"]) == (0, "spam")
        code, _, err = run("spot-checks", "close", "docs", "row_1", "good", account="user:owner")
        assert (code, "spot_check_closed" in err) == (7, True)


class TestTrust:
    def test_flows_from_the_owner_over_a_vouch_and_is_taken_back(self, run: Any):
        code, out, _ = run("trust", "docs", ADA_ID, "--json", account="user:owner")
        assert (code, json.loads(out)["quota_rows"]) == (0, 20_000)
        own = ("vouch", "docs", "ctr_new", "--json")
        code, out, _ = run(*own, account=f"contributor:{ADA_ID}")
        assert (code, json.loads(out)["vouched_rows"]) == (0, 6666)
        code, out, _ = run(*own, "--back", account=f"contributor:{ADA_ID}")
        assert (code, json.loads(out)["vouched_rows"]) == (0, 0)
        code, _, err = run(*own, account="user:owner")
        assert (code, "not_a_contributor" in err) == (5, True)


class TestDisputes:
    CLAIM = ("disputes", "open", *POOL, "0.0000001", "--reason", "mine are missing")

    @pytest.fixture(autouse=True)
    def settled(self, house: House) -> None:
        house.settled()

    def opened(self, run: Any, key: Any) -> str:
        code, out, _ = run(*self.CLAIM, "--key", key("a"), "--json")
        assert code == 0
        return str(json.loads(out)["dispute_id"])

    def test_are_opened_listed_and_shown(self, run: Any, key: Any):
        name = self.opened(run, key)
        code, out, _ = run("disputes", "list", *POOL)
        assert (code, name in out, "0.0000001" in out) == (0, True, True)
        code, out, _ = run("disputes", "show", name)
        assert (code, "mine are missing" in out, "2023-11-14 22:13:20 UTC" in out) == (0, True, True)

    def test_are_opened_with_an_api_key_too(self, run: Any):
        code, out, _ = run(*self.CLAIM, account=f"contributor:{ADA_ID}")
        assert (code, "0.1 OPEN" in out) == (0, True)

    def test_that_can_not_be_are_told_with_code_and_fix(self, run: Any):
        code, out, err = run(*self.CLAIM, account="user:alice")
        assert (code, out, "not_the_contributor" in err) == (5, "", True)
        code, _, err = run(*self.CLAIM)
        assert (code, "missing_api_key" in err) == (3, True)
        code, _, err = run("disputes", "open", *POOL, "much", "--reason", "")
        assert (code, "invalid_amount" in err) == (2, True)

    def test_are_not_opened_by_a_dry_run(self, run: Any, key: Any, house: House):
        before = house.ledger.checkpoint()
        code, out, _ = run(*self.CLAIM, "--key", key("a"), "--dry-run")
        assert (code, "False" in out, house.ledger.checkpoint()) == (0, True, before)

    def scores(self, tmp_path: Path, **change: Any) -> str:
        part = scores(scores_nano={"ctr_a": 80, ADA_ID: 120}, errors_nano={"ctr_a": 15, ADA_ID: 5})
        told = {"method": part.method, "scores_nano": part.scores_nano, "errors_nano": part.errors_nano,
                "gain_nano": part.gain_nano}  # fmt: skip
        values = {"adapter": "py", "period": "p0001", "num_answers": 1, "answers_nano": 155, "scores": {"use": told}}
        path = tmp_path / "scores.json"
        path.write_text(json.dumps({**values, **change}))
        return str(path)

    def test_are_decided_by_signed_scores(self, run: Any, key: Any, house: House, tmp_path: Path):
        house.name_scorer()
        words = ("disputes", "resolve", self.opened(run, key), self.scores(tmp_path), "--scorer", "user:auditor")
        code, out, _ = run(*words, "--key", key("s"), "--dry-run")
        assert (code, json.loads(out)["public_key"]) == (0, AUDITOR.public_key)
        assert house.economy.disputes(*POOL)[0].state == "open"
        code, out, _ = run(*words, "--key", key("s"))
        assert (code, "upheld" in out, AUDITOR.public_key in out) == (0, True, True)

    @pytest.mark.parametrize("change", [{"scores": {"use": {"method": "m"}}}, {"scores": 3}, {"num_answers": "one"}])
    def test_are_not_decided_by_a_file_that_holds_something_else(
        self, run: Any, key: Any, tmp_path: Path, change: dict[str, Any]
    ):
        path = self.scores(tmp_path, **change)
        code, _, err = run("disputes", "resolve", "dsp_1", path, "--scorer", "user:auditor", "--key", key("s"))
        assert (code, "invalid_scores" in err or "invalid_field" in err) == (2, True)


class TestAppeals:
    @pytest.fixture
    def rows(self, house: House, tmp_path: Path) -> str:
        house.judged()
        path = tmp_path / "rows.jsonl"
        lines = [{"prompt": row.prompt, "completion": row.completion, "source": row.source} for row in (*ROWS, NOISE)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    def words(self, rows: str, key: Any, place: str = "3") -> tuple[str, ...]:
        return ("appeals", "open", "docs", rows, "--row", place, "--key", key("a"), "--reason", "a checksum")

    def test_go_from_the_file_to_the_decision(self, run: Any, key: Any, rows: str, house: House):
        code, out, _ = run(*self.words(rows, key), "--json")
        row_id = json.loads(out)["row_id"]
        assert (code, house.economy.balance(f"contributor:{ADA_ID}").available_nano) == (0, 0)
        code, out, _ = run("appeals", "show", "docs", row_id, "--row", account="user:owner")
        assert (code, NOISE.completion in out) == (0, True)
        code, _, err = run("reviewers", "add", "docs", "--account", "user:owner", "--key", key("o"))
        assert (code, "missing_api_key" in err) == (3, True)
        code, _, _ = run("reviewers", "add", "docs", "--account", "user:owner", "--key", key("o"), account="user:owner")
        assert code == 0
        code, out, _ = run(
            "appeals",
            "decide",
            "docs",
            row_id,
            "--overturn",
            "--account",
            "user:owner",
            "--key",
            key("o"),
            "--note",
            "ok",
        )
        assert (code, "overturned" in out, "decided by" in out) == (0, True, True)
        code, out, _ = run("appeals", "list", "docs")
        assert (row_id in out, "noise" in out, "overturned" in out) == (True, True, True)
        assert house.economy.balance(f"contributor:{ADA_ID}").available_nano == DEPOSIT

    def test_are_found_and_signed_and_not_sent_by_a_dry_run(self, run: Any, key: Any, rows: str, house: House):
        code, out, _ = run(*self.words(rows, key), "--dry-run", "--json")
        assert (code, json.loads(out)["prompt"]) == (0, NOISE.prompt)
        assert house.rows.held_appeals() == {}

    @pytest.mark.parametrize(
        ("place", "status", "code"),
        [("4", 2, "unknown_ordinal"), ("-1", 2, "usage"), ("0", 7, "row_accepted")],
    )
    def test_of_another_row_are_refused(self, run: Any, key: Any, rows: str, place: str, status: int, code: str):
        found, _, err = run(*self.words(rows, key, place))
        assert (found, code in err) == (status, True)

    def test_of_a_file_that_was_changed_are_refused(self, run: Any, key: Any, rows: str):
        Path(rows).write_text(Path(rows).read_text().replace("pack.crc", "pack.sum"))
        code, _, err = run(*self.words(rows, key))
        assert (code, "unknown_contribution" in err) == (6, True)

    def test_need_a_choice(self, run: Any, key: Any):
        code, _, err = run("appeals", "decide", "docs", "row_1", "--account", "user:owner", "--key", key("o"))
        assert (code, "usage" in err) == (2, True)


class TestReviewers:
    def test_sign_for_themselves_and_are_named_and_taken_back_by_the_owner(self, run: Any, key: Any, house: House):
        code, out, _ = run("reviewers", "sign", "docs", "--account", "user:bob", "--key", key("b"), "--json")
        signed = json.loads(out)
        named = ("docs", "--account", "user:bob", "--public-key", signed["public_key"])
        code, _, _ = run("reviewers", "add", *named, "--signature", signed["signature"], account="user:owner")
        assert (code, len(house.economy.signers_of("user:bob"))) == (0, 1)
        code, _, _ = run("reviewers", "end", *named, account="user:owner")
        assert (code, house.economy.signers_of("user:bob")) == (0, [])

    def test_are_not_named_without_their_signature(self, run: Any):
        code, _, err = run("reviewers", "add", "docs", "--account", "user:bob", "--public-key", "ab" * 32)
        assert (code, "usage" in err) == (2, True)


class TestRetention:
    def test_is_shown_changed_and_forgotten(self, run: Any, house: House):
        house.sold()
        code, out, _ = run("retention", "show", account="user:alice")
        assert (code, "True" in out) == (0, True)
        code, _, err = run("retention", "set", "no", account="user:alice")
        assert (code, "retention forget" in err) == (0, True)
        code, out, _ = run("retention", "forget", "--yes", "--json", account="user:alice")
        assert (code, json.loads(out)["num_erased"], json.loads(out)["keep"]) == (0, 1, False)

    def test_deletes_nothing_unasked(self, run: Any, house: House):
        house.sold()
        code, _, err = run("retention", "forget", account="user:alice")
        assert (code, "confirmation_missing" in err) == (2, True)
        assert house.economy.retention("user:alice").num_kept == 1
