"""A contribution's deposit, from the gate's verdicts: held meanwhile, kept for spam, given back for the rest."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from economy_values import Town

from openledger.core.clock import ManualClock
from openledger.core.errors import InvalidInput, NotFound, TooLarge, Unavailable
from openledger.core.signed import contribution_id
from openledger.core.signing import SigningKey
from openledger.core.values import ContributionReceipt, RowDraft, Verdict
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.docstrings import package_rows
from openledger.datanets.shard import ShardHost
from openledger.economy import Parameters
from openledger.economy.spot_checks import SpotCheckBook
from openledger.platform.desk import Desk

KEY = SigningKey(b"c" * 32)
DRAFTS = [RowDraft(prompt=f"What is {n}?", completion=f"It is the number {n}.", source="s") for n in range(4)]
SIGNED = sign_contribution(KEY, "py-docs", DRAFTS, "0")
ACCOUNT = f"contributor:{SIGNED.contributor_id}"


@pytest.fixture
def town(tmp_path: Path):
    made = Town(tmp_path, ManualClock(), Parameters(contribution_deposit_nano=50))
    made.economy.grant(ACCOUNT, 1000, "start")
    yield made
    made.close()


def gate(town: Town, *reasons: str | None):
    """A gate that accepts where there is no reason, and says meanwhile what the contributor can spend."""
    seen = []

    async def send() -> ContributionReceipt:
        seen.append(town.available(ACCOUNT))
        verdicts = tuple(
            Verdict(row_id=f"row_{n}", ordinal=n, outcome="reject" if reason else "accept",
                    reasons=(reason,) if reason else ())
            for n, reason in enumerate(reasons)
        )  # fmt: skip
        return ContributionReceipt(
            contribution_id=contribution_id(SIGNED), datanet="py-docs", contributor_id=SIGNED.contributor_id,
            verdicts=verdicts,
        )  # fmt: skip

    return send, seen


async def never() -> None:
    """Of a contribution that the gate never judged."""


def once_sent(judged):
    """What the gate has said: nothing when it is asked before the rows are sent, `judged` from then on."""
    answers = [never]

    async def said() -> ContributionReceipt | None:
        return await (answers.pop() if answers else judged)()

    return said


@pytest.mark.parametrize(
    ("reasons", "left"),
    [
        ((None, None, "noise", "noise"), 1000),
        ((None, "noise", "noise", "repetition"), 950),
        (("wrong_licence",) * 4, 1000),
        (("wrong_type", "unknown_column", "wrong_language", None), 1000),  # in the wrong place, and no spam
        (("exact_duplicate",) * 4, 1000),  # a copy may be an accident; it pays nothing anyway
    ],
)
async def test_more_than_half_spam_loses_the_deposit_once(town: Town, reasons, left):
    send, seen = gate(town, *reasons)
    for _ in range(2):
        await town.desk().deposited(SIGNED, send, never)
    assert (seen[0], town.available(ACCOUNT)) == (950, left)
    town.ledger.audit()


async def test_what_the_gate_said_counts_for_the_reputation_once(town: Town):
    send, _ = gate(town, None, None, None, "noise")
    for _ in range(2):
        await town.desk().deposited(SIGNED, send, never)
    assert town.economy.reputation(SIGNED.contributor_id, "py-docs")["ppm"] == 216_943


async def test_accepted_rows_are_drawn_for_a_review_and_rejected_ones_are_not(town: Town):
    town.economy._spot_checks = SpotCheckBook(town.economy._db, lambda _: 0)
    send, _ = gate(town, None, "noise", None, "exact_duplicate")
    for _ in range(2):
        await town.desk().deposited(SIGNED, send, never)
    told = town.economy.spot_checks("py-docs")
    assert [(one["row_id"], one["contributor"]) for one in told] == [
        (name, SIGNED.contributor_id) for name in ("row_0", "row_2")
    ]


async def test_more_rows_than_the_quota_never_reach_the_gate(tmp_path: Path):
    small = Town(tmp_path, ManualClock(), Parameters(quota_low_rows=3, quota_high_rows=3, contribution_deposit_nano=50))
    small.economy.grant(ACCOUNT, 1000, "start")
    send, seen = gate(small, None, None, None, None)
    with pytest.raises(TooLarge) as caught:
        await small.desk().deposited(SIGNED, send, never)
    assert (caught.value.code, seen, small.available(ACCOUNT)) == ("quota_exceeded", [], 1000)
    three = sign_contribution(KEY, "py-docs", DRAFTS[:3], "0")
    await small.desk().deposited(three, send, never)
    assert len(seen) == 1
    small.close()


async def test_what_the_gate_knows_is_answered_without_quota_or_deposit(tmp_path: Path):
    """It came before there were any: sent again it counts nothing, and nothing is held."""
    small = Town(tmp_path, ManualClock(), Parameters(quota_low_rows=3, quota_high_rows=3, contribution_deposit_nano=50))
    small.economy.grant(ACCOUNT, 1000, "start")
    send, seen = gate(small, *["noise"] * 4)
    receipt = await small.desk().deposited(SIGNED, send, send)
    assert len(receipt.verdicts) == 4
    assert (set(seen), small.available(ACCOUNT)) == ({1000}, 1000)
    three = sign_contribution(KEY, "py-docs", DRAFTS[:3], "0")
    await small.desk().deposited(three, send, never)
    small.close()


async def test_where_nobody_can_tell_whether_the_gate_knows_it_nothing_is_done(town: Town):
    send, seen = gate(town, None)
    with pytest.raises(Unavailable):
        await town.desk().deposited(SIGNED, send, failing(AWAY))
    assert (seen, town.available(ACCOUNT), town.economy.balance(ACCOUNT).posted_nano) == ([], 1000, 1000)


async def test_rows_that_the_gate_never_judged_leave_the_quota_free(tmp_path: Path):
    small = Town(tmp_path, ManualClock(), Parameters(quota_low_rows=4, quota_high_rows=4))
    small.economy.grant(ACCOUNT, 1000, "start")
    other = sign_contribution(KEY, "py-docs", DRAFTS, "1")
    with pytest.raises(RuntimeError):
        await small.desk().deposited(other, failing(RuntimeError("a defect")), never)
    send, seen = gate(small, None, None, None, None)
    with pytest.raises(Unavailable):
        await small.desk().deposited(SIGNED, failing(AWAY), never)
    await small.desk().deposited(SIGNED, send, never)
    assert len(seen) == 1
    with pytest.raises(TooLarge):
        await small.desk().deposited(other, send, never)
    small.close()


async def test_where_the_gate_refuses_all_of_it_the_deposit_comes_back(town: Town):
    async def send() -> ContributionReceipt:
        raise NotFound("no such Datanet", code="unknown_datanet")

    with pytest.raises(NotFound):
        await town.desk().deposited(SIGNED, send, never)
    assert town.available(ACCOUNT) == 1000


async def test_spam_that_was_refused_before_the_gate_once_loses_its_deposit_all_the_same(town: Town):
    with pytest.raises(NotFound):
        await town.desk().deposited(SIGNED, failing(NotFound("no such Datanet", code="unknown_datanet")), never)
    send, seen = gate(town, *["noise"] * 4)
    await town.desk().deposited(SIGNED, send, never)
    assert (seen, town.available(ACCOUNT)) == ([950], 950)
    town.ledger.audit()


def failing(error: Exception):
    async def send() -> ContributionReceipt:
        raise error

    return send


AWAY = Unavailable("no answer", code="actor_unavailable")


@pytest.mark.parametrize("error", [AWAY, RuntimeError("the answer was lost")])
@pytest.mark.parametrize(("reason", "left"), [("noise", 950), (None, 1000)])
async def test_where_the_answer_is_lost_the_deposit_goes_by_what_the_gate_said(town: Town, error, reason, left):
    judged, _ = gate(town, *[reason] * 4)
    with pytest.raises(type(error)):
        await town.desk().deposited(SIGNED, failing(error), once_sent(judged))
    assert (town.available(ACCOUNT), town.economy.balance(ACCOUNT).posted_nano) == (left, left)
    town.ledger.audit()


async def test_where_storage_is_away_the_deposit_waits_for_the_verdict(town: Town):
    with pytest.raises(Unavailable):
        await town.desk().deposited(SIGNED, failing(AWAY), never)
    assert (town.available(ACCOUNT), town.economy.balance(ACCOUNT).posted_nano) == (950, 1000)
    send, _ = gate(town, *["noise"] * 4)
    await town.desk().deposited(SIGNED, send, never)
    assert (town.available(ACCOUNT), town.economy.balance(ACCOUNT).posted_nano) == (950, 950)


async def test_an_error_of_nobodys_before_the_gate_gives_the_deposit_back(town: Town):
    with pytest.raises(RuntimeError):
        await town.desk().deposited(SIGNED, failing(RuntimeError("a defect")), never)
    assert town.available(ACCOUNT) == 1000


async def test_where_nobody_can_tell_what_the_gate_said_the_first_error_is_told(town: Town):
    with pytest.raises(RuntimeError, match="a defect"):
        await town.desk().deposited(SIGNED, failing(RuntimeError("a defect")), once_sent(failing(AWAY)))
    assert (town.available(ACCOUNT), town.economy.balance(ACCOUNT).posted_nano) == (950, 1000)


async def test_nobody_has_anothers_deposit_held(town: Town):
    from dataclasses import replace

    send, seen = gate(town, None)
    with pytest.raises(InvalidInput) as caught:
        await town.desk().deposited(replace(SIGNED, nonce="1"), send, never)
    assert (caught.value.code, seen) == ("invalid_signature", [])


async def test_a_first_contributor_without_a_balance_has_every_verdict_at_once(tmp_path: Path, town: Town):
    datanets = Datanets(tmp_path / "rows", [ShardHost(tmp_path / "rows" / "shard-0")], ManualClock())
    datanets.create("py-docs", "What Python does", "user:owner")
    rows = [RowDraft(prompt=row.prompt, completion=row.completion, source=row.source) for row in package_rows("json")]
    rows += [RowDraft(prompt=row.prompt, completion=row.completion) for row in package_rows("email")][: 100 - len(rows)]
    contribution = sign_contribution(SigningKey(b"n" * 32), "py-docs", rows, "0")

    async def send() -> ContributionReceipt:
        return datanets.contribute(contribution)

    receipt = await town.desk().deposited(contribution, send, never)
    outcomes = [verdict.outcome for verdict in receipt.verdicts]
    assert (len(outcomes), outcomes.count("review")) == (100, 0)
    assert datanets.publish("py-docs").num_rows == outcomes.count("accept") >= 95, "nobody had to look at them"
    account = f"contributor:{contribution.contributor_id}"
    assert account not in {balance.account_id for balance in town.ledger.balances() if balance.posted_nano}
    datanets.close()


async def test_nobody_is_answered_before_what_must_be_restored_is() -> None:
    tries = [AWAY, RuntimeError("a defect")]

    async def restore() -> None:
        if tries:
            raise tries.pop(0)

    desk = Desk(failing(AWAY), restore=restore)
    with pytest.raises(RuntimeError, match="a defect"):
        await desk.make_ready(pause_s=0.0)
    await desk.make_ready(pause_s=0.0)
    assert tries == []


async def test_each_step_is_taken_whichever_of_the_others_fails() -> None:
    taken: list[str] = []

    def step(name: str) -> Callable[[], Awaitable[None]]:
        async def take() -> None:
            taken.append(name)
            raise RuntimeError(name)

        return take

    desk = Desk(failing(AWAY), (step("removals"), step("panels")), restore=step("keys"))
    keeping = asyncio.create_task(desk.keep_time(60.0))
    for _ in range(10):
        await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert taken == ["keys", "removals", "panels"]
