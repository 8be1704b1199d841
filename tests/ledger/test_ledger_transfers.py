"""What a batch of transfers does, and what each refusal is called."""

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_values import hold, move, post, void

from openledger.core.errors import InvalidInput, NotFound, TooLarge
from openledger.core.hashing import canonical_json
from openledger.core.money import SUPPLY_NANO
from openledger.ledger import Account
from openledger.ledger.accounts import account_of
from openledger.ledger.transfers import transfer_bytes, transfer_to_dict


def test_a_created_transfer_moves_its_amount(ledger):
    assert ledger.commit([move("t1", 7)]) == ["created"]
    assert ledger.balance("user:a").posted_nano == 7
    assert ledger.balance("genesis").posted_nano == -7


def test_a_batch_sent_again_gives_the_same_and_moves_nothing(ledger):
    batch = [move("t1", 7), move("t2", 1, "user:a", "user:b")]
    ledger.commit(batch)
    assert ledger.commit(batch) == ["exists", "exists"]
    assert ledger.balance("user:a").posted_nano == 6


def test_without_ids_a_repeat_would_double(ledger):
    for attempt in range(2):
        ledger.commit([move(f"attempt{attempt}", 7)])
    assert ledger.balance("user:a").posted_nano == 14


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        (move("t1", 8), "amount_nano"),
        (move("t1", 7, credit="user:b"), "credit"),
        (move("t1", 7, debit="user:c"), "debit"),
        (move("t1", 7, reference="x"), "reference"),
        (move("t1", 7, kind="pending"), "kind"),
    ],
)
def test_a_known_id_with_other_content_names_the_difference(ledger, changed, field):
    ledger.commit([move("t1", 7)])
    assert ledger.commit([changed]) == [f"exists_with_different_{field}"]


def test_a_known_id_comes_before_every_other_check(ledger):
    ledger.commit([move("t1", 7)])
    unpayable = move("t1", 7, debit="user:nobody", credit="user:nowhere")
    assert ledger.commit([unpayable]) == ["exists_with_different_debit"]


def test_a_repeat_with_another_statement_is_named(ledger):
    ledger.commit([move("t1", 7)], {"why": "first"})
    assert ledger.commit([move("t1", 7)], {"why": "first"}) == ["exists"]
    assert ledger.commit([move("t1", 7)], {"why": "second"}) == ["exists_with_different_statement"]
    assert ledger.commit([move("t1", 7)]) == ["exists_with_different_statement"]


def test_one_refusal_leaves_the_whole_batch_undone(ledger):
    before = ledger.checkpoint()
    assert ledger.commit([move("t1", 7), move("t2", 8, "user:a", "user:b")]) == [
        "linked_transfer_failed",
        "exceeds_credits",
    ]
    assert ledger.balance("user:a").posted_nano == 0
    assert ledger.checkpoint() == before
    assert ledger.find("t1") is None


def test_a_batch_of_known_and_new_is_not_applied(ledger):
    ledger.commit([move("t1", 7)])
    assert ledger.commit([move("t1", 7), move("t2", 1)]) == ["exists", "linked_transfer_failed"]
    assert ledger.balance("user:a").posted_nano == 7


def test_an_id_twice_in_one_batch_is_not_applied(ledger):
    assert ledger.commit([move("t1", 7), move("t1", 7)]) == ["linked_transfer_failed", "exists"]
    assert ledger.commit([move("t1", 7), move("t1", 8)]) == [
        "linked_transfer_failed",
        "exists_with_different_amount_nano",
    ]
    assert ledger.balance("user:a").posted_nano == 0


def test_later_transfers_of_a_batch_see_earlier_ones(ledger):
    assert ledger.commit([move("t1", 7), move("t2", 7, "user:a", "user:b")]) == ["created", "created"]


def test_unknown_accounts_are_named(ledger):
    assert ledger.commit([move("t1", 1, debit="user:x")]) == ["debit_account_not_found"]
    assert ledger.commit([move("t1", 1, credit="user:x")]) == ["credit_account_not_found"]


