"""A backup that put back only the ledger, or only economy.db: of what each book keeps beside the log, no nano-OPEN is
lost, doubled or made up."""

from dataclasses import replace

import pytest
from economy_values import TERMS, Town, answer, kill_at, put_back, put_back_again, scores
from test_economy_appeals import ACCOUNT, JUDGED, appeal, decision, name_reviewer

from openledger.core.errors import Conflict, InsufficientFunds
from openledger.core.money import NANO_PER_OPEN, Unit
from openledger.economy import Parameters
from openledger.economy.disputes import DisputeBook
from openledger.economy.pricing import usage_statement
from openledger.economy.settlement import payout_id
from openledger.economy.staking import StakeBook
from openledger.ledger import Ledger
from openledger.ledger.deposits import hold_id, withheld_id

OPEN = NANO_PER_OPEN
DAY_MS = 24 * 60 * 60_000
ADDRESS, OTHER = "0x" + "ab" * 20, "0x" + "cd" * 20
BOTH = pytest.mark.parametrize("file", ["ledger.db", "economy.db"])


@pytest.fixture
def rich(town):
    """Bob has 20 OPEN, the contributor ctr_a 1."""
    town.economy.grant("user:bob", 20 * OPEN, "bob")
    town.economy.grant("contributor:ctr_a", OPEN, "ctr_a")
    return town


class TestSales:
    def test_a_request_that_is_sent_again_is_not_sold_again(self, town):
        with put_back(town, "economy.db"):
            sold = town.sell("k1")
        again = town.authorize("k1")
        assert again.answer_id == sold.answer_id
        with pytest.raises(Conflict) as caught:
            town.economy.completed(again.answer_id)
        assert caught.value.code == "answer_not_kept"
        assert (town.available(), town.economy.balance("user:alice").debits_pending_nano) == (1_000_000 - 310, 0)
        assert town.economy.pool("py", "p0001").total_nano == 155
        town.ledger.audit()

    @pytest.mark.parametrize("expires", [False, True])
    def test_nor_is_one_whose_first_hold_an_older_journal_still_has(self, town, expires):
        first = town.authorize("k1")
        with put_back(town, "economy.db"):
            town.economy.cancel(first.answer_id)
            sold = town.sell("k1")
        if expires:
            town.clock.advance(DAY_MS)
        assert town.authorize("k1").answer_id == sold.answer_id
        town.economy.cancel(first.answer_id)
        assert town.authorize("k1").answer_id == sold.answer_id
        assert (town.available(), town.economy.balance("user:alice").debits_pending_nano) == (1_000_000 - 310, 0)
        town.ledger.audit()

    def test_another_key_or_another_account_is_sold(self, rich):
        with put_back(rich, "economy.db"):
            sold = rich.sell("k1")
        assert rich.authorize("k2").answer_id != sold.answer_id
        assert rich.authorize("k1", account="user:bob").answer_id != sold.answer_id

    def test_the_log_says_the_key_to_nobody(self, town):
        sold = [town.sell("k1"), town.sell("k2")]
        told = [town.ledger.batch(town.ledger.find(f"{one.answer_id}.fee").seq).statement["request"] for one in sold]
        assert len(set(told)) == 2
        assert all(len(tag) == 64 and "k1" not in tag for tag in told)

    def test_a_sale_of_before_keys_were_in_the_log_is_read_back_without_one(self, town, monkeypatch):
        monkeypatch.setattr("openledger.economy.sales.usage_statement", _without_request)
        with put_back(town, "economy.db"):
            sold = town.sell("k1")
        assert town.economy.pool("py", "p0001").total_nano == 155
        assert town.authorize("k1").answer_id != sold.answer_id


def _without_request(metered, *given):
    return usage_statement(replace(metered, request=""), *given)


class TestGrants:
    @BOTH
    def test_the_same_key_gives_once(self, town, file):
        with put_back(town, file):
            town.economy.grant("user:bob", 5, "bob")
        town.economy.grant("user:bob", 5, "bob")
        assert town.available("user:bob") == 5
        town.ledger.audit()


