"""From hold to receipt: metered, split to the nano-OPEN, once."""

from dataclasses import replace

import pytest
from economy_values import TERMS, Town, answer
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import Conflict, InsufficientFunds, InvalidInput, NotFound
from openledger.core.money import SUPPLY_NANO
from openledger.economy import Parameters
from openledger.economy.pricing import Metered, price, usage_statement, usage_transfers
from openledger.ledger.statements import check_usage, check_usage_transfers

counts, prices = st.integers(0, 10**5), st.integers(0, 10**9)


@given(counts, counts, prices, prices)
def test_every_fee_is_the_sum_of_its_parts_and_of_its_transfers(prompt, completion, prompt_price, completion_price):
    terms = replace(TERMS, prompt_price_nano=prompt_price, completion_price_nano=completion_price)
    metered = Metered(
        answer_id="ans_1",
        account="user:alice",
        period="p0001",
        num_prompt_tokens=prompt,
        num_completion_tokens=completion,
        commitment="00",
    )
    usage = usage_statement(metered, terms, Parameters())
    fee, *parts = usage_transfers(usage)
    assert fee.amount_nano == max(1, prompt * prompt_price + completion * completion_price)
    assert sum(usage["parts_nano"].values()) == fee.amount_nano == sum(part.amount_nano for part in parts)
    check_usage(usage)
    check_usage_transfers(usage, [fee, *parts])


def test_an_answer_is_held_for_metered_and_split(town):
    authorized = town.authorize("k1")
    assert authorized.max_fee_nano == 10 * 10 + 20 * 30
    assert town.available() == 1_000_000 - 700
    receipt = town.economy.complete(answer(authorized))
    assert receipt.fee_nano == 10 * 10 + 7 * 30
    assert receipt.parts == {"pool:py:p0001": 155, "user:owner": 62, "treasury": 62 + 31}
    assert town.available() == 1_000_000 - 310
    assert town.economy.balance("holds").posted_nano == 0
    town.ledger.audit()


def test_the_parts_of_a_receipt_are_what_was_paid(town):
    for account, amount in town.sell("k1").parts.items():
        assert town.economy.balance(account).posted_nano == amount


def test_parts_of_an_answer_are_completed_together_as_each_by_itself(town):
    held = [town.authorize(key) for key in ("k1", "k2")]
    receipts = town.economy.complete_all([answer(one) for one in held])
    assert [receipt.answer_id for receipt in receipts] == [one.answer_id for one in held]
    assert [receipt.signed["transfer"]["reference"] for receipt in receipts] == [one.answer_id for one in held]
    assert town.economy.complete(answer(held[1])).fee_nano == receipts[1].fee_nano == 310
    assert town.available() == 1_000_000 - 620
    town.ledger.audit()


def test_where_a_part_can_not_be_completed_none_is(town):
    held = [town.authorize(key) for key in ("k1", "k2")]
    with pytest.raises(InvalidInput):
        town.economy.complete_all([answer(held[0]), answer(held[1], completion=21)])
    assert [town.economy.completed(one.answer_id) for one in held] == [None, None]
    town.economy.cancel(held[1].answer_id)
    with pytest.raises(Conflict) as caught:
        town.economy.complete_all([answer(one) for one in held])
    assert caught.value.code == "hold_released"
    assert town.economy.completed(held[0].answer_id) is None


def test_parts_of_which_some_were_completed_before_are_completed_once(town):
    held = [town.authorize(key) for key in ("k1", "k2")]
    town.economy.complete(answer(held[0]))
    assert [receipt.fee_nano for receipt in town.economy.complete_all([answer(one) for one in held])] == [310, 310]
    assert town.available() == 1_000_000 - 620


def test_completing_again_gives_the_same_receipt_and_takes_nothing(town):
    authorized = town.authorize("k1")
    first = town.economy.complete(answer(authorized))
    assert town.economy.complete(answer(authorized)) == first
    assert town.available() == 1_000_000 - first.fee_nano


def test_completing_again_with_other_tokens_is_a_conflict(town):
    authorized = town.authorize("k1")
    town.economy.complete(answer(authorized))
    with pytest.raises(Conflict) as caught:
        town.economy.complete(answer(authorized, token=3))
    assert caught.value.code == "answer_completed"


def test_the_same_key_gives_the_same_authorization(town):
    assert town.authorize("k1") == town.authorize("k1")
    assert town.available() == 1_000_000 - 700


def test_another_key_gives_another_authorization(town):
    assert town.authorize("k1").answer_id != town.authorize("k2").answer_id
    assert town.available() == 1_000_000 - 1400


