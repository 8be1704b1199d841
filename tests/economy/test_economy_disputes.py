"""A disputed share: what is in escrow meanwhile, who decides it, and what each outcome pays."""

from dataclasses import replace

import pytest
from economy_values import scores
from hypothesis import given
from hypothesis import strategies as st

from openledger.core.errors import Conflict, Corrupt, Forbidden, InsufficientFunds, InvalidInput, NotFound
from openledger.core.signing import SigningKey, contributor_id
from openledger.economy import Parameters
from openledger.economy import disputes as economy_disputes
from openledger.economy.disputes import DisputeBook, terms_of
from openledger.economy.settlement import payout_id
from openledger.ledger import Ledger, disputes, encode_proof, refunds, verify_proof
from openledger.ledger.disputes import (
    Basis,
    Disputes,
    Funds,
    Scores,
    claim_statement,
    escrow_account,
    paid_pool,
    sign_recomputation,
    transfers_of,
    verdict_statement,
)
from openledger.ledger.signers import Signer, sign_signer
from openledger.ledger.statements import parts_by_account
from openledger.ledger.transfers import Batch

P = Parameters()
CLAIMANT, SECOND = "contributor:ctr_b", "user:auditor"
AUDITOR = SigningKey(b"s" * 32)
ESCROW = "escrow:py:p0001"
DEPOSIT = P.dispute_deposit_nano
POOL, PAID, LEFT = 20_000, 3_600, 6_000  # of the settlement below: the pool, ctr_b's payout, unattributed
BASIS = Basis(num_answers=3, answers_nano=1000)
FUNDS = Funds(left_nano=900, contested_nano=400)


@pytest.fixture
def settled(town):
    town.sell("k", completion=1330)
    town.economy.settle(scores(), {}, scores())
    register(town)
    for account in (CLAIMANT, "contributor:ctr_a", "contributor:ctr_c"):
        town.economy.grant(account, DEPOSIT, f"deposit of {account}")
    return town


def dispute(town, claimed=PAID + 1000, contributor="ctr_b", account=None, reason="my rows were not counted"):
    return town.economy.dispute(account or f"contributor:{contributor}", "py", "p0001", contributor, claimed, reason)


def recomputed(b=40, **other):
    """Scores under which ctr_b's share is (b - 2) %."""
    return scores(scores_nano={"ctr_a": 80, "ctr_b": 2 * (b + 7), "ctr_c": 0}, **other)


def signed(use, improvement=None, scorer=SECOND, key=AUDITOR, basis=None):
    return economy_disputes.recomputed(key, scorer, basis or Basis(num_answers=1, answers_nano=POOL), use, improvement)


def register(town, scorer=SECOND, key=AUDITOR):
    statement = sign_signer(key, "scorer", scorer)
    signer = Signer(role="scorer", account=scorer, public_key=key.public_key)
    return town.economy.add_signer(signer, statement["signature"])


def resolve(town, b=40, scorer=SECOND, contributor="ctr_b", key=AUDITOR, basis=None):
    return town.economy.resolve_dispute(contributor, signed(recomputed(b), recomputed(b), scorer, key, basis))


def posted(town, account):
    return town.economy.balance(account).posted_nano


def test_the_settlement_of_these_tests_is_what_their_numbers_say(settled):
    assert (posted(settled, "unattributed"), posted(settled, CLAIMANT) - DEPOSIT) == (LEFT, PAID)


def test_while_a_dispute_is_open_the_contested_amount_and_the_deposit_are_in_escrow(settled):
    opened = dispute(settled)
    assert (opened.state, opened.claim["contested_nano"], opened.claim["paid_nano"]) == ("open", 1000, PAID)
    assert posted(settled, ESCROW) == 1000 + DEPOSIT
    assert posted(settled, "unattributed") == LEFT - 1000
    assert posted(settled, CLAIMANT) == PAID
    assert settled.ledger.audit().num_disputes == 1


def test_an_upheld_claim_is_paid_the_difference_and_gets_its_deposit_back(settled):
    dispute(settled, claimed=PAID + 4000)
    decided = resolve(settled, b=38)
    assert (decided.state, decided.closing["recomputed_nano"]) == ("upheld", 7200)
    assert decided.award_nano == 7200 - PAID
    assert posted(settled, CLAIMANT) == 7200 + DEPOSIT
    assert posted(settled, ESCROW) == 0
    assert posted(settled, "unattributed") == LEFT - (7200 - PAID)
    assert [payout.amount_nano for payout in settled.economy.payouts(CLAIMANT)] == [7200 - PAID, PAID]
    settled.ledger.audit()


def test_a_verdict_says_on_how_many_answers_it_rests_and_what_they_paid(settled):
    dispute(settled)
    decided = resolve(settled)
    assert (decided.closing["num_answers"], decided.closing["answers_nano"]) == (1, POOL)
    assert any("on 1 answers that paid 0.00002;" in line for line in disputes.lines(decided.closing))


def another_pool(town):
    """Of the same size, in the next period."""
    town.sell("k2", completion=1330)
    town.economy.settle(scores("p0002"), {}, scores("p0002"))


