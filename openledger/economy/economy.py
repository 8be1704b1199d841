"""The economy: who pays what for an answer, and who is paid. Knows the ledger through a port, and no attribution.

    authorize (hold) -> complete (store usage, post the fee and its parts) -> pool -> settle (pay the pool once)

Every step is durable before it answers and may be repeated: ids derive from the answer, or from adapter and period.
What accounts do beside (stake, vote, withdraw, deposit) is in `offices`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openledger.core.appealing import Appeal, Decision, Judged
from openledger.core.clock import Clock, SystemClock
from openledger.core.database import open_database
from openledger.core.errors import (
    Conflict,
    NotFound,
    OpenLedgerError,
    Unavailable,
    outcome,
)
from openledger.core.ids import check_name, derived_id, first_id
from openledger.core.money import OPEN, Unit, format_money, format_open
from openledger.core.rekeying import KeyChange
from openledger.core.shares import WHOLE_PPM
from openledger.core.values import (
    AdapterTerms,
    Answer,
    Authorization,
    ContributorScores,
    FeeReceipt,
    Pool,
    Settlement,
)
from openledger.economy import answers, caps, holds, keys, offices, periods, refunds, restored, seals, verdicts
from openledger.economy.answers import AnswerStore
from openledger.economy.appeals import AppealBook
from openledger.economy.caps import CapStore
from openledger.economy.deposits import DepositState
from openledger.economy.derivation import answer_lines, statement_lines
from openledger.economy.disputes import SCHEMA as DISPUTES_SCHEMA
from openledger.economy.disputes import DisputeBook
from openledger.economy.explanation import explain
from openledger.economy.keys import KeyStore
from openledger.economy.offices import Offices
from openledger.economy.parameters import Parameters
from openledger.economy.payloads import PayloadCipher
from openledger.economy.periods import PeriodStore
from openledger.economy.port import LedgerPort, newest_first
from openledger.economy.refunds import RefundBook
from openledger.economy.requests import SCHEMA as REQUESTS_SCHEMA
from openledger.economy.requests import RequestStore
from openledger.economy.restored import Reconciliation
from openledger.economy.sales import Order, SaleBook, check_key
from openledger.economy.settlement import (
    as_replay,
    check_ceilings,
    check_improvement,
    check_scores,
    empty_settlement,
    payout_id,
    payout_transfers,
    settlement_from,
    settlement_statement,
)
from openledger.economy.signers import SignerBook
from openledger.economy.simulation import simulate_pool
from openledger.economy.tenants import SCHEMA as TENANTS_SCHEMA
from openledger.economy.tenants import Retention, TenantStore
from openledger.economy.terms import check_payee
from openledger.economy.units import parameters_in, told_in_its_unit
from openledger.economy.withdrawals import as_csv
from openledger.ledger import accounts as names
from openledger.ledger.accounts import Balance, pool_account
from openledger.ledger.appeals import LoggedAppeal
from openledger.ledger.deposits import overturns
from openledger.ledger.disputes import Dispute, Recomputation
from openledger.ledger.offers import lot_of
from openledger.ledger.signers import Signer
from openledger.ledger.statements import SETTLEMENTS, format_of
from openledger.ledger.transfers import Entry, Transfer
from openledger.ledger.units import PAID_IN
from openledger.ledger.verdicts import check_verdict

FORMAT = "openledger.economy/1"
_SCHEMA = (
    keys.SCHEMA
    + holds.SCHEMA
    + answers.SCHEMA
    + periods.SCHEMA
    + DISPUTES_SCHEMA
    + TENANTS_SCHEMA
    + REQUESTS_SCHEMA
    + caps.SCHEMA
    + refunds.SCHEMA
    + restored.SCHEMA
    + offices.SCHEMA
)
_FUNDING = {"payout": "fees", "dispute_award": "fees", "stake_reward": "fees", "emission": "emission"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Payout:
    """What one account was paid: by a settlement, a dispute, as a staker, or by an emission. `code` says which, and
    `funding` whether customers' fees or vesting (`emission`) paid it."""

    transfer_id: str
    account: str
    reference: str
    amount_nano: int
    time_ms: int
    code: str = "payout"
    funding: str = "fees"


