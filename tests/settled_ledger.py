"""A small ledger with two paid answers and one settled pool, built without the economy: the ledger's own view of it."""

from typing import Any

from openledger.core.money import split
from openledger.core.shares import RULE, RULE_1, leaves_unpaid, shares_ppb
from openledger.core.values import UNATTRIBUTED
from openledger.ledger import Account, Ledger, Transfer
from openledger.ledger.statements import SETTLEMENT, SETTLEMENT_1, USAGE, answers_root, evidence_of, parts_by_account
from openledger.ledger.withdrawals import (
    CLAIMS,
    WAITING,
    WITHDRAWAL,
    claims_account,
    claims_transfer,
    withdrawal_transfer,
)

POOL = "pool:py:p0001"
SPLIT = {"contributors": 500_000, "owner": 200_000, "stakers": 200_000, "treasury": 100_000}
HOUSE = ("holds", "treasury", "unattributed")


def build(ledger: Ledger) -> None:
    """Two paid answers, and their pool settled as pay0, pay1 and pay2."""
    build_pool(ledger)
    statement = settlement_statement(ledger)
    ledger.commit(payout_transfers(statement), statement)


def build_pool(ledger: Ledger) -> None:
    """Accounts, and two paid answers in a pool that waits."""
    people = [Account(account_id=f"user:{name}", kind="user") for name in ("a", "b", "c")]
    house = [Account(account_id=name, kind=name) for name in HOUSE]
    pool = Account(account_id=POOL, kind="pool")
    genesis = Account(account_id="genesis", kind="genesis", may_go_negative=True)
    ledger.create_accounts([genesis, pool, *house, *people])
    ledger.commit([transfer("grant", "genesis", "user:a", 10_000)])
    for number in (1, 2):
        usage = usage_statement(number)
        ledger.commit([hold(number)])
        ledger.commit(usage_transfers(usage), usage)


def withdraw(ledger: Ledger, *taken: tuple[str, int, str]) -> None:
    """(account, nano-OPEN, address) each, handed over as round 1."""
    ledger.create_accounts([Account(account_id=name, kind="holds") for name in (WAITING, claims_account(1))])
    told = []
    for number, (account, amount_nano, address) in enumerate(taken):
        statement = {
            "format": WITHDRAWAL, "account": account, "amount_nano": amount_nano, "address": address,
            "minimum_nano": 1, "key": f"w{number}",
        }  # fmt: skip
        ledger.commit([withdrawal_transfer(statement)], statement)
        told.append([withdrawal_transfer(statement).transfer_id, address, amount_nano])
    handed = {"format": CLAIMS, "round": 1, "withdrawals": told}
    ledger.commit([claims_transfer(handed)], handed)


def transfer(transfer_id: str, debit: str, credit: str, amount_nano: int, **more: Any) -> Transfer:
    return Transfer(transfer_id=transfer_id, debit=debit, credit=credit, amount_nano=amount_nano, code="test", **more)


def hold(number: int) -> Transfer:
    return transfer(f"hold{number}", "user:a", "holds", 500, kind="pending")


def usage_statement(number: int) -> dict[str, Any]:
    fee = 10 * 3 + number * 7
    return {
        "format": USAGE,
        "answer_id": f"ans{number}",
        "account": "user:a",
        "adapter": "py",
        "adapter_digest": "ab",
        "datanet": "py-docs",
        "datanet_version": 1,
        "row_root": "cd",
        "period": "p0001",
        "commitment": f"{number:064d}",
        "num_prompt_tokens": 10,
        "num_completion_tokens": number,
        "prompt_price_nano": 3,
        "completion_price_nano": 7,
        "minimum_fee_nano": 1,
        "fee_nano": fee,
        "split": SPLIT,
        "parts_nano": split(fee, SPLIT),
        "accounts": {"contributors": POOL, "owner": "user:b", "stakers": "treasury", "treasury": "treasury"},
        "parameters": 1,
    }


def usage_transfers(usage: dict[str, Any]) -> list[Transfer]:
    number = usage["answer_id"].removeprefix("ans")
    fee = transfer(f"fee{number}", "user:a", "holds", usage["fee_nano"], kind="post", pending_id=f"hold{number}")
    parts = parts_by_account(usage["parts_nano"], usage["accounts"])
    return [fee, *(transfer(f"part{number}.{to}", "holds", to, amount) for to, amount in parts.items())]


