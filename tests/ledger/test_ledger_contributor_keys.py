"""Changes of contributors' keys in the log: once each, in their order, and the audit that recomputes them."""

from dataclasses import replace

import pytest

from openledger.core.errors import Conflict, Corrupt, Forbidden, InvalidInput
from openledger.core.rekeying import first_keys, sign_change
from openledger.core.signing import SigningKey
from openledger.economy.contributor_keys import ContributorKeyBook
from openledger.economy.signers import SignerBook
from openledger.ledger import Batch, verify_proof
from openledger.ledger.contributor_keys import KEYS_ACCOUNT, ContributorKeys, change_id, change_statement, transfers_of
from openledger.ledger.seats import seat_accounts
from openledger.ledger.signers import Signer, Signers, end_statement, sign_signer, signer_id
from openledger.ledger.signers import transfers_of as signer_transfers

FIRST, SECOND, THIRD, RECOVERY, OTHER = (SigningKey(name * 32) for name in (b"1", b"2", b"3", b"r", b"o"))
ADA = FIRST.contributor_id
NAMED = sign_change(first_keys(FIRST.public_key), [FIRST, RECOVERY], recovery_key=RECOVERY.public_key)
ROTATED = sign_change(NAMED.keys(), [RECOVERY, SECOND], public_key=SECOND.public_key)


@pytest.fixture
def book(ledger):
    return ContributorKeyBook(ledger)


def code_of(raised, call, *arguments):
    with pytest.raises(raised) as caught:
        call(*arguments)
    return caught.value.code


def write(ledger, change):
    """Past the book."""
    ledger.create_accounts(seat_accounts(KEYS_ACCOUNT))
    ledger.commit(transfers_of(change), change_statement(change))


def test_the_new_key_speaks_for_the_contributor_and_the_old_one_for_nobody(book):
    assert book.holder(FIRST.public_key) == ADA
    book.write(NAMED)
    assert (book.holder(FIRST.public_key), book.keys(ADA).recovery_key) == (ADA, RECOVERY.public_key)
    book.write(ROTATED)
    assert (book.holder(SECOND.public_key), book.held_by(FIRST.public_key)) == (ADA, ADA)
    assert code_of(Forbidden, book.holder, FIRST.public_key) == "key_replaced"
    assert code_of(Forbidden, book.holder, RECOVERY.public_key) == "key_replaced"
    assert [change.number for change in book.changes(ADA)] == [1, 2]


def test_a_change_is_written_once_and_its_replay_changes_nothing(book, ledger):
    first = book.write(NAMED)
    book.write(ROTATED)
    num_batches = ledger.audit().num_batches
    assert (book.write(NAMED), book.write(ROTATED)) == (first, change_id(ADA, 2))
    assert ledger.audit().num_batches == num_batches


def test_a_second_rotation_of_the_same_key_is_refused(book, ledger):
    book.write(NAMED)
    book.write(ROTATED)
    twice = sign_change(NAMED.keys(), [RECOVERY, THIRD], public_key=THIRD.public_key)
    assert code_of(Conflict, book.write, twice) == "stale_key_change"
    assert code_of(Conflict, ContributorKeyBook(ledger).write, twice) == "stale_key_change"
    assert book.holder(SECOND.public_key) == ADA
    ledger.audit()


@pytest.mark.parametrize("taken", [FIRST, RECOVERY, SECOND])
def test_no_key_serves_twice(book, taken):
    book.write(NAMED)
    book.write(ROTATED)
    change = sign_change(first_keys(OTHER.public_key), [OTHER, taken], public_key=taken.public_key)
    assert code_of(Conflict, book.write, change) == "key_in_use"
    assert book.holder(OTHER.public_key) == OTHER.contributor_id


def test_another_who_reads_the_log_finds_the_same(book, ledger):
    book.write(NAMED)
    late = ContributorKeyBook(ledger)
    assert late.keys(ADA).number == 1
    book.write(ROTATED)
    assert late.holder(SECOND.public_key) == ADA


