"""A ledger in a currency: chosen once, told and taken in it, with nothing in it that nobody paid in."""

import pytest
from economy_values import TERMS, Town, answer, scores

from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Corrupt, InsufficientFunds, InvalidInput
from openledger.core.money import SUPPLY_NANO, Unit, showing
from openledger.core.signing import SigningKey
from openledger.economy import Economy, Parameters
from openledger.economy.nonces import NonceBook
from openledger.economy.parameters import PRESETS
from openledger.economy.register import RegisterBook
from openledger.ledger import Ledger, Transfer
from openledger.ledger.audit import audit_file
from openledger.ledger.claims import verify_claim
from openledger.ledger.nonces import commitment
from openledger.ledger.payouts import claims_in, csv_of, payouts_in
from openledger.ledger.units import UNIT_1

EUR = Unit(name="EUR")
ADDRESS = "0x" + "ab" * 20


@pytest.fixture
def town(tmp_path):
    made = Town(tmp_path, ManualClock(), unit=EUR)
    made.economy.grant("user:alice", 5_000_000, "SEPA-1")
    yield made
    made.close()


def test_the_unit_stands_first_in_the_log_and_again_after_a_restart(town):
    (place,) = [town.ledger.find("register.000000000")]
    assert town.ledger.batch(place.seq).statement["unit"] == "EUR"
    town.restart()
    assert town.economy.unit() == EUR
    assert town.economy.parameter_table()["unit"] == {"name": "EUR", "decimals": 6, "smallest": "micro-EUR"}


@pytest.mark.parametrize("wanted", ["USD", "OPEN"])
def test_the_unit_is_never_changed(town, wanted):
    before = town.ledger.checkpoint()
    with pytest.raises(Conflict) as caught:
        Economy(town.ledger, town.folder / "other", town.clock, unit=Unit(name=wanted))
    assert (caught.value.code, town.ledger.checkpoint()) == ("unit_chosen", before)


def test_a_ledger_that_began_in_open_stays_in_open(tmp_path):
    Town(tmp_path, ManualClock()).close()
    with pytest.raises(Conflict) as caught:
        Town(tmp_path, ManualClock(), unit=EUR)
    assert caught.value.code == "unit_chosen"


@pytest.mark.parametrize("name", ["", "eur", "E", "EURO12", "OPENLEDGER", None, 7])
def test_what_is_no_unit_is_refused(name):
    with pytest.raises(InvalidInput) as caught:
        Unit(name=name)
    assert caught.value.code == "invalid_unit"


def test_parameters_start_with_as_many_euros_as_they_have_open(town):
    values, usual = town.economy.parameters(), Parameters()
    assert values.payout_minimum_nano == 1_000_000
    assert values.bounty_cap_nano * 1000 == usual.bounty_cap_nano
    assert (values.minimum_fee_nano, values.owner_ppm) == (1, usual.owner_ppm)


def test_bounds_and_presets_are_as_many_euros_as_they_are_open(town):
    table = town.economy.parameter_table()
    assert table["bounds"]["payout_minimum_nano"] == [1, 10**6 * 10**6]
    assert table["bounds"]["minimum_fee_nano"] == [1, 10**6]
    assert table["bounds"]["vote_threshold_nano"] == [1, 10**7 * 10**6]
    assert table["bounds"]["bounty_cap_nano"] == [0, SUPPLY_NANO]  # what there can be at most
    assert table["bounds"]["owner_ppm"] == [0, 10**6]
    assert table["presets"]["docs"]["vote_threshold_nano"] == 10_000 * 10**6
    assert table["presets"]["code"]["vote_period_ms"] == PRESETS["code"]["vote_period_ms"]


def test_no_vote_and_no_start_passes_the_bounds_of_the_unit(town, tmp_path):
    for changes in ({"payout_minimum_nano": 10**12 + 1}, {"minimum_fee_nano": 2 * 10**6}):
        with pytest.raises(InvalidInput) as caught:
            town.economy.simulate(changes)
        assert (caught.value.code, caught.value.param) == ("invalid_parameters", next(iter(changes)))
    with pytest.raises(InvalidInput) as caught:
        Town(tmp_path / "more", ManualClock(), Parameters(payout_minimum_nano=10**13), EUR)
    assert caught.value.param == "payout_minimum_nano"


def test_a_currencys_ledger_of_before_keeps_its_bounds_and_its_audit(tmp_path):
    (tmp_path / "former").mkdir()
    ledger = Ledger(tmp_path / "former" / "ledger.db", ManualClock(), SigningKey(b"k" * 32), "openledger/test")
    RegisterBook(ledger, ManualClock()).write(UNIT_1, lambda *_: {"unit": "EUR"})
    ledger.close()
    former = Town(tmp_path / "former", ManualClock(), Parameters(payout_minimum_nano=10**13))
    assert former.economy.unit() == EUR
    assert former.economy.parameter_table()["bounds"]["payout_minimum_nano"] == [1, 10**15]
    former.ledger.audit()
    former.close()


