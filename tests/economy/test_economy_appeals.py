"""Appeals against the gate's verdicts: deposits, who decides, and what an audit names."""

from dataclasses import replace

import pytest

from openledger.core.appealing import Judged, sign_appeal, sign_decision
from openledger.core.errors import Conflict, Corrupt, Forbidden, InsufficientFunds, InvalidInput, NotFound
from openledger.core.signing import SigningKey, contributor_id
from openledger.core.values import RowDraft
from openledger.economy import Parameters
from openledger.ledger import Ledger, verify_proof
from openledger.ledger.appeals import (
    AppealTerms,
    appeal_transfer_id,
    decided_statement,
    lapsed_statement,
    opened_statement,
    transfers_of,
)
from openledger.ledger.signers import Signer, sign_signer

P = Parameters()
DEPOSIT = P.dispute_deposit_nano
TERMS = AppealTerms(
    deposit_nano=DEPOSIT, window_ms=P.dispute_window_ms, resolve_ms=P.dispute_resolve_ms, parameters=P.version
)
ADA, BOB, OWNER = SigningKey(b"a" * 32), SigningKey(b"b" * 32), SigningKey(b"o" * 32)
ACCOUNT = f"contributor:{contributor_id(ADA.public_key)}"
NOW_MS = 1_700_000_000_000
JUDGED = Judged(
    outcome="reject",
    reasons=("near_duplicate",),
    duplicate_of="row_0",
    rival=contributor_id(BOB.public_key),
    received_ms=NOW_MS,
)


def appeal(row="row_1", reason="mine is older", key=ADA):
    draft = RowDraft(prompt="p", completion="c")
    return sign_appeal(key, "py", "ctb_1", row, 0, draft, (), reason)


def decision(overturned=True, key=OWNER, account="user:owner", row="row_1", datanet="py"):
    return sign_decision(key, datanet, row, account, overturned=overturned, note="looked at it")


def name_reviewer(town, key=OWNER, account="user:owner", datanet="py"):
    signature = sign_signer(key, "reviewer", account, datanet)["signature"]
    signer = Signer(role="reviewer", account=account, public_key=key.public_key, datanet=datanet)
    town.economy.add_signer(signer, signature)
    return signer


@pytest.fixture
def funded(town):
    town.economy.grant(ACCOUNT, DEPOSIT, "deposit")
    name_reviewer(town)
    return town


def treasury(town):
    return town.economy.balance("treasury").posted_nano


def test_an_open_appeal_holds_the_deposit(funded):
    opened = funded.economy.open_appeal(appeal(), JUDGED)
    assert (opened.state, funded.available(ACCOUNT)) == ("open", 0)
    assert funded.economy.balance(ACCOUNT).posted_nano == DEPOSIT
    assert funded.ledger.audit().num_appeals == 1


@pytest.mark.parametrize(("overturned", "left", "lost"), [(True, DEPOSIT, 0), (False, 0, DEPOSIT)])
def test_a_decision_gives_the_deposit_back_or_takes_it(funded, overturned, left, lost):
    before = treasury(funded)
    funded.economy.open_appeal(appeal(), JUDGED)
    decided = funded.economy.decide_appeal(decision(overturned))
    assert decided.state == ("overturned" if overturned else "upheld")
    assert (funded.available(ACCOUNT), treasury(funded) - before) == (left, lost)
    funded.ledger.audit()


def test_an_appeal_that_nobody_decides_lapses_and_the_deposit_goes_back(funded, clock):
    funded.economy.open_appeal(appeal(), JUDGED)
    clock.advance(P.dispute_resolve_ms)
    assert funded.economy.appeal("row_1").state == "open"
    clock.advance(1)
    assert funded.economy.appeal("row_1").state == "lapsed"
    assert funded.available(ACCOUNT) == DEPOSIT
    with pytest.raises(Conflict) as caught:
        funded.economy.decide_appeal(decision())
    assert caught.value.code == "appeal_closed"
    funded.ledger.audit()


def test_past_the_deadline_nobody_decides_even_before_it_lapsed(funded, clock):
    funded.economy.open_appeal(appeal(), JUDGED)
    clock.advance(P.dispute_resolve_ms + 1)
    with pytest.raises(Conflict) as caught:
        funded.economy.decide_appeal(decision())
    assert caught.value.code == "appeal_lapsed"


