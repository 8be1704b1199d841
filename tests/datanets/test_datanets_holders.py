"""Changes of keys as the Datanets hold them: how many a day, and what each one costs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datanet_samples import sample_drafts

from openledger.core.clock import ManualClock
from openledger.core.errors import TooManyRequests
from openledger.core.rekeying import KeyChange, Keys, first_keys, sign_change
from openledger.core.sealing import sign_seal
from openledger.core.signing import SigningKey
from openledger.datanets import holders
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.holders import DAY_MS, MAX_CHANGES_A_DAY, MAX_OF_STRANGERS_A_DAY
from openledger.datanets.shard import ShardHost

ADA = SigningKey(b"a" * 32)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def datanets(tmp_path: Path, clock: ManualClock) -> Iterator[Datanets]:
    made = Datanets(tmp_path, [ShardHost(tmp_path / "shard-0")], clock)
    made.register_contributor(ADA.public_key, "ada")
    yield made
    made.close()


def numbered(number: int) -> SigningKey:
    return SigningKey(number.to_bytes(32, "big"))


def rotation(before: Keys, by: SigningKey, to: SigningKey) -> KeyChange:
    return sign_change(before, [by, to], public_key=to.public_key)


def first_rotation(number: int) -> KeyChange:
    """A stranger's."""
    key = numbered(1000 + number)
    return rotation(first_keys(key.public_key), key, numbered(5000 + number))


def rotate(datanets: Datanets, num_times: int) -> tuple[Keys, SigningKey]:
    """Ada's keys, and the one that signs now."""
    before, key = first_keys(ADA.public_key), ADA
    for number in range(1, num_times + 1):
        change = rotation(before, key, numbered(number))
        datanets.hold_keys(change)
        datanets.adopt_keys(change)
        before, key = change.keys(), numbered(number)
    return before, key


def refused(datanets: Datanets, change: KeyChange) -> TooManyRequests:
    with pytest.raises(TooManyRequests) as caught:
        datanets.hold_keys(change)
    return caught.value


def test_a_contributor_changes_his_keys_a_few_times_a_day(datanets: Datanets, clock: ManualClock) -> None:
    before, key = rotate(datanets, MAX_CHANGES_A_DAY)
    following = rotation(before, key, numbered(99))
    clock.advance(DAY_MS - 5000)
    error = refused(datanets, following)
    assert (error.code, error.retry_after_s, datanets.held_keys()) == ("too_many_key_changes", 5, [])
    clock.advance(5000)
    datanets.hold_keys(following)
    assert [one.change for one in datanets.held_keys()] == [following]


def test_all_who_never_sent_a_row_share_a_number_and_contributors_do_not_wait_for_them(
    datanets: Datanets, clock: ManualClock
) -> None:
    for number in range(MAX_OF_STRANGERS_A_DAY):
        datanets.hold_keys(first_rotation(number))
    late = first_rotation(MAX_OF_STRANGERS_A_DAY)
    assert refused(datanets, late).code == "too_many_key_changes"
    datanets.hold_keys(first_rotation(0))  # the same again counts once
    datanets.hold_keys(rotation(first_keys(ADA.public_key), ADA, numbered(1)))
    clock.advance(DAY_MS)
    datanets.hold_keys(late)


def strangers_used_up(datanets: Datanets) -> None:
    for number in range(MAX_OF_STRANGERS_A_DAY):
        datanets.hold_keys(first_rotation(number))
        datanets.adopt_keys(first_rotation(number))
    assert refused(datanets, first_rotation(MAX_OF_STRANGERS_A_DAY)).code == "too_many_key_changes"


def test_who_changed_keys_or_sealed_before_does_not_wait_for_strangers(datanets: Datanets, clock: ManualClock) -> None:
    bob, carol = numbered(7), numbered(8)
    named = sign_change(first_keys(bob.public_key), [bob, numbered(70)], recovery_key=numbered(70).public_key)
    datanets.hold_keys(named)
    datanets.adopt_keys(named)
    datanets.create("docs", "What functions do", "user:owner")
    datanets.seal(sign_seal(carol, "docs", "ab" * 32))
    clock.advance(DAY_MS)
    strangers_used_up(datanets)
    datanets.hold_keys(sign_change(named.keys(), [numbered(70), numbered(71)], public_key=numbered(71).public_key))
    datanets.hold_keys(rotation(first_keys(carol.public_key), carol, numbered(80)))
    assert len(datanets.held_keys()) == 2


def test_a_newcomer_who_sends_a_row_first_does_not_wait_for_strangers(datanets: Datanets) -> None:
    strangers_used_up(datanets)
    newcomer = MAX_OF_STRANGERS_A_DAY + 1
    error = refused(datanets, first_rotation(newcomer))
    assert (error.code, "contribute a row first" in (error.fix or "")) == ("too_many_key_changes", True)
    datanets.create("docs", "What functions do", "user:owner")
    datanets.contribute(sign_contribution(numbered(1000 + newcomer), "docs", sample_drafts(1), "1"))
    datanets.hold_keys(first_rotation(newcomer))
    assert [one.change for one in datanets.held_keys()] == [first_rotation(newcomer)]


def test_who_decides_does_not_wait_for_strangers(datanets: Datanets) -> None:
    strangers_used_up(datanets)
    change = first_rotation(MAX_OF_STRANGERS_A_DAY)
    datanets.hold_keys(change, decides=True)
    assert [one.change for one in datanets.held_keys()] == [change]


def test_what_the_log_refused_does_not_count(datanets: Datanets) -> None:
    change = rotation(first_keys(ADA.public_key), ADA, numbered(1))
    for _ in range(MAX_CHANGES_A_DAY + 1):
        datanets.hold_keys(change)
        datanets.drop_keys(change)
    assert datanets.held_keys() == []


def test_a_change_costs_no_more_for_those_before_it(datanets: Datanets, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        datanets.hold_keys(first_rotation(number))
        datanets.adopt_keys(first_rotation(number))
    read: list[Any] = []
    parse = holders.change_of
    monkeypatch.setattr(holders, "change_of", lambda values: read.append(values) or parse(values))
    change = rotation(first_keys(ADA.public_key), ADA, numbered(1))
    datanets.hold_keys(change)
    datanets.adopt_keys(change)
    datanets.drop_keys(change)
    assert len(read) == 0
