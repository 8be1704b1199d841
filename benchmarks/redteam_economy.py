"""The red team of the economy: what an attack brings for what it costs, over what honest work brings for the same.

    python -m benchmarks.redteam_economy            the table of docs/concepts/economy.md

Every attack is played twice on the same books. *Undefended* is the rule that the defence replaced, computed by hand.
*Defended* is the house: a real `Economy` over a real ledger under a clock that is moved, its audit clean at the end.
What influence measures is given, not trained: good rows help as much as they are many, spam helps nothing.

    return = (what the attacker got - what he lost) / what he put in,  over the same of an honest party in his place

Deterministic: there is nothing random in it.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from pathlib import Path

from openledger.core.clock import ManualClock
from openledger.core.errors import Conflict, Forbidden, OpenLedgerError
from openledger.core.money import NANO_PER_OPEN
from openledger.core.shares import shares_ppb
from openledger.core.signing import SigningKey
from openledger.core.values import AdapterTerms, Answer, ContributorScores
from openledger.economy import Economy, Parameters
from openledger.economy.reputation import averaged, quota_rows
from openledger.economy.trust import WHOLE, seeded_trust
from openledger.ledger import Ledger
from openledger.ledger.emissions import emission

OPEN = NANO_PER_OPEN
DAY_MS = 24 * 60 * 60_000
ADAPTER = "adapter:py"
TERMS = AdapterTerms(
    adapter="py",
    adapter_digest="ab" * 32,
    datanet="py-docs",
    datanet_version=1,
    row_root="cd" * 32,
    owner_account="user:owner",
    prompt_price_nano=0,
    completion_price_nano=OPEN // 100,
)
CAUGHT = Fraction(4, 5)  # of spam, by the gate; what slips through does nothing for any answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    attack: str
    unit: str
    undefended: Fraction
    defended: Fraction
    stopped_by: str


class World:
    """An economy in a folder, and a customer with money."""

    def __init__(self, folder: Path, parameters: Parameters):
        self.clock = ManualClock()
        self.ledger = Ledger(folder / "ledger.db", self.clock, SigningKey(b"k" * 32), "openledger/redteam")
        self.economy = Economy(self.ledger, folder, self.clock, parameters)
        self.number = 0
        self.give("user:customer", 10**6)

    def give(self, account: str, amount_open: int) -> None:
        self.economy.grant(account, amount_open * OPEN, f"to {account}")

    def sell(self, num_tokens: int, account: str = "user:customer", terms: AdapterTerms = TERMS) -> int:
        """One answer of so many tokens; its fee."""
        self.number += 1
        held = self.economy.authorize(account, terms, 1, num_tokens, f"k{self.number}")
        answer = Answer(
            answer_id=held.answer_id,
            adapter=terms.adapter,
            adapter_digest=terms.adapter_digest,
            period=held.period,
            prompt_ids=(1,),
            completion_ids=(2,) * num_tokens,
        )
        return self.economy.complete(answer).fee_nano

    def settle(self, helped: dict[str, int], accounts: dict[str, str] | None = None) -> dict[str, int]:
        """Close and settle the period; what each contributor was paid. Errors are 5 % of a score."""
        scores = ContributorScores(
            adapter="py",
            period=self.economy.current_period(),
            method="given",
            scores_nano={name: 1000 * rows for name, rows in helped.items()},
            errors_nano={name: 50 * rows for name, rows in helped.items()},
            gain_nano=1000 * sum(helped.values()),
        )
        return dict(self.economy.settle(scores, accounts or {}, scores).payouts_nano)

    def available(self, account: str) -> int:
        try:
            return self.economy.balance(account).available_nano
        except OpenLedgerError:
            return 0


@contextmanager
def world(parameters: Parameters | None = None) -> Iterator[World]:
    with tempfile.TemporaryDirectory() as folder:
        made = World(Path(folder), parameters or Parameters())
        yield made
        made.ledger.audit()
        made.economy.close()
        made.ledger.close()


def good_rows_first(num_periods: int = 10, turn: int = 5, rows: int = 500) -> Outcome:
    """An honest contributor at first; then as many rows of spam a period as the name he made allows. In his place the
    honest one sends the same good rows, and stops."""
    costs = Parameters(contribution_deposit_nano=OPEN // 10)
    names = ("ctr_mallory", "ctr_stopped", "ctr_honest")
    paid, helped, accepted, by_row = (dict.fromkeys(names, 0) for _ in range(4))
    lost, ppm = 0, costs.reputation_start_ppm
    with world(costs) as here:
        here.give("user:mallory", 100)
        for number in range(num_periods):
            spam = 0 if number < turn else quota_rows(ppm, costs)
            good = {"ctr_honest": rows, **dict.fromkeys(names[:2], 0 if spam else rows)}
            for name, number_good in good.items():
                helped[name] += number_good
                accepted[name] += number_good
            accepted["ctr_mallory"] += int(spam * (1 - CAUGHT))
            here.economy.deposit("user:mallory", f"ctb_{number}")
            lost += costs.contribution_deposit_nano if spam else 0
            here.economy.judge(f"ctb_{number}", bool(spam))
            ppm = averaged(ppm, {"spam": spam and 40, "accepted": 0 if spam else 40}, costs.reputation_step_ppm)
            fee = sum(here.sell(100) for _ in range(4))
            for name, amount in here.settle(helped).items():
                paid[name] = paid.get(name, 0) + amount
            for name, share in accepted.items():
                by_row[name] += fee // 2 * share // sum(accepted.values())
    return Outcome(
        attack="good rows first, spam later",
        unit="the same good rows",
        undefended=Fraction(by_row["ctr_mallory"], by_row["ctr_stopped"]),
        defended=Fraction(paid["ctr_mallory"] - lost, paid["ctr_stopped"]),
        stopped_by="pay by influence; the quota falls with the first spam; deposits are lost",
    )


def spam_of_many_keys(num_keys: int = 10) -> Outcome:
    """Each new key sends the whole quota of a new key as spam."""
    costs = Parameters(contribution_deposit_nano=OPEN // 10)
    quota = quota_rows(costs.reputation_start_ppm, costs)
    slipped = int(num_keys * quota * (1 - CAUGHT))
    with world(costs) as here:
        for number in range(num_keys):
            here.give(f"user:key{number}", 1)
            here.economy.deposit(f"user:key{number}", f"ctb_{number}")
            here.economy.judge(f"ctb_{number}", True)
        here.sell(400)
        paid = here.settle({"ctr_honest": quota, **{f"ctr_key{number}": 0 for number in range(num_keys)}})
        lost = num_keys * costs.contribution_deposit_nano
        got = sum(paid.get(f"ctr_key{number}", 0) for number in range(num_keys))
    return Outcome(
        attack=f"spam under {num_keys} keys, each with a new key's quota",
        unit="a key",
        undefended=Fraction(slipped, num_keys) / quota * num_keys,
        defended=Fraction(got - lost, num_keys) / paid["ctr_honest"],
        stopped_by="pay by influence; a deposit for each key",
    )


def good_rows_of_many_keys(num_keys: int = 10, rows: int = 500) -> Outcome:
    """The same good rows under k names instead of one; errors of parts add up as squares. Undefended each name is paid
    alike."""
    influence, error = 10**9 * rows, 5 * 10**7 * rows
    one = shares_ppb({"honest": influence, "m": influence}, {"honest": error, "m": error}, 2 * influence, 1000)
    names = [f"m{number}" for number in range(num_keys)]
    many = shares_ppb(
        {"honest": influence, **dict.fromkeys(names, influence // num_keys)},
        {"honest": error, **dict.fromkeys(names, isqrt(error**2 // num_keys) + 1)},
        2 * influence,
        1000,
    )
    return Outcome(
        attack=f"good rows under {num_keys} keys instead of one",
        unit="a row",
        undefended=Fraction(2 * num_keys, num_keys + 1),
        defended=Fraction(sum(many[name] for name in names), one["m"]),
        stopped_by="pay by influence: shares add up, and so does what is taken for errors",
    )


def owner_deals_with_himself(num_tokens: int = 10_000) -> Outcome:
    """Owner, every contributor, every staker and the customer are one; the largest emission the bounds allow."""
    allowed = Parameters(emission_match_ppm=200_000, emission_cap_nano=10**18)
    with world(allowed) as here:
        here.give("user:owner", 1000)
        here.give("user:honest", 1000)
        here.economy.found()
        here.economy.stake("user:owner", ADAPTER, 100 * OPEN, "s1")
        here.clock.advance(DAY_MS)
        before = here.available("user:owner")
        fee = here.sell(num_tokens, "user:owner")
        here.clock.advance(DAY_MS)
        here.settle({"ctr_owner": 100}, {"ctr_owner": "user:owner"})
        got = here.available("user:owner") - (before - fee)
    unbounded = {**allowed.values, "emission_match_ppm": 10**6}
    matched = sum(emission({"ctr_owner": fee // 2}, 10**18, unbounded).values())
    return Outcome(
        attack="an owner who is customer, contributor and staker at once",
        unit="an OPEN paid in fees",
        undefended=Fraction(9, 10) + Fraction(matched, fee),
        defended=Fraction(got, fee),
        stopped_by="the treasury's part; the bound on the emission; what evidence leaves unattributed",
    )


def staking_to_extract(days: int = 30) -> Outcome:
    """As much stake as the honest, for the last day of a period, on which most of the fees come."""
    with world() as here:
        for name in ("user:honest", "user:mallory"):
            here.give(name, 1000)
        here.economy.stake("user:honest", ADAPTER, 1000 * OPEN, "s1")
        for _ in range(days - 1):
            here.clock.advance(DAY_MS)
            here.sell(10)
        here.economy.stake("user:mallory", ADAPTER, 1000 * OPEN, "s1")
        for _ in range(10):
            here.sell(1000)
        here.clock.advance(DAY_MS)
        here.economy.unstake("user:mallory", ADAPTER, 1000 * OPEN, "u1")
        here.economy.open_period()
        got = {name: here.available(f"user:{name}") for name in ("honest", "mallory")}
        locked_days = 1 + here.economy.parameters().stake_cooldown_ms // DAY_MS
    fees = 10 * 1000 + (days - 1) * 10
    at_once = Fraction(10 * 1000, 2) / (fees - Fraction(10 * 1000, 2))
    return Outcome(
        attack="stake for the one day on which the fees come",
        unit="an OPEN-day locked",
        undefended=at_once * days,
        defended=Fraction(got["mallory"], locked_days) / Fraction(got["honest"], days),
        stopped_by="paid by amount and time; the cool-down earns nothing",
    )


def drain_by_a_minority(percent: int = 40) -> Outcome:
    """A bounty to himself, with 40 % of the stake, while everybody else sleeps."""
    with world() as here:
        for name, part in (("user:mallory", percent), ("user:others", 100 - percent)):
            here.give(name, 10 * part)
            here.economy.stake(name, ADAPTER, 10 * part * OPEN, "s1")
        here.sell(10_000)
        here.settle({"ctr_honest": 1})
        left = here.available("unattributed")
        here.clock.advance(1)
        action = {"kind": "bounty", "recipient": "user:mallory", "amount_nano": left, "bounty": "mine"}
        got = _voted_through(here, "user:mallory", action)
    return Outcome(
        attack=f"what is unattributed, voted to himself with {percent} % of the stake",
        unit="an OPEN drained",
        undefended=Fraction(1) if percent >= 25 else Fraction(0),
        defended=Fraction(got, left),
        stopped_by="spending needs half of all power; a cap for each period",
    )


def borrowed_after_the_snapshot() -> Outcome:
    """Nine times everybody's stake, borrowed once the vote is on."""
    with world() as here:
        here.give("user:honest", 1000)
        here.give("user:mallory", 10_000)
        here.economy.stake("user:honest", ADAPTER, 1000 * OPEN, "s1")
        here.clock.advance(1)
        action = {"kind": "parameters", "changes": {"owner_ppm": 300_000, "treasury_ppm": 0}}
        made = here.economy.propose("user:honest", "t", "", action, "p1")
        here.clock.advance(here.economy.parameters().vote_delay_ms + 1)
        here.economy.stake("user:mallory", ADAPTER, 9000 * OPEN, "s1")
        try:
            power = here.economy.vote("user:mallory", made["proposal"], "for")
        except Forbidden:
            power = 0
    return Outcome(
        attack="a vote captured with stake borrowed while it is on",
        unit="a vote for an OPEN staked",
        undefended=Fraction(1),
        defended=Fraction(power, 9000 * OPEN),
        stopped_by="power is what was staked at the snapshot",
    )


