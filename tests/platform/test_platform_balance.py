"""What an account holds that nothing was ever paid to, and who is told that there is none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from house import ADA, ADA_ID, BOB, ROWS, House, Remote

from openledger.core.errors import NotFound
from openledger.core.signing import contributor_id
from openledger.datanets.contribution import sign_contribution
from openledger.platform.live import LiveService
from openledger.platform.workdir import Workdir

ADAS = f"contributor:{ADA_ID}"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path / "house")
    made.rows.contribute(sign_contribution(ADA, "docs", ROWS, "0"))
    yield made
    made.end()


@pytest.fixture
def service(house: House, tmp_path: Path) -> LiveService:
    return LiveService(Workdir(tmp_path / "work"), {}, Remote(house.rows), Remote(house.ledger), Remote(house.economy))


@pytest.mark.parametrize("account", [ADAS, "user:new"])
async def test_an_account_holds_nothing_before_its_first_payment(
    service: LiveService, house: House, account: str
) -> None:
    nothing = {"account": account, "available_nano": 0, "held_nano": 0, "is_open": False}
    assert await service.balance(account) == nothing
    house.economy.grant(account, 50, "first")
    assert await service.balance(account) == {**nothing, "available_nano": 50, "is_open": True}


async def test_a_key_with_which_nothing_came_in_is_told_so(service: LiveService) -> None:
    bob = contributor_id(BOB.public_key)
    with pytest.raises(NotFound, match=f"nothing was ever contributed as {bob}") as caught:
        await service.balance(f"contributor:{bob}")
    assert (caught.value.code, caught.value.param) == ("unknown_contributor", "key")