class TestStake:
    @pytest.fixture
    def staked(self, rich):
        rich.economy.stake("user:bob", "adapter:py", 10 * OPEN, "s")
        rich.clock.advance(DAY_MS)
        return rich

    def paid(self, town, part=62):
        """Bob has the stakers' part of what was sold, and nothing waits."""
        assert town.available("user:bob") == 10 * OPEN + part
        assert town.economy.balance("stakers:py:p0001").posted_nano == 0
        town.ledger.audit()

    def test_what_an_older_journal_knows_nothing_of_is_paid_when_its_period_closes(self, staked):
        with put_back(staked, "economy.db"):
            staked.sell("k1")
        staked.clock.advance(DAY_MS)
        staked.economy.open_period()
        self.paid(staked)

    def test_a_reward_that_only_the_log_has_is_not_paid_again(self, staked):
        staked.sell("k1")
        with put_back(staked, "economy.db"):
            staked.clock.advance(DAY_MS)
            staked.economy.open_period()
        staked.economy.open_period()
        self.paid(staked)

    def test_a_reward_that_an_older_log_lacks_is_paid_again(self, staked):
        staked.sell("k1")
        staked.clock.advance(DAY_MS)
        with put_back(staked, "ledger.db"):
            staked.economy.open_period()
        self.paid(staked)

    @pytest.mark.parametrize("num_periods", [1, 2, 3, 5])
    def test_so_is_one_of_long_ago(self, staked, num_periods):
        staked.sell("k1")
        staked.clock.advance(DAY_MS)
        with put_back(staked, "ledger.db", kill_at(StakeBook, "reward_due")):
            for _ in range(num_periods):
                staked.economy.open_period()
        self.paid(staked)

    def test_pools_of_long_ago_are_asked_about_no_more(self, staked, monkeypatch):
        """Paid or empty: what was refunded leaves a pool that nobody is paid of."""
        sold = staked.sell("k1")
        staked.economy.refund(sold.answer_id, "why")
        for number in range(4):
            staked.economy.open_period()
            staked.sell(f"more{number}")
            staked.clock.advance(DAY_MS)
        asked = []
        balance = staked.ledger.balance
        monkeypatch.setattr(staked.ledger, "balance", lambda name: asked.append(name) or balance(name))
        staked.economy.open_period()
        assert {name for name in asked if name.startswith("stakers:py")} == {"stakers:py:p0005"}
        kept = staked.economy._db.execute("SELECT period FROM staked_pools ORDER BY 1").fetchall()
        assert kept == [("p0005",)]

    def test_where_the_stake_went_with_the_log_its_part_is_the_treasurys(self, rich):
        authorized = rich.authorize("k1")
        with put_back(rich, "ledger.db"):
            rich.economy.stake("user:bob", "adapter:py", 10 * OPEN, "s")
            rich.economy.complete(answer(authorized))
        rich.economy.open_period()
        assert (rich.available("user:bob"), rich.available("treasury")) == (20 * OPEN, 31 + 62)
        rich.ledger.audit()

    @BOTH
    def test_stake_and_what_cools_down_is_what_the_log_says(self, staked, file):
        with put_back(staked, file):
            staked.economy.unstake("user:bob", "adapter:py", 4 * OPEN, "u")
        staked.economy.unstake("user:bob", "adapter:py", 4 * OPEN, "u")
        staked.clock.advance(22 * DAY_MS)
        staked.economy.run_due()
        assert staked.available("user:bob") == 14 * OPEN
        assert staked.economy.stakes("user:bob")["staked_nano"] == {"adapter:py": 6 * OPEN}
        staked.ledger.audit()