def test_the_proof_of_a_change_shows_it_to_a_stranger(book, ledger):
    book.write(NAMED)
    proof = ledger.proof(book.write(ROTATED))
    told = verify_proof(proof, ledger.verification_key())
    assert any(f"{SECOND.public_key} signs from here on in place of {FIRST.public_key}" in line for line in told.lines)


def test_the_audit_finds_a_change_that_the_signing_key_made_alone(ledger, book):
    book.write(NAMED)
    alone = sign_change(first_keys(FIRST.public_key), [FIRST, SECOND], public_key=SECOND.public_key)
    forged = change_statement(alone) | {"number": 2, "recovery_key": RECOVERY.public_key}
    ledger.commit(transfers_of(type(alone)(**{k: v for k, v in forged.items() if k != "format"})), forged)
    assert code_of(Corrupt, ledger.audit) == "recovery_key_needed"


def test_the_audit_finds_a_change_that_skips_one(ledger):
    write(ledger, ROTATED)
    assert code_of(Corrupt, ledger.audit) == "stale_key_change"


def test_the_audit_finds_a_key_that_serves_two(ledger, book):
    book.write(NAMED)
    change = sign_change(first_keys(OTHER.public_key), [OTHER, RECOVERY], public_key=RECOVERY.public_key)
    statement = change_statement(change)
    ledger.commit(transfers_of(change)[:2], statement)
    assert code_of(Corrupt, ledger.audit) == "key_in_use"


@pytest.mark.parametrize("change", [NAMED, ROTATED])
def test_a_key_that_came_by_a_change_gives_its_own_name_to_nobody(book, ledger, change):
    """Its seat in the log is taken; who reads a log without seats finds it as well."""
    book.write(NAMED)
    book.write(ROTATED)
    key = RECOVERY if change is NAMED else SECOND
    own = sign_change(first_keys(key.public_key), [key, OTHER], public_key=OTHER.public_key)
    assert code_of(Conflict, book.write, own) == "key_in_use"
    assert not all(result == "created" for result in ledger.commit(transfers_of(own), change_statement(own)))
    read = ContributorKeys()
    for seq, one in enumerate((NAMED, ROTATED)):
        read.take(batch_of(one, seq))
    assert code_of(Corrupt, read.take, batch_of(own, 2)) == "key_in_use"
    assert read.holder(key.public_key) == ADA


def batch_of(change, seq):
    return Batch(seq=seq, time_ms=0, transfers=tuple(transfers_of(change)), statement=change_statement(change))


def test_the_audit_finds_a_seat_held_without_a_change(ledger):
    ledger.create_accounts(seat_accounts(KEYS_ACCOUNT))
    ledger.commit(transfers_of(NAMED))
    assert code_of(Corrupt, ledger.audit) == "unexplained_key"


