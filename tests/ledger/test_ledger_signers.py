"""Who decides by which key, in the log."""

from dataclasses import replace

import pytest

from openledger.core.errors import Conflict, Corrupt, Forbidden, InvalidInput, NotFound
from openledger.core.signing import SigningKey
from openledger.economy.signers import SignerBook
from openledger.ledger import Transfer, verify_proof
from openledger.ledger.signers import Signer, end_statement, sign_signer, transfers_of

KEY, OTHER = SigningKey(b"s" * 32), SigningKey(b"o" * 32)
SCORER = Signer(role="scorer", account="user:auditor", public_key=KEY.public_key)
REVIEWER = Signer(role="reviewer", account="user:auditor", public_key=KEY.public_key, datanet="py")


def statement(signer=SCORER, key=KEY):
    return sign_signer(key, signer.role, signer.account, signer.datanet)


@pytest.fixture
def book(ledger):
    return SignerBook(ledger)


def found(ledger):
    with pytest.raises(Corrupt) as caught:
        ledger.audit()
    return caught.value.code


def test_a_key_decides_in_its_own_role_until_it_is_taken_back(book, ledger):
    book.add(SCORER, statement()["signature"])
    book.check("scorer", "user:auditor", KEY.public_key)
    for role, account, key, datanet in (
        ("reviewer", "user:auditor", KEY.public_key, "py"),
        ("scorer", "user:else", KEY.public_key, ""),
        ("scorer", "user:auditor", OTHER.public_key, ""),
    ):
        with pytest.raises(Forbidden) as caught:
            book.check(role, account, key, datanet)
        assert caught.value.code == "not_a_signer"
    book.end(SCORER)
    with pytest.raises(Forbidden):
        book.check("scorer", "user:auditor", KEY.public_key)
    ledger.audit()


def test_a_reviewer_is_one_of_one_datanet(book):
    book.add(REVIEWER, statement(REVIEWER)["signature"])
    book.check("reviewer", "user:auditor", KEY.public_key, "py")
    with pytest.raises(Forbidden):
        book.check("reviewer", "user:auditor", KEY.public_key, "np")


def test_every_step_may_be_repeated_and_a_key_taken_back_does_not_return(book, ledger):
    first = book.add(SCORER, statement()["signature"]), book.end(SCORER)
    before = ledger.checkpoint()
    assert book.end(SCORER) == first[1]
    with pytest.raises(Conflict) as caught:
        book.add(SCORER, statement()["signature"])
    assert (caught.value.code, ledger.checkpoint()) == ("signer_ended", before)


def test_whoever_does_not_hold_the_key_registers_nothing(book, ledger):
    before = ledger.checkpoint()
    with pytest.raises(InvalidInput) as caught:
        book.add(SCORER, OTHER.sign(b"something"))
    assert (caught.value.code, ledger.checkpoint()) == ("invalid_signature", before)


def test_who_never_was_one_can_not_be_ended(book):
    with pytest.raises(NotFound) as caught:
        book.end(SCORER)
    assert caught.value.code == "unknown_signer"


@pytest.mark.parametrize(
    "signer", [replace(SCORER, datanet="py"), replace(REVIEWER, datanet=""), replace(SCORER, role="owner")]
)
def test_a_role_that_there_is_not_is_refused(signer):
    with pytest.raises(InvalidInput) as caught:
        statement(signer)
    assert caught.value.param == "role"


def test_a_proof_says_who_decides(book, ledger):
    name = book.add(REVIEWER, statement(REVIEWER)["signature"])
    lines = verify_proof(ledger.proof(name), ledger.verification_key()).lines
    assert f"user:auditor is reviewer of py by the key {KEY.public_key}; no money moves" in lines


class TestTheAudit:
    """Each of these is committed past the book's checks."""

    @pytest.fixture(autouse=True)
    def seated(self, book):
        book.add(REVIEWER, statement(REVIEWER)["signature"])

    @pytest.mark.parametrize(
        ("told", "code"),
        [
            ({**statement(), "signature": OTHER.sign(b"x")}, "invalid_signature"),
            ({**statement(), "role": "owner"}, "malformed_statement"),
            (end_statement(SCORER), "unknown_signer"),
        ],
    )
    def test_names_what_may_not_be(self, ledger, told, code):
        ledger.commit(transfers_of(told), told)
        assert found(ledger) == code

    def test_names_a_key_that_comes_back(self, ledger, book):
        book.end(REVIEWER)
        told = statement(REVIEWER)
        moves = [
            replace(move, transfer_id=f"{move.transfer_id}x", pending_id=move.pending_id and f"{move.pending_id}x")
            for move in transfers_of(told)
        ]
        ledger.commit(moves, told)
        assert found(ledger) == "signer_exists"

    def test_names_transfers_that_are_not_the_statements(self, ledger):
        told = statement()
        ledger.commit([replace(move, amount_nano=2) for move in transfers_of(told)], told)
        assert found(ledger) == "signer_differs"

    def test_names_a_seat_held_without_a_statement(self, ledger):
        ledger.commit([Transfer(transfer_id="odd", debit="genesis", credit="holds:signers", amount_nano=1, code="x")])
        assert found(ledger) == "unexplained_signer"