class TestWithdrawals:
    @BOTH
    def test_what_was_taken_out_stays_taken_out_and_is_handed_over_once(self, rich, file):
        with put_back(rich, file):
            rich.economy.withdraw("user:bob", 3 * OPEN, ADDRESS, "w1")
            rich.economy.withdraw("contributor:ctr_a", OPEN, OTHER, "w1")
            rich.economy.close_claims()
            rich.economy.withdraw("user:bob", 2 * OPEN, OTHER, "w2")
        rich.economy.withdraw("user:bob", 3 * OPEN, ADDRESS, "w1")
        assert rich.available("user:bob") == 15 * OPEN
        assert rich.economy.claims(1) == [(ADDRESS, 3 * OPEN), (OTHER, OPEN)]
        assert rich.economy.close_claims() == 2
        assert rich.economy.claims(2) == [(OTHER, 2 * OPEN)]
        rich.ledger.audit()

    def test_a_second_restore_finds_what_the_first_read_back(self, rich):
        with put_back(rich, "ledger.db"):
            with put_back(rich, "economy.db"):
                rich.economy.withdraw("user:bob", 3 * OPEN, ADDRESS, "w1")
            rich.economy.close_claims()
        assert (rich.available("user:bob"), rich.economy.claims(1)) == (17 * OPEN, [(ADDRESS, 3 * OPEN)])
        rich.ledger.audit()

    def test_who_has_no_longer_what_he_took_out_keeps_all_others_waiting_until_he_has(self, rich, caplog):
        with put_back(rich, "ledger.db"):
            rich.economy.grant("user:carol", 2 * OPEN, "carol")
            rich.economy.withdraw("user:carol", 2 * OPEN, ADDRESS, "w1")
            rich.economy.withdraw("user:bob", OPEN, OTHER, "w1")
            rich.economy.close_claims()
        assert "user:carol" in caplog.text
        before = rich.ledger.checkpoint()
        for act in (lambda: rich.economy.withdraw("user:bob", OPEN, OTHER, "w2"), rich.economy.close_claims):
            with pytest.raises(Conflict) as caught:
                act()
            assert (caught.value.code, caught.value.param) == ("withdrawals_lost", "user:carol")
        assert rich.ledger.checkpoint() == before
        rich.economy.grant("user:carol", 2 * OPEN, "carol")
        rich.economy.withdraw("user:bob", OPEN, OTHER, "w2")
        assert (rich.available("user:carol"), rich.available("user:bob")) == (0, 18 * OPEN)
        assert rich.economy.claims(1) == [(ADDRESS, 2 * OPEN), (OTHER, OPEN)]
        rich.ledger.audit()

    def earn(self, town, how):
        """Something that credits an account, which an older log lacks and which is done again; the account."""
        if how == "settlement":
            town.economy.settle(scores(), {})
            return "contributor:ctr_a"
        if how == "sale":
            town.sell("k2")
            return "user:owner"
        if how == "reward":
            town.economy.open_period()
            return "user:bob"
        town.economy.grant("user:carol", 5, "carol")
        return "user:carol"

    @pytest.mark.parametrize("how", ["settlement", "sale", "reward", "grant"])
    def test_what_comes_again_to_who_took_it_out_goes_there_first(self, tmp_path, clock, how):
        town = Town(tmp_path, clock, Parameters(payout_minimum_nano=1))
        town.economy.grant("user:alice", 1_000_000, "start")
        town.economy.grant("user:bob", 20 * OPEN, "bob")
        town.economy.stake("user:bob", "adapter:py", 10 * OPEN, "s")
        town.economy.withdraw("user:bob", 10 * OPEN, OTHER, "w0")
        town.clock.advance(DAY_MS)
        town.sell("k1")
        if how == "sale":
            town.economy.withdraw("user:owner", 62, OTHER, "w0")
        town.clock.advance(DAY_MS)
        with put_back(town, "ledger.db"):
            account = self.earn(town, how)
            taken = town.available(account)
            town.economy.withdraw(account, taken, ADDRESS, "w1")
            assert town.economy.close_claims() == 1
        assert town.available(self.earn(town, how)) == 0
        assert (ADDRESS, taken) in town.economy.claims(1)
        with pytest.raises(InsufficientFunds):
            town.authorize("k4", account=account)
        town.ledger.audit()
        town.close()

    def test_whose_money_comes_last_keeps_no_other_from_paying_for_what_he_took_out(self, rich):
        """The round is the same whatever order its withdrawals are written again in; the next one waits for it."""
        with put_back(rich, "ledger.db"):
            for name, address in (("carol", ADDRESS), ("dave", OTHER)):
                rich.economy.grant(f"user:{name}", 2 * OPEN, name)
                rich.economy.withdraw(f"user:{name}", 2 * OPEN, address, "w1")
            rich.economy.close_claims()
            rich.economy.withdraw("user:bob", OPEN, OTHER, "w2")
        rich.economy.grant("user:dave", 2 * OPEN, "dave")
        assert (rich.available("user:dave"), rich.available("user:bob")) == (0, 20 * OPEN)
        rich.restart()
        rich.economy.grant("user:carol", 2 * OPEN, "carol")
        assert rich.economy.claims(1) == [(ADDRESS, 2 * OPEN), (OTHER, 2 * OPEN)]
        assert (rich.available("user:bob"), rich.economy.close_claims()) == (19 * OPEN, 2)
        rich.ledger.audit()

    def test_what_was_taken_out_goes_before_what_is_owed_for_spam(self, tmp_path, clock):
        town = Town(tmp_path, clock, Parameters(contribution_deposit_nano=10, payout_minimum_nano=1))
        town.economy.grant("contributor:ctr_a", 100, "a")
        town.economy.grant("user:bob", 100, "bob")
        with put_back(town, "ledger.db"):
            town.economy.withdraw("contributor:ctr_a", 100, ADDRESS, "w1")
            assert town.economy.deposit("contributor:ctr_a", "ctb_1") == "owed"
            assert town.economy.judge("ctb_1", True) == "owed"
        assert town.economy.close_claims() == 1
        assert town.economy.claims(1) == [(ADDRESS, 100)]
        town.economy.withdraw("user:bob", 50, OTHER, "w1")
        assert (town.available("contributor:ctr_a"), town.available("treasury")) == (0, 0)
        town.ledger.audit()
        town.close()

    @pytest.fixture
    def cheap(self, tmp_path, clock):
        """Carol has 600; payouts and stakes have no minimum, and a contribution's deposit is 10."""
        least = {"payout_minimum_nano": 1, "stake_minimum_nano": 1}
        made = Town(tmp_path, clock, Parameters(contribution_deposit_nano=10, **least))
        made.economy.grant("user:carol", 600, "carol")
        yield made
        made.close()

    def takes_more(self, town, amount_nano=10_000):
        """Carol gets that, takes out all of what she has, and it is handed over."""
        town.economy.grant("user:carol", amount_nano, "more")
        town.economy.withdraw("user:carol", town.available("user:carol"), ADDRESS, "w1")
        town.economy.close_claims()

    def refused(self, act):
        with pytest.raises(InsufficientFunds) as caught:
            act()
        assert (caught.value.code, caught.value.param) == ("withdrawal_owed", "account")
        assert "user:" in caught.value.message
        assert "jobs/operate.py account" in caught.value.fix

    def test_what_comes_in_parts_to_who_took_it_out_is_kept_until_it_is_enough(self, cheap):
        cheap.economy.deposit("user:carol", "ctb_0")
        with put_back(cheap, "ledger.db"):
            self.takes_more(cheap)
        before = cheap.ledger.checkpoint()
        self.refused(lambda: cheap.authorize("k1", account="user:carol"))
        assert cheap.economy.deposit("user:carol", "ctb_1") == "owed"
        assert cheap.economy.deposit("user:carol", "ctb_0") == "held"
        assert cheap.ledger.checkpoint() == before
        self.refused(lambda: cheap.economy.stake("user:carol", "adapter:py", 100, "s"))
        assert cheap.available("user:carol") == 590
        cheap.economy.grant("user:carol", 5_000, "half")
        self.refused(lambda: cheap.authorize("k1", account="user:carol"))
        assert cheap.available("user:carol") == 5_590
        cheap.economy.grant("user:carol", 5_000, "other half")
        assert (cheap.available("user:carol"), cheap.economy.claims(1)) == (0, [(ADDRESS, 10_590)])
        cheap.economy.grant("user:carol", 1_000, "her own")
        assert cheap.authorize("k1", account="user:carol").max_fee_nano == 700
        cheap.ledger.audit()

    def test_what_is_owed_for_spam_waits_for_it_and_keeps_nothing_from_starting(self, cheap):
        with put_back(cheap, "ledger.db"):
            self.takes_more(cheap)
            cheap.economy.deposit("user:carol", "ctb_1")
            assert cheap.economy.judge("ctb_1", True) == "owed"
        assert (cheap.available("user:carol"), cheap.available("treasury")) == (600, 0)
        cheap.economy.grant("user:carol", 10_010, "more")
        assert cheap.economy.judge("ctb_1", True) == "forfeited"
        assert (cheap.available("user:carol"), cheap.available("treasury")) == (0, 10)
        cheap.ledger.audit()

    def test_what_was_taken_out_after_a_round_that_waits_for_another_is_not_spent(self, cheap):
        cheap.economy.grant("user:dave", 10_000, "dave")
        with put_back(cheap, "ledger.db"):
            self.takes_more(cheap)
            cheap.economy.withdraw("user:dave", 10_000, OTHER, "w1")
            cheap.economy.close_claims()
        self.refused(lambda: cheap.authorize("k1", account="user:dave"))
        cheap.economy.grant("user:carol", 10_000, "more")
        assert (cheap.economy.claims(1), cheap.economy.claims(2)) == ([(ADDRESS, 10_600)], [(OTHER, 10_000)])
        assert (cheap.available("user:carol"), cheap.available("user:dave")) == (0, 0)
        cheap.ledger.audit()

    def test_a_round_that_was_paid_out_is_paid_out(self, tmp_path, clock):
        town = Town(tmp_path, clock, unit=Unit(name="EUR"))
        town.economy.grant("user:alice", 5_000_000, "SEPA-1")
        with put_back(town, "ledger.db"):
            town.economy.withdraw("user:alice", 2_000_000, ADDRESS, "w1")
            town.economy.pay_out(town.economy.close_claims(), "SEPA-OUT-1")
        assert town.available("user:alice") == 3_000_000
        assert town.ledger.find("paid_out.1").transfer.reference == "SEPA-OUT-1"
        with pytest.raises(Conflict) as caught:
            town.economy.pay_out(1, "SEPA-OUT-2")
        assert caught.value.code == "round_paid"
        town.ledger.audit()
        town.close()

    def test_what_was_noted_late_is_at_its_place_in_the_log(self, tmp_path, clock):
        """A payment, whose note is missing after a kill; the operator records it again when more was taken out."""
        town = Town(tmp_path, clock, unit=Unit(name="EUR"))
        town.economy.grant("user:alice", 5_000_000, "SEPA-1")
        town.economy.withdraw("user:alice", 1_000_000, ADDRESS, "w1")
        town.economy.pay_out(town.economy.close_claims(), "SEPA-OUT-1")
        town.economy._db.execute("DELETE FROM taken_out WHERE transfer_id = 'paid_out.1'")
        town.restart()
        assert _noted(town) == ["claims.1", "paid_out.1"]
        with put_back(town, "ledger.db"):
            town.economy.withdraw("user:alice", 2_000_000, OTHER, "w2")
            town.economy.close_claims()
            town.economy.pay_out(1, "SEPA-OUT-1")
            assert _noted(town) == ["claims.1", "claims.2", "paid_out.1"]
        assert town.available("user:alice") == 2_000_000
        assert town.economy.claims(2) == [(OTHER, 2_000_000)]
        town.ledger.audit()
        town.close()

    def test_what_was_not_noted_when_it_was_taken_out_is_when_it_is_asked_for_again(self, rich, monkeypatch):
        with put_back(rich, "ledger.db"):
            with monkeypatch.context() as cut:
                cut.setattr("openledger.economy.withdrawals.writing", _fails)
                with pytest.raises(OSError, match="disk"):
                    rich.economy.withdraw("user:bob", 3 * OPEN, ADDRESS, "w1")
            rich.economy.withdraw("user:bob", 3 * OPEN, ADDRESS, "w1")
        assert rich.available("user:bob") == 17 * OPEN
        rich.ledger.audit()

    def test_a_start_that_is_killed_while_it_writes_again_goes_on(self, rich):
        killed = kill_at(Ledger, "commit", lambda transfers, *_: transfers[0].code == "claims")
        with put_back(rich, "ledger.db", killed):
            for number in range(3):
                rich.economy.withdraw("user:bob", OPEN, ADDRESS, f"w{number}")
            rich.economy.close_claims()
            rich.economy.withdraw("user:bob", OPEN, OTHER, "w3")
        assert (rich.available("user:bob"), rich.economy.claims(1)) == (16 * OPEN, [(ADDRESS, 3 * OPEN)])
        assert rich.economy.close_claims() == 2
        rich.ledger.audit()

    def test_a_start_asks_the_log_no_more_for_more_withdrawals(self, rich, monkeypatch):
        def asked():
            calls = []
            find = rich.ledger.find
            with monkeypatch.context() as counted:
                counted.setattr(rich.ledger, "find", lambda name: calls.append(name) or find(name))
                rich.economy._withdrawals.recover()
            return len(calls)

        rich.economy.withdraw("user:bob", OPEN, ADDRESS, "w")
        few = asked()
        for number in range(10):
            rich.economy.withdraw("user:bob", OPEN, ADDRESS, f"w{number}")
        assert asked() == few


