"""The book of disputes: a contributor contests a period's share, a second scorer recomputes it, escrow is paid out.

    settle -> dispute (within the window; deposit and contested amount into escrow) -> resolve | expire

Writes the statements of `ledger.disputes` through the ledger's port; what the log says of a pool is what is true of it.
The book itself keeps only which pools have a dispute and until when, durably before the log has it, so that a dispute
that nobody decides can be found when its time is up. Every step may be repeated.
"""

import logging
from collections.abc import Sequence
from typing import Any

import apsw

from openledger.core.database import writing
from openledger.core.errors import Conflict, Corrupt, InsufficientFunds, InvalidInput, NotFound
from openledger.core.money import format_money
from openledger.core.signing import SigningKey
from openledger.core.values import ContributorScores
from openledger.economy.parameters import Parameters
from openledger.economy.pool_history import PoolHistory
from openledger.economy.port import LedgerPort
from openledger.economy.register import RegisterBook
from openledger.economy.settlement import check_scores, payout_id
from openledger.economy.signers import SignerBook
from openledger.ledger import disputes
from openledger.ledger.accounts import TREASURY, UNATTRIBUTED, Account
from openledger.ledger.disputes import (
    Basis,
    Dispute,
    Recomputation,
    Scores,
    Terms,
    sign_recomputation,
)
from openledger.ledger.statements import Statement
from openledger.ledger.transfers import CREATED, EXISTS, Transfer

_log = logging.getLogger(__name__)
SCHEMA = """
CREATE TABLE IF NOT EXISTS disputed(
  adapter TEXT NOT NULL, period TEXT NOT NULL, deadline_ms INTEGER NOT NULL, PRIMARY KEY (adapter, period, deadline_ms)
) STRICT, WITHOUT ROWID;
"""


def terms_of(parameters: Parameters) -> Terms:
    return Terms(
        deposit_nano=parameters.dispute_deposit_nano,
        window_ms=parameters.dispute_window_ms,
        resolve_ms=parameters.dispute_resolve_ms,
        tolerance_ppm=parameters.dispute_tolerance_ppm,
        parameters=parameters.version,
    )


