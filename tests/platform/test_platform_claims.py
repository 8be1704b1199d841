"""What people claim, over a real economy, ledger and Datanets: each step in the log, also after lost answers."""

import asyncio
import inspect
import json

import pytest
from economy_values import scores
from house import ADA, ADA_ID, AUDITOR, BOB, DEPOSIT, NOISE, OWNER, POOL, ROWS, House

from openledger.core.appealing import sign_decision
from openledger.core.errors import Conflict, Corrupt, Forbidden, InsufficientFunds, NotFound, Unavailable
from openledger.core.signed import contribution_id
from openledger.core.signing import SigningKey, contributor_id
from openledger.core.values import PRIVATE_ROW, RowDraft
from openledger.datanets.appeals import appeal_of
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.seals import SEAL_MS, seal_of
from openledger.economy import Parameters
from openledger.economy.disputes import recomputed
from openledger.economy.requests import KEPT_MS
from openledger.ledger.disputes import Basis
from openledger.ledger.seals import OPENING, SEAL
from openledger.ledger.signers import Signer, sign_signer
from openledger.platform.desk import is_spam

BABBLE = RowDraft(prompt="What does pack.xor do?", completion="Zzkq wqxv jjxz vkqw qzxj xwkq.", source="pack")
REVIEWER = Signer(role="reviewer", account="user:owner", public_key=OWNER.public_key, datanet="docs")
STRANGER = SigningKey(b"x" * 32)
SIGNED = sign_signer(OWNER, "reviewer", "user:owner", "docs")["signature"]


def reviewer_of(datanet):
    signer = Signer(role="reviewer", account="user:owner", public_key=OWNER.public_key, datanet=datanet)
    return signer, sign_signer(OWNER, "reviewer", "user:owner", datanet)["signature"]


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    yield made
    made.end()


def run(awaitable):
    return asyncio.run(awaitable) if inspect.iscoroutine(awaitable) else awaitable


def rows(key=ADA, nonce="0"):
    return sign_contribution(key, "docs", ROWS, nonce)


class TestASeal:
    def test_is_in_the_log_when_it_is_answered_and_its_rows_when_they_are(self, house):
        told = run(house.seal(seal_of(ADA, rows())))
        assert (told.state, house.logged_seals()) == ("waiting", [SEAL])
        run(house.contribute(rows()))
        assert house.logged_seals() == [SEAL, OPENING]
        found = run(house.find_seal("docs", told.contributor_id, told.digest))
        assert found.state == "opened"
        house.ledger.audit()

    def test_keeps_its_place_before_who_copies_what_was_shown_then(self, house):
        run(house.seal(seal_of(ADA, rows())))
        copy, original = run(house.contribute(rows(BOB))), run(house.contribute(rows()))
        house.rows.publish("docs")
        pairs = zip(copy.verdicts, original.verdicts, strict=True)
        assert house.rows.copies("docs", 1) == {second.row_id: first.row_id for second, first in pairs}

    @pytest.mark.parametrize("lost", ["seal", "log_seal", "unlogged_seals", "mark_seal_logged"])
    def test_is_logged_once_whichever_answer_was_lost(self, house, lost):
        seal = seal_of(ADA, rows())
        (house._economy if lost == "log_seal" else house._datanets).lost.add(lost)
        with pytest.raises(Unavailable):
            run(house.seal(seal))
        first = run(house.seal(seal))
        assert (house.logged_seals(), house.rows.unlogged_seals()) == ([SEAL], [])
        assert run(house.seal(seal)) == first
        house.ledger.audit()

    @pytest.mark.parametrize("lost", ["contribute", "log_opening", "mark_seal_logged"])
    def test_is_opened_once_whichever_answer_was_lost(self, house, lost):
        run(house.seal(seal_of(ADA, rows())))
        (house._economy if lost == "log_opening" else house._datanets).lost.add(lost)
        with pytest.raises(Unavailable):
            run(house.contribute(rows()))
        run(house.contribute(rows()))
        assert (house.logged_seals(), house.rows.unlogged_seals()) == ([SEAL, OPENING], [])
        house.ledger.audit()

    def test_that_was_never_answered_is_put_in_the_log_by_the_next_call(self, house):
        house.rows.seal(seal_of(ADA, rows()))
        run(house.seal(seal_of(BOB, rows(BOB))))
        assert house.logged_seals() == [SEAL, SEAL]

    def test_that_the_log_refuses_is_told_to_its_sender_and_stops_nobody_else(self, house):
        """As where the registry was restored from before the seal, and the seal sent again later."""
        seal = seal_of(ADA, rows())
        house.economy.log_seal("docs", seal.contributor_id, seal.digest, 1)
        with pytest.raises(Conflict):
            run(house.seal(seal))
        run(house.seal(seal_of(BOB, rows(BOB))))
        assert len(run(house.contribute(rows(BOB))).verdicts) == len(ROWS)
        assert house.logged_seals() == [SEAL, SEAL, OPENING]

    def test_that_has_expired_is_not_opened_in_the_log(self, house):
        run(house.seal(seal_of(ADA, rows())))
        house.clock.advance(SEAL_MS + 1)
        run(house.contribute(rows()))
        assert house.logged_seals() == [SEAL]
        house.ledger.audit()


