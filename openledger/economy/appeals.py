"""The book of appeals: deposits, decisions and lapses in the log. What the log says of a row's appeal is true.

Knows no row's text: whether a row is the one that was judged, and what a decision does to it, is the Datanets' affair.
Every step may be repeated.
"""

from dataclasses import asdict
from typing import Any

from openledger.core.appealing import DECIDED, Appeal, Decision, Judged, check_appeal_signature
from openledger.core.errors import Conflict, InsufficientFunds
from openledger.core.money import format_money
from openledger.economy.parameters import Parameters
from openledger.economy.port import LedgerPort
from openledger.economy.signers import SignerBook
from openledger.ledger import appeals
from openledger.ledger.appeals import AppealTerms, LoggedAppeal, appeal_transfer_id
from openledger.ledger.transfers import CREATED, EXISTS


class AppealBook:
    """Appeals over one ledger. Times are the caller's, in milliseconds."""

    def __init__(self, ledger: LedgerPort, parameters: Parameters):
        self._ledger = ledger
        self._signers = SignerBook(ledger)
        self._terms = AppealTerms(
            deposit_nano=parameters.dispute_deposit_nano,
            window_ms=parameters.dispute_window_ms,
            resolve_ms=parameters.dispute_resolve_ms,
            parameters=parameters.version,
        )

    def find(self, row_id: str) -> LoggedAppeal | None:
        return find_appeal(self._ledger, row_id)

    def open(self, appeal: Appeal, judged: Judged, now_ms: int) -> LoggedAppeal:
        """Hold the deposit of an appeal; the same again gives the appeal as it stands now.

        Raises what `opened_statement` does, Conflict (`appeal_exists`) for another appeal against the same verdict,
        InsufficientFunds without the deposit.
        """
        known = self.find(appeal.row_id)
        if known is not None and (known.claim["reason"], known.claim["signature"]) == (appeal.reason, appeal.signature):
            return known
        appeals.check_new(known, appeal.row_id)
        check_appeal_signature(asdict(appeal), self._signers.keys.holder)
        statement = appeals.opened_statement(appeal, judged, self._terms, now_ms)
        self._commit(statement)
        return LoggedAppeal(claim=statement)

    def decide(self, decision: Decision, now_ms: int) -> LoggedAppeal:
        """Close an appeal by a reviewer's signed decision; the same again gives the first.

        Raises what `decided_statement` does, Forbidden (`not_a_signer`) for a key that isn't a reviewer's of the
        Datanet, NotFound (`appeal_not_found`), Conflict (`appeal_closed`) where it was decided otherwise, or lapsed.
        """
        known = self.find(decision.row_id)
        decided = self._decided(known, decision, now_ms)
        if decided is not known:
            self._commit(dict(decided.closing or {}))
        return decided

    def check_decision(self, decision: Decision, now_ms: int) -> None:
        """Raises what `decide` would; writes nothing."""
        self._decided(self.find(decision.row_id), decision, now_ms)

    def _decided(self, known: LoggedAppeal | None, decision: Decision, now_ms: int) -> LoggedAppeal:
        if known is not None and known.closing is not None and _says(known, decision):
            return known
        claim = appeals.check_open(known, decision.row_id).claim
        statement = appeals.decided_statement(claim, decision, now_ms)
        self._signers.keys.check_second(decision.public_key, appeals.parties_of(claim), "not_a_second_party")
        self._signers.check("reviewer", decision.account, decision.public_key, decision.datanet)
        return LoggedAppeal(claim=claim, closing=statement)

    def lapse(self, row_id: str, now_ms: int) -> LoggedAppeal | None:
        """The appeal as it stands, closed where its time is up; None without one."""
        known = self.find(row_id)
        if known is None or known.closing is not None or now_ms <= known.deadline_ms:
            return known
        statement = appeals.lapsed_statement(known.claim, now_ms)
        self._commit(statement)
        return LoggedAppeal(claim=known.claim, closing=statement)

    def _commit(self, statement: dict[str, Any]) -> None:
        """A contributor who never had anything has no account; none is opened for an appeal that he can't pay for."""
        (transfer,) = appeals.transfers_of(statement)
        (result,) = self._ledger.commit([transfer], statement)
        if result in ("exceeds_credits", "debit_account_not_found"):
            raise InsufficientFunds(
                f"{transfer.debit} has less than the deposit of {format_money(transfer.amount_nano)}",
                param="account",
                fix="fund the account; the deposit comes back unless the verdict is upheld",
            )
        if result not in (CREATED, EXISTS):
            raise Conflict(f"the ledger refused {transfer.code}: {result}", code=result, param="row_id")


def find_appeal(ledger: LedgerPort, row_id: str) -> LoggedAppeal | None:
    """What the log says of a row's appeal; None where it has none."""
    claim, closing = (_statement(ledger, row_id, step) for step in ("open", "close"))
    return None if claim is None else LoggedAppeal(claim=claim, closing=closing)


def _statement(ledger: LedgerPort, row_id: str, step: str) -> dict[str, Any] | None:
    entry = ledger.find(appeal_transfer_id(row_id, step))
    return None if entry is None else ledger.batch(entry.seq).statement


def _says(known: LoggedAppeal, decision: Decision) -> bool:
    told = known.closing or {}
    return all(told.get(name) == getattr(decision, name) for name in DECIDED)
