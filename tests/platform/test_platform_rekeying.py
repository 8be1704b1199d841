"""Keys that are rotated and recovered: everything that contributors sign, over a real economy, ledger and Datanets."""

import asyncio
import inspect
import json
from dataclasses import replace

import apsw
import pytest
from economy_values import scores
from house import ADA, ADA_ID, AUDITOR, BOB, DEPOSIT, OWNER, ROWS, House, Remote

from openledger.core.appealing import sign_decision
from openledger.core.errors import Conflict, Corrupt, Forbidden, InvalidInput, TooManyRequests, Unavailable
from openledger.core.permitting import sign_request
from openledger.core.rating import sign_rating
from openledger.core.rekeying import Keys, change_json, first_keys, sign_change
from openledger.core.signing import SigningKey
from openledger.datanets import holders
from openledger.datanets.appeals import appeal_of
from openledger.datanets.contribution import sign_contribution, signed_bytes
from openledger.datanets.datanets import Datanets
from openledger.datanets.feedback import RATING, Feedback
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.seals import seal_of
from openledger.datanets.shard import ShardHost
from openledger.economy.disputes import recomputed
from openledger.ledger.disputes import Basis
from openledger.ledger.removals import removal_accounts, removal_statement, removal_transfers
from openledger.ledger.seals import OPENING, SEAL
from openledger.platform import claims

NEW, RECOVERY, THIEF = (SigningKey(name * 32, ADA_ID) for name in (b"n", b"r", b"t"))
NAMED = sign_change(first_keys(ADA.public_key), [ADA, RECOVERY], recovery_key=RECOVERY.public_key)
ROTATED = sign_change(NAMED.keys(), [RECOVERY, NEW], public_key=NEW.public_key)
ROTATION = sign_change(first_keys(ADA.public_key), [ADA, NEW], public_key=NEW.public_key)  # no recovery key was named


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    yield made
    made.end()


@pytest.fixture
def rotated(house):
    run(house.change_keys(NAMED))
    run(house.change_keys(ROTATED))
    return house


def run(awaitable):
    return asyncio.run(awaitable) if inspect.iscoroutine(awaitable) else awaitable


def rows(key=ADA, nonce="0", drafts=ROWS):
    return sign_contribution(key, "docs", drafts, nonce)


def code_of(raised, call, *arguments):
    with pytest.raises(raised) as caught:
        run(call(*arguments))
    return caught.value.code


def log_removals(house):
    house.ledger.create_accounts(removal_accounts("docs"))
    for removal in house.rows.unlogged_removals():
        statement = removal_statement(removal)
        house.ledger.commit(removal_transfers(statement), statement)
        house.rows.mark_removal_logged(removal.removal_id)


class TestAContribution:
    def test_is_the_contributors_whichever_of_his_keys_signed_it(self, house):
        before = run(house.contribute(rows()))
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        after = run(house.contribute(rows(NEW, "1", (replace(ROWS[0], completion="It splits what was joined."),))))
        assert (before.contributor_id, after.contributor_id) == (ADA_ID, ADA_ID)
        assert [one.contributor_id for one in house.rows.contributors()] == [ADA_ID]
        assert house.rows.contributors()[0].public_key == NEW.public_key

    def test_by_the_replaced_key_is_refused(self, rotated):
        assert code_of(Forbidden, rotated.contribute, rows()) == "key_replaced"
        assert code_of(Forbidden, rotated.contribute, rows(RECOVERY)) == "key_replaced"

    def test_that_came_before_is_answered_again_as_it_was(self, house):
        first = run(house.contribute(rows()))
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        assert run(house.contribute(rows())) == first

    def test_by_a_strangers_key_in_his_name_is_refused(self, rotated):
        assert code_of(InvalidInput, rotated.contribute, rows(THIEF)) == "invalid_signature"
        assert code_of(InvalidInput, rotated.rows.check_key, ADA_ID, THIEF.public_key) == "invalid_signature"

    def test_of_the_new_key_alone_is_not_another_contributors(self, rotated):
        """Named after the new key itself, it would give one key two names."""
        own = SigningKey(b"n" * 32)
        assert code_of(InvalidInput, rotated.contribute, rows(own)) == "invalid_signature"

    def test_survives_that_the_house_is_opened_again(self, rotated, tmp_path):
        rotated.end()
        again = House(tmp_path)
        assert run(again.contribute(rows(NEW))).contributor_id == ADA_ID
        assert code_of(Forbidden, again.contribute, rows(nonce="1")) == "key_replaced"
        again.end()