def refund(town):
    (usage,) = town.ledger.usages("pool:py:p0001")
    return town.economy.refund(usage["answer_id"], "why")


def test_what_a_refund_took_is_not_left_to_contest_though_other_pools_have_it(settled):
    another_pool(settled)
    assert refund(settled)["taken_nano"]["unattributed"] == LEFT
    assert posted(settled, "unattributed") == LEFT
    with pytest.raises(Conflict) as caught:
        dispute(settled)
    assert caught.value.code == "nothing_to_contest"
    settled.ledger.audit()


def test_a_refund_takes_what_is_neither_contested_nor_another_pools(settled):
    another_pool(settled)
    dispute(settled)
    told = refund(settled)
    assert (told["owed_nano"]["unattributed"], told["taken_nano"]["unattributed"]) == (LEFT, LEFT - 1000)
    assert (posted(settled, ESCROW), posted(settled, "unattributed")) == (1000 + DEPOSIT, LEFT)
    assert resolve(settled, b=38).award_nano == 1000
    assert (posted(settled, ESCROW), posted(settled, "unattributed")) == (0, LEFT)
    settled.ledger.audit()


def test_a_refund_does_not_take_an_award_from_another_pool(settled):
    another_pool(settled)
    dispute(settled)
    resolve(settled, b=38)
    settled.restart()
    assert refund(settled)["taken_nano"]["unattributed"] == LEFT - 1000
    assert posted(settled, "unattributed") == LEFT
    settled.ledger.audit()


def test_the_audit_names_a_refund_that_takes_what_is_another_pools(settled):
    another_pool(settled)
    dispute(settled)
    (usage,) = settled.ledger.usages("pool:py:p0001")
    settlement = settled.ledger.batch(settled.ledger.find(payout_id("py", "p0001")).seq).statement
    due = refunds.owed(usage, parts_by_account(settlement["payouts_nano"], settlement["accounts"]), None)
    forged = refunds.refund_statement(usage, due, due, "why")
    assert set(settled.ledger.commit(refunds.refund_transfers(forged), forged)) == {"created"}
    with pytest.raises(Corrupt) as caught:
        settled.ledger.audit()
    assert caught.value.code == "wrong_refund"


def test_an_award_is_never_more_than_what_is_in_escrow(settled):
    dispute(settled, claimed=PAID + 1000)
    assert resolve(settled, b=38).award_nano == 1000
    assert posted(settled, CLAIMANT) == PAID + 1000 + DEPOSIT


@pytest.mark.parametrize("b", [20, 21])
def test_a_difference_within_the_tolerance_rejects_the_claim_and_takes_the_deposit(settled, b):
    treasury = posted(settled, "treasury")
    dispute(settled)
    decided = resolve(settled, b=b)
    assert decided.closing["recomputed_nano"] - PAID == (b - 20) * 200 <= POOL * P.dispute_tolerance_ppm // 10**6
    assert (decided.state, decided.award_nano) == ("rejected", 0)
    assert posted(settled, CLAIMANT) == PAID
    assert posted(settled, "treasury") == treasury + DEPOSIT
    assert (posted(settled, ESCROW), posted(settled, "unattributed")) == (0, LEFT)
    settled.ledger.audit()


def test_a_difference_of_more_than_the_tolerance_is_paid(settled):
    dispute(settled)
    assert resolve(settled, b=22).award_nano == 400


def test_a_lower_share_takes_nothing_back_from_who_was_paid(settled):
    dispute(settled)
    before = posted(settled, "contributor:ctr_a")
    assert resolve(settled, b=3).state == "rejected"
    assert posted(settled, CLAIMANT) == PAID
    assert posted(settled, "contributor:ctr_a") == before
    settled.ledger.audit()


def test_a_dispute_that_nobody_decides_gives_everything_back(settled, clock):
    dispute(settled)
    clock.advance(P.dispute_resolve_ms)
    assert settled.economy.expire_disputes() == 0
    clock.advance(1)
    settled.restart()
    assert settled.economy.disputes("py", "p0001")[0].state == "expired"
    assert (posted(settled, CLAIMANT), posted(settled, "unattributed")) == (PAID + DEPOSIT, LEFT)
    assert settled.economy.expire_disputes() == 0
    with pytest.raises(Conflict) as caught:
        resolve(settled)
    assert caught.value.code == "dispute_closed"
    settled.ledger.audit()


def test_a_decided_dispute_does_not_expire(settled, clock):
    dispute(settled)
    resolve(settled)
    clock.advance(P.dispute_resolve_ms + 1)
    before = settled.ledger.checkpoint()
    assert settled.economy.expire_disputes() == 0
    assert settled.ledger.checkpoint() == before
    assert settled.economy.disputes("py", "p0001")[0].state == "upheld"


def test_past_the_deadline_nobody_decides_even_before_it_expired(settled, clock):
    dispute(settled)
    clock.advance(P.dispute_resolve_ms + 1)
    with pytest.raises(Conflict) as caught:
        resolve(settled)
    assert caught.value.code == "dispute_expired"


