"""What contributors take out: at least the minimum, once for each key, handed over in one round and no other."""

import csv
import io

import pytest
from economy_values import scores

from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound
from openledger.core.money import NANO_PER_OPEN
from openledger.economy import Economy, Parameters, port
from openledger.ledger import encode_proof, verify_proof

OPEN = NANO_PER_OPEN
ALICES, BOBS = "0x" + "aB" * 20, "0x" + "cd" * 20


@pytest.fixture
def rich(town):
    return enrich(town)


@pytest.fixture(scope="module")
def unmoved(standing):
    """The same, for what is refused and changes nothing."""
    return enrich(standing)


def enrich(town):
    for name in ("user:bob", "contributor:ctr_a"):
        town.economy.grant(name, 20 * OPEN, name)
    return town


def test_rounds_hand_over_what_waits_once_and_sum_what_goes_to_one_address(rich):
    rich.economy.withdraw("user:bob", 3 * OPEN, BOBS, "w1")
    rich.economy.withdraw("contributor:ctr_a", 2 * OPEN, ALICES, "w1")
    rich.economy.withdraw("user:bob", OPEN, BOBS.upper().replace("0X", "0x"), "w2")
    assert rich.economy.close_claims() == 1
    rich.economy.withdraw("user:bob", 5 * OPEN, BOBS, "w3")
    assert rich.economy.close_claims() == 2
    assert rich.economy.claims(1) == [(ALICES.lower(), 2 * OPEN), (BOBS, 4 * OPEN)]
    assert rich.economy.claims(2) == [(BOBS, 5 * OPEN)]
    assert rich.economy.balance("holds:claims").posted_nano == 0
    assert rich.economy.balance("holds:claims:1").posted_nano == 6 * OPEN
    rich.ledger.audit()


def test_a_round_without_withdrawals_is_refused(rich):
    with pytest.raises(Conflict) as caught:
        rich.economy.close_claims()
    assert caught.value.code == "no_withdrawals"


def test_the_same_key_withdraws_once_also_where_nothing_is_left(rich):
    first = rich.economy.withdraw("user:bob", 20 * OPEN, BOBS, "w1")
    rich.restart()
    assert rich.economy.withdraw("user:bob", 20 * OPEN, BOBS, "w1") == first
    with pytest.raises(Conflict) as caught:
        rich.economy.withdraw("user:bob", 19 * OPEN, BOBS, "w1")
    assert caught.value.code == "idempotency_conflict"
    assert rich.available("user:bob") == 0


@pytest.mark.parametrize(
    ("account", "amount", "address", "error", "code"),
    [
        ("user:bob", OPEN - 1, BOBS, InvalidInput, "below_minimum"),
        ("user:bob", 0, BOBS, InvalidInput, "invalid_amount"),
        ("user:bob", -OPEN, BOBS, InvalidInput, "invalid_amount"),
        ("user:bob", 1.5, BOBS, InvalidInput, "invalid_amount"),
        ("user:bob", 2**63, BOBS, InvalidInput, "invalid_amount"),
        ("user:bob", 21 * OPEN, BOBS, InsufficientFunds, "insufficient_funds"),
        ("user:bob", OPEN, "0x12", InvalidInput, "invalid_address"),
        ("user:bob", OPEN, "0x" + "00" * 20, InvalidInput, "invalid_address"),
        ("user:nobody", OPEN, BOBS, NotFound, "account_not_found"),
        ("treasury", OPEN, BOBS, InvalidInput, "invalid_account"),
        ("pool:py:p0001", OPEN, BOBS, InvalidInput, "invalid_account"),
    ],
)
def test_a_withdrawal_that_can_not_be_changes_nothing(unmoved, account, amount, address, error, code):
    before = unmoved.ledger.checkpoint()
    with pytest.raises(error) as caught:
        unmoved.economy.withdraw(account, amount, address, "w1")
    assert (caught.value.code, unmoved.ledger.checkpoint()) == (code, before)


def test_what_waits_in_a_pool_can_not_be_withdrawn_before_it_is_settled(tmp_path, clock, town):
    town.sell("k1")
    with pytest.raises(NotFound):
        town.economy.withdraw("contributor:ctr_a", OPEN, ALICES, "w1")
    town.economy.settle(scores(), {})
    with pytest.raises(InvalidInput) as caught:
        town.economy.withdraw("contributor:ctr_a", 56, ALICES, "w1")
    assert caught.value.code == "below_minimum"  # and however small, it is there
    assert town.available("contributor:ctr_a") == 56


def test_the_minimum_is_a_parameter(tmp_path, clock):
    from openledger.ledger import Ledger

    ledger = Ledger(tmp_path / "ledger.db", clock)
    economy = Economy(ledger, tmp_path, clock, Parameters(payout_minimum_nano=5))
    economy.grant("user:bob", 9, "bob")
    with pytest.raises(InvalidInput, match=r"at least 0\.000000005 OPEN"):
        economy.withdraw("user:bob", 4, BOBS, "w1")
    assert economy.withdraw("user:bob", 5, BOBS, "w1")["amount_nano"] == 5
    economy.close()
    ledger.close()


def test_more_withdrawals_than_a_page_are_all_handed_over(rich, monkeypatch):
    monkeypatch.setattr(port, "_FEW", 2)
    for number in range(7):
        rich.economy.withdraw("user:bob", OPEN, BOBS, f"w{number}")
    rich.economy.close_claims()
    for number in range(7, 12):
        rich.economy.withdraw("user:bob", OPEN, BOBS, f"w{number}")
    rich.economy.close_claims()
    assert (rich.economy.claims(1), rich.economy.claims(2)) == ([(BOBS, 7 * OPEN)], [(BOBS, 5 * OPEN)])
    rich.ledger.audit()


def test_a_withdrawal_is_proven(rich):
    rich.economy.withdraw("user:bob", OPEN, BOBS, "w1")
    (entry,) = [one for one in rich.ledger.transfers("user:bob") if one.transfer.code == "withdrawal"]
    proof = encode_proof(rich.ledger.proof(entry.transfer.transfer_id))
    assert verify_proof(proof, rich.ledger.verification_key()).transfer.reference == BOBS


def test_payouts_and_claims_export_as_csv_that_no_spreadsheet_runs(town):
    town.sell("k1")
    town.economy.settle(scores(), {"ctr_a": "user:alice"})
    rows = list(csv.DictReader(io.StringIO(town.economy.payouts_csv("user:alice"))))
    assert [(row["amount_nano"], row["reference"], row["funding"]) for row in rows] == [("56", "py:p0001", "fees")]
    town.economy.grant("user:bob", OPEN, "bob")
    town.economy.withdraw("user:bob", OPEN, BOBS, "w1")
    number = town.economy.close_claims()
    assert town.economy.claims_csv(number).split() == ["address,amount_nano,paid_by", f"{BOBS},{OPEN},chain"]
    from openledger.economy.withdrawals import as_csv

    assert as_csv(("a",), [("=1+1",)]).split() == ["a", "'=1+1"]
