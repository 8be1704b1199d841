"""What is offered in the log: a sale of anything else, or by a constant without its witnesses, is refused and named."""

from dataclasses import asdict, replace

import pytest
from economy_values import TERMS, answer, put_back, scores
from nonce_values import NONCES, OTHER, OWNER, WITNESS, draw_round

from openledger.core.errors import Conflict, Corrupt, InvalidInput
from openledger.core.money import NANO_PER_OPEN
from openledger.economy import Parameters
from openledger.ledger import encode_proof, verify_proof
from openledger.ledger.nonces import Purpose
from openledger.ledger.offers import (
    OFFERS_ACCOUNT,
    Lot,
    Offer,
    Training,
    begin_statement,
    lot_of,
    offer_id,
    offer_statement,
    transfers_of,
)
from openledger.ledger.seats import seat_transfers
from openledger.training.recipe import public_constant

PURPOSE = Purpose(row_root=TERMS.row_root, base_digest="ba" * 32, recipe_digest="ec" * 32)
LOT = lot_of(TERMS)
VERSION = Parameters().version
PARTIES = {party: NONCES[party] for party in (OWNER, WITNESS)}
BASE_TERMS = replace(TERMS, adapter="a-base", adapter_digest="ba" * 32, datanet="", datanet_version=0, row_root="")


def drawn(town, *, version=1, parties=PARTIES):
    """A run on `version` by a round in which `parties` revealed."""
    told = draw_round(town.economy, town.ledger, TERMS.datanet, version, PURPOSE, parties)
    constant = public_constant(PURPOSE.base_digest, TERMS.datanet, version, told)
    return Training(
        adapter="py", datanet=TERMS.datanet, version=version, purpose=PURPOSE, constant=constant, seller="user:owner"
    )


def offered(town, *on_sale):
    """Py, by a witnessed constant."""
    town.economy.begin_offers(on_sale)
    return town.economy.offer(Offer(lot=LOT, trainings=(drawn(town),)))


def write(town, statement):
    """As an operator could who asks nobody."""
    assert town.ledger.commit(transfers_of(statement), statement) == ["created", "created"]
    return town.ledger.find(transfers_of(statement)[0].transfer_id).seq


def wrong(town, code, seq=None):
    with pytest.raises(Corrupt) as caught:
        town.ledger.audit()
    assert caught.value.code == code
    if seq is not None:
        assert caught.value.param == f"batch {seq}"
    return caught.value.message


def test_what_is_offered_is_sold_and_the_audit_draws_its_constant_again(town):
    offered(town)
    town.sell("k1")
    town.economy.settle(scores(), {})
    report = town.ledger.audit()
    assert (report.num_offers, report.num_answers) == (1, 1)
    assert any(line.startswith("1 offers: each constant drawn again") for line in report.lines)


def test_a_log_that_never_asked_for_offers_sells_without(town):
    town.sell("k1")
    assert town.ledger.audit().num_offers == 0


def test_offering_again_writes_nothing_also_after_a_restart(town):
    name, training = offered(town), drawn(town)
    before = town.ledger.checkpoint()
    assert town.economy.offer(Offer(lot=LOT, trainings=(training,))) == name
    town.restart()
    town.economy.begin_offers([BASE_TERMS])
    assert town.economy.offer(Offer(lot=LOT, trainings=(training,))) == name
    assert town.ledger.checkpoint() == before
    assert town.economy.missing_offers([LOT, lot_of(BASE_TERMS)]) == [lot_of(BASE_TERMS)]