def test_every_step_may_be_repeated_also_after_a_restart(funded):
    first = funded.economy.open_appeal(appeal(), JUDGED)
    funded.restart()
    assert funded.economy.open_appeal(appeal(), JUDGED) == first
    decided = funded.economy.decide_appeal(decision())
    before = funded.ledger.checkpoint()
    funded.restart()
    assert funded.economy.decide_appeal(decision()) == decided
    assert funded.economy.open_appeal(appeal(), JUDGED) == decided
    assert funded.ledger.checkpoint() == before


def test_a_row_is_appealed_once_and_decided_once(funded):
    funded.economy.grant(ACCOUNT, DEPOSIT, "another")
    funded.economy.open_appeal(appeal(), JUDGED)
    with pytest.raises(Conflict) as caught:
        funded.economy.open_appeal(appeal(reason="once more"), JUDGED)
    assert caught.value.code == "appeal_exists"
    funded.economy.decide_appeal(decision())
    with pytest.raises(Conflict) as caught:
        funded.economy.decide_appeal(decision(overturned=False))
    assert caught.value.code == "appeal_closed"


@pytest.mark.parametrize("funds", [0, DEPOSIT - 1])
def test_without_the_deposit_nothing_is_opened_not_even_an_account(town, funds):
    if funds:
        town.economy.grant(ACCOUNT, funds, "little")
    before = town.ledger.checkpoint()
    with pytest.raises(InsufficientFunds):
        town.economy.open_appeal(appeal(), JUDGED)
    assert (town.economy.appeal("row_1"), town.ledger.checkpoint()) == (None, before)


def test_the_window_closes(funded, clock):
    clock.advance(P.dispute_window_ms + 1)
    with pytest.raises(Conflict) as caught:
        funded.economy.open_appeal(appeal(), JUDGED)
    assert caught.value.code == "appeal_window_closed"


def test_an_accepted_row_is_not_appealed(funded):
    with pytest.raises(Conflict) as caught:
        funded.economy.open_appeal(appeal(), replace(JUDGED, outcome="accept", reasons=()))
    assert caught.value.code == "row_accepted"


@pytest.mark.parametrize(
    "change", [{"reason": "another"}, {"row_id": "row_2"}, {"public_key": BOB.public_key}, {"datanet": "np"}]
)
def test_what_the_contributor_did_not_sign_opens_nothing(funded, change):
    with pytest.raises(InvalidInput) as caught:
        funded.economy.open_appeal(replace(appeal(), **change), JUDGED)
    assert caught.value.code == "invalid_signature"


class TestWhoDecides:
    @pytest.fixture
    def opened(self, funded):
        funded.economy.open_appeal(appeal(), JUDGED)
        return funded

    @pytest.mark.parametrize(
        "given", [{"key": SigningKey(b"x" * 32)}, {"account": "user:else"}], ids=["another key", "another account"]
    )
    def test_a_reviewer_of_the_datanet_by_his_own_key(self, opened, given):
        with pytest.raises(Forbidden) as caught:
            opened.economy.decide_appeal(decision(**given))
        assert caught.value.code == "not_a_signer"

    def test_not_one_of_another_datanet(self, opened):
        opened.economy.end_signer(Signer(role="reviewer", account="user:owner", public_key=OWNER.public_key,
                                         datanet="py"))  # fmt: skip
        name_reviewer(opened, datanet="np")
        with pytest.raises(Forbidden):
            opened.economy.decide_appeal(decision())

    @pytest.mark.parametrize(("key", "account"), [(ADA, "user:x"), (BOB, "user:x"), (OWNER, ACCOUNT)])
    def test_neither_the_contributor_nor_whose_row_it_is_said_to_repeat(self, opened, key, account):
        name_reviewer(opened, key, account)
        with pytest.raises(Forbidden) as caught:
            opened.economy.decide_appeal(decision(key=key, account=account))
        assert caught.value.code == "not_a_second_party"

    @pytest.mark.parametrize("change", [{"overturned": False}, {"note": "else"}])
    def test_not_by_what_was_changed_after_signing(self, opened, change):
        with pytest.raises(InvalidInput) as caught:
            opened.economy.decide_appeal(replace(decision(), **change))
        assert caught.value.code == "invalid_signature"

    def test_not_where_nobody_appealed(self, funded):
        with pytest.raises(NotFound) as caught:
            funded.economy.decide_appeal(decision(row="row_9"))
        assert caught.value.code == "appeal_not_found"