@told_in_its_unit
class Economy(Offices):
    """One writer over `folder` (economy.db and answers.key), and one ledger. Starting it recovers what a crash left.

    `parameters` are the first version of a ledger that has none; from then on the log's hold. So is `unit`: a ledger
    that has none is in OPEN, and Conflict (`unit_chosen`) is raised where the log has another than is asked for.
    """

    def __init__(
        self,
        ledger: LedgerPort,
        folder: Path,
        clock: Clock | None = None,
        parameters: Parameters | None = None,
        unit: Unit | None = None,
    ):
        self._db = open_database(folder / "economy.db", _SCHEMA, FORMAT)
        super().__init__(ledger, self._db, clock or SystemClock())
        ledger = self._ledger
        self._keys = KeyStore(self._db)
        self._tenants = TenantStore(self._db, PayloadCipher(folder / "answers.key"))
        self._answers = AnswerStore(self._db, self._tenants)
        self._periods = PeriodStore(self._db, self._clock.now_ms())
        self._requests = RequestStore(self._db)
        self._signers = SignerBook(ledger)
        self._caps = CapStore(self._db)
        self._refunds = RefundBook(ledger, self._answers, self._db)
        self._restored = Reconciliation(ledger, self._answers, self._db, self._stakes)
        self._register.choose(unit)
        first = parameters or parameters_in(self._register.state.unit)
        if self._register.state.parameters.current != self._periods.current():
            self._stakes.remember(*self._answers.pools())
        opened = self._register.begin(first, self._periods.current())
        self._periods.catch_up(opened, self._clock.now_ms())
        self._appeals = AppealBook(ledger, self.parameters())
        self._disputes = DisputeBook(ledger, self._pools, self._db, self._register)
        self._accounts = self._register.accounts
        self._sales = SaleBook(
            ledger, self._db, self._clock, register=self._register, accounts=self._accounts, stakes=self._stakes,
            answers=self._answers, periods=self._periods, caps=self._caps, offers=self._offers,
            tenants=self._tenants,
        )  # fmt: skip
        self._accounts.open(names.GENESIS, names.HOLDS, names.TREASURY, names.STAKERS, names.UNATTRIBUTED)
        self.recover()

    def grant(self, account: str, amount_nano: int, key: str) -> str:
        """Give `account` OPEN from genesis, once for each `key`; the transfer's id. In a currency it is what was paid
        in, and `key` the payment's reference.

        Raises Conflict where the key stands for another grant, InsufficientFunds where the supply is spent.
        """
        check_key(key)
        check_payee(account, "account")
        transfer = Transfer(
            transfer_id=derived_id("grt", key),
            debit=names.GENESIS,
            credit=account,
            amount_nano=amount_nano,
            code="grant" if self.unit() == OPEN else PAID_IN,
            reference=key,
        )
        self._accounts.open(account)
        self._accounts.check(self._ledger.commit([transfer]), [transfer])
        return transfer.transfer_id

    def create_key(self, account: str, daily_cap_nano: int | None = None) -> str:
        """A new API key for `account`, which is opened where it isn't yet. The key can't be shown again.

        With `daily_cap_nano` it spends at most that in a day; see `caps`.
        """
        self._accounts.open(check_payee(account, "account"))
        key = self._keys.create(account, self._clock.now_ms())
        if daily_cap_nano is not None:
            self.set_daily_cap(key, daily_cap_nano)
        return key

    def set_daily_cap(self, api_key: str, daily_cap_nano: int) -> None:
        """Raises Unauthenticated for an unknown key, InvalidInput for no amount."""
        self._caps.set(self._keys.digest_of(api_key), daily_cap_nano)

    def authenticate(self, api_key: str) -> str:
        """The account an API key stands for. Raises Unauthenticated."""
        return self._keys.account_of(api_key)

    def balance(self, account: str) -> Balance:
        """Raises NotFound."""
        return self._ledger.balance(account)

    def authorize(
        self,
        account: str,
        terms: AdapterTerms,
        num_prompt_tokens: int,
        max_tokens: int,
        idempotency_key: str,
        request_digest: str = "",
        key_digest: str = "",
    ) -> Authorization:
        """See `SaleBook.authorize`."""
        return self._sales.authorize(
            account, terms, num_prompt_tokens, max_tokens, idempotency_key, request_digest, key_digest
        )

    def authorize_each(
        self, orders: Sequence[Order]
    ) -> list[tuple[Authorization, tuple[Answer, FeeReceipt] | None] | OpenLedgerError]:
        """See `SaleBook.authorize_each`; each with what was sold under its key before (see `completed`)."""
        return [
            hold if isinstance(hold, OpenLedgerError) else outcome(self._with_sold, hold)
            for hold in self._sales.authorize_each(orders)
        ]

    def _with_sold(self, hold: Authorization) -> tuple[Authorization, tuple[Answer, FeeReceipt] | None]:
        return hold, self.completed(hold.answer_id)

    def begin_offers(self, on_sale: Sequence[AdapterTerms]) -> None:
        """Sell from now on only what is offered, `on_sale`, and what is being answered; once. See `OfferBook.begin`."""
        self._offers.begin({lot_of(terms) for terms in (*on_sale, *self._sales.being_answered())})

    def complete(self, answer: Answer) -> FeeReceipt:
        """See `SaleBook.complete`."""
        return self._sales.complete(answer)

    def complete_all(self, parts: Sequence[Answer]) -> list[FeeReceipt]:
        """See `SaleBook.complete_all`."""
        return self._sales.complete_all(parts)

    def complete_each(self, requests: Sequence[Sequence[Answer]]) -> list[list[FeeReceipt] | OpenLedgerError]:
        """See `SaleBook.complete_each`."""
        return self._sales.complete_each(requests)

    def completed(self, answer_id: str) -> tuple[Answer, FeeReceipt] | None:
        """See `SaleBook.completed`."""
        return self._sales.completed(answer_id)

    def cancel(self, answer_id: str) -> None:
        """See `SaleBook.cancel`."""
        self._sales.cancel(answer_id)

    def mark(self, answer_id: str, verdict: str, account: str) -> str:
        """Let the customer who paid for an answer say that it was `wrong`: it counts nothing in the pool's use part.

        The fee stays in the pool, nothing is refunded. Gives the id of the transfer whose proof shows the verdict; may
        be repeated. Raises InvalidInput for another verdict, NotFound, Forbidden where `account` didn't pay for the
        answer, Conflict once its period is closed (`period_closed`), for what is attributed then stands still, or its
        fee went back (`answer_refunded`), for it is in no pool any more.
        """
        check_verdict(verdict)
        stored = verdicts.bought_by(self._answers.find(answer_id), answer_id, account)
        self._sales.check_paid(stored)
        known = verdicts.recorded(self._ledger, answer_id)
        if known:
            return known
        verdicts.check_open(stored.usage, self._periods.current())
        verdicts.check_not_refunded(stored)
        return verdicts.record_verdict(self._ledger, stored.usage, verdict)

    def bought(self, answer_id: str, account: str) -> dict[str, Any]:
        """The usage statement of an answer that `account` paid for. Raises NotFound (`answer_not_sold`), Forbidden
        (`not_the_customer`)."""
        return dict(verdicts.bought_by(self._answers.find(answer_id), answer_id, account).usage)

    def recover(self) -> None:
        """Mend what a restored backup left apart, post what was stored and not posted, finish settlements and deposits,
        release and delete what has expired. Called at the start; may be repeated."""
        self._restored.run()
        self._withdrawals.recover()  # before anything else takes what was handed over
        self._deposits.recover()
        self._disputes.read_back()
        self._signers.end_rest()
        self._sales.post_waiting()
        self._refunds.recover()
        self.pools()
        self._emit_last()
        self.release_expired()
        self.expire_disputes()
        self.erase_expired()
        self._stakes.reward_due()
        self._deposits.withhold_due()
        self._deposits.give_back()
        self.run_due()

    def run_due(self) -> int:
        """As `Offices.run_due`; what was sold while the ledger was away is paid for first, before its hold ends."""
        self._sales.post_waiting()
        return super().run_due()

    def release_expired(self) -> int:
        """See `SaleBook.release_expired`."""
        return self._sales.release_expired()

    def current_period(self) -> str:
        return self._periods.current()

    def open_period(self) -> str:
        """Close the current period and open the next; call it before attributing, so that the pools stand still.

        What was adopted meanwhile is in force from here on, and the closed period's stakers are paid.
        """
        self.run_due()
        self._sales.post_waiting()
        self.expire_disputes()
        opened = self._periods.following()
        self._register.open_period(opened)
        self._periods.catch_up(opened, self._clock.now_ms())
        self._disputes = DisputeBook(self._ledger, self._pools, self._db, self._register)
        self._appeals = AppealBook(self._ledger, self.parameters())
        self._stakes.reward_due()
        self._deposits.give_back()
        self.erase_expired()
        return opened

    def pools(self) -> list[tuple[str, str]]:
        """(adapter, period) of each pool that waits for settlement. One that the log has settled waits no more."""
        return [pool for pool in self._answers.unsettled_pools() if not self._finish(*pool)]

    def pool(self, adapter: str, period: str) -> Pool:
        """The pool with its decrypted answers; without them once it is settled. Raises NotFound for the period."""
        check_name(adapter, "adapter")
        self._periods.check(period)
        self._sales.post_waiting()
        self._restored.read_refunds(pool_account(adapter, period))
        settled = self._finish(adapter, period)
        num_unreadable, unreadable_nano = (0, 0) if settled else self._answers.unreadable(adapter, period)
        marked = verdicts.marked_in(self._ledger, adapter, period)
        return Pool(
            num_unreadable=num_unreadable,
            unreadable_nano=unreadable_nano,
            adapter=adapter,
            period=period,
            total_nano=self._answers.pool_nano(adapter, period),
            settled=settled,
            answers=() if settled else verdicts.counted(self._answers.in_pool(adapter, period), marked),
            marked=marked,
            refunds=self._refunded(adapter, period),
            shares_rule=self.parameters(period).shares_rule,
        )

    def settle(
        self,
        scores: ContributorScores,
        accounts: Mapping[str, str],
        improvement: ContributorScores | None = None,
        left_out: Collection[str] | None = None,
        ancestors: Sequence[Mapping[str, Any]] = (),
    ) -> Settlement:
        """Pay a pool by its contributors' scores, once; again, it gives the first result with `replayed`.

        `scores` divide the use part, `improvement` the other; where that wasn't measured, it goes to `unattributed`.
        `accounts` says where each contributor is paid (by default `contributor:<id>`). `left_out` is the
        pool's (`Pool.left_out`) when `scores` were made: what was marked wrong or refunded by then and weighs nothing
        in them; None will do only where nothing was. `ancestors` are adapters that the one which answered came from, as
        lines of the statement's `lineage`. What answers paid into `use` that can't be read by now goes to
        `unattributed`, whatever `scores` say.
        Settling the current period closes it. Raises InvalidInput for scores or accounts that can't be, NotFound for
        the period, Conflict (`verdicts_changed`) where the log's verdicts and refunds are others than `left_out`.
        """
        check_scores(scores)
        check_improvement(improvement, scores)
        for contributor, account in accounts.items():
            check_payee(account, f"accounts.{contributor}")
        self._periods.check(scores.period)
        first = self._settled(scores.adapter, scores.period)
        if first is None:
            return self._settle_first(scores, accounts, improvement, left_out, ancestors)
        self._add_to(scores.adapter, scores.period)
        self._answers.settle(scores.adapter, scores.period)
        return as_replay(first)

    def dispute(
        self, account: str, adapter: str, period: str, contributor: str, claimed_nano: int, reason: str = ""
    ) -> Dispute:
        """Contest `contributor`'s payout of a settled pool from the account it was paid to; see `DisputeBook.open`."""
        return self._disputes.open(account, adapter, period, contributor, claimed_nano, reason, self._clock.now_ms())

    def resolve_dispute(self, contributor: str, found: Recomputation) -> Dispute:
        """Decide a dispute by what a registered scorer recomputed of its pool and signed; see `DisputeBook.resolve`."""
        return self._disputes.resolve(contributor, found, self._clock.now_ms())

    def add_signer(self, signer: Signer, signature: str) -> str:
        """Register the key by which a scorer or a reviewer decides; see `SignerBook.add`."""
        return self._signers.add(signer, signature)

    def end_signer(self, signer: Signer) -> str:
        """See `SignerBook.end`."""
        return self._signers.end(signer)

    def change_keys(self, change: KeyChange) -> str:
        """See `ContributorKeyBook.write`."""
        return self._signers.keys.write(change)

    def key_holder(self, public_key: str) -> str:
        """See `ContributorKeyBook.holder`."""
        return self._signers.keys.holder(public_key)

    def is_signers_key(self, public_key: str) -> bool:
        """See `ContributorKeyBook.is_signers`."""
        return self._signers.keys.is_signers(public_key)

    def contributor_keys(self, contributor: str) -> list[KeyChange]:
        """Every change of a contributor's keys, in order."""
        return self._signers.keys.changes(contributor)

    def key_changes(self, after: int, limit: int) -> list[tuple[int, KeyChange]]:
        """See `ContributorKeyBook.changes_after`."""
        return self._signers.keys.changes_after(after, limit)

    def key_change(self, contributor: str, number: int) -> KeyChange | None:
        return self._signers.keys.change(contributor, number)

    def expire_disputes(self) -> int:
        """Return what disputes hold that nobody decided in time; how many."""
        return self._disputes.expire(self._clock.now_ms())

    def disputes(self, adapter: str, period: str) -> list[Dispute]:
        """A settled pool's disputes, open and closed. Raises NotFound (`not_settled`)."""
        return self._disputes.of_pool(adapter, period)

    def find_dispute(self, name: str) -> Dispute:
        """One dispute, by the id of the transfer of its deposit. Raises NotFound (`dispute_not_found`)."""
        return self._disputes.find(name)

    def disputed_answers(self, adapter: str, period: str) -> list[Answer]:
        """What a second scorer recomputes on: a settled pool's answers that can still be read.

        Raises NotFound (`not_settled`), Conflict (`no_open_dispute`) where nobody contests the pool, or
        (`too_little_kept`) where much of what the settlement could read is gone, or was refunded: other answers give
        other scores.
        """
        if not self._disputes.is_open(adapter, period):
            raise Conflict(
                f"no dispute of {adapter} in {period} is open",
                code="no_open_dispute",
                param="period",
                fix="its answers are told to a scorer only while one is",
            )
        self._check_kept(adapter, period)
        marked = verdicts.marked_in(self._ledger, adapter, period)
        return list(verdicts.counted(self._answers.in_pool(adapter, period), marked))

    def _check_kept(self, adapter: str, period: str) -> None:
        settled = self._settled(adapter, period)
        if settled is None:
            return
        read_nano = settled.pool_nano - settled.unreadable_nano
        kept_nano = self._answers.readable(adapter, period)["answers_nano"]
        if kept_nano * WHOLE_PPM < read_nano * self.parameters().dispute_readable_ppm:
            raise Conflict(
                f"the settlement read answers that paid {format_money(read_nano)}; of them those of"
                f" {format_open(kept_nano)} can still be read",
                code="too_little_kept",
                param="period",
                fix="let the dispute expire: its deposit comes back",
            )

    def log_seal(self, datanet: str, contributor: str, digest: str, expires_ms: int) -> str:
        """See `seals.log_seal`."""
        return seals.log_seal(self._ledger, datanet, contributor, digest, expires_ms)

    def log_opening(self, datanet: str, contributor: str, digest: str, **opening: Any) -> str:
        """See `seals.log_opening`."""
        return seals.log_opening(self._ledger, datanet, contributor, digest, **opening)

    def open_appeal(self, appeal: Appeal, judged: Judged) -> LoggedAppeal:
        """Contest the gate's verdict on a row; see `AppealBook.open`."""
        return self._appeals.open(appeal, judged, self._clock.now_ms())

    def check_decision(self, decision: Decision) -> None:
        """See `AppealBook.check_decision`."""
        self._appeals.check_decision(decision, self._clock.now_ms())

    def decide_appeal(self, decision: Decision) -> LoggedAppeal:
        """See `AppealBook.decide`."""
        return self._appeals.decide(decision, self._clock.now_ms())

    def acquit(self, contribution_id: str, row_id: str) -> DepositState:
        """Give the deposit of a contribution back that was no spam after all; see `DepositBook.acquit`. May be
        repeated. Raises Conflict (`appeal_not_overturned`)."""
        found = self._appeals.find(row_id)
        if not overturns(found, contribution_id):
            raise Conflict(
                f"no appeal overturned the verdict on {row_id}", code="appeal_not_overturned", param="row_id"
            )
        return self._deposits.acquit(contribution_id, row_id)

    def appeal(self, row_id: str) -> LoggedAppeal | None:
        """A row's appeal, which lapses by this where its time is up."""
        return self._appeals.lapse(row_id, self._clock.now_ms())

    def signers_of(self, account: str) -> list[Signer]:
        """The roles and keys by which `account` decides now."""
        return self._signers.of(account)

    def set_retention(self, account: str, keep: bool) -> None:
        """Whether the content of `account`'s answers is kept, encrypted, from now on; by default it is.

        Without it the fee is the same, a retry can't be told the answer again, and nothing is attributed on it.
        """
        self._tenants.set_keep(check_payee(account, "account"), keep)

    def retention(self, account: str) -> Retention:
        return Retention(
            account=check_payee(account, "account"),
            keep=self._tenants.keeps(account),
            num_kept=self._answers.kept_of(account),
            has_key=self._tenants.has_key(account),
        )

    def check_request(self, caller: str, key: str, digest: str) -> None:
        """See `RequestStore.check`."""
        check_key(key)
        self._requests.check(caller, key, digest, self._clock.now_ms())

    def forget_content(self, account: str) -> int:
        """Delete a tenant's key and what is kept of its answers; of how many. What they paid stays."""
        erased = self._answers.erase_of(account)
        self._tenants.delete_key(account)
        return erased

    def erase_expired(self) -> int:
        """Delete the content of answers older than `retention_ms`, and of settled pools that can't be disputed any
        more; of how many. What a closed pool needs for its settlement stays until then."""
        now_ms = self._clock.now_ms()
        oldest = first_id("ans", now_ms - self.parameters().retention_ms)
        erased = self._answers.erase_before(oldest, self._periods.current())
        for adapter, period in self._answers.settled_with_content():
            if not self._disputes.may_be_recomputed(adapter, period, now_ms):
                erased += self._answers.erase_pool(adapter, period)
        return erased

    def payouts(self, account: str) -> list[Payout]:
        """What settlements, disputes, stakes and emissions paid to `account`, newest first; nothing for one that is
        yet to be opened, as a contributor's is by his first payout."""
        return [
            Payout(
                transfer_id=entry.transfer.transfer_id,
                account=account,
                reference=self._reference(entry),
                amount_nano=entry.transfer.amount_nano,
                time_ms=entry.time_ms,
                code=entry.transfer.code,
                funding=_FUNDING[entry.transfer.code],
            )
            for entry in newest_first(self._ledger, account)
            if entry.transfer.code in _FUNDING and entry.transfer.credit == account
        ]

    def payouts_csv(self, account: str) -> str:
        """`payouts` as CSV, a line each, amounts in the smallest part of the unit, which `unit` names."""
        columns = ("transfer_id", "account", "reference", "amount_nano", "time_ms", "code", "funding")
        rows = [tuple(getattr(paid, name) for name in columns) for paid in self.payouts(account)]
        return as_csv((*columns, "unit"), [(*row, self.unit().smallest) for row in rows])

    def refund(self, answer_id: str, reason: str) -> dict[str, Any]:
        """Give an answer's whole fee back, for the operator; the log's statement of it. May be repeated.

        See `ledger.refunds` for who gives what. Raises NotFound (`answer_not_sold`), Conflict
        (`refund_window_closed`), InsufficientFunds (`refund_not_covered`).
        """
        stored = self._answers.find(answer_id)
        if stored is None:
            raise NotFound(f"no answer {answer_id} was sold", code="answer_not_sold", param="answer_id")
        self._sales.check_paid(stored)
        self._register.refresh()
        window_ms, now_ms = self.parameters().refund_window_ms, self._clock.now_ms()
        free_nano = self._disputes.free_nano(stored.usage["adapter"], stored.usage["period"])
        return dict(self._refunds.refund(stored, reason, self._register.state, window_ms, now_ms, free_nano))

    def explain(self, transfer_id: str) -> list[str]:
        """A transfer's derivation, line by line: answers and fees -> pool -> scores -> shares -> transfer for a payout,
        what the log says for any other. Raises NotFound."""
        entry = self._ledger.find(transfer_id)
        if entry is None:
            raise NotFound(f"there is no transfer {transfer_id}", code="transfer_not_found", param="transfer_id")
        batch = self._ledger.batch(entry.seq)
        head, *rest = explain(entry.transfer, batch)
        if format_of(batch.statement) in SETTLEMENTS:
            return [head, *answer_lines(self._ledger.usages(entry.transfer.debit)), *rest]
        return [head, *rest, *statement_lines(batch.statement or {}, entry.transfer)]

    def simulate(self, changes: Mapping[str, Any], period: str = "") -> dict[str, Any]:
        """What `changes` of parameters would have done to a settled period; by default the last one. Writes nothing.

        Raises InvalidInput for changes out of bounds, NotFound (`not_settled`) where the period has no settled pool.
        """
        book = self._register.refresh().parameters
        parameters = Parameters(version=book.newest + 1, **book.changed(changes))
        chosen = self._periods.check(period) if period else self._answers.last_settled()
        pools = [self._simulated(adapter, chosen, parameters) for adapter in self._answers.adapters_settled(chosen)]
        if not pools:
            raise NotFound("no pool was settled in that period", code="not_settled", param="period")
        return {"period": chosen, "changes": dict(changes), "pools": pools}

    def _simulated(self, adapter: str, period: str, parameters: Parameters) -> dict[str, Any]:
        entry = self._ledger.find(payout_id(adapter, period))
        settlement = {} if entry is None else self._ledger.batch(entry.seq).statement or {}
        pool = pool_account(adapter, period)
        return simulate_pool(settlement, self._ledger.usages(pool), self._ledger.verdicts(pool), parameters)

    def settlement_quality(self, adapter: str, period: str) -> dict[str, str]:
        """What a pool's settlement states of how its use was measured; empty where it isn't settled."""
        entry = self._ledger.find(payout_id(adapter, period))
        statement = {} if entry is None else self._ledger.batch(entry.seq).statement or {}
        return dict(statement.get("parts", {}).get("use", {}).get("quality", {}))

    def close(self) -> None:
        self._db.close()

    def _settle_first(
        self,
        scores: ContributorScores,
        accounts: Mapping[str, str],
        improvement: ContributorScores | None,
        left_out: Collection[str] | None,
        ancestors: Sequence[Mapping[str, Any]],
    ) -> Settlement:
        if scores.period == self._periods.current():
            self.open_period()
        self._sales.post_waiting()
        pool = pool_account(scores.adapter, scores.period)
        self._restored.read_refunds(pool)
        usages, marked = self._ledger.usages(pool), self._ledger.verdicts(pool)
        verdicts.check_left_out(left_out, marked, self._refunded(scores.adapter, scores.period))
        parameters = self.parameters(scores.period)
        if not usages:
            return empty_settlement(scores, improvement, parameters)
        _, unreadable_nano = self._answers.unreadable(scores.adapter, scores.period)
        check_ceilings(scores, usages, unreadable_nano)
        statement = settlement_statement(scores, usages, accounts, parameters, improvement, marked, unreadable_nano)
        lineage = {line["adapter_digest"]: dict(line) for line in (*ancestors, *statement["lineage"])}
        statement = {**statement, "lineage": [lineage[digest] for digest in sorted(lineage)]}
        transfers = payout_transfers(statement)
        self._accounts.open(*(transfer.credit for transfer in transfers))
        self._accounts.check(self._ledger.commit(transfers, statement), transfers)
        self._add_to(scores.adapter, scores.period)
        self._answers.settle(scores.adapter, scores.period)
        settled = self._settled(scores.adapter, scores.period)
        if settled is None:
            raise Unavailable("the settlement was written and can't be read", code="ledger_unavailable")
        return settled

    def _refunded(self, adapter: str, period: str) -> tuple[str, ...]:
        return tuple(sorted(entry.transfer.transfer_id for entry in self._refunds.of_pool(adapter, period)))

    def _add_to(self, adapter: str, period: str) -> None:
        """What follows a settlement: the emission beside it, what its payees owe for spam, and what it says of their
        reputations. May be repeated."""
        entry = self._ledger.find(payout_id(adapter, period))
        if entry is None:
            return
        statement = self._ledger.batch(entry.seq).statement or {}
        self._vesting.emit(statement)
        for account in sorted(set(statement["accounts"].values())):
            self._deposits.withhold(account)
        self._reputations.record_settlement(statement, self.parameters(period))

    def _emit_last(self) -> None:
        """What is emitted beside the last settlement, where a log that was put back ends between the two."""
        period = self._answers.last_settled()
        if not period or not self.parameters(period).emission_match_ppm:
            return
        for adapter in self._answers.adapters_settled(period):
            if (entry := self._ledger.find(payout_id(adapter, period))) is not None:
                self._vesting.emit(self._ledger.batch(entry.seq).statement or {})

    def _reference(self, entry: Entry) -> str:
        """Adapter and period of a payout, wherever its transfer says so."""
        statement = (
            self._ledger.batch(entry.seq).statement or {} if entry.transfer.code in ("emission", "stake_reward") else {}
        )
        return f"{statement['adapter']}:{statement['period']}" if statement else entry.transfer.reference

    def _finish(self, adapter: str, period: str) -> bool:
        """Whether the log has the pool's settlement; then what follows it is done, where a crash hindered it."""
        settled = self._ledger.find(payout_id(adapter, period)) is not None
        if settled:
            if (adapter, period) in self._answers.unsettled_pools():
                self._add_to(adapter, period)
            self._answers.settle(adapter, period)
        return settled

    def _settled(self, adapter: str, period: str) -> Settlement | None:
        entry = self._ledger.find(payout_id(adapter, period))
        return None if entry is None else settlement_from(self._ledger.batch(entry.seq))