def _noted(town):
    """Rounds and payments of the book."""
    names = [str(row[0]) for row in town.economy._db.execute("SELECT transfer_id FROM taken_out ORDER BY 1")]
    return [name for name in names if "." in name]


def _fails(_):
    raise OSError("the disk is full")


class TestDisputes:
    @pytest.fixture
    def settled(self, rich):
        rich.sell("k1")
        rich.economy.settle(scores(), {})
        rich.economy.grant("contributor:ctr_b", OPEN, "ctr_b")
        return rich

    def dispute(self, town, name="ctr_a", claimed=68):
        town.economy.dispute(f"contributor:{name}", "py", "p0001", name, claimed, "more")

    def test_one_that_an_older_journal_knows_nothing_of_expires(self, settled):
        before = settled.available("contributor:ctr_a"), settled.available("unattributed")
        with put_back(settled, "economy.db"):
            self.dispute(settled)
        settled.clock.advance(40 * DAY_MS)
        assert settled.economy.expire_disputes() == 1
        assert (settled.available("contributor:ctr_a"), settled.available("unattributed")) == before
        settled.ledger.audit()

    def test_so_does_one_whose_start_was_killed_when_the_pools_were_read_and_not_their_disputes(self, settled):
        before = settled.available("contributor:ctr_a"), settled.available("unattributed")
        with put_back(settled, "economy.db", kill_at(DisputeBook, "read_back")):
            self.dispute(settled)
        settled.clock.advance(40 * DAY_MS)
        assert settled.economy.expire_disputes() == 1
        assert (settled.available("contributor:ctr_a"), settled.available("unattributed")) == before
        settled.ledger.audit()

    def test_so_does_a_second_one_for_which_nothing_more_was_put_in_escrow(self, settled):
        self.dispute(settled, claimed=56 + 79)
        with put_back(settled, "economy.db"):
            settled.clock.advance(DAY_MS)
            self.dispute(settled, "ctr_b", claimed=20 + 79)
        settled.clock.advance(14 * DAY_MS)
        assert settled.economy.expire_disputes() == 1
        settled.clock.advance(DAY_MS)
        assert settled.economy.expire_disputes() == 1
        assert settled.economy.balance("escrow:py:p0001").posted_nano == 0
        settled.ledger.audit()

    def test_one_that_an_older_log_lacks_with_its_settlement_keeps_nothing_from_starting(self, rich):
        rich.sell("k1")
        with put_back(rich, "ledger.db"):
            rich.economy.settle(scores(), {})
            self.dispute(rich)
        rich.clock.advance(40 * DAY_MS)
        rich.restart()
        assert rich.available("contributor:ctr_a") == OPEN
        rich.economy.settle(scores(), {})
        self.dispute(rich)
        rich.clock.advance(40 * DAY_MS)
        assert rich.economy.expire_disputes() == 1
        rich.ledger.audit()

    def test_one_that_an_older_log_lacks_is_opened_again(self, settled):
        with put_back(settled, "ledger.db"):
            self.dispute(settled)
        assert settled.available("contributor:ctr_a") == OPEN + 56
        settled.clock.advance(DAY_MS)
        self.dispute(settled)
        settled.clock.advance(15 * DAY_MS)
        assert settled.economy.expire_disputes() == 1
        assert settled.available("contributor:ctr_a") == OPEN + 56
        settled.ledger.audit()