class TestSales:
    def refused(self, town, terms):
        before = town.ledger.checkpoint()
        with pytest.raises(Conflict) as caught:
            town.economy.authorize("user:alice", terms, 10, 20, "k")
        assert (caught.value.code, caught.value.param) == ("adapter_not_offered", "model")
        assert town.ledger.checkpoint() == before

    @pytest.mark.parametrize(
        "changed",
        [
            {"adapter": "other"},
            {"adapter_digest": "cd" * 32},
            {"owner_account": "user:mallory"},
            {"datanet_version": 2},
            {"row_root": "ef" * 32},
        ],
    )
    def test_what_is_not_offered_as_that_is_not_sold(self, town, changed):
        offered(town)
        self.refused(town, replace(TERMS, **changed))

    def test_at_any_price(self, town):
        offered(town)
        town.economy.authorize("user:alice", replace(TERMS, prompt_price_nano=11), 10, 20, "k")

    def test_what_was_on_sale_when_the_log_began_to_ask_is_sold_on(self, town):
        other = replace(TERMS, adapter="other")
        town.economy.begin_offers([TERMS, other])
        town.restart()
        town.sell("k1")
        assert town.economy.offer(Offer(lot=lot_of(other), trainings=(drawn(town),))) == "offers.begun"
        town.ledger.audit()

    def test_what_was_being_answered_then_is_paid_for(self, town):
        authorized = town.authorize("k1")
        town.economy.begin_offers([])
        assert town.economy.complete(answer(authorized)).fee_nano == 310
        town.ledger.audit()

    def test_a_retry_of_what_was_sold_is_told_again(self, town):
        town.sell("k1")
        town.economy.begin_offers([])
        with_adapter = town.authorize("k1")
        assert town.economy.completed(with_adapter.answer_id) is not None

    def test_a_retry_after_the_log_lost_offer_and_hold_is_not_sold_before_it_is_offered_again(self, town):
        town.economy.begin_offers([])
        training = drawn(town)
        with put_back(town, "ledger.db"):
            offered = town.economy.offer(Offer(lot=LOT, trainings=(training,)))
            first = town.authorize("k1")
        with pytest.raises(Conflict) as caught:
            town.authorize("k1")
        assert caught.value.code == "adapter_not_offered"
        assert town.economy.offer(Offer(lot=LOT, trainings=(training,))) == offered
        assert town.authorize("k1").answer_id == first.answer_id
        town.economy.complete(answer(first))
        town.ledger.audit()

    @pytest.mark.parametrize("number_of_sales", [0, 2])
    def test_the_audit_names_the_first_answer_of_what_is_not_offered(self, town, monkeypatch, number_of_sales):
        offered(town)
        for number in range(number_of_sales):
            town.sell(f"good{number}")
        monkeypatch.setattr(town.economy._offers, "check_sale", lambda _: None)
        mallorys = replace(TERMS, owner_account="user:mallory")
        sold = town.economy.authorize("user:alice", mallorys, 10, 20, "k")
        town.economy.complete(answer(sold))
        town.sell("more")
        seq = town.ledger.find(f"{sold.answer_id}.fee").seq
        assert "user:mallory hadn't offered" in wrong(town, "sale_without_offer", seq)

    def test_a_base_model_is_offered_as_one(self, town):
        town.economy.begin_offers([])
        self.refused(town, BASE_TERMS)
        town.economy.offer(Offer(lot=lot_of(BASE_TERMS), kind="base"))
        authorized = town.economy.authorize("user:alice", BASE_TERMS, 10, 20, "k")
        sold = {"adapter": "a-base", "adapter_digest": BASE_TERMS.adapter_digest}
        town.economy.complete(answer(authorized, **sold))
        town.ledger.audit()


class TestConstants:
    def refused(self, town, offer, code="constant_unwitnessed"):
        before = town.ledger.checkpoint()
        with pytest.raises((Conflict, InvalidInput)) as caught:
            town.economy.offer(offer)
        assert caught.value.code == code
        assert town.ledger.checkpoint() == before

    def forged(self, town, training, **changed):
        """The offer written past the book; the audit has to find it before what is sold then."""
        town.economy.begin_offers([])
        statement = {**offer_statement(Offer(lot=LOT, trainings=(training,)), VERSION), **changed}
        seq = write(town, statement)
        town.restart()
        town.sell("k1")
        return seq

    @pytest.mark.parametrize(
        "changed",
        [
            {"constant": "ab" * 32},
            {"purpose": replace(PURPOSE, recipe_digest="ff" * 32)},
            {"seller": WITNESS},
        ],
    )
    def test_a_constant_with_too_few_witnesses_is_refused_and_where_it_stands_named(self, town, changed):
        training = replace(drawn(town), **changed)
        town.economy.begin_offers([])
        self.refused(town, Offer(lot=LOT, trainings=(training,)))
        seq = self.forged(town, training)
        assert "no witness stands for the constant" in wrong(town, "constant_unwitnessed", seq)

    def test_a_round_that_nobody_else_entered_is_named(self, town):
        own = {OWNER: NONCES[OWNER], "user:owner": NONCES[OTHER]}
        seq = self.forged(town, drawn(town, parties=own))
        wrong(town, "constant_unwitnessed", seq)

    def test_a_run_of_before_that_has_none_is_named_too(self, town):
        """Every generation is paid, so every generation is asked."""
        parent = replace(drawn(town), adapter="parent", version=7)
        town.economy.begin_offers([])
        seq = write(town, offer_statement(Offer(lot=LOT, trainings=(drawn(town), parent)), VERSION))
        assert "parent can't be offered" in wrong(town, "constant_unwitnessed", seq)

    def test_the_version_in_force_decides_how_many(self, town):
        seq = self.forged(town, drawn(town), parameters=VERSION - 1)
        wrong(town, "wrong_version", seq)

    def test_an_offer_before_a_vote_stands_and_one_after_it_is_asked_for_more(self, town):
        offered(town)
        adopt(town, {"witnesses_required": 2})
        town.economy.open_period()
        second = replace(TERMS, datanet_version=2)
        training = drawn(town, version=2)
        self.refused(town, Offer(lot=lot_of(second), trainings=(training,)))
        town.sell("k1")
        three = {**PARTIES, OTHER: NONCES[OTHER]}
        third = replace(TERMS, datanet_version=3)
        town.economy.offer(Offer(lot=lot_of(third), trainings=(drawn(town, version=3, parties=three),)))
        assert town.ledger.audit().num_offers == 2
        seq = write(town, offer_statement(Offer(lot=lot_of(second), trainings=(training,)), VERSION + 1))
        assert "of 2 required" in wrong(town, "constant_unwitnessed", seq)

    def test_where_none_is_required_the_runs_are_named_all_the_same(self, town):
        adopt(town, {"witnesses_required": 0})
        town.economy.open_period()
        town.economy.begin_offers([])
        unwitnessed = Training(
            adapter="py", datanet=TERMS.datanet, version=1, purpose=PURPOSE, constant="", seller="user:owner"
        )
        town.economy.offer(Offer(lot=LOT, trainings=(unwitnessed,)))
        town.sell("k1")
        town.ledger.audit()


