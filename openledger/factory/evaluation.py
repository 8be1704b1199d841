"""How good an adapter's answers are: ROUGE-L against the rows' texts, the adapter beside its base.

ROUGE-L (Lin, 2004) is the F-measure of the longest common subsequence of words, lower-cased.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from openledger.core.values import RowDraft
from openledger.datanets.shingles import normalized_words

Generate = Callable[[str, str], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Mean ROUGE-L, 0 to 1, of adapter and base on the same questions."""

    adapter: float
    base: float
    num_questions: int


async def measure(generate: Generate, questions: Sequence[RowDraft], adapter_digest: str) -> Quality:
    """Ask every question of the adapter and of the base. `generate(question, adapter digest)` gives the answer; the
    empty digest is the base."""

    async def mean_score(digest: str) -> float:
        answers = await asyncio.gather(*(generate(question.prompt, digest) for question in questions))
        scores = [rouge_l(q.completion, a) for q, a in zip(questions, answers, strict=True)]
        return sum(scores) / max(1, len(scores))

    adapter, base = await mean_score(adapter_digest), await mean_score("")
    return Quality(adapter=adapter, base=base, num_questions=len(questions))


def rouge_l(reference: str, candidate: str) -> float:
    """0 to 1; 0 when either text has no words."""
    wanted, given = normalized_words(reference), normalized_words(candidate)
    common = _longest_common_subsequence(wanted, given)
    return 2 * common / (len(wanted) + len(given)) if common else 0.0


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    lengths = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = lengths[column]
            lengths[column] = diagonal + 1 if word == other else max(above, lengths[column - 1])
            diagonal = above
    return lengths[-1]