class DisputeBook:
    """Disputes over one ledger, of pools that were settled in it. Times are the caller's, in milliseconds."""

    def __init__(self, ledger: LedgerPort, pools: PoolHistory, connection: apsw.Connection, register: RegisterBook):
        self._ledger = ledger
        self._pools = pools
        self._signers = SignerBook(ledger)
        self._db = connection
        self._terms = terms_of(register.parameters())

    def of_pool(self, adapter: str, period: str) -> list[Dispute]:
        """A pool's disputes, open and closed, by contributor. Raises NotFound (`not_settled`)."""
        known = self._pools.read(adapter, period).by_pool.get((adapter, period), {})
        return [known[contributor] for contributor in sorted(known)]

    def find(self, name: str) -> Dispute:
        """The dispute whose deposit is the transfer `name`. Raises NotFound (`dispute_not_found`)."""
        entry = self._ledger.find(name)
        claim = self._ledger.batch(entry.seq).statement if entry is not None else None
        if claim is None or claim.get("format") != disputes.DISPUTE or name != _name(claim):
            raise NotFound(
                f"there is no dispute {name}",
                code="dispute_not_found",
                param="dispute_id",
                fix="list a pool's disputes by its adapter and period",
            )
        known = self.of_pool(claim["adapter"], claim["period"])
        return next(dispute for dispute in known if dispute.contributor == claim["contributor"])

    def open(
        self, account: str, adapter: str, period: str, contributor: str, claimed_nano: int, reason: str, now_ms: int
    ) -> Dispute:
        """Contest `contributor`'s payout from `account`, where it was paid; the same claim again gives the dispute.

        Raises what `claim_statement` does, NotFound (`not_settled`), Conflict (`dispute_exists`) for another claim
        than the one before, InsufficientFunds without the deposit.
        """
        told, key = self._pools.read(adapter, period), (adapter, period)
        first = told.by_pool.get(key, {}).get(contributor)
        claim = {"account": account, "claimed_nano": claimed_nano, "reason": reason}
        if first is not None and claim == {name: first.claim[name] for name in claim}:
            return first
        disputes.check_new(told.by_pool.get(key, {}), contributor)
        statement = disputes.claim_statement(
            told.pools[key],
            told.funds(key),
            self._terms,
            contributor=contributor,
            account=account,
            claimed_nano=claimed_nano,
            reason=reason,
            opened_ms=now_ms,
        )
        opened = Dispute(claim=statement)
        self._remember(opened)
        self._commit(statement)
        return opened

    def resolve(self, contributor: str, found: Recomputation, now_ms: int) -> Dispute:
        """Decide a dispute by what a registered scorer recomputed and signed; again, it gives the first decision.

        `found.scores` are by the pool's parts: `use`, and `improvement` where it was recomputed too. Raises what
        `verdict_statement` does, InvalidInput for scores that can't be, Forbidden (`not_a_signer`) for a key that isn't
        registered for the scorer, NotFound where there is no such dispute, Conflict (`dispute_closed`) where it was
        decided by other scores, or has expired.
        """
        key = (found.adapter, found.period)
        told = self._pools.read(*key)
        known = told.by_pool.get(key, {}).get(contributor)
        if known is not None and known.closing is not None and _says(known, found):
            return known
        claim = disputes.check_open(known).claim
        _check_scores(found)
        verdict = disputes.verdict_statement(claim, told.funds(key), found, now_ms)
        self._signers.keys.check_second(found.public_key, {claim["contributor"]}, "not_a_second_scorer")
        self._signers.check("scorer", found.scorer, found.public_key)
        return self._close(claim, verdict)

    def expire(self, now_ms: int) -> int:
        """Give back what disputes hold that nobody decided in time; how many there were. A pool that can't be read is
        left as it is, and the others go on; one whose settlement a restored log lacks has none."""
        num_expired = 0
        query = "SELECT adapter, period FROM disputed WHERE deadline_ms < ? GROUP BY adapter, period"
        for adapter, period in [(str(row[0]), str(row[1])) for row in self._db.execute(query, (now_ms,))]:
            try:
                num_expired += self._expire_of(adapter, period, now_ms)
            except Corrupt as error:
                _report(adapter, period, error)
                continue
            except NotFound:
                pass
            self._forget(adapter, period, now_ms)
        return num_expired

    def read_back(self) -> None:
        """Note until when the disputes of pools that are noted are open: where economy.db was put back from a backup,
        only the log has the newest."""
        noted = [(str(row[0]), str(row[1])) for row in self._db.execute("SELECT adapter, period FROM disputed")]
        for adapter, period in sorted(set(noted)):
            try:
                known = self.of_pool(adapter, period)
            except NotFound:
                continue
            except Corrupt as error:
                _report(adapter, period, error)
                continue
            for dispute in known:
                if dispute.state == "open":
                    self._remember(dispute)

    def _expire_of(self, adapter: str, period: str, now_ms: int) -> int:
        told, key = self._pools.read(adapter, period), (adapter, period)
        funds, known = told.funds(key), told.by_pool.get(key, {}).values()
        overdue = [dispute.claim for dispute in known if dispute.state == "open" and dispute.deadline_ms < now_ms]
        for claim in overdue:
            self._close(claim, disputes.expiry_statement(claim, funds, now_ms))
            funds = funds.closed(claim["contested_nano"], award_nano=0)
        return len(overdue)

    def free_nano(self, adapter: str, period: str) -> int:
        """What of a pool's `unattributed` a refund may take; 0 before its settlement."""
        if self._ledger.find(payout_id(adapter, period)) is None:
            return 0
        return self._pools.read(adapter, period).free_nano((adapter, period))

    def is_open(self, adapter: str, period: str) -> bool:
        """Whether a dispute of a settled pool waits for its verdict."""
        return any(dispute.state == "open" for dispute in self.of_pool(adapter, period))

    def may_be_recomputed(self, adapter: str, period: str, now_ms: int) -> bool:
        """Whether a settled pool has an open dispute, or can still get one; of one that can't be read nobody knows."""
        settled = self._ledger.find(payout_id(adapter, period))
        if settled is None or now_ms < settled.time_ms + self._terms.window_ms:
            return True
        try:
            return self.is_open(adapter, period)
        except Corrupt as error:
            _report(adapter, period, error)
            return True

    def _close(self, claim: Statement, statement: dict[str, Any]) -> Dispute:
        self._commit(statement)
        return Dispute(claim=claim, closing=statement)

    def _commit(self, statement: dict[str, Any]) -> None:
        transfers = disputes.transfers_of(statement)
        self._open_accounts(transfers)
        results = self._ledger.commit(transfers, statement)
        for result, transfer in zip(results, transfers, strict=True):
            if result not in (CREATED, EXISTS, "linked_transfer_failed"):
                raise _refusal(result, transfer)

    def _open_accounts(self, transfers: Sequence[Transfer]) -> None:
        names = {name for transfer in transfers for name in (transfer.debit, transfer.credit)} - {
            UNATTRIBUTED,
            TREASURY,
        }
        accounts = [Account(account_id=name, kind=name.partition(":")[0]) for name in sorted(names)]
        for account, result in zip(accounts, self._ledger.create_accounts(accounts), strict=True):
            if result not in (CREATED, EXISTS):
                raise Conflict(f"{account.account_id}: {result}", code=result, param="account")

    def _remember(self, dispute: Dispute) -> None:
        remember(self._db, dispute.claim["adapter"], dispute.claim["period"], dispute.deadline_ms)

    def _forget(self, adapter: str, period: str, now_ms: int) -> None:
        with writing(self._db):
            self._db.execute(
                "DELETE FROM disputed WHERE adapter = ? AND period = ? AND deadline_ms < ?", (adapter, period, now_ms)
            )


