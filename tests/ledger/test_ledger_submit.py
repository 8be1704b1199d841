"""Many transfers at once: each answered by itself, chains together, as values or as packed records."""

import threading
import time

import pytest
from ledger_values import hold, move, post
from packed_values import number_id, record, submit_packed

from openledger.core.errors import Corrupt, InvalidInput, TooLarge
from openledger.core.money import SUPPLY_NANO
from openledger.ledger import Transfer, encode_proof, verify_proof
from openledger.ledger.group import GroupCommit
from openledger.ledger.ledger import Request
from openledger.ledger.packed import RECORD_BYTES, pack, unpack


def test_each_transfer_is_created_or_refused_by_itself(ledger):
    results = ledger.submit([move("t1", 7), move("t2", 8, "user:a", "user:b"), move("t3", 7, "user:a", "user:b")])
    assert results == ["created", "exceeds_credits", "created"]
    assert ledger.balance("user:b").posted_nano == 7
    assert ledger.find("t2") is None
    ledger.audit()


def test_a_chain_is_created_whole_or_not_at_all(ledger):
    ledger.submit([move("t0", 10)])
    batch = [
        move("t1", 4, "user:a", "user:b"),
        move("t2", 7, "user:a", "user:c"),
        move("t3", 6, "user:a", "user:b"),
        move("t4", 4, "user:a", "user:c"),
    ]
    results = ledger.submit(batch, [True, False, True, False])
    assert results == ["linked_transfer_failed", "exceeds_credits", "created", "created"]
    assert (ledger.balance("user:b").posted_nano, ledger.balance("user:c").posted_nano) == (6, 4)
    assert ledger.submit(batch[2:], [True, False]) == ["exists", "exists"]
    ledger.audit()


def test_a_chain_that_exists_in_part_is_not_applied(ledger):
    ledger.submit([move("t1", 10)])
    assert ledger.submit([move("t1", 10), move("t2", 1)], [True, False]) == ["exists", "linked_transfer_failed"]
    assert ledger.submit([move("t1", 10), move("t2", 1)]) == ["exists", "created"]


def test_an_id_twice_in_one_batch_is_resolved_in_it(ledger):
    assert ledger.submit([move("t1", 7), move("t1", 7), move("t1", 8)]) == [
        "created",
        "exists",
        "exists_with_different_amount_nano",
    ]
    assert ledger.balance("user:a").posted_nano == 7


def test_an_id_refused_first_can_be_created_later_in_the_batch(ledger):
    pay = move("t1", 7, "user:a", "user:b")
    assert ledger.submit([pay, move("t2", 7), pay]) == ["exceeds_credits", "created", "created"]


def test_what_a_commit_stated_does_not_exist_without_its_statement(ledger):
    ledger.commit([move("t1", 7)], {"why": "first"})
    assert ledger.submit([move("t1", 7)]) == ["exists_with_different_statement"]


@pytest.mark.parametrize("linked", [[True], [False, True], [False]])
def test_links_that_do_not_fit_are_refused(ledger, linked):
    count = 1 if linked == [True] else 2
    with pytest.raises(InvalidInput) as caught:
        ledger.submit([move(f"t{number}", 1) for number in range(count)], linked)
    assert caught.value.code == "invalid_links"
    assert ledger.find("t0") is None


def test_one_serving_syncs_many_requests_and_answers_each(ledger):
    size = ledger.batch(0).seq + 1
    requests = [
        Request(transfers=(move("t1", 7),)),
        Request(transfers=(move("t2", 9, "user:a", "user:b"), move("t3", 7, "user:a", "user:b"))),
        Request(transfers=(move("t4", 1),), statement={"why": "x"}, whole=True),
        Request(transfers=(move("t5", 1), move("t6", 1, debit="user:x")), whole=True),
        Request(transfers=(move("t1", 7),)),
    ]
    assert ledger.serve(requests) == [
        ["created"],
        ["exceeds_credits", "created"],
        ["created"],
        ["linked_transfer_failed", "debit_account_not_found"],
        ["exists"],
    ]
    assert [entry.seq for entry in map(ledger.find, ("t1", "t3", "t4"))] == [size, size, size + 1]
    ledger.audit()