def test_the_same_key_with_another_request_is_a_conflict(town):
    town.authorize("k1")
    with pytest.raises(Conflict) as caught:
        town.authorize("k1", most=21)
    assert caught.value.code == "idempotency_conflict"


def test_a_key_belongs_to_its_account(town):
    town.economy.grant("user:bob", 10_000, "bob")
    assert town.authorize("k1").answer_id != town.authorize("k1", "user:bob").answer_id


def test_what_is_missing_is_said_and_nothing_is_held(town):
    with pytest.raises(InsufficientFunds) as caught:
        town.authorize("k1", most=100_000)
    assert "0.001 OPEN available" in caught.value.message
    assert "0.0020001 OPEN" in caught.value.fix
    assert town.available() == 1_000_000
    town.economy.grant("user:alice", 10_000_000, "more")
    assert town.authorize("k1", most=100_000).max_fee_nano == 3_000_100


def test_held_money_can_not_be_held_twice(town):
    town.authorize("k1", most=30_000)
    with pytest.raises(InsufficientFunds):
        town.authorize("k2", most=30_000)


def test_an_unknown_account_is_not_found(town):
    with pytest.raises(NotFound):
        town.authorize("k1", "user:nobody")


def test_a_cancelled_answer_costs_nothing(town):
    authorized = town.authorize("k1")
    town.economy.cancel(authorized.answer_id)
    town.economy.cancel(authorized.answer_id)
    assert town.available() == 1_000_000
    with pytest.raises(Conflict) as caught:
        town.economy.complete(answer(authorized))
    assert caught.value.code == "hold_released"


def test_the_key_of_a_cancelled_answer_can_be_used_again(town):
    first = town.authorize("k1")
    town.economy.cancel(first.answer_id)
    second = town.authorize("k1")
    assert second.answer_id != first.answer_id
    town.economy.complete(answer(second))
    assert town.authorize("k1") == second
    assert town.available() == 1_000_000 - (10 * 10 + 7 * 30)


def test_a_key_stands_for_one_content_even_where_the_price_is_the_same(town):
    arguments = ("user:alice", TERMS, 10, 20, "k1")
    town.economy.authorize(*arguments, "digest of a question")
    with pytest.raises(Conflict) as caught:
        town.economy.authorize(*arguments, "digest of another")
    assert caught.value.code == "idempotency_conflict"


def test_a_completed_answer_is_told_again_until_it_is_settled(town):
    authorized = town.authorize("k1")
    assert town.economy.completed(authorized.answer_id) is None
    paid = town.economy.complete(answer(authorized))
    told, receipt = town.economy.completed(authorized.answer_id)
    assert (told.completion_ids, receipt) == (answer(authorized).completion_ids, paid)


def test_a_completed_answer_can_not_be_cancelled(town):
    authorized = town.authorize("k1")
    town.economy.complete(answer(authorized))
    with pytest.raises(Conflict) as caught:
        town.economy.cancel(authorized.answer_id)
    assert caught.value.code == "answer_completed"


def test_an_expired_hold_is_released_by_itself(town, clock):
    authorized = town.authorize("k1")
    clock.advance(Parameters().hold_timeout_ms - 1)
    assert town.economy.release_expired() == 0
    clock.advance(1)
    assert town.economy.release_expired() == 1
    assert town.available() == 1_000_000
    with pytest.raises(Conflict):
        town.economy.complete(answer(authorized))
    assert town.economy.release_expired() == 0


@pytest.mark.parametrize("name", ["cancel", "complete"])
def test_what_was_never_authorized_is_not_found(town, name):
    value = replace(answer(town.authorize("k1")), answer_id="ans_x")
    with pytest.raises(NotFound):
        getattr(town.economy, name)(value if name == "complete" else value.answer_id)


def test_more_tokens_than_were_authorized_are_refused(town):
    authorized = town.authorize("k1")
    with pytest.raises(InvalidInput) as caught:
        town.economy.complete(answer(authorized, completion=21))
    assert caught.value.code == "exceeds_authorization"
    assert town.economy.complete(answer(authorized)).fee_nano == 310


@pytest.mark.parametrize("other", [{"adapter": "other"}, {"adapter_digest": "00"}])
def test_an_answer_by_another_adapter_is_refused(town, other):
    with pytest.raises(InvalidInput) as caught:
        town.economy.complete(answer(town.authorize("k1"), **other))
    assert caught.value.code == "wrong_adapter"


