"""A settlement in two parts, as a stranger sees it: everything is recomputed, and what doesn't follow is named."""

import json

import pytest
from settled_ledger import POOL, build, build_pool, payout_transfers, settlement_statement, two_part_statement

from openledger.core.errors import Corrupt
from openledger.core.shares import RULE_2, RULE_3, shares_ppb
from openledger.core.signing import SigningKey
from openledger.core.values import UNATTRIBUTED
from openledger.ledger import Ledger, encode_proof, verify_proof
from openledger.ledger.statements import check_settlement, evidence_of

KEY = SigningKey(b"k" * 32)
NOT_DERIVED = {  # bound by the log, and follow from nothing in it
    ("parameters",),
    ("lineage", 0, "datanet_version"),
    ("parts", "use", "ceilings", 0, 0),
    ("parts", "use", "ceilings", 0, 1),  # for the audit, which has the fees
}


@pytest.fixture
def with_pool(path, clock):
    ledger = Ledger(path, clock, KEY, "openledger/test")
    build_pool(ledger)
    yield ledger
    ledger.close()


@pytest.fixture
def evidence(with_pool):
    return evidence_of(with_pool.usages(POOL))


def settle(ledger, statement, transfers=None):
    ledger.commit(payout_transfers(transfers or statement), statement)


def numbers_in(value, path=()):
    """The way to every whole number within a statement."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from numbers_in(item, (*path, key))
    elif type(value) is int:
        yield path


def put(value, path, change):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = change(value[path[-1]])


def verdict_of(check):
    try:
        check()
    except Corrupt as error:
        return error.code
    return ""


@pytest.mark.parametrize("measured", [True, False])
def test_every_payout_of_two_parts_verifies_and_the_audit_is_clean(with_pool, measured):
    settle(with_pool, two_part_statement(with_pool, measured=measured))
    for entry in with_pool.transfers(POOL):
        if entry.transfer.debit == POOL:
            assert verify_proof(with_pool.proof(entry.transfer.transfer_id), with_pool.verification_key())
    assert with_pool.audit().num_settlements == 1


@pytest.mark.parametrize("rule", [RULE_2, RULE_3])
def test_settlements_by_the_rules_before_still_verify(with_pool, rule):
    settle(with_pool, two_part_statement(with_pool, rule=rule))
    assert with_pool.audit().num_settlements == 1


def repeating(statement, unpaid_nano=None, rows=(("row2", "row1", "ctr_a", 812),)):
    """`statement` with 10 of ctr_b's 20 in use left unpaid: 82 and not 182 millionths are paid for, of 29 nano-OPEN."""
    use = statement["parts"]["use"]
    use["unpaid_nano"] = unpaid_nano or {"ctr_b": 10}
    use["shares_ppb"] = {"ctr_a": 568_000_000, "ctr_b": 82_000_000, UNATTRIBUTED: 350_000_000}
    use["payouts_nano"] = {"ctr_a": 17, "ctr_b": 2, UNATTRIBUTED: 10}
    statement["repeated_rows"] = [list(row) for row in rows]
    statement["shares_ppb"] = {
        "ctr_a": 397_600_000, "ctr_b": 278_200_000, "ctr_c": 43_200_000, UNATTRIBUTED: 281_000_000
    }  # fmt: skip
    statement["payouts_nano"] = {"ctr_a": 17, "ctr_b": 11, "ctr_c": 2, UNATTRIBUTED: 11}
    return statement


OWN = (("row2", "row1", 812),)


@pytest.mark.parametrize("more", [{}, {"rule": RULE_3}])
def test_what_repeated_rows_would_have_had_is_nobodys(with_pool, more):
    """By either rule that leaves rows unpaid; the one before names them without the earlier one's contributor."""
    settle(with_pool, repeating(two_part_statement(with_pool, **more), **({"rows": OWN} if more else {})))
    assert with_pool.audit().num_settlements == 1


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"unpaid_nano": {"ctr_b": 9}}, "wrong_shares"),
        ({"unpaid_nano": {"ctr_b": -10}}, "malformed_statement"),
        ({"unpaid_nano": {"ctr_x": 10}}, "malformed_statement"),
        ({"rows": ()}, "malformed_statement"),
        ({"rows": OWN}, "malformed_statement"),
        ({"rows": (("row2", "row2", "ctr_a", 812),)}, "malformed_statement"),
        ({"rows": (("row2", "row1", "", 812),)}, "malformed_statement"),
        ({"rows": (("row2", "row1", "ctr_a", 1001),)}, "malformed_statement"),
        ({"rows": (("row2", "row1", "ctr_a", 812), ("row2", "row0", "ctr_c", 900))}, "malformed_statement"),
    ],
)
def test_repeated_rows_are_named_and_what_they_lose_is_recomputed(with_pool, evidence, given, code):
    statement = repeating(two_part_statement(with_pool), **given)
    assert verdict_of(lambda: check_settlement(statement, evidence)) == code


