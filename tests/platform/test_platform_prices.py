"""What is sold where nobody names prices, in any unit; and how an installation's unit is chosen as it starts."""

from pathlib import Path
from typing import Any

import pytest

from openledger.core.clock import SystemClock
from openledger.core.errors import Conflict, InvalidInput
from openledger.core.money import OPEN, Unit
from openledger.core.signing import SigningKey
from openledger.economy import Economy
from openledger.ledger import Ledger
from openledger.platform import actors
from openledger.platform.prices import BASE_PRICES, prices_in
from openledger.platform.workdir import Workdir

EUR = Unit(name="EUR")


@pytest.mark.parametrize(
    ("unit", "given", "prices"),
    [
        (OPEN, None, (200_000, 1_000_000)),
        (EUR, None, (200, 1000)),
        (EUR, (7, 0), (7, 0)),
        (EUR, (None, 3), (200, 3)),
    ],
)
def test_prices_that_nobody_named_are_as_many_of_the_unit(unit: Unit, given: Any, prices: tuple[int, int]) -> None:
    assert prices_in(unit, given) == prices


def test_a_base_costs_half_of_an_adapter() -> None:
    assert prices_in(EUR, (None, None), BASE_PRICES) == (100, 500)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workdir:
    """The actors' objects without their actors."""
    ledger = Ledger(tmp_path / "ledger.db", SystemClock(), SigningKey(b"k" * 32), "openledger/test")
    monkeypatch.setattr(actors, "ledger_actor", lambda _: ledger)
    monkeypatch.setattr(actors, "RemoteLedger", lambda handle: handle)
    monkeypatch.setattr(actors, "start_economy", lambda ledger, folder: Economy(ledger, tmp_path / "economy"))
    return Workdir(tmp_path)


def test_an_economy_starts_in_the_unit_that_it_is_given_and_again_without(workdir: Workdir) -> None:
    assert actors.economy_actor(workdir, "EUR").unit() == EUR
    assert actors.economy_actor(workdir, "EUR").unit() == EUR
    assert actors.economy_actor(workdir).unit() == EUR


def test_without_one_it_starts_in_open_and_no_other_is_chosen_later(workdir: Workdir) -> None:
    assert actors.economy_actor(workdir).unit() == OPEN
    with pytest.raises(Conflict) as caught:
        actors.economy_actor(workdir, "EUR")
    assert caught.value.code == "unit_chosen"


def test_what_is_no_unit_starts_nothing(workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "start_economy", lambda *_: pytest.fail("started"))
    with pytest.raises(InvalidInput) as caught:
        actors.economy_actor(workdir, "euro")
    assert caught.value.code == "invalid_unit"