class TestDeposits:
    @pytest.fixture
    def priced(self, tmp_path, clock):
        made = Town(tmp_path, clock, Parameters(contribution_deposit_nano=50))
        made.economy.grant("user:alice", 1_000_000, "start")
        yield made
        made.close()

    def left(self, town):
        balance = town.economy.balance("user:alice")
        town.ledger.audit()
        return balance.available_nano, balance.debits_pending_nano, town.available("treasury")

    @pytest.mark.parametrize(("is_spam", "left"), [(False, (1_000_000, 0, 0)), (True, (1_000_000 - 50, 0, 50))])
    def test_one_that_an_older_journal_knows_nothing_of_is_decided(self, priced, is_spam, left):
        with put_back(priced, "economy.db"):
            priced.economy.deposit("user:alice", "ctb_1")
        priced.economy.judge("ctb_1", is_spam)
        assert self.left(priced) == left

    @pytest.mark.parametrize("is_spam", [False, True])
    def test_one_that_only_the_log_decided_stays_decided(self, priced, is_spam):
        with put_back(priced, "economy.db"):
            priced.economy.deposit("user:alice", "ctb_1")
            first = priced.economy.judge("ctb_1", is_spam)
        assert priced.economy.judge("ctb_1", not is_spam) == first
        assert self.left(priced) == (1_000_000 - 50 * is_spam, 0, 50 * is_spam)

    def test_one_that_was_dismissed_and_placed_again_is_found(self, priced):
        with put_back(priced, "economy.db"):
            priced.economy.deposit("user:alice", "ctb_1")
            priced.economy.dismiss("ctb_1")
            priced.economy.deposit("user:alice", "ctb_1")
        assert priced.economy.judge("ctb_1", True) == "forfeited"
        assert self.left(priced) == (1_000_000 - 50, 0, 50)

    def test_one_that_was_dismissed_alone_is_held_anew(self, priced):
        with put_back(priced, "economy.db"):
            priced.economy.deposit("user:alice", "ctb_1")
            priced.economy.dismiss("ctb_1")
        assert priced.economy.deposit("user:alice", "ctb_1") == "held"
        assert priced.economy.judge("ctb_1", False) == "returned"
        assert self.left(priced) == (1_000_000, 0, 0)

    @pytest.mark.parametrize("is_spam", [False, True])
    def test_one_that_was_dismissed_before_anything_was_held_is_found(self, priced, is_spam):
        with put_back(priced, "economy.db"):
            assert priced.economy.deposit("contributor:a", "ctb_1") == "owed"
            priced.economy.dismiss("ctb_1")
            priced.economy.grant("contributor:a", 100, "a")
            assert priced.economy.deposit("contributor:a", "ctb_1") == "held"
        assert priced.economy.judge("ctb_1", is_spam) == ("forfeited" if is_spam else "returned")
        assert priced.economy.balance("contributor:a").debits_pending_nano == 0
        assert priced.available("contributor:a") == 100 - 50 * is_spam

    @pytest.mark.parametrize("is_spam", [False, True])
    @pytest.mark.parametrize("is_known", [False, True])
    @pytest.mark.parametrize("again", [False, True])
    def test_one_whose_first_hold_the_log_has_not_is_found(self, priced, is_spam, is_known, again):
        """Earlier versions counted a dismissal also where nothing was held."""
        priced.economy.grant("contributor:a", 10, "a")
        if is_known:
            assert priced.economy.deposit("contributor:a", "ctb_1") == "owed"
        with put_back(priced, "economy.db"):
            priced.economy.deposit("contributor:a", "ctb_1")
            priced.economy.dismiss("ctb_1")
            priced.economy._db.execute("INSERT OR REPLACE INTO dismissals VALUES ('ctb_1', 1)")
            priced.economy.grant("contributor:a", 90, "more")
            assert priced.economy.deposit("contributor:a", "ctb_1") == "held"
            assert priced.ledger.find(hold_id("ctb_1")) is None
        if again:
            assert priced.economy.deposit("contributor:a", "ctb_1") == "held"
        assert priced.economy.balance("contributor:a").debits_pending_nano == 50
        assert priced.economy.judge("ctb_1", is_spam) == ("forfeited" if is_spam else "returned")
        assert priced.economy.balance("contributor:a").debits_pending_nano == 0
        assert priced.available("contributor:a") == 100 - 50 * is_spam
        priced.ledger.audit()

    @pytest.mark.parametrize("is_spam", [False, True])
    @pytest.mark.parametrize("dismissed", [1, 2])
    def test_one_that_an_older_journal_has_before_it_was_dismissed_is_found(self, priced, dismissed, is_spam):
        priced.economy.deposit("user:alice", "ctb_1")
        with put_back(priced, "economy.db"):
            for _ in range(dismissed):
                priced.economy.dismiss("ctb_1")
                priced.economy.deposit("user:alice", "ctb_1")
        assert priced.economy.judge("ctb_1", is_spam) == ("forfeited" if is_spam else "returned")
        assert self.left(priced) == (1_000_000 - 50 * is_spam, 0, 50 * is_spam)

    def test_one_that_an_older_journal_has_as_dismissed_is_found(self, priced):
        priced.economy.deposit("user:alice", "ctb_1")
        priced.economy.dismiss("ctb_1")
        with put_back(priced, "economy.db"):
            priced.economy.deposit("user:alice", "ctb_1")
        assert priced.economy.judge("ctb_1", True) == "forfeited"
        assert self.left(priced) == (1_000_000 - 50, 0, 50)

    @pytest.mark.parametrize("verdict", [False, True, None])
    def test_the_first_hold_of_one_that_was_held_anew_is_let_go_where_an_older_log_has_it(self, priced, verdict):
        priced.economy.deposit("user:alice", "ctb_1")
        with put_back(priced, "ledger.db"):
            priced.economy.dismiss("ctb_1")
            priced.economy.deposit("user:alice", "ctb_1")
            if verdict is not None:
                priced.economy.judge("ctb_1", verdict)
        lost = 50 * (verdict is True)
        assert self.left(priced) == (1_000_000 - lost, 0, lost)

    @pytest.mark.parametrize(("is_spam", "left"), [(False, (1_000_000, 0, 0)), (True, (1_000_000 - 50, 0, 50))])
    def test_a_second_restore_of_the_same_log_decides_again(self, priced, is_spam, left):
        priced.economy.deposit("user:alice", "ctb_1")
        with put_back(priced, "ledger.db"):
            priced.economy.judge("ctb_1", is_spam)
        assert self.left(priced) == left
        put_back_again(priced, "ledger.db")
        assert self.left(priced) == left

    def test_a_decision_that_was_noted_after_a_crash_is_the_last_one(self, priced):
        """Another one was decided before: an older log that has that lacks this one."""
        for name in ("ctb_1", "ctb_2"):
            priced.economy.deposit("user:alice", name)
        priced.economy.judge("ctb_1", False)
        with put_back(priced, "ledger.db"):
            with put_back(priced, "economy.db"):
                priced.economy.judge("ctb_2", False)
            assert priced.economy.judge("ctb_2", False) == "returned"
        assert self.left(priced) == (1_000_000, 0, 0)

    def test_a_journal_without_a_last_decision_is_looked_through_once(self, priced):
        """Of before there was one."""
        priced.economy.deposit("user:alice", "ctb_1")
        with put_back(priced, "ledger.db"):
            priced.economy.judge("ctb_1", False)
            priced.economy._db.execute("DELETE FROM last_decided")
        assert self.left(priced) == (1_000_000, 0, 0)

    @pytest.mark.parametrize(("is_spam", "left"), [(False, (1_000_000, 0, 0)), (True, (1_000_000 - 50, 0, 50))])
    def test_what_was_decided_and_an_older_log_holds_still_is_decided_again(self, priced, is_spam, left):
        priced.economy.deposit("user:alice", "ctb_1")
        with put_back(priced, "ledger.db"):
            priced.economy.judge("ctb_1", is_spam)
        assert self.left(priced) == left

    def test_what_was_dismissed_and_an_older_log_holds_still_is_let_go(self, priced):
        priced.economy.deposit("user:alice", "ctb_1")
        with put_back(priced, "ledger.db"):
            priced.economy.dismiss("ctb_1")
        assert self.left(priced) == (1_000_000, 0, 0)

    def test_what_was_forfeited_and_is_gone_with_the_log_is_taken_from_what_is_there(self, priced):
        with put_back(priced, "ledger.db"):
            priced.economy.deposit("user:alice", "ctb_1")
            priced.economy.judge("ctb_1", True)
            priced.economy.deposit("user:alice", "ctb_2")
            priced.economy.judge("ctb_2", False)
        assert self.left(priced) == (1_000_000 - 50, 0, 50)
        assert priced.ledger.find(withheld_id("ctb_1")) is not None
        priced.restart()
        assert self.left(priced) == (1_000_000 - 50, 0, 50)

    def lost_and_appealed(self, town):
        """The contributor's deposit is forfeited; a reviewer is there."""
        name_reviewer(town)
        town.economy.grant(ACCOUNT, OPEN, "contributor")
        town.economy.deposit(ACCOUNT, "ctb_1")
        town.economy.judge("ctb_1", True)

    def overturn(self, town):
        town.economy.open_appeal(appeal(), JUDGED)
        town.economy.decide_appeal(decision())
        return town.economy.acquit("ctb_1", "row_1")

    @BOTH
    def test_one_that_came_back_after_an_appeal_comes_back_once(self, priced, file):
        self.lost_and_appealed(priced)
        with put_back(priced, file):
            assert self.overturn(priced) == "returned"
        if file == "ledger.db":  # the appeal went with the log: nobody knows any more that the verdict was wrong
            assert (priced.available(ACCOUNT), priced.available("treasury")) == (OPEN - 50, 50)
            priced.ledger.audit()
        assert self.overturn(priced) == "returned"
        assert (priced.available(ACCOUNT), priced.available("treasury")) == (OPEN, 0)
        priced.ledger.audit()

    def test_one_that_was_withheld_comes_back_also_where_only_the_log_knows_of_it(self, priced):
        name_reviewer(priced)
        with put_back(priced, "economy.db"):
            priced.economy.deposit(ACCOUNT, "ctb_1")
            priced.economy.judge("ctb_1", True)
            priced.economy.grant(ACCOUNT, OPEN, "contributor")
            assert priced.economy.judge("ctb_1", True) == "forfeited"
        assert self.overturn(priced) == "returned"
        assert priced.available(ACCOUNT) == OPEN
        priced.ledger.audit()

    def asked(self, town, monkeypatch):
        """How often a start asks the log for something of the deposits."""
        calls = []
        find = town.ledger.find
        with monkeypatch.context() as counted:
            counted.setattr(town.ledger, "find", lambda name: calls.append(name) or find(name))
            town.economy._deposits.recover()
        return len(calls)

    def test_a_start_asks_the_log_no_more_for_more_deposits(self, priced, monkeypatch):
        def decide(name):
            priced.economy.deposit("user:alice", name)
            priced.economy.judge(name, False)

        decide("ctb")
        few = self.asked(priced, monkeypatch)
        for number in range(10):
            decide(f"ctb_{number}")
        assert self.asked(priced, monkeypatch) == few

    def test_a_start_asks_the_log_for_none_where_it_never_decided_one(self, priced, monkeypatch):
        for number in range(3):
            assert priced.economy.deposit("contributor:a", f"ctb_{number}") == "owed"
            priced.economy.judge(f"ctb_{number}", False)
        assert self.asked(priced, monkeypatch) == 0

    def test_one_that_nobody_decided_is_not_looked_for_either(self, priced, monkeypatch):
        priced.economy.deposit("user:alice", "ctb_1")
        priced.economy.deposit("contributor:a", "ctb_2")
        priced.economy.judge("ctb_2", True)
        priced.economy._db.execute("DELETE FROM last_decided")  # of before there was one
        assert self.asked(priced, monkeypatch) == 0


