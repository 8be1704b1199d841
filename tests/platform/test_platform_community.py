"""What reviewers and owners decide, over a real economy and Datanets, also after lost answers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from house import ADA, ADA_ID, ROWS, House, Remote

from openledger.core.errors import Unavailable
from openledger.core.signed import contribution_id
from openledger.core.values import RowDraft
from openledger.datanets.appeals import appeal_of
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.removal import sign_withdrawal
from openledger.economy import Parameters
from openledger.platform.desk import Desk, is_spam

PRIVATE = RowDraft(
    prompt="Who answers letters?", completion="Send all letters to the reader at reader@mail.net please."
)
LETTER = sign_contribution(ADA, "docs", [PRIVATE], "1")
ALL_DRAWN = Parameters(review_low_ppm=10**6, review_high_ppm=10**6)


@pytest.fixture
def house(tmp_path: Path):
    made = House(tmp_path, ALL_DRAWN)
    yield made
    made.end()


def standing_ppm(house: House) -> int:
    return int(house.economy.reputation(ADA_ID, "docs")["ppm"])


@pytest.mark.parametrize("accept", [True, False])
@pytest.mark.parametrize("lost", ["", "review", "untold_reviews", "mark_review_told", "record_outcomes"])
def test_a_review_counts_once_whichever_answer_was_lost(house, accept, lost):
    row_id = house.rows.contribute(LETTER).verdicts[0].row_id
    first = standing_ppm(house)
    (house._economy if lost == "record_outcomes" else house._datanets).lost.add(lost)
    for _ in range(2):
        try:
            asyncio.run(house.review("user:owner", "docs", row_id, accept=accept))
        except Unavailable:
            assert lost
    outcome = {"accepted" if accept else "spam": 1}
    told = standing_ppm(house)
    assert (told > first) == accept
    assert (told < first) == (not accept)
    assert house.economy.record_outcomes(ADA_ID, "docs", outcome, f"review:{row_id}") == told, "it was counted before"
    assert house.rows.untold_reviews() == []
    assert [one["row_id"] for one in house.economy.spot_checks("docs")] == ([row_id] if accept else [])


def test_a_review_that_decides_nothing_counts_nothing(house):
    house.rows.contribute(LETTER)
    item = house.rows.add_known_answer("docs", PRIVATE, "user:owner", accept=True)
    first = standing_ppm(house)
    asyncio.run(house.review("user:owner", "docs", item, accept=True))
    assert (standing_ppm(house), house.economy.spot_checks("docs")) == (first, [])


@pytest.mark.parametrize("accept", [True, False])
def test_what_was_answered_first_is_answered_again(house, accept):
    """So the deposit and the reputation of a retry rest on what the gate said, too."""
    first = house.rows.contribute(LETTER)
    row_id, identifier = first.verdicts[0].row_id, contribution_id(LETTER)
    asyncio.run(house.review("user:owner", "docs", row_id, accept=accept))
    assert house.rows.contribute(LETTER) == house.rows.judged(identifier) == first
    assert house.rows.preview(LETTER) == first.verdicts
    now = house.rows.receipt("docs", identifier)
    assert now == house.rows.standing(identifier)
    assert now.verdicts[0].outcome == ("accept" if accept else "reject")
    assert not is_spam(house.rows.judged(identifier).verdicts)


def test_an_appeal_after_a_review_leaves_the_first_answer(house):
    first = house.rows.contribute(LETTER)
    row_id = first.verdicts[0].row_id
    house.rows.review("docs", row_id, "user:owner", accept=False)
    house.rows.hold_appeal(appeal_of(ADA, LETTER, 0, "it is a mailing list"))
    house.rows.close_appeal(row_id, "overturned")
    assert house.rows.contribute(LETTER) == first
    assert house.rows.receipt("docs", first.contribution_id).verdicts[0].outcome == "accept"


class Distant(Remote):
    """Others get their turn on the way to the actor, and on the way back."""

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)

        class Call:
            @staticmethod
            async def remote(*arguments: Any, **more: Any) -> Any:
                await asyncio.sleep(0)
                result = await call.remote(*arguments, **more)
                await asyncio.sleep(0)
                return result

        return Call


def test_two_changes_of_terms_at_a_time_both_hold(house):
    house._datanets = Distant(house.rows)

    async def change() -> None:
        await asyncio.gather(
            house.set_terms("user:owner", "docs", {"licence": "withdrawn"}),
            house.set_terms("user:owner", "docs", {"description": "What functions do, in a line or two"}),
        )

    asyncio.run(change())
    now = house.rows.terms("docs")
    assert (now.licence, now.description) == ("withdrawn", "What functions do, in a line or two")


class TestADeposit:
    """Of contributions that wait for reviewers; 50 nano-OPEN."""

    PRIVATE = tuple(
        RowDraft(prompt=f"Who keeps {name}?", completion=f"{text} {name}@mail.net please.", source="pack")
        for name, text in (
            ("alpha", "Send letters on sorting and merging lists to"),
            ("gamma", "Whoever finds broken archives may tell the curator,"),
            ("delta", "Ask for keys, schedules or parsers at the desk of"),
        )
    )  # fmt: skip

    @pytest.fixture
    def house(self, tmp_path):
        made = House(tmp_path, Parameters(contribution_deposit_nano=50))
        made.economy.grant(f"contributor:{ADA_ID}", 50, "start")
        yield made
        made.end()

    def sent(self, house, drafts=PRIVATE):
        """As a cluster does it: the deposit first."""
        contribution = sign_contribution(ADA, "docs", drafts, "0")
        identifier = contribution_id(contribution)

        async def send():
            return house.rows.contribute(contribution)

        async def judged():
            return house.rows.judged(identifier)

        async def ask(method, *arguments):
            return getattr(house.economy, method)(*arguments)

        return asyncio.run(Desk(ask).deposited(contribution, send, judged))

    def available(self, house):
        return house.economy.balance(f"contributor:{ADA_ID}").available_nano

    def review(self, house, verdict, accept):
        asyncio.run(house.review("user:owner", "docs", verdict.row_id, accept=accept))

    def test_waits_for_reviewers_and_is_lost_where_they_refuse_more_than_half(self, house):
        first, second, third = self.sent(house).verdicts
        assert (first.outcome, self.available(house)) == ("review", 0)
        self.review(house, first, False)
        assert self.available(house) == 0
        self.review(house, second, False)
        assert (self.available(house), house.economy.undecided_deposits()) == (0, [])
        assert house.economy.balance("treasury").available_nano == 50
        self.review(house, third, True)
        assert self.available(house) == 0
        house.ledger.audit()

    def test_comes_back_as_soon_as_it_cant_be_spam_any_more(self, house):
        first, second, _ = self.sent(house).verdicts
        self.review(house, first, True)
        assert self.available(house) == 0
        self.review(house, second, True)
        assert self.available(house) == 50
        house.ledger.audit()

    def test_comes_back_where_the_rows_are_taken_back_before_anybody_looked(self, house):
        verdicts = self.sent(house).verdicts
        house.rows.withdraw(sign_withdrawal(ADA, "docs", [one.row_id for one in verdicts], "0"))
        asyncio.run(house._decide_deposits())
        assert self.available(house) == 50

    def test_does_not_wait_where_reviewers_cant_make_it_spam(self, house):
        self.sent(house, (*ROWS, self.PRIVATE[0]))
        assert self.available(house) == 50

    def test_that_a_process_left_undecided_is_decided_by_the_clock(self, house):
        contribution = sign_contribution(ADA, "docs", ROWS, "0")
        house.economy.deposit(f"contributor:{ADA_ID}", contribution_id(contribution))
        asyncio.run(house._decide_deposits())
        assert self.available(house) == 0, "it may still come"
        house.rows.contribute(contribution)
        asyncio.run(house._decide_deposits())
        assert self.available(house) == 50