def borrowed_before_the_snapshot(loan_days: int = 1) -> Outcome:
    """Borrowed for the snapshot alone: votes for each OPEN-day that the loan has to last."""
    with world() as here:
        here.give("user:honest", 1000)
        here.economy.stake("user:honest", ADAPTER, 1000 * OPEN, "s1")
        parameters = here.economy.parameters()
    vote_days = (parameters.vote_delay_ms + parameters.vote_period_ms + parameters.vote_timelock_ms) // DAY_MS
    lock_days = loan_days + parameters.stake_cooldown_ms // DAY_MS
    return Outcome(
        attack="a vote captured with stake borrowed for the day of the snapshot",
        unit="a vote for an OPEN-day locked",
        undefended=Fraction(vote_days, loan_days),
        defended=Fraction(vote_days, lock_days),
        stopped_by="the cool-down outlasts vote and timelock: borrowed or not, it is locked and can be slashed",
    )


def flood_of_proposals(num_tried: int = 50, times_the_threshold: Fraction = Fraction(5, 2)) -> Outcome:
    """One that pays himself, hidden among fifty: as many as the house takes before any is decided, the stake delegated
    to a new name for each. In his place the honest one has the threshold staked and proposes once. Undefended all are
    taken: the threshold asks once for any number."""
    with world() as here:
        threshold_nano = here.economy.parameters().vote_threshold_nano
        for name, times in (("user:honest", Fraction(1)), ("user:mallory", times_the_threshold)):
            here.give(name, 1000)
            here.economy.stake(name, ADAPTER, int(threshold_nano * times), "s1")
        here.clock.advance(1)
        honest = sum(_is_taken(here, "user:honest", f"p{number}") for number in range(num_tried))
        taken = 0
        for number in range(num_tried):
            here.economy.delegate("user:mallory", f"user:mallory{number}")
            here.clock.advance(1)
            taken += _is_taken(here, f"user:mallory{number}", "p")
    return Outcome(
        attack=f"{num_tried} proposals at once, one of them to be overlooked, each under a new name",
        unit="an open proposal for the threshold staked",
        undefended=num_tried / times_the_threshold,
        defended=taken / times_the_threshold / honest,
        stopped_by="a stake is behind one open proposal for each threshold of it, whoever it is delegated to",
    )


