"""What the audit finds of the economy's statements: each lie is named, though the ledger itself let it pass."""

from collections.abc import Callable
from typing import Any

import pytest
from economy_values import TERMS, Town, scores

from openledger.core.errors import Corrupt
from openledger.core.money import NANO_PER_OPEN
from openledger.economy import Parameters
from openledger.ledger import Transfer
from openledger.ledger.governance import VOTE, proposal_id
from openledger.ledger.refunds import refund_statement, refund_transfers
from openledger.ledger.register import carrier
from openledger.ledger.stakes import REWARD, STAKE
from openledger.ledger.vesting import RELEASE
from openledger.ledger.withdrawals import CLAIMS, claims_transfer

OPEN = NANO_PER_OPEN
P = Parameters()
ADAPTER = "adapter:py"
DAY_MS = 24 * 60 * 60_000


@pytest.fixture
def busy(town, clock):
    """Bob and carol have staked, an answer was sold and its period closed, a proposal is being voted on."""
    for name, amount in (("bob", 600), ("carol", 300)):
        town.economy.grant(f"user:{name}", 2 * amount * OPEN, name)
        town.economy.stake(f"user:{name}", ADAPTER, amount * OPEN, "s1")
    clock.advance(1)
    town.economy.propose("user:bob", "t", "", {"kind": "text"}, "p1")
    clock.advance(P.vote_delay_ms + 1)
    town.sell("k1")
    return town


def found(town: Town) -> str:
    with pytest.raises(Corrupt) as caught:
        town.ledger.audit()
    return caught.value.code


def write(town: Town, form: str, moves: list[tuple[str, str, int, str]], **fields: Any) -> None:
    """A statement of the register as a forger writes it: in the next place, with the moves that he wants."""
    state = town.economy._register.state
    number, now_ms = fields.pop("number", state.number), fields.pop("time_ms", town.clock.now_ms())
    statement = {"format": form, "number": number, "time_ms": now_ms, **fields}
    transfers = [
        Transfer(transfer_id=f"forged.{place}", debit=debit, credit=credit, amount_nano=amount, code=code)
        for place, (debit, credit, amount, code) in enumerate(moves)
    ]
    results = town.ledger.commit([*carrier(number), *transfers], statement)
    assert set(results) == {"created"}, results


def test_the_busy_town_itself_is_clean(busy):
    busy.ledger.audit()


FORGED: dict[str, tuple[Callable[[Town], None], str]] = {
    "a vote with power that nobody had": (
        lambda town: write(town, VOTE, [], proposal=proposal_id(4), voter="user:carol", support="for",
                           power_nano=600 * OPEN),
        "wrong_power",
    ),
    "a vote by somebody without stake": (
        lambda town: write(town, VOTE, [], proposal=proposal_id(4), voter="user:eve", support="for", power_nano=OPEN),
        "no_power_at_snapshot",
    ),
    "stake that nobody paid for": (
        lambda town: write(town, STAKE, [], account="user:carol", object=ADAPTER, amount_nano=OPEN, key="k"),
        "moves_differ",
    ),
    "a statement in a later place": (
        lambda town: write(town, STAKE, [], account="user:carol", object=ADAPTER, amount_nano=OPEN, key="k", number=9),
        "place_taken",
    ),
    "a statement from another time": (
        lambda town: write(town, VOTE, [], proposal=proposal_id(4), voter="user:carol", support="for",
                           power_nano=300 * OPEN, time_ms=town.clock.now_ms() + DAY_MS),
        "wrong_time",
    ),
    "a statement from before the last one": (
        lambda town: write(town, VOTE, [], proposal=proposal_id(4), voter="user:carol", support="for",
                           power_nano=300 * OPEN, time_ms=5),
        "clock_went_backwards",
    ),
    "a release that no genesis planned": (
        lambda town: write(town, RELEASE, [], bucket="team", month=1, amount_nano=OPEN),
        "bucket_not_found",
    ),
    "a statement with more in it": (
        lambda town: write(town, RELEASE, [], bucket="team", month=1, amount_nano=OPEN, note="x"),
        "malformed_statement",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_statement_is_named(busy, name):
    forge, code = FORGED[name]
    forge(busy)
    assert found(busy) == code


@pytest.mark.parametrize(
    ("debit", "credit", "code"),
    [
        (f"holds:stake:{ADAPTER}", "user:bob", "unexplained_move"),
        ("stakers:py:p0001", "user:bob", "unexplained_move"),
        ("user:bob", "holds:slash:9", "unexplained_move"),
        ("user:bob", "holds:register", "unexplained_move"),
        ("user:bob", "holds:claims", "unexplained_withdrawal"),
        ("user:bob", "treasury:community", "unexplained_move"),
    ],
)
def test_money_of_stake_votes_or_withdrawals_does_not_move_unsaid(busy, debit, credit, code):
    busy.economy._register.open_accounts(debit, credit)
    moved = Transfer(transfer_id="quiet", debit=debit, credit=credit, amount_nano=1, code="quiet")
    assert busy.ledger.commit([moved]) == ["created"]
    assert found(busy) == code


def closed(town: Town) -> dict[str, Any]:
    """The reward that is due for p0001, before it is paid."""
    town.clock.advance(DAY_MS)
    town.economy._stakes.reward_due = lambda: 0  # the forger is quicker
    town.economy.open_period()
    book = town.economy._register.state
    weights = book.stakes.weights("py", [TERMS.datanet], book.parameters.periods["p0001"], P.datanet_stake_ppm)
    return {"adapter": "py", "period": "p0001", "datanets": [TERMS.datanet], "pool_nano": 62, "weights": weights,
            "payouts_nano": {"user:bob": 41, "user:carol": 21}}  # fmt: skip


def test_a_reward_by_the_rule_is_clean_and_any_other_is_named(busy):
    due = closed(busy)
    moves = [("stakers:py:p0001", name, amount, "stake_reward") for name, amount in due["payouts_nano"].items()]
    write(busy, REWARD, [*moves[:1], ("stakers:py:p0001", "user:carol", 20, "stake_reward")],
          **{**due, "payouts_nano": {"user:bob": 41, "user:carol": 20}})  # fmt: skip
    assert found(busy) == "wrong_rewards"


def test_a_reward_of_less_than_answers_paid_is_named(busy):
    due = {**closed(busy), "pool_nano": 60, "payouts_nano": {"user:bob": 40, "user:carol": 20}}
    moves = [("stakers:py:p0001", name, amount, "stake_reward") for name, amount in due["payouts_nano"].items()]
    write(busy, REWARD, moves, **due)
    assert found(busy) == "wrong_rewards"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"split": {"contributors": 1, "owner": 499_999, "stakers": 400_000, "treasury": 100_000}}, "wrong_split"),
        ({"parameters": 99}, "wrong_version"),
        ({"minimum_fee_nano": 2}, "wrong_split"),
    ],
)
def test_a_fee_divided_otherwise_than_its_version_says_is_named(busy, monkeypatch, change, code):
    from openledger.core.money import split
    from openledger.economy import sales

    honest = sales.usage_statement

    def forged(*arguments: Any) -> dict[str, Any]:
        told = {**honest(*arguments), **change}
        return {**told, "parts_nano": split(told["fee_nano"], told["split"])}

    monkeypatch.setattr(sales, "usage_statement", forged)
    busy.sell("k2")
    assert found(busy) == code


