"""What the API and the console ask of the platform, and the values they get back.

Owns the Protocol and its values. Knows neither Ray nor HTTP: `platform/live.py` answers it from the cluster, tests
from memory.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from openledger.core.values import Contribution, ContributionReceipt, SamplingParameters, Verdict, Withdrawal


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """An adapter that can be asked. Prices in nano-OPEN for each token; the base model alone has empty
    `datanet` and `adapter_digest` and version 0."""

    id: str
    created_ms: int
    owned_by: str
    datanet: str
    datanet_version: int
    adapter_digest: str
    prompt_price_nano: int
    completion_price_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an answer cost. `parts` maps accounts to nano-OPEN and sums to the fee."""

    answer_id: str
    prompt_tokens: int
    completion_tokens: int
    fee_nano: int
    parts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEvent:
    """New text of an answer. `finish_reason` (stop or length) and `receipt` are set on the last event only."""

    text: str
    token_count: int
    finish_reason: str | None = None
    receipt: Receipt | None = None


class Service(Protocol):
    """Every refusal is an OpenLedgerError. Dicts hold JSON values only, money in integers of nano-OPEN."""

    async def authenticate(self, api_key: str) -> str:
        """The account `api_key` acts for. Raises Unauthenticated."""
        ...

    async def models(self) -> list[ModelEntry]: ...

    def chat(
        self,
        *,
        account: str,
        model: str,
        messages: Sequence[dict[str, str]],
        sampling: SamplingParameters,
        idempotency_key: str,
    ) -> AsyncIterator[AnswerEvent]:
        """An answer as it is made; written as an async generator, whose `aclose` cancels it: the tokens generated so
        far are charged, and where there are none the hold is voided. A failed generation costs nothing.

        A key that has bought an answer tells it again, in one event with the first receipt, and charges nothing; a
        key whose hold was voided buys anew.

        What can be refused is raised before the first event: NotFound (`unknown_model`), InvalidInput
        (`empty_prompt`, `context_length_exceeded`), InsufficientFunds, Conflict (`idempotency_conflict`: the same key
        with another body; `request_in_flight`: the key is being answered; `answer_settled`: its answer was paid for
        and settled, and is no longer kept).
        """
        ...

    async def mark(self, account: str, answer_id: str, verdict: str) -> str:
        """Say of an answer that `account` paid for that it was `wrong`: it counts nothing in what its pool is divided
        by, and nothing is refunded. The id of the transfer whose proof shows it; may be repeated.

        Raises InvalidInput (`invalid_verdict`), NotFound (`answer_not_sold`), Forbidden (`not_the_customer`), Conflict
        (`period_closed`)."""
        ...

    async def balance(self, account: str) -> dict[str, Any]:
        """At least `account`, `available_nano` and `held_nano`."""
        ...

    async def datanets(self) -> list[dict[str, Any]]:
        """One dict for each Datanet there is now, by name: at least `name`, `summary`, `version` (0 before the first),
        `rows_in`, `accepted`, `rejected`, `review`, `reasons` and `contributors`; with what the report says of it."""
        ...

    async def datanet(self, name: str) -> dict[str, Any]:
        """The entry of `datanets` for one Datanet. Raises NotFound (`unknown_datanet`)."""
        ...

    async def contribute(self, contribution: Contribution) -> ContributionReceipt:
        """The durable verdicts; the same contribution again gives the first receipt. Raises InvalidInput
        (`invalid_signature`), NotFound (`unknown_datanet`), TooLarge."""
        ...

    async def preview(self, contribution: Contribution) -> tuple[Verdict, ...]:
        """The verdicts that `contribute` would give now; nothing is stored. Raises as it does."""
        ...

    async def contribution(self, name: str, contribution_id: str) -> ContributionReceipt:
        """The receipt of a stored contribution. Raises NotFound (`unknown_contribution`)."""
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
