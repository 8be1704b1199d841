"""What a stage tells where nobody watches it turn."""

import io

from rich.console import Console

from openledger.platform.stages import StageLog


def test_a_stage_is_told_when_it_begins_where_the_output_is_no_terminal(capsys):
    output = io.StringIO()
    with StageLog(Console(file=output)).stage("train") as stage:
        assert capsys.readouterr().err == "train ...\n"
        stage.detail = "4 adapters"
    assert "train" in output.getvalue()
    assert output.getvalue().endswith("4 adapters\n")


def test_at_a_terminal_what_turns_says_it(capsys):
    with StageLog(Console(file=io.StringIO(), force_terminal=True)).stage("train"):
        pass
    assert capsys.readouterr().err == ""
