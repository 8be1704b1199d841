"""Sales of answers: a hold before, the metered fee and its parts after. What an answer is worth, others settle.

    authorize (hold) -> complete (store the answer, post its fee and the parts)        cancel, or time: release

Every step is durable before it answers and may be repeated: ids derive from the answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import apsw

from openledger.core.clock import Clock
from openledger.core.database import writing
from openledger.core.errors import (
    Conflict,
    InsufficientFunds,
    InvalidInput,
    NotFound,
    OpenLedgerError,
    idempotency_conflict,
    outcome,
)
from openledger.core.hashing import digest_json
from openledger.core.ids import new_id
from openledger.core.money import format_money, format_open
from openledger.core.values import AdapterTerms, Answer, Authorization, FeeReceipt
from openledger.economy import answers
from openledger.economy.accounts import AccountBook
from openledger.economy.answers import AnswerStore, StoredAnswer
from openledger.economy.caps import CapStore
from openledger.economy.holds import HoldRecord, HoldStore
from openledger.economy.offers import OfferBook
from openledger.economy.periods import PeriodStore
from openledger.economy.port import Committed, LedgerPort
from openledger.economy.pricing import (
    Metered,
    hold_id,
    hold_transfer,
    price,
    usage_statement,
    usage_transfers,
    void_transfer,
)
from openledger.economy.register import RegisterBook
from openledger.economy.staking import StakeBook
from openledger.economy.tenants import TenantStore
from openledger.economy.terms import check_terms
from openledger.ledger.statements import parts_by_account
from openledger.ledger.transfers import Transfer

Result = TypeVar("Result")
_GONE = frozenset({"pending_transfer_expired", "pending_transfer_already_voided", "pending_transfer_not_found"})
_MAX_KEY_CHARACTERS = 255
New = tuple[str, StoredAnswer]  # its salt, and what is to be stored
Posted = tuple[bool, dict[str, Any] | None]  # whether an answer is paid for, and the receipt where it is now


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be held for; see `SaleBook.authorize`."""

    account: str
    terms: AdapterTerms
    num_prompt_tokens: int
    max_tokens: int
    idempotency_key: str
    request_digest: str = ""
    key_digest: str = ""


