"""jobs/contribute.py over real Datanets: the gate's verdicts, and a word about rows that came in before."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.contribute import hand_in
from openledger.core.clock import ManualClock
from openledger.core.signing import SigningKey
from openledger.core.values import RowDraft, Verdict
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.shard import ShardHost

ADA = SigningKey(b"a" * 32)
CAME_BEFORE = "all 2 rows came in before, with the same key: they aren't stored again, the verdicts are of then\n"
ANSWERS = ("It begins the alphabet of the Greeks.", "The second of them stands for the sound of a b.")


@pytest.fixture
def datanets(tmp_path: Path) -> Iterator[Datanets]:
    made = Datanets(tmp_path, [ShardHost(tmp_path / "shard-0")], ManualClock())
    made.create("greek", "What letters do", "user:owner")
    yield made
    made.close()


def handed_in(datanets: Datanets, *, is_dry_run: bool = False) -> tuple[Verdict, ...]:
    drafts = [RowDraft(prompt=f"What does letter {number} do?", completion=text) for number, text in enumerate(ANSWERS)]
    contribution = sign_contribution(ADA, "greek", drafts, nonce="once")
    arguments = Namespace(name="ada", dry_run=is_dry_run)
    return hand_in(lambda method, *given: getattr(datanets, method)(*given), ADA, contribution, arguments)


def test_rows_that_came_in_before_are_told(datanets: Datanets, capsys: pytest.CaptureFixture[str]) -> None:
    first = handed_in(datanets)
    assert ([verdict.outcome for verdict in first], capsys.readouterr().err) == (["accept"] * 2, "")
    assert handed_in(datanets) == handed_in(datanets, is_dry_run=True) == first
    assert capsys.readouterr().err == CAME_BEFORE * 2
    assert sum(one.accepted for one in datanets.statistics("greek")) == 2


def test_a_dry_run_stores_nothing_and_is_no_coming_in(datanets: Datanets, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = handed_in(datanets, is_dry_run=True)
    assert ([verdict.outcome for verdict in verdicts], datanets.statistics("greek")) == (["accept"] * 2, [])
    handed_in(datanets)
    assert capsys.readouterr().err == ""