class TestAnAppeal:
    @pytest.fixture
    def appeal(self, house):
        contribution = house.judged()
        run(house.add_reviewer("user:owner", "docs", REVIEWER, SIGNED))
        return appeal_of(ADA, contribution, 3, "it is a checksum")

    def decision(self, appeal, overturned=True):
        return sign_decision(OWNER, "docs", appeal.row_id, "user:owner", overturned=overturned, note="seen")

    def outcome(self, house):
        return house.rows.receipt("docs", contribution_id(house.judged())).verdicts[3].outcome

    def test_goes_from_the_row_to_the_decision(self, house, appeal):
        opened = run(house.appeal(appeal))
        assert (opened["state"], opened["reasons"], opened["decision"]) == ("open", ["noise"], None)
        assert run(house.appealed_row("user:owner", "docs", appeal.row_id))["completion"] == NOISE.completion
        decided = run(house.decide(self.decision(appeal)))
        assert (decided["state"], decided["decision"]["account"]) == ("overturned", "user:owner")
        assert (self.outcome(house), run(house.appeals("docs"))) == ("accept", [decided])
        assert run(house.appeal(appeal)) == run(house.find_appeal("docs", appeal.row_id)) == decided
        house.ledger.audit()

    @pytest.mark.parametrize("lost", ["hold_appeal", "open_appeal", "decide_appeal", "close_appeal"])
    def test_comes_to_the_same_whichever_answer_was_lost(self, house, appeal, lost):
        (house._datanets if lost in ("hold_appeal", "close_appeal") else house._economy).lost.add(lost)
        steps = [lambda: house.appeal(appeal), lambda: house.decide(self.decision(appeal))]
        num_lost = 0
        for step in steps:
            try:
                run(step())
            except Unavailable:
                num_lost += 1
                run(step())
        assert (num_lost, self.outcome(house), house.rows.held_appeals()) == (1, "accept", {})
        house.ledger.audit()

    def test_that_the_log_has_decided_is_carried_out_by_the_next_call(self, house, appeal):
        run(house.appeal(appeal))
        house.economy.decide_appeal(self.decision(appeal))
        assert [one["state"] for one in run(house.appeals("docs"))] == ["overturned"]
        assert (self.outcome(house), house.rows.held_appeals()) == ("accept", {})

    @pytest.mark.parametrize("lost", ["", "standing", "record_outcomes", "acquit"])
    def test_that_is_granted_gives_the_deposit_back_and_counts_for_the_reputation_once(self, tmp_path, lost):
        """Of three rows two were taken for noise; one of these was none, so that the contribution is no spam."""
        house = House(tmp_path, Parameters(contribution_deposit_nano=50))
        house.name_reviewer()
        contribution = sign_contribution(ADA, "docs", (ROWS[0], NOISE, BABBLE), "0")
        identifier = contribution_id(contribution)
        house.economy.grant(f"contributor:{ADA_ID}", DEPOSIT + 50, "deposits")
        house.economy.deposit(f"contributor:{ADA_ID}", identifier)
        assert is_spam(house.rows.contribute(contribution).verdicts)
        house.economy.judge(identifier, is_spam=True)
        appeal = appeal_of(ADA, contribution, 1, "it is a checksum")
        run(house.appeal(appeal))
        (house._datanets if lost == "standing" else house._economy).lost.add(lost)
        for attempt in range(2):
            try:
                run(house.decide(self.decision(appeal)))
            except Unavailable:
                assert (attempt, bool(lost)) == (0, True)
        assert house.economy.balance(f"contributor:{ADA_ID}").available_nano == DEPOSIT + 50
        assert house.economy.reputation(ADA_ID, "docs")["ppm"] == 145_000
        assert house.rows.standing(identifier).verdicts[1].outcome == "accept"
        house.ledger.audit()
        house.end()

    def test_names_no_row_of_a_private_datanet_in_the_log_and_is_not_decided_by_who_has_it(self, house):
        original = house.kept_private()
        copy = house.judged()
        house.name_reviewer()
        house.name_reviewer(BOB, "user:bob")
        own = appeal_of(ADA, copy, 0, "I wrote it")
        told = [run(house.appeal(own)), run(house.find_appeal("docs", own.row_id)), *run(house.appeals("docs"))]
        assert [(one["reasons"], one["duplicate_of"]) for one in told] == [(["exact_duplicate"], PRIVATE_ROW)] * 3
        logged = json.dumps(house.ledger.batch(house.ledger.find(told[0]["transfer_id"]).seq).statement)
        assert (PRIVATE_ROW in logged, original in logged, contributor_id(BOB.public_key) in logged) == (
            True, False, False,
        )  # fmt: skip
        theirs = sign_decision(BOB, "docs", own.row_id, "user:bob", overturned=False)
        with pytest.raises(Forbidden) as caught:
            run(house.decide(theirs))
        assert caught.value.code == "not_a_second_party"
        assert run(house.find_appeal("docs", own.row_id))["state"] == "open"
        assert run(house.decide(self.decision(own)))["state"] == "overturned"
        house.ledger.audit()

    def test_of_a_damaged_datanet_waits_and_keeps_no_other_from_being_closed(self, house, appeal):
        house.rows.create("mails", "What mails say", "user:owner")
        other = sign_contribution(ADA, "mails", (*ROWS, BABBLE), "0")
        house.rows.contribute(other)
        house.economy.grant(f"contributor:{ADA_ID}", DEPOSIT, "another deposit")
        run(house.add_reviewer("user:owner", "mails", *reviewer_of("mails")))
        second = appeal_of(ADA, other, 3, "it is babble")
        for one in (appeal, second):
            run(house.appeal(one))
        house.economy.decide_appeal(self.decision(appeal))
        house.economy.decide_appeal(
            sign_decision(OWNER, "mails", second.row_id, "user:owner", overturned=True, note="seen")
        )
        damage = Corrupt("rows are missing", code="rows_missing")
        house.rows._damages["docs"] = damage
        num_stored = house.rows.stored_count("docs")
        assert [one["state"] for one in run(house.appeals("mails"))] == ["overturned"]
        assert run(house.find_appeal("docs", appeal.row_id))["state"] == "overturned"
        assert list(house.rows.held_appeals()) == [appeal.row_id]
        assert house.rows.stored_count("docs") == num_stored
        del house.rows._damages["docs"]
        run(house.appeals("docs"))
        assert (self.outcome(house), house.rows.held_appeals()) == ("accept", {})
        assert house.rows.stored_count("docs") == num_stored + 1

    @pytest.mark.parametrize("account", [f"contributor:{contributor_id(BOB.public_key)}", "contributor:ctr_else"])
    def test_does_not_tell_a_stranger_whose_the_private_original_is(self, house, account):
        house.kept_private()
        copy = house.judged()
        own = appeal_of(ADA, copy, 0, "I wrote it")
        run(house.appeal(own))
        with pytest.raises(Forbidden) as caught:
            run(house.decide(sign_decision(STRANGER, "docs", own.row_id, account, overturned=False)))
        assert caught.value.code == "not_a_signer"
        assert run(house.find_appeal("docs", own.row_id))["state"] == "open"

    def test_that_nobody_decides_lapses_and_its_row_is_deleted_by_the_next_call(self, house, appeal):
        run(house.appeal(appeal))
        house.clock.advance(Parameters().dispute_resolve_ms + 1)
        assert [one["state"] for one in run(house.appeals("docs"))] == ["lapsed"]
        assert (self.outcome(house), house.rows.held_appeals()) == ("reject", {})

    def test_without_its_deposit_keeps_nothing(self, house):
        with pytest.raises(InsufficientFunds):
            run(house.appeal(appeal_of(ADA, house.judged(funded=False), 3, "it is a checksum")))
        assert (house.rows.held_appeals(), run(house.appeals("docs"))) == ({}, [])

    def test_against_a_verdict_that_is_being_appealed_does_not_take_the_first_ones_row(self, house, appeal):
        run(house.appeal(appeal))
        with pytest.raises(Conflict) as caught:
            run(house.appeal(appeal_of(ADA, house.judged(), 3, "for another reason")))
        assert caught.value.code == "appeal_exists"
        assert list(house.rows.held_appeals()) == [appeal.row_id]

    def test_whose_deposit_never_came_is_forgotten_after_an_hour(self, house, appeal):
        house.rows.hold_appeal(appeal)
        run(house.appeals("docs"))
        assert list(house.rows.held_appeals()) == [appeal.row_id]
        house.clock.advance(3_600_001)
        run(house.appeals("docs"))
        assert house.rows.held_appeals() == {}

    @pytest.mark.parametrize("account", ["user:else", "contributor:ctr_x"])
    def test_shows_its_row_to_owner_and_reviewers_alone(self, house, appeal, account):
        run(house.appeal(appeal))
        with pytest.raises(Forbidden) as caught:
            run(house.appealed_row(account, "docs", appeal.row_id))
        assert caught.value.code == "not_the_owner"
        key = SigningKey(b"r" * 32)
        signer = Signer(role="reviewer", account=account, public_key=key.public_key, datanet="docs")
        run(
            house.add_reviewer("user:owner", "docs", signer, sign_signer(key, "reviewer", account, "docs")["signature"])
        )
        assert run(house.appealed_row(account, "docs", appeal.row_id))["prompt"] == NOISE.prompt
        run(house.end_reviewer("user:owner", "docs", signer))
        with pytest.raises(Forbidden):
            run(house.appealed_row(account, "docs", appeal.row_id))

    def test_is_decided_by_reviewers_whom_the_owner_named(self, house, appeal):
        signature = sign_signer(OWNER, "reviewer", "user:owner", "docs")["signature"]
        with pytest.raises(Forbidden) as caught:
            run(house.add_reviewer("user:else", "docs", REVIEWER, signature))
        assert caught.value.code == "not_the_owner"


