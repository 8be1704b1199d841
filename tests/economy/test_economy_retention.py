"""What is kept of what was asked and answered: under whose key, for how long, and what is lost without it."""

import subprocess
import sys
from pathlib import Path

import pytest
from economy_values import Town, answer, scores
from economy_worker import UNKEPT

from openledger.core.clock import SystemClock
from openledger.core.errors import Conflict, Corrupt, InvalidInput
from openledger.core.ids import first_id, new_id
from openledger.core.signing import SigningKey
from openledger.economy import Parameters
from openledger.economy.disputes import recomputed
from openledger.economy.payloads import PayloadCipher
from openledger.ledger.disputes import Basis
from openledger.ledger.signers import Signer, sign_signer

P = Parameters()
DAY_MS = 86_400_000
WORKER = Path(__file__).parent.parent / "economy_worker.py"


@pytest.fixture
def two(town):
    """Alice and Bob have each bought an answer; their ids."""
    town.economy.grant("user:bob", 1_000_000, "bob")
    sold = [town.authorize(f"k-{account}", account=account) for account in ("user:alice", "user:bob")]
    for authorized in sold:
        town.economy.complete(answer(authorized))
    return [authorized.answer_id for authorized in sold]


def payload(town, answer_id):
    return town.economy._db.execute("SELECT payload FROM answers WHERE answer_id = ?", (answer_id,)).fetchone()[0]


def stored_bytes(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.name.startswith("economy.db"))


class TestATenantsKey:
    def test_opens_only_its_own_payloads(self, town, two):
        tenants = town.economy._tenants
        sealed = payload(town, two[0])
        assert b"prompt_ids" in tenants.open("user:alice", two[0], sealed)
        for account, name, data in (
            ("user:bob", two[0], sealed),
            ("user:alice", two[1], sealed),
            ("user:alice", two[0], sealed[:-1]),
            ("user:nobody", two[0], sealed),
        ):
            with pytest.raises(Corrupt) as caught:
                tenants.open(account, name, data)
            assert caught.value.code == "corrupt_payload"

    def test_outlives_a_restart(self, town, two):
        town.restart()
        assert {one.answer_id for one in town.economy.pool("py", "p0001").answers} == set(two)

    def test_is_not_in_the_database_as_it_is(self, town, two):
        ((wrapped,),) = town.economy._db.execute(
            "SELECT wrapped_key FROM tenants WHERE account = 'user:bob'"
        ).fetchall()
        key = PayloadCipher(town.folder / "answers.key").open("key of user:bob", wrapped)
        assert len(key) == 32
        assert key not in stored_bytes(town.folder)

    def test_that_was_deleted_leaves_the_payload_unreadable_wherever_a_copy_survives(self, town, two):
        sealed = payload(town, two[0])
        assert town.economy.forget_content("user:alice") == 1
        assert sealed not in stored_bytes(town.folder)
        with pytest.raises(Corrupt):
            town.economy._tenants.open("user:alice", two[0], sealed)
        town.sell("k-again")
        with pytest.raises(Corrupt):
            town.economy._tenants.open("user:alice", two[0], sealed)

    def test_that_was_deleted_takes_nothing_from_the_others(self, town, two):
        town.economy.forget_content("user:alice")
        pool = town.economy.pool("py", "p0001")
        assert [one.answer_id for one in pool.answers] == [two[1]]
        assert (pool.total_nano, pool.num_unreadable, pool.unreadable_nano) == (310, 1, 155)
        assert town.economy.settle(scores(), {}).pool_nano == 310
        town.ledger.audit()


def test_a_payload_from_before_tenants_had_keys_still_opens(town, two):
    content = town.economy._tenants.open("user:alice", two[0], payload(town, two[0]))
    old = PayloadCipher(town.folder / "answers.key").seal(two[0], content)
    town.economy._db.execute("UPDATE answers SET payload = ? WHERE answer_id = ?", (old, two[0]))
    town.restart()
    assert {one.answer_id for one in town.economy.pool("py", "p0001").answers} == set(two)


def test_content_is_deleted_when_its_time_is_up_and_the_loss_is_stated(town, clock):
    old = town.sell("old").answer_id
    clock.advance(P.retention_ms)
    new = town.sell("new").answer_id
    town.economy.erase_expired()
    assert payload(town, old) is not None
    sealed = payload(town, old)
    clock.advance(1)
    assert town.economy.erase_expired() == 1
    assert sealed not in stored_bytes(town.folder)
    pool = town.economy.pool("py", "p0001")
    assert [one.answer_id for one in pool.answers] == [new]
    assert (pool.total_nano, pool.num_unreadable, pool.unreadable_nano) == (310, 1, 155)