class SaleBook:
    """Over one ledger and the economy's database."""

    def __init__(
        self,
        ledger: LedgerPort,
        connection: apsw.Connection,
        clock: Clock,
        *,
        register: RegisterBook,
        accounts: AccountBook,
        stakes: StakeBook,
        answers: AnswerStore,
        periods: PeriodStore,
        caps: CapStore,
        offers: OfferBook,
        tenants: TenantStore,
    ):
        self._ledger = ledger
        self._clock = clock
        self._register = register
        self._accounts = accounts
        self._stakes = stakes
        self._answers = answers
        self._periods = periods
        self._caps = caps
        self._db = connection
        self._offers = offers
        self._tenants = tenants
        self._holds = HoldStore(connection)

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
        """Hold the most that an answer can cost, before it is generated. See `authorize_each`.

        The same key with the same request (`request_digest` covers its content) gives the same authorization, unless
        its hold was released, for then nothing was sold under it: a new one takes its place. `key_digest` is the
        SHA-256 of the API key that asks, whose daily cap then holds. Raises InsufficientFunds saying what is missing
        (`spending_cap_reached` where the cap is), Conflict where the key stands for another request or the adapter
        isn't offered (`adapter_not_offered`), NotFound for the account.
        """
        order = Order(
            account=account,
            terms=terms,
            num_prompt_tokens=num_prompt_tokens,
            max_tokens=max_tokens,
            idempotency_key=idempotency_key,
            request_digest=request_digest,
            key_digest=key_digest,
        )
        return _raised(self.authorize_each([order])[0])

    def authorize_each(self, orders: Sequence[Order]) -> list[Authorization | OpenLedgerError]:
        """As `authorize` for each by itself, with two syncs of the disk for all: their records, then their holds."""
        self.release_expired()
        with writing(self._db):  # durable before the ledger is asked
            held = [outcome(self._held, order) for order in orders]
        return self._placed(held)

    def complete(self, answer: Answer) -> FeeReceipt:
        """Take the metered fee, release the rest of the hold, and pay the fee's parts; may be repeated.

        The answer goes into the period that is open now. What pays for it brings the ledger's signed receipt. Raises
        NotFound without an authorization, Conflict where the hold was released or another answer was completed under
        the id, InvalidInput for more than was authorized.
        """
        return self.complete_all([answer])[0]

    def complete_all(self, parts: Sequence[Answer]) -> list[FeeReceipt]:
        """As `complete`, for the sales that one request's answer is made of: all are stored, or none, before any is
        paid for. Whatever ends it then, `post_waiting` takes the rest."""
        return _raised(self.complete_each([parts])[0])

    def complete_each(self, requests: Sequence[Sequence[Answer]]) -> list[list[FeeReceipt] | OpenLedgerError]:
        """As `complete_all` for each by itself, with three syncs of the disk for all: the answers, what pays for them,
        and that they are paid for."""
        stored = self._store_each(requests)
        due = [each for parts in stored if not isinstance(parts, OpenLedgerError) for each in parts]
        posted = {each.answer_id: told for each, told in zip(due, self._post_each(due), strict=True)}
        return [parts if isinstance(parts, OpenLedgerError) else outcome(_paid, parts, posted) for parts in stored]

    def completed(self, answer_id: str) -> tuple[Answer, FeeReceipt] | None:
        """What was sold under `answer_id` and what it cost, for a retry to be told again; None before it is complete.

        An answer that was stored and not yet paid for is paid for first. Raises Conflict once its pool is settled
        (`answer_settled`), or where its content isn't kept (`answer_not_kept`).
        """
        stored = self._answers.find(answer_id)
        if stored is None or not self.post(stored):
            return None
        if stored.state in ("settled", "refunded"):
            raise Conflict(
                f"{answer_id} was paid for and {stored.state}; its content is no longer told",
                code="answer_settled",
                param="idempotency_key",
                fix="send a new key to ask again, at the price of a new answer",
            )
        if not stored.sealed:
            raise Conflict(
                f"{answer_id} was paid for; its content is not kept, as its tenant asked or because its time was up",
                code="answer_not_kept",
                param="idempotency_key",
                fix="send a new key to ask again, at the price of a new answer",
            )
        return self._answers.open(stored), _receipt(stored)

    def cancel(self, answer_id: str) -> None:
        """Release a hold in full; may be repeated. Raises NotFound, and Conflict where the answer was completed."""
        hold = self._find_hold(answer_id)
        if hold.state == "released":
            return
        if self._answers.find(answer_id) is not None:
            raise Conflict(f"{answer_id} was completed", code="answer_completed", param="answer_id")
        self._release(hold)

    def release_expired(self) -> int:
        """Release holds whose time is up and whose answer never came; how many."""
        expired = [hold for hold in self._holds.expired(self._clock.now_ms()) if not self._answers.find(hold.answer_id)]
        for hold in expired:
            self._release(hold)
        return len(expired)

    def check_paid(self, stored: StoredAnswer) -> None:
        """See to it that the answer is paid for. Raises Conflict (`hold_released`) where its hold had gone."""
        if not self.post(stored):
            raise _released(stored.answer_id)

    def being_answered(self) -> list[AdapterTerms]:
        """The terms under which something is authorized and not yet paid for, nor released."""
        return self._holds.open_terms()

    def post(self, stored: StoredAnswer) -> bool:
        """Whether the answer is paid for, now or before; False where its hold had gone."""
        return _raised(self._post_each([stored])[0])[0]

    def _post_each(self, stored: Sequence[StoredAnswer]) -> list[Posted | OpenLedgerError]:
        waiting = {each.answer_id: each for each in stored if each.state == "stored"}
        commits = [(usage_transfers(each.usage), each.usage) for each in waiting.values()]
        told = dict(zip(waiting, self._ledger.commit_each(commits) if commits else (), strict=True))
        with writing(self._db):  # one sync of the disk for all
            posted = {name: outcome(self._note_posted, waiting[name], each) for name, each in told.items()}
        return [posted.get(each.answer_id, (each.state != "unpaid", None)) for each in stored]

    def _note_posted(self, stored: StoredAnswer, told: Committed | OpenLedgerError) -> Posted:
        results, receipt = _raised(told)
        paid = results[0] not in _GONE
        if paid:
            self._accounts.check(results, usage_transfers(stored.usage))
        elif (hold := self._holds.find(stored.answer_id)) is not None:
            self._release(hold)
        self._answers.mark(stored.answer_id, "posted" if paid else "unpaid")
        if paid:
            self._holds.mark(stored.answer_id, "posted")
            self._caps.spend(stored.answer_id, stored.usage["fee_nano"])
        return paid, receipt

    def post_waiting(self) -> None:
        for stored in self._answers.waiting():
            parts = parts_by_account(stored.usage["parts_nano"], stored.usage["accounts"])
            self._accounts.open(stored.usage["account"], *parts)
            self.post(stored)

    def _held(self, order: Order) -> HoldRecord:
        """The hold's record, and its part of the key's daily cap."""
        check_key(order.idempotency_key)
        terms, prompt, completion = check_terms(order.terms), order.num_prompt_tokens, order.max_tokens
        max_fee_nano = price(terms, prompt, completion, self._register.parameters())
        request = digest_json([asdict(terms), prompt, completion, order.request_digest])
        hold = self._hold_for(order.account, terms, max_fee_nano, order.idempotency_key, request)
        if hold.state == "open" and order.key_digest:
            try:
                self._caps.reserve(order.key_digest, hold.answer_id, hold.max_fee_nano, self._clock.now_ms())
            except InsufficientFunds:
                self._forget(hold)
                raise
        return hold

    def _hold_for(
        self, account: str, terms: AdapterTerms, max_fee_nano: int, idempotency_key: str, body_digest: str
    ) -> HoldRecord:
        for known in self._known(account, idempotency_key):
            _check_same_request(known, body_digest)
            if not self._is_released(known):
                if known.state == "open" and self._ledger.find(hold_id(known.answer_id)) is None:
                    self._offers.check_sale(known.terms)  # a restored log may lack the offer with the hold
                return known
            self._holds.free_key(known)
        self._offers.check_sale(terms)
        now_ms = self._clock.now_ms()
        hold = HoldRecord(
            answer_id=new_id("ans", now_ms),
            account=account,
            idempotency_key=idempotency_key,
            body_digest=body_digest,
            terms=terms,
            period=self._periods.current(),
            max_fee_nano=max_fee_nano,
            expires_ms=now_ms + self._register.parameters().hold_timeout_ms,
        )
        self._holds.add(hold)
        return hold

    def _known(self, account: str, idempotency_key: str) -> list[HoldRecord]:
        """What may have been sold under the key. What was read back from the log comes first: it is newer than what a
        journal from a backup has under the key."""
        adopted = self._holds.adopted(account, self._tenants.request_tag(account, idempotency_key))
        return [one for one in (adopted, self._holds.by_key(account, idempotency_key)) if one is not None]

    def _is_released(self, hold: HoldRecord) -> bool:
        """Whether nothing was sold, nor can be, under `hold`. An answer that waits to be paid for decides it now."""
        stored = self._answers.find(hold.answer_id)
        return hold.state == "released" if stored is None else not self.post(stored)

    def _placed(self, held: Sequence[HoldRecord | OpenLedgerError]) -> list[Authorization | OpenLedgerError]:
        """What is held at the ledger. What it refuses leaves no record, so that its key can be used again."""
        due = [hold for hold in held if isinstance(hold, HoldRecord) and hold.state == "open"]
        transfers = [self._transfer_of(hold) for hold in due]
        told = self._ledger.commit_each([([each], None) for each in transfers]) if due else ()
        refused: dict[str, OpenLedgerError] = {}
        for hold, transfer, each in zip(due, transfers, told, strict=True):
            if (error := outcome(self._check_placed, each, transfer)) is not None:
                refused[hold.answer_id] = error
            if isinstance(error, InsufficientFunds | NotFound | InvalidInput):
                self._forget(hold)
        return [
            one if isinstance(one, OpenLedgerError) else refused.get(one.answer_id) or one.authorization for one in held
        ]

    def _transfer_of(self, hold: HoldRecord) -> Transfer:
        parameters = self._register.parameters(hold.period)
        timeout_ms = parameters.hold_timeout_ms + parameters.posting_grace_ms
        return hold_transfer(hold.answer_id, hold.account, hold.max_fee_nano, timeout_ms)

    def _check_placed(self, told: Committed | OpenLedgerError, transfer: Transfer) -> None:
        self._accounts.check(_raised(told)[0], [transfer])

    def _forget(self, hold: HoldRecord) -> None:
        self._holds.forget(hold.answer_id)
        self._caps.spend(hold.answer_id, 0)

    def _store_each(self, requests: Sequence[Sequence[Answer]]) -> list[list[StoredAnswer] | OpenLedgerError]:
        """What is stored already, or twice among `requests`, is found to be the same; all others are added together."""
        new: dict[str, New] = {}
        found = [outcome(self._stored, parts, new) for parts in requests]
        self._answers.add([added for _, added in new.values()])
        return [
            parts if isinstance(parts, OpenLedgerError) else [stored or new[name][1] for name, stored in parts]
            for parts in found
        ]

    def _stored(self, parts: Sequence[Answer], new: dict[str, New]) -> list[tuple[str, StoredAnswer | None]]:
        """Those of one request with their ids; None for what is to be added, which then is in `new`."""
        known, fresh = list[tuple[str, StoredAnswer | None]](), dict[str, New]()
        for answer in parts:
            name = answer.answer_id
            hold, stored, twin = self._find_hold(name), self._answers.find(name), new.get(name) or fresh.get(name)
            known.append((name, stored))
            if stored is not None:
                self._check_same(answer, stored)
            elif twin is None:
                fresh[name] = self._metered(answer, hold)
            elif answers.commitment(answer, twin[0]) != twin[1].usage["commitment"]:
                raise _completed_otherwise(name)
        new.update(fresh)
        return known

    def _metered(self, answer: Answer, hold: HoldRecord) -> New:
        if hold.state != "open":
            raise _released(hold.answer_id)
        terms, salt = hold.terms, answers.new_salt()
        if (answer.adapter, answer.adapter_digest) != (terms.adapter, terms.adapter_digest):
            raise InvalidInput(
                "the answer is by another adapter than was authorized", code="wrong_adapter", param="adapter"
            )
        metered = Metered(
            answer_id=hold.answer_id,
            account=hold.account,
            period=self._periods.current(),
            num_prompt_tokens=len(answer.prompt_ids),
            num_completion_tokens=len(answer.completion_ids),
            commitment=answers.commitment(answer, salt),
            request=self._tenants.request_tag(hold.account, hold.idempotency_key),
        )
        stakers = self._stakes.account_for(terms.adapter, terms.datanet, metered.period)
        usage = usage_statement(metered, terms, self._register.parameters(hold.period), stakers)
        if usage["fee_nano"] > hold.max_fee_nano:
            raise InvalidInput(
                f"the answer costs {format_money(usage['fee_nano'])}, {format_open(hold.max_fee_nano)} were authorized",
                code="exceeds_authorization",
                param="completion_ids",
            )
        self._accounts.open(*parts_by_account(usage["parts_nano"], usage["accounts"]))
        return salt, self._answers.sealed(answer, salt, usage)

    def _check_same(self, answer: Answer, stored: StoredAnswer) -> None:
        """Where the content isn't kept only the id can be compared."""
        if not stored.sealed:
            return
        salt = self._answers.open(stored).salt
        if answers.commitment(answer, salt) != stored.usage["commitment"]:
            raise _completed_otherwise(answer.answer_id)

    def _release(self, hold: HoldRecord) -> None:
        transfer = void_transfer(hold.answer_id, hold.account, hold.max_fee_nano)
        results = self._ledger.commit([transfer])
        if results[0] not in _GONE:
            self._accounts.check(results, [transfer])
        self._holds.mark(hold.answer_id, "released")
        self._caps.spend(hold.answer_id, 0)

    def _find_hold(self, answer_id: str) -> HoldRecord:
        hold = self._holds.find(answer_id)
        if hold is None:
            raise NotFound(
                f"nothing was authorized as {answer_id}",
                code="authorization_not_found",
                param="answer_id",
                fix="authorize first",
            )
        return hold