def settlement_statement(ledger: Ledger) -> dict[str, Any]:
    evidence = evidence_of(ledger.usages(POOL))
    pool_nano = sum(item[1] for item in evidence)
    scores, errors = {"ctr_a": 60, "ctr_b": 20}, {"ctr_a": 6, "ctr_b": 2}
    shares = shares_ppb(scores, errors, 100, 1000, rule=RULE_1)
    return {
        "format": SETTLEMENT_1,
        "adapter": "py",
        "period": "p0001",
        "lineage": [{"adapter_digest": "ab", "datanet": "py-docs", "datanet_version": 1, "row_root": "cd"}],
        "pool_nano": pool_nano,
        "answers_root": answers_root(evidence),
        "num_answers": len(evidence),
        "method": "test/1",
        "quality": {"lds": "0.5"},
        "rule": RULE_1,
        "z_milli": 1000,
        "parameters": 1,
        "scores_nano": scores,
        "errors_nano": errors,
        "gain_nano": 100,
        "shares_ppb": shares,
        "payouts_nano": split(pool_nano, shares),
        "accounts": {"ctr_a": "user:b", "ctr_b": "user:c", "unattributed": "unattributed"},
    }


def two_part_statement(ledger: Ledger, *, measured: bool = True, rule: str = RULE) -> dict[str, Any]:
    """The same pool in the parts use and improvement (70 : 30), the second measured or not; the figures by hand. By
    whichever rule since the second: no row is a repeat."""
    one = settlement_statement(ledger)
    use_scores, errors = {"ctr_a": 60, "ctr_b": 20}, {"ctr_a": 4, "ctr_b": 3}  # E = 5: 3.2 and 1.8 are taken
    use = {
        "ppm": 700_000, "pool_nano": 29, "unreadable_nano": 0, "measured": True,
        "method": "test/1", "quality": {"lds": "0.5"},
        "scores_nano": use_scores, "errors_nano": errors, "gain_nano": 100, "ceilings": [[10**9, 81]],
        "shares_ppb": {"ctr_a": 568_000_000, "ctr_b": 182_000_000, UNATTRIBUTED: 250_000_000},
        "payouts_nano": {"ctr_a": 17, "ctr_b": 5, UNATTRIBUTED: 7},
    }  # fmt: skip
    improvement = {
        "ppm": 300_000, "pool_nano": 12, "unreadable_nano": 0, "measured": True,
        "method": "test/2", "quality": {"lds": "0.4"},
        "scores_nano": {"ctr_b": 40, "ctr_c": 9}, "errors_nano": {"ctr_b": 4, "ctr_c": 3}, "gain_nano": 50,
        "ceilings": [],
        "shares_ppb": {"ctr_b": 736_000_000, "ctr_c": 144_000_000, UNATTRIBUTED: 120_000_000},
        "payouts_nano": {"ctr_b": 9, "ctr_c": 2, UNATTRIBUTED: 1},
    }  # fmt: skip
    nothing = {
        "ppm": 300_000, "pool_nano": 12, "unreadable_nano": 0, "measured": False,
        "shares_ppb": {UNATTRIBUTED: 10**9}, "payouts_nano": {UNATTRIBUTED: 12},
    }  # fmt: skip
    whole = {
        True: (
            {"ctr_a": 397_600_000, "ctr_b": 348_200_000, "ctr_c": 43_200_000, UNATTRIBUTED: 211_000_000},
            {"ctr_a": 17, "ctr_b": 14, "ctr_c": 2, UNATTRIBUTED: 8},
        ),
        False: (
            {"ctr_a": 397_600_000, "ctr_b": 127_400_000, UNATTRIBUTED: 475_000_000},
            {"ctr_a": 17, "ctr_b": 5, UNATTRIBUTED: 19},
        ),
    }
    shares, payouts = whole[measured]
    repeats: dict[str, Any] = {}
    if leaves_unpaid(rule):
        repeats = {"repeated_rows": []}
        use["unpaid_nano"], improvement["unpaid_nano"] = {}, {}
    kept = ("adapter", "period", "lineage", "pool_nano", "answers_root", "num_answers", "z_milli", "parameters")
    return {
        **{name: one[name] for name in kept},
        "format": SETTLEMENT,
        "rule": rule,
        **repeats,
        "not_counted": [],
        "unreadable_nano": 0,
        "channels_ppm": {"verbatim": 0, "citation": 0},
        "parts": {"use": use, "improvement": improvement if measured else nothing},
        "shares_ppb": shares,
        "payouts_nano": payouts,
        "accounts": {"ctr_a": "user:b", "ctr_b": "user:c", "ctr_c": "user:b", UNATTRIBUTED: UNATTRIBUTED},
    }


def payout_transfers(statement: dict[str, Any]) -> list[Transfer]:
    due = parts_by_account(statement["payouts_nano"], statement["accounts"])
    return [transfer(f"pay{place}", POOL, to, amount) for place, (to, amount) in enumerate(sorted(due.items()))]