class TestAppeals:
    @BOTH
    def test_the_deposit_of_one_is_held_and_comes_back_by_what_the_log_says(self, town, file):
        name_reviewer(town)
        town.economy.grant(ACCOUNT, OPEN, "contributor")
        with put_back(town, file):
            town.economy.open_appeal(appeal(), JUDGED)
        town.economy.open_appeal(appeal(), JUDGED)
        assert town.available(ACCOUNT) == OPEN - Parameters().dispute_deposit_nano
        town.economy.decide_appeal(decision())
        assert town.available(ACCOUNT) == OPEN
        town.ledger.audit()


class TestBounties:
    @BOTH
    def test_one_that_was_executed_pays_once(self, rich, file):
        rich.sell("k1")
        rich.economy.settle(scores(), {})
        left = rich.available("unattributed")
        rich.economy.stake("user:bob", "adapter:py", 10 * OPEN, "s")
        rich.economy.grant("user:bob", 200 * OPEN, "more")
        rich.economy.stake("user:bob", "adapter:py", 200 * OPEN, "s2")
        rich.clock.advance(1)
        action = {"kind": "bounty", "recipient": "user:erin", "amount_nano": left, "bounty": "rows"}
        made = rich.economy.propose("user:bob", "t", "", action, "p")["proposal"]
        rich.clock.advance(DAY_MS + 1)
        rich.economy.vote("user:bob", made, "for")
        with put_back(rich, file):
            rich.clock.advance(15 * DAY_MS + 1)
            rich.economy.run_due()
            assert rich.available("user:erin") == left
        rich.economy.run_due()
        assert (rich.available("user:erin"), rich.available("unattributed")) == (left, 0)
        rich.ledger.audit()


