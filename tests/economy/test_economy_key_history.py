"""What an account's history in the log tells, read piece by piece."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from economy_values import Town

from openledger.core.clock import ManualClock
from openledger.core.rekeying import KeyChange, first_keys, sign_change
from openledger.core.signing import SigningKey
from openledger.economy import port
from openledger.economy.contributor_keys import ContributorKeyBook


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    made = Town(tmp_path, ManualClock())
    yield made
    made.close()


def rotation(number: int) -> KeyChange:
    own, new = (SigningKey(bytes([number, part]) * 16) for part in (1, 2))
    return sign_change(first_keys(own.public_key), [own, new], public_key=new.public_key)


def test_changes_of_keys_are_told_in_pages_and_none_is_left_out(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "_FEW", 2)
    book, made = ContributorKeyBook(town.ledger), [rotation(number) for number in range(1, 8)]
    told: list[KeyChange] = []
    seq = -1
    for number, change in enumerate(made):
        town.economy.change_keys(change)
        if number % 3 == 0:  # what came since is read, whether more of it or less than is asked for at once
            while page := book.changes_after(seq, 2):
                told += [one for _, one in page]
                seq = page[-1][0]
    assert told == made
    assert [one for _, one in ContributorKeyBook(town.ledger).changes_after(-1, 100)] == made
    assert book.changes_after(seq, 2) == []
