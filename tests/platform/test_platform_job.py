"""How jobs begin and end: in a working folder that is there, one JSON object, an error with its exit code, a word when
they are interrupted, and lines about what takes a while."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from rich.console import Console

import openledger
from openledger.core.errors import InvalidInput, NotFound
from openledger.platform.__main__ import parse_arguments, run
from openledger.platform.job import ended, run_job
from openledger.platform.stages import timed
from openledger.platform.workdir import Workdir, found_workdir


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "work" / "ledger").mkdir(parents=True)
    (tmp_path / "work" / "ledger" / "ledger.db").touch()
    return tmp_path / "work"


def told(err: str) -> dict:
    return json.loads(err.splitlines()[-1])["error"]


def test_a_file_can_be_no_working_folder(tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert run_job(lambda *_: {}, Namespace(workdir=tmp_path / "notes")) == InvalidInput("", code="").exit_code
    error = told(capsys.readouterr().err)
    assert (error["code"], error["param"]) == ("invalid_workdir", "workdir")
    with pytest.raises(InvalidInput):
        Workdir(tmp_path / "notes" / "below")
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ((), "there is no such folder"),
        (("wrok",), "the folder has none of adapters/registry.db, datanets/registry.sqlite, "),
    ],
)
def test_a_mistyped_working_folder_is_an_error_and_is_not_made(tmp_path, capsys, made, reason):
    for name in made:
        (tmp_path / name).mkdir()
    assert run_job(lambda *_: {}, Namespace(workdir=tmp_path / "wrok")) == NotFound("", code="").exit_code
    error = told(capsys.readouterr().err)
    assert (error["code"], error["param"]) == ("workdir_not_found", "workdir")
    assert (error["message"].startswith(str(tmp_path / "wrok")), reason in error["message"]) == (True, True)
    assert "openledger quickstart --workdir" in error["fix"]
    assert [path.name for path in tmp_path.rglob("*")] == [*made]


@pytest.mark.parametrize("kept", ["adapters/registry.db", "datanets/registry.sqlite", "ledger/ledger.db"])
def test_a_file_of_an_installation_makes_a_folder_a_working_folder(tmp_path, kept):
    (tmp_path / kept).parent.mkdir()
    (tmp_path / kept).touch()
    assert found_workdir(tmp_path).root == tmp_path.resolve()


def test_the_package_has_folders_of_the_same_names_and_is_no_working_folder(capsys):
    package = Path(openledger.__file__).parent
    assert all((package / name).is_dir() for name in ("adapters", "datanets", "ledger"))
    assert run_job(lambda *_: {}, Namespace(workdir=package)) == NotFound("", code="").exit_code
    assert told(capsys.readouterr().err)["code"] == "workdir_not_found"
    assert not (package / "keys").exists()


@pytest.mark.parametrize("address", ["", "127.0.0.1:6379"], ids=["a cluster of its own", "another's"])
@pytest.mark.parametrize("holds", [(), ("notes",)])
def test_a_job_that_may_make_its_working_folder_says_so_once(tmp_path, monkeypatch, capsys, address, holds):
    """Also where it keeps nothing there; of another's cluster not even a token."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    for name in holds:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / name).write_text("mine")
    arguments, said = Namespace(workdir=tmp_path / "new"), []
    for _ in range(2):
        assert run_job(lambda *_: {}, arguments, makes_workdir=True) == 0
        said.append(f"a new working folder: {tmp_path / 'new'}" in capsys.readouterr().err)
    assert said == [True, False]


@pytest.mark.parametrize("makes_workdir", [True, False])
def test_a_home_of_nobody_is_no_working_folder(capsys, makes_workdir):
    arguments = Namespace(workdir=Path("~nobody-of-that-name/x"))
    assert run_job(lambda *_: {}, arguments, makes_workdir=makes_workdir) == InvalidInput("", code="").exit_code
    error = told(capsys.readouterr().err)
    assert (error["code"], error["param"]) == ("invalid_workdir", "workdir")
    assert error["message"].startswith("~nobody-of-that-name/x can't be a working folder: ")


def test_a_job_says_at_once_that_it_loads(workdir, capsys):
    said = []

    def act(*_):
        said.append(capsys.readouterr().err)
        return {}

    run_job(act, Namespace(workdir=workdir))
    assert said == ["loading torch and Ray ...\n"]


def test_what_takes_a_while_is_told_before_and_after_on_standard_error(capsys):
    with timed("starting Ray"):
        assert capsys.readouterr() == ("", "starting Ray ...\n")
    printed = capsys.readouterr()
    assert (printed.out, printed.err.startswith("starting Ray took 0.0 s")) == ("", True)


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_a_file_is_no_working_folder_for_the_quickstart_nor_for_its_dry_run(tmp_path, monkeypatch, flags):
    (tmp_path / "notes").write_text("mine")
    for path, reason in ((tmp_path / "notes", "File exists"), (tmp_path / "notes" / "below", "Not a directory")):
        monkeypatch.setattr(sys, "argv", ["openledger", "quickstart", "--workdir", str(path), *flags])
        with pytest.raises(InvalidInput, match=f"{path} can't be a working folder: {reason}") as caught:
            run(parse_arguments(), Console())
        assert (caught.value.code, caught.value.param) == ("invalid_workdir", "workdir")
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_interrupted_job_says_that_it_goes_on(workdir, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    assert run_job(interrupted, Namespace(workdir=workdir)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: the same command goes on where it stopped"
    assert ended(interrupted, when_interrupted="look again") == 130
    assert capsys.readouterr().err == "interrupted: look again\n"


def test_what_a_job_returns_is_the_last_line(workdir, capsys):
    assert run_job(lambda found, _: {"folder": found.root.name}, Namespace(workdir=workdir)) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": "work"}


@pytest.mark.parametrize(("own", "status"), [(None, 0), (0, 0), (3, 3)])
def test_a_job_may_have_an_exit_status_of_its_own(own, status):
    assert ended(lambda: own) == status
