"""A pool is paid once, to the nano-OPEN, by shares that anyone can recompute."""

from dataclasses import replace

import pytest
from economy_values import DIGEST, TERMS, Town, answer, scores
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import InvalidInput, NotFound
from openledger.economy import Parameters
from openledger.economy.settlement import payout_transfers, settlement_statement
from openledger.ledger import encode_proof, verify_proof
from openledger.ledger.statements import check_settlement, check_settlement_transfers, evidence_of

measured = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2), st.tuples(st.integers(-(10**12), 10**12), st.integers(0, 10**12))
)


def usages(amounts):
    lineage = {"adapter_digest": DIGEST, "datanet": "d", "datanet_version": 1, "row_root": "cd"}
    return [
        {**lineage, "commitment": f"{place:064d}", "parts_nano": {"contributors": amount}}
        for place, amount in enumerate(amounts)
    ]


@given(measured, st.integers(-(10**12), 10**13), st.lists(st.integers(1, 10**12), min_size=1, max_size=9), st.data())
def test_every_pool_is_the_sum_of_its_answers_and_of_its_payouts(drawn, gain, amounts, data):
    accounts = {name: data.draw(st.sampled_from(["user:x", "user:y"])) for name in list(drawn)[::2]}
    measured_scores = scores(
        scores_nano={name: value[0] for name, value in drawn.items()},
        errors_nano={name: value[1] for name, value in drawn.items()},
        gain_nano=gain,
    )
    pool = usages(amounts)
    statement = settlement_statement(measured_scores, pool, accounts, Parameters())
    transfers = payout_transfers(statement)
    assert statement["pool_nano"] == sum(amounts) == sum(transfer.amount_nano for transfer in transfers)
    assert sum(statement["payouts_nano"].values()) == sum(amounts)
    check_settlement(statement, evidence_of(pool))
    check_settlement_transfers(statement, transfers)


def test_a_settlement_pays_the_pool_out(town):
    total = sum(town.sell(f"k{number}", completion=number).parts["pool:py:p0001"] for number in range(1, 6))
    assert town.economy.pool("py", "p0001").total_nano == total
    settlement = town.economy.settle(scores(), {"ctr_a": "user:alice"})
    assert settlement.pool_nano == total == sum(settlement.payouts_nano.values())
    assert settlement.shares_ppb == {
        "ctr_a": 364_000_000,
        "ctr_b": 126_000_000,
        "ctr_c": 0,
        "unattributed": 510_000_000,
    }
    assert set(settlement.transfer_ids) == {"user:alice", "contributor:ctr_b", "unattributed"}
    assert town.economy.balance("pool:py:p0001").posted_nano == 0
    assert town.available("contributor:ctr_b") == settlement.payouts_nano["ctr_b"]
    report = town.ledger.audit()
    assert (report.num_answers, report.num_settlements) == (5, 1)


def test_settling_again_pays_nobody_and_gives_the_first_result(town):
    town.sell("k1")
    first = town.economy.settle(scores(), {"ctr_a": "user:alice"})
    before = town.ledger.checkpoint()
    again = town.economy.settle(scores(scores_nano={"ctr_z": 1}, errors_nano={"ctr_z": 0}), {})
    assert again.replayed
    assert not first.replayed
    assert (again.payouts_nano, again.transfer_ids) == (first.payouts_nano, first.transfer_ids)
    assert town.ledger.checkpoint() == before


def test_settling_again_after_a_restart_pays_nobody(town):
    town.sell("k1")
    first = town.economy.settle(scores(), {})
    town.restart()
    assert town.economy.settle(scores(), {}).transfer_ids == first.transfer_ids
    town.ledger.audit()


def test_an_empty_pool_settles_to_nothing(town):
    settlement = town.economy.settle(scores(), {})
    assert (settlement.pool_nano, settlement.transfer_ids, settlement.replayed) == (0, {}, False)
    assert sum(settlement.shares_ppb.values()) == 10**9
    assert town.ledger.audit().num_settlements == 0


def test_settling_the_current_period_closes_it(town):
    town.sell("k1")
    town.economy.settle(scores(), {})
    assert town.economy.current_period() == "p0002"
    assert town.sell("k2").parts["pool:py:p0002"] == 155
    assert town.economy.settle(scores("p0002"), {}).pool_nano == 155
    town.ledger.audit()


def test_an_answer_that_ends_after_its_period_goes_into_the_next(town):
    late = town.authorize("k1")
    town.sell("k2")
    town.economy.open_period()
    town.economy.settle(scores(), {})
    assert "pool:py:p0002" in town.economy.complete(answer(late)).parts
    town.ledger.audit()


def test_a_pool_hands_out_its_answers_until_it_is_settled(town):
    authorized = town.authorize("k1")
    town.economy.complete(answer(authorized))
    assert town.economy.pools() == [("py", "p0001")]
    (waiting,) = town.economy.pool("py", "p0001").answers
    assert (waiting.prompt_ids, waiting.completion_ids) == ((1,) * 10, (2,) * 7)
    assert (waiting.fee_nano, waiting.pool_nano, waiting.period) == (310, 155, "p0001")
    town.economy.settle(scores(), {})
    settled = town.economy.pool("py", "p0001")
    assert (settled.settled, settled.answers, settled.total_nano) == (True, (), 155)
    assert town.economy.pools() == []
    assert town.economy.complete(answer(authorized)).fee_nano == 310


