"""The offices: what accounts do beside buying answers. Each method hands on to the book of its subject.

Parameters and periods, genesis and vesting, stake, proposals, withdrawals, deposits. What time brings by itself
(releases, stake that has cooled down, passed proposals) is done by `run_due`: whoever reads or changes something here
calls it first, the API every minute (`platform/desk.py`). It is not in an answer's path.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import apsw

from openledger.core.clock import Clock, SystemClock
from openledger.core.errors import Conflict, Forbidden
from openledger.core.ids import check_name
from openledger.core.money import Unit
from openledger.economy import deposits, quotas, reputation, spot_checks, staking, vouching, withdrawals
from openledger.economy.bounties import BountyBook
from openledger.economy.deposits import DepositBook, DepositState
from openledger.economy.governing import GovernanceBook
from openledger.economy.offers import OfferBook
from openledger.economy.parameters import Parameters
from openledger.economy.pool_history import PoolHistory
from openledger.economy.port import LedgerPort, watched
from openledger.economy.quotas import QuotaBook
from openledger.economy.register import RegisterBook
from openledger.economy.reputation import ReputationBook, quota_rows, review_ppm
from openledger.economy.spot_checks import GOOD, SpotCheckBook, check_finding
from openledger.economy.staking import StakeBook
from openledger.economy.units import presets_in
from openledger.economy.vesting import VestingBook
from openledger.economy.vouching import VouchBook
from openledger.economy.withdrawals import WithdrawalBook, as_csv
from openledger.economy.witnesses import Training, WitnessBook
from openledger.ledger.offers import Lot, Offer
from openledger.ledger.statements import Statement
from openledger.ledger.vesting import Bucket, standard_plan
from openledger.ledger.withdrawals import is_on_chain

_RETRY_MS = 60_000
_DAY_MS = 24 * 60 * 60_000
SCHEMA = (
    staking.SCHEMA
    + deposits.SCHEMA
    + withdrawals.SCHEMA
    + reputation.SCHEMA
    + quotas.SCHEMA
    + spot_checks.SCHEMA
    + vouching.SCHEMA
)


class Offices:
    """Over one ledger and the economy's database."""

    def __init__(self, ledger: LedgerPort, connection: apsw.Connection, clock: Clock | None = None):
        self._clock = clock or SystemClock()
        self._withdrawals = WithdrawalBook(ledger, self.unit, connection)
        self._ledger = ledger = watched(ledger, self._withdrawals)
        self._register = RegisterBook(ledger, self._clock)
        self._stakes = StakeBook(ledger, self._register, connection)
        self._pools = PoolHistory(ledger, connection, self._register)
        self._governance = GovernanceBook(self._register, BountyBook(ledger, self._register, self._pools))
        self._vesting = VestingBook(ledger, self._register)
        self._deposits = DepositBook(ledger, self._register, connection)
        self._reputations = ReputationBook(connection)
        self._quotas = QuotaBook(connection)
        self._spot_checks = SpotCheckBook(connection)
        self._vouches = VouchBook(connection)
        self._witnesses = WitnessBook(ledger)
        self._offers = OfferBook(ledger, self._register, self._witnesses)
        self._idle_until = (-1, 0)  # as long as the register has so many statements, and until then

    def unit(self) -> Unit:
        """In which all amounts are."""
        return self._register.state.unit

    def parameters(self, period: str = "") -> Parameters:
        """The set in force in `period`, or now."""
        return self._register.parameters(period)

    def parameter_table(self) -> dict[str, Any]:
        """Versions, values and bounds as they stand; `adopted` is in force from the next period on."""
        book = self._register.refresh().parameters
        return {
            "unit": {"name": self.unit().name, "decimals": self.unit().decimals, "smallest": self.unit().smallest},
            "in_force": book.periods[book.current].version,
            "adopted": book.newest,
            "period": book.current,
            "values": dict(book.in_force),
            "next_values": dict(book.versions[book.newest]),
            "bounds": {name: list(bounds) for name, bounds in book.bounds.items()},
            "presets": presets_in(self.unit()),
        }

    def run_due(self) -> int:
        """Do what time has brought: releases, stake that comes back, votes that passed, slashes that stand; how much.

        Each of them once, however often this is called, and whoever calls it.
        """
        now_ms = self._register.now_ms()
        if self._idle_until[0] == self._register.state.number and now_ms < self._idle_until[1]:
            return 0
        self._register.refresh()
        done = (
            self._vesting.release_due(now_ms)
            + len(self._governance.execute_due(now_ms))
            + self._stakes.end_slashes(now_ms)
            + self._stakes.return_due(now_ms)
        )
        self._idle_until = (self._register.state.number, self._next_due_ms(now_ms))
        return done

    def found(self, buckets: Sequence[Bucket] | None = None, start_ms: int | None = None) -> dict[str, Any]:
        """Distribute the whole supply, once, by the standard plan unless `buckets` are given. Raises Conflict
        (`genesis_done`), InvalidInput (`invalid_genesis`)."""
        self._vesting.found(
            standard_plan() if buckets is None else buckets, self._clock.now_ms() if start_ms is None else start_ms
        )
        return self._vesting.view()

    def vesting(self) -> dict[str, Any]:
        self.run_due()
        return self._vesting.view()

    def stake(self, account: str, of: str, amount_nano: int, key: str) -> Statement:
        """See `StakeBook.stake`."""
        self.run_due()
        return self._stakes.stake(account, of, amount_nano, key)

    def unstake(self, account: str, of: str, amount_nano: int, key: str) -> Statement:
        """See `StakeBook.unstake`."""
        self.run_due()
        return self._stakes.unstake(account, of, amount_nano, key)

    def slash(self, of: str, cause: str, evidence: str) -> Statement:
        """See `StakeBook.slash`."""
        self.run_due()
        return self._stakes.slash(of, cause, evidence)

    def stakes(self, account: str) -> dict[str, Any]:
        """See `StakeBook.view`."""
        self.run_due()
        return self._stakes.view(account)

    def delegate(self, account: str, delegate: str) -> None:
        """See `GovernanceBook.delegate`."""
        self._governance.delegate(account, delegate)

    def propose(self, proposer: str, title: str, text: str, action: Mapping[str, Any], key: str) -> dict[str, Any]:
        """See `GovernanceBook.propose`; the proposal as `proposals` tells it."""
        self.run_due()
        return self._governance.view(self._governance.propose(proposer, title, text, action, key))

    def vote(self, voter: str, proposal: str, support: str) -> int:
        """See `GovernanceBook.vote`."""
        self.run_due()
        return self._governance.vote(voter, proposal, support)

    def cancel_proposal(self, account: str, proposal: str) -> None:
        """See `GovernanceBook.cancel`."""
        self._governance.cancel(account, proposal)

    def proposals(self) -> list[dict[str, Any]]:
        """Every proposal as it is now, the newest first."""
        self.run_due()
        return self._governance.list()

    def proposal(self, proposal: str) -> dict[str, Any]:
        """Raises NotFound (`proposal_not_found`)."""
        self.run_due()
        return self._governance.view(proposal)

    def withdraw(self, account: str, amount_nano: int, address: str, key: str) -> Statement:
        """See `WithdrawalBook.withdraw`; the minimum is `payout_minimum_nano`. Raises Conflict (`spot_checks_open`) for
        the first one of a contributor whose rows are still looked at (`spot_checks`)."""
        minimum_nano = self._register.parameters().payout_minimum_nano
        check = partial(self._check_looked_at, account)
        return self._withdrawals.withdraw(account, amount_nano, address, minimum_nano, key, check)

    def close_claims(self) -> int:
        """See `WithdrawalBook.close_round`."""
        return self._withdrawals.close_round()

    def pay_out(self, number: int, reference: str) -> int:
        """See `WithdrawalBook.pay_out`."""
        return self._withdrawals.pay_out(number, reference)

    def claims(self, number: int) -> list[tuple[str, int]]:
        """See `WithdrawalBook.claims`."""
        return self._withdrawals.claims(number)

    def claims_csv(self, number: int) -> str:
        """A round, a line for each payee, and whether he claims it on a `chain` or waits for another `payment`."""
        told = self._withdrawals.claims(number)
        rows = [(payee, amount_nano, "chain" if is_on_chain(payee) else "payment") for payee, amount_nano in told]
        return as_csv(("address", "amount_nano", "paid_by"), rows)

    def charge_datanet(self, account: str, datanet: str) -> str:
        """Take what creating a Datanet costs; see `DepositBook.charge`."""
        amount_nano = self._register.parameters().datanet_fee_nano
        return self._deposits.charge("datanet", account, check_name(datanet, "datanet"), amount_nano)

    def charge_adapter(self, account: str, digest: str) -> str:
        """Take what deploying an adapter costs, once for each digest; see `DepositBook.charge`."""
        amount_nano = self._register.parameters().adapter_fee_nano
        return self._deposits.charge("adapter", account, check_name(digest, "adapter_digest"), amount_nano)

    def check_sale(self, trainings: Sequence[Training]) -> None:
        """Whether an adapter that came of `trainings` may be offered; see `WitnessBook.check`. Asks for as many
        witnesses as `witnesses_required` says now."""
        self._witnesses.check(trainings, self._register.parameters().witnesses_required)

    def has_offers(self) -> bool:
        """Whether the log asks for an offer of what is sold."""
        return self._offers.refresh().begun

    def offer(self, offer: Offer) -> str:
        """See `OfferBook.offer`."""
        return self._offers.offer(offer)

    def missing_offers(self, lots: Sequence[Lot]) -> list[Lot]:
        """See `OfferBook.missing`."""
        return self._offers.missing(lots)

    def deposit(self, account: str, contribution_id: str) -> DepositState:
        """See `DepositBook.place`."""
        amount_nano = self._register.parameters().contribution_deposit_nano
        return self._deposits.place(account, contribution_id, amount_nano)

    def judge(self, contribution_id: str, is_spam: bool) -> DepositState:
        """See `DepositBook.judge`."""
        return self._deposits.judge(contribution_id, is_spam=is_spam)

    def undecided_deposits(self) -> list[str]:
        """See `DepositBook.undecided`."""
        return self._deposits.undecided()

    def admit(self, contributor: str, datanet: str, contribution_id: str, num_rows: int) -> None:
        """Count a contribution's rows against its contributor's quota, once. Raises TooLarge (`quota_exceeded`)."""
        quota = self.reputation(contributor, datanet)["quota_rows"]
        self._quotas.take(contributor, datanet, contribution_id, num_rows, quota, self._clock.now_ms())

    def dismiss(self, contribution_id: str) -> None:
        """Of a contribution that the gate never judged: its deposit comes back, and its rows count nothing."""
        self._deposits.dismiss(contribution_id)
        self._quotas.give_back(contribution_id)

    def reputation(self, contributor: str, datanet: str) -> dict[str, int]:
        """`ppm`, and what follows from it: `quota_rows` a day, of which others' vouches give `vouched_rows`, and
        `review_ppm` of them."""
        parameters = self._register.parameters()
        ppm = self._reputations.of(contributor, datanet, parameters)
        own = quota_rows(ppm, parameters)
        vouched = self._vouches.extra_rows(datanet, contributor, ppm, parameters)
        quota = min(own + vouched, max(own, parameters.quota_high_rows))
        review = review_ppm(ppm, parameters)
        return {"ppm": ppm, "quota_rows": quota, "vouched_rows": quota - own, "review_ppm": review}

    def seed_trust(self, datanet: str, contributor: str, trusted: bool) -> None:
        """See `VouchBook.seed`."""
        self._vouches.seed(datanet, contributor, trusted=trusted)

    def vouch(self, datanet: str, voucher: str, contributor: str, vouches: bool) -> None:
        """See `VouchBook.vouch`."""
        self._vouches.vouch(datanet, voucher, contributor, vouches=vouches)

    def record_outcomes(self, contributor: str, datanet: str, outcomes: Mapping[str, int], event: str) -> int:
        """See `ReputationBook.record`."""
        return self._reputations.record(contributor, datanet, outcomes, event, self._register.parameters())

    def draw_spot_checks(self, contributor: str, datanet: str, contribution_id: str, row_ids: Sequence[str]) -> None:
        """Draw which of a contribution's accepted rows are reviewed, by its contributor's reputation; once."""
        review = self.reputation(contributor, datanet)["review_ppm"]
        self._spot_checks.draw(contributor, datanet, contribution_id, row_ids, review, self._clock.now_ms())

    def _check_looked_at(self, account: str) -> None:
        ends_ms = self._spot_checks.look_ends_ms(account.removeprefix("contributor:"))
        if self._clock.now_ms() < ends_ms and not self._withdrawals.has_taken_out(account):
            ends = datetime.fromtimestamp(ends_ms / 1000, UTC).isoformat(timespec="minutes")
            raise Conflict(
                f"rows of {account} were drawn to be looked at before anything is taken out",
                code="spot_checks_open",
                param="account",
                fix=f"try again once they were checked (openledger spot-checks list DATANET), or after {ends}",
            )

    def spot_checks(self, datanet: str) -> list[dict[str, Any]]:
        """See `SpotCheckBook.due`."""
        return self._spot_checks.due(datanet)

    def spot_check(self, account: str, datanet: str, row_id: str, finding: str) -> dict[str, Any]:
        """What `account` found a drawn row to be: `good`, or what counts against its contributor's reputation, once.

        Raises NotFound (`spot_check_not_found`), InvalidInput (`invalid_finding`), Conflict (`spot_check_closed`),
        Forbidden (`not_a_second_party`) for the contributor's own account.
        """
        found = self._spot_checks.find(datanet, row_id)
        check_finding(found, finding)
        if account == f"contributor:{found['contributor']}":
            raise Forbidden("nobody reviews his own row", code="not_a_second_party", param="account")
        if finding != GOOD:
            self.record_outcomes(found["contributor"], datanet, {finding: 1}, f"spot_check:{row_id}")
        self._spot_checks.close(row_id, finding)
        return self._spot_checks.find(datanet, row_id)

    def _next_due_ms(self, now_ms: int) -> int:
        """The first moment at which `run_due` may have something to do; what couldn't be done now is tried again in a
        minute, and where nothing waits a day is soon enough."""
        state = self._register.state
        moments = [one.ends_ms for one in state.stakes.cooling.values()]
        moments += [one.ends_ms + 1 for one in state.stakes.slashes.values() if one.state == "appealable"]
        waiting = [one for one in state.governance.proposals.values() if not one.ended]
        moments += [moment for one in waiting for moment in (one.deadline_ms + 1, one.eta_ms, one.expires_ms + 1)]
        moments += [] if (month := state.vesting.next_ms()) is None else [month]
        if state.governance.due(state.stakes, now_ms):
            moments.append(now_ms + _RETRY_MS)
        return min((moment for moment in moments if moment > now_ms), default=now_ms + _DAY_MS)