class TestARole:
    ROLE = Signer(role="scorer", account="user:auditor", public_key=FIRST.public_key)

    @pytest.fixture
    def signers(self, ledger):
        book = SignerBook(ledger)
        book.add(self.ROLE, sign_signer(FIRST, "scorer", "user:auditor")["signature"])
        return book

    def test_goes_with_its_holder_to_the_new_key(self, signers, book):
        book.write(NAMED)
        book.write(ROTATED)
        signers.check("scorer", "user:auditor", SECOND.public_key)
        assert code_of(Forbidden, signers.check, "scorer", "user:auditor", FIRST.public_key) == "key_replaced"

    def test_ends_with_the_key_that_was_registered(self, signers, book):
        book.write(NAMED)
        book.write(ROTATED)
        signers.end(self.ROLE)
        assert code_of(Forbidden, signers.check, "scorer", "user:auditor", SECOND.public_key) == "not_a_signer"

    def test_is_ended_by_the_key_that_decides_now(self, signers, book, ledger):
        book.write(NAMED)
        book.write(ROTATED)
        present = replace(self.ROLE, public_key=SECOND.public_key)
        ended = signers.end(present)
        assert ended == signer_id(self.ROLE, "end")
        assert code_of(Forbidden, signers.check, "scorer", "user:auditor", SECOND.public_key) == "not_a_signer"
        num_batches = ledger.audit().num_batches
        assert (signers.end(present), signers.end(self.ROLE), ledger.audit().num_batches) == (ended, ended, num_batches)

    @pytest.mark.parametrize("named", [FIRST, SECOND])
    def test_that_is_registered_by_two_keys_of_one_holder_ends_with_either(self, signers, book, ledger, named):
        book.write(NAMED)
        book.write(ROTATED)
        signers.add(
            replace(self.ROLE, public_key=SECOND.public_key), sign_signer(SECOND, "scorer", "user:auditor")["signature"]
        )
        signers.end(replace(self.ROLE, public_key=named.public_key))
        assert code_of(Forbidden, signers.check, "scorer", "user:auditor", SECOND.public_key) == "not_a_signer"
        assert signers.of("user:auditor") == []
        ledger.audit()

    def test_that_is_registered_by_a_recovery_key_ends_with_the_signing_key(self, signers, book, ledger):
        recovering = replace(self.ROLE, public_key=RECOVERY.public_key)
        signers.add(recovering, sign_signer(RECOVERY, "scorer", "user:auditor")["signature"])
        book.write(NAMED)
        signers.end(self.ROLE)
        assert signers.of("user:auditor") == []
        ledger.audit()

    def test_of_another_account_or_holder_stays(self, signers):
        for account, key in (("user:other", FIRST), ("user:auditor", OTHER)):
            role = Signer(role="scorer", account=account, public_key=key.public_key)
            signers.add(role, sign_signer(key, "scorer", account)["signature"])
        signers.end(self.ROLE)
        signers.check("scorer", "user:other", FIRST.public_key)
        signers.check("scorer", "user:auditor", OTHER.public_key)

    def test_can_be_given_anew_to_a_key_that_was_never_registered(self, signers, book):
        book.write(NAMED)
        book.write(ROTATED)
        again = replace(self.ROLE, public_key=SECOND.public_key)
        signers.end(again)
        signers.add(again, sign_signer(SECOND, "scorer", "user:auditor")["signature"])
        signers.check("scorer", "user:auditor", SECOND.public_key)

    def test_of_a_key_that_was_ended_alone_decides_by_no_other_registration(self, signers, book, ledger):
        """As in a log of before, which ended one registration of several."""
        book.write(NAMED)
        book.write(ROTATED)
        second = replace(self.ROLE, public_key=SECOND.public_key)
        signers.add(second, sign_signer(SECOND, "scorer", "user:auditor")["signature"])
        ledger.commit(signer_transfers(end_statement(second)), end_statement(second))
        assert code_of(Forbidden, signers.check, "scorer", "user:auditor", SECOND.public_key) == "not_a_signer"
        known = ContributorKeys()
        read = Signers(keys=known)
        for seq in range(ledger.audit().num_batches):
            known.take(ledger.batch(seq))
            read.take(ledger.batch(seq))
        assert not read.decides(second)

    def test_is_nobody_elses(self, signers):
        assert code_of(Forbidden, signers.check, "scorer", "user:auditor", OTHER.public_key) == "not_a_signer"


def test_what_isnt_signed_by_all_is_refused_and_nothing_is_written(book, ledger):
    size = ledger.audit().num_batches
    change = sign_change(first_keys(FIRST.public_key), [FIRST, SECOND], public_key=SECOND.public_key)
    forged = type(change)(**{**{name: getattr(change, name) for name in change.__dataclass_fields__},
                             "signatures": {FIRST.public_key: change.signatures[FIRST.public_key]}})  # fmt: skip
    assert code_of(InvalidInput, book.write, forged) == "invalid_signature"
    assert ledger.audit().num_batches == size
