"""The set-wise rules give the results of the plain ones, for any batch over any state."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from packed_values import number_id, record

from openledger.core.money import SUPPLY_NANO
from openledger.ledger import setwise
from openledger.ledger.accounts import Balance
from openledger.ledger.packed import account_key, id_key, pack
from openledger.ledger.rules import MAX_SUM_NANO, Book, Hold, apply_each
from openledger.ledger.store import AccountRow, HoldRow

NAMES = ["genesis", "user:a", "user:b", "user:c"]
NOW = 1000
amounts = st.one_of(st.integers(1, 12), st.sampled_from([SUPPLY_NANO, SUPPLY_NANO - 1]))


@st.composite
def books(draw):
    balances = {}
    for name in NAMES:
        posted = draw(st.sampled_from([0, 5, 20, SUPPLY_NANO]))
        turnover = draw(st.sampled_from([0, 0, 0, MAX_SUM_NANO - SUPPLY_NANO - 210]))
        held = draw(st.integers(0, 3)) if posted else 0
        balances[name] = Balance(
            account_id=name,
            kind="genesis" if name == "genesis" else "user",
            may_go_negative=name == "genesis",
            debits_pending_nano=held + 100,
            debits_posted_nano=turnover,
            credits_pending_nano=100,
            credits_posted_nano=turnover + posted + 100,
        )
    holds = {}
    for number in range(100, 104):
        debit, credit = draw(st.permutations(NAMES))[:2]
        state = draw(st.sampled_from(["pending", "pending", "posted", "voided"]))
        transfer = record(number, draw(st.integers(1, 20)), debit, credit, kind="pending")
        holds[transfer.transfer_id] = Hold(
            transfer=transfer, expires_ms=draw(st.sampled_from([0, NOW, NOW + 1])), state=state
        )
    return Book(balances, holds, {number_id(200)})


@st.composite
def transfers(draw):
    debit, credit = draw(st.permutations([*NAMES, "user:nobody"]))[:2]
    kind = draw(st.sampled_from(["single", "single", "pending", "post", "void"]))
    more = {"kind": kind}
    if kind in ("post", "void"):
        more["pending"] = draw(st.sampled_from([100, 101, 102, 103, 200, 201, *range(1, 9)]))
    if kind == "pending":
        more["timeout_ms"] = draw(st.sampled_from([0, 1]))
    return record(draw(st.integers(1, 8)), draw(amounts), debit, credit, **more)


def sheet_of(book):
    sheet = setwise.Sheet()
    sheet.add(
        [
            AccountRow(
                10 + place,
                name,
                account_key(name),
                balance.kind,
                int(balance.may_go_negative),
                balance.debits_pending_nano,
                balance.debits_posted_nano,
                balance.credits_pending_nano,
                balance.credits_posted_nano,
                -1,
            )
            for place, (name, balance) in enumerate(book.balances.items())
        ]
    )
    return sheet


def known_of(book, batch, known):
    from openledger.ledger.transfers import compare

    numbers = {name: 10 + place for place, name in enumerate(book.balances)}
    holds = {
        id_key(name): HoldRow(
            id_key(name),
            numbers[hold.transfer.debit],
            numbers[hold.transfer.credit],
            hold.transfer.amount_nano,
            hold.expires_ms,
            hold.state,
        )
        for name, hold in book.holds.items()
    }
    results = {
        place: compare(transfer, known[transfer.transfer_id])
        for place, transfer in enumerate(batch)
        if transfer.transfer_id in known
    }
    return setwise.Known(results=results, holds=holds, others=frozenset({id_key(number_id(200))}))


def state_after(book, changes):
    """Balances as four sums by name, holds by id as (expiry, state)."""
    balances = {**book.balances, **changes.balances}
    sums = {
        name: [b.debits_pending_nano, b.debits_posted_nano, b.credits_pending_nano, b.credits_posted_nano]
        for name, b in balances.items()
    }
    return sums, {name: (hold.expires_ms, hold.state) for name, hold in changes.holds.items()}


def state_of(book, sheet, outcome):
    sums = dict(zip(book.balances, sheet.sums.tolist(), strict=True))
    for slot, changed in zip(outcome.slots.tolist(), outcome.sums.tolist(), strict=True):
        sums[NAMES[slot]] = changed
    return sums, {row.key.hex(): (row.expires_ms, row.state) for row in outcome.holds}


def chains_of(batch, linked):
    chains, start = [], 0
    for place, tied in enumerate(linked):
        if not tied:
            chains.append(batch[start : place + 1])
            start = place + 1
    return chains


@given(
    book=books(),
    batch=st.lists(transfers(), min_size=1, max_size=10),
    ties=st.lists(st.booleans(), min_size=10, max_size=10),
    known=st.lists(transfers(), max_size=2),
)
def test_in_order_gives_the_results_and_the_state_of_the_rules(book, batch, ties, known):
    linked = [*ties[: len(batch) - 1], False]
    before = {transfer.transfer_id: transfer for transfer in known}
    changes, expected = apply_each(book, chains_of(batch, linked), before, NOW)
    sheet, records = sheet_of(book), setwise.read_records(pack(batch))
    debits, credits = sheet.find(records["debit"]), sheet.find(records["credit"])
    outcome = setwise.apply_in_order(sheet, records, debits, credits, linked, known_of(book, batch, before), NOW)
    assert outcome.results == expected
    assert state_of(book, sheet, outcome) == state_after(book, changes)


@given(
    book=books(),
    batch=st.lists(transfers(), min_size=1, max_size=6),
    ties=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_if_all_are_created_the_rules_create_all_and_leave_the_same(book, batch, ties):
    linked = [*ties[: len(batch) - 1], False]
    changes, expected = apply_each(book, chains_of(batch, linked), {}, NOW)
    sheet, records = sheet_of(book), setwise.read_records(pack(batch))
    found = sheet.find(records["debit"]), sheet.find(records["credit"])
    outcome = setwise.apply_if_all(sheet, records, *found, known_of(book, batch, {}), NOW)
    assert (outcome is not None) == (set(expected) == {"created"})
    if outcome is not None:
        assert outcome.results == expected
        assert outcome.created == list(range(len(batch)))
        assert state_of(book, sheet, outcome) == state_after(book, changes)


@st.composite
def plain_batches(draw):
    count = draw(st.integers(1, 8))
    pairs = [
        draw(st.permutations([*NAMES, "user:nobody"] if draw(st.integers(0, 9)) == 0 else NAMES))[:2]
        for _ in range(count)
    ]
    return [record(place + 1, draw(amounts), *pair) for place, pair in enumerate(pairs)]


@given(book=books(), batch=plain_batches())
def test_as_set_says_nothing_or_what_the_rules_say(book, batch):
    changes, expected = apply_each(book, [[transfer] for transfer in batch], {}, NOW)
    sheet, records = sheet_of(book), setwise.read_records(pack(batch))
    outcome = setwise.apply_as_set(sheet, records, sheet.find(records["debit"]), sheet.find(records["credit"]))
    if outcome is not None:
        assert outcome.results == expected
        assert state_of(book, sheet, outcome) == state_after(book, changes)
    elif {one.debit for one in batch}.isdisjoint(one.credit for one in batch):  # else the order may matter
        assert expected != ["created"] * len(batch)


def test_a_funded_batch_is_applied_as_a_set():
    balance = Balance(account_id="user:a", kind="user", credits_posted_nano=10)
    book = Book({"user:a": balance, "user:b": Balance(account_id="user:b", kind="user")})
    sheet, records = sheet_of(book), setwise.read_records(pack([record(1, 4), record(2, 6)]))
    found = sheet.find(records["debit"]), sheet.find(records["credit"])
    assert setwise.apply_as_set(sheet, records, *found).sums.tolist() == [[0, 10, 0, 10], [0, 0, 0, 10]]
    sheet.sums[0, 3] = 9
    assert setwise.apply_as_set(sheet, records, *found) is None


def test_a_large_sheet_finds_each_account_and_no_other():
    rows = [AccountRow(n, f"user:{n}", account_key(f"user:{n}"), "user", 0, 0, 0, 0, n, -1) for n in range(3000)]
    sheet = setwise.Sheet()
    for start in range(0, 3000, 700):
        sheet.add(rows[start : start + 700])
    keys = np.frombuffer(b"".join(row.key for row in rows), "<u8").reshape(-1, 2)
    slots = sheet.find(keys)
    assert sheet.numbers[slots].tolist() == list(range(3000))
    assert (sheet.find(keys ^ np.uint64(1)) == -1).all()
    same_start = keys.copy()
    same_start[:, 1] ^= np.uint64(1)
    assert (sheet.find(same_start) == -1).all()


def test_new_ids_are_sorted_by_time_and_place():
    ids = [item for time_ms in (5, 6) for item in setwise.new_ids(4, time_ms, bytes).tolist()]
    assert ids == sorted(ids)
    assert len(set(ids)) == 8