def test_claims_overlap_and_the_escrow_holds_at_most_what_the_pool_left(settled):
    dispute(settled, claimed=PAID + 4000)
    second = dispute(settled, claimed=10_000, contributor="ctr_c")
    assert (second.claim["contested_nano"], second.claim["escrowed_nano"]) == (LEFT, LEFT - 4000)
    third = dispute(settled, claimed=POOL, contributor="ctr_a")
    assert (third.claim["contested_nano"], third.claim["escrowed_nano"]) == (LEFT, 0)
    assert (posted(settled, ESCROW), posted(settled, "unattributed")) == (LEFT + 3 * DEPOSIT, 0)
    resolve(settled, b=18)
    assert (posted(settled, ESCROW), posted(settled, "unattributed")) == (LEFT + 2 * DEPOSIT, 0)
    assert [one.contributor for one in settled.economy.disputes("py", "p0001")] == ["ctr_a", "ctr_b", "ctr_c"]
    settled.ledger.audit()


def test_a_claim_on_everything_keeps_nobody_else_from_an_award(settled, clock):
    """ctr_c claims all that the pool left and has nothing to show for it; ctr_b's award is paid all the same."""
    dispute(settled, claimed=POOL, contributor="ctr_c")
    dispute(settled, claimed=PAID + 4000)
    decided = resolve(settled, b=38)
    assert (decided.state, decided.award_nano, decided.closing["left_nano"]) == ("upheld", 3600, LEFT)
    assert posted(settled, CLAIMANT) == 7200 + DEPOSIT
    assert (posted(settled, ESCROW), posted(settled, "unattributed")) == (LEFT - 3600 + DEPOSIT, 0)
    clock.advance(P.dispute_resolve_ms + 1)
    assert settled.economy.expire_disputes() == 1
    assert posted(settled, "contributor:ctr_c") == DEPOSIT
    assert (posted(settled, ESCROW), posted(settled, "unattributed")) == (0, LEFT - 3600)
    settled.ledger.audit()


def test_who_is_right_when_nothing_is_left_gets_the_deposit_back(settled):
    dispute(settled, claimed=PAID + LEFT)
    dispute(settled, claimed=POOL, contributor="ctr_a")
    assert resolve(settled, b=50).award_nano == LEFT
    before, treasury = posted(settled, "contributor:ctr_a"), posted(settled, "treasury")
    more = scores(scores_nano={"ctr_a": 200}, errors_nano={"ctr_a": 0})
    late = settled.economy.resolve_dispute("ctr_a", signed(more, more))
    assert (late.state, late.award_nano, late.closing["recomputed_nano"]) == ("upheld", 0, POOL)
    assert posted(settled, "contributor:ctr_a") == before + DEPOSIT
    assert (posted(settled, "treasury"), posted(settled, ESCROW), posted(settled, "unattributed")) == (treasury, 0, 0)
    with pytest.raises(Conflict) as caught:
        dispute(settled, claimed=10, contributor="ctr_c")
    assert caught.value.code == "nothing_to_contest"
    settled.ledger.audit()


def test_disputes_that_expire_together_give_back_all_that_was_held(settled, clock):
    for contributor in ("ctr_a", "ctr_b", "ctr_c"):
        dispute(settled, claimed=POOL, contributor=contributor)
    clock.advance(P.dispute_resolve_ms + 1)
    assert settled.economy.expire_disputes() == 3
    assert (posted(settled, ESCROW), posted(settled, "unattributed")) == (0, LEFT)
    settled.ledger.audit()


claims = st.tuples(st.integers(1, 10**6), st.integers(0, 10**6), st.booleans())


@given(st.integers(1, 10**6), st.lists(claims, max_size=8), st.data())
def test_whatever_is_claimed_awarded_and_expired_the_escrow_is_exact(left_nano, drawn, data):
    """In any order: what is held is what is left or contested, and no award is more than what is left."""
    funds, escrow, paid, waiting = Funds(left_nano=left_nano, contested_nano=0), 0, 0, []
    for claimed, due, is_decided in drawn:
        contested = min(claimed, funds.left_nano)
        escrow += funds.opened(contested).held_nano - funds.held_nano
        funds = funds.opened(contested)
        waiting.append((contested, min(due, contested) if is_decided else 0))
        if data.draw(st.booleans()):
            contested, due = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            award = min(due, funds.left_nano)
            after = funds.closed(contested, award)
            returned = funds.held_nano - award - after.held_nano
            assert returned >= 0
            escrow, paid, funds = escrow - award - returned, paid + award, after
        assert escrow == funds.held_nano == min(left_nano - paid, funds.contested_nano) >= 0


def test_only_who_has_a_score_in_the_settlement_disputes_it(settled):
    settled.economy.grant("contributor:ctr_new", DEPOSIT, "new")
    before = settled.ledger.checkpoint()
    with pytest.raises(Forbidden) as caught:
        dispute(settled, claimed=500, contributor="ctr_new")
    assert caught.value.code == "not_in_settlement"
    assert settled.ledger.checkpoint() == before
    assert dispute(settled, claimed=500, contributor="ctr_c").claim["paid_nano"] == 0


