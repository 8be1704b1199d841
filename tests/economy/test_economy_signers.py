"""Who decides, by which key, and that a dismissal ends the role by whichever key its holder has by now."""

import pytest
from economy_values import Town

from openledger.core.clock import ManualClock
from openledger.core.errors import Forbidden, NotFound
from openledger.core.rekeying import first_keys, sign_change
from openledger.core.signing import SigningKey
from openledger.economy import port
from openledger.economy.signers import SignerBook
from openledger.ledger.contributor_keys import ContributorKeys
from openledger.ledger.signers import Signer, Signers, end_statement, sign_signer

FIRST, SECOND, THIRD = (SigningKey(bytes([number]) * 32) for number in (1, 2, 3))
REVIEWER = "user:r"


@pytest.fixture
def town(tmp_path):
    made = Town(tmp_path, ManualClock())
    register(made, FIRST)
    keys = first_keys(FIRST.public_key)
    made.economy.change_keys(sign_change(keys, [FIRST, SECOND], public_key=SECOND.public_key))
    yield made
    made.close()


def signer(key):
    return Signer(role="reviewer", account=REVIEWER, public_key=key.public_key, datanet="py")


def register(town, key):
    return town.economy.add_signer(signer(key), sign_signer(key, "reviewer", REVIEWER, "py")["signature"])


def check(town, key):
    SignerBook(town.ledger).check("reviewer", REVIEWER, key.public_key, "py")


def audited(town):
    """The signers as the audit reads them."""
    keys = ContributorKeys()
    told = Signers(keys=keys)
    for seq in range(town.ledger.audit().num_batches):
        batch = town.ledger.batch(seq)
        keys.take(batch)
        told.take(batch)
    return told


def test_a_role_goes_over_to_the_key_that_replaced_the_registered_one(town):
    check(town, SECOND)
    assert audited(town).decides(signer(SECOND))


@pytest.mark.parametrize("named", [FIRST, SECOND])
def test_a_role_is_ended_by_any_key_that_its_holder_had(town, named):
    told = town.economy.end_signer(signer(named))
    assert town.economy.end_signer(signer(named)) == told
    with pytest.raises(Forbidden) as caught:
        check(town, SECOND)
    assert (caught.value.code, town.economy.signers_of(REVIEWER)) == ("not_a_signer", [])
    assert not audited(town).decides(signer(SECOND))


def test_both_registrations_of_one_holder_end_together_and_with_them_what_comes_after(town):
    register(town, SECOND)
    town.economy.end_signer(signer(SECOND))
    keys = SignerBook(town.ledger).keys.keys(first_keys(FIRST.public_key).contributor_id)
    town.economy.change_keys(sign_change(keys, [SECOND, THIRD], public_key=THIRD.public_key))
    for key in (SECOND, THIRD):
        with pytest.raises(Forbidden):
            check(town, key)
        assert not audited(town).decides(signer(key))


def test_a_key_that_was_ended_decides_nothing_by_an_earlier_registration(town):
    register(town, SECOND)
    SignerBook(town.ledger)._write(end_statement(signer(SECOND)))
    with pytest.raises(Forbidden) as caught:
        check(town, SECOND)
    assert caught.value.code == "not_a_signer"
    assert not audited(town).decides(signer(SECOND))


def test_whoever_was_dismissed_may_be_named_again_by_a_new_key(town):
    town.economy.end_signer(signer(SECOND))
    register(town, SECOND)
    check(town, SECOND)
    assert audited(town).decides(signer(SECOND))


def test_a_key_that_nobody_registered_ends_nothing(town):
    with pytest.raises(NotFound) as caught:
        town.economy.end_signer(signer(THIRD))
    assert caught.value.code == "unknown_signer"


def test_whoever_was_dismissed_by_one_of_two_keys_before_does_not_come_back_by_a_third(town):
    register(town, SECOND)
    town.economy._signers._write(end_statement(signer(SECOND)))  # all that a dismissal wrote before
    town.restart()
    keys = town.economy.contributor_keys(town.economy.key_holder(SECOND.public_key))[-1].keys()
    town.economy.change_keys(sign_change(keys, [SECOND, THIRD], public_key=THIRD.public_key))
    with pytest.raises(Forbidden):
        check(town, THIRD)
    assert not audited(town).decides(signer(THIRD))
    register(town, THIRD)  # named again
    size = town.ledger.audit().num_batches
    town.restart()
    check(town, THIRD)
    assert town.ledger.audit().num_batches == size


def test_registrations_are_read_once_and_all_of_them(town, monkeypatch):
    """By pages: none is left out, and what was read isn't read again."""
    monkeypatch.setattr(port, "_FEW", 2)
    keys = [SigningKey(bytes([number]) * 32) for number in range(11, 17)]
    for number, key in enumerate(keys):
        signer = Signer(role="scorer", account=f"user:s{number % 2}", public_key=key.public_key)
        town.economy.add_signer(signer, sign_signer(key, "scorer", signer.account)["signature"])
    book, read = SignerBook(town.ledger), []
    batch = town.ledger.batch
    monkeypatch.setattr(town.ledger, "batch", lambda seq: read.append(seq) or batch(seq))
    assert len(book.of("user:s0")) == 3
    assert len(read) == 7  # with the reviewer's
    assert len(book.of("user:s1")) == 3
    assert len(read) == 7
    late = SigningKey(b"l" * 32)
    town.economy.add_signer(
        Signer(role="scorer", account="user:s1", public_key=late.public_key),
        sign_signer(late, "scorer", "user:s1")["signature"],
    )
    read.clear()
    assert len(book.of("user:s1")) == 4
    assert len(read) == 1
