"""`openledger datanet` and `openledger permissions`, against Datanets in this process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from house import ADA, ADA_ID, House
from served_app import served

from openledger.api import create_app
from openledger.cli.main import main
from openledger.core.errors import NotFound
from openledger.core.signing import SigningKey
from openledger.core.values import RowDraft
from openledger.datanets.contribution import sign_contribution


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.end()


@pytest.fixture
def url(house: House) -> Iterator[str]:
    with served(create_app(house)) as url:
        yield url


@pytest.fixture
def key(tmp_path: Path) -> str:
    path = tmp_path / "ada.key"
    path.write_text((b"a" * 32).hex())
    path.chmod(0o600)
    return str(path)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_dry_run_of_create_checks_and_makes_nothing(house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    schema = tmp_path / "schema.json"
    schema.write_text('{"kind": "chat"}')
    words = ["datanet", "create", "bees", "--summary", "Hives", "--schema", str(schema), "--dry-run"]
    found = told(capsys, *words, "--url", "http://127.0.0.1:9", "--licence", "MIT")
    assert (found["sent"], found["row_schema"], found["terms"]) == (
        False,
        {"kind": "chat", "columns": []},
        {"licence": "MIT"},
    )
    assert main([*words, "--licence", "Mine"]) == 2
    schema.write_text("{")
    assert main(words) == 2
    assert house.rows.names() == ["docs"]


def test_what_customers_see_of_rows_is_set_at_creation_and_by_terms(
    url: str, house: House, capsys: pytest.CaptureFixture[str]
):
    own = ["--url", url, "--api-key", "olk_user:bee"]
    create = ["datanet", "create", "bees", "--summary", "Hives", "--display", "none"]
    assert told(capsys, *create, "--dry-run", *own)["display"] == "none"
    assert house.rows.names() == ["docs"]
    assert told(capsys, *create, *own)["display"] == house.rows.datanet("bees").display == "none"
    change = ["datanet", "terms", "bees", "--display", "text", "--train", "private"]
    planned = told(capsys, *change, "--dry-run", *own)
    assert (planned["display"], planned["train"], planned["sent"]) == ("text", "private", False)
    assert (house.rows.datanet("bees").display, house.rows.terms("bees").train) == ("none", "open")
    found = told(capsys, *change, *own)
    assert (found["display"], house.rows.datanet("bees").display) == ("text", "text")
    assert house.rows.terms("bees").train == "private"
    assert main([*change, "--url", url, "--api-key", "olk_user:else"]) != 0
    assert "display" not in told(capsys, "datanet", "terms", "bees", *own)


def test_create_then_terms_step_by_step(url: str, house: House, capsys: pytest.CaptureFixture[str]):
    own = ["--url", url, "--api-key", "olk_user:bee"]
    told(capsys, "datanet", "create", "bees", "--summary", "Hives", "--train", "private", *own)
    assert (house.rows.datanet("bees").owner, house.rows.terms("bees").train) == ("user:bee", "private")
    planned = told(capsys, "datanet", "terms", "bees", "--contribute", "invited", "--dry-run", *own)
    assert (planned["contribute"], planned["train"], planned["sent"]) == ("invited", "private", False)
    assert house.rows.terms("bees").contribute == "open"
    told(capsys, "datanet", "terms", "bees", "--contribute", "invited", "--only-languages", "yes", *own)
    assert (house.rows.terms("bees").contribute, house.rows.terms("bees").only_languages) == ("invited", True)
    assert main(["datanet", "terms", "bees", "--url", url]) == 0
    assert "invited" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["permissions", "request", "nowhere"],
        ["withdraw", "nowhere", "row_a"],
        ["feedback", "correct", "ans_1", "nowhere", "Who feeds the brood?", "The younger workers do."],
    ],
    ids=lambda words: words[0],
)
def test_a_dry_run_finds_a_datanet_that_is_not_there(
    url: str, key: str, words: list[str], capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    assert main([*words, "--key", key, "--dry-run", "--json", "--url", url]) == NotFound.exit_code
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "unknown_datanet"


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"<html>"), (403, b"<html>"), (429, b"{}"), (200, b"<html>"), (200, b"[]"),
     (401, b'{"error": {"type": "unauthenticated", "code": "invalid_api_key", "message": "who are you?"}}')],
)  # fmt: skip
@pytest.mark.parametrize(
    "words",
    [
        ["permissions", "request", "docs"],
        ["withdraw", "docs", "row_a"],
        ["feedback", "correct", "ans_1", "docs", "Q", "A"],
    ],
    ids=lambda words: words[0],
)
def test_a_dry_run_works_whatever_listens_there_and_shows_it_no_key(
    key: str, words: list[str], status: int, body: bytes, capsys: pytest.CaptureFixture[str]
):
    asked = []

    async def stranger(scope: Any, receive: Any, send: Any) -> None:
        asked.append((scope["method"], scope["path"], dict(scope["headers"]).get(b"authorization")))
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    with served(stranger) as url:
        capsys.readouterr()
        assert main([*words, "--key", key, "--dry-run", "--json", "--url", url, "--api-key", "olk_secret"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["sent"] is False
    assert "not checked whether there is a Datanet 'docs': " in printed.err
    assert asked == [("GET", "/v1/datanets/docs", None)]


def test_a_url_that_is_none_ends_a_dry_run_too(key: str, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert main(["withdraw", "docs", "row_a", "--key", key, "--dry-run", "--json", "--url", "nowhere"]) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "invalid_url"


def test_permissions_from_request_to_revocation(url: str, house: House, key: str, capsys: pytest.CaptureFixture[str]):
    own = ["--url", url, "--api-key", "olk_user:owner"]
    dry = told(capsys, "permissions", "request", "docs", "--key", key, "--dry-run", "--url", "http://127.0.0.1:9")
    assert (dry["party"], dry["sent"]) == (ADA_ID, False)
    told(capsys, "permissions", "request", "docs", "--key", key, "--url", url)
    assert main(["permissions", "approve", "docs", ADA_ID, "--to", "contribute", "--days", "0", *own]) == 2
    given = told(capsys, "permissions", "approve", "docs", ADA_ID, "--to", "contribute", "--days", "30", *own)
    assert (given["state"], given["expires_ms"] > 1_700_000_000_000) == ("approved", True)
    assert main(["permissions", "list", "docs", *own]) == 0
    assert ADA_ID in capsys.readouterr().out
    told(capsys, "permissions", "revoke", "docs", ADA_ID, "--to", "contribute", *own)
    (left,) = house.rows.permissions("docs")
    assert (left.party, left.state) == (ADA_ID, "revoked")
    assert ADA.public_key not in capsys.readouterr().out


PRIVATE = RowDraft(prompt="Who answers?", completion="Send all letters to the reader at reader@mail.net please.")


def test_reviews_from_the_queue_to_the_records(url: str, house: House, capsys: pytest.CaptureFixture[str]):
    own = ["--url", url, "--api-key", "olk_user:owner"]
    told(capsys, "reviews", "known", "docs", "What is a hive?", "Nothing of any use at all.", "--reject", *own)
    (verdict,) = house.rows.contribute(sign_contribution(ADA, "docs", [PRIVATE], "1")).verdicts
    shown = told(capsys, "reviews", "list", "docs", *own)
    assert PRIVATE.prompt in {one["prompt"] for one in shown}
    told(capsys, "reviews", "decide", "docs", verdict.row_id, "--accept", *own)
    assert house.rows.publish("docs").num_rows == 1
    (record,) = told(capsys, "reviews", "records", "docs", *own)
    assert (record["reviewer"], record["num_reviews"]) == ("user:owner", 1)
    assert main(["reviews", "decide", "docs", verdict.row_id, "--reject", *own]) == 7
    assert main(["reviews", "decide", "docs", "row_none", "--reject", *own]) == 6


def test_a_panel_from_the_commitments_to_the_verdicts(
    url: str, house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    owner = ["--url", url, "--api-key", "olk_user:owner"]
    told(capsys, "datanet", "terms", "docs", "--min-reviews", "3", "--panel", "yes", *owner)
    (verdict,) = house.rows.contribute(sign_contribution(ADA, "docs", [PRIVATE], "1")).verdicts
    reviewers = {f"user:r{number}": tmp_path / f"r{number}.key" for number in range(3)}
    for account, path in reviewers.items():
        house.name_reviewer(SigningKey.load_or_create(path), account)
        own = ["--key", str(path), "--url", url, "--api-key", f"olk_{account}"]
        dry = told(capsys, "reviews", "commit", "docs", verdict.row_id, "--accept", "--dry-run", *own)
        assert (dry["sent"], dry["reviewer"]) == (False, account)
        assert told(capsys, "reviews", "reveal", "docs", *own) == []
        told(capsys, "reviews", "commit", "docs", verdict.row_id, "--accept", *own)
    for account, path in reviewers.items():
        own = ["--url", url, "--api-key", f"olk_{account}"]
        (seat,) = told(capsys, "reviews", "panels", "docs", *own)
        assert seat["state"] == "revealing"
        assert main(["reviews", "reveal", "docs", "--key", str(reviewers["user:r0"]), *own]) == (
            0 if account == "user:r0" else 2
        )
        capsys.readouterr()
        told(capsys, "reviews", "reveal", "docs", "--key", str(path), *own)
    assert house.rows.publish("docs").num_rows == 1


def test_feedback_needs_consent_and_a_rating_none(url: str, house: House, key: str, capsys: pytest.CaptureFixture[str]):
    house.rows.create("py-docs", "What Python does", "user:owner")
    house.sold()
    (found,) = house.economy._db.execute("SELECT answer_id FROM answers").fetchall()
    own = ["--url", url, "--api-key", "olk_user:alice", "--key", key]
    words = [
        "feedback",
        "correct",
        str(found[0]),
        "py-docs",
        "What does pack.open do?",
        "It opens the archive in order.",
    ]
    dry = told(capsys, *words, "--dry-run", "--url", "http://127.0.0.1:9", "--key", key)
    assert (dry["sent"], dry["source"].partition(":")[0], str(found[0]) in dry["source"]) == (False, "feedback", False)
    assert main([*words, *own]) == 2
    assert "consent" in capsys.readouterr().err
    sent = told(capsys, *words, "--consent", *own)
    assert (sent["outcome"], sent["contributor_id"]) == ("accept", ADA_ID)
    assert told(capsys, "feedback", "rate", str(found[0]), "4", *own)["rating"] == 4
    board = told(capsys, "datanet", "leaderboard", "py-docs", "--url", url)
    assert board["contributors"][0]["feedback"] == {"correction": 1, "rating": 1}
    assert main(["datanet", "leaderboard", "py-docs", "--url", url]) == 0
    assert "Retention" in capsys.readouterr().out
    assert main(["datanet", "leaderboard", "py-docs", "--limit", "1", "--url", url]) == 0
    first = board["contributors"][0]["contributor_id"]
    assert (f"--after {first}" in capsys.readouterr().err) == (len(board["contributors"]) > 1)