def check_key(key: str) -> None:
    """Raises InvalidInput for an idempotency key that can't be."""
    if not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY_CHARACTERS:
        raise InvalidInput(
            f"an idempotency key has 1 to {_MAX_KEY_CHARACTERS} characters",
            code="invalid_idempotency_key",
            param="idempotency_key",
        )


def _check_same_request(hold: HoldRecord, body_digest: str) -> None:
    if hold.body_digest not in ("", body_digest):
        raise idempotency_conflict()


def _released(answer_id: str) -> Conflict:
    return Conflict(
        f"the hold for {answer_id} was released: it was cancelled, or its time was up",
        code="hold_released",
        param="answer_id",
        fix="authorize again; the same idempotency key will do",
    )


def _completed_otherwise(answer_id: str) -> Conflict:
    return Conflict(f"{answer_id} was completed with other tokens", code="answer_completed", param="answer_id")


def _raised(told: Result | OpenLedgerError) -> Result:
    if isinstance(told, OpenLedgerError):
        raise told
    return told


def _paid(parts: Sequence[StoredAnswer], posted: Mapping[str, Posted | OpenLedgerError]) -> list[FeeReceipt]:
    """Raises what kept one of them from being paid for; Conflict (`hold_released`) where its hold had gone."""
    told = [(each, *_raised(posted[each.answer_id])) for each in parts]
    for each, paid, _ in told:
        if not paid:
            raise _released(each.answer_id)
    return [replace(_receipt(each), signed=signed) for each, _, signed in told]


def _receipt(stored: StoredAnswer) -> FeeReceipt:
    usage = stored.usage
    return FeeReceipt(
        answer_id=stored.answer_id,
        fee_nano=usage["fee_nano"],
        parts=parts_by_account(usage["parts_nano"], usage["accounts"]),
    )