def remember(connection: apsw.Connection, adapter: str, period: str, deadline_ms: int = 0) -> None:
    """That a pool has a dispute, and until when; 0 where that is still to be looked up (`DisputeBook.read_back`)."""
    with writing(connection):
        connection.execute("INSERT OR IGNORE INTO disputed VALUES (?, ?, ?)", (adapter, period, deadline_ms))


def recomputed(
    key: SigningKey, scorer: str, basis: Basis, use: ContributorScores, improvement: ContributorScores | None = None
) -> Recomputation:
    """A second scorer's scores (of `attribution.recompute`) as what decides a dispute, signed with his key.

    Raises InvalidInput for scores that can't be, or of two pools.
    """
    parts = {"use": use} if improvement is None else {"use": use, "improvement": improvement}
    if any((part.adapter, part.period) != (use.adapter, use.period) for part in parts.values()):
        raise InvalidInput("the scores of two parts are of two pools", code="invalid_scores", param="improvement")
    scores = {name: _scores_of(part) for name, part in parts.items()}
    return sign_recomputation(key, use.adapter, use.period, scorer, basis, scores)


def _report(adapter: str, period: str, error: Corrupt) -> None:
    """One pool whose history can't be keeps no other from being paid, nor the economy from starting."""
    _log.error("the disputes of %s in %s can't be read: %s (%s)", adapter, period, error.message, error.code)


def _name(claim: Statement) -> str:
    return disputes.dispute_id(claim["adapter"], claim["period"], claim["contributor"])


def _scores_of(part: ContributorScores) -> Scores:
    check_scores(part)
    return Scores(
        method=part.method,
        scores_nano=dict(part.scores_nano),
        errors_nano=dict(part.errors_nano),
        gain_nano=part.gain_nano,
        ceilings=part.ceilings,
        unpaid_nano=dict(part.unpaid_nano),
        repeats=part.repeats,
    )


def _check_scores(found: Recomputation) -> None:
    """As for a settlement's: who signed them may not be who made them."""
    for part in found.scores.values():
        check_scores(ContributorScores(adapter=found.adapter, period=found.period, **_plain(part)))


def _plain(part: Scores) -> dict[str, Any]:
    return {
        "method": part.method,
        "scores_nano": dict(part.scores_nano),
        "errors_nano": dict(part.errors_nano),
        "gain_nano": part.gain_nano,
        "ceilings": tuple((gain_nano, fees_nano) for gain_nano, fees_nano in part.ceilings),
    }


def _says(known: Dispute, found: Recomputation) -> bool:
    told, given = known.closing or {}, {name: part.said() for name, part in found.scores.items()}
    return (told.get("scorer"), told.get("scores")) == (found.scorer, given)


def _refusal(result: str, transfer: Transfer) -> Conflict | InsufficientFunds:
    if result == "exceeds_credits" and transfer.code == "dispute_deposit":
        return InsufficientFunds(
            f"{transfer.debit} has less than the deposit of {format_money(transfer.amount_nano)}",
            param="account",
            fix="fund the account; the deposit comes back unless the claim is rejected",
        )
    if result == "exceeds_credits" and transfer.debit == UNATTRIBUTED:
        return Conflict(
            "what this pool left unattributed was spent by a bounty that named no pool",
            code="nothing_to_contest",
            param="period",
            fix="contest no more than the account unattributed still has",
        )
    return Conflict(f"the ledger refused {transfer.code}: {result}", code=result, param="contributor")
