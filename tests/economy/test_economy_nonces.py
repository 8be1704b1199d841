"""The book of nonces: commit, close, reveal, and the one constant that comes of it."""

import pytest

from openledger.core.errors import Conflict, Corrupt, InsufficientFunds, InvalidInput, NotFound, Unavailable
from openledger.economy.nonces import DEPOSIT_NANO, NonceBook, find_nonce, kept_nonce
from openledger.ledger.nonces import Purpose, commitment
from openledger.training.recipe import public_constant

OWNER, WITNESS, LATE = "user:owner", "user:witness", "user:late"
BASE = "ba" * 32
PURPOSE = Purpose(row_root="cd" * 32, base_digest=BASE, recipe_digest="ec" * 32)


@pytest.fixture
def book(town):
    for party in (OWNER, WITNESS, LATE):
        town.economy.grant(party, DEPOSIT_NANO, f"deposit of {party}")
    return NonceBook(town.ledger)


@pytest.fixture
def nonces(tmp_path):
    return {party: kept_nonce(tmp_path / "nonces", "py", 1, party) for party in (OWNER, WITNESS, LATE)}


def commit(book, nonces, *parties, version=1):
    for party in parties:
        book.commit("py", version, party, commitment("py", version, party, nonces[party]))


@pytest.fixture
def closed(book, nonces):
    book.open("py", 1, OWNER)
    commit(book, nonces, OWNER, WITNESS)
    book.close("py", 1, PURPOSE)
    return book


def test_the_constant_is_the_hash_over_the_nonces_of_owner_and_witness(closed, nonces, town):
    for party in (WITNESS, OWNER):
        closed.reveal("py", 1, party, nonces[party])
    expected = public_constant(BASE, "py", 1, (nonces[OWNER], nonces[WITNESS]))
    assert closed.constant(BASE, "py", 1) == expected
    assert town.available(OWNER) == town.available(WITNESS) == DEPOSIT_NANO
    town.ledger.audit()


def test_every_step_may_be_repeated_also_after_a_restart(closed, nonces, town):
    closed.reveal("py", 1, OWNER, nonces[OWNER])
    before = town.ledger.checkpoint()
    town.restart()
    again = NonceBook(town.ledger)
    again.open("py", 1, OWNER)
    commit(again, nonces, OWNER, WITNESS)
    again.close("py", 1, PURPOSE)
    assert again.reveal("py", 1, OWNER, nonces[OWNER]).withheld == (WITNESS,)
    assert town.ledger.checkpoint() == before


def test_a_commitment_after_the_close_is_refused_and_holds_no_deposit(closed, nonces, town):
    with pytest.raises(Conflict) as caught:
        commit(closed, nonces, LATE)
    assert caught.value.code == "round_closed"
    assert town.available(LATE) == DEPOSIT_NANO


def test_a_commitment_by_who_read_the_round_before_it_closed_is_refused_too(closed, nonces, monkeypatch):
    early = NonceBook(closed._ledger)
    seen = closed.find("py", 1)
    still_open = type(seen)(
        datanet="py", version=1, owner=OWNER, digests=seen.digests, deposits_nano=seen.deposits_nano
    )
    monkeypatch.setattr(early, "find", lambda *_: still_open)
    with pytest.raises(Conflict) as caught:
        commit(early, nonces, LATE)
    assert caught.value.code == "round_closed"


def test_there_is_no_constant_until_the_last_reveal_and_the_withheld_one_is_named(closed, nonces):
    closed.reveal("py", 1, OWNER, nonces[OWNER])
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            closed.constant(BASE, "py", 1)
        assert (caught.value.code, caught.value.param) == ("nonces_withheld", WITNESS)
    assert closed.find("py", 1).withheld == (WITNESS,)
    closed.reveal("py", 1, WITNESS, nonces[WITNESS])
    assert closed.constant(BASE, "py", 1)


def test_who_withholds_leaves_the_deposit_where_it_is(closed, nonces, town):
    closed.reveal("py", 1, OWNER, nonces[OWNER])
    assert (town.available(OWNER), town.available(WITNESS)) == (DEPOSIT_NANO, 0)
    closed.open("py", 2, OWNER)
    with pytest.raises(InsufficientFunds):
        commit(closed, nonces, WITNESS, version=2)