class TestASeal:
    def test_made_before_is_opened_by_the_key_that_made_it(self, house):
        run(house.seal(seal_of(ADA, rows())))
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        assert run(house.contribute(rows())).contributor_id == ADA_ID
        assert house.logged_seals() == [SEAL, OPENING]
        house.ledger.audit()

    def test_by_the_replaced_key_is_refused_and_one_by_the_new_key_is_opened(self, rotated):
        assert code_of(Forbidden, rotated.seal, seal_of(ADA, rows())) == "key_replaced"
        run(rotated.seal(seal_of(NEW, rows(NEW))))
        run(rotated.contribute(rows(NEW)))
        assert rotated.logged_seals() == [SEAL, OPENING]
        rotated.ledger.audit()

    def test_is_in_the_log_before_the_change_that_came_after_it(self, house):
        house.rows.seal(seal_of(ADA, rows()))  # and the answer was lost before the log had it
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        run(house.contribute(rows()))
        house.ledger.audit()

    def test_that_a_replaced_key_made_after_its_end_is_found_by_the_audit(self, house):
        house.economy.change_keys(NAMED)
        house.economy.change_keys(ROTATED)
        late = rows()
        seal, signed = seal_of(ADA, late), json.loads(signed_bytes(late))
        house.economy.log_seal("docs", ADA_ID, seal.digest, house.clock.now_ms() + 10**9)
        opening = {"public_key": ADA.public_key, "signed": signed, "signature": late.signature, "opened_ms": 1}
        house.economy.log_opening("docs", ADA_ID, seal.digest, **opening)
        assert code_of(Corrupt, house.ledger.audit) == "wrong_key"


class TestAWithdrawal:
    def test_by_the_new_key_takes_back_what_the_old_one_contributed(self, house):
        receipt = run(house.contribute(rows()))
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        row_id = receipt.verdicts[0].row_id
        assert code_of(Forbidden, house.rows.withdraw, sign_withdrawal(ADA, "docs", [row_id], "0")) == "key_replaced"
        house.rows.withdraw(sign_withdrawal(NEW, "docs", [row_id], "0"))
        assert house.rows.stored_count("docs") == len(ROWS) - 1
        log_removals(house)
        house.ledger.audit()

    def test_that_came_before_is_answered_again_and_stands_in_the_log_before_the_change(self, house):
        receipt = run(house.contribute(rows()))
        wish = sign_withdrawal(ADA, "docs", [receipt.verdicts[0].row_id], "0")
        first = house.rows.withdraw(wish)
        log_removals(house)
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        assert house.rows.withdraw(wish) == first
        house.ledger.audit()

    def test_by_the_replaced_key_behind_the_change_is_found_by_the_audit(self, house):
        receipt = run(house.contribute(rows()))
        house.rows.withdraw(sign_withdrawal(ADA, "docs", [receipt.verdicts[0].row_id], "0"))
        house.economy.change_keys(NAMED)
        house.economy.change_keys(ROTATED)
        log_removals(house)
        assert code_of(Corrupt, house.ledger.audit) == "wrong_key"