@pytest.mark.parametrize("how", ["restart", "open_period"])
def test_what_is_too_old_is_deleted_at_the_start_and_with_every_period(town, clock, how):
    sold = town.sell("old").answer_id
    town.economy.settle(scores(), {})
    clock.advance(P.retention_ms + 1)
    town.restart() if how == "restart" else town.economy.open_period()
    assert payload(town, sold) is None


class TestAPoolInDispute:
    @pytest.fixture
    def disputed(self, town):
        """Nine of ten equal answers are alice's, one is bob's; ctr_b contests the settlement."""
        town.economy.grant("user:bob", 1_000_000, "bob")
        for number in range(10):
            account = "user:bob" if number == 0 else "user:alice"
            town.economy.complete(answer(town.authorize(f"k{number}", account=account)))
        town.economy.settle(scores(), {})
        town.economy.grant("contributor:ctr_b", P.dispute_deposit_nano, "deposit")
        return town

    def contest(self, town):
        town.economy.dispute("contributor:ctr_b", "py", "p0001", "ctr_b", 400)

    def test_is_recomputed_on_what_is_left_while_that_is_nine_tenths(self, disputed):
        self.contest(disputed)
        disputed.economy.forget_content("user:bob")
        assert len(disputed.economy.disputed_answers("py", "p0001")) == 9

    def test_is_not_recomputed_on_less(self, disputed):
        self.contest(disputed)
        disputed.economy.forget_content("user:alice")
        with pytest.raises(Conflict) as caught:
            disputed.economy.disputed_answers("py", "p0001")
        assert caught.value.code == "too_little_kept"

    def test_has_less_kept_by_what_was_refunded(self, disputed):
        self.contest(disputed)
        first, second = (usage["answer_id"] for usage in disputed.ledger.usages("pool:py:p0001")[:2])
        disputed.economy.refund(first, "why")
        assert len(disputed.economy.disputed_answers("py", "p0001")) == 9
        disputed.economy.refund(second, "why")
        with pytest.raises(Conflict) as caught:
            disputed.economy.disputed_answers("py", "p0001")
        assert caught.value.code == "too_little_kept"

    def test_is_compared_with_what_its_settlement_could_read(self, town):
        town.economy.set_retention("user:alice", keep=False)
        town.sell("unkept")
        town.economy.set_retention("user:alice", keep=True)
        kept = town.sell("kept").answer_id
        assert town.economy.settle(scores(), {}).unreadable_nano == 155
        town.economy.grant("contributor:ctr_b", P.dispute_deposit_nano, "deposit")
        town.economy.dispute("contributor:ctr_b", "py", "p0001", "ctr_b", 100)
        assert [told.answer_id for told in town.economy.disputed_answers("py", "p0001")] == [kept]

    def test_has_its_content_until_the_last_moment_at_which_it_can_be_decided(self, disputed, clock):
        clock.advance(P.dispute_window_ms)
        self.contest(disputed)
        clock.advance(P.dispute_resolve_ms)
        assert disputed.economy.erase_expired() == 0
        assert len(disputed.economy.disputed_answers("py", "p0001")) == 10


@pytest.mark.parametrize("short_ms", [0, 1])
def test_content_is_kept_a_day_longer_than_a_dispute_can_last(short_ms):
    kept_ms = P.dispute_window_ms + P.dispute_resolve_ms + DAY_MS - short_ms
    if not short_ms:
        assert Parameters(retention_ms=kept_ms).retention_ms == kept_ms
        return
    with pytest.raises(InvalidInput) as caught:
        Parameters(retention_ms=kept_ms)
    assert caught.value.param == "retention_ms"


def test_what_a_closed_pool_needs_is_kept_until_its_settlement_and_deleted_then(town, clock):
    sold = town.sell("old").answer_id
    clock.advance(P.retention_ms + 1)
    town.economy.open_period()
    town.restart()
    assert town.economy.erase_expired() == 0
    (told,) = town.economy.pool("py", "p0001").answers
    assert told.answer_id == sold
    town.economy.settle(scores(), {})
    assert town.economy.erase_expired() == 1
    assert payload(town, sold) is None


def test_a_tenant_can_have_content_deleted_that_a_closed_pool_needs(town):
    sold = town.sell("k").answer_id
    town.economy.open_period()
    assert town.economy.forget_content("user:alice") == 1
    assert payload(town, sold) is None