class TestWithdrawals:
    LESS = replace(LOT, adapter_digest="fe" * 32)
    OFFER = Offer(lot=LESS, kind="withdrawal", instead_of=LOT.adapter_digest, contributor="ctr_a")

    def test_a_run_less_somebodys_rows_takes_the_place_of_what_was_offered(self, town):
        offered(town)
        name = town.economy.offer(self.OFFER)
        assert "instead of abababababab, as the same runs less the rows of ctr_a" in town.economy.explain(name)[1]
        sold = town.economy.authorize("user:alice", replace(TERMS, adapter_digest="fe" * 32), 10, 20, "k")
        town.economy.complete(answer(sold, adapter_digest="fe" * 32))
        report = town.ledger.audit()
        assert (report.num_offers, report.num_withdrawal_offers, report.num_base_offers) == (1, 1, 0)
        assert any(line.startswith("1 offers less a contributor's rows") for line in report.lines)

    def test_it_stands_by_the_runs_of_that(self, town):
        offered(town)
        name = town.economy.offer(self.OFFER)
        told = town.ledger.batch(town.ledger.find(name).seq).statement
        assert (told["trainings"], told["contributor"]) == ([asdict(drawn(town))], "ctr_a")

    def test_of_what_was_on_sale_before_the_log_tells_no_runs(self, town):
        town.economy.begin_offers([TERMS])
        name = town.economy.offer(self.OFFER)
        assert town.ledger.batch(town.ledger.find(name).seq).statement["trainings"] == []
        town.ledger.audit()

    @pytest.mark.parametrize("runs", [0, 2])
    def test_by_other_runs_it_is_named(self, town, runs):
        offered(town)
        made_up = replace(self.OFFER, trainings=(drawn(town), drawn(town, version=2))[:runs])
        wrong(town, "offer_of_other_runs", write(town, offer_statement(made_up, VERSION)))

    @pytest.mark.parametrize("changed", [{"seller": "user:mallory"}, {"adapter": "other"}, {"row_root": "ef" * 32}])
    def test_of_nothing_that_the_seller_had_on_sale_it_is_refused_and_named(self, town, changed):
        offered(town)
        made_up = replace(self.OFFER, lot=replace(self.LESS, **changed))
        with pytest.raises(Conflict) as caught:
            town.economy.offer(made_up)
        assert caught.value.code == "offer_without_adapter"
        wrong(town, "offer_without_adapter", write(town, offer_statement(made_up, VERSION)))