class TestAnAppeal:
    def test_is_opened_by_the_new_key_and_not_by_the_old_one(self, house):
        house.name_reviewer()
        contribution = house.judged()
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        assert code_of(Forbidden, house.appeal, appeal_of(ADA, contribution, 3, "no")) == "key_replaced"
        opened = run(house.appeal(appeal_of(NEW, contribution, 3, "it is a checksum")))
        assert (opened["state"], opened["contributor_id"]) == ("open", ADA_ID)
        house.ledger.audit()

    def test_by_a_key_that_was_replaced_on_its_way_keeps_no_row(self, house):
        """Between the Datanets, which took it, and the economy."""
        appeal = appeal_of(ADA, house.judged(), 3, "it is a checksum")
        house.economy.change_keys(ROTATION)
        assert code_of(Forbidden, house.appeal, appeal) == "key_replaced"
        assert house.rows.held_appeals() == {}

    def test_by_the_old_key_is_told_as_it_stands_when_it_is_sent_again(self, house):
        appeal = appeal_of(ADA, house.judged(), 3, "it is a checksum")
        first = run(house.appeal(appeal))
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        assert run(house.appeal(appeal)) == first

    def test_is_decided_by_the_reviewers_new_key(self, house):
        house.name_reviewer()
        appeal = appeal_of(ADA, house.judged(), 3, "it is a checksum")
        run(house.appeal(appeal))
        successor = SigningKey(b"p" * 32, OWNER.contributor_id)
        run(
            house.change_keys(
                sign_change(first_keys(OWNER.public_key), [OWNER, successor], public_key=successor.public_key)
            )
        )
        said = ("docs", appeal.row_id, "user:owner")
        assert code_of(Forbidden, house.decide, sign_decision(OWNER, *said, overturned=True)) == "key_replaced"
        assert run(house.decide(sign_decision(successor, *said, overturned=True)))["state"] == "overturned"
        house.ledger.audit()

    def test_is_not_decided_by_who_contributed_the_row_under_a_later_key(self, house):
        appeal = appeal_of(ADA, house.judged(), 3, "it is a checksum")
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        run(house.appeal(replace(appeal_of(NEW, house.judged(), 3, "it is a checksum"))))
        house.name_reviewer(NEW, "user:other")
        decision = sign_decision(NEW, "docs", appeal.row_id, "user:other", overturned=True)
        assert code_of(Forbidden, house.decide, decision) == "not_a_second_party"


class TestMoney:
    def test_is_earned_by_the_contributor_and_claimed_by_the_new_key(self, house):
        house.settled()
        run(house.change_keys(NAMED))
        run(house.change_keys(ROTATED))
        account = f"contributor:{run(house.key_holder(NEW.public_key))}"
        assert house.economy.balance(account).available_nano > DEPOSIT
        opened = run(house.open_dispute(account, "py", "p0001", ADA_ID, 100, "mine are missing"))
        assert (opened["contributor"], opened["state"]) == (ADA_ID, "open")
        assert code_of(Forbidden, house.key_holder, ADA.public_key) == "key_replaced"

    def test_is_not_recomputed_by_the_claimant_under_a_later_key(self, house):
        house.settled()
        house.name_scorer()
        run(house.open_dispute(f"contributor:{ADA_ID}", "py", "p0001", ADA_ID, 100, "mine are missing"))
        successor = SigningKey(b"z" * 32, AUDITOR.contributor_id)
        change = sign_change(first_keys(AUDITOR.public_key), [AUDITOR, successor], public_key=successor.public_key)
        run(house.change_keys(change))
        found = scores(scores_nano={"ctr_a": 80, ADA_ID: 120}, errors_nano={"ctr_a": 15, ADA_ID: 5})
        basis = Basis(num_answers=1, answers_nano=155)
        old = recomputed(AUDITOR, "user:auditor", basis, found)
        assert code_of(Forbidden, house.economy.resolve_dispute, ADA_ID, old) == "key_replaced"
        decided = house.economy.resolve_dispute(ADA_ID, recomputed(successor, "user:auditor", basis, found))
        assert decided.state == "upheld"
        house.ledger.audit()