def test_every_step_may_be_repeated_also_after_a_restart(settled):
    dispute(settled)
    settled.restart()
    dispute(settled)
    first = resolve(settled)
    before = settled.ledger.checkpoint()
    settled.restart()
    assert (dispute(settled), resolve(settled)) == (first, first)
    assert settled.ledger.checkpoint() == before


def test_a_second_claim_or_verdict_with_other_content_is_a_conflict(settled):
    dispute(settled)
    with pytest.raises(Conflict) as caught:
        dispute(settled, claimed=PAID + 2000)
    assert caught.value.code == "dispute_exists"
    resolve(settled)
    with pytest.raises(Conflict) as caught:
        resolve(settled, b=20)
    assert caught.value.code == "dispute_closed"


def test_the_window_closes(settled, clock):
    clock.advance(P.dispute_window_ms)
    dispute(settled)
    clock.advance(1)
    with pytest.raises(Conflict) as caught:
        dispute(settled, contributor="ctr_c", claimed=10)
    assert caught.value.code == "dispute_window_closed"


@pytest.mark.parametrize("scorer", ["operator", CLAIMANT, "ctr_b"])
def test_the_second_scorer_is_neither_the_first_nor_the_claimant(settled, scorer):
    dispute(settled)
    with pytest.raises(Forbidden) as caught:
        resolve(settled, scorer=scorer)
    assert caught.value.code == "not_a_second_scorer"
    assert settled.economy.disputes("py", "p0001")[0].state == "open"


def test_a_first_scorer_that_the_settlement_names_can_not_be_the_second(town):
    town.sell("k")
    town.economy.settle(scores(quality={"scorer": SECOND}), {})
    town.economy.grant(CLAIMANT, DEPOSIT, "deposit")
    dispute(town, claimed=100)
    register(town)
    basis = Basis(num_answers=1, answers_nano=155)
    with pytest.raises(Forbidden) as caught:
        resolve(town, basis=basis)
    assert caught.value.code == "not_a_second_scorer"
    register(town, "operator")
    assert resolve(town, scorer="operator", basis=basis).state == "upheld"


def test_a_verdict_is_signed_by_the_scorers_registered_key(settled):
    dispute(settled)
    decided = resolve(settled)
    assert (decided.closing["scorer"], decided.closing["public_key"]) == (SECOND, AUDITOR.public_key)
    name = settled.economy.payouts(CLAIMANT)[0].transfer_id
    proof = verify_proof(encode_proof(settled.ledger.proof(name)), settled.ledger.verification_key())
    assert f"the scores are signed with the key {AUDITOR.public_key}, signature good" in proof.lines


@pytest.mark.parametrize("who", ["nobody's key", "another's key", "a key taken back"])
def test_whose_key_is_not_registered_decides_nothing(settled, who):
    dispute(settled)
    key, scorer = (SigningKey(b"x" * 32), SECOND) if who == "nobody's key" else (AUDITOR, SECOND)
    if who == "another's key":
        scorer = "user:else"
    if who == "a key taken back":
        settled.economy.end_signer(Signer(role="scorer", account=SECOND, public_key=AUDITOR.public_key))
    before = settled.ledger.checkpoint()
    with pytest.raises(Forbidden) as caught:
        resolve(settled, scorer=scorer, key=key)
    assert (caught.value.code, settled.ledger.checkpoint()) == ("not_a_signer", before)


@pytest.mark.parametrize(
    "change", [{"scores": {}}, {"basis": Basis(num_answers=2, answers_nano=POOL)}, {"scorer": "user:else"}]
)
def test_what_was_changed_after_signing_decides_nothing(settled, change):
    dispute(settled)
    register(settled, "user:else")
    found = signed(recomputed(), recomputed())
    if "scores" in change:
        use = replace(found.scores["use"], scores_nano={"ctr_a": 80, "ctr_b": 82, "ctr_c": 0})
        change = {"scores": {**found.scores, "use": use}}
    with pytest.raises(InvalidInput) as caught:
        settled.economy.resolve_dispute("ctr_b", replace(found, **change))
    assert caught.value.code == "invalid_signature"
    assert settled.economy.disputes("py", "p0001")[0].state == "open"