class TestShape:
    @pytest.mark.parametrize(
        "offer",
        [
            Offer(lot=LOT),
            Offer(lot=LOT, kind="base"),
            Offer(lot=LOT, kind="withdrawal"),
            Offer(lot=LOT, kind="withdrawal", instead_of="ab"),
            Offer(lot=LOT, kind="withdrawal", contributor="ctr_a"),
            Offer(lot=lot_of(BASE_TERMS), kind="base", contributor="ctr_a"),
            Offer(lot=lot_of(BASE_TERMS), kind="base", instead_of="ab"),
            Offer(lot=replace(LOT, adapter_digest="")),
        ],
    )
    def test_an_offer_that_can_not_be_is_refused_and_changes_nothing(self, town, offer):
        town.economy.begin_offers([])
        before = town.ledger.checkpoint()
        with pytest.raises(InvalidInput) as caught:
            town.economy.offer(offer)
        assert (caught.value.code, town.ledger.checkpoint()) == ("malformed_statement", before)

    def test_of_other_rows_than_its_runs_were_on_it_is_refused(self, town):
        town.economy.begin_offers([])
        with pytest.raises(InvalidInput, match="other rows"):
            town.economy.offer(Offer(lot=replace(LOT, row_root="ef" * 32), trainings=(drawn(town),)))

    def test_before_the_log_asks_for_offers_there_are_none(self, town):
        training = drawn(town)
        with pytest.raises(Conflict) as caught:
            town.economy.offer(Offer(lot=LOT, trainings=(training,)))
        assert caught.value.code == "offers_not_begun"

    @pytest.mark.parametrize(
        "change",
        [
            lambda told: told.pop("seller"),
            lambda told: told.update(kind="gift"),
            lambda told: told.update(trainings=[{}]),
            lambda told: told.update(trainings=7),
            lambda told: told["trainings"][0].pop("constant"),
            lambda told: told["trainings"][0].update(version="1"),
            lambda told: told.update(datanet_version="1"),
            lambda told: told.update(parameters="6"),
            lambda told: told.update(more=1),
        ],
    )
    def test_a_misshapen_one_in_the_log_is_named(self, town, change):
        town.economy.begin_offers([])
        statement = offer_statement(Offer(lot=LOT, trainings=(drawn(town),)), VERSION)
        good = transfers_of(statement)
        change(statement)
        town.ledger.commit(good, statement)
        wrong(town, "malformed_statement", town.ledger.find(good[0].transfer_id).seq)

    def test_another_transfer_than_the_offers_is_named(self, town):
        town.economy.begin_offers([])
        statement = offer_statement(Offer(lot=LOT, trainings=(drawn(town),)), VERSION)
        town.ledger.commit(seat_transfers(("x", "x.end"), ("offer", "offer_end"), OFFERS_ACCOUNT, "py"), statement)
        wrong(town, "offer_differs")

    def test_a_seat_that_says_nothing_is_named(self, town):
        town.economy.begin_offers([])
        town.ledger.commit(seat_transfers(("x", "x.end"), ("offer", "offer_end"), OFFERS_ACCOUNT, "py"))
        wrong(town, "unexplained_offer")

    def test_what_was_on_sale_is_named_once_each(self, town):
        line = [*asdict(LOT).values()]
        statement = {**begin_statement([LOT]), "earlier": [line, line]}
        town.economy.begin_offers([])
        town.ledger.commit(
            seat_transfers(("x", "x.end"), ("offers", "offers_end"), OFFERS_ACCOUNT, "offers"), statement
        )
        wrong(town, "malformed_statement")


def test_an_offer_is_proven_and_told_in_words(town):
    name = offered(town)
    assert name == offer_id(LOT)
    proven = verify_proof(encode_proof(town.ledger.proof(name)), town.ledger.verification_key())
    assert any("of the round of py-docs version 1" in line for line in proven.lines)
    assert "user:owner offers py" in town.economy.explain(name)[1]
    assert "0 adapters were on sale before" in town.economy.explain("offers.begun")[1]


def test_a_lot_is_named_alike_by_terms_and_sales(town):
    offered(town)
    sold = town.sell("k1")
    usage = town.ledger.batch(town.ledger.find(f"{sold.answer_id}.fee").seq).statement
    own = ("adapter", "adapter_digest", "datanet", "datanet_version", "row_root")
    assert Lot(seller=usage["accounts"]["owner"], **{name: usage[name] for name in own}) == LOT


def adopt(town, changes):
    """A vote by the only one who has staked."""
    first = Parameters()
    town.economy.grant("user:bob", 2000 * NANO_PER_OPEN, "bob")
    town.economy.stake("user:bob", "adapter:other", 1000 * NANO_PER_OPEN, "s")
    town.clock.advance(1)
    made = town.economy.propose("user:bob", "t", "", {"kind": "parameters", "changes": changes}, "p")["proposal"]
    town.clock.advance(first.vote_delay_ms + 1)
    town.economy.vote("user:bob", made, "for")
    town.clock.advance(first.vote_period_ms + first.vote_timelock_ms)
    assert town.economy.proposal(made)["state"] == "Executed"