class TestAHeldChange:
    """One that isn't in the log, as while ledger or economy are away."""

    @pytest.fixture
    def held(self, house):
        house.receipt = run(house.contribute(rows()))
        house.rows.hold_keys(ROTATION)
        return house

    def test_lets_the_new_key_sign_nothing_that_the_log_would_have_before_it(self, held):
        wish = sign_withdrawal(NEW, "docs", [held.receipt.verdicts[0].row_id], "0")
        assert code_of(InvalidInput, held.rows.withdraw, wish) == "invalid_signature"
        log_removals(held)
        run(held.change_keys(ROTATION))
        held.rows.withdraw(wish)
        log_removals(held)
        held.ledger.audit()

    def test_lets_neither_key_contribute_in_any_name(self, held):
        assert code_of(Forbidden, held.contribute, rows(nonce="1")) == "key_replaced"
        assert code_of(Forbidden, held.contribute, rows(NEW, "1")) == "key_awaited"
        own = SigningKey(b"n" * 32)
        assert code_of(Forbidden, held.contribute, rows(own, "1")) == "key_awaited"
        assert code_of(Forbidden, held.rows.seal, seal_of(own, rows(own))) == "key_awaited"
        run(held.change_keys(ROTATION))
        assert run(held.contribute(rows(NEW, "1"))).contributor_id == ADA_ID

    def test_stops_the_old_key_after_a_restart_too(self, held, tmp_path):
        held.end()
        again = House(tmp_path)
        assert code_of(Forbidden, again.contribute, rows(nonce="1")) == "key_replaced"
        assert code_of(Forbidden, again.contribute, rows(NEW, "1")) == "key_awaited"
        again.end()

    def test_of_another_key_waits_until_it_is_settled(self, held):
        other = sign_change(first_keys(ADA.public_key), [ADA, RECOVERY], public_key=RECOVERY.public_key)
        assert code_of(Conflict, held.change_keys, other) == "key_change_underway"
        held.clock.advance(3_600_001)
        assert run(held.change_keys(other))["public_key"] == RECOVERY.public_key

    def test_that_the_log_has_comes_before_the_next_one(self, held):
        held.economy.change_keys(ROTATION)
        following = sign_change(ROTATION.keys(), [NEW, RECOVERY], recovery_key=RECOVERY.public_key)
        assert run(held.change_keys(following))["num_changes"] == 2
        assert held.rows.held_keys() == []

    def test_that_is_sent_again_is_not_dropped_for_its_age(self, held):
        held.clock.advance(3_600_001)
        held.rows.hold_keys(ROTATION)
        held.rows.drop_keys(ROTATION, 3_600_000)
        assert code_of(Forbidden, held.contribute, rows(nonce="1")) == "key_replaced"

    def test_waits_for_a_withdrawal_that_an_outage_cut_off(self, house, monkeypatch):
        receipt = run(house.contribute(rows()))
        wish = sign_withdrawal(ADA, "docs", [receipt.verdicts[0].row_id], "0")
        with monkeypatch.context() as away:
            away.setattr(house.rows, "_forget_words", lost_shard)
            assert code_of(Unavailable, house.rows.withdraw, wish) == "storage_unavailable"
            assert code_of(Unavailable, house.change_keys, ROTATION) == "storage_unavailable"
            assert house.rows.held_keys() == []
        house.rows.hold_keys(ROTATION)
        log_removals(house)
        run(house.change_keys(ROTATION))
        assert house.rows.withdraw(wish).row_ids == wish.row_ids
        log_removals(house)
        house.ledger.audit()


def lost_shard():
    raise Unavailable("the shard is away", code="storage_unavailable")


