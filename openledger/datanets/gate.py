"""The gate: a published, versioned rule that says of each row accept, reject or review, and why.

Owns the checks and their reason codes. Knows nothing of who contributes or where rows are kept: equal rows against an
equal index get equal verdicts, whoever sends them. A change of any check or threshold, here or in `dedupe`, is a new
GATE_VERSION.

    reason            outcome  when
    empty             reject   prompt or completion has no visible character
    too_short         reject   the completion has fewer than 3 words
    too_long          reject   prompt or completion has more than 1,500 words
    invalid_text      reject   control characters (NUL among them) or unpaired surrogates
    noise             reject   fewer letters than other marks, or words that can't be spoken
    repetition        reject   a few words, or one character, over and over
    exact_duplicate   reject   the same question and answer, or a same answer of 8 words or more, stands already
    near_duplicate    reject   an edited copy of a row that stands already (see `dedupe`)
    personal_data     review   an e-mail address, a telephone number or a payment card's number

The checks for noise and repetition follow the rules of Gopher (Rae et al., 2021, appendix A) as far as they apply to
rows of a few words.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from openledger.core.values import RowDraft, Verdict
from openledger.datanets.dedupe import DuplicateIndex, Features, features_of, words

GATE_VERSION = "gate/1"

MIN_WORDS = 3
MAX_WORDS = 1_500
MIN_LETTER_RATIO = 0.5
MIN_SPEAKABLE_RATIO = 0.6
MIN_WORDS_FOR_SPEAKABLE = 3
MIN_WORDS_FOR_REPETITION = 6
MAX_TOP_WORD_RATIO = 0.5
MAX_REPEATED_PAIR_RATIO = 0.5

_CHARACTER_RUN = re.compile(r"(\S)\1{9,}")
_LATIN_WORD = re.compile(r"(?<![\w.])[a-z]{4,}(?![\w.(])")
_UNSPEAKABLE = re.compile(  # pairs of letters that languages in Latin script hardly know, and runs of consonants
    r"^[^aeiouy]+$|[^aeiouy]{6,}|(.)\1{2,}|q[^u]|j[bcfghpqvx]|[vz][bcdfghjkmnpqstvwx]|x[bdfgjkmnqrsvwxz]"
    r"|w[bcfgjmpqvxz]|[bcdfgkmpt]q|[bfghkmpvw]x|[cfgkpqvwz]j"
)
_EMAIL = re.compile(r"[\w.+-]+@(?!example\.|[\w-]+\.example\b|localhost)[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}", re.I)
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{4})"
    r"(?![\w.]\d|\d)"
)
_CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![ -]?\d|\w)")


def judge(drafts: Sequence[RowDraft], row_ids: Sequence[str], index: DuplicateIndex) -> list[Verdict]:
    """A verdict for each draft, in order. Rows that pass or go to review are added to `index`: hand in an overlay."""
    features = features_of((draft.prompt, draft.completion) for draft in drafts)
    return [
        _verdict(ordinal, row_id, draft, features[ordinal], index)
        for ordinal, (row_id, draft) in enumerate(zip(row_ids, drafts, strict=True))
    ]


def text_reasons(draft: RowDraft) -> tuple[str, ...]:
    """Why the text of `draft` alone, whatever stands already, is rejected; empty if it is not."""
    if not _visible(draft.prompt) or not _visible(draft.completion):
        return ("empty",)
    answer = words(draft.completion)
    checks = {
        "too_short": len(answer) < MIN_WORDS,
        "too_long": max(len(answer), len(words(draft.prompt))) > MAX_WORDS,
        "invalid_text": any(_is_invalid(text) for text in (draft.prompt, draft.completion, draft.source)),
        "noise": is_noise(draft.completion) or _has_few_letters(draft.prompt),
        "repetition": is_repetitive(draft.completion),
    }
    return tuple(reason for reason, holds in checks.items() if holds)


def is_noise(text: str) -> bool:
    """Too few letters among its visible characters, or too few of its longer words that could be spoken."""
    return _has_few_letters(text) or _is_unspeakable(text)


def is_repetitive(text: str) -> bool:
    """One character ten times in a row, one word for most of the text, or the same pairs of words again and again."""
    if _CHARACTER_RUN.search(text):
        return True
    found = words(text)
    if len(found) < MIN_WORDS_FOR_REPETITION:
        return False
    pairs = list(pairwise(found))
    return max(Counter(found).values()) > MAX_TOP_WORD_RATIO * len(found) or len(pairs) - len(
        set(pairs)
    ) > MAX_REPEATED_PAIR_RATIO * len(pairs)


def has_personal_data(text: str) -> bool:
    """Patterns and, for cards, the check digit (Luhn, ISO/IEC 7812-1). A reason to look, not a guarantee."""
    if _EMAIL.search(text) or _PHONE.search(text):
        return True
    return any(_passes_luhn(re.sub(r"\D", "", match.group())) for match in _CARD.finditer(text))


def _verdict(ordinal: int, row_id: str, draft: RowDraft, features: Features, index: DuplicateIndex) -> Verdict:
    if reasons := text_reasons(draft):
        return Verdict(row_id=row_id, ordinal=ordinal, outcome="reject", reasons=reasons)
    if duplicate := index.find(features):
        return Verdict(
            row_id=row_id,
            ordinal=ordinal,
            outcome="reject",
            reasons=(duplicate.kind,),
            duplicate_of=duplicate.row_id,
        )
    index.add(row_id, features)
    if has_personal_data(f"{draft.prompt}\n{draft.completion}"):
        return Verdict(row_id=row_id, ordinal=ordinal, outcome="review", reasons=("personal_data",))
    return Verdict(row_id=row_id, ordinal=ordinal, outcome="accept")


def _visible(text: str) -> bool:
    """Whether any character leaves a mark; zero-width ones (category Cf) don't."""
    return any(not character.isspace() and unicodedata.category(character) not in ("Cf", "Cc") for character in text)


def _is_invalid(text: str) -> bool:
    return not text.isprintable() and any(
        unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t\r" for character in text
    )


def _has_few_letters(text: str) -> bool:
    visible = [character for character in text if not character.isspace()]
    return sum(character.isalpha() for character in visible) < MIN_LETTER_RATIO * len(visible)


def _is_unspeakable(text: str) -> bool:
    """Judged by lower-case ASCII words of four letters or more, which are neither acronyms nor names with digits."""
    found = _LATIN_WORD.findall(text)
    num_speakable = sum(not _UNSPEAKABLE.search(word) for word in found)
    return len(found) >= MIN_WORDS_FOR_SPEAKABLE and num_speakable < MIN_SPEAKABLE_RATIO * len(found)


def _passes_luhn(digits: str) -> bool:
    values = [int(digit) for digit in reversed(digits)]
    total = sum(values[0::2]) + sum(sum(divmod(2 * value, 10)) for value in values[1::2])
    return total % 10 == 0 and len(set(digits)) > 1