def test_a_pool_settled_under_another_version_is_named(busy, monkeypatch):
    other = Parameters(version=9, use_ppm=500_000, improvement_ppm=500_000)
    monkeypatch.setattr(type(busy.economy), "parameters", lambda self, period="": other if period else P)
    busy.economy.settle(scores(), {})
    assert found(busy) == "wrong_version"


@pytest.mark.parametrize(
    ("taken", "code"),
    [
        ({"treasury": 31, "pool:py:p0001": 155, "stakers:py:p0001": 62, "user:owner": 62}, ""),
        ({"treasury": 32, "pool:py:p0001": 154, "stakers:py:p0001": 62, "user:owner": 62}, "wrong_refund"),
        ({"treasury": 29, "pool:py:p0001": 155, "stakers:py:p0001": 62, "user:owner": 64}, "wrong_refund"),
        ({"treasury": 30, "pool:py:p0001": 155, "stakers:py:p0001": 62, "user:owner": 62}, "wrong_refund"),
    ],
)
def test_a_refund_that_takes_otherwise_is_named(busy, taken, code):
    if code:
        busy.economy._register.open_accounts("treasury")
        fund = Transfer(transfer_id="fund", debit="user:bob", credit="treasury", amount_nano=99, code="gift")
        busy.ledger.commit([fund])
    (usage,) = busy.ledger.usages("pool:py:p0001")
    owed = {"pool:py:p0001": 155, "stakers:py:p0001": 62, "treasury": 31, "user:owner": 62}
    statement = refund_statement(usage, owed, taken, "why")
    results = busy.ledger.commit(refund_transfers(statement), statement)
    if set(results) != {"created"}:
        assert code == "wrong_refund"  # the owner hasn't that much: the ledger itself refuses
        return
    if code:
        assert found(busy) == code
    else:
        busy.ledger.audit()


def test_a_second_refund_of_one_answer_is_named(busy):
    (usage,) = busy.ledger.usages("pool:py:p0001")
    busy.economy.refund(usage["answer_id"], "why")
    again = refund_statement(usage, {"treasury": 310}, {"treasury": 310}, "twice")
    fund = Transfer(transfer_id="fund", debit="user:bob", credit="treasury", amount_nano=310, code="gift")
    forged = [
        Transfer(transfer_id="again", debit="treasury", credit="user:alice", amount_nano=310, code="refund",
                 reference=usage["answer_id"])
    ]  # fmt: skip
    busy.ledger.commit([fund])
    assert busy.ledger.commit(forged, again) == ["created"]
    assert found(busy) == "refund_without_answer"


def test_a_round_that_leaves_a_withdrawal_out_is_named(busy):
    for key in ("w1", "w2"):
        busy.economy.withdraw("user:bob", OPEN, "0x" + "ab" * 20, key)
    waiting = busy.economy._withdrawals.waiting()
    statement = {"format": CLAIMS, "round": 1, "withdrawals": waiting[:1]}
    busy.economy._register.open_accounts("holds:claims:1")
    assert busy.ledger.commit([claims_transfer(statement)], statement) == ["created"]
    assert found(busy) == "wrong_claims"
