"""Whose API key it is: asked once in a while, and never remembered of a key that was no good."""

from types import SimpleNamespace
from typing import Any

import pytest

from openledger.core.errors import Unauthenticated
from openledger.platform.known_keys import KEPT_S, KnownKeys


class Economy:
    def __init__(self) -> None:
        self.accounts = {"olk_a": "user:alice", "olk_b": "user:bob"}
        self.asked: list[str] = []

    @property
    def authenticate(self) -> Any:
        async def remote(api_key: str) -> str:
            self.asked.append(api_key)
            if api_key not in self.accounts:
                raise Unauthenticated("unknown", code="invalid_api_key")
            return self.accounts[api_key]

        return SimpleNamespace(remote=remote)


@pytest.fixture
def economy() -> Economy:
    return Economy()


async def test_is_asked_once_for_each_key(economy: Economy) -> None:
    keys = KnownKeys(economy, lambda: 0.0)
    told = [await keys.account_of(key) for key in ("olk_a", "olk_b", "olk_a", "olk_b")]
    assert told == ["user:alice", "user:bob"] * 2
    assert economy.asked == ["olk_a", "olk_b"]


async def test_is_asked_again_after_a_while(economy: Economy) -> None:
    now = [0.0]
    keys = KnownKeys(economy, lambda: now[0])
    await keys.account_of("olk_a")
    del economy.accounts["olk_a"]
    now[0] = KEPT_S + 0.1
    with pytest.raises(Unauthenticated):
        await keys.account_of("olk_a")


async def test_of_an_unknown_key_nothing_is_kept(economy: Economy) -> None:
    keys = KnownKeys(economy, lambda: 0.0)
    with pytest.raises(Unauthenticated):
        await keys.account_of("olk_new")
    economy.accounts["olk_new"] = "user:new"
    assert await keys.account_of("olk_new") == "user:new"


async def test_what_is_kept_is_bounded_and_holds_no_key(economy: Economy) -> None:
    economy.accounts = {f"olk_{number}": "user:many" for number in range(5000)}
    keys = KnownKeys(economy, lambda: 0.0)
    for key in economy.accounts:
        await keys.account_of(key)
    assert len(keys._known) == 4096
    assert not any("olk_" in known for known in keys._known)
