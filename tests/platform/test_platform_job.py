"""How jobs end: one JSON object, an error with its exit code, a word when they are interrupted."""

import json
from argparse import Namespace

import pytest

from openledger.core.errors import InvalidInput
from openledger.platform.job import run_job
from openledger.platform.workdir import Workdir


def test_a_file_can_be_no_working_folder(tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert run_job(lambda *_: {}, Namespace(workdir=tmp_path / "notes")) == InvalidInput("", code="").exit_code
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["param"]) == ("invalid_workdir", "workdir")
    with pytest.raises(InvalidInput):
        Workdir(tmp_path / "notes" / "below")
    assert (tmp_path / "notes").read_text() == "mine"


def test_an_interrupted_job_says_that_it_goes_on(tmp_path, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    assert run_job(interrupted, Namespace(workdir=tmp_path / "work")) == 130
    assert capsys.readouterr().err == "interrupted: the same command goes on where it stopped\n"


def test_what_a_job_returns_is_the_last_line(tmp_path, capsys):
    assert run_job(lambda workdir, _: {"folder": workdir.root.name}, Namespace(workdir=tmp_path / "work")) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": "work"}
