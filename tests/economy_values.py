"""A ledger and its economy, restartable, and short ways to sell answers in the economy's tests."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from openledger.core.clock import Clock
from openledger.core.money import Unit
from openledger.core.signing import SigningKey
from openledger.core.values import AdapterTerms, Answer, Authorization, ContributorScores, FeeReceipt
from openledger.economy import Economy, Parameters
from openledger.ledger import Ledger
from openledger.platform.desk import Desk

DIGEST = "ab" * 32
TERMS = AdapterTerms(
    adapter="py",
    adapter_digest=DIGEST,
    datanet="py-docs",
    datanet_version=1,
    row_root="cd" * 32,
    owner_account="user:owner",
    prompt_price_nano=10,
    completion_price_nano=30,
)


class Town:
    """A ledger and an economy over one folder."""

    def __init__(self, folder: Path, clock: Clock, parameters: Parameters | None = None, unit: Unit | None = None):
        self.folder, self.clock, self.parameters, self.unit = folder, clock, parameters, unit
        self.ledger = Ledger(folder / "ledger.db", clock, SigningKey(b"k" * 32), "openledger/test")
        self.economy = Economy(self.ledger, folder, clock, parameters, unit)

    def restart(self) -> None:
        """As after a crash: the old objects are dropped, new ones open the files."""
        self.close()
        self.reopen()

    def reopen(self) -> None:
        self.__init__(self.folder, self.clock, self.parameters, self.unit)  # type: ignore[misc]

    def close(self) -> None:
        self.economy.close()
        self.ledger.close()

    def authorize(self, key: str, account: str = "user:alice", prompt: int = 10, most: int = 20) -> Authorization:
        return self.economy.authorize(account, TERMS, prompt, most, key)

    def sell(self, key: str, prompt: int = 10, completion: int = 7) -> FeeReceipt:
        """Authorize and complete one answer of alice's."""
        authorized = self.authorize(key, prompt=prompt, most=max(20, completion))
        return self.economy.complete(answer(authorized, prompt, completion))

    def desk(self) -> Desk:
        """What API and command line ask, answered by this economy."""

        async def ask(method: str, *arguments: Any) -> Any:
            return getattr(self.economy, method)(*arguments)

        return Desk(ask)

    def available(self, account: str = "user:alice") -> int:
        return self.economy.balance(account).available_nano


@contextmanager
def put_back(town: Town, name: str, killed: AbstractContextManager[None] | None = None) -> Iterator[None]:
    """What happens inside is lost from the file `name`, as where a backup from before is put in its place. `killed`
    (see `kill_at`) ends the first start after that; there is a second one."""
    town.close()
    backup = town.folder / f"backup-{name}"
    backup.mkdir()
    for file in town.folder.glob(f"{name}*"):
        shutil.copy(file, backup)
    town.reopen()
    yield
    put_back_again(town, name, killed)


def put_back_again(town: Town, name: str, killed: AbstractContextManager[None] | None = None) -> None:
    """The same backup once more."""
    town.close()
    for file in town.folder.glob(f"{name}*"):
        file.unlink()
    for file in (town.folder / f"backup-{name}").iterdir():
        shutil.copy(file, town.folder)
    if killed is not None:
        with killed:
            town.reopen()
        town.ledger.close()
    town.reopen()


@contextmanager
def kill_at(owner: type, method: str, when: Callable[..., bool] = lambda *_: True) -> Iterator[None]:
    """The process ends in the first call of `owner`'s `method` of whose arguments `when` says so; one has to come."""
    called = getattr(owner, method)

    def killed(self: Any, *given: Any) -> Any:
        if when(*given):
            raise KeyboardInterrupt
        return called(self, *given)

    setattr(owner, method, killed)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        setattr(owner, method, called)
    raise AssertionError(f"{method} was never called so")


def answer(authorized: Authorization, prompt: int = 10, completion: int = 7, token: int = 2, **other: Any) -> Answer:
    values = {"adapter": "py", "adapter_digest": DIGEST, "period": authorized.period, **other}
    return Answer(
        answer_id=authorized.answer_id, prompt_ids=(1,) * prompt, completion_ids=(token,) * completion, **values
    )


def scores(period: str = "p0001", adapter: str = "py", **values: Any) -> ContributorScores:
    given = {
        "scores_nano": {"ctr_a": 136, "ctr_b": 54, "ctr_c": -10},
        "errors_nano": {"ctr_a": 100, "ctr_b": 75, "ctr_c": 60},  # E = 125: with z = 2/5, 32 and 18 are taken
        "gain_nano": 200,
        "quality": {"lds": "0.5"},
        **values,
    }
    return ContributorScores(adapter=adapter, period=period, method="test/1", **given)


def improvement(period: str = "p0001", **values: Any) -> ContributorScores:
    """Influence on the held-out set: ctr_b's rows and, unlike on the answers, ctr_c's."""
    given = {
        "scores_nano": {"ctr_b": 80, "ctr_c": 18},
        "errors_nano": {"ctr_b": 20, "ctr_c": 15},  # E = 25
        "gain_nano": 100,
        "quality": {"lds": "0.4"},
        **values,
    }
    return ContributorScores(adapter="py", period=period, method="test/2", **given)
