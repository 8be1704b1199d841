"""What the API and the console ask of the platform, and the values they get back.

Owns the Protocol and its values. Knows neither Ray nor HTTP: `platform/live.py` answers it from the cluster, tests
from memory.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from openledger.core.appealing import Appeal, Decision
from openledger.core.rekeying import KeyChange
from openledger.core.sealing import Seal, SealReceipt
from openledger.core.values import (
    Contribution,
    ContributionReceipt,
    RowDraft,
    SamplingParameters,
    Verdict,
    Withdrawal,
)
from openledger.datanets.registry import DEFAULT_DISPLAY, Display
from openledger.datanets.row_schema import RowSchema
from openledger.datanets.terms import Action
from openledger.ledger.disputes import Recomputation
from openledger.ledger.signers import Signer
from openledger.platform.desk import Desk

MOST_SHOWN = 100  # contributors on a page of a leaderboard: each one's earnings are a question to the economy


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """An adapter that can be asked. Prices in nano-OPEN for each token; the base model alone has empty
    `datanet` and `adapter_digest` and version 0. `base_digest` is empty for an adapter that names none: `base_model` is
    then the first."""

    id: str
    created_ms: int
    owned_by: str
    base_model: str
    base_digest: str
    datanet: str
    datanet_version: int
    adapter_digest: str
    prompt_price_nano: int
    completion_price_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReceipt:
    """What an ensemble's answer cost by one of its adapters: a sale of its own, with an id of its own."""

    answer_id: str
    adapter: str
    weight: float
    fee_nano: int
    parts: dict[str, int]
    signed: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an answer cost. `parts` maps accounts to nano-OPEN and sums to the fee. `cached_tokens` of the prompt
    weren't computed again, `engine_ms` is its part of the engine's time: neither changes the fee. `signed` is the
    ledger's promise that the sale stands in its log (`ledger.receipts`), where the ledger gave it at once.

    Of an ensemble `adapters` has a receipt for each adapter, which are signed; together they make the fee and the
    parts, and `answer_id` is the first one's."""

    answer_id: str
    prompt_tokens: int
    completion_tokens: int
    fee_nano: int
    parts: dict[str, int]
    signed: dict[str, Any] | None = None
    cached_tokens: int = 0
    engine_ms: float = 0.0
    adapters: tuple[AdapterReceipt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """A token as text, and its natural log-probability at temperature 1 (None for a prompt's first, which nothing
    precedes). `top` are the likeliest tokens in its place, as text."""

    token: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEvent:
    """New text of one answer. `finish_reason` (stop or length) and `receipt` are set on its last event only.

    `index` is the answer's number among those that were asked for: of `n` for the first prompt, then of `n` for the
    next. `scores` has one for each token where they were asked for; `prompt_scores` and `prompt_text` come with the
    first event of an answer whose prompt is to be echoed.
    """

    text: str
    token_count: int
    finish_reason: str | None = None
    receipt: Receipt | None = None
    index: int = 0
    scores: tuple[TokenScore, ...] = ()
    prompt_text: str = ""
    prompt_scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Vectors of length 1, float32 `[number of inputs, H]`, and what they cost together."""

    vectors_KH: npt.NDArray[np.float32]
    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAdapter:
    """An adapter to be served under `name`. `source` is a directory, a URI or a hub id; see `adapters.sources`. Where
    `shared_with` names accounts, only they and the owner may ask it; empty is everybody, None whoever might before."""

    name: str
    source: str
    prompt_price_nano: int
    completion_price_nano: int
    shared_with: tuple[str, ...] | None = None
    replace: bool = False


class Service(Protocol):
    """Every refusal is an OpenLedgerError. Dicts hold JSON values only, money in integers of nano-OPEN."""

    desk: Desk

    async def close(self) -> None:
        """Until all is paid that was answered: nothing is asked any more, and this process may end then."""
        ...

    async def authenticate(self, api_key: str) -> str:
        """The account `api_key` acts for. Raises Unauthenticated."""
        ...

    async def models(self, *, account: str = "", after: str = "", limit: int = 1000) -> list[ModelEntry]:
        """The next `limit` models after the one called `after`, by name, that `account` may ask."""
        ...

    async def model(self, account: str, model_id: str) -> ModelEntry:
        """Raises NotFound (`unknown_model`), also for one that `account` may not ask."""
        ...

    async def add_adapter(self, account: str, adapter: NewAdapter) -> ModelEntry:
        """Fetch, check and register an adapter of `account`'s; it can be asked when this returns. The same again
        changes nothing. Raises what `adapters.sources` and `adapters.checks` raise, Conflict (`adapter_exists`),
        Forbidden (`not_the_owner`)."""
        ...

    async def remove_adapter(self, account: str, model_id: str) -> None:
        """Answers under way end as they began. Raises NotFound (`unknown_model`), Forbidden (`not_the_owner`)."""
        ...

    def chat(
        self,
        *,
        account: str,
        model: str,
        messages: Sequence[dict[str, str]],
        sampling: SamplingParameters,
        idempotency_key: str,
        key_digest: str = "",
        whole: bool = False,
        adapters: Sequence[tuple[str, float]] = (),
    ) -> AsyncIterator[AnswerEvent]:
        """An answer as it is made; written as an async generator, whose `aclose` cancels it: the tokens generated so
        far are charged, and where there are none the hold is voided. A failed generation costs nothing.

        `key_digest` is the SHA-256 of the API key that asks; its daily cap holds. `whole` says that nothing is read
        before the end, so that the answer may come in two events, its first token and the rest.

        A key that has bought an answer tells it again, in one event with the first receipt, and charges nothing; a
        key whose hold was voided buys anew.

        What can be refused is raised before the first event: NotFound (`unknown_model`), InvalidInput
        (`empty_prompt`, `context_length_exceeded`), InsufficientFunds, Conflict (`idempotency_conflict`: the same key
        with another body; `request_in_flight`: the key is being answered; `answer_settled`: its answer was paid for
        and settled, and is no longer kept), TooManyRequests, Unavailable.

        `sampling.num_answers` of them are made and paid one by one, prompt and all, each under an id of its own; the
        holds of all are placed before the first is begun. What is told again has no scores.
        """
        ...

    def complete(
        self,
        *,
        account: str,
        model: str,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingParameters,
        idempotency_key: str,
        key_digest: str = "",
        echo: bool = False,
        whole: bool = False,
        adapters: Sequence[tuple[str, float]] = (),
    ) -> AsyncIterator[AnswerEvent]:
        """As `chat`, for prompts as they are: text or token ids, without a chat template."""
        ...

    async def embed(
        self,
        *,
        account: str,
        model: str,
        inputs: Sequence[str | Sequence[int]],
        idempotency_key: str,
        key_digest: str = "",
    ) -> Embedded:
        """A vector for each of `inputs`: the mean of the last hidden states under the adapter. All tokens are paid as a
        prompt's, in one answer without a completion: nothing of it is attributed, its fee is divided as its pool is.
        What isn't delivered costs nothing. A key that has paid is told its vectors again at no charge.

        Raises as `chat`; `invalid_token` and `context_length_exceeded` name `input`.
        """
        ...

    async def mark(self, account: str, answer_id: str, verdict: str) -> str:
        """Say of an answer that `account` paid for that it was `wrong`: it counts nothing in what its pool is divided
        by, and nothing is refunded. The id of the transfer whose proof shows it; may be repeated.

        Raises InvalidInput (`invalid_verdict`), NotFound (`answer_not_sold`), Forbidden (`not_the_customer`), Conflict
        (`period_closed`)."""
        ...

    async def balance(self, account: str) -> dict[str, Any]:
        """At least `account`, `available_nano`, `held_nano`, and `is_open`: whether anything was ever paid to it.
        Raises NotFound (`unknown_contributor`) for a contributor of whom nothing came in."""
        ...

    async def datanets(self) -> list[dict[str, Any]]:
        """One dict for each Datanet there is now, by name: at least `name`, `summary`, `version` (0 before the first),
        `rows_in`, `accepted`, `rejected`, `review`, `reasons` and `contributors`; with what the report says of it."""
        ...

    async def datanet(self, name: str) -> dict[str, Any]:
        """The entry of `datanets` for one Datanet. Raises NotFound (`unknown_datanet`)."""
        ...

    async def create_datanet(
        self,
        account: str,
        name: str,
        summary: str,
        row_schema: RowSchema,
        terms: Mapping[str, Any],
        display: Display = DEFAULT_DISPLAY,
    ) -> dict[str, Any]:
        """A Datanet of `account`'s: at least `name`, `owner`, `display`, `row_schema` and `terms`. The same again
        changes nothing. Where governance has set a `datanet_fee_nano`, the account pays it. Raises Conflict
        (`datanet_exists`), InvalidInput (`invalid_terms`, `invalid_display`), TooLarge (`too_many_datanets`),
        InsufficientFunds."""
        ...

    async def terms(self, name: str) -> dict[str, Any]:
        """See `datanets.terms.Terms`. Raises NotFound (`unknown_datanet`)."""
        ...

    async def set_terms(self, account: str, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The terms as they are then. Raises InvalidInput (`invalid_terms`), Forbidden (`not_the_owner`)."""
        ...

    async def set_display(self, account: str, name: str, display: Any) -> dict[str, Any]:
        """`name` and `display`. Raises Forbidden (`not_the_owner`)."""
        ...

    async def versions(self, name: str) -> list[dict[str, Any]]:
        """The published ones, oldest first: see `core.values.DatanetVersion`. Raises NotFound (`unknown_datanet`)."""
        ...

    async def manifest(self, name: str, number: int) -> dict[str, Any]:
        """One of `versions`, with its `row_schema`, `terms` and `statistics` as it was published. Raises NotFound
        (`unknown_datanet`, `unknown_version`), Corrupt."""
        ...

    async def manifest_rows(self, name: str, number: int, after: str, limit: int) -> list[dict[str, Any]]:
        """The version's rows behind the id `after`, by id (`datanets.versions.ManifestRow`). Raises as `manifest`."""
        ...

    async def permissions(self, account: str, name: str) -> list[dict[str, Any]]:
        """For the owner all of them, for others their own: `party`, `action`, `state`, `expires_ms`."""
        ...

    async def request_training(self, account: str, name: str) -> dict[str, Any]: ...

    async def request_contributing(self, name: str, public_key: str, signature: str) -> dict[str, Any]:
        """Raises InvalidInput (`invalid_signature`)."""
        ...

    async def approve(self, account: str, name: str, party: str, action: Action, expires_ms: int) -> dict[str, Any]:
        """Raises Forbidden (`not_the_owner`)."""
        ...

    async def revoke(self, account: str, name: str, party: str, action: Action) -> dict[str, Any]:
        """Raises Forbidden (`not_the_owner`)."""
        ...

    async def contribute(self, contribution: Contribution) -> ContributionReceipt:
        """The durable verdicts; the same contribution again gives the first receipt. Raises InvalidInput
        (`invalid_signature`), NotFound (`unknown_datanet`), TooLarge."""
        ...

    async def leaderboard(self, name: str, *, after: str = "", limit: int = MOST_SHOWN) -> dict[str, Any]:
        """At most a minute old. `contributors` by accepted rows, those behind the one whose id is `after` (see
        `datanets.leaderboard`; with `rank`, `earned_nano` from the Datanet's adapters and the time to the
        `first_payout_ms`), whether it `has_more`, and of all of them `num_contributors`, `rows_a_week`, `duplicates`,
        `cohorts` and `reviewers`. Raises NotFound (`unknown_contributor`)."""
        ...

    async def review_queue(self, account: str, name: str, limit: int) -> list[dict[str, Any]]:
        """Rows that wait for `account` to look at: `row_id`, `prompt`, `completion`, `source`, `extra`. Raises
        Forbidden (`not_the_owner`) for who is neither owner nor reviewer."""
        ...

    async def review(self, account: str, name: str, row_id: str, *, accept: bool) -> dict[str, Any]:
        """Raises NotFound (`not_in_review`), Conflict (`already_reviewed`), Forbidden (`own_row`, `not_the_owner`)."""
        ...

    async def commit_review(self, account: str, name: str, row_id: str, digest: str) -> dict[str, Any]:
        """Take a seat on the panel of a row (`datanets.panels`). Raises Conflict (`no_panel`, `already_reviewed`,
        `panel_full`), NotFound (`not_in_review`), Forbidden (`own_row`, `not_the_owner`), InvalidInput."""
        ...

    async def reveal_review(self, account: str, name: str, row_id: str, nonce: str, *, accept: bool) -> dict[str, Any]:
        """Raises NotFound (`no_commitment`), InvalidInput (`wrong_reveal`), Conflict (`panel_open`, `panel_done`)."""
        ...

    async def panels(self, account: str, name: str) -> dict[str, Any]:
        """`reviewer`, who is the account, and his `seats`: `row_id`, `digest`, `state` (committing, revealing, done),
        `is_revealed`, `reveal_by_ms`."""
        ...

    async def add_known_answer(self, account: str, name: str, draft: RowDraft, *, accept: bool) -> dict[str, Any]:
        """Raises Forbidden (`not_the_owner`)."""
        ...

    async def reviewers(self, account: str, name: str) -> list[dict[str, Any]]:
        """See `datanets.reviews.ReviewerRecord`. Raises Forbidden (`not_the_owner`)."""
        ...

    async def give_feedback(
        self, account: str, answer_id: str, kind: str, contribution: Contribution, *, salt: str, consent: bool
    ) -> ContributionReceipt:
        """A contribution about an answer that `account` paid for; `salt` opens its source. Raises as `contribute`, and
        InvalidInput (`invalid_feedback`, `consent_missing`, `wrong_datanet`, `wrong_source`), NotFound
        (`answer_not_sold`), Forbidden (`not_the_customer`), Conflict (`no_datanet`)."""
        ...

    async def rate(self, account: str, answer_id: str, rating: int, public_key: str, signature: str) -> dict[str, Any]:
        """Raises InvalidInput (`invalid_feedback`, `invalid_signature`), Conflict (`already_rated`), and as above."""
        ...

    async def change_keys(self, change: KeyChange) -> dict[str, Any]:
        """Let another key speak for a contributor, or another recovery key change his keys; the replaced one signs
        nothing more, what it signed stays. The same change again is told as it stands (`contributor_keys`).

        Raises InvalidInput (`invalid_key`, `unchanged_keys`, `invalid_signature`), Conflict (`stale_key_change`,
        `key_in_use`, `key_change_underway`), Forbidden (`recovery_key_needed`), TooManyRequests
        (`too_many_key_changes`).
        """
        ...

    async def contributor_keys(self, contributor: str) -> dict[str, Any]:
        """At least `contributor_id`, `public_key` and `recovery_key` (None: never changed, none named), `num_changes`,
        and `changes`, each with the `transfer_id` whose proof shows it."""
        ...

    async def key_holder(self, public_key: str) -> str:
        """The contributor for whom a key signs. Raises Forbidden (`key_replaced`)."""
        ...

    async def seal(self, seal: Seal) -> SealReceipt:
        """Keep a place for signed rows that are yet to come; durable and in the log when it is answered. The same seal
        again gives the first receipt. Raises InvalidInput (`invalid_seal`, `invalid_signature`), NotFound
        (`unknown_datanet`), Conflict (`too_many_seals`)."""
        ...

    async def find_seal(self, datanet: str, contributor_id: str, digest: str) -> SealReceipt:
        """Raises NotFound (`unknown_datanet`, `unknown_seal`)."""
        ...

    async def appeal(self, appeal: Appeal) -> dict[str, Any]:
        """Contest the gate's verdict on a row, against a deposit; the same appeal again is told as it stands: at least
        `row_id`, `state` (open, overturned, upheld, lapsed), `outcome`, `reasons`, `decision`, `transfer_id`.

        Raises InvalidInput (`invalid_signature`, `wrong_row`), NotFound (`unknown_contribution`), Forbidden
        (`not_the_contributor`), Conflict (`row_accepted`, `appeal_exists`, `appeal_window_closed`), InsufficientFunds.
        """
        ...

    async def appeals(self, datanet: str) -> list[dict[str, Any]]:
        """A Datanet's appeals, oldest first."""
        ...

    async def find_appeal(self, datanet: str, row_id: str) -> dict[str, Any]:
        """Raises NotFound (`appeal_not_found`)."""
        ...

    async def appealed_row(self, account: str, datanet: str, row_id: str) -> dict[str, Any]:
        """`prompt`, `completion` and `source` of a row whose appeal is open, for the Datanet's owner and reviewers.
        Raises NotFound (`appeal_not_found`, `row_not_kept`), Forbidden (`not_the_owner`)."""
        ...

    async def decide(self, decision: Decision) -> dict[str, Any]:
        """Close an appeal; the same decision again is told as it was taken. Raises InvalidInput (`invalid_signature`,
        `invalid_decision`), NotFound (`appeal_not_found`), Forbidden (`not_a_signer`, `not_a_second_party`), Conflict
        (`appeal_closed`, `appeal_lapsed`)."""
        ...

    async def spot_checks(self, account: str, datanet: str) -> list[dict[str, Any]]:
        """Accepted rows that wait to be reviewed, the oldest 100, for the Datanet's owner and reviewers: `row_id`,
        `contributor`, `contribution_id`, `drawn_ms`, and `prompt`, `completion`, `source` and `extra`, None where the
        row was taken back meanwhile. Raises Forbidden (`not_the_owner`)."""
        ...

    async def spot_check(self, account: str, datanet: str, row_id: str, finding: str) -> dict[str, Any]:
        """Say what a drawn row is: `good`, `spam` or `duplicate`; the same again is told as it stands. Raises Forbidden
        (`not_the_owner`, `not_a_second_party`), NotFound (`spot_check_not_found`), InvalidInput (`invalid_finding`),
        Conflict (`spot_check_closed`)."""
        ...

    async def seed_trust(self, account: str, datanet: str, contributor: str, trusted: bool) -> dict[str, Any]:
        """Let the Datanet's owner say whom he trusts: `ppm`, `quota_rows`, `vouched_rows`, `review_ppm` of the
        contributor from now on. Raises Forbidden (`not_the_owner`), InvalidInput."""
        ...

    async def vouch(self, account: str, datanet: str, contributor: str, vouches: bool) -> dict[str, Any]:
        """As `seed_trust`, of one contributor for another. Raises Forbidden (`not_a_contributor`), InvalidInput
        (`invalid_trust`), NotFound for the Datanet."""
        ...

    async def add_reviewer(self, account: str, datanet: str, reviewer: Signer, signature: str) -> dict[str, Any]:
        """Let `account`, the Datanet's owner, name a reviewer. Raises Forbidden (`not_the_owner`), InvalidInput,
        Conflict (`signer_ended`)."""
        ...

    async def end_reviewer(self, account: str, datanet: str, reviewer: Signer) -> dict[str, Any]:
        """Raises Forbidden (`not_the_owner`), NotFound (`unknown_signer`)."""
        ...

    async def open_dispute(
        self, account: str, adapter: str, period: str, contributor: str, claimed_nano: int, reason: str
    ) -> dict[str, Any]:
        """Contest a contributor's share of a settled pool from the account it was paid to; the same claim again is told
        as it stands: at least `dispute_id`, `state` (open, upheld, rejected, expired), `claimed_nano`, `verdict`.

        Raises NotFound (`not_settled`), Forbidden (`not_the_contributor`, `not_in_settlement`), InvalidInput
        (`invalid_claim`), Conflict (`dispute_exists`, `dispute_window_closed`, `nothing_to_contest`),
        InsufficientFunds."""
        ...

    async def disputes(self, adapter: str, period: str) -> list[dict[str, Any]]:
        """A settled pool's disputes, by contributor. Raises NotFound (`not_settled`)."""
        ...

    async def find_dispute(self, name: str) -> dict[str, Any]:
        """Raises NotFound (`dispute_not_found`)."""
        ...

    async def resolve_dispute(self, name: str, found: Recomputation) -> dict[str, Any]:
        """Decide a dispute by a registered scorer's signed scores; the same again is told as it was decided.

        Raises InvalidInput (`invalid_scores`, `invalid_signature`), NotFound (`dispute_not_found`), Forbidden
        (`not_a_signer`, `not_a_second_scorer`), Conflict (`dispute_closed`, `dispute_expired`)."""
        ...

    async def retention(self, account: str) -> dict[str, Any]:
        """`account`, `keep`, `num_kept` and `has_key`."""
        ...

    async def set_retention(self, account: str, keep: bool) -> dict[str, Any]: ...

    async def forget_content(self, account: str) -> dict[str, Any]:
        """As `retention`, with `num_erased`."""
        ...

    async def check_request(self, caller: str, key: str, digest: str) -> None:
        """Raises Conflict (`idempotency_conflict`) where `caller` sent `key` with another request."""
        ...

    async def preview(self, contribution: Contribution) -> tuple[Verdict, ...]:
        """The verdicts that `contribute` would give now; nothing is stored. Raises as it does."""
        ...

    async def contribution(self, name: str, contribution_id: str, reader: str = "") -> ContributionReceipt:
        """The receipt of a stored contribution, as the account `reader` may read it (empty: anybody; see
        `datanets.disclosure`). Raises NotFound (`unknown_contribution`)."""
        ...

    async def withdraw(self, withdrawal: Withdrawal) -> dict[str, Any]:
        """Forget rows at their contributor's signed wish: `removal_id`, `num_rows`, `rows_root`, `transfer_id` (its
        proof shows the entry in the log) and `adapters`, which have learnt from them. May be repeated.

        Raises InvalidInput (`invalid_signature`), NotFound (`unknown_row`), Forbidden (`not_your_row`)."""
        ...

    async def remove_rows(self, account: str, name: str, row_ids: Sequence[str], reason: str) -> dict[str, Any]:
        """As `withdraw`, by the Datanet's owner. Raises Forbidden (`not_the_owner`), InvalidInput (`invalid_reason`),
        NotFound."""
        ...

    async def report(self) -> dict[str, Any]:
        """The run so far: `period`, `base_model`, `totals`, `datanets`, `answers`, `gaming`, `ledger`, `urls`,
        `stages`. Parts that are not known yet are absent."""
        ...

    async def checkpoint(self) -> str:
        """The ledger's signed checkpoint, a C2SP signed note."""
        ...

    async def audit(self) -> dict[str, Any]:
        """`ok`, `entries`, `leaves` and `message`, recomputed from the log now."""
        ...

    async def receipt(self, account: str, answer_id: str) -> bytes:
        """The signed receipt of an answer that `account` paid for, as a file. Raises NotFound (`answer_not_sold`), in
        the same words for another's answer."""
        ...

    async def proof(self, transfer_id: str) -> bytes:
        """The proof file of one transfer. Raises NotFound (`unknown_transfer`)."""
        ...

    async def payouts(self, account: str | None = None) -> list[dict[str, Any]]:
        """Payouts to `account` (None: to everybody), newest first: at least `transfer_id`, `account`,
        `amount_nano`, `adapter`, `period`, `time_ms`."""
        ...

    async def attribution(self, answer_id: str) -> dict[str, Any]:
        """The report's entry for one answer, with its sources. Raises NotFound (`unknown_answer`)."""
        ...

    async def row_scores(
        self, adapter: str, period: str, *, account: str = "", contributor: str = "", limit: int = 100, after: str = ""
    ) -> dict[str, Any]:
        """What the settlement's replay said of the rows of a pool: `rows` (`report.row_lines`) behind the page whose
        `next` is `after`, `has_more`, the `next` that this page ends with (empty: it is the last), and of each
        adapter that was sold under the name its `adapter_digest`, `deviation`, whether rows are `corrected`, and the
        digest of its document, which the settlement names (`row_scores`). Raises
        NotFound (`no_row_scores`; also where `account` may not ask the adapter, empty: nobody's), Forbidden
        (`rows_not_displayed`) where the Datanet shows nobody its rows, or isn't known."""
        ...