class TestEmissions:
    def test_one_that_an_older_log_lacks_beside_its_settlement_is_made_again(self, tmp_path, clock, monkeypatch):
        town = Town(tmp_path, clock, Parameters(emission_match_ppm=200_000, emission_cap_nano=30))
        town.economy.grant("user:alice", 1_000_000, "start")
        town.economy.found()
        town.sell("k1")
        with monkeypatch.context() as cut:
            cut.setattr(town.economy._vesting, "emit", lambda _: 0)  # the log's last entry is the settlement
            town.economy.settle(scores(), {})
        assert town.available("contributor:ctr_a") == 56
        with put_back(town, "ledger.db"):
            town.economy._vesting.emit(town.ledger.batch(town.ledger.find(payout_id("py", "p0001")).seq).statement)
            assert town.available("contributor:ctr_a") == 67
        assert (town.available("contributor:ctr_a"), town.available("contributor:ctr_b")) == (67, 24)
        town.ledger.audit()
        town.close()


class TestVesting:
    @BOTH
    def test_what_was_released_is_released_once(self, town, file):
        town.economy.found()
        start = town.available("treasury:ecosystem") if _has(town, "treasury:ecosystem") else 0
        with put_back(town, file):
            town.clock.advance(62 * DAY_MS)
            town.economy.run_due()
            released = town.available("treasury:ecosystem")
        town.economy.run_due()
        assert town.available("treasury:ecosystem") == released > start
        town.ledger.audit()


def _has(town, account):
    try:
        town.economy.balance(account)
    except Exception:  # noqa: BLE001
        return False
    return True


class TestFees:
    @BOTH
    def test_a_datanet_is_paid_for_once(self, tmp_path, clock, file):
        town = Town(tmp_path, clock, Parameters(datanet_fee_nano=100))
        town.economy.grant("user:alice", 1_000, "start")
        with put_back(town, file):
            town.economy.charge_datanet("user:alice", "py-docs")
        town.economy.charge_datanet("user:alice", "py-docs")
        assert town.available() == 900
        with pytest.raises((Conflict, InsufficientFunds)):
            town.economy.charge_datanet("user:bob", "py-docs")
        town.ledger.audit()
        town.close()


def test_terms_stay_those_of_the_sale(town):
    with put_back(town, "economy.db"):
        town.sell("k1")
    town.authorize("k1")
    assert town.economy._sales._holds.by_key("user:alice", "k1") is None
    adopted = [one for one in town.ledger.transfers("holds") if one.transfer.code == "fee"]
    assert town.economy._sales._holds.find(adopted[0].transfer.reference).terms == TERMS