def test_by_the_third_rule_the_rows_name_no_contributor(with_pool, evidence):
    statement = repeating(two_part_statement(with_pool, rule=RULE_3))
    assert verdict_of(lambda: check_settlement(statement, evidence)) == "malformed_statement"


def test_by_the_second_rule_no_row_is_unpaid(with_pool, evidence):
    statement = {**two_part_statement(with_pool, rule=RULE_2), "repeated_rows": []}
    assert verdict_of(lambda: check_settlement(statement, evidence)) == "malformed_statement"


def test_a_proof_tells_both_parts_and_what_the_account_got_of_each(with_pool):
    settle(with_pool, two_part_statement(with_pool))
    (paid,) = [e.transfer for e in with_pool.transfers("user:c") if e.transfer.debit == POOL]
    lines = verify_proof(with_pool.proof(paid.transfer_id), with_pool.verification_key()).lines
    assert lines[-3] == (
        "use: 0.000000029 OPEN, 700000 parts per million of the pool; scores of 2 contributors (test/1) give its"
        " shares by shares/5, and user:c 0.000000005 OPEN of it"
    )
    assert "improvement: 0.000000012 OPEN" in lines[-2]
    assert lines[-2].endswith("user:c 0.000000009 OPEN of it")
    assert lines[-1].endswith("user:c gets 0.000000014 OPEN")


def test_a_part_that_was_not_measured_is_told_so(with_pool):
    settle(with_pool, two_part_statement(with_pool, measured=False))
    lines = verify_proof(with_pool.proof("pay0"), with_pool.verification_key()).lines
    assert lines[-2].endswith("it wasn't measured, so all of it is unattributed")


def test_every_changed_byte_of_a_two_part_proof_is_refused(with_pool):
    settle(with_pool, two_part_statement(with_pool))
    data, key = encode_proof(with_pool.proof("pay0")), with_pool.verification_key()
    verify_proof(data, key)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 0x01
        with pytest.raises(Corrupt):
            verify_proof(bytes(changed), key)


@pytest.mark.parametrize("measured", [True, False])
def test_every_number_that_follows_from_others_is_recomputed(with_pool, evidence, measured):
    """The operator himself may sign such a statement: it is its arithmetic that must not hold."""
    statement = two_part_statement(with_pool, measured=measured)
    check_settlement(statement, evidence)
    paths = [path for path in numbers_in(statement) if path not in NOT_DERIVED]
    assert len(paths) > 20
    for path in paths:
        for change in (lambda number: number + 1, lambda number: number - 1):
            changed = json.loads(json.dumps(statement))
            put(changed, path, change)
            assert verdict_of(lambda changed=changed: check_settlement(changed, evidence)), f"{path} passed"


def moved_ppm(statement):
    statement["parts"]["use"]["ppm"], statement["parts"]["improvement"]["ppm"] = 600_000, 400_000


def moved_between_parts(statement):
    statement["parts"]["use"]["payouts_nano"]["ctr_b"] -= 1
    statement["parts"]["improvement"]["payouts_nano"]["ctr_b"] += 1


