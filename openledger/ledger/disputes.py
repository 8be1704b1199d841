"""A dispute: what the log says of a period's share that its contributor contests, and of what became of it.

    dispute    the contributor claims that more was due; a deposit goes into escrow, and what the pool's open disputes
               contest together, as far as it is there
    verdict    a second scorer's scores, from which the share follows anew; the escrow is paid out
    expiry     nobody recomputed it in time; what no other dispute contests goes back to where it came from

    left       = the pool's `unattributed` at its settlement - what disputes were awarded, and refunds took, of it
    contested  = min(claimed - paid, left)             held = min(left, sum of the open disputes' contested)
    recomputed = sum over the pool's parts: the contributor's payout by the settlement's own shares rule and z, or what
                 was paid, where the second scorer gives no scores for the part; shares divide what of a part the
                 settlement could read
    award      = min(recomputed - paid, contested, left) where recomputed - paid > tolerance, else 0
    tolerance  = pool * tolerance_ppm / 10^6, rounded down

A settlement pays at once, so what is contested is only what it left unattributed: nothing is taken back from people
who were paid. A refund takes no more than left - held: the rest is in escrow, or other pools'. Claims overlap: an open
one keeps nobody else from being awarded what both contest, and whoever is decided first is paid first. Only
who has a score in the settlement disputes it, and a pool once. A settlement without parts is one of a single part,
`use`. A verdict is signed with its scorer's key (`signers`), over everybody's scores; older logs have unsigned ones,
which are refused once a scorer's key is registered. Every statement can be built again from what it says and from the
settlement, and every batch follows from its statement (`transfers_of`); `Disputes` replays them all for the audit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from openledger.core.errors import Conflict, Corrupt, Forbidden, InvalidInput, NotFound, OpenLedgerError
from openledger.core.hashing import canonical_json
from openledger.core.ids import derived_id
from openledger.core.money import format_money, format_open, split
from openledger.core.shares import RULE_1, check_ceilings, check_unpaid, shares_ppb, terms_of
from openledger.core.signing import SigningKey, contributor_id, verify
from openledger.core.values import UNATTRIBUTED as NOBODY
from openledger.ledger.accounts import TREASURY, UNATTRIBUTED, check_account_id
from openledger.ledger.refunds import REFUND
from openledger.ledger.signers import Signer, Signers
from openledger.ledger.statements import SETTLEMENT, Statement, check_repeats, format_of
from openledger.ledger.transfers import Batch, Transfer

DISPUTE = "openledger.dispute/1"
UNSIGNED_VERDICT = "openledger.dispute_verdict/1"
VERDICT = "openledger.dispute_verdict/2"
VERDICTS = frozenset({UNSIGNED_VERDICT, VERDICT})
EXPIRY = "openledger.dispute_expiry/1"
FORMATS = frozenset({DISPUTE, *VERDICTS, EXPIRY})
RECOMPUTATION = "openledger.recomputation/1"
FIRST_SCORER = "operator"
MAX_REASON = 2000
_WHOLE_PPM = 10**6
_ACCOUNT_PREFIX = "escrow:"
_CLOCKS_APART_MS = 3_600_000  # between who writes a statement and the ledger that dates it
State = Literal["open", "upheld", "rejected", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What governs a dispute: the deposit, how long after settlement it may be opened (`window_ms`), how long after
    that it may be decided (`resolve_ms`), and which difference counts as none. `parameters` is their version."""

    deposit_nano: int
    window_ms: int
    resolve_ms: int
    tolerance_ppm: int
    parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidPool:
    """What a dispute needs to know of a settlement. `scorers` are who made its scores, `contributors` who has one;
    `parts` the pool's parts by name, each with its `pool_nano` and `payouts_nano`."""

    adapter: str
    period: str
    pool_nano: int
    rule: str
    z_milli: int
    scorers: tuple[str, ...]
    settled_ms: int
    contributors: frozenset[str]
    parts: Mapping[str, Statement]
    payouts_nano: Mapping[str, int]
    accounts: Mapping[str, str]

    def account_of(self, contributor: str) -> str:
        """Where `contributor` was paid, or would have been."""
        return self.accounts.get(contributor, f"contributor:{contributor}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a second scorer found for one part: every contributor's influence, as a settlement states it. By `shares/1`
    there are no `ceilings`, and statements don't name them.

    `unpaid_nano` is None where nothing is said of rows that repeat others, and empty where none were found. `repeats`
    are the rows that it is of: (row, the earlier row, its contributor, likeness in thousandths), for everybody to look
    at; disputes of settlements by `shares/3` may leave the contributor out."""

    method: str
    scores_nano: Mapping[str, int]
    errors_nano: Mapping[str, int]
    gain_nano: int
    ceilings: Sequence[Sequence[int]] = ()
    unpaid_nano: Mapping[str, int] | None = None
    repeats: Sequence[Sequence[Any]] = ()

    def said(self) -> dict[str, Any]:
        """As the log has it."""
        values = asdict(self)
        unpaid_nano = values.pop("unpaid_nano")
        lists = {name: [list(entry) for entry in values.pop(name)] for name in ("ceilings", "repeats")}
        values |= {name: entries for name, entries in lists.items() if entries}
        return values if unpaid_nano is None else {**values, "unpaid_nano": unpaid_nano}


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What a second scorer could read: how many answers, which paid `answers_nano` of the pool. The scorer's word; the
    log knows only that it can't be more than the pool."""

    num_answers: int
    answers_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputation:
    """A second scorer's work on one pool: everybody's scores by part, signed with the scorer's registered key. It
    decides every dispute of that pool alike."""

    adapter: str
    period: str
    scorer: str
    basis: Basis
    scores: Mapping[str, Scores]
    public_key: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """One contributor's dispute of one pool. `claim` and `closing` are the log's statements; no `closing`: open."""

    claim: Statement
    closing: Statement | None = None

    @property
    def contributor(self) -> str:
        return str(self.claim["contributor"])

    @property
    def state(self) -> State:
        if self.closing is None:
            return "open"
        if format_of(self.closing) == EXPIRY:
            return "expired"
        return "upheld" if self.closing["upheld"] else "rejected"

    @property
    def award_nano(self) -> int:
        return 0 if self.closing is None else int(self.closing.get("award_nano", 0))

    @property
    def deadline_ms(self) -> int:
        return int(self.claim["opened_ms"]) + int(self.claim["resolve_ms"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Funds:
    """What one pool's disputes draw on, between two of them: `left_nano` of its `unattributed` was awarded to nobody;
    its open disputes contest `contested_nano` together. Of both the smaller is in escrow."""

    left_nano: int
    contested_nano: int

    @property
    def held_nano(self) -> int:
        return min(self.left_nano, self.contested_nano)

    def opened(self, contested_nano: int) -> "Funds":
        return replace(self, contested_nano=self.contested_nano + contested_nano)

    def closed(self, contested_nano: int, award_nano: int) -> "Funds":
        return Funds(left_nano=self.left_nano - award_nano, contested_nano=self.contested_nano - contested_nano)


@dataclass(slots=True)
class Disputes:
    """Every settled pool of a log and its disputes, by contributor, as the batches tell them. Without `signers` (of the
    same log) it isn't looked at whose keys signed verdicts."""

    signers: Signers | None = None
    pools: dict[tuple[str, str], PaidPool] = field(default_factory=dict)
    by_pool: dict[tuple[str, str], dict[str, Dispute]] = field(default_factory=dict)
    refunded_nano: dict[tuple[str, str], int] = field(default_factory=dict)
    bounties_nano: dict[tuple[str, str], int] = field(default_factory=dict)

    def take(self, batch: Batch) -> None:
        """Raises Corrupt, its code saying what is wrong; batches of other kinds pass."""
        statement, kind = batch.statement or {}, format_of(batch.statement)
        if kind not in FORMATS and not _is_settlement(kind):
            if any(_touches_escrow(transfer) for transfer in batch.transfers):
                raise Corrupt(
                    "money goes through an escrow without saying why", code="unexplained_escrow", param="statement"
                )
            if kind != REFUND:
                return
        try:
            self._take(kind, statement, batch)
        except Corrupt:
            raise
        except OpenLedgerError as error:
            raise _corrupt(error.message, error.code) from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Corrupt(
                f"the statement lacks or misstates something: {error}", code="malformed_statement", param="statement"
            ) from error

    def funds(self, key: tuple[str, str]) -> Funds:
        """What of a pool's `unattributed` is left, and what its open disputes contest of it."""
        known = self.by_pool.get(key, {}).values()
        return Funds(
            left_nano=self.pools[key].payouts_nano.get(NOBODY, 0)
            - sum(dispute.award_nano for dispute in known)
            - self.refunded_nano.get(key, 0)
            - self.bounties_nano.get(key, 0),
            contested_nano=sum(dispute.claim["contested_nano"] for dispute in known if dispute.closing is None),
        )

    def free_nano(self, key: tuple[str, str]) -> int:
        """What of a settled pool's `unattributed` a refund or a bounty may take: what is left and not in escrow."""
        funds = self.funds(key)
        return funds.left_nano - funds.held_nano

    def spendable_nano(self, key: tuple[str, str], window_ms: int, time_ms: int) -> int:
        """What a bounty may take of a pool at `time_ms`: nothing before its settlement, nor while it can be
        disputed."""
        settled = self.pools.get(key)
        return 0 if settled is None or time_ms < settled.settled_ms + window_ms else self.free_nano(key)

    def spend(self, pools_nano: Mapping[tuple[str, str], int], window_ms: int, time_ms: int) -> None:
        """A bounty takes `pools_nano`. Raises Corrupt where a pool can't give that."""
        for key, amount_nano in pools_nano.items():
            if amount_nano > self.spendable_nano(key, window_ms, time_ms):
                raise _corrupt("a bounty takes more than a pool left unattributed, or too soon", "wrong_bounty")
            self.bounties_nano[key] = self.bounties_nano.get(key, 0) + amount_nano

    def _take(self, kind: str, statement: Statement, batch: Batch) -> None:
        if _is_settlement(kind):
            pool = paid_pool(batch)
            self.pools[pool.adapter, pool.period] = pool
            return
        if kind == REFUND:
            self._take_refund(statement)
            return
        claim = statement if kind == DISPUTE else statement["dispute"]
        key, contributor = (claim["adapter"], claim["period"]), claim["contributor"]
        if key not in self.pools:
            raise NotFound(f"{key[0]} wasn't settled in {key[1]}", code="not_settled", param="period")
        known = self.by_pool.setdefault(key, {})
        if kind == DISPUTE:
            check_new(known, contributor)
            expected, stated_ms = _claim_again(self.pools[key], self.funds(key), claim), claim["opened_ms"]
            known[contributor] = Dispute(claim=claim)
        else:
            check_open(known.get(contributor))
            if known[contributor].claim != claim:
                raise Corrupt("the dispute isn't the one that was opened", code="wrong_dispute", param="statement")
            expected, stated_ms = _closing_again(statement, self.funds(key)), statement["closed_ms"]
            self._check_signer(statement)
            known[contributor] = Dispute(claim=claim, closing=statement)
        if statement != expected:
            raise Corrupt(
                "the statement doesn't follow from claim, settlement and scores",
                code="wrong_dispute",
                param="statement",
            )
        if batch.transfers != tuple(transfers_of(statement)):
            raise Corrupt(
                "the transfers aren't those of the dispute's statement", code="escrow_differs", param="statement"
            )
        if abs(batch.time_ms - stated_ms) > _CLOCKS_APART_MS:
            raise Corrupt("the statement's time is far from its batch's", code="wrong_time", param="statement")

    def _take_refund(self, statement: Statement) -> None:
        key, given_nano = (statement["adapter"], statement["period"]), statement["taken_nano"].get(UNATTRIBUTED, 0)
        if not given_nano or key not in self.pools:
            return
        if given_nano > self.free_nano(key):
            raise _corrupt("it takes more of what is unattributed than its pool left there", "wrong_refund")
        self.refunded_nano[key] = self.refunded_nano.get(key, 0) + given_nano

    def _check_signer(self, closing: Statement) -> None:
        if self.signers is None or format_of(closing) == EXPIRY:
            return
        if format_of(closing) == UNSIGNED_VERDICT:
            if self.signers.has("scorer"):
                raise _corrupt("a verdict without a signature, though scorers have keys", "unsigned_verdict")
            return
        scorer = Signer(role="scorer", account=closing["scorer"], public_key=closing["public_key"])
        if self.signers.keys.holder(scorer.public_key) == closing["dispute"]["contributor"]:
            raise _corrupt("the claimant scored the pool that he claims from", "not_a_second_scorer")
        if not self.signers.decides(scorer):
            raise _corrupt(f"{scorer.account} is no scorer by the key of the verdict", "not_a_signer")


def escrow_account(adapter: str, period: str) -> str:
    """Where the disputes of one pool keep deposits and contested amounts while they are open."""
    return f"{_ACCOUNT_PREFIX}{adapter}:{period}"


def disputed_pool(account: str) -> tuple[str, str] | None:
    """The pool (adapter, period) whose escrow `account` is; None for any other account."""
    kind, _, pool = account.partition(":")
    adapter, _, period = pool.partition(":")
    return (adapter, period) if f"{kind}:" == _ACCOUNT_PREFIX else None


def dispute_id(adapter: str, period: str, contributor: str) -> str:
    """Of the transfer that brings the deposit: its proof shows the claim."""
    return derived_id("dsp", adapter, period, contributor, "open")


def paid_pool(batch: Batch) -> PaidPool:
    """The settlement that `batch` holds."""
    settlement = batch.statement or {}
    parts = settlement.get("parts", {"use": settlement})
    measured = [part["quality"] for part in parts.values() if "quality" in part]
    return PaidPool(
        adapter=settlement["adapter"],
        period=settlement["period"],
        pool_nano=settlement["pool_nano"],
        rule=settlement["rule"],
        z_milli=settlement["z_milli"],
        scorers=tuple(sorted({quality.get("scorer", FIRST_SCORER) for quality in measured})),
        settled_ms=batch.time_ms,
        contributors=frozenset(name for part in parts.values() for name in part.get("scores_nano", ())),
        parts=parts,
        payouts_nano=settlement["payouts_nano"],
        accounts=settlement["accounts"],
    )


def claim_statement(
    pool: PaidPool,
    funds: Funds,
    terms: Terms,
    *,
    contributor: str,
    account: str,
    claimed_nano: int,
    reason: str,
    opened_ms: int,
) -> dict[str, Any]:
    """What opens a dispute: `account` says that `contributor` was due `claimed_nano` of `pool`.

    Raises Forbidden for another account than the contributor's, or where the contributor has no score in the settlement
    (`not_in_settlement`), InvalidInput for a claim that can't be, Conflict
    where the window is closed (`dispute_window_closed`) or nothing is left to pay from (`nothing_to_contest`).
    """
    check_account_id(contributor, "contributor")
    _check_numbers(claimed_nano, funds.left_nano, opened_ms, *asdict(terms).values())
    if contributor == NOBODY or pool.account_of(contributor) != account:
        raise Forbidden(
            f"{account} is not where {contributor} is paid",
            code="not_the_contributor",
            param="account",
            fix="open the dispute from the account that the settlement names for the contributor",
        )
    if contributor not in pool.contributors:
        raise Forbidden(
            f"{contributor} has no score in the settlement of {pool.adapter} in {pool.period}",
            code="not_in_settlement",
            param="contributor",
            fix="a pool is disputed by contributors whom its settlement scored",
        )
    if not isinstance(reason, str) or len(reason) > MAX_REASON:
        raise InvalidInput(f"a reason is text of at most {MAX_REASON} characters", code="invalid_claim", param="reason")
    paid_nano = pool.payouts_nano.get(contributor, 0)
    if not paid_nano < claimed_nano <= pool.pool_nano:
        raise InvalidInput(
            f"{format_money(paid_nano)} were paid; a claim is for more than that, and at most for the pool's"
            f" {format_open(pool.pool_nano)}",
            code="invalid_claim",
            param="claimed_nano",
        )
    if opened_ms > pool.settled_ms + terms.window_ms:
        raise Conflict(
            f"{pool.adapter} in {pool.period} was settled too long ago to be disputed",
            code="dispute_window_closed",
            param="period",
        )
    if funds.left_nano <= 0:
        raise Conflict(
            f"{pool.adapter} in {pool.period} left nothing unattributed that a dispute could still be paid from",
            code="nothing_to_contest",
            param="period",
        )
    contested_nano = min(claimed_nano - paid_nano, funds.left_nano)
    return {
        "format": DISPUTE,
        "adapter": pool.adapter,
        "period": pool.period,
        "contributor": contributor,
        "account": account,
        "claimed_nano": claimed_nano,
        "reason": reason,
        "paid_nano": paid_nano,
        "pool_nano": pool.pool_nano,
        **({} if pool.rule == RULE_1 else {"rule": pool.rule}),
        "z_milli": pool.z_milli,
        "parts": {
            name: {
                "pool_nano": part["pool_nano"] - part.get("unreadable_nano", 0),
                "paid_nano": part["payouts_nano"].get(contributor, 0),
                **({"bounded": True} if part.get("ceilings") else {}),
                **({"leaves_unpaid": True} if part.get("unpaid_nano") else {}),
            }
            for name, part in pool.parts.items()
        },
        "first_scorers": list(pool.scorers),
        "settled_ms": pool.settled_ms,
        "contested_nano": contested_nano,
        "escrowed_nano": funds.opened(contested_nano).held_nano - funds.held_nano,
        "opened_ms": opened_ms,
        **asdict(terms),
    }


def sign_recomputation(
    key: SigningKey, adapter: str, period: str, scorer: str, basis: Basis, scores: Mapping[str, Scores]
) -> Recomputation:
    """What `scorer` found of a pool, signed with his key."""
    signature = key.sign(_recomputation_bytes(adapter, period, scorer, basis, scores))
    return Recomputation(
        adapter=adapter,
        period=period,
        scorer=scorer,
        basis=basis,
        scores=scores,
        public_key=key.public_key,
        signature=signature,
    )


def check_recomputation_signature(found: Recomputation) -> None:
    """Raises InvalidInput (`invalid_signature`)."""
    message = _recomputation_bytes(found.adapter, found.period, found.scorer, found.basis, found.scores)
    if not verify(found.public_key, found.signature, message):
        raise InvalidInput(
            "the scores were not signed with this key",
            code="invalid_signature",
            param="signature",
            fix="sign the unchanged scores with the scorer's registered key",
        )


def recomputation_json(found: Recomputation) -> dict[str, Any]:
    """As it is sent and kept: JSON values alone."""
    values = {name: getattr(found, name) for name in ("adapter", "period", "scorer", "public_key", "signature")}
    return {**values, **asdict(found.basis), "scores": {name: part.said() for name, part in found.scores.items()}}


def verdict_statement(claim: Statement, funds: Funds, found: Recomputation, closed_ms: int) -> dict[str, Any]:
    """What closes a dispute by a recomputation; the award follows from claim, `funds` before it, and scores by part.

    Raises InvalidInput for scores, parts or a scorer that can't be, or another key's signature, Forbidden where the
    scorer is the first one or the claimant (`not_a_second_scorer`), Conflict past the deadline (`dispute_expired`).
    """
    if (found.adapter, found.period) != (claim["adapter"], claim["period"]):
        raise InvalidInput("the scores are of another pool", code="invalid_scores", param="period")
    unsigned = _unsigned_verdict(claim, funds, found.basis, found.scorer, found.scores, closed_ms)
    check_recomputation_signature(found)
    if contributor_id(found.public_key) == claim["contributor"]:
        raise Forbidden(
            f"{claim['contributor']} claims from the pool and can't score it",
            code="not_a_second_scorer",
            param="public_key",
            fix="let somebody else recompute it",
        )
    return {**unsigned, "format": VERDICT, "public_key": found.public_key, "signature": found.signature}


def _recomputation_bytes(adapter: str, period: str, scorer: str, basis: Basis, scores: Mapping[str, Scores]) -> bytes:
    return canonical_json(
        {
            "format": RECOMPUTATION,
            "adapter": adapter,
            "period": period,
            "scorer": scorer,
            **asdict(basis),
            "scores": {name: part.said() for name, part in sorted(scores.items())},
        }
    )


def _unsigned_verdict(
    claim: Statement, funds: Funds, basis: Basis, scorer: str, scores: Mapping[str, Scores], closed_ms: int
) -> dict[str, Any]:
    check_account_id(scorer, "scorer")
    _check_scores(claim, scores)
    _check_numbers(closed_ms, funds.left_nano, funds.contested_nano, *asdict(basis).values())
    if basis.answers_nano > claim["pool_nano"]:
        raise InvalidInput("the answers paid more than the pool", code="invalid_scores", param="answers_nano")
    if scorer in (*claim["first_scorers"], claim["account"], claim["contributor"]):
        raise Forbidden(
            f"{scorer} scored the pool first, or claims from it",
            code="not_a_second_scorer",
            param="scorer",
            fix="let somebody else recompute it",
        )
    if closed_ms > claim["opened_ms"] + claim["resolve_ms"]:
        raise Conflict("the time to decide this dispute is over", code="dispute_expired", param="contributor")
    recomputed_nano = recomputed_payout(claim, scores)
    upheld = _is_upheld(claim, recomputed_nano)
    award_nano = min(recomputed_nano - claim["paid_nano"], claim["contested_nano"], funds.left_nano) if upheld else 0
    return {
        "format": UNSIGNED_VERDICT,
        "dispute": claim,
        "scorer": scorer,
        **asdict(basis),
        "scores": {name: part.said() for name, part in sorted(scores.items())},
        "recomputed_nano": recomputed_nano,
        "upheld": upheld,
        "award_nano": award_nano,
        **_funds_said(claim, funds, award_nano),
        "closed_ms": closed_ms,
    }


def expiry_statement(claim: Statement, funds: Funds, closed_ms: int) -> dict[str, Any]:
    """What closes a dispute that nobody recomputed. Raises Conflict (`dispute_open`) before its deadline."""
    _check_numbers(closed_ms, funds.left_nano, funds.contested_nano)
    if closed_ms <= claim["opened_ms"] + claim["resolve_ms"]:
        raise Conflict("the dispute can still be decided", code="dispute_open", param="contributor")
    return {"format": EXPIRY, "dispute": claim, **_funds_said(claim, funds, 0), "closed_ms": closed_ms}


def recomputed_payout(claim: Statement, scores: Mapping[str, Scores]) -> int:
    """What the contributor would have been paid of the pool by these scores."""
    due = [
        _part_payout(claim, part["pool_nano"], scores[name]) if name in scores else part["paid_nano"]
        for name, part in claim["parts"].items()
    ]
    return sum(due)


def check_new(known: Mapping[str, Dispute], contributor: str) -> None:
    """Raises Conflict (`dispute_exists`) where the contributor has disputed this pool."""
    if contributor in known:
        raise Conflict(
            f"{contributor} has disputed this pool before, with another amount or reason",
            code="dispute_exists",
            param="contributor",
            fix="a pool is disputed once; list its disputes to see how that one stands",
        )


def check_open(known: Dispute | None) -> Dispute:
    """`known` if it waits for a verdict. Raises NotFound or Conflict (`dispute_closed`)."""
    if known is None:
        raise NotFound("there is no such dispute", code="dispute_not_found", param="contributor")
    if known.closing is not None:
        raise Conflict(f"the dispute was closed before: {known.state}", code="dispute_closed", param="contributor")
    return known


def transfers_of(statement: Statement) -> list[Transfer]:
    """The batch that carries `statement`. The ids derive from adapter, period and contributor, and a verdict's are an
    expiry's: a dispute is opened once, and closed once."""
    if format_of(statement) == DISPUTE:
        return _opening(statement)
    lost = format_of(statement) in VERDICTS and not statement["upheld"]
    return _closing(statement["dispute"], lost, statement.get("award_nano", 0), statement["returned_nano"])


def checked_lines(statement: Statement, transfer: Transfer) -> list[str]:
    """What a dispute's batch says, in words, once `statement` holds in itself and `transfer` is one that it calls for.

    Raises Corrupt. Whether the dispute was opened on the settlement that it names is for the audit to see.
    """
    opening = format_of(statement) == DISPUTE
    try:
        expected = statement if opening else _closing_again(statement, _funds_in(statement))
        called_for = transfer in transfers_of(statement)
    except OpenLedgerError as error:
        raise _corrupt(error.message, error.code) from error
    if statement != expected or not called_for:
        raise Corrupt(
            f"{transfer.transfer_id} isn't what its statement calls for", code="wrong_dispute", param="statement"
        )
    return lines(statement)


def lines(statement: Statement) -> list[str]:
    """A dispute's statement in words."""
    claim = statement if format_of(statement) == DISPUTE else statement["dispute"]
    told = [
        f"{claim['contributor']} contests its share of {claim['adapter']} in {claim['period']}:"
        f" {format_money(claim['paid_nano'])} were paid, {format_open(claim['claimed_nano'])} are claimed",
        f"contested: {format_money(claim['contested_nano'])} of what the pool left unattributed, with a deposit of"
        f" {format_open(claim['deposit_nano'])} in escrow",
    ]
    if format_of(statement) == EXPIRY:
        return [*told, "nobody recomputed it in time: the deposit went back, and nothing was awarded"]
    if format_of(statement) == DISPUTE:
        return told
    methods = ", ".join(f"{name} by {part['method']}{_unpaid_said(part)}" for name, part in statement["scores"].items())
    signed = (
        f"signed with the key {statement['public_key']}, signature good" if "signature" in statement else "unsigned"
    )
    return [
        *told,
        f"{statement['scorer']} recomputed {format_money(statement['recomputed_nano'])} ({methods})"
        f" on {statement['num_answers']} answers that paid {format_open(statement['answers_nano'])};"
        f" differences up to {claim['tolerance_ppm']} ppm of the pool count as none",
        f"the scores are {signed}",
        f"awarded: {format_money(statement['award_nano'])}, of {format_open(statement['left_nano'])} that were left"
        if statement["upheld"]
        else "rejected: the deposit went to the treasury",
    ]


def _unpaid_said(part: Statement) -> str:
    if "unpaid_nano" not in part:
        return ""
    return f", {len(part.get('repeats', ()))} rows unpaid for repeating others"


def _part_payout(claim: Statement, part_nano: int, scores: Scores) -> int:
    rule = claim.get("rule", RULE_1)  # disputes of settlements by shares/1 don't name it
    shares = shares_ppb(
        scores.scores_nano,
        scores.errors_nano,
        scores.gain_nano,
        claim["z_milli"],
        rule=rule,
        **terms_of(rule, scores.ceilings, scores.unpaid_nano or {}),
    )
    return split(part_nano, shares).get(claim["contributor"], 0)


def _is_upheld(claim: Statement, recomputed_nano: int) -> bool:
    tolerated_nano: int = claim["pool_nano"] * claim["tolerance_ppm"] // _WHOLE_PPM
    return bool(recomputed_nano - claim["paid_nano"] > tolerated_nano)


def _funds_said(claim: Statement, funds: Funds, award_nano: int) -> dict[str, int]:
    """What a closing found, and what of the escrow nobody contests after it."""
    held_nano = funds.closed(claim["contested_nano"], award_nano).held_nano
    return {
        "left_nano": funds.left_nano,
        "all_contested_nano": funds.contested_nano,
        "returned_nano": funds.held_nano - award_nano - held_nano,
    }


def _funds_in(closing: Statement) -> Funds:
    try:
        return Funds(left_nano=closing["left_nano"], contested_nano=closing["all_contested_nano"])
    except KeyError as error:
        raise InvalidInput(f"a closing lacks {error}", code="malformed_statement", param="statement") from error


def _claim_again(pool: PaidPool, funds: Funds, claim: Statement) -> dict[str, Any]:
    terms = Terms(**{name: claim[name] for name in Terms.__dataclass_fields__})
    given = {name: claim[name] for name in ("contributor", "account", "claimed_nano", "reason", "opened_ms")}
    return claim_statement(pool, funds, terms, **given)


def _closing_again(statement: Statement, funds: Funds) -> dict[str, Any]:
    if format_of(statement) == EXPIRY:
        return expiry_statement(statement["dispute"], funds, statement["closed_ms"])
    scores = {name: Scores(**part) for name, part in statement["scores"].items()}
    basis = Basis(**{name: statement[name] for name in Basis.__dataclass_fields__})
    claim, scorer, closed_ms = statement["dispute"], statement["scorer"], statement["closed_ms"]
    if format_of(statement) == UNSIGNED_VERDICT:
        return _unsigned_verdict(claim, funds, basis, scorer, scores, closed_ms)
    found = Recomputation(
        adapter=claim["adapter"],
        period=claim["period"],
        scorer=scorer,
        basis=basis,
        scores=scores,
        public_key=statement["public_key"],
        signature=statement["signature"],
    )
    return verdict_statement(claim, funds, found, closed_ms)


def _opening(claim: Statement) -> list[Transfer]:
    escrow = escrow_account(claim["adapter"], claim["period"])
    deposit = _transfer(claim, "open", claim["account"], escrow, claim["deposit_nano"], "dispute_deposit")
    if not claim["escrowed_nano"]:
        return [deposit]
    return [deposit, _transfer(claim, "open1", UNATTRIBUTED, escrow, claim["escrowed_nano"], "dispute_escrow")]


def _closing(claim: Statement, lost: bool, award_nano: int, returned_nano: int) -> list[Transfer]:
    escrow = escrow_account(claim["adapter"], claim["period"])
    moves = [
        (TREASURY if lost else claim["account"], claim["deposit_nano"], "deposit_lost" if lost else "deposit_return"),
        (claim["account"], award_nano, "dispute_award"),
        (UNATTRIBUTED, returned_nano, "dispute_return"),
    ]
    due = [move for move in moves if move[1]]
    return [
        _transfer(claim, f"close{place}", escrow, account, amount_nano, code)
        for place, (account, amount_nano, code) in enumerate(due)
    ]


def _transfer(claim: Statement, step: str, debit: str, credit: str, amount_nano: int, code: str) -> Transfer:
    adapter, period = claim["adapter"], claim["period"]
    return Transfer(
        transfer_id=derived_id("dsp", adapter, period, claim["contributor"], step),
        debit=debit,
        credit=credit,
        amount_nano=amount_nano,
        code=code,
        reference=f"{adapter}:{period}",
    )


def _touches_escrow(transfer: Transfer) -> bool:
    return transfer.debit.startswith(_ACCOUNT_PREFIX) or transfer.credit.startswith(_ACCOUNT_PREFIX)


def _check_scores(claim: Statement, scores: Mapping[str, Scores]) -> None:
    if not scores or not set(scores) <= set(claim["parts"]):
        raise InvalidInput(
            f"scores are for the pool's parts: {', '.join(claim['parts'])}", code="invalid_scores", param="scores"
        )
    for name, part in scores.items():
        check_ceilings(part.ceilings)
        check_unpaid(part.unpaid_nano or {}, part.scores_nano)
        check_repeats(part.repeats, part.unpaid_nano or {})
        if claim["parts"][name].get("bounded") and not part.ceilings:
            raise InvalidInput(
                "the settlement has ceilings, under which answers count; these scores have none",
                code="invalid_scores",
                param="ceilings",
                fix="state those that were measured: recompute(...).use() has them",
            )
        if claim["parts"][name].get("leaves_unpaid") and part.unpaid_nano is None:
            raise InvalidInput(
                "the settlement leaves rows unpaid that repeat others; these scores say nothing of such rows",
                code="invalid_scores",
                param="unpaid_nano",
                fix="state what such rows moved, {} where there are none: recompute(..., repeats=...) does",
            )
        if part.ceilings and name != "use":
            raise InvalidInput("held-out rows have no ceiling", code="invalid_scores", param="ceilings")
        if not isinstance(part.method, str):
            raise InvalidInput("a method is text", code="invalid_scores", param="method")
        _check_numbers(part.gain_nano, *part.scores_nano.values(), *part.errors_nano.values(), least=None)


def _is_settlement(kind: str) -> bool:
    """Of whichever version: what a dispute needs is in each of them."""
    return kind.partition("/")[0] == SETTLEMENT.partition("/")[0]


def _check_numbers(*numbers: int, least: int | None = 0) -> None:
    if any(type(number) is not int or (least is not None and number < least) for number in numbers):
        raise InvalidInput("a dispute's amounts, times and scores are whole numbers", code="invalid_claim")


def _corrupt(reason: str, code: str) -> Corrupt:
    return Corrupt(reason, code=code, param="statement")