def test_several_adapters_settle_apart(town):
    from dataclasses import replace

    other = replace(TERMS, adapter="np", adapter_digest="ef" * 32)
    authorized = town.economy.authorize("user:alice", other, 10, 20, "k0")
    town.economy.complete(answer(authorized, adapter="np", adapter_digest="ef" * 32))
    town.sell("k1")
    town.economy.settle(scores(), {})
    assert town.economy.settle(scores(adapter="np"), {}).pool_nano == 155
    assert town.ledger.audit().num_settlements == 2


def test_two_contributors_of_one_account_get_one_transfer(town):
    town.sell("k1")
    settlement = town.economy.settle(scores(), {"ctr_a": "user:x", "ctr_b": "user:x"})
    assert town.available("user:x") == settlement.payouts_nano["ctr_a"] + settlement.payouts_nano["ctr_b"]
    assert len(town.economy.payouts("user:x")) == 1


def test_an_account_that_was_never_paid_has_no_payouts(town):
    """A contributor's opens with the first one."""
    assert town.economy.payouts("contributor:ctr_new") == []
    (head,) = town.economy.payouts_csv("contributor:ctr_new").splitlines()
    assert head.startswith("transfer_id,account,")


def test_a_payout_is_proven_and_explained(town):
    for number in range(3):
        town.sell(f"k{number}")
    name = town.economy.settle(scores(), {}).transfer_ids["contributor:ctr_a"]
    proof = verify_proof(encode_proof(town.ledger.proof(name)), town.ledger.verification_key())
    assert proof.transfer.amount_nano == town.available("contributor:ctr_a")
    assert proof.statement["lineage"] == [
        {"adapter_digest": DIGEST, "datanet": "py-docs", "datanet_version": 1, "row_root": "cd" * 32}
    ]
    text = "\n".join(town.economy.explain(name))
    for part in ("3 answers paid", "py-docs version 1", "score 136 with error 100", "520000000 parts per billion"):
        assert part in text
    assert [payout.transfer_id for payout in town.economy.payouts("contributor:ctr_a")] == [name]


def test_a_fee_is_proven_and_explained(town):
    town.sell("k1")
    (part,) = [entry.transfer.transfer_id for entry in town.ledger.transfers("user:owner")]
    assert verify_proof(town.ledger.proof(part), town.ledger.verification_key()).transfer.amount_nano == 62
    assert "= 0.00000031 OPEN" in "\n".join(town.economy.explain(part))
    with pytest.raises(NotFound):
        town.economy.explain("nothing")


@pytest.mark.parametrize(
    ("wrong", "accounts"),
    [
        ({"scores_nano": {"ctr_a": 1.5}, "errors_nano": {"ctr_a": 1}}, {}),
        ({"scores_nano": {"ctr_a": 1}, "errors_nano": {}}, {}),
        ({"scores_nano": {"ctr_a": 1}, "errors_nano": {"ctr_a": -1}}, {}),
        ({"scores_nano": {"unattributed": 1}, "errors_nano": {"unattributed": 1}}, {}),
        ({"scores_nano": {"Ctr A": 1}, "errors_nano": {"Ctr A": 1}}, {}),
        ({"gain_nano": 0.5}, {}),
        ({"quality": {"lds": 0.5}}, {}),
        ({}, {"ctr_a": "treasury"}),
        ({}, {"ctr_a": "pool:py:p0001"}),
        ({}, {"ctr_a": "nobody"}),
    ],
)
def test_scores_that_can_not_be_settled_change_nothing(town, wrong, accounts):
    town.sell("k1")
    before = town.ledger.checkpoint()
    with pytest.raises(InvalidInput):
        town.economy.settle(scores(**wrong), accounts)
    assert town.ledger.checkpoint() == before
    assert town.economy.current_period() == "p0001"


def test_periods_that_are_none_are_refused(town):
    with pytest.raises(NotFound):
        town.economy.settle(scores("p0002"), {})
    for period in ("", "1", "p00001", "p0000"):
        with pytest.raises((InvalidInput, NotFound)):
            town.economy.pool("py", period)


def test_an_answer_whose_fee_is_too_small_for_a_part_is_under_no_ceiling(tmp_path, clock):
    parameters = Parameters(contributors_ppm=100_000, treasury_ppm=900_000, owner_ppm=0, stakers_ppm=0)
    town = Town(tmp_path, clock, parameters)
    town.economy.grant("user:alice", 1_000_000, "start")
    terms = replace(TERMS, prompt_price_nano=0, completion_price_nano=1)
    for completion in (1, 100):
        authorized = town.economy.authorize("user:alice", terms, 10, 100, f"k{completion}")
        town.economy.complete(answer(authorized, completion=completion))
    assert [one.fee_nano for one in town.economy.pool("py", "p0001").answers] == [100]
    town.economy.settle(scores(ceilings=((10**9, 100),)), {})
    assert town.ledger.audit().num_settlements == 1
    town.close()


@pytest.mark.parametrize(
    ("gain", "said", "unsaid"),
    [
        (10**9, "can owe the data 310 at most: shares are of that", "no ceiling"),
        (2 * 10**8, "can owe the data 62, which is no more than was measured", "at most"),
        (0, "no ceiling: nothing was gained on held-out answers, so the fees count whole", "at most"),
    ],
)
def test_an_explanation_says_what_the_ceiling_did(town, gain, said, unsaid):
    town.sell("k1")
    settlement = town.economy.settle(scores(ceilings=((gain, 310),)), {})
    lines = "\n".join(town.economy.explain(settlement.transfer_ids["contributor:ctr_a"]))
    assert said in lines
    assert unsaid not in lines