def test_a_claimant_scores_nothing_under_another_name(town):
    """Whose key is also the claimant's key."""
    claimant = contributor_id(AUDITOR.public_key)
    town.sell("k", completion=1330)
    town.economy.settle(scores(scores_nano={claimant: 40}, errors_nano={claimant: 4}), {})
    town.economy.grant(f"contributor:{claimant}", DEPOSIT, "deposit")
    register(town, "user:alias")
    dispute(town, claimed=POOL // 2, contributor=claimant)
    more = scores(scores_nano={claimant: 180}, errors_nano={claimant: 4})
    with pytest.raises(Forbidden) as caught:
        town.economy.resolve_dispute(claimant, signed(more, scorer="user:alias"))
    assert caught.value.code == "not_a_second_scorer"


def test_one_recomputation_decides_every_dispute_of_its_pool(settled):
    dispute(settled, claimed=PAID + 500)
    dispute(settled, claimed=10, contributor="ctr_c")
    found = signed(recomputed(), recomputed())
    states = [settled.economy.resolve_dispute(who, found).state for who in ("ctr_b", "ctr_c")]
    assert states == ["upheld", "rejected"]
    settled.ledger.audit()


@pytest.mark.parametrize(
    ("wrong", "error", "code"),
    [
        ({"account": "user:alice"}, Forbidden, "not_the_contributor"),
        ({"account": "contributor:ctr_a"}, Forbidden, "not_the_contributor"),
        ({"contributor": "unattributed", "account": "unattributed"}, Forbidden, "not_the_contributor"),
        ({"claimed": PAID}, InvalidInput, "invalid_claim"),
        ({"claimed": POOL + 1}, InvalidInput, "invalid_claim"),
        ({"claimed": 3000.5}, InvalidInput, "invalid_claim"),
        ({"reason": "x" * 2001}, InvalidInput, "invalid_claim"),
    ],
)
def test_a_claim_that_can_not_be_changes_nothing(settled, wrong, error, code):
    before = settled.ledger.checkpoint()
    with pytest.raises(error) as caught:
        dispute(settled, **wrong)
    assert caught.value.code == code
    assert settled.ledger.checkpoint() == before


def test_a_pool_that_is_not_settled_can_not_be_disputed(town):
    town.sell("k")
    with pytest.raises(NotFound) as caught:
        dispute(town)
    assert caught.value.code == "not_settled"


def test_a_claim_without_the_deposit_is_refused(settled):
    settled.sell("more")
    poor = {"scores_nano": {"ctr_poor": 1}, "errors_nano": {"ctr_poor": 0}}
    period = settled.economy.current_period()
    left = settled.economy.settle(scores(period, **poor), {}).payouts_nano["unattributed"]
    settled.economy.grant("contributor:ctr_poor", DEPOSIT - 10, "poor")
    with pytest.raises(InsufficientFunds) as caught:
        settled.economy.dispute("contributor:ctr_poor", "py", period, "ctr_poor", 10)
    assert "deposit" in caught.value.message
    assert posted(settled, "unattributed") == LEFT + left


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


def cut_power(monkeypatch, owner, name, *, after):
    original = getattr(owner, name)

    def crash(self, *arguments, **more):
        if after:
            original(self, *arguments, **more)
        raise PowerCut

    monkeypatch.setattr(owner, name, crash)


STEPS = [(DisputeBook, "_remember", True), (Ledger, "commit", False), (Ledger, "commit", True)]


@pytest.mark.parametrize(("owner", "name", "after"), STEPS)
def test_a_dispute_is_opened_once_wherever_opening_stopped(settled, monkeypatch, owner, name, after):
    cut_power(monkeypatch, owner, name, after=after)
    with pytest.raises(PowerCut):
        dispute(settled)
    monkeypatch.undo()
    settled.restart()
    assert dispute(settled).state == "open"
    assert posted(settled, ESCROW) == 1000 + DEPOSIT
    settled.ledger.audit()


@pytest.mark.parametrize("after", [False, True])
def test_a_dispute_is_decided_once_wherever_deciding_stopped(settled, monkeypatch, after):
    dispute(settled)
    cut_power(monkeypatch, Ledger, "commit", after=after)
    with pytest.raises(PowerCut):
        resolve(settled)
    monkeypatch.undo()
    settled.restart()
    assert resolve(settled).award_nano == 1000
    assert posted(settled, CLAIMANT) == PAID + 1000 + DEPOSIT
    settled.ledger.audit()


@pytest.mark.parametrize(("owner", "name", "after"), [(Ledger, "commit", False), (Ledger, "commit", True),
                                                      (DisputeBook, "_forget", False)])  # fmt: skip
def test_a_dispute_expires_once_wherever_expiring_stopped(settled, monkeypatch, clock, owner, name, after):
    dispute(settled)
    clock.advance(P.dispute_resolve_ms + 1)
    cut_power(monkeypatch, owner, name, after=after)
    with pytest.raises(PowerCut):
        settled.economy.expire_disputes()
    monkeypatch.undo()
    settled.restart()
    assert posted(settled, CLAIMANT) == PAID + DEPOSIT
    assert posted(settled, ESCROW) == 0
    settled.ledger.audit()


def test_an_award_is_proven_and_explained(settled):
    dispute(settled)
    resolve(settled)
    name = settled.economy.payouts(CLAIMANT)[0].transfer_id
    proof = verify_proof(encode_proof(settled.ledger.proof(name)), settled.ledger.verification_key())
    assert proof.transfer.amount_nano == 1000
    for text in (proof.lines, settled.economy.explain(name)):
        assert any("user:auditor recomputed 0.0000076 OPEN" in line for line in text)


class TestTheAudit:
    """Each of these is committed past the economy's checks, as an operator who cheats would."""

    def wrong(self, settled, statement, transfers=None):
        settled.ledger.commit(transfers_of(statement) if transfers is None else transfers, statement)
        with pytest.raises(Corrupt) as caught:
            settled.ledger.audit()
        return caught.value.code

    @pytest.fixture
    def claim(self, settled, monkeypatch):
        """A claim that isn't in the log, whose escrow account is open."""
        monkeypatch.setattr(settled.ledger, "commit", lambda transfers, statement=None: ["created"] * len(transfers))
        claim = dispute(settled).claim
        monkeypatch.undo()
        return dict(claim)

    @pytest.fixture
    def verdict(self, settled, monkeypatch):
        dispute(settled)
        monkeypatch.setattr(settled.ledger, "commit", lambda transfers, statement=None: ["created"] * len(transfers))
        verdict = resolve(settled).closing
        monkeypatch.undo()
        return dict(verdict)

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"contested_nano": 1001}, "wrong_dispute"),
            ({"escrowed_nano": 999}, "wrong_dispute"),
            ({"paid_nano": 0}, "wrong_dispute"),
            ({"pool_nano": 10**6}, "wrong_dispute"),
            ({"account": "user:alice"}, "not_the_contributor"),
            ({"opened_ms": 1_700_000_000_000 + 15 * 86_400_000}, "dispute_window_closed"),
            ({"opened_ms": 1_700_000_000_000 + 2 * 86_400_000}, "wrong_time"),
            ({"claimed_nano": None}, "invalid_claim"),
            ({"period": "p0002"}, "not_settled"),
        ],
    )
    def test_names_a_claim_that_does_not_follow(self, settled, claim, change, code):
        transfers = transfers_of(claim)
        assert self.wrong(settled, {**claim, **change}, None if change.keys() == {"opened_ms"} else transfers) == code

    def test_names_a_contributors_second_dispute(self, settled, claim):
        dispute(settled)
        again = [_renamed(transfer) for transfer in transfers_of(claim)]
        settled.economy.grant(CLAIMANT, DEPOSIT, "more")
        assert self.wrong(settled, claim, again) == "dispute_exists"

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"award_nano": 999}, "wrong_dispute"),
            ({"upheld": False}, "wrong_dispute"),
            ({"answers_nano": POOL + 1}, "invalid_scores"),
            ({"num_answers": -1}, "invalid_claim"),
            ({"left_nano": 999}, "wrong_dispute"),
            ({"all_contested_nano": 10**6}, "wrong_dispute"),
            ({"recomputed_nano": 1}, "wrong_dispute"),
            ({"scorer": "operator"}, "not_a_second_scorer"),
            ({"scores": {}}, "invalid_scores"),
            ({"scores": None}, "malformed_statement"),
        ],
    )
    def test_names_a_verdict_that_does_not_follow(self, settled, verdict, change, code):
        assert self.wrong(settled, {**verdict, **change}) == code

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"scores_nano": {"ctr_a": 80, "ctr_b": 82, "ctr_c": 0}}, "invalid_signature"),
            ({"scores_nano": {"ctr_a": 40, "ctr_b": "40"}}, "invalid_claim"),
            ({"method": None}, "invalid_scores"),
            ({"more": 1}, "malformed_statement"),
        ],
    )
    def test_names_scores_that_do_not_make_the_verdict(self, settled, verdict, change, code):
        changed = {"use": {**verdict["scores"]["use"], **change}}
        assert self.wrong(settled, {**verdict, "scores": changed}) == code

    def test_names_a_verdict_by_a_key_that_is_no_scorers(self, settled, verdict):
        found = signed(recomputed(), recomputed(), key=SigningKey(b"x" * 32))
        forged = {**verdict, "public_key": found.public_key, "signature": found.signature}
        assert self.wrong(settled, forged) == "not_a_signer"

    def test_names_a_verdict_whose_signature_is_of_other_scores(self, settled, verdict):
        other = signed(recomputed(39), recomputed(39))
        assert self.wrong(settled, {**verdict, "signature": other.signature}) == "invalid_signature"

    def unsigned(self, verdict):
        kept = {name: value for name, value in verdict.items() if name not in ("public_key", "signature")}
        return {**kept, "format": disputes.UNSIGNED_VERDICT}

    def test_names_an_unsigned_verdict_once_a_scorer_has_a_key(self, settled, verdict):
        assert self.wrong(settled, self.unsigned(verdict)) == "unsigned_verdict"

    def test_knows_the_unsigned_verdicts_of_before(self, town, monkeypatch):
        town.sell("k", completion=1330)
        town.economy.settle(scores(), {}, scores())
        town.economy.grant(CLAIMANT, DEPOSIT, "deposit")
        claim, funds = dispute(town).claim, Funds(left_nano=LEFT, contested_nano=1000)
        now = town.clock.now_ms()
        old = self.unsigned(verdict_statement(claim, funds, signed(recomputed(), recomputed()), now))
        town.ledger.commit(transfers_of(old), old)
        assert town.ledger.audit().num_disputes == 1
        assert town.economy.disputes("py", "p0001")[0].state == "upheld"

    def test_names_a_verdict_that_returns_another_amount_than_nobody_contests(self, settled, verdict):
        assert self.wrong(settled, {**verdict, "returned_nano": 1}, transfers_of(verdict)) == "wrong_dispute"

    def test_names_a_verdict_on_another_claim(self, settled, verdict):
        other = {**verdict["dispute"], "tolerance_ppm": 0}
        assert self.wrong(settled, {**verdict, "dispute": other}) == "wrong_dispute"

    def test_names_transfers_that_are_not_the_verdicts(self, settled, verdict):
        transfers = transfers_of({**verdict, "award_nano": 500, "returned_nano": 500})
        assert self.wrong(settled, verdict, transfers) == "escrow_differs"

    def test_names_money_that_leaves_an_escrow_without_a_reason(self, settled):
        opening = dispute(settled).claim
        expiry = {"format": "openledger.dispute_expiry/1", "dispute": opening, "returned_nano": 1000, "closed_ms": 0}
        (move, *_) = transfers_of(expiry)
        assert self.wrong(settled, {"format": "something/1"}, [move]) == "unexplained_escrow"

    def test_a_changed_verdict_is_found_by_its_proof(self, settled):
        dispute(settled)
        resolve(settled)
        name = settled.economy.payouts(CLAIMANT)[0].transfer_id
        proof = settled.ledger.proof(name)
        proof["statement"]["award_nano"] = 2000
        with pytest.raises(Corrupt):
            verify_proof(encode_proof(proof), settled.ledger.verification_key())


