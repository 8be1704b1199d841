"""Reviews: drawn by reputation, once for each contribution; what is found bad lowers it, once."""

import pytest

from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound
from openledger.core.money import NANO_PER_OPEN
from openledger.economy.spot_checks import FIRST_LOOK_MS, SpotCheckBook

ROWS = [f"row_{number}" for number in range(1000)]


def drawn(town):
    return [one["row_id"] for one in town.economy.spot_checks("py-docs")]


def draw(town, name="ctb_1", contributor="ctr_a", rows=ROWS):
    town.economy.draw_spot_checks(contributor, "py-docs", name, rows)


def test_a_new_keys_rows_are_reviewed_much_and_a_good_ones_little(town):
    draw(town)
    assert 380 < len(drawn(town)) < 530  # 0.452 of them; five standard deviations are 79
    town.economy.record_outcomes("ctr_b", "py-docs", {"accepted": 400}, "ctb_0")
    draw(town, "ctb_2", "ctr_b", [f"good_{row}" for row in ROWS])
    assert len([row for row in drawn(town) if row.startswith("good_")]) < 60  # 0.02 of them


def test_a_contribution_is_drawn_once(town):
    draw(town)
    before = drawn(town)
    for _ in range(5):
        draw(town)
    town.restart()
    assert drawn(town) == before


def test_each_row_is_drawn_by_a_die_of_its_own(town):
    dice = iter([0, 451_999, 452_000, 999_999])
    town.economy._spot_checks = SpotCheckBook(town.economy._db, lambda _: next(dice))
    draw(town, rows=ROWS[:4])
    assert drawn(town) == ["row_0", "row_1"]


@pytest.fixture
def reviewed(town):
    town.economy._spot_checks = SpotCheckBook(town.economy._db, lambda _: 0)
    draw(town, rows=ROWS[:3])
    return town


def find(town, finding, row="row_0", account="user:owner"):
    return town.economy.spot_check(account, "py-docs", row, finding)


@pytest.mark.parametrize(("finding", "ppm"), [("good", 100_000), ("spam", 95_000), ("duplicate", 95_000)])
def test_what_is_found_bad_lowers_the_reputation_once(reviewed, finding, ppm):
    for _ in range(2):
        assert find(reviewed, finding)["finding"] == finding
    assert drawn(reviewed) == ["row_1", "row_2"]
    assert reviewed.economy.reputation("ctr_a", "py-docs")["ppm"] == ppm


@pytest.mark.parametrize(
    ("finding", "row", "account", "error", "code"),
    [
        ("fine", "row_0", "user:owner", InvalidInput, "invalid_finding"),
        ("", "row_0", "user:owner", InvalidInput, "invalid_finding"),
        ("good", "row_9", "user:owner", NotFound, "spot_check_not_found"),
        ("spam", "row_0", "contributor:ctr_a", Forbidden, "not_a_second_party"),
        ("spam", "row_1", "user:owner", Conflict, "spot_check_closed"),
    ],
)
def test_a_review_that_can_not_be_changes_nothing(reviewed, finding, row, account, error, code):
    find(reviewed, "good", "row_1")
    with pytest.raises(error) as caught:
        find(reviewed, finding, row, account)
    assert (caught.value.code, drawn(reviewed)) == (code, ["row_0", "row_2"])
    assert reviewed.economy.reputation("ctr_a", "py-docs")["ppm"] == 100_000


class TestAFirstWithdrawal:
    ALICES = "0x" + "ab" * 20

    @pytest.fixture
    def earned(self, reviewed):
        for name in ("contributor:ctr_a", "contributor:ctr_b"):
            reviewed.economy.grant(name, 20 * NANO_PER_OPEN, name)
        return reviewed

    def take(self, town, account="contributor:ctr_a", key="w1"):
        return town.economy.withdraw(account, 2 * NANO_PER_OPEN, self.ALICES, key)

    def refused(self, town, **options):
        before = town.economy.balance("contributor:ctr_a")
        with pytest.raises(Conflict) as caught:
            self.take(town, **options)
        assert caught.value.code == "spot_checks_open"
        assert town.economy.balance("contributor:ctr_a") == before
        return caught.value.fix

    def test_waits_until_the_rows_were_looked_at_and_nobody_elses_does(self, earned):
        self.refused(earned)
        self.take(earned, account="contributor:ctr_b")
        for row in ROWS[:2]:
            find(earned, "good", row)
        earned.restart()
        self.refused(earned)
        find(earned, "spam", "row_2")
        assert self.take(earned)["amount_nano"] == 2 * NANO_PER_OPEN
        earned.ledger.audit()

    def test_waits_three_days_from_the_first_draw_whatever_is_drawn_since(self, earned):
        assert "openledger spot-checks list" in self.refused(earned)
        earned.clock.advance(FIRST_LOOK_MS - 1)
        draw(earned, "ctb_2", rows=["later"])
        self.refused(earned)
        earned.clock.advance(1)
        self.take(earned)

    def test_is_the_only_one_that_waits_and_the_same_key_gives_it_again(self, earned):
        for row in ROWS[:3]:
            find(earned, "good", row)
        first = self.take(earned)
        draw(earned, "ctb_2", rows=["later"])
        assert self.take(earned) == first
        earned.restart()
        self.take(earned, key="w2")

    def test_that_waits_leaves_the_money_where_it_can_be_spent(self, earned):
        self.refused(earned)
        assert earned.economy.balance("contributor:ctr_a").available_nano == 20 * NANO_PER_OPEN