def test_threads_share_a_sync_and_each_has_its_own_answer(ledger):
    ledger.submit([move("start", 64)])
    together, answers = GroupCommit(ledger), {}

    def pay(number):
        for turn in range(5):
            answers[number, turn] = together.submit([move(f"t{number}.{turn}", 1, "user:a", "user:b")])[0]

    threads = [threading.Thread(target=pay, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers.values()) == ["created"] * 64 + ["exceeds_credits"] * 16
    for (number, turn), result in answers.items():
        assert (ledger.find(f"t{number}.{turn}") is not None) == (result == "created")
    ledger.audit()


class SlowLedger:
    """Serves in half a second, and keeps how many it served each time."""

    def __init__(self):
        self.sizes, self.serving = [], threading.Event()

    def serve(self, requests):
        self.sizes.append(len(requests))
        self.serving.set()
        time.sleep(0.5)
        return [["created"]] * len(requests)


@pytest.mark.parametrize(("patience_s", "sizes"), [(60, [1, 2, 2]), (0, [1, 1, 1, 1, 1])])
def test_callers_that_come_again_are_served_together(patience_s, sizes):
    """Two callers, the second of which comes while the first is served, and each a while after its answer; without
    patience they take turns for good."""
    slow = SlowLedger()
    together = GroupCommit(slow, patience_s)

    def pay(times):
        for _ in range(times):
            together.submit([move("t", 1)])
            time.sleep(0.1)

    first = threading.Thread(target=pay, args=(3,))
    first.start()
    slow.serving.wait()
    pay(2)
    first.join()
    assert slow.sizes == sizes


def test_a_bad_request_does_not_spoil_its_group(ledger):
    together = GroupCommit(ledger)
    with pytest.raises(InvalidInput):
        together.submit([])
    with pytest.raises(TooLarge):
        together.submit([move(f"t{number}", 1) for number in range(8193)])
    assert together.commit([move("t1", 1)], {"why": "x"}) == ["created"]


def test_packed_records_do_what_their_transfers_do(ledger):
    ledger.submit([move("start", 100)])
    batch = [record(number, 1) for number in range(1, 80)]
    assert submit_packed(ledger, batch) == ["created"] * 79
    assert ledger.balance("user:b").posted_nano == 79
    assert ledger.find(number_id(7)).transfer == batch[6]
    assert [entry.transfer for entry in ledger.transfers("user:b", limit=2)] == [batch[78], batch[77]]
    assert submit_packed(ledger, batch) == ["exists"] * 79
    ledger.audit()


def test_packed_results_are_named_as_those_of_values(ledger):
    ledger.submit([move("start", 10)])
    batch = [
        record(1, 4, kind="pending"),
        record(2, 3, kind="post", pending=1),
        record(3, 4, kind="void", pending=1),
        record(4, 1, kind="post", pending=99),
        record(5, 8),
        record(6, 1, credit="user:x"),
        record(7, 7),
        record(7, 6),
        record(8, 1, kind="post", pending=7),
    ]
    assert submit_packed(ledger, batch) == [
        "created",
        "created",
        "pending_transfer_already_posted",
        "pending_transfer_not_found",
        "exceeds_credits",
        "credit_account_not_found",
        "created",
        "exists_with_different_amount_nano",
        "pending_transfer_not_pending",
    ]
    assert submit_packed(ledger, [record(1, 5, kind="pending"), record(9, 1, kind="post", pending=7)]) == [
        "exists_with_different_amount_nano",
        "pending_transfer_not_pending",
    ]
    ledger.audit()


def test_values_and_records_share_ids_balances_and_holds(ledger):
    """What one way wrote, the other sees: the sums that are kept in memory follow both."""
    ledger.submit([move("start", 10)])
    assert submit_packed(ledger, [record(1, 4)]) == ["created"]
    assert ledger.submit([record(1, 4), move("t2", 6, "user:a", "user:c")]) == ["exists", "created"]
    assert submit_packed(ledger, [record(3, 1), record(1, 5)]) == [
        "exceeds_credits",
        "exists_with_different_amount_nano",
    ]
    ledger.submit([move("more", 9)])
    assert submit_packed(ledger, [record(4, 5, kind="pending")]) == ["created"]
    assert ledger.submit([post("p", 2, number_id(4)), hold("h", 3)]) == ["created", "created"]
    assert ledger.balance("user:b").posted_nano == 6
    ledger.audit()


def test_what_failed_on_disk_is_not_remembered_in_memory(ledger, monkeypatch):
    ledger.submit([move("start", 10)])
    submit_packed(ledger, [record(1, 4)])
    monkeypatch.setattr(type(ledger._journal), "put_head", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        submit_packed(ledger, [record(2, 6)])
    monkeypatch.undo()
    assert submit_packed(ledger, [record(2, 6)]) == ["created"]
    ledger.audit()


def test_a_packed_transfer_is_proven_with_its_chunk(ledger):
    ledger.submit([move("start", 100)])
    submit_packed(ledger, [record(number, 1) for number in range(1, 71)])
    for number in (1, 32, 33, 64, 65, 70):
        proof = ledger.proof(number_id(number))
        verified = verify_proof(encode_proof(proof), ledger.verification_key())
        assert verified.transfer == record(number, 1)
    for change in (
        lambda p: p["transfer"].update(amount_nano=2),
        lambda p: p["transfer"].update(credit="user:c"),
        lambda p: p["batch"].update(ordinal=68),
        lambda p: p["batch"].update(chunk=p["batch"]["chunk"][2 * RECORD_BYTES :]),
        lambda p: p["leaf"].update(num_transfers=69),
    ):
        proof = ledger.proof(number_id(70))
        change(proof)
        with pytest.raises(Corrupt):
            verify_proof(proof, ledger.verification_key())


def test_every_changed_byte_of_a_packed_proof_is_refused(ledger):
    ledger.submit([move("start", 100)])
    submit_packed(ledger, [record(number, 1) for number in range(1, 5)])
    data = encode_proof(ledger.proof(number_id(3)))
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises((Corrupt, UnicodeDecodeError)):
            verify_proof(bytes(changed), ledger.verification_key())


def test_a_changed_record_in_the_log_is_named(ledger, tmp_path):
    from openledger.ledger import audit_file

    ledger.submit([move("start", 100)])
    submit_packed(ledger, [record(number, 1) for number in range(1, 5)])
    ledger.export(tmp_path / "export")
    assert audit_file(tmp_path / "export", ledger.verification_key()).num_transfers == 5
    text = (tmp_path / "export").read_text()
    place = text.index('"packed":"') + 600
    (tmp_path / "export").write_text(text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :])
    with pytest.raises(Corrupt):
        audit_file(tmp_path / "export", ledger.verification_key())


@pytest.mark.parametrize(
    ("start", "data", "code", "field"),
    [
        (96, bytes(8), "invalid_amount", "amount_nano"),
        (96, (-1).to_bytes(8, "little", signed=True), "invalid_amount", "amount_nano"),
        (96, (SUPPLY_NANO + 1).to_bytes(8, "little"), "invalid_amount", "amount_nano"),
        (108, b"\4", "invalid_kind", "kind"),
        (108, b"\2", "invalid_pending_id", "pending_id"),
        (48, b"\1", "invalid_pending_id", "pending_id"),
        (104, b"\1", "invalid_timeout", "timeout_ms"),
        (109, b"\1", "invalid_records", "zeros"),
        (80, b"P", "invalid_code", "code"),
        (80, b"p\0y", "invalid_code", "code"),
        (0, bytes(16), "invalid_transfer_id", "transfer_id"),
    ],
)
def test_what_is_no_record_is_refused_by_place_and_field(ledger, start, data, code, field):
    ledger.submit([move("start", 100)])
    records = bytearray(pack([record(1, 1), record(2, 1)]))
    records[RECORD_BYTES + start : RECORD_BYTES + start + len(data)] = data
    with pytest.raises(InvalidInput) as caught:
        ledger.submit_packed(bytes(records))
    assert (caught.value.code, caught.value.param) == (code, f"transfers[1].{field}")
    assert ledger.find(number_id(1)) is None


def test_records_to_oneself_of_another_length_or_too_many_are_refused(ledger):
    own = bytearray(pack([record(1, 1)]))
    own[32:48] = own[16:32]
    for data, code in ((bytes(own), "same_account"), (b"", "invalid_records"), (bytes(own)[:-1], "invalid_records")):
        with pytest.raises(InvalidInput) as caught:
            ledger.submit_packed(data)
        assert caught.value.code == code
    with pytest.raises(TooLarge):
        ledger.submit_packed(pack([record(number, 1) for number in range(1, 8194)]))


def test_transfers_that_fit_no_record_say_why():
    long = Transfer(transfer_id="t1", debit="user:a", credit="user:b", amount_nano=1, code="pay")
    with pytest.raises(InvalidInput) as caught:
        pack([long])
    assert (caught.value.code, caught.value.param) == ("not_packable", "transfers[0].transfer_id")


def test_records_come_back_as_they_were():
    from openledger.ledger.packed import account_key

    batch = (record(1, 5, kind="pending", timeout_ms=9, reference=number_id(3)), record(2, 1, kind="post", pending=1))
    names = {account_key(name): name for name in ("user:a", "user:b")}
    assert unpack(pack(batch), names) == batch
    with pytest.raises(Corrupt):
        unpack(pack(batch), {})


def test_commits_made_together_are_each_by_itself_and_what_is_stated_has_its_receipt(ledger):
    size = ledger.batch(0).seq + 1
    told = ledger.commit_each(
        [
            ([move("t1", 7)], {"why": "first"}),
            ([move("t2", 8, "user:a", "user:b")], {"why": "too much"}),
            ([move("t3", 7, "user:a", "user:b")], None),
        ]
    )
    assert told == [(["created"], ledger.receipt("t1")), (["exceeds_credits"], None), (["created"], None)]
    assert [ledger.find(name).seq for name in ("t1", "t3")] == [size, size + 1]
    assert ledger.commit_each([([move("t1", 7)], {"why": "first"})]) == [(["exists"], ledger.receipt("t1"))]
    ledger.audit()