def test_a_proof_and_an_explanation_tell_the_decision(funded):
    funded.economy.open_appeal(appeal(), JUDGED)
    funded.economy.decide_appeal(decision())
    name = appeal_transfer_id("row_1", "close")
    told = verify_proof(funded.ledger.proof(name), funded.ledger.verification_key()).lines
    for lines in (told, funded.economy.explain(name)):
        assert any(f"with the key {OWNER.public_key}, signature good: overturned" in line for line in lines)


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", ["open", "decide", "lapse"])
def test_a_step_is_taken_once_wherever_it_stopped(funded, monkeypatch, clock, step, after):
    if step != "open":
        funded.economy.open_appeal(appeal(), JUDGED)
    if step == "lapse":
        clock.advance(P.dispute_resolve_ms + 1)
    take = {
        "open": lambda: funded.economy.open_appeal(appeal(), JUDGED),
        "decide": lambda: funded.economy.decide_appeal(decision()),
        "lapse": lambda: funded.economy.appeal("row_1"),
    }[step]
    original = Ledger.commit

    def crash(self, *arguments):
        if after:
            original(self, *arguments)
        raise PowerCut

    monkeypatch.setattr(Ledger, "commit", crash)
    with pytest.raises(PowerCut):
        take()
    monkeypatch.undo()
    funded.restart()
    assert take().state == {"open": "open", "decide": "overturned", "lapse": "lapsed"}[step]
    assert funded.available(ACCOUNT) == (0 if step == "open" else DEPOSIT)
    funded.ledger.audit()


class TestTheAudit:
    """Each of these is committed past the book's checks, as an operator who cheats would."""

    def wrong(self, town, statement, transfers=None):
        town.ledger.commit(transfers_of(statement) if transfers is None else transfers, statement)
        with pytest.raises(Corrupt) as caught:
            town.ledger.audit()
        return caught.value.code

    @pytest.fixture
    def claim(self):
        return opened_statement(appeal(), JUDGED, TERMS, NOW_MS)

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"reason": "another"}, "invalid_signature"),
            ({"outcome": "accept"}, "row_accepted"),
            ({"opened_ms": NOW_MS + P.dispute_window_ms + 1}, "appeal_window_closed"),
            ({"opened_ms": NOW_MS + 7_200_000}, "wrong_time"),
            ({"deposit_nano": "1"}, "invalid_appeal"),
            ({"more": 1}, "wrong_appeal"),
            ({"reasons": None}, "malformed_statement"),
        ],
    )
    def test_names_an_appeal_that_can_not_be(self, funded, claim, change, code):
        assert self.wrong(funded, {**claim, **change}, transfers_of(claim)) == code

    def test_names_a_deposit_of_another_amount(self, funded, claim):
        (hold,) = transfers_of(claim)
        assert self.wrong(funded, claim, [replace(hold, amount_nano=1)]) == "deposit_differs"

    def test_names_a_decision_by_a_key_that_is_no_reviewers(self, funded):
        claim = funded.economy.open_appeal(appeal(), JUDGED).claim
        forged = decided_statement(claim, decision(key=SigningKey(b"x" * 32)), NOW_MS)
        assert self.wrong(funded, forged) == "not_a_signer"

    def test_names_a_decision_turned_round(self, funded):
        claim = funded.economy.open_appeal(appeal(), JUDGED).claim
        turned = {**decided_statement(claim, decision(overturned=False), NOW_MS), "overturned": True}
        assert self.wrong(funded, turned) == "invalid_signature"

    def test_names_a_lapse_before_its_time(self, funded):
        claim = funded.economy.open_appeal(appeal(), JUDGED).claim
        early = {**lapsed_statement(claim, NOW_MS + P.dispute_resolve_ms + 1), "closed_ms": NOW_MS}
        assert self.wrong(funded, early) == "appeal_open"

    def test_names_a_deposit_kept_though_the_verdict_was_overturned(self, funded):
        claim = funded.economy.open_appeal(appeal(), JUDGED).claim
        decided = decided_statement(claim, decision(), NOW_MS)
        kept = transfers_of(decided_statement(claim, decision(overturned=False), NOW_MS))
        assert self.wrong(funded, decided, kept) == "deposit_differs"

    def test_names_a_deposit_taken_without_a_reason(self, funded):
        claim = funded.economy.open_appeal(appeal(), JUDGED).claim
        kept = transfers_of(decided_statement(claim, decision(overturned=False), NOW_MS))
        assert self.wrong(funded, {"format": "something/1"}, kept) == "unexplained_appeal"

    def test_names_an_appeal_that_was_closed_without_having_been_opened(self, funded, claim):
        decided = decided_statement(claim, decision(), NOW_MS)
        funded.ledger.commit(transfers_of(claim))
        assert self.wrong(funded, decided) == "unexplained_appeal"