def _is_taken(here: World, proposer: str, key: str) -> bool:
    try:
        here.economy.propose(proposer, "t", "", {"kind": "text"}, key)
    except Conflict:
        return False
    return True


def sybils_who_vouch(num_honest: int = 200, num_sybils: int = 1000, num_edges: int = 10) -> Outcome:
    """Five sybils to one honest, all vouching for each other, and ten honest ones fooled into vouching for one."""
    honest = {f"h{n}": [f"h{(n * step + 1) % num_honest}" for step in (1, 3, 7)] for n in range(num_honest)}
    vouches = {name: [other for other in others if other != name] for name, others in honest.items()}
    vouches |= {f"s{n}": [f"s{(n + step) % num_sybils}" for step in (1, 2, 3)] for n in range(num_sybils)}
    for edge in range(num_edges):
        name = f"h{(edge * 37 + 11) % num_honest}"
        vouches[name] = [*vouches[name], f"s{edge}"]
    trust = seeded_trust(vouches, [f"h{n}" for n in range(0, num_honest, 10)])
    taken = sum(amount for name, amount in trust.items() if name.startswith("s"))
    heads = Fraction(num_sybils, num_honest + num_sybils)
    return Outcome(
        attack=f"{num_sybils} sybils beside {num_honest} honest, {num_edges} of these fooled",
        unit="all trust",
        undefended=heads,
        defended=Fraction(taken, WHOLE),
        stopped_by="trust flows from seeds",
    )