@pytest.mark.parametrize(
    "terms",
    [
        replace(TERMS, prompt_price_nano=-1),
        replace(TERMS, completion_price_nano=1.5),
        replace(TERMS, completion_price_nano=SUPPLY_NANO),
        replace(TERMS, owner_account="treasury"),
        replace(TERMS, owner_account="pool:py:p0001"),
        replace(TERMS, adapter="Py Docs"),
    ],
)
def test_terms_that_can_not_be_are_refused(town, terms):
    with pytest.raises(InvalidInput):
        town.economy.authorize("user:alice", terms, 10, 20, "k1")


def test_a_negative_number_of_tokens_is_refused():
    with pytest.raises(InvalidInput):
        price(TERMS, -1, 5, Parameters())


def test_an_owner_may_buy_from_himself(town):
    town.economy.grant("user:owner", 10_000, "owner")
    town.economy.complete(answer(town.authorize("k1", "user:owner")))
    assert town.economy.balance("user:owner").posted_nano == 10_000 - 310 + 62


def test_a_grant_is_given_once_for_each_key(town):
    assert town.economy.grant("user:bob", 5, "g") == town.economy.grant("user:bob", 5, "g")
    assert town.available("user:bob") == 5
    with pytest.raises(Conflict):
        town.economy.grant("user:bob", 6, "g")
    with pytest.raises(InsufficientFunds):
        town.economy.grant("user:bob", SUPPLY_NANO, "all")


@pytest.mark.parametrize(("account", "amount"), [("user:bob", 0), ("user:bob", 1.5), ("treasury", 1), ("bob", 1)])
def test_a_grant_that_can_not_be_is_refused(town, account, amount):
    with pytest.raises(InvalidInput):
        town.economy.grant(account, amount, "g")


@pytest.mark.parametrize("key", ["", "x" * 256, None])
def test_an_idempotency_key_that_can_not_be_is_refused(town, key):
    with pytest.raises(InvalidInput):
        town.authorize(key)


@pytest.mark.parametrize(
    "values",
    [{"owner_ppm": 200_001}, {"owner_ppm": -1, "stakers_ppm": 400_001}, {"z_milli": -1}, {"minimum_fee_nano": 0}],
)
def test_parameters_that_can_not_be_are_refused(values):
    with pytest.raises(InvalidInput):
        Parameters(**values)


def test_a_merge_is_sold_without_a_datanet_and_half_named_terms_are_not(town):
    merge = replace(TERMS, datanet="", datanet_version=0, row_root="")
    assert town.economy.authorize("user:alice", merge, 10, 20, "merge").max_fee_nano > 0
    for half in (replace(TERMS, datanet=""), replace(merge, row_root="cd" * 32), replace(merge, adapter_digest="")):
        with pytest.raises(InvalidInput) as caught:
            town.economy.authorize("user:alice", half, 10, 20, "half")
        assert caught.value.code == "invalid_terms"


class TestFurtherLines:
    """Who gives the machines, reviews rows or licensed the base, where a vote gives them something of a fee."""

    VALUES = Parameters(
        contributors_ppm=400_000, compute_ppm=50_000, reviewers_ppm=30_000, licensor_ppm=20_000,
        compute_account="user:host", licensor_account="user:licensor",
    )  # fmt: skip

    @pytest.fixture
    def shared(self, tmp_path, clock):
        made = Town(tmp_path, clock, self.VALUES)
        made.economy.grant("user:alice", 1_000_000, "start")
        yield made
        made.close()

    def test_each_line_goes_to_its_account_and_what_has_none_to_the_treasury(self, shared):
        fee = shared.sell("k1").fee_nano  # 310
        assert (shared.available("user:host"), shared.available("user:licensor")) == (16, 6)
        assert shared.available("pool:py:p0001") == 124
        assert shared.available("treasury") == fee - 124 - 62 - 16 - 6
        shared.ledger.audit()

    def test_they_give_it_back_with_the_rest_of_the_fee(self, shared):
        shared.economy.refund(shared.sell("k1").answer_id, "why")
        assert [shared.available(name) for name in ("user:host", "user:licensor", "pool:py:p0001")] == [0, 0, 0]
        assert shared.available() == 1_000_000
        shared.ledger.audit()

    def test_by_default_there_are_none(self, town):
        usage = town.ledger.batch(town.ledger.find(f"{town.sell('k1').answer_id}.fee").seq).statement
        assert set(usage["parts_nano"]) == {"contributors", "owner", "stakers", "treasury"}
