"""The plain values that the stages hand to each other. Frozen, picklable, no behaviour beyond their own shape.

contribute -> datanet -> train -> index -> answer -> attribute -> shares -> pay: each arrow hands on one of these.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Outcome = Literal["accept", "reject", "review"]
UNATTRIBUTED = "unattributed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDraft:
    """A row as its contributor writes it. `source` says where the text comes from."""

    prompt: str
    completion: str
    source: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate said of one row. `reasons` are codes (`near_duplicate`, `too_short`, ...), empty for accept."""

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
    """An immutable published version. `row_root` is the RFC 9162 root (hex) over the sorted row ids."""

    datanet: str
    number: int
    row_root: str
    num_rows: int
    gate_version: str
    published_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterTerms:
    """What the ledger needs to know of an adapter to charge for it. Prices in nano-OPEN for each token."""

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
    """A hold placed before generation: at most `max_fee_nano` will be taken for `answer_id`."""

    answer_id: str
    account: str
    adapter: str
    period: str
    max_fee_nano: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was sold: token ids in and out under one adapter. Waits (encrypted) for settlement.

    `counted` is false once its customer marked it wrong: its fee stays in the pool, it weighs nothing in the scores.
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

    @property
    def weight_nano(self) -> int:
        """What its influence is multiplied by: the fee, or nothing."""
        return self.fee_nano if self.counted else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FeeReceipt:
    """What an answer cost, and where each part of the fee went (account -> nano-OPEN, summing to the fee)."""

    answer_id: str
    fee_nano: int
    parts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The contributors' parts of one adapter's fees in one period, and the answers that paid them.

    `unreadable_nano` of the total came from `num_unreadable` answers whose content isn't kept (any more): nothing can
    be measured on them, and what they paid into the part `use` is nobody's. `marked` are the ids of the answers that
    were marked wrong, those that can't be read included.
    """

    adapter: str
    period: str
    total_nano: int
    settled: bool
    answers: tuple[Answer, ...] = ()
    num_unreadable: int = 0
    unreadable_nano: int = 0
    marked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributorScores:
    """Influence of contributors, fee-weighted and summed over a period's answers.

    Integers of nano-OPEN x nats: an answer's fee times its mean log-likelihood per token. `gain_nano` is the
    adapter's gain over the base on the same answers in the same unit. `method` names how they were measured,
    `quality` how well, as strings.

    As the scores of the improvement part: influence on the held-out set's mean log-likelihood per token (the loss,
    negated), in billionths of a nat, with the gain on the same set.
    """

    adapter: str
    period: str
    method: str
    scores_nano: dict[str, int]
    errors_nano: dict[str, int]
    gain_nano: int
    quality: dict[str, str] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How to choose the next token. `temperature` 0 is greedy; `seed` makes sampling repeatable."""

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One answer to make. `adapter_digest` is empty for the base model alone."""

    request_id: str
    prompt_ids: tuple[int, ...]
    adapter_digest: str = ""
    sampling: SamplingParameters = SamplingParameters()


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """New tokens of one request. `finish_reason` is set on its last event: stop, length, cancelled or error."""

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: str | None = None
    error: dict[str, Any] | None = None