@pytest.mark.parametrize(
    "values",
    [
        {"dispute_deposit_nano": 0},
        {"dispute_window_ms": -1},
        {"dispute_resolve_ms": 0},
        {"dispute_tolerance_ppm": 0.5},
        {"retention_ms": 0},
    ],
)
def test_parameters_that_can_not_be_are_refused_by_name(values):
    with pytest.raises(InvalidInput) as caught:
        Parameters(**values)
    assert [caught.value.param] == list(values)


class TestAPoolOfTwoParts:
    """Claims and verdicts follow from what a settlement says of its parts, whichever its version."""

    @pytest.fixture
    def claim(self):
        parts = {
            "use": {
                "pool_nano": 700,
                "payouts_nano": {"ctr_b": 100, "unattributed": 600},
                "quality": {"scorer": "x"},
                "scores_nano": {"ctr_b": 1},
            },
            "improvement": {"pool_nano": 300, "payouts_nano": {"unattributed": 300}},
        }
        statement = {
            "format": "openledger.settlement/2", "adapter": "py", "period": "p0001", "pool_nano": 1000,
            "rule": "shares/2", "z_milli": 0,
            "parts": parts, "payouts_nano": {"ctr_b": 100, "unattributed": 900}, "accounts": {},
        }  # fmt: skip
        pool = paid_pool(Batch(seq=0, time_ms=0, transfers=(), statement=statement))
        return claim_statement(
            pool, FUNDS, terms_of(P), contributor="ctr_b", account=CLAIMANT, claimed_nano=500, reason="", opened_ms=0
        )

    def found(self, scores):
        return sign_recomputation(AUDITOR, "py", "p0001", SECOND, BASIS, scores)

    def scored(self, b):
        return Scores(method="m/1", scores_nano={"ctr_b": b}, errors_nano={"ctr_b": 0}, gain_nano=100)

    def test_names_what_was_paid_of_each_and_who_scored(self, claim):
        assert claim["parts"]["use"] == {"pool_nano": 700, "paid_nano": 100}
        assert claim["parts"]["improvement"] == {"pool_nano": 300, "paid_nano": 0}
        assert (claim["paid_nano"], claim["contested_nano"], claim["first_scorers"]) == (100, 400, ["x"])

    @pytest.mark.parametrize(
        ("scores", "recomputed_nano", "award_nano"),
        [
            ({"use": 50}, 350, 250),
            ({"improvement": 50}, 250, 150),
            ({"use": 50, "improvement": 50}, 500, 400),
            ({"use": 90, "improvement": 90}, 900, 400),
            ({"use": 0, "improvement": 40}, 120, 20),
        ],
    )
    def test_is_recomputed_in_parts_and_a_part_without_scores_stays_as_it_was_paid(
        self, claim, scores, recomputed_nano, award_nano
    ):
        verdict = verdict_statement(claim, FUNDS, self.found({name: self.scored(b) for name, b in scores.items()}), 1)
        assert (verdict["recomputed_nano"], verdict["award_nano"]) == (recomputed_nano, award_nano)

    def test_has_no_third_part(self, claim):
        with pytest.raises(InvalidInput) as caught:
            verdict_statement(claim, FUNDS, self.found({"spans": self.scored(1)}), 1)
        assert caught.value.code == "invalid_scores"