def test_genesis_gives_the_supply_and_no_more(ledger):
    assert ledger.commit([move("t1", SUPPLY_NANO)]) == ["created"]
    assert ledger.commit([move("t2", 1)]) == ["exceeds_credits"]


def test_running_sums_do_not_leave_64_bits(ledger):
    ledger.commit([move("t0", SUPPLY_NANO)])
    results = []
    for turn in range(20):
        debit, credit = ("user:a", "user:b") if turn % 2 == 0 else ("user:b", "user:a")
        results += ledger.commit([move(f"r{turn}", SUPPLY_NANO, debit, credit)])
        if results[-1] != "created":
            break
    # a 64-bit sum holds nine times the supply: user:a is credited at the start and by every second turn
    assert results == ["created"] * 17 + ["overflows_credits"]
    ledger.audit()


@pytest.mark.parametrize("amount", [0, -1, SUPPLY_NANO + 1, 1.0, True, "1", 2**63])
def test_an_amount_that_can_not_be_is_refused(amount):
    with pytest.raises(InvalidInput) as caught:
        move("t1", amount)
    assert caught.value.code == "invalid_amount"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"debit": "user:a"}, "same_account"),
        ({"credit": "User A"}, "invalid_account"),
        ({"kind": "post"}, "invalid_pending_id"),
        ({"kind": "single", "pending_id": "x"}, "invalid_pending_id"),
        ({"kind": "post", "pending_id": 'h","reference":"x'}, "invalid_pending_id"),
        ({"kind": "single", "pending_id": None}, "invalid_pending_id"),
        ({"kind": "gift"}, "invalid_kind"),
        ({"timeout_ms": 5}, "invalid_timeout"),
        ({"kind": "pending", "timeout_ms": -1}, "invalid_timeout"),
        ({"reference": "x" * 301}, "invalid_reference"),
        ({"reference": "half a \ud83d"}, "invalid_reference"),
    ],
)
def test_what_is_no_transfer_is_refused_by_code(wrong, code):
    with pytest.raises(InvalidInput) as caught:
        move("t1", 1, **wrong)
    assert caught.value.code == code


@pytest.mark.parametrize("transfer_id", ["", "A", "a b", "a\n", "x" * 161])
def test_what_is_no_id_is_refused(transfer_id):
    with pytest.raises(InvalidInput) as caught:
        move(transfer_id, 1)
    assert caught.value.code == "invalid_transfer_id"


def test_a_hold_reserves_and_a_post_takes_a_part(ledger):
    ledger.commit([move("t1", 10)])
    assert ledger.commit([hold("h", 8)]) == ["created"]
    assert ledger.balance("user:a").available_nano == 2
    assert ledger.balance("user:b").available_nano == 0
    assert ledger.commit([move("t2", 3, "user:a", "user:b")]) == ["exceeds_credits"]
    assert ledger.commit([post("p", 5, "h")]) == ["created"]
    assert (ledger.balance("user:a").available_nano, ledger.balance("user:b").available_nano) == (5, 5)


def test_a_void_releases_the_whole_hold(ledger):
    ledger.commit([move("t1", 10)])
    ledger.commit([hold("h", 8)])
    assert ledger.commit([void("v", 8, "h")]) == ["created"]
    assert ledger.balance("user:a").available_nano == 10
    assert ledger.balance("user:b").credits_pending_nano == 0