ATTACKS: tuple[Callable[[], Outcome], ...] = (
    good_rows_first,
    spam_of_many_keys,
    good_rows_of_many_keys,
    owner_deals_with_himself,
    staking_to_extract,
    drain_by_a_minority,
    borrowed_after_the_snapshot,
    borrowed_before_the_snapshot,
    flood_of_proposals,
    sybils_who_vouch,
)


def row(outcome: Outcome) -> str:
    numbers = (float(outcome.undefended), float(outcome.defended))
    told = " | ".join(f"{number:.3f}" for number in numbers)
    return f"| {outcome.attack} | {outcome.unit} | {told} | {outcome.stopped_by} |"


def _voted_through(here: World, voter: str, action: dict[str, object]) -> int:
    """What the voter has got once the proposal's time is over."""
    before = here.available(voter)
    made = here.economy.propose(voter, "t", "", action, "p1")
    parameters = here.economy.parameters()
    here.clock.advance(parameters.vote_delay_ms + 1)
    here.economy.vote(voter, made["proposal"], "for")
    here.clock.advance(parameters.vote_period_ms + parameters.vote_timelock_ms)
    here.economy.run_due()
    return here.available(voter) - before


def main() -> int:
    print("| attack | return for | undefended | defended | what stops it |")
    print("| --- | --- | --- | --- | --- |")
    outcomes = [attack() for attack in ATTACKS]
    for outcome in outcomes:
        print(row(outcome), flush=True)
    return 0 if all(outcome.defended <= 1 for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
