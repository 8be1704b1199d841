"""Verdicts in the log: no money moves, a paid-out pool takes none, and a settlement has to name them."""

from dataclasses import replace

import pytest
from settled_ledger import (
    POOL,
    build_pool,
    hold,
    payout_transfers,
    settlement_statement,
    two_part_statement,
    usage_statement,
    usage_transfers,
)

from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.signing import SigningKey
from openledger.ledger import Account, Ledger, verify_proof
from openledger.ledger.verdicts import check_verdict, verdict_statement, verdict_transfers


@pytest.fixture
def ledger(path, clock):
    ledger = Ledger(path, clock, SigningKey(b"k" * 32), "openledger/test")
    build_pool(ledger)
    yield ledger
    ledger.close()


def mark(ledger, number=1, transfers=None, **changes):
    statement = {**verdict_statement(usage_statement(number), "wrong"), **changes}
    return ledger.commit(transfers or verdict_transfers(statement), statement)


def settle(ledger, statement):
    return ledger.commit(payout_transfers(statement), statement)


def test_a_verdict_moves_no_money_and_stands_in_the_log(ledger):
    before = {balance.account_id: balance.posted_nano for balance in ledger.balances()}
    assert mark(ledger) == ["created", "created"]
    assert {balance.account_id: balance.posted_nano for balance in ledger.balances()} == before
    assert ledger.balance(POOL).available_nano == before[POOL]
    assert [verdict["answer_id"] for verdict in ledger.verdicts(POOL)] == ["ans1"]
    assert ledger.audit().num_answers == 2


def test_a_verdict_sent_again_exists(ledger):
    mark(ledger)
    before = ledger.checkpoint()
    assert mark(ledger) == ["exists", "exists"]
    assert ledger.checkpoint() == before


def test_a_verdict_is_proven(ledger):
    mark(ledger)
    proof = verify_proof(ledger.proof("ans1.verdict"), ledger.verification_key())
    assert proof.lines[-1] == "answer ans1 of py in p0001 was marked wrong by user:a; no money moves"


def test_a_pool_that_is_paid_out_takes_no_verdict(ledger):
    settle(ledger, two_part_statement(ledger))
    before = ledger.checkpoint()
    assert mark(ledger)[0] == "exceeds_credits"
    assert ledger.checkpoint() == before
    assert ledger.audit().num_settlements == 1


def test_a_settlement_names_the_answers_marked_wrong_and_still_pays_the_whole_pool(ledger):
    mark(ledger)
    statement = {**two_part_statement(ledger), "not_counted": [usage_statement(1)["commitment"]]}
    settle(ledger, statement)
    lines = verify_proof(ledger.proof("pay0"), ledger.verification_key()).lines
    assert "1 of these answers were marked wrong and count nothing in use" in lines
    assert statement["pool_nano"] == 41
    assert ledger.balance(POOL).posted_nano == 0
    ledger.audit()


@pytest.mark.parametrize(
    "told",
    [
        lambda ledger: two_part_statement(ledger),
        lambda ledger: {**two_part_statement(ledger), "not_counted": [usage_statement(2)["commitment"]]},
        lambda ledger: settlement_statement(ledger),
    ],
    ids=["none", "another", "in the old format"],
)
def test_a_settlement_that_passes_over_a_verdict_is_named(ledger, told):
    mark(ledger)
    settle(ledger, told(ledger))
    with pytest.raises(Corrupt) as caught:
        ledger.audit()
    assert (caught.value.code, caught.value.param) == ("wrong_verdicts", "batch 7")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"account": "user:b"}, "verdict_without_answer"),
        ({"answer_id": "ans9"}, "verdict_without_answer"),
        ({"commitment": "aa"}, "verdict_without_answer"),
        ({"pool_nano": 1}, "verdict_without_answer"),
        ({"verdict": "right"}, "malformed_statement"),
        ({"extra": 1}, "malformed_statement"),
    ],
)
def test_a_verdict_on_what_was_not_sold_so_is_named(ledger, changes, code):
    statement = {**verdict_statement(usage_statement(1), "wrong"), **changes}
    known = {name: value for name, value in statement.items() if name != "extra"}
    mark(ledger, transfers=verdict_transfers({**known, "verdict": "wrong"}), **changes)
    with pytest.raises(Corrupt) as caught:
        ledger.audit()
    assert caught.value.code == code


def test_a_verdict_that_keeps_its_hold_is_named(ledger):
    first, _ = verdict_transfers(verdict_statement(usage_statement(1), "wrong"))
    mark(ledger, transfers=[first])
    with pytest.raises(Corrupt) as caught:
        ledger.audit()
    assert caught.value.code == "verdict_differs"


def test_a_transfer_that_is_not_the_verdicts_has_no_proof(ledger):
    ledger.create_accounts([Account(account_id="user:d", kind="user")])
    first, end = verdict_transfers(verdict_statement(usage_statement(1), "wrong"))
    mark(ledger, transfers=[replace(first, credit="user:d"), replace(end, credit="user:d")])
    with pytest.raises(Corrupt) as caught:
        verify_proof(ledger.proof("ans1.verdict"), ledger.verification_key())
    assert caught.value.code == "verdict_differs"


def test_a_usage_that_names_no_answer_is_named(ledger):
    usage = {**usage_statement(3), "commitment": f"{3:064d}"}
    ledger.commit([hold(3)])
    transfers = usage_transfers(usage)
    del usage["answer_id"]
    ledger.commit(transfers, usage)
    with pytest.raises(Corrupt) as caught:
        ledger.audit()
    assert caught.value.code == "malformed_statement"


def test_there_is_one_verdict(ledger):
    assert check_verdict("wrong") == "wrong"
    with pytest.raises(InvalidInput) as caught:
        check_verdict("right")
    assert caught.value.code == "invalid_verdict"
