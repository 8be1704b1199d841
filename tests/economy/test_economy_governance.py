"""Proposals: their states, who votes with what, and that what passed happens once, by itself, within the bounds."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
from economy_values import Town, scores

from openledger.core.errors import Conflict, Corrupt, Forbidden, InvalidInput, NotFound
from openledger.core.money import NANO_PER_OPEN
from openledger.economy import Parameters
from openledger.economy.bounties import BountyBook
from openledger.economy.parameters import PRESETS
from openledger.economy.settlement import payout_id
from openledger.ledger.disputes import Disputes
from openledger.ledger.governance import Governance
from openledger.ledger.parameters import DAY_MS, ParameterBook, check_values
from openledger.ledger.register import place_id

OPEN = NANO_PER_OPEN
P = Parameters()
ADAPTER = "adapter:py"
EVIDENCE = "cd" * 32
LONGER = {"dispute_window_ms": 60 * DAY_MS, "retention_ms": 120 * DAY_MS}
CHANGE = {"kind": "parameters", "changes": {"owner_ppm": 150_000, "treasury_ppm": 150_000}}


@pytest.fixture
def voters(town):
    """Bob has 600 OPEN staked, carol 300, dave 100; the treasury has 50."""
    return settle_down(town)


@pytest.fixture(scope="module")
def unmoved(standing):
    """The same, for proposals that are refused and change nothing."""
    return settle_down(standing)


def settle_down(town):
    for name, amount in (("bob", 600), ("carol", 300), ("dave", 100)):
        town.economy.grant(f"user:{name}", 2 * amount * OPEN, name)
        town.economy.stake(f"user:{name}", ADAPTER, amount * OPEN, "s")
    return town


def propose(town, action=CHANGE, proposer="user:bob", key="p1"):
    return town.economy.propose(proposer, "a title", "why", action, key)["proposal"]


def state(town, proposal):
    return town.economy.proposal(proposal)["state"]


def to_vote(clock):
    clock.advance(P.vote_delay_ms + 1)


def to_end(clock):
    clock.advance(P.vote_period_ms)


def passed(town, clock, action=CHANGE):
    """A proposal that was voted for by bob, just after its deadline."""
    clock.advance(1)
    proposal = propose(town, action)
    to_vote(clock)
    town.economy.vote("user:bob", proposal, "for")
    to_end(clock)
    return proposal


def test_a_parameter_change_goes_through_every_state_and_is_in_force_from_the_next_period(voters, clock):
    town, seen = voters, []
    clock.advance(1)
    proposal = propose(town)
    seen.append(state(town, proposal))
    to_vote(clock)
    seen.append(state(town, proposal))
    assert town.economy.vote("user:bob", proposal, "for") == 600 * OPEN
    assert town.economy.vote("user:carol", proposal, "against") == 300 * OPEN
    to_end(clock)
    seen.append(state(town, proposal))
    assert town.economy.parameter_table()["adopted"] == P.version
    clock.advance(P.vote_timelock_ms)
    seen.append(state(town, proposal))
    assert seen == ["Pending", "Active", "Queued", "Executed"]
    table = town.economy.parameter_table()
    assert (table["in_force"], table["adopted"]) == (P.version, P.version + 1)
    assert town.sell("k1").parts["user:owner"] == 62
    town.economy.open_period()
    assert town.economy.parameters().version == P.version + 1
    assert town.sell("k2").parts["user:owner"] == 47
    town.ledger.audit()


def test_it_executes_once_however_often_it_is_asked_for(voters, clock):
    proposal = passed(voters, clock)
    clock.advance(P.vote_timelock_ms)
    assert voters.economy.run_due() == 1
    for _ in range(3):
        voters.restart()
        assert voters.economy.run_due() == 0
    assert state(voters, proposal) == "Executed"
    assert voters.economy.parameter_table()["adopted"] == P.version + 1
    voters.ledger.audit()


def test_a_period_that_began_under_one_version_is_settled_under_it(voters, clock):
    sold = voters.sell("k1")
    proposal = passed(
        voters, clock, {"kind": "parameters", "changes": {"use_ppm": 500_000, "improvement_ppm": 500_000}}
    )
    clock.advance(P.vote_timelock_ms)
    assert state(voters, proposal) == "Executed"
    voters.economy.open_period()
    settlement = voters.economy.settle(scores(), {})
    assert settlement.parts["use"].ppm == 700_000
    entry = voters.ledger.find(settlement.transfer_ids["unattributed"])
    assert voters.ledger.batch(entry.seq).statement["parameters"] == P.version
    voters.sell("k2")
    voters.economy.open_period()
    assert voters.economy.settle(scores("p0002"), {}).parts["use"].ppm == 500_000
    assert sold.fee_nano == 310
    voters.ledger.audit()


@pytest.mark.parametrize(
    ("votes", "ends"),
    [
        ({}, "Defeated"),
        ({"dave": "for"}, "Defeated"),  # 10 % is no quorum of 25
        ({"carol": "for"}, "Queued"),
        ({"carol": "for", "bob": "against"}, "Defeated"),
        ({"dave": "for", "bob": "abstain"}, "Queued"),  # abstaining makes the quorum
        ({"carol": "abstain"}, "Defeated"),
        ({"bob": "against"}, "Defeated"),
    ],
)
def test_quorum_and_majority_decide(voters, clock, votes, ends):
    clock.advance(1)
    proposal = propose(voters)
    to_vote(clock)
    for name, support in votes.items():
        voters.economy.vote(f"user:{name}", proposal, support)
    to_end(clock)
    assert state(voters, proposal) == ends


def test_a_text_that_passes_succeeds_and_executes_nothing(voters, clock):
    proposal = passed(voters, clock, {"kind": "text"})
    clock.advance(10 * P.vote_period_ms)
    assert (state(voters, proposal), voters.economy.run_due()) == ("Succeeded", 0)


def test_the_treasury_pays_for_what_was_voted_and_waits_until_it_can(voters, clock):
    action = {"kind": "spend", "source": "treasury", "recipient": "user:erin", "amount_nano": 93}
    proposal = passed(voters, clock, action)
    clock.advance(P.vote_timelock_ms)
    assert state(voters, proposal) == "Queued"  # the treasury has nothing
    for number in range(3):
        voters.sell(f"k{number}")
    clock.advance(60_000)
    assert state(voters, proposal) == "Executed"
    assert (voters.available("user:erin"), voters.available("treasury")) == (93, 0)
    voters.ledger.audit()


def test_what_could_not_be_done_within_the_grace_expires(voters, clock):
    action = {"kind": "spend", "source": "treasury", "recipient": "user:erin", "amount_nano": 1}
    proposal = passed(voters, clock, action)
    clock.advance(P.vote_timelock_ms + P.vote_grace_ms + 1)
    voters.sell("k1")
    assert state(voters, proposal) == "Expired"
    assert voters.economy.run_due() == 0


def test_unattributed_pays_bounties_and_nothing_else(voters, clock):
    voters.sell("k1")
    voters.economy.settle(scores(), {})
    left = voters.available("unattributed")
    action = {"kind": "bounty", "recipient": "user:erin", "amount_nano": left, "bounty": "rows on asyncio"}
    proposal = passed(voters, clock, action)
    named = {"object": "", "from_nano": {"pool:py:p0001": left}}
    assert voters.economy.proposal(proposal)["action"] == {**action, **named}
    clock.advance(P.vote_timelock_ms)
    assert state(voters, proposal) == "Executed"
    assert (voters.available("user:erin"), voters.available("unattributed")) == (left, 0)
    assert propose(voters, action) == proposal  # asked again, though nothing is left
    with pytest.raises(InvalidInput) as caught:
        propose(voters, {"kind": "spend", "source": "unattributed", "recipient": "user:e", "amount_nano": 1}, key="p2")
    assert caught.value.code == "invalid_source"
    voters.ledger.audit()


def bounty(amount_nano, **more):
    return {"kind": "bounty", "recipient": "user:erin", "amount_nano": amount_nano, "bounty": "rows", **more}


def settled(town, *periods):
    """What is unattributed of each period."""
    left = []
    for period in periods:
        before = town.available("unattributed")
        town.sell(f"k-{period}")
        town.economy.settle(scores(period), {})
        left.append(town.available("unattributed") - before)
    return left


def test_a_bounty_takes_of_the_oldest_pools_first(voters, clock):
    first, second = settled(voters, "p0001", "p0002")
    proposal = passed(voters, clock, bounty(first + 1, object="datanet:py-docs"))
    action = voters.economy.proposal(proposal)["action"]
    assert action["from_nano"] == {"pool:py:p0001": first, "pool:py:p0002": 1}
    assert action["object"] == "datanet:py-docs"
    clock.advance(P.vote_timelock_ms)
    assert state(voters, proposal) == "Executed"
    with pytest.raises(Conflict) as caught:
        propose(voters, bounty(second), key="p2")
    assert caught.value.code == "bounty_exceeds_unattributed"
    assert voters.economy.proposal(propose(voters, bounty(second - 1), key="p3"))["state"] == "Pending"
    voters.ledger.audit()


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"from_nano": {"pool:py:p0001": 6}}, "bounty_exceeds_unattributed"),
        ({"from_nano": {"pool:py:p0009": 5}}, "bounty_exceeds_unattributed"),
        ({"from_nano": {"pool:py:p0001": 4}}, "invalid_bounty"),
        ({"from_nano": {"pool:py:p0001": 2.5}}, "invalid_bounty"),
        ({"from_nano": {}}, "invalid_bounty"),
        ({"from_nano": "pool:py:p0001"}, "invalid_bounty"),
        ({"from_nano": {"treasury": 5}}, "invalid_account"),
        ({"object": "user:erin"}, "invalid_object"),
        ({"amount_nano": 10**6}, "bounty_exceeds_unattributed"),
    ],
)
def test_a_bounty_that_names_what_cannot_pay_it_is_refused_and_changes_nothing(voters, more, code):
    settled(voters, "p0001")
    before = voters.ledger.checkpoint()
    if code == "bounty_exceeds_unattributed" and "from_nano" in more:
        more = {"from_nano": {name: amount + 10**6 for name, amount in more["from_nano"].items()}}
        more["amount_nano"] = sum(more["from_nano"].values())
    with pytest.raises((Conflict, InvalidInput)) as caught:
        propose(voters, bounty(5) | more)
    assert (caught.value.code, voters.ledger.checkpoint()) == (code, before)


def test_a_bounty_waits_until_nobody_can_dispute_its_pool(tmp_path, clock):
    town = Town(tmp_path, clock, Parameters(dispute_window_ms=20 * DAY_MS))
    town.economy.grant("user:alice", 1_000_000, "start")
    (left,) = settled(settle_down(town), "p0001")
    proposal = passed(town, clock, bounty(left))
    clock.advance(P.vote_timelock_ms)
    assert (town.economy.run_due(), state(town, proposal)) == (0, "Queued")
    clock.advance(5 * DAY_MS)
    assert (state(town, proposal), town.available("user:erin")) == ("Executed", left)
    town.ledger.audit()
    town.close()


def test_the_audit_finds_a_bounty_that_takes_more_than_its_pool_has(voters, clock, monkeypatch):
    first, second = settled(voters, "p0001", "p0002")
    monkeypatch.setattr(BountyBook, "named", lambda _, action: dict(action))
    monkeypatch.setattr(BountyBook, "check", lambda *_: None)
    pools = {"pool:py:p0001": first + 1, "pool:py:p0002": second - 1}
    passed(voters, clock, bounty(first + second, object="", from_nano=pools))
    clock.advance(P.vote_timelock_ms)
    voters.economy.run_due()
    with pytest.raises(Corrupt) as caught:
        voters.ledger.audit()
    assert caught.value.code == "wrong_bounty"


def test_a_bounty_of_a_log_that_names_no_pools_stands_until_one_does(voters, clock, monkeypatch):
    first, _ = settled(voters, "p0001", "p0002")
    monkeypatch.setattr(BountyBook, "named", lambda _, action: dict(action))
    proposal = passed(voters, clock, bounty(first))
    clock.advance(P.vote_timelock_ms)
    assert (state(voters, proposal), voters.available("user:erin")) == ("Executed", first)
    voters.ledger.audit()
    propose(voters, bounty(1, object="", from_nano={"pool:py:p0002": 1}), key="p2")
    with pytest.raises(InvalidInput) as caught:
        propose(voters, bounty(1), key="p3")
    assert caught.value.code == "invalid_proposal"


def test_bounties_of_a_period_are_capped(voters):
    action = {"kind": "bounty", "recipient": "user:e", "amount_nano": P.bounty_cap_nano + 1, "bounty": "all of it"}
    with pytest.raises(Conflict) as caught:
        propose(voters, action)
    assert caught.value.code == "bounty_cap_reached"


def test_an_appeal_that_passes_gives_back_what_was_slashed(voters, clock):
    slash = voters.economy.slash(ADAPTER, "false_scores", EVIDENCE)
    clock.advance(P.slash_appeal_ms // 2)
    proposal = passed(voters, clock, {"kind": "appeal", "slash": slash["number"]})
    assert clock.now_ms() > slash["ends_ms"]  # the window is over, and the appeal keeps the escrow
    assert (voters.economy.run_due(), state(voters, proposal)) == (0, "Queued")
    clock.advance(P.vote_timelock_ms)
    assert state(voters, proposal) == "Executed"
    assert voters.available("user:bob") == 600 * OPEN + 60 * OPEN
    assert voters.available("treasury") == 0
    assert voters.economy.stakes("user:carol")["slashed"][0]["state"] == "returned"
    voters.ledger.audit()


def test_an_appeal_that_fails_keeps_the_escrow_until_then(voters, clock):
    slash = voters.economy.slash(ADAPTER, "false_scores", EVIDENCE)
    clock.advance(P.slash_appeal_ms)
    proposal = propose(voters, {"kind": "appeal", "slash": slash["number"]})
    clock.advance(P.vote_delay_ms)
    assert (voters.economy.run_due(), state(voters, proposal)) == (0, "Pending")
    clock.advance(P.vote_period_ms + 1)
    assert state(voters, proposal) == "Defeated"
    assert voters.available("treasury") == 100 * OPEN
    with pytest.raises(Conflict) as caught:
        propose(voters, {"kind": "appeal", "slash": slash["number"]}, key="late")
    assert caught.value.code == "slash_decided"
    voters.ledger.audit()


def test_voting_twice_is_refused_and_the_same_vote_again_is_told_again(voters, clock):
    clock.advance(1)
    proposal = propose(voters)
    to_vote(clock)
    assert voters.economy.vote("user:bob", proposal, "for") == voters.economy.vote("user:bob", proposal, "for")
    before = voters.ledger.checkpoint()
    with pytest.raises(Conflict) as caught:
        voters.economy.vote("user:bob", proposal, "against")
    assert (caught.value.code, voters.ledger.checkpoint()) == ("already_voted", before)
    assert voters.economy.proposal(proposal)["votes_nano"] == {"against": 0, "for": 600 * OPEN, "abstain": 0}


@pytest.mark.parametrize("when", ["before", "after"])
def test_votes_outside_the_voting_period_are_refused(voters, clock, when):
    proposal = propose(voters)
    clock.advance(P.vote_delay_ms + (0 if when == "before" else P.vote_period_ms + 1))
    with pytest.raises(Conflict) as caught:
        voters.economy.vote("user:bob", proposal, "for")
    assert caught.value.code == "not_active"


def test_stake_that_was_borrowed_after_the_snapshot_has_no_power(voters, clock):
    clock.advance(1)
    proposal = propose(voters)
    to_vote(clock)
    voters.economy.grant("user:eve", 10**6 * OPEN, "loan")
    voters.economy.stake("user:eve", ADAPTER, 10**6 * OPEN, "s")
    with pytest.raises(Forbidden) as caught:
        voters.economy.vote("user:eve", proposal, "for")
    assert caught.value.code == "no_power_at_snapshot"
    voters.economy.unstake("user:carol", ADAPTER, 300 * OPEN, "u")
    assert voters.economy.vote("user:carol", proposal, "for") == 300 * OPEN
    assert voters.economy.proposal(proposal)["power_nano"] == 1000 * OPEN


def test_whoever_decided_a_vote_still_has_stake_at_risk_when_it_executes(voters, clock):
    """The cool-down outlasts period and timelock, and no proposal can make it shorter."""
    voters.economy.stake("user:bob", ADAPTER, 100 * OPEN, "flash")
    proposal = propose(voters)
    to_vote(clock)
    voters.economy.unstake("user:bob", ADAPTER, 700 * OPEN, "u")
    voters.economy.vote("user:bob", proposal, "for")
    to_end(clock)
    clock.advance(P.vote_timelock_ms)
    assert state(voters, proposal) == "Executed"
    assert voters.economy.stakes("user:bob")["cooling"][0]["amount_nano"] == 700 * OPEN
    shorter = {"kind": "parameters", "changes": {"stake_cooldown_ms": P.vote_period_ms}}
    with pytest.raises(InvalidInput) as caught:
        propose(voters, shorter, "user:carol", "p2")
    assert caught.value.param == "stake_cooldown_ms"


def test_a_delegate_votes_with_what_was_delegated_before_the_snapshot(voters, clock):
    voters.economy.delegate("user:carol", "user:dave")
    clock.advance(1)
    proposal = propose(voters)
    to_vote(clock)
    voters.economy.delegate("user:bob", "user:dave")
    assert voters.economy.vote("user:dave", proposal, "for") == 400 * OPEN
    with pytest.raises(Forbidden):
        voters.economy.vote("user:carol", proposal, "against")
    assert voters.economy.vote("user:bob", proposal, "against") == 600 * OPEN
    voters.economy.delegate("user:carol", "user:carol")
    assert voters.economy.stakes("user:carol")["power_nano"] == 300 * OPEN
    voters.ledger.audit()


def test_below_the_threshold_nobody_proposes(voters):
    voters.economy.unstake("user:dave", ADAPTER, OPEN, "u")
    with pytest.raises(Forbidden) as caught:
        propose(voters, proposer="user:dave")
    assert caught.value.code == "below_threshold"


def test_only_its_proposer_cancels_a_proposal_and_only_while_it_is_pending(voters, clock):
    proposal, other = propose(voters), propose(voters, key="p2")
    with pytest.raises(Forbidden) as caught:
        voters.economy.cancel_proposal("user:carol", proposal)
    assert caught.value.code == "not_the_proposer"
    voters.economy.cancel_proposal("user:bob", proposal)
    voters.economy.cancel_proposal("user:bob", proposal)
    to_vote(clock)
    assert state(voters, proposal) == "Canceled"
    with pytest.raises(Conflict) as caught:
        voters.economy.cancel_proposal("user:bob", other)
    assert caught.value.code == "not_pending"


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ({"kind": "parameters", "changes": {"owner_ppm": 1}}, "invalid_split"),
        ({"kind": "parameters", "changes": {"slash_ppm": 500_001}}, "invalid_parameters"),
        ({"kind": "parameters", "changes": {"slash_ppm": 0.5}}, "invalid_parameters"),
        ({"kind": "parameters", "changes": {"slash_ppm": True}}, "invalid_parameters"),
        ({"kind": "parameters", "changes": {"vote_quorum_ppm": 0}}, "invalid_parameters"),
        ({"kind": "parameters", "changes": {"verbatim_ppm": 1}}, "unsupported_channel_weight"),
        ({"kind": "parameters", "changes": {"emission_match_ppm": 200_001}}, "invalid_parameters"),
        ({"kind": "parameters", "changes": {"interest_ppm": 1}}, "unknown_parameter"),
        ({"kind": "parameters", "changes": {}}, "invalid_proposal"),
        ({"kind": "mint", "amount_nano": 1}, "invalid_proposal"),
        ({"kind": "text", "more": 1}, "invalid_proposal"),
        ({"kind": ["text"]}, "invalid_proposal"),
        ("all of it", "invalid_proposal"),
        ({"kind": "spend", "source": "holds", "recipient": "user:e", "amount_nano": 1}, "invalid_source"),
        ({"kind": "spend", "source": "treasury", "recipient": "holds", "amount_nano": 1}, "invalid_account"),
        ({"kind": "spend", "source": "treasury", "recipient": "user:e", "amount_nano": 0}, "invalid_amount"),
        ({"kind": "appeal", "slash": 99}, "slash_not_found"),
    ],
)
def test_a_proposal_out_of_bounds_is_refused_and_changes_nothing(unmoved, action, code):
    before = unmoved.ledger.checkpoint()
    with pytest.raises((InvalidInput, NotFound)) as caught:
        propose(unmoved, action)
    assert (caught.value.code, unmoved.ledger.checkpoint()) == (code, before)
    assert unmoved.economy.proposals() == []


def test_two_changes_that_do_not_go_together_execute_the_first_and_let_the_other_expire(voters, clock):
    clock.advance(1)
    first = propose(
        voters, {"kind": "parameters", "changes": {"stake_cooldown_ms": P.vote_period_ms + P.vote_timelock_ms}}
    )
    second = propose(voters, {"kind": "parameters", "changes": {"vote_timelock_ms": 2 * P.vote_timelock_ms}}, key="p2")
    to_vote(clock)
    for proposal in (first, second):
        voters.economy.vote("user:bob", proposal, "for")
    to_end(clock)
    clock.advance(P.vote_timelock_ms)
    assert (state(voters, first), state(voters, second)) == ("Executed", "Queued")
    clock.advance(P.vote_grace_ms + 1)
    assert state(voters, second) == "Expired"
    voters.ledger.audit()


def test_the_presets_are_those_of_the_issue():
    day, open_ = 24 * 60 * 60_000, OPEN
    assert [tuple(PRESETS[name].values()) for name in ("code", "docs")] == [
        (day, 14 * day, 100 * open_, 250_000, day),
        (day, 7 * day, 10_000 * open_, 50_000, 7 * day),
    ]
    assert Parameters(**PRESETS["docs"]).vote_quorum_ppm == 50_000


def test_the_guide_tells_the_votes_of_the_other_preset():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "govern.md").read_text()
    assert {name: int(value) for name, value in re.findall(r"--change (vote_\w+)=(\d+)", guide)} == PRESETS["docs"]


class TestMany:
    """An open proposal for each threshold of power, so that none is hidden among a thousand."""

    TEXT: ClassVar[dict[str, str]] = {"kind": "text"}

    def fill(self, town, clock, number=1, proposer="user:dave"):
        clock.advance(1)
        return [propose(town, self.TEXT, proposer, f"p{place}") for place in range(number)]

    def refused(self, town, proposer="user:dave", key="more"):
        before = town.ledger.checkpoint()
        with pytest.raises(Conflict) as caught:
            propose(town, self.TEXT, proposer, key)
        assert (caught.value.code, town.ledger.checkpoint()) == ("too_many_proposals", before)
        return caught.value

    def test_one_more_than_the_power_there_is_allows_is_refused_and_told_what_to_do(self, voters, clock):
        (first,) = self.fill(voters, clock)
        assert "0 OPEN of the stake behind user:dave" in self.refused(voters).message
        assert propose(voters, self.TEXT, "user:dave", "p0") == first
        assert len(self.fill(voters, clock, 3, "user:carol")) == 3
        self.refused(voters, "user:carol")
        voters.ledger.audit()

    def test_who_splits_his_stake_gets_no_more(self, voters, clock):
        voters.economy.stake("user:dave", ADAPTER, 99 * OPEN, "s2")
        self.fill(voters, clock)
        self.refused(voters)

    def test_one_that_is_canceled_or_decided_makes_room(self, voters, clock):
        (first,) = self.fill(voters, clock)
        voters.economy.cancel_proposal("user:dave", first)
        propose(voters, self.TEXT, "user:dave", "second")
        self.refused(voters)
        to_vote(clock)
        self.refused(voters)
        to_end(clock)
        propose(voters, self.TEXT, "user:dave", "third")
        voters.ledger.audit()

    def test_delegated_power_counts(self, voters, clock):
        self.fill(voters, clock)
        voters.economy.delegate("user:carol", "user:dave")
        clock.advance(1)
        propose(voters, self.TEXT, "user:dave", "more")

    def test_stake_that_is_delegated_on_is_behind_what_it_proposed_before(self, voters, clock):
        """Else one stake would hop from name to name, and propose under each."""
        voters.economy.delegate("user:dave", "user:first")
        self.fill(voters, clock, 1, "user:first")
        for name in ("user:second", "user:dave"):
            voters.economy.delegate("user:dave", name)
            clock.advance(1)
            self.refused(voters, name)
        assert len(self.fill(voters, clock, 3, "user:carol")) == 3
        voters.ledger.audit()

    def test_who_is_delegated_to_by_somebody_who_proposed_a_lot_is_not_kept_from_proposing(self, voters, clock):
        self.fill(voters, clock, 3, "user:carol")
        voters.economy.delegate("user:carol", "user:dave")
        self.fill(voters, clock, 1, "user:dave")
        self.refused(voters, "user:dave")

    def test_stake_that_is_used_up_lends_none_of_its_size_to_another(self, voters, clock):
        """Bob's 600 are behind six; with them, and dave's 100 and 100 more, dave proposes twice and not more often."""
        self.fill(voters, clock, 6, "user:bob")
        voters.economy.delegate("user:bob", "user:dave")
        voters.economy.stake("user:dave", ADAPTER, 100 * OPEN, "s2")
        self.fill(voters, clock, 2, "user:dave")
        self.refused(voters)

    def test_zero_sets_no_limit(self, tmp_path, clock):
        town = settle_down(Town(tmp_path, clock, Parameters(open_proposals=0)))
        assert len(set(self.fill(town, clock, 12))) == 12
        town.ledger.audit()
        town.close()

    def test_a_log_of_before_has_no_limit(self, voters):
        values = {name: value for name, value in P.values.items() if name != "open_proposals"}
        check_values(values)
        book = ParameterBook()
        book.adopt(5, values)
        assert book.versions[5]["open_proposals"] == 0

    def test_the_audit_names_one_too_many(self, voters, clock, monkeypatch):
        self.fill(voters, clock)
        with monkeypatch.context() as unchecked:
            unchecked.setattr(Governance, "_check_free", lambda *_: None)
            number = int(propose(voters, self.TEXT, "user:dave", "more").removeprefix("prop_"))
        with pytest.raises(Corrupt) as caught:
            voters.ledger.audit()
        seq = voters.ledger.find(place_id(number)).seq
        assert (caught.value.code, caught.value.param) == ("too_many_proposals", f"batch {seq}")


def test_a_proposal_nobody_made_is_not_found(voters):
    with pytest.raises(NotFound) as caught:
        voters.economy.vote("user:bob", "prop_000099", "for")
    assert caught.value.code == "proposal_not_found"


def contested(town, clock):
    """A pool that a dispute contests as a whole: what it left unattributed, once the dispute has expired."""
    (left,) = settled(town, "p0001")
    town.economy.grant("contributor:ctr_b", P.dispute_deposit_nano, "deposit")
    paid = town.economy.balance("contributor:ctr_b").posted_nano - P.dispute_deposit_nano
    town.economy.dispute("contributor:ctr_b", "py", "p0001", "ctr_b", paid + left, "all of it")
    clock.advance(P.dispute_resolve_ms + 1)
    assert town.economy.expire_disputes() == 1
    return left


def test_a_pool_with_a_closed_dispute_is_read_after_a_bounty_took_of_it(voters, clock):
    left = contested(voters, clock)
    proposal = passed(voters, clock, bounty(left // 2))
    clock.advance(P.vote_timelock_ms)
    assert state(voters, proposal) == "Executed"
    assert [one.state for one in voters.economy.disputes("py", "p0001")] == ["expired"]
    voters.restart()
    voters.economy.open_period()
    assert voters.economy.proposal(propose(voters, bounty(left - left // 2), key="p2"))["state"] == "Pending"
    voters.ledger.audit()


def test_a_dispute_that_a_longer_window_allows_after_a_bounty_stops_neither_votes_nor_bounties(tmp_path, clock):
    town = Town(tmp_path, clock, Parameters(dispute_window_ms=DAY_MS))
    town.economy.grant("user:alice", 1_000_000, "start")
    (left,) = settled(settle_down(town), "p0001")
    proposal = passed(town, clock, bounty(left // 2))
    clock.advance(P.vote_timelock_ms)
    assert state(town, proposal) == "Executed"
    longer = town.economy.propose("user:bob", "t", "w", {"kind": "parameters", "changes": LONGER}, "p2")["proposal"]
    to_vote(clock)
    town.economy.vote("user:bob", longer, "for")
    to_end(clock)
    clock.advance(P.vote_timelock_ms)
    town.economy.open_period()
    town.economy.grant("contributor:ctr_b", P.dispute_deposit_nano, "deposit")
    paid = town.economy.balance("contributor:ctr_b").posted_nano - P.dispute_deposit_nano
    assert town.economy.dispute("contributor:ctr_b", "py", "p0001", "ctr_b", paid + left, "all").state == "open"
    with pytest.raises(Conflict) as caught:
        propose(town, bounty(1), key="p3")
    assert caught.value.code == "bounty_exceeds_unattributed"
    town.restart()
    town.ledger.audit()
    town.close()


def test_a_pool_that_can_not_be_read_stops_neither_the_start_nor_another_pools_bounty(
    voters, clock, monkeypatch, caplog
):
    contested(voters, clock)
    settled(voters, "p0002")
    settlement = voters.ledger.find(payout_id("py", "p0001")).seq
    monkeypatch.setattr(Disputes, "take", refusing(Disputes.take, settlement))
    voters.economy._db.execute("INSERT INTO disputed VALUES ('py', 'p0001', 1)")
    clock.advance(P.dispute_window_ms)
    voters.restart()
    assert "the disputes of py in p0001 can't be read" in caplog.text
    proposal = passed(voters, clock, bounty(1))
    assert voters.economy.proposal(proposal)["action"]["from_nano"] == {"pool:py:p0002": 1}
    clock.advance(P.vote_timelock_ms)
    assert state(voters, proposal) == "Executed"
    with pytest.raises(Corrupt):
        voters.economy.disputes("py", "p0001")


def refusing(take, seq):
    def taken(told, batch):
        if batch.seq == seq:
            raise Corrupt("not what it was", code="wrong_dispute", param="statement")
        take(told, batch)

    return taken


def test_a_waiting_bounty_reads_the_pools_that_it_names_and_no_other(tmp_path, clock, monkeypatch):
    town = Town(tmp_path, clock, Parameters(dispute_window_ms=20 * DAY_MS))
    town.economy.grant("user:alice", 1_000_000, "start")
    _, second = settled(settle_down(town), "p0001", "p0002")
    proposal = passed(town, clock, bounty(second, from_nano={"pool:py:p0002": second}))
    town.restart()
    clock.advance(P.vote_timelock_ms)
    read, batch = [], town.ledger.batch
    monkeypatch.setattr(town.ledger, "batch", lambda seq: read.append(seq) or batch(seq))
    assert (town.economy.run_due(), state(town, proposal)) == (0, "Queued")
    assert set(read) == {town.ledger.find(payout_id("py", "p0002")).seq}
    town.close()


def test_a_pool_of_which_nothing_is_left_is_not_read_again(voters, clock, monkeypatch):
    first, second = settled(voters, "p0001", "p0002")
    passed(voters, clock, bounty(first))
    clock.advance(P.vote_timelock_ms)
    voters.economy.run_due()
    propose(voters, bounty(1), key="p2")
    settled(voters, "p0003")
    read, batch = [], voters.ledger.batch
    monkeypatch.setattr(voters.ledger, "batch", lambda seq: read.append(seq) or batch(seq))
    propose(voters, bounty(second), key="p3")
    assert set(read) == {voters.ledger.find(payout_id("py", "p0002")).seq}


def calls_of(ledger, monkeypatch):
    """What is asked of a ledger from now on, by the methods that read a pool."""
    asked = []
    for name in ("find", "transfers", "batch"):
        told = getattr(ledger, name)
        monkeypatch.setattr(ledger, name, lambda *given, told=told: asked.append(given) or told(*given))
    return asked


MADE_UP = {f"pool:py{number}:p0001": 1 for number in range(2000)}


@pytest.mark.parametrize(
    ("proposer", "title", "more", "code"),
    [
        ("user:alice", "t", {}, "below_threshold"),
        ("user:alice", "t", {"from_nano": MADE_UP}, "below_threshold"),
        ("user:bob", "", {}, "invalid_proposal"),
        ("user:bob", "t", {"amount_nano": 2000, "from_nano": MADE_UP}, "invalid_bounty"),
        ("user:bob", "t", {"from_nano": dict.fromkeys(MADE_UP, 0)}, "invalid_bounty"),
        ("user:bob", "t", {"from_nano": {"pool:py:p0001": 2}}, "invalid_bounty"),
        ("user:bob", "t", {"recipient": "holds"}, "invalid_account"),
        ("user:bob", "t", {"more": 1}, "invalid_proposal"),
    ],
)
def test_a_bounty_that_nobody_may_ask_for_reads_no_pool(voters, monkeypatch, proposer, title, more, code):
    settled(voters, "p0001")
    voters.economy.run_due()
    asked = calls_of(voters.ledger, monkeypatch)
    with pytest.raises((Forbidden, InvalidInput)) as caught:
        voters.economy.propose(proposer, title, "x", bounty(1) | more, "k")
    assert caught.value.code == code
    assert {call for call in asked if call[0] != place_id(voters.economy._register.state.number)} == set()


def test_what_pools_have_free_is_read_again_only_after_something_moved(voters, clock, monkeypatch):
    left = settled(voters, "p0001", "p0002", "p0003")
    with pytest.raises(Conflict):
        propose(voters, bounty(sum(left), from_nano={"pool:py:p0002": sum(left)}))
    propose(voters, bounty(sum(left)))
    settlements = {(payout_id("py", period),) for period in ("p0001", "p0002", "p0003")}
    asked = calls_of(voters.ledger, monkeypatch)
    propose(voters, bounty(sum(left)), key="p2")
    assert not settlements & set(asked)
    voters.economy.refund(voters.ledger.usages("pool:py:p0001")[0]["answer_id"], "why")
    with pytest.raises(Conflict) as caught:
        propose(voters, bounty(sum(left)), key="p3")
    assert caught.value.code == "bounty_exceeds_unattributed"
    proposal = propose(voters, bounty(left[1] + left[2]), key="p4")
    assert settlements <= set(asked)
    assert "pool:py:p0001" not in voters.economy.proposal(proposal)["action"]["from_nano"]


def test_what_an_unnamed_bounty_took_is_the_oldest_pools_and_not_promised_again(voters, clock, monkeypatch):
    first, second = settled(voters, "p0001", "p0002")
    with monkeypatch.context() as before:
        before.setattr(BountyBook, "named", lambda _, action: dict(action))
        passed(voters, clock, bounty(first - 1))
    clock.advance(P.vote_timelock_ms)
    assert voters.economy.run_due() == 1
    for pools in ({"pool:py:p0001": 2}, {"pool:py:p0001": 1, "pool:py:p0002": second + 1}):
        with pytest.raises(Conflict) as caught:
            propose(voters, bounty(sum(pools.values()), from_nano=pools), key="p2")
        assert caught.value.code == "bounty_exceeds_unattributed"
    clock.advance(1)
    proposal = propose(voters, bounty(second + 1), key="p3")
    assert voters.economy.proposal(proposal)["action"]["from_nano"] == {"pool:py:p0001": 1, "pool:py:p0002": second}
    to_vote(clock)
    voters.economy.vote("user:bob", proposal, "for")
    to_end(clock)
    clock.advance(P.vote_timelock_ms)
    assert (state(voters, proposal), voters.available("unattributed")) == ("Executed", 0)
    voters.ledger.audit()


def test_a_dispute_of_what_an_unnamed_bounty_took_is_refused_by_its_reason(tmp_path, clock, monkeypatch):
    town = Town(tmp_path, clock, Parameters(dispute_window_ms=20 * DAY_MS))
    town.economy.grant("user:alice", 1_000_000, "start")
    (left,) = settled(settle_down(town), "p0001")
    monkeypatch.setattr(BountyBook, "named", lambda _, action: dict(action))
    passed(town, clock, bounty(left))
    clock.advance(P.vote_timelock_ms)
    assert town.economy.run_due() == 1
    town.economy.grant("contributor:ctr_b", P.dispute_deposit_nano, "deposit")
    with pytest.raises(Conflict) as caught:
        town.economy.dispute("contributor:ctr_b", "py", "p0001", "ctr_b", 150, "all")
    assert caught.value.code == "nothing_to_contest"
    town.close()