def test_scores_without_the_settlements_ceilings_decide_nothing(town):
    """By the same scores without a ceiling ctr_b would be due twice as much."""
    town.sell("k", completion=1330)
    (usage,) = town.economy.pool("py", "p0001").answers
    bounded = {"ceilings": ((10**9 * 400 // usage.fee_nano, usage.fee_nano),)}
    town.economy.settle(scores(**bounded), {}, scores())
    register(town)
    town.economy.grant(CLAIMANT, DEPOSIT, "deposit")
    found = dispute(town, claimed=POOL)
    assert found.claim["parts"]["use"]["bounded"]
    assert "bounded" not in found.claim["parts"]["improvement"]
    with pytest.raises(InvalidInput) as caught:
        town.economy.resolve_dispute("ctr_b", signed(scores(), scores()))
    assert (caught.value.code, caught.value.param) == ("invalid_scores", "ceilings")
    verdict = town.economy.resolve_dispute("ctr_b", signed(scores(**bounded), scores()))
    assert (verdict.state, verdict.award_nano) == ("rejected", 0)  # what was paid comes out again
    town.ledger.audit()


REPEATS = (("row2", "row1", "ctr_a", 912),)
UNPAID = {"unpaid_nano": {"ctr_b": 40}, "repeats": REPEATS}


@pytest.fixture
def unpaid(town):
    """The operator left a row of ctr_b's unpaid, who contests it."""
    town.sell("k", completion=1330)
    town.economy.settle(scores(**UNPAID), {}, scores())
    register(town)
    town.economy.grant(CLAIMANT, DEPOSIT, "deposit")
    dispute(town, claimed=POOL)
    return town


def signed_parts(use, improvement):
    basis = Basis(num_answers=1, answers_nano=POOL)
    return sign_recomputation(AUDITOR, "py", "p0001", SECOND, basis, {"use": use, "improvement": improvement})


def test_a_scorer_who_finds_the_same_repeated_rows_awards_nothing(unpaid):
    """By the same scores with every row paid ctr_b would be due more."""
    claim = unpaid.economy.disputes("py", "p0001")[0].claim
    assert claim["parts"]["use"]["leaves_unpaid"]
    assert "leaves_unpaid" not in claim["parts"]["improvement"]
    verdict = unpaid.economy.resolve_dispute("ctr_b", signed(scores(**UNPAID), scores()))
    assert (verdict.state, verdict.award_nano) == ("rejected", 0)  # what was paid comes out again
    said = verdict.closing["scores"]
    assert (said["use"]["unpaid_nano"], said["use"]["repeats"]) == ({"ctr_b": 40}, [list(REPEATS[0])])
    assert said["improvement"]["unpaid_nano"] == {}
    unpaid.ledger.audit()


def test_a_scorer_who_finds_no_repeated_row_says_so_and_is_heard(unpaid):
    verdict = unpaid.economy.resolve_dispute("ctr_b", signed(scores(), scores()))
    assert (verdict.state, verdict.award_nano) == ("upheld", 2520)
    assert verdict.closing["scores"]["use"]["unpaid_nano"] == {}
    assert any("0 rows unpaid for repeating others" in line for line in disputes.lines(verdict.closing))
    unpaid.ledger.audit()


def test_scores_that_say_nothing_of_repeated_rows_decide_nothing(unpaid):
    silent = replace(economy_disputes._scores_of(scores()), unpaid_nano=None)
    with pytest.raises(InvalidInput) as caught:
        unpaid.economy.resolve_dispute("ctr_b", signed_parts(silent, silent))
    assert (caught.value.code, caught.value.param) == ("invalid_scores", "unpaid_nano")


@pytest.mark.parametrize(
    "repeats",
    [
        (),
        (("row1", "row1", "ctr_a", 912),),
        (("row2", "row1", 1001),),
        (("row2", "row1"),),
        (("row2", "row1", 1, 912),),
    ],
)
def test_scores_that_leave_something_unpaid_name_the_rows(unpaid, repeats):
    stated = replace(economy_disputes._scores_of(scores()), unpaid_nano={"ctr_a": 1}, repeats=repeats)
    with pytest.raises(InvalidInput) as caught:
        unpaid.economy.resolve_dispute("ctr_b", signed_parts(stated, economy_disputes._scores_of(scores())))
    assert (caught.value.code, caught.value.param) == ("invalid_scores", "repeats")


def test_the_repeated_rows_that_a_scorer_found_are_signed(unpaid):
    found = signed(scores(**UNPAID), scores())
    use = replace(found.scores["use"], repeats=(("row3", "row1", "ctr_a", 912),))
    with pytest.raises(InvalidInput) as caught:
        unpaid.economy.resolve_dispute("ctr_b", replace(found, scores={**found.scores, "use": use}))
    assert caught.value.code == "invalid_signature"


def test_scores_of_before_there_were_repeats_are_signed_and_said_as_they_were():
    said = Scores(method="m", scores_nano={"a": 1}, errors_nano={"a": 0}, gain_nano=1).said()
    assert set(said) == {"method", "scores_nano", "errors_nano", "gain_nano"}


def test_scores_of_two_pools_decide_nothing(settled):
    dispute(settled)
    with pytest.raises(InvalidInput):
        settled.economy.resolve_dispute("ctr_b", signed(recomputed(), recomputed(adapter="np")))


def test_the_escrow_of_a_pool_bears_its_name():
    assert escrow_account("py", "p0001") == ESCROW


def test_a_log_without_settlement_knows_no_pool():
    assert Disputes().by_pool == {}


def _renamed(transfer):
    return replace(transfer, transfer_id=transfer.transfer_id + "x")