def test_there_is_no_supply_to_distribute(town):
    before = town.ledger.checkpoint()
    with pytest.raises(Conflict) as caught:
        town.economy.found()
    assert (caught.value.code, town.ledger.checkpoint()) == ("no_supply", before)


def test_refusals_and_explanations_are_in_euros(town):
    with pytest.raises(InsufficientFunds) as caught:
        town.economy.stake("user:alice", "adapter:py", 7_500_000, "s")
    assert "5 EUR" in caught.value.message
    assert "this needs 7.5" in caught.value.message
    town.sell("k1")
    town.economy.settle(scores(), {})
    (paid,) = [one for one in town.economy.payouts("contributor:ctr_a") if one.code == "payout"]
    told = "\n".join(town.economy.explain(paid.transfer_id))
    assert f"0.{paid.amount_nano:06d} EUR from pool:py:p0001" in told
    assert "OPEN" not in told
    assert town.economy.payouts_csv("contributor:ctr_a").splitlines()[1].endswith(",micro-EUR")


def test_every_price_and_fee_is_in_millionths(town):
    authorized = town.economy.authorize("user:alice", TERMS, 10, 20, "k")
    fee = town.economy.complete(answer(authorized))
    assert fee.fee_nano == 10 * 10 + 7 * 30
    assert town.available() == 5_000_000 - fee.fee_nano


def paid_out(town):
    """Alice takes 2 EUR out, and the operator pays them."""
    town.economy.withdraw("user:alice", 2_000_000, ADDRESS, "w1")
    number = town.economy.close_claims()
    return number, town.economy.pay_out(number, "SEPA-OUT-1")


def test_what_there_is_was_paid_in_and_not_paid_out(town):
    assert paid_out(town) == (1, 2_000_000)
    assert town.economy.pay_out(1, "SEPA-OUT-1") == 2_000_000
    seat = 1  # of the register
    report = town.ledger.audit()
    assert (report.issued_nano, report.unit) == (5_000_000 - 2_000_000 + seat, "EUR")
    assert "3.000001 EUR issued, all of it paid in and not paid out" in report.lines
    assert town.ledger.find("paid_out.1").transfer.reference == "SEPA-OUT-1"


@pytest.mark.parametrize(("reference", "code"), [("SEPA-OUT-2", "round_paid"), ("", "invalid_reference")])
def test_a_round_is_paid_out_by_one_payment(town, reference, code):
    paid_out(town)
    before = town.ledger.checkpoint()
    with pytest.raises((Conflict, InvalidInput)) as caught:
        town.economy.pay_out(1, reference)
    assert (caught.value.code, town.ledger.checkpoint()) == (code, before)


def test_in_open_no_round_is_paid_out(tmp_path):
    town = Town(tmp_path, ManualClock())
    town.economy.grant("user:alice", 2 * 10**9, "start")
    town.economy.withdraw("user:alice", 10**9, ADDRESS, "w1")
    with pytest.raises(Conflict) as caught:
        town.economy.pay_out(town.economy.close_claims(), "SEPA-OUT-1")
    assert caught.value.code == "claimed_elsewhere"
    town.close()


@pytest.mark.parametrize("reference", ["", "because"])
def test_the_audit_finds_money_that_nobody_paid_in(town, reference):
    made_up = Transfer(
        transfer_id="made.up", debit="genesis", credit="user:alice", amount_nano=1, code="grant", reference=reference
    )
    town.ledger.commit([made_up])
    with pytest.raises(Corrupt) as caught:
        town.ledger.audit()
    assert caught.value.code == "unexplained_issue"


@pytest.mark.parametrize("code", ["whatever", "paid_in", "seat"])
def test_the_audit_finds_money_that_was_held_on_genesis_and_then_posted(town, code):
    def step(name, **kind):
        return Transfer(
            transfer_id=name, debit="genesis", credit="user:alice", amount_nano=1, code=code, reference="r", **kind
        )

    assert town.ledger.commit([step("held", kind="pending")]) == ["created"]
    town.ledger.audit()
    assert town.ledger.commit([step("posted", kind="post", pending_id="held")]) == ["created"]
    with pytest.raises(Corrupt) as caught:
        town.ledger.audit()
    assert caught.value.code == "unexplained_issue"


def test_the_audit_finds_a_round_paid_out_twice(town):
    paid_out(town)
    town.economy.grant("user:alice", 2_000_000, "SEPA-2")
    statement = {"format": "openledger.paid_out/1", "round": 1, "amount_nano": 2_000_000, "reference": "SEPA-OUT-9"}
    again = Transfer(
        transfer_id="paid_out.again", debit="user:alice", credit="genesis", amount_nano=2_000_000, code="paid_out",
        reference="SEPA-OUT-9",
    )  # fmt: skip
    town.ledger.commit([again], statement)
    with pytest.raises(Corrupt) as caught:
        town.ledger.audit()
    assert caught.value.code == "wrong_round"