def test_a_settled_pools_content_waits_for_its_disputes(town, clock):
    sold = town.sell("k").answer_id
    town.economy.settle(scores(), {})
    town.economy.grant("contributor:ctr_b", P.dispute_deposit_nano, "deposit")
    with pytest.raises(Conflict) as caught:
        town.economy.disputed_answers("py", "p0001")
    assert caught.value.code == "no_open_dispute"
    clock.advance(P.dispute_window_ms - 1)
    town.economy.dispute("contributor:ctr_b", "py", "p0001", "ctr_b", 40)
    clock.advance(DAY_MS)
    assert town.economy.erase_expired() == 0
    (told,) = town.economy.disputed_answers("py", "p0001")
    assert (told.answer_id, told.completion_ids) == (sold, (2,) * 7)
    auditor = SigningKey(b"s" * 32)
    signer = Signer(role="scorer", account="user:auditor", public_key=auditor.public_key)
    town.economy.add_signer(signer, sign_signer(auditor, "scorer", "user:auditor")["signature"])
    basis = Basis(num_answers=1, answers_nano=155)
    town.economy.resolve_dispute("ctr_b", recomputed(auditor, "user:auditor", basis, scores()))
    assert town.economy.erase_expired() == 1
    assert payload(town, sold) is None


class TestATenantThatKeepsNothing:
    @pytest.fixture
    def unkept(self, town):
        town.economy.set_retention("user:alice", keep=False)
        return town

    def test_pays_the_same_and_leaves_no_content(self, unkept):
        sold = unkept.sell("k")
        assert (sold.fee_nano, unkept.available()) == (310, 1_000_000 - 310)
        assert payload(unkept, sold.answer_id) is None
        pool = unkept.economy.pool("py", "p0001")
        assert (pool.answers, pool.total_nano, pool.num_unreadable, pool.unreadable_nano) == ((), 155, 1, 155)

    def test_can_not_be_told_an_answer_again(self, unkept):
        authorized = unkept.authorize("k")
        unkept.economy.complete(answer(authorized))
        assert unkept.authorize("k").answer_id == authorized.answer_id
        with pytest.raises(Conflict) as caught:
            unkept.economy.completed(authorized.answer_id)
        assert caught.value.code == "answer_not_kept"
        assert unkept.economy.complete(answer(authorized)).fee_nano == 310
        assert unkept.available() == 1_000_000 - 310

    def test_stays_so_after_a_restart_until_it_asks_otherwise(self, unkept):
        unkept.restart()
        assert payload(unkept, unkept.sell("k1").answer_id) is None
        unkept.economy.set_retention("user:alice", keep=True)
        assert payload(unkept, unkept.sell("k2").answer_id) is not None

    def test_changes_nothing_for_others(self, unkept):
        unkept.economy.grant("user:bob", 1_000_000, "bob")
        unkept.economy.complete(answer(unkept.authorize("k", account="user:bob")))
        assert len(unkept.economy.pool("py", "p0001").answers) == 1


def test_only_people_are_tenants(town):
    with pytest.raises(InvalidInput):
        town.economy.set_retention("treasury", keep=False)


def test_a_settled_answer_is_not_told_again_though_it_is_kept(town):
    authorized = town.authorize("k")
    town.economy.complete(answer(authorized))
    town.economy.settle(scores(), {})
    with pytest.raises(Conflict) as caught:
        town.economy.completed(authorized.answer_id)
    assert caught.value.code == "answer_settled"


def test_the_first_id_of_a_moment_sorts_between_what_was_made_before_and_after():
    assert new_id("ans", 999) < first_id("ans", 1000) < new_id("ans", 1000)
    assert first_id("ans", -5) == first_id("ans", 0)


def test_a_killed_process_loses_no_answer_that_it_acknowledged(tmp_path):
    told = []
    for _ in range(4):
        command = [sys.executable, str(WORKER), str(tmp_path), str(len(told))]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        told += [worker.stdout.readline().split() for _ in range(5)]
        worker.kill()
        told += [line.split() for line in worker.stdout.read().splitlines() if len(line.split()) == 3]
        worker.wait()
        worker.stdout.close()
    town = Town(tmp_path, SystemClock())
    kept = {one.answer_id: one for one in town.economy.pool("py", "p0001").answers}
    for tenant, number, answer_id in told:
        if tenant == UNKEPT:
            assert answer_id not in kept
        else:
            assert kept[answer_id].completion_ids == (int(number),) * 7
    pool = town.economy.pool("py", "p0001")
    assert pool.total_nano == 155 * (len(pool.answers) + pool.num_unreadable)
    assert len(pool.answers) + pool.num_unreadable >= len(told) >= 20
    town.ledger.audit()
    town.close()