WRONG = [
    (lambda s: s["parts"].pop("improvement"), "wrong_pool_parts"),
    (lambda s: s["parts"].update(third=s["parts"]["use"]), "wrong_pool_parts"),
    (moved_ppm, "wrong_pool_parts"),
    (lambda s: s["parts"]["use"].update(pool_nano=28), "wrong_pool_parts"),
    (moved_between_parts, "wrong_payouts"),
    (lambda s: s["parts"]["improvement"]["scores_nano"].update(ctr_c=20), "wrong_shares"),
    (lambda s: s["parts"]["improvement"].update(measured=False), "malformed_statement"),
    (lambda s: s["parts"]["improvement"].update(extra=1), "malformed_statement"),
    (lambda s: s["channels_ppm"].update(verbatim=1), "unsupported_channel_weight"),
    (lambda s: s.pop("channels_ppm"), "malformed_statement"),
    (lambda s: s.update(not_counted=["aa"]), "wrong_verdicts"),
    (lambda s: s.update(unreadable_nano=42), "wrong_unreadable"),
    (lambda s: s.update(unreadable_nano=-1), "wrong_unreadable"),
    (lambda s: s.update(unreadable_nano=20), "wrong_unreadable"),
    (lambda s: s["parts"]["use"].update(unreadable_nano=1), "wrong_unreadable"),
    (lambda s: s["parts"]["improvement"].update(unreadable_nano=1), "wrong_unreadable"),
    (lambda s: s.pop("unreadable_nano"), "malformed_statement"),
    (lambda s: s.update(format="openledger.settlement/1"), "unknown_rule"),
]


@pytest.mark.parametrize(("forge", "code"), WRONG)
def test_a_wrong_part_is_named_by_proof_and_audit(with_pool, forge, code):
    statement = two_part_statement(with_pool)
    forged = json.loads(json.dumps(statement))
    forge(forged)
    settle(with_pool, forged, transfers=statement)
    proof, key = with_pool.proof("pay0"), with_pool.verification_key()
    assert verdict_of(lambda: verify_proof(proof, key)) == code
    with pytest.raises(Corrupt) as caught:
        with_pool.audit()
    assert (caught.value.code, caught.value.param) == (code, "batch 6")


def test_what_was_not_measured_can_pay_nobody(with_pool, evidence):
    statement = two_part_statement(with_pool, measured=False)
    statement["parts"]["improvement"]["payouts_nano"] = {"ctr_a": 12}
    assert verdict_of(lambda: check_settlement(statement, evidence)) == "wrong_shares"


def test_a_ledger_with_settlements_of_both_formats_is_clean(path, clock):
    ledger = Ledger(path, clock, KEY, "openledger/test")
    build(ledger)
    assert settlement_statement(ledger)["format"] == "openledger.settlement/1"
    assert "test/1" in "\n".join(verify_proof(ledger.proof("pay0"), ledger.verification_key()).lines)
    assert ledger.audit().num_settlements == 1
    ledger.close()


def test_a_part_by_the_first_rule_has_no_ceilings_and_one_by_the_second_has_them(with_pool, evidence):
    statement = two_part_statement(with_pool)
    first = json.loads(json.dumps(statement))
    first["rule"] = "shares/1"
    assert verdict_of(lambda: check_settlement(first, evidence)) == "malformed_statement"
    del statement["parts"]["use"]["ceilings"]
    assert verdict_of(lambda: check_settlement(statement, evidence)) == "malformed_statement"


def test_more_gain_on_held_out_answers_leaves_less_to_divide(with_pool, evidence):
    """81 nano-OPEN were paid for the answers: at 2 nats they can owe 162, and the shares are of that."""
    statement = two_part_statement(with_pool, measured=False)
    statement["parts"]["use"]["ceilings"] = [[2 * 10**9, 81]]
    assert verdict_of(lambda: check_settlement(statement, evidence)) == "wrong_shares"
    use = statement["parts"]["use"]
    assert shares_ppb(use["scores_nano"], use["errors_nano"], 100, 1000, ceilings=[[2 * 10**9, 81]]) == {
        "ctr_a": 350_617_284, "ctr_b": 112_345_679, "unattributed": 537_037_037,
    }  # fmt: skip


@pytest.mark.parametrize("fees", [80, 82])
def test_the_audit_knows_the_fees_under_the_ceiling(with_pool, fees):
    statement = two_part_statement(with_pool)
    statement["parts"]["use"]["ceilings"] = [[10**9, fees]]
    settle(with_pool, statement)
    with pytest.raises(Corrupt) as caught:
        with_pool.audit()
    assert (caught.value.code, caught.value.param) == ("wrong_ceilings", "batch 6")


def test_held_out_rows_have_no_ceiling(with_pool, evidence):
    statement = two_part_statement(with_pool)
    statement["parts"]["improvement"]["ceilings"] = [[1, 81]]
    assert verdict_of(lambda: check_settlement(statement, evidence)) == "wrong_ceilings"