def test_refusals_to_resolve_a_hold_are_named(ledger):
    ledger.commit([move("t1", 30)])
    ledger.commit([hold("h1", 8), hold("h2", 8), hold("h3", 8)])
    ledger.commit([post("p1", 8, "h1")])
    ledger.commit([void("v2", 8, "h2")])
    assert ledger.commit([post("p", 8, "nothing")]) == ["pending_transfer_not_found"]
    assert ledger.commit([post("p", 8, "t1")]) == ["pending_transfer_not_pending"]
    assert ledger.commit([void("p", 8, "h1")]) == ["pending_transfer_already_posted"]
    assert ledger.commit([post("p", 8, "h2")]) == ["pending_transfer_already_voided"]
    assert ledger.commit([post("p", 8, "h3", "user:c")]) == ["pending_transfer_has_different_accounts"]
    assert ledger.commit([post("p", 9, "h3")]) == ["exceeds_pending_amount"]
    assert ledger.commit([void("p", 7, "h3")]) == ["pending_transfer_has_different_amount"]


@given(reference=st.text(st.characters(exclude_categories=["Cs"]), max_size=20), kind=st.sampled_from("spv"))
def test_canonical_bytes_of_a_transfer_are_those_of_its_fields(reference, kind):
    transfers = {"s": move("t1", 7, reference=reference), "p": hold("h", 8, timeout_ms=5), "v": void("p", 5, "h")}
    transfer = transfers[kind]
    fields = asdict(transfer)
    assert transfer_bytes(transfer) == canonical_json(fields) == canonical_json(transfer_to_dict(transfer))


def test_an_expired_hold_can_be_voided_and_not_posted(ledger, clock):
    ledger.commit([move("t1", 10)])
    ledger.commit([hold("h", 8, timeout_ms=1000)])
    clock.advance(999)
    assert ledger.commit([post("p", 8, "h"), move("t2", 9, "user:a", "user:c")])[0] == "linked_transfer_failed"
    clock.advance(1)
    assert ledger.commit([post("p", 8, "h")]) == ["pending_transfer_expired"]
    assert ledger.commit([void("v", 8, "h")]) == ["created"]


def test_a_hold_is_placed_and_posted_in_one_batch(ledger):
    ledger.commit([move("t1", 10)])
    assert ledger.commit([hold("h", 8), post("p", 8, "h")]) == ["created", "created"]


def test_an_empty_or_oversized_batch_is_refused(ledger):
    with pytest.raises(InvalidInput):
        ledger.commit([])
    with pytest.raises(TooLarge):
        ledger.commit([move(f"t{number}", 1) for number in range(8193)])


@pytest.mark.parametrize("statement", [{"x": 1.5}, {"x": object()}, {"format": "openledger.accounts/1"}])
def test_a_statement_that_can_not_be_changes_nothing(ledger, statement):
    with pytest.raises(InvalidInput):
        ledger.commit([move("t1", 1)], statement)
    assert ledger.find("t1") is None


def test_accounts_are_opened_once_and_all_or_none(ledger):
    user, other = Account(account_id="user:d", kind="user"), Account(account_id="user:a", kind="contributor")
    assert ledger.create_accounts([user, other]) == ["linked_transfer_failed", "exists_with_different_kind"]
    with pytest.raises(NotFound):
        ledger.balance("user:d")
    assert ledger.create_accounts([user]) == ["created"]
    before = ledger.checkpoint()
    assert ledger.create_accounts([user]) == ["exists"]
    assert ledger.checkpoint() == before


def test_only_genesis_may_go_below_zero():
    with pytest.raises(InvalidInput):
        Account(account_id="user:a", kind="user", may_go_negative=True)


@pytest.mark.parametrize(
    "name",
    ["user:b2", "datanet:py-docs", "adapter:py", "pool:py:p0001", "treasury", "stakers:py", "escrow:d", "unattributed",
     "genesis:community"],
)  # fmt: skip
def test_an_account_is_of_the_kind_that_its_id_says(ledger, name):
    assert ledger.create_accounts([account_of(name)]) == ["created"]
    assert ledger.balance(name).kind == name.partition(":")[0]
    ledger.audit()


def test_history_is_newest_first(ledger):
    for number in range(3):
        ledger.commit([move(f"t{number}", 1)])
    assert [entry.transfer.transfer_id for entry in ledger.transfers("user:a", limit=2)] == ["t2", "t1"]
