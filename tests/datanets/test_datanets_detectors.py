"""Detectors that other packages bring: found by their entry points, or the gate doesn't start."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from datanet_samples import sample_drafts, signed

from openledger.core.clock import ManualClock
from openledger.core.errors import InvalidInput
from openledger.core.values import RowDraft
from openledger.datanets import gate
from openledger.datanets.datanets import Datanets
from openledger.datanets.detectors import GROUP, installed_detectors
from openledger.datanets.gate import REASONS
from openledger.datanets.shard import ShardHost

NOT_A_FUNCTION = 3


def is_rude(draft: RowDraft) -> bool:
    return "rude" in draft.completion


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch):
    def name(**points: str) -> None:
        found = [EntryPoint(name, value, GROUP) for name, value in points.items()]
        monkeypatch.setattr("openledger.datanets.detectors.entry_points", lambda group: found if group == GROUP else [])

    return name


def test_without_packages_there_are_none(named) -> None:
    named()
    assert installed_detectors() == {}


def test_a_row_that_one_finds_waits_for_review_under_its_name(named, tmp_path: Path) -> None:
    named(rudeness="test_datanets_detectors:is_rude")
    datanets = Datanets(tmp_path, [ShardHost(tmp_path / "shard-0")], ManualClock(), installed_detectors())
    datanets.create("docs", "What functions do", "acct_owner")
    polite, rude = sample_drafts(2)
    rude = RowDraft(prompt=rude.prompt, completion=f"{rude.completion} How rude.")
    verdicts = datanets.contribute(signed("ada", [polite, rude])).verdicts
    assert [(one.outcome, one.reasons) for one in verdicts] == [("accept", ()), ("review", ("rudeness",))]
    datanets.close()


@pytest.mark.parametrize(
    "points",
    [{"rudeness": "no_such_module:is_rude"}, {"rudeness": "test_datanets_detectors:no_such"},
     {"rudeness": "test_datanets_detectors:NOT_A_FUNCTION"}, {"noise": "test_datanets_detectors:is_rude"},
     {"Rude Words": "test_datanets_detectors:is_rude"}],
)  # fmt: skip
def test_one_that_cannot_be_used_is_told_by_name(named, points: dict[str, str]) -> None:
    named(**points)
    with pytest.raises(InvalidInput) as caught:
        installed_detectors()
    assert caught.value.code == "invalid_detector"
    assert next(iter(points)) in caught.value.message


def test_the_gates_own_words_are_those_that_it_publishes() -> None:
    table = [line for line in (gate.__doc__ or "").splitlines() if "  reject  " in line or "  review  " in line]
    published = {word for line in table for word in line.split("  ")[2].split(",") if word.strip()}
    assert {word.strip() for word in published} - {"any other"} == REASONS