class TestADispute:
    @pytest.fixture
    def opened(self, house):
        house.settled()
        return run(house.open_dispute(f"contributor:{ADA_ID}", *POOL, ADA_ID, 100, "mine"))

    def test_is_opened_found_and_decided(self, house, opened):
        assert (opened["state"], opened["paid_nano"], opened["verdict"]) == ("open", 21, None)
        assert run(house.disputes(*POOL)) == [opened]
        assert run(house.find_dispute(opened["dispute_id"])) == opened
        house.name_scorer()
        more = scores(scores_nano={"ctr_a": 80, ADA_ID: 120}, errors_nano={"ctr_a": 15, ADA_ID: 5})
        found = recomputed(AUDITOR, "user:auditor", Basis(num_answers=1, answers_nano=155), more)
        decided = run(house.resolve_dispute(opened["dispute_id"], found))
        assert (decided["state"], decided["verdict"]["scorer"]) == ("upheld", "user:auditor")
        assert decided["award_nano"] == decided["verdict"]["recomputed_nano"] - 21 > 0
        house.ledger.audit()

    def test_that_expired_says_so_when_it_is_looked_at(self, house, opened):
        house.clock.advance(Parameters().dispute_resolve_ms + 1)
        assert run(house.find_dispute(opened["dispute_id"]))["state"] == "expired"

    def test_of_another_id_is_not_found(self, house, opened):
        for name in ("dsp_none", opened["dispute_id"] + "0", house.economy.grant("user:x", 1, "x")):
            with pytest.raises(NotFound) as caught:
                run(house.find_dispute(name))
            assert caught.value.code == "dispute_not_found"


class TestRetention:
    def test_is_told_set_and_forgotten(self, house):
        house.sold()
        told = {"account": "user:alice", "keep": True, "num_kept": 1, "has_key": True}
        assert run(house.retention("user:alice")) == told
        assert run(house.set_retention("user:alice", False)) == {**told, "keep": False}
        gone = {"keep": False, "num_kept": 0, "has_key": False, "num_erased": 1}
        assert run(house.forget_content("user:alice")) == {**told, **gone}


def test_an_idempotency_key_stands_for_one_request(house):
    run(house.check_request("user:alice", "k", "a"))
    run(house.check_request("user:alice", "k", "a"))
    run(house.check_request("user:bob", "k", "b"))
    with pytest.raises(Conflict) as caught:
        run(house.check_request("user:alice", "k", "b"))
    assert caught.value.code == "idempotency_conflict"
    house.clock.advance(KEPT_MS + 1)
    run(house.check_request("user:alice", "k", "b"))