class TestAStranger:
    """Who has keys and nothing else."""

    FIRST, SECOND, THIRD = (SigningKey(name * 32) for name in (b"1", b"2", b"3"))
    ROTATED = sign_change(first_keys(FIRST.public_key), [FIRST, SECOND], public_key=SECOND.public_key)
    AS_SECOND = sign_change(first_keys(SECOND.public_key), [SECOND, THIRD], public_key=THIRD.public_key)

    def test_who_gives_a_key_of_his_a_second_name_is_refused_and_stops_nobody(self, house, tmp_path):
        run(house.change_keys(self.ROTATED))
        assert code_of(Conflict, house.change_keys, self.AS_SECOND) == "key_in_use"
        assert run(house.change_keys(NAMED))["num_changes"] == 1
        house.end()
        again = House(tmp_path)
        assert run(again.change_keys(ROTATED))["num_changes"] == 2
        again.ledger.audit()
        again.end()

    def test_who_gives_his_recovery_key_a_name_is_refused(self, house):
        named = sign_change(first_keys(self.FIRST.public_key), [self.FIRST, self.SECOND],
                            recovery_key=self.SECOND.public_key)  # fmt: skip
        run(house.change_keys(named))
        assert code_of(Conflict, house.change_keys, self.AS_SECOND) == "key_in_use"
        assert run(house.change_keys(NAMED))["num_changes"] == 1

    def test_who_names_a_key_by_two_changes_at_once_gets_one_of_them(self, house):
        house.rows.hold_keys(self.ROTATED)
        twice = sign_change(first_keys(self.THIRD.public_key), [self.THIRD, self.SECOND],
                            public_key=self.SECOND.public_key)  # fmt: skip
        assert code_of(Conflict, house.change_keys, twice) == "key_in_use"

    def test_whose_change_broke_the_registry_before_does_not_keep_it_from_starting(self, house, tmp_path):
        run(house.change_keys(self.ROTATED))
        add = "INSERT INTO key_changes VALUES (?, 1, ?, 0, 0)"
        said = json.dumps(change_json(self.AS_SECOND), sort_keys=True)
        house.rows._registry._connection.execute(add, (self.AS_SECOND.contributor_id, said))
        house.end()
        again = House(tmp_path)
        assert again.rows.held_keys()[0].change == self.AS_SECOND
        run(again._settle_keys())
        assert (again.rows.held_keys(), run(again.change_keys(NAMED))["num_changes"]) == ([], 1)
        again.end()

    def test_who_uses_up_the_days_number_does_not_keep_a_reviewer_from_replacing_his_key(self, house, monkeypatch):
        monkeypatch.setattr(holders, "MAX_OF_STRANGERS_A_DAY", 1)
        house.name_reviewer()
        run(house.change_keys(self.ROTATED))
        assert code_of(TooManyRequests, house.change_keys, ROTATION) == "too_many_key_changes"
        change = sign_change(first_keys(OWNER.public_key), [OWNER, NEW], public_key=NEW.public_key)
        assert run(house.change_keys(change))["num_changes"] == 1
        house.ledger.audit()


class TestFeedback:
    def test_is_credited_to_the_contributor_by_the_new_key(self, rotated):
        signed = sign_rating(NEW, "ans_1", 5)
        given = Feedback(
            answer_id="ans_1", contributor_id=ADA_ID, kind=RATING, datanet="docs", public_key=NEW.public_key,
            signature=signed, rating=5,
        )  # fmt: skip
        rotated.rows.add_feedback(given)
        assert [one.contributor_id for one in rotated.rows.feedback("ans_1")] == [ADA_ID]
        forged = replace(given, public_key=THIEF.public_key)
        assert code_of(InvalidInput, rotated.rows.add_feedback, forged) == "invalid_signature"

    def test_a_request_for_permission_is_the_contributors(self, rotated):
        told = run(rotated.request_contributing("docs", NEW.public_key, sign_request(NEW, "docs")))
        assert told["party"] == ADA_ID
        old = ("docs", ADA.public_key, sign_request(ADA, "docs"))
        assert code_of(Forbidden, rotated.request_contributing, *old) == "key_replaced"