def test_a_version_held_up_leaves_the_next_one_free(closed, nonces, town):
    closed.reveal("py", 1, OWNER, nonces[OWNER])
    closed.open("py", 2, OWNER)
    commit(closed, nonces, OWNER, LATE, version=2)
    closed.close("py", 2, PURPOSE)
    for party in (OWNER, LATE):
        closed.reveal("py", 2, party, nonces[party])
    assert closed.nonces("py", 2) == (nonces[LATE], nonces[OWNER])
    town.ledger.audit()


def test_another_nonce_than_the_committed_one_is_refused(closed, nonces):
    with pytest.raises(InvalidInput) as caught:
        closed.reveal("py", 1, OWNER, nonces[WITNESS])
    assert caught.value.code == "wrong_nonce"


def test_a_round_does_not_close_without_owner_and_witness(book, nonces):
    book.open("py", 1, OWNER)
    commit(book, nonces, OWNER)
    with pytest.raises(Conflict) as caught:
        book.close("py", 1, PURPOSE)
    assert caught.value.code == "commitments_missing"


def test_nobody_can_take_the_owners_place(book):
    book.open("py", 1, OWNER)
    with pytest.raises(Conflict) as caught:
        book.open("py", 1, WITNESS)
    assert caught.value.code == "round_exists"


def test_a_commitment_needs_its_deposit(book, nonces):
    book.open("py", 1, OWNER)
    with pytest.raises(InsufficientFunds) as caught:
        book.commit("py", 1, "user:poor", commitment("py", 1, "user:poor", "00" * 32))
    assert "deposit" in caught.value.message


def test_the_houses_own_accounts_are_no_party(book):
    book.open("py", 1, OWNER)
    with pytest.raises(InvalidInput):
        book.commit("py", 1, "treasury", "0" * 64)


def test_closing_again_for_something_else_is_refused(closed):
    with pytest.raises(Conflict) as caught:
        closed.close("py", 1, Purpose(row_root="ff" * 32, base_digest=BASE, recipe_digest="ec" * 32))
    assert caught.value.code == "round_closed"


def test_the_constant_is_given_for_no_other_base(closed, nonces):
    for party in (OWNER, WITNESS):
        closed.reveal("py", 1, party, nonces[party])
    with pytest.raises(Conflict) as caught:
        closed.constant("ff" * 32, "py", 1)
    assert caught.value.code == "other_purpose"


def test_without_a_round_there_is_nothing_to_find(book):
    assert book.find("py", 1) is None
    with pytest.raises(NotFound):
        book.nonces("py", 1)


def test_nonces_are_told_only_after_the_close(book, nonces):
    book.open("py", 1, OWNER)
    commit(book, nonces, OWNER, WITNESS)
    with pytest.raises(Conflict) as caught:
        book.reveal("py", 1, OWNER, nonces[OWNER])
    assert caught.value.code == "round_not_closed"
    with pytest.raises(Conflict):
        book.nonces("py", 1)


class TestAKeptNonce:
    def test_is_made_once_for_each_party_version_and_datanet(self, tmp_path):
        names = [("py", 1, OWNER), ("py", 1, WITNESS), ("py", 2, OWNER), ("tables", 1, OWNER)]
        first = [kept_nonce(tmp_path, *name) for name in names]
        assert len(set(first)) == 4
        assert [kept_nonce(tmp_path, *name) for name in names] == first

    def test_is_its_owners_alone_to_read(self, tmp_path):
        kept_nonce(tmp_path, "py", 1, OWNER)
        assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600]

    def test_that_is_damaged_is_never_made_anew(self, tmp_path):
        kept_nonce(tmp_path, "py", 1, OWNER)
        (path,) = tmp_path.iterdir()
        path.write_text("short")
        with pytest.raises(Corrupt):
            kept_nonce(tmp_path, "py", 1, OWNER)
        assert path.read_text() == "short"

    def test_that_is_not_there_is_not_found(self, tmp_path):
        assert find_nonce(tmp_path, "py", 1, OWNER) is None
