"""The plain values that the stages hand to each other. Frozen, picklable, no behaviour beyond their own shape.

contribute -> datanet -> train -> index -> answer -> attribute -> shares -> pay: each arrow hands on one of these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

Outcome = Literal["accept", "reject", "review"]
UNATTRIBUTED = "unattributed"
PRIVATE_ROW = "private"  # in the place of a row's id; no row has it


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDraft:
    """A row as its contributor writes it. `source` says where the text comes from; `extra` is canonical JSON of what
    its Datanet's row schema asks for beyond that (`datanets.row_schema`), empty where that is nothing."""

    prompt: str
    completion: str
    source: str = ""
    extra: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """Signed rows for one Datanet. The signature covers everything but itself; see `datanets.contribution`."""

    datanet: str
    contributor_id: str
    public_key: str
    nonce: str
    drafts: tuple[RowDraft, ...]
    content_root: str
    signature: str

    def __reduce__(self) -> tuple[Callable[..., "Contribution"], tuple[Any, ...]]:
        """With plain tuples for its rows: thousands of objects cost some three times as much between processes."""
        return _contribution, (list(map(_DRAFT, self.drafts)), *_SIGNED(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An accepted (or to be reviewed) row with its owner."""

    row_id: str
    datanet: str
    contributor_id: str
    contribution_id: str
    ordinal: int
    source: str
    prompt: str
    completion: str
    extra: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate said of one row. `reasons` are codes (`near_duplicate`, `too_short`, ...), empty for accept.

    `duplicate_of` is the row that it repeats; PRIVATE_ROW where that one stands in a Datanet that isn't public, and
    whoever is told has no permission on it.
    """

    row_id: str
    ordinal: int
    outcome: Outcome
    reasons: tuple[str, ...] = ()
    duplicate_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionReceipt:
    """The durable answer to a contribution: one verdict for each draft, in order."""

    contribution_id: str
    datanet: str
    contributor_id: str
    verdicts: tuple[Verdict, ...]

    def __reduce__(self) -> tuple[Callable[..., "ContributionReceipt"], tuple[Any, ...]]:
        """As a Contribution's."""
        return _receipt, (self.contribution_id, self.datanet, self.contributor_id, list(map(_VERDICT, self.verdicts)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """A contributor's signed wish that rows of theirs be forgotten; see `datanets.removal`. `row_ids` are sorted."""

    datanet: str
    contributor_id: str
    public_key: str
    row_ids: tuple[str, ...]
    nonce: str
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Rows that are forgotten, and by whose will: their contributor's (`withdrawn`) or the owner's (`removed`).

    `rows_root` is the RFC 9162 root (hex) over `row_ids`, `signed` what a withdrawal's signature needs to be checked.
    """

    removal_id: str
    datanet: str
    kind: Literal["withdrawn", "removed"]
    by: str
    reason: str
    row_ids: tuple[str, ...]
    rows_root: str
    signed: dict[str, str]
    removed_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """What stays of a removed row: a digest of its text under `salt`, which is not published."""

    row_id: str
    salt: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatanetVersion:
    """An immutable published version. `row_root` is the RFC 9162 root (hex) over the sorted row ids, `credit_root` that
    over the row ids in the order of credit, first credited first; empty in versions of before."""

    datanet: str
    number: int
    row_root: str
    num_rows: int
    gate_version: str
    published_ms: int
    credit_root: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTerms:
    """What the ledger needs to know of an adapter to charge for it. Prices in nano-OPEN for each token. A merge was
    trained on no rows: its Datanet and row root are empty, its version is 0."""

    adapter: str
    adapter_digest: str
    datanet: str
    datanet_version: int
    row_root: str
    owner_account: str
    prompt_price_nano: int
    completion_price_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """A hold placed before generation: at most `max_fee_nano` will be taken for `answer_id`, and nothing once it has
    expired."""

    answer_id: str
    account: str
    adapter: str
    period: str
    max_fee_nano: int
    expires_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was sold: token ids in and out under one adapter. Waits (encrypted) for settlement.

    `ensemble` has the digests and weights of all adapters that wrote it, where they were several: it was sold once for
    each, and this is the sale of `adapter`'s part.
    `counted` is false once its customer marked it wrong: its fee stays in the pool, it weighs nothing in the scores.
    `cached_tokens` of the prompt weren't computed again, and are paid like the others; `engine_us` is its part of the
    engine's time.
    """

    answer_id: str
    adapter: str
    adapter_digest: str
    period: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    fee_nano: int = 0
    pool_nano: int = 0
    salt: str = ""
    counted: bool = True
    cached_tokens: int = 0
    engine_us: int = 0
    ensemble: tuple[tuple[str, float], ...] = ()

    @property
    def weight_nano(self) -> int:
        """What its influence is multiplied by: the fee, or nothing."""
        return self.fee_nano if self.counted else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeReceipt:
    """What an answer cost, and where each part of the fee went (account -> nano-OPEN, summing to the fee). `signed` is
    the ledger's promise (`ledger.receipts`), where it was given with the payment."""

    answer_id: str
    fee_nano: int
    parts: dict[str, int]
    signed: dict[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The contributors' parts of one adapter's fees in one period, and the answers that paid them.

    `unreadable_nano` of the total came from `num_unreadable` answers whose content isn't kept (any more): nothing can
    be measured on them, and what they paid into the part `use` is nobody's. `marked` are the ids of the answers that
    were marked wrong, those that can't be read included, and `refunds` of the transfers that took answers out of it.
    `shares_rule` is what it is settled by (`core.shares`), empty where nobody said so: then it is the newest.
    """

    adapter: str
    period: str
    total_nano: int
    settled: bool
    answers: tuple[Answer, ...] = ()
    num_unreadable: int = 0
    unreadable_nano: int = 0
    marked: tuple[str, ...] = ()
    refunds: tuple[str, ...] = ()
    shares_rule: str = ""

    @property
    def left_out(self) -> tuple[str, ...]:
        """What scores of this pool don't count: they are of this pool while the same was marked and refunded."""
        return (*self.marked, *self.refunds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributorScores:
    """Influence of contributors, fee-weighted and summed over a period's answers.

    Integers of nano-OPEN x nats: an answer's fee times its mean log-likelihood per token. `gain_nano` is the
    adapter's gain over the base on the same answers in the same unit. `method` names how they were measured,
    `quality` how well, as strings.

    As the scores of the improvement part: influence on the held-out set's mean log-likelihood per token (the loss,
    negated), in billionths of a nat, with the gain on the same set.

    `ceilings` bound what the answers sold can owe to the data (`core.shares`): for each adapter that served, its mean
    gain on its held-out answers, in billionths of a nat, and the fees of its answers in nano-OPEN. None for the
    improvement part.

    `repeats` are rows that aren't paid: each with the earlier one that it repeats, the contributor of that one, and how
    alike they are, in thousandths. `unpaid_nano` is what of a contributor's score is theirs, where that is anything
    (`core.shares`). `repeated_nano` is the same before it is clipped: of parts of a period it is added up, and the sum
    is clipped once. It is no part of a settlement.
    """

    adapter: str
    period: str
    method: str
    scores_nano: dict[str, int]
    errors_nano: dict[str, int]
    gain_nano: int
    quality: dict[str, str] = field(default_factory=dict)
    ceilings: tuple[tuple[int, int], ...] = ()
    unpaid_nano: dict[str, int] = field(default_factory=dict)
    repeats: tuple[tuple[str, str, str, int], ...] = ()
    repeated_nano: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPart:
    """One part of a settled pool: `ppm` of it, which is `pool_nano`, divided by the part's own shares.

    `unreadable_nano` of it was paid by answers whose content isn't there: that is `unattributed`, and the shares divide
    the rest. Where nothing was `measured`, `method` is empty and the whole part is `unattributed`.
    """

    ppm: int
    pool_nano: int
    measured: bool
    method: str
    shares_ppb: dict[str, int]
    payouts_nano: dict[str, int]
    unreadable_nano: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The result of paying one pool: shares in parts per billion, payouts in nano-OPEN, both summing exactly.

    Both are keyed by contributor (and `unattributed`); `transfer_ids` maps each paid account to its transfer.
    `parts` has the pool's parts by name, `use` and `improvement`. A payout is the sum of the parts' payouts; a share is
    the sum of the parts' shares, each weighed by the part's ppm, and so depends on no amount: where all answers could
    be read, the pool times a share is the payout but for less than 3 nano-OPEN of rounding and one billionth of the
    pool. Shares are of what could be read.
    `unreadable_nano` of the pool was paid by answers whose content wasn't there at settlement.
    `replayed` says that the pool had been settled before and this is the first result again.
    """

    adapter: str
    period: str
    pool_nano: int
    shares_ppb: dict[str, int]
    payouts_nano: dict[str, int]
    transfer_ids: dict[str, str]
    parts: dict[str, PoolPart] = field(default_factory=dict)
    unreadable_nano: int = 0
    replayed: bool = False


GrammarKind = Literal["json_object", "json_schema", "regex", "lark"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What an answer must look like. `text` is the JSON Schema, the regular expression or the Lark grammar; empty for
    `json_object`."""

    kind: GrammarKind
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How to choose the next token. `temperature` 0 is greedy; `seed` makes sampling repeatable.

    In this order: `grammar` masks, the penalties are taken off (OpenAI's presence and frequency over the answer,
    CTRL's repetition over prompt and answer), `temperature` divides, then `top_k` (0: all), `top_p` and `min_p` (of the
    likeliest token's probability) each keep a part. `logprobs` asks for the log-probability of each token and of as
    many of the likeliest, `prompt_logprobs` the same for the prompt; both are the model's own, before any of the above.
    `num_answers` are made from one prompt, the i-th with `seed + i`. With `ignore_end` the end token ends nothing.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    num_answers: int = 1
    ignore_end: bool = False
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One answer to make, or `sampling.num_answers`. `adapter_digest` is empty for the base model alone; `ensemble`
    names several adapters instead, each with a weight. What was computed for one `tenant` is never used for another."""

    request_id: str
    prompt_ids: tuple[int, ...]
    adapter_digest: str = ""
    sampling: SamplingParameters = SamplingParameters()
    tenant: str = ""
    ensemble: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Texts as token ids, each to become a vector. `adapter_digest` is empty for the base model alone."""

    inputs: tuple[tuple[int, ...], ...]
    adapter_digest: str = ""
    tenant: str = ""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.inputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """Natural log-probability of a token at temperature 1. `top` are the likeliest ones as (token, log-probability)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one answer took. `cached_tokens` of the prompt weren't computed again. `engine_ms` is the request's part of
    the time of the steps it was in: each step's time divided by rows."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    engine_ms: float = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """New tokens of one answer. `finish_reason` is set on its last event: stop, length, cancelled or error.

    `index` is the answer's number among the request's; `num_open` how many of them go on after this event's, so that
    a request's last event is the one with a `finish_reason` and none open. `logprobs` has one entry for each token
    where they were asked for; `prompt_logprobs` come with the first event of answer 0 (None for the first token, which
    nothing precedes); `usage` comes with each `finish_reason` but that of a request that was refused.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
    index: int = 0
    num_open: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    usage: Usage | None = None

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None and self.num_open == 0


_DRAFT = attrgetter("prompt", "completion", "source", "extra")
_SIGNED = attrgetter("datanet", "contributor_id", "public_key", "nonce", "content_root", "signature")
_VERDICT = attrgetter("row_id", "ordinal", "outcome", "reasons", "duplicate_of")


def _contribution(
    drafts: Sequence[tuple[str, str, str, str]],
    datanet: str,
    contributor_id: str,
    public_key: str,
    nonce: str,
    content_root: str,
    signature: str,
) -> Contribution:
    return Contribution(
        datanet=datanet,
        contributor_id=contributor_id,
        public_key=public_key,
        nonce=nonce,
        drafts=tuple(
            RowDraft(prompt=prompt, completion=completion, source=source, extra=extra)
            for prompt, completion, source, extra in drafts
        ),
        content_root=content_root,
        signature=signature,
    )


def _receipt(
    contribution_id: str, datanet: str, contributor_id: str, verdicts: Sequence[tuple[Any, ...]]
) -> ContributionReceipt:
    return ContributionReceipt(
        contribution_id=contribution_id,
        datanet=datanet,
        contributor_id=contributor_id,
        verdicts=tuple(
            Verdict(row_id=row_id, ordinal=ordinal, outcome=outcome, reasons=reasons, duplicate_of=duplicate_of)
            for row_id, ordinal, outcome, reasons, duplicate_of in verdicts
        ),
    )