class TestAChange:
    @pytest.mark.parametrize("lost", ["key_change", "hold_keys", "change_keys", "adopt_keys", "contributor_keys"])
    def test_is_made_once_whichever_answer_was_lost(self, house, lost):
        (house._datanets if lost in ("hold_keys", "adopt_keys") else house._economy).lost.add(lost)
        with pytest.raises(Unavailable):
            run(house.change_keys(NAMED))
        told = run(house.change_keys(NAMED))
        assert (told["num_changes"], told["recovery_key"]) == (1, RECOVERY.public_key)
        assert house.rows.held_keys() == []
        assert run(house.change_keys(NAMED)) == told
        house.ledger.audit()

    def test_that_the_log_has_is_adopted_by_the_clock(self, house):
        house.rows.hold_keys(NAMED)
        house.economy.change_keys(NAMED)
        run(house._settle_keys())
        assert house.rows.held_keys() == []
        run(house.change_keys(ROTATED))
        assert run(house.contribute(rows(NEW))).contributor_id == ADA_ID

    def test_that_a_restored_registry_forgot_is_read_from_the_log(self, rotated, tmp_path):
        """As restored from before the change: else the replaced key would sign again."""
        rotated.end()
        with apsw.Connection(str(next(tmp_path.rglob("registry.sqlite")))) as registry:
            registry.execute("DELETE FROM key_changes")
        again = House(tmp_path)
        again.rows.check_key(ADA_ID, ADA.public_key)
        run(again._restore_keys())
        assert code_of(Forbidden, again.contribute, rows()) == "key_replaced"
        assert run(again.contribute(rows(NEW))).contributor_id == ADA_ID
        again.ledger.audit()
        again.end()

    def test_is_read_once_and_in_pages(self, rotated, monkeypatch):
        monkeypatch.setattr(claims, "_PAGE", 1)
        run(rotated._restore_keys())
        run(rotated.change_keys(ROTATED))  # sent again, it isn't to be told anew
        asked = []
        batch = rotated.economy._signers.keys._ledger.batch
        monkeypatch.setattr(rotated.ledger, "batch", lambda seq: asked.append(seq) or batch(seq))
        run(rotated._restore_keys())
        assert (len(asked), rotated.rows.keys_told()[1], rotated.rows.untold_keys()) == (1, ROTATED, [])

    def test_that_a_registry_forgot_under_a_running_gateway_is_read_again(self, rotated, tmp_path):
        run(rotated._restore_keys())
        with apsw.Connection(str(next(tmp_path.rglob("registry.sqlite")))) as registry:
            registry.execute("DELETE FROM key_changes")
            registry.execute("DELETE FROM key_changes_told")
        rotated.rows.close()
        rotated.rows = Datanets(tmp_path, [ShardHost(tmp_path / "shard-0")], rotated.clock)
        rotated._datanets = Remote(rotated.rows)
        run(rotated._restore_keys())
        assert code_of(Forbidden, rotated.contribute, rows()) == "key_replaced"

    def test_that_a_restored_log_forgot_although_it_was_told_is_sent_to_it_again(self, rotated, tmp_path):
        run(rotated._restore_keys())
        again = self.with_older_log(rotated, tmp_path)
        run(again._restore_keys())
        assert (run(again.contributor_keys(ADA_ID))["num_changes"], run(again.key_holder(NEW.public_key))) == (
            2,
            ADA_ID,
        )
        run(again._restore_keys())
        assert again.rows.untold_keys() == []
        again.ledger.audit()
        again.end()

    def test_that_a_restored_log_forgot_is_sent_to_it_again(self, rotated, tmp_path):
        again = self.with_older_log(rotated, tmp_path)
        run(again._restore_keys())
        assert (run(again.contributor_keys(ADA_ID))["num_changes"], run(again.key_holder(NEW.public_key))) == (
            2,
            ADA_ID,
        )
        assert run(again.contribute(rows(NEW))).contributor_id == ADA_ID
        again.ledger.audit()
        again.end()

    def test_that_a_restored_log_forgot_and_refuses_is_forgotten_by_the_datanets(self, rotated, tmp_path):
        run(rotated.contribute(rows(NEW)))
        again = self.with_older_log(rotated, tmp_path)
        taken = sign_change(first_keys(BOB.public_key), [BOB, RECOVERY], public_key=RECOVERY.public_key)
        again.economy.change_keys(taken)
        run(again._restore_keys())
        assert (again.rows.held_keys(), again.rows.keys_told()[1], again.rows.untold_keys()) == ([], taken, [])
        assert code_of(InvalidInput, again.contribute, rows(NEW, "1")) == "invalid_signature"
        assert again.rows.contributors()[0].public_key == ADA.public_key
        assert run(again.contribute(rows(nonce="2"))).contributor_id == ADA_ID
        again.ledger.audit()
        again.end()

    def with_older_log(self, house, folder):
        """The house again, its log from before there was anything in it."""
        house.end()
        (folder / "ledger.db").rename(folder / "lost.db")
        return House(folder)

    def test_that_never_came_to_the_log_is_dropped_after_an_hour(self, house):
        rotation = sign_change(first_keys(ADA.public_key), [ADA, NEW], public_key=NEW.public_key)
        house.rows.hold_keys(rotation)
        run(house._settle_keys())
        assert code_of(Forbidden, house.contribute, rows()) == "key_replaced"
        house.clock.advance(3_600_001)
        run(house._settle_keys())
        assert run(house.contribute(rows())).contributor_id == ADA_ID

    def test_that_the_log_refuses_leaves_the_key_in_force(self, house):
        """As where the registry was restored from before another contributor took that key."""
        other = sign_change(first_keys(BOB.public_key), [BOB, NEW], public_key=NEW.public_key)
        house.economy.change_keys(other)
        rotation = sign_change(first_keys(ADA.public_key), [ADA, NEW], public_key=NEW.public_key)
        assert code_of(Conflict, house.change_keys, rotation) == "key_in_use"
        assert (house.rows.held_keys(), run(house.contribute(rows())).contributor_id) == ([], ADA_ID)

    def test_by_the_thief_of_the_signing_key_is_refused_and_the_owner_recovers(self, house):
        run(house.change_keys(NAMED))
        with pytest.raises(Forbidden):
            sign_change(NAMED.keys(), [ADA, THIEF], public_key=THIEF.public_key)
        bare = sign_change(first_keys(ADA.public_key), [ADA, THIEF], public_key=THIEF.public_key)
        assert code_of(Conflict, house.change_keys, bare) == "stale_key_change"
        run(house.change_keys(ROTATED))
        told = run(house.contributor_keys(ADA_ID))
        assert (told["public_key"], told["num_changes"]) == (NEW.public_key, 2)

    def test_to_a_key_that_somebody_contributes_with_is_refused(self, house):
        run(house.contribute(rows(BOB)))
        change = sign_change(first_keys(ADA.public_key), [ADA, BOB], public_key=BOB.public_key)
        assert code_of(Conflict, house.change_keys, change) == "key_in_use"

    def test_to_a_key_that_somebody_sealed_with_is_refused(self, house):
        """Opened behind the change, the seal would be another's by then."""
        own = SigningKey(b"n" * 32)
        run(house.seal(seal_of(own, rows(own))))
        assert code_of(Conflict, house.change_keys, ROTATION) == "key_in_use"
        assert run(house.contribute(rows(own))).contributor_id == own.contributor_id
        house.ledger.audit()

    def test_that_is_replayed_after_the_next_one_changes_nothing(self, rotated):
        told = run(rotated.change_keys(NAMED))
        assert told["num_changes"] == 2
        assert run(rotated.key_holder(NEW.public_key)) == ADA_ID

    def test_of_a_contributor_who_never_changed_any_is_told_so(self, house):
        told = run(house.contributor_keys(ADA_ID))
        assert told == {"contributor_id": ADA_ID, "public_key": None, "recovery_key": None, "num_changes": 0,
                        "changes": []}  # fmt: skip
        assert Keys(contributor_id=ADA_ID, public_key=ADA.public_key) == first_keys(ADA.public_key)
