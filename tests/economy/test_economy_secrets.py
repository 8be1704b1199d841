"""What must not be readable: API keys, and the text of answers."""

import os
import threading

import pytest
from economy_values import answer, scores

from openledger.core.errors import Corrupt, Unauthenticated
from openledger.economy import Parameters
from openledger.economy.answers import commitment
from openledger.economy.payloads import PayloadCipher

TOKENS = tuple(range(40_000, 40_020))


def stored_bytes(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.name.startswith("economy.db"))


def test_a_key_stands_for_its_account_and_is_not_kept(town):
    key = town.economy.create_key("user:bob")
    assert key.startswith("olk_")
    assert town.economy.authenticate(key) == "user:bob"
    assert town.available("user:bob") == 0
    assert key.encode() not in stored_bytes(town.folder)
    assert key.removeprefix("olk_").encode() not in stored_bytes(town.folder)


def test_keys_outlive_a_restart(town):
    key = town.economy.create_key("user:bob")
    town.restart()
    assert town.economy.authenticate(key) == "user:bob"


@pytest.mark.parametrize("key", ["", "olk_", "olk_wrong", "user:bob", "\ud800"])
def test_an_unknown_key_is_refused(town, key):
    town.economy.create_key("user:bob")
    with pytest.raises(Unauthenticated) as caught:
        town.economy.authenticate(key)
    assert caught.value.code == "invalid_api_key"


def test_waiting_answers_are_encrypted(town):
    authorized = town.authorize("k1", most=30)
    value = answer(authorized)
    town.economy.complete(type(value)(**{**fields(value), "completion_ids": TOKENS}))
    assert b"40000,40001" not in stored_bytes(town.folder)
    assert town.economy.pool("py", "p0001").answers[0].completion_ids == TOKENS


def test_the_payload_key_is_its_owners_alone(town):
    assert (town.folder / "answers.key").stat().st_mode & 0o777 == 0o600


def test_once_a_settled_pool_can_not_be_disputed_the_payload_is_gone_even_with_the_key(town, clock):
    town.sell("k1")
    (row,) = town.economy._db.execute("SELECT payload FROM answers").fetchall()
    town.economy.settle(scores(), {})
    assert row[0] in stored_bytes(town.folder)
    clock.advance(Parameters().dispute_window_ms)
    town.economy.open_period()
    assert row[0] not in stored_bytes(town.folder)


def test_the_log_holds_a_commitment_that_the_salt_opens(town):
    town.sell("k1")
    (waiting,) = town.economy.pool("py", "p0001").answers
    (usage,) = town.ledger.usages("pool:py:p0001")
    assert usage["commitment"] == commitment(waiting, waiting.salt)
    assert usage["commitment"] != commitment(waiting, "00" * 32)
    assert waiting.salt not in str(usage)


def test_equal_answers_have_unequal_commitments(town):
    town.sell("k1")
    town.sell("k2")
    assert len({usage["commitment"] for usage in town.ledger.usages("pool:py:p0001")}) == 2


def test_a_lost_payload_key_is_named(town):
    town.sell("k1")
    (town.folder / "answers.key").write_bytes(b"k" * 32)
    town.restart()
    with pytest.raises(Corrupt) as caught:
        town.economy.pool("py", "p0001")
    assert caught.value.code == "corrupt_payload"


def test_a_payload_opens_only_under_its_own_name(tmp_path):
    cipher = PayloadCipher(tmp_path / "key")
    sealed = cipher.seal("ans_1", b"text")
    assert cipher.open("ans_1", sealed) == b"text"
    for name, data in (("ans_2", sealed), ("ans_1", sealed[:-1]), ("ans_1", b"")):
        with pytest.raises(Corrupt):
            cipher.open(name, data)


def fields(value):
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_a_temporary_file_that_a_crash_left_open_to_all_does_not_open_the_secret(tmp_path):
    path = tmp_path / "answers.key"
    left = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}.new")
    left.write_bytes(b"left")
    left.chmod(0o644)
    PayloadCipher(path)
    assert (path.stat().st_mode & 0o777, [one.name for one in tmp_path.iterdir()]) == (0o600, ["answers.key"])
