"""`openledger contribute`: from a JSONL file to signed rows at the server."""

import json
from pathlib import Path

import pytest
from house import House
from memory_service import MemoryService
from served_app import served

from openledger.api import create_app
from openledger.cli.main import main
from openledger.core.errors import InvalidInput, NotFound
from openledger.core.signed import contribution_id
from openledger.core.values import ContributionReceipt, Verdict
from openledger.datanets.quotas import HOUR_MS
from openledger.datanets.row_schema import RowSchema
from openledger.datanets.seals import digest_of
from openledger.datanets.terms import Terms

contribution = pytest.importorskip("openledger.datanets.contribution")
NOBODY = "http://127.0.0.1:9"  # where no server answers


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


def test_rows_that_are_stored_already_are_told_to_be(
    house: House, files: list[str], capsys: pytest.CaptureFixture[str]
):
    sending = ["contribute", "docs", *files[2:], "--url", house.url]  # type: ignore[attr-defined]
    found = []
    for _ in range(2):
        capsys.readouterr()
        assert main([*sending, "--json"]) == 0
        printed = capsys.readouterr()
        found.append((json.loads(printed.out)["stored_before"], "3 of 3 rows came in before" in printed.err))
    assert found == [(0, False), (3, True)]
    more = json.dumps({"prompt": "What is a hive?", "completion": "A house for bees, of wood or straw."}) + "\n"
    Path(files[2]).write_text(Path(files[2]).read_text() + more)
    assert main([*sending, "--part-rows", "3"]) == 0
    assert "3 of 4 rows came in before" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--seal"]])
def test_a_dry_run_of_an_unknown_datanet_ends_as_the_real_run_does(
    files: list[str], capsys: pytest.CaptureFixture[str], more: list[str]
):
    service = MemoryService()
    with served(create_app(service)) as url:
        sending = ["contribute", "nowhere", *files[2:], "--json", "--url", url, *more]
        capsys.readouterr()
        codes = main(sending), main([*sending, "--dry-run"])
    real, dry = (json.loads(part)["error"] for part in capsys.readouterr().err.replace("}\n{", "}\0{").split("\0"))
    assert (codes, dry) == ((NotFound.exit_code,) * 2, real)
    assert real["code"] == "unknown_datanet"
    assert service.contributed == []


def test_a_dry_run_has_the_columns_from_the_server_where_there_is_one(
    house: House, files: list[str], capsys: pytest.CaptureFixture[str]
):
    year = {"name": "year", "type": "int64"}
    house.rows.create("years", "When it was", "user:owner", RowSchema.from_json({"columns": [year]}))
    capsys.readouterr()
    sending = ["contribute", "years", *files[2:], "--dry-run"]
    assert main([*sending, "--url", house.url]) == InvalidInput.exit_code  # type: ignore[attr-defined]
    assert "no row to contribute (3 refused" in capsys.readouterr().err
    assert main([*sending, "--url", NOBODY]) == 0
    assert "not checked whether there is a Datanet 'years'" in capsys.readouterr().err


