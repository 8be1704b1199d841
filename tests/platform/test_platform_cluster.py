"""Ports, the working folder's lock, and the plan that changes nothing."""

import fcntl
import json
import os
import socket
import stat
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console
from tiny_model import tiny_rows

from openledger.core.errors import Conflict, InvalidInput, Unavailable
from openledger.core.values import RowDraft
from openledger.platform import pipeline, quickstart
from openledger.platform.cluster import check_port, free_port, only_one
from openledger.platform.environment import prepare_environment
from openledger.platform.quickstart import QuickstartSettings, _ask_one, build_banks, describe_plan, held_in_drafts
from openledger.platform.report_file import changing
from openledger.platform.workdir import Workdir
from openledger.training.recipe import Recipe


def test_a_taken_port_is_named_with_a_way_out():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(Unavailable) as caught:
            check_port("127.0.0.1", listener.getsockname()[1])
    assert caught.value.code == "port_taken"
    assert "--port" in caught.value.fix


def test_a_free_port_is_taken_without_complaint():
    check_port("127.0.0.1", free_port())


def test_a_working_folder_has_one_quickstart_at_a_time(tmp_path):
    workdir = Workdir(tmp_path)
    with only_one(workdir):
        with pytest.raises(Conflict) as caught, only_one(workdir):
            pass
        assert caught.value.code == "workdir_in_use"
    with only_one(workdir):
        pass


def test_the_token_is_the_folders_own_and_nobody_elses_to_read(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    first = prepare_environment(Workdir(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert prepare_environment(Workdir(tmp_path)) == first == os.environ["RAY_AUTH_TOKEN"]
    assert stat.S_IMODE((tmp_path / "keys" / "ray_token").stat().st_mode) == 0o600


def test_a_named_clusters_authentication_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    prepare_environment(Workdir(tmp_path))
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert not (tmp_path / "keys" / "ray_token").exists()


def test_a_plan_names_what_would_be_done_and_writes_nothing(tmp_path):
    console = Console(record=True, width=200)
    describe_plan(QuickstartSettings(), tmp_path / "work", console)
    text = console.export_text()
    assert all(name in text for name in QuickstartSettings().datanets)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"datanets": ("nope",)}, "datanets"),
        ({"datanets": ()}, "datanets"),
        ({"port": 99999}, "port"),
        ({"rows_per_contributor": 0}, "rows_per_contributor"),
        ({"held_in_questions": "many"}, "held_in_questions"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, param):
    with pytest.raises(InvalidInput) as caught:
        QuickstartSettings(**settings)
    assert caught.value.param == param


def test_held_in_questions_do_not_depend_on_who_contributed():
    rows = tiny_rows()
    renamed = [replace(row, contributor_id=f"another_{number}") for number, row in enumerate(rows)]
    assert held_in_drafts(rows, 6) == held_in_drafts(renamed[::-1], 6)
    assert len(set(held_in_drafts(rows, 6))) == 6


@pytest.mark.parametrize(
    ("wanted", "detail"), [((), "no bank"), (("py",), "8 coalitions for py, 3 trained now")], ids=["none", "one"]
)
def test_coalitions_are_told_of_where_a_bank_is_asked_for(monkeypatch, wanted, detail):
    monkeypatch.setattr(pipeline, "build_bank", lambda *_, **__: 3)
    settings = SimpleNamespace(bank_datanets=wanted, bank_coalitions=8, recipe=Recipe())
    stage = SimpleNamespace(tell=lambda _: None, detail="")
    build_banks(SimpleNamespace(jobs=[SimpleNamespace(name="py")], settings=settings), stage)
    assert stage.detail == detail


def test_an_answer_to_a_rows_own_question_names_the_row_and_another_names_none():
    """So that the report can forget it with the row."""
    receipt = SimpleNamespace(answer_id="ans_1", fee_nano=5, parts={})
    client = SimpleNamespace(chat=lambda *_, **__: SimpleNamespace(text="It parses.", receipt=receipt))
    row = tiny_rows()[0]
    asked = _ask_one(client, "k", ("py", row))
    assert (asked["kind"], asked["asked_row"], asked["question"]) == ("held_in", row.row_id, row.prompt)
    new = _ask_one(client, "k", ("py", RowDraft(prompt="What is new?", completion="This.")))
    assert (new["kind"], "asked_row" in new) == ("new", False)


def test_the_quickstart_asks_for_removals_and_writes_its_report_under_one_lock(tmp_path, monkeypatch):
    held = []

    def asked(row_ids):
        with (tmp_path / ".report.json.lock").open("w") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append((tmp_path / "report.json").exists())
        return set(row_ids)

    monkeypatch.setattr(quickstart.ray, "get", lambda found: found)
    answer = {"answer_id": "ans_1", "fee_nano": 5, "asked_row": "r1", "question": "What?", "sources": []}
    run = SimpleNamespace(
        report={"answers": [answer]},
        log=SimpleNamespace(records=[]),
        datanets=SimpleNamespace(removed_among=SimpleNamespace(remote=asked)),
        workdir=SimpleNamespace(report=tmp_path / "report.json"),
    )
    quickstart._write_report(run)
    assert held == [False]
    assert json.loads((tmp_path / "report.json").read_text())["answers"][0]["question"] == ""
    with changing(tmp_path / "report.json"):
        pass