def test_exports_claims_and_the_audit_know_the_unit(town, tmp_path):
    town.sell("k1")
    town.economy.settle(scores(), {})
    paid_out(town)
    town.ledger.export(tmp_path / "export")
    assert audit_file(tmp_path / "export", town.ledger.verification_key()).unit == "EUR"
    assert csv_of(payouts_in(tmp_path / "export")).splitlines()[1].endswith(",micro-EUR")
    tree, others = claims_in(tmp_path / "export", 1)
    assert others == []
    assert tree.dump()["values"][0]["value"] == [ADDRESS, "2000000"]  # a token with six decimals


def test_a_town_in_open_is_told_in_open_beside_one_in_euros(town, tmp_path):
    other = Town(tmp_path / "open", ManualClock())
    with pytest.raises(InsufficientFunds) as caught:
        other.economy.stake("user:alice", "adapter:py", 7_500_000_000, "s")
    assert "0 OPEN available, this needs 7.5" in caught.value.message
    with showing(EUR), pytest.raises(InsufficientFunds) as caught:
        other.economy.stake("user:alice", "adapter:py", 7_500_000_000, "s")
    assert "0 OPEN available, this needs 7.5" in caught.value.message
    other.close()


def test_who_commits_to_a_nonce_deposits_one_euro_and_is_told_so(town):
    town.economy.grant("user:o", 1_500_000, "SEPA-2")
    book = NonceBook(town.ledger)
    book.open("py", 1, "user:o")
    book.commit("py", 1, "user:o", commitment("py", 1, "user:o", "a" * 64))
    assert town.available("user:o") == 500_000
    with pytest.raises(InsufficientFunds) as caught:
        book.commit("py", 1, "user:w", commitment("py", 1, "user:w", "b" * 64))
    assert "the deposit of 1 EUR" in caught.value.message
    town.ledger.audit()


@pytest.mark.parametrize("payee", ["customer 4711", "DE89 3704 0044 0532 0130 00", "a" * 140, "bob@example.org"])
def test_in_a_currency_a_payee_is_named_by_what_the_operator_knows_him_by(town, payee):
    town.economy.withdraw("user:alice", 1_000_000, payee, "w1")
    town.economy.withdraw("user:alice", 1_000_000, payee, "w2")
    assert town.economy.claims(town.economy.close_claims()) == [(payee, 2_000_000)]
    town.ledger.audit()


def test_a_payee_without_an_address_leaves_the_others_their_claims_and_is_named(town, tmp_path):
    town.economy.withdraw("user:alice", 1_000_000, "customer 4711", "w1")
    town.economy.withdraw("user:alice", 2_000_000, ADDRESS, "w2")
    number = town.economy.close_claims()
    town.ledger.export(tmp_path / "export")
    tree, others = claims_in(tmp_path / "export", number)
    assert (tree.amounts_nano, others) == ({ADDRESS: 2_000_000}, [("customer 4711", 1_000_000)])
    assert verify_claim(tree.root, ADDRESS, 2_000_000, tree.proof(ADDRESS), EUR)
    assert town.economy.claims_csv(number).splitlines() == [
        "address,amount_nano,paid_by", f"{ADDRESS},2000000,chain", "customer 4711,1000000,payment",
    ]  # fmt: skip
    assert town.economy.balance(f"holds:claims:{number}").posted_nano == 3_000_000
    assert town.economy.pay_out(number, "SEPA-OUT-1") == 3_000_000
    town.ledger.audit()


def test_a_round_of_payees_without_an_address_has_no_tree_and_says_what_to_do(town):
    town.economy.withdraw("user:alice", 1_000_000, "customer 4711", "w1")
    number = town.economy.close_claims()
    with pytest.raises(InvalidInput) as caught:
        claims_in(town.folder / "ledger.db", number)
    assert (caught.value.code, caught.value.param) == ("no_claims", "round")
    assert "paid-out" in caught.value.fix


@pytest.mark.parametrize("payee", ["", " a", "a ", "a" * 141, "a\nb", "=1+1", "-", "0xabc", "0x" + "0" * 40, None, 7])
def test_what_names_no_payee_is_refused_and_changes_nothing(town, payee):
    before = town.ledger.checkpoint()
    with pytest.raises(InvalidInput) as caught:
        town.economy.withdraw("user:alice", 1_000_000, payee, "w1")
    assert (caught.value.code, town.ledger.checkpoint()) == ("invalid_address", before)
    assert "whom to pay" in caught.value.fix


def test_in_open_only_an_address_on_a_chain_is_paid(tmp_path):
    town = Town(tmp_path, ManualClock())
    town.economy.grant("user:alice", 2 * 10**9, "start")
    with pytest.raises(InvalidInput) as caught:
        town.economy.withdraw("user:alice", 10**9, "customer 4711", "w1")
    assert (caught.value.code, caught.value.fix) == ("invalid_address", "write 0x and 40 hex digits, not all of them 0")
    town.close()