def test_a_dry_run_sends_nothing(files: list[str], capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    assert main([*files, "--dry-run", "--json", "--url", NOBODY]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["sent"]) == (3, False)
    assert set(told["samples"][0]) == {"source", "prompt", "completion"}
    assert main([*files, "--dry-run", "--url", NOBODY]) == 0
    printed = capsys.readouterr()
    assert told["samples"][0]["completion"][:20] in printed.out
    assert "--receipts FILE" in printed.err


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
    assert main([*files, "--seal", "--dry-run", "--json", "--url", NOBODY]) == 0
    assert len(json.loads(capsys.readouterr().out)["seal"]) == 64


def test_a_malformed_line_is_named_and_the_others_are_sent(files: list[str], capsys: pytest.CaptureFixture[str]):
    Path(files[2]).write_text('{"prompt": "p", "completion": "c"}\n{"prompt": \n{"prompt": "q", "completion": "d"}\n')
    service = MemoryService()
    with served(create_app(service)) as url:
        assert main([*files, "--url", url]) == 0
    assert [draft.prompt for draft in service.contributed[0].drafts] == ["p", "q"]
    told = capsys.readouterr().err
    assert "rows.jsonl, line 2" in told
    assert "malformed_row" in told


def test_a_large_file_is_sent_in_parts_and_what_is_stored_is_not_sent_again(files: list[str]):
    lines = (json.dumps({"prompt": f"What is {n}?", "completion": f"It is {n}."}) + "\n" for n in range(2_500))
    Path(files[2]).write_text("".join(lines))
    service = MemoryService()
    with served(create_app(service)) as url:
        assert main([*files, "--url", url]) == 0
        assert [len(sent.drafts) for sent in service.contributed] == [1_000, 1_000, 500]
        for sent in service.contributed[:2]:
            identifier = contribution_id(sent)
            service.receipts[identifier] = ContributionReceipt(
                contribution_id=identifier, datanet="os-docs", contributor_id=sent.contributor_id,
                verdicts=tuple(Verdict(row_id="r", ordinal=n, outcome="accept") for n in range(1_000)),
            )  # fmt: skip
        service.contributed.clear()
        assert main([*files, "--url", url]) == 0
    assert [len(sent.drafts) for sent in service.contributed] == [500]


def test_a_dry_run_tells_the_gates_verdicts(files: list[str], capsys: pytest.CaptureFixture[str]):
    Path(files[2]).write_text(
        json.dumps({"prompt": "What is it?", "completion": "It is the number of the archive's members."}) + "\n"
        + json.dumps({"prompt": "What is it?", "completion": "qqzxw 7"}) + "\n"
    )  # fmt: skip
    capsys.readouterr()
    assert main([*files, "--dry-run", "--json", "--url", NOBODY]) == 0
    verdicts = json.loads(capsys.readouterr().out)["verdicts"]
    assert [(one["outcome"], one["rows"]) for one in verdicts] == [("accept", 1), ("reject", 1)]


def test_a_dry_run_by_the_datanets_terms_knows_its_languages_and_licence(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    texts = (
        "It is the number of the members that the archive holds.",
        "Das ist die Zahl der Dinge, die im Archiv liegen.",
    )
    records = [{"prompt": "What is it?", "completion": text} for text in texts]
    records.append({"prompt": "Who owns it?", "completion": "It is owned by its author.", "license": "cc-by-nc-4.0"})
    Path(files[2]).write_text("".join(json.dumps(record) + "\n" for record in records))
    terms = tmp_path / "terms.json"
    terms.write_text(json.dumps({"object": "terms", "licence": "MIT", "languages": ["en"], "only_languages": True}))
    capsys.readouterr()
    assert main([*files, "--dry-run", "--json", "--terms", str(terms), "--url", NOBODY]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["reasons"] for one in told["not_accepted"]] == ["wrong_language", "wrong_licence"]
    assert main([*files, "--dry-run", "--json", "--url", NOBODY]) == 0
    assert json.loads(capsys.readouterr().out)["not_accepted"] == []
    terms.write_text('{"licence": "Mine"}')
    assert main([*files, "--dry-run", "--terms", str(terms), "--url", NOBODY]) == 2


def test_a_dry_run_asks_the_detectors_that_are_installed_here(
    files: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    detectors = {"made_policy": lambda draft: "secret" in draft.completion}
    monkeypatch.setattr("openledger.datanets.detectors.installed_detectors", lambda: detectors)
    row = {"prompt": "What is it?", "completion": "It is a secret of the archive."}
    Path(files[2]).write_text(json.dumps(row) + "\n")
    capsys.readouterr()
    assert main([*files, "--dry-run", "--json", "--url", NOBODY]) == 0
    (one,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert (one["outcome"], one["reasons"]) == ("review", "made_policy")


def test_a_preview_asks_the_server_and_stores_nothing(files: list[str], capsys: pytest.CaptureFixture[str]):
    service = MemoryService()
    capsys.readouterr()
    with served(create_app(service)) as url:
        assert main([*files, "--preview", "--json", "--url", url]) == 0
    assert service.contributed == []
    assert json.loads(capsys.readouterr().out)["sent"] is False


def test_each_rows_verdict_is_written_where_it_is_asked_for(files: list[str], tmp_path: Path):
    service = MemoryService()
    with served(create_app(service)) as url:
        assert main([*files, "--receipts", str(tmp_path / "verdicts.jsonl"), "--url", url]) == 0
    found = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [(one["row_id"], one["source"]) for one in found] == [("row_0", "me"), ("row_1", "me"), ("row_2", "me")]


def test_a_server_that_is_away_says_that_sending_again_is_safe(files: list[str], capsys: pytest.CaptureFixture[str]):
    assert main([*files, "--url", "http://127.0.0.1:9"]) == 10
    assert "run the same command again" in capsys.readouterr().err


def test_a_mistyped_key_does_not_become_an_identity(files: list[str], tmp_path: Path):
    assert main([*files[:-1], str(tmp_path / "other.key"), "--dry-run", "--url", NOBODY]) == 6
    assert not (tmp_path / "other.key").exists()


def test_a_file_that_is_not_there_is_named(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([*files[:2], str(tmp_path / "none.jsonl"), *files[3:], "--dry-run", "--url", NOBODY]) == 6
    assert "none.jsonl" in capsys.readouterr().err


def test_an_empty_file_is_refused(files: list[str], capsys: pytest.CaptureFixture[str]):
    Path(files[2]).write_text("")
    assert main([*files, "--dry-run", "--url", NOBODY]) == 2
    assert "empty_contribution" in capsys.readouterr().err


def test_a_seal_is_asked_for_once_where_there_is_none(files: list[str], monkeypatch: pytest.MonkeyPatch):
    lines = [{"prompt": f"What is {n}?", "completion": f"It is the number {n}."} for n in range(2_500)]
    Path(files[2]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    service, asked = MemoryService(), list[str]()
    find_seal = service.find_seal

    async def counted(datanet: str, contributor_id: str, digest: str):
        asked.append(digest)
        return await find_seal(datanet, contributor_id, digest)

    monkeypatch.setattr(service, "find_seal", counted)
    with served(create_app(service)) as url:
        assert main([*files, "--url", url]) == 0
    assert (len(service.contributed), len(asked)) == (3, 1)


class TestWhereFewRowsAreTakenAtATime:
    """Two an hour; Ada has three."""

    @pytest.fixture
    def sending(self, house: House, files: list[str]) -> list[str]:
        house.rows.set_terms("docs", Terms(max_rows_an_hour=2), by="user:owner")
        return ["contribute", "docs", *files[2:], "--url", house.url]  # type: ignore[attr-defined]

    @pytest.mark.parametrize("more", [[], ["--seal"]])
    def test_too_large_a_part_is_told_with_the_option_that_helps(
        self, sending: list[str], more: list[str], house: House, capsys: pytest.CaptureFixture[str]
    ):
        assert main([*sending, *more]) != 0
        told = capsys.readouterr().err
        assert ("quota_exceeded" in told, "--part-rows 2" in told) == (True, True)
        assert house.logged_seals() == []

    def test_smaller_parts_are_taken_one_after_another(
        self, sending: list[str], house: House, capsys: pytest.CaptureFixture[str]
    ):
        for _ in range(2):
            assert main([*sending, "--part-rows", "2"]) != 0
            assert "rate_exceeded" in capsys.readouterr().err
        house.clock.advance(HOUR_MS)
        assert main([*sending, "--part-rows", "2", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["rows"], len(told["contributions"])) == (3, 2)


def test_an_appeal_finds_a_row_in_parts_of_the_same_size(files: list[str], capsys: pytest.CaptureFixture[str]):
    service = MemoryService()
    with served(create_app(service)) as url:
        assert main([*files, "--part-rows", "2", "--url", url]) == 0
        capsys.readouterr()
        appeal = ["appeals", "open", *files[1:], "--row", "2", "--reason", "it is no copy", "--dry-run", "--json"]
        assert main([*appeal, "--part-rows", "2", "--url", url]) == 0
    assert json.loads(capsys.readouterr().out)["contribution_id"] == contribution_id(service.contributed[1])
