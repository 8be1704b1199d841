"""The gate: a published, versioned rule that says of each row accept, reject or review, and why.

Owns the checks and their reason codes. Knows nothing of who contributes or where rows are kept: equal rows against an
equal index get equal verdicts, whoever sends them. A change of any check or threshold, here or in `dedupe`, is a new
GATE_VERSION.

    reason            outcome  when
    wrong_schema      reject   a conversation or a text that isn't told as the Datanet's row schema says
    missing_column    reject   a column that the schema requires isn't there
    wrong_type        reject   a column's value is of another type
    unknown_column    reject   the schema has no such column
    empty             reject   prompt or completion has no visible character
    too_short         reject   the completion has fewer than 3 words
    too_long          reject   prompt or completion has more than 1,500 words
    invalid_text      reject   control characters (NUL among them) or unpaired surrogates
    noise             reject   fewer letters than other marks, or words that can't be spoken, digits in their midst too
    repetition        reject   a few words, or one character, over and over
    placeholder       reject   text that stands where text should come: lorem ipsum, asdf, to do
    exact_duplicate   reject   the same question and answer, or a same answer of 8 words or more, stands already
    near_duplicate    reject   an edited copy of a row that stands already (see `dedupe`)
    reviewed          reject   reviewers looked at a row in review and didn't take it (`reviews`)
    personal_data     review   an e-mail address, a telephone number, a payment card's number, a bank account (IBAN), a
                               social security number
    wrong_licence     reject   the row's own licence asks what the Datanet's doesn't keep (see `licences`)
    unknown_licence   review   the row names a licence that isn't known here
    any other         review   what a detector of the installation has found
    wrong_language    reject   the completion is in none of the languages that the Datanet takes, where it takes few

String columns are looked at for `invalid_text`, `personal_data` and `noise`; for the latter by their words alone, as a
column may well hold a date or a code. Turns of a conversation stand in the prompt, and are judged there.

The checks for noise and repetition follow the rules of Gopher (Rae et al., 2021, appendix A), the placeholders those of
C4 (Raffel et al., 2020), as far as they apply to rows of a few words. Languages are told apart by `language`.
"""

import gc
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from openledger.core.values import RowDraft, Verdict
from openledger.datanets.dedupe import Features, Overlay, Text, features_of_texts, text_of
from openledger.datanets.language import MIN_WORDS_FOR_LANGUAGE, is_in
from openledger.datanets.licences import row_keeps
from openledger.datanets.row_schema import PLAIN, RowSchema, own_licence, read_extra
from openledger.datanets.terms import Terms

Detectors = Mapping[str, Callable[[RowDraft], bool]]  # by the reason that is given
NO_DETECTORS: Detectors = MappingProxyType({})
GATE_VERSION = "gate/5"
REASONS = frozenset({
    "wrong_schema", "missing_column", "wrong_type", "unknown_column", "empty", "too_short", "too_long", "invalid_text",
    "noise", "repetition", "placeholder", "exact_duplicate", "near_duplicate", "reviewed", "personal_data",
    "wrong_language", "wrong_licence", "unknown_licence",
})  # fmt: skip

MIN_WORDS = 3
MAX_WORDS = 1_500
MIN_LETTER_RATIO = 0.5
MIN_SPEAKABLE_RATIO = 0.6
MIN_WORDS_FOR_SPEAKABLE = 3
MIN_WORDS_FOR_REPETITION = 6
MAX_TOP_WORD_RATIO = 0.5
MAX_REPEATED_PAIR_RATIO = 0.5

MAX_TANGLED_RATIO = 0.4
MIN_TANGLED_WORDS = 3

MIN_CHARACTER_RUN = 10

_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_CHARACTER_RUN = re.compile(rf"(\S)\1{{{MIN_CHARACTER_RUN - 1},}}")
_EQUAL_RUN = b"\1" * (MIN_CHARACTER_RUN - 1)
_LATIN_WORD = re.compile(r"(?<![\w.])[a-z]{4,}(?![\w.(])")
_UNSPEAKABLE = re.compile(  # pairs of letters that languages in Latin script hardly know, and runs of consonants
    r"^[^aeiouy]+$|[^aeiouy]{6,}|(.)\1{2,}|q[^u]|j[bcfghpqvx]|[vz][bcdfghjkmnpqstvwx]|x[bdfgjkmnqrsvwxz]"
    r"|w[bcfgjmpqvxz]|[bcdfgkmpt]q|[bfghkmpvw]x|[cfgkpqvwz]j"
)
_JOINERS = re.compile(r"[\s_.,;:/\\()\[\]{}<>=+\-*'\"`|~?!…–—’“”]+")
_MARK = re.compile(r"[\d#$%&@^]")
_MIXED = re.compile(r"[^\W\d_](?:\d|[#$%&@^])|(?:\d|[#$%&@^])[^\W\d_]")
_RUNS = re.compile(r"[^\W\d_]+|\d+|[^\w\s]+")
_DIGIT = re.compile(r"\d")
_HEX = re.compile(r"(?:0x)?(?:[0-9a-f]+|[0-9A-F]+)")
_VOWEL = re.compile(r"[aeiouyäöüáéíóúàèìòùâêîôûåæøœ]", re.I)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_PLACEHOLDERS = ("lorem ipsum", "dolor sit amet")
_STUB = re.compile(r"\W*(?:to ?do|tbd|fixme|asdf\w*|n/?a)\b.{0,20}", re.S)
_BLANKS = bytes(byte for byte in range(128) if chr(byte).isspace())
_NOT_LETTERS = bytes(byte for byte in range(256) if not chr(byte).isalpha() or byte > 127)
_DIGITS = b"0123456789"
_MARKS = _DIGITS + b"#$%&@^"
_EMAIL = re.compile(r"[\w.+-]+@(?!example\.|[\w-]+\.example\b|localhost)[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}", re.I)
_PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{4})"
    r"(?![\w.]\d|\d)"
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_SOCIAL_SECURITY = re.compile(r"(?<![\w-])(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_CARD = re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?![ -]?\d|\w)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What one Datanet asks of its rows beside what the gate asks of all: its schema, and (unless empty) the languages,
    ISO 639-1, outside which it takes none, and the licence that rows are given under."""

    schema: RowSchema = PLAIN
    languages: tuple[str, ...] = ()
    licence: str = ""

    @classmethod
    def of(cls, schema: RowSchema, terms: Terms) -> "Rules":
        return cls(schema=schema, languages=terms.spoken if terms.only_languages else (), licence=terms.licence)


NO_RULES = Rules()


@dataclass(frozen=True, slots=True)
class Examined:
    """What the gate says of one draft before it looks at any other row: `reasons` reject it, `doubts` send it to review
    unless something rejects it."""

    reasons: tuple[str, ...]
    doubts: tuple[str, ...]
    features: Features


def judge(
    drafts: Sequence[RowDraft],
    row_ids: Sequence[str],
    index: Overlay,
    detectors: Detectors = NO_DETECTORS,
    rules: Rules = NO_RULES,
) -> list[Verdict]:
    """A verdict for each draft, in order. Rows that pass or go to review are added to `index`: hand in an overlay."""
    with rare_collections():
        return decide(row_ids, examine(drafts, detectors, rules), index)


def examine(drafts: Sequence[RowDraft], detectors: Detectors = NO_DETECTORS, rules: Rules = NO_RULES) -> list[Examined]:
    """The part of `judge` that needs the drafts alone, in order; most of its time, and any process may do it.

    `detectors` send rows to review beside the gate's own reasons: for toxicity, a policy, personal data that patterns
    don't find. What they say has to depend on the row alone.
    """
    texts = [(text_of(draft.prompt), text_of(draft.completion)) for draft in drafts]
    return [
        _examined(draft, both, features, detectors, rules)
        for draft, both, features in zip(drafts, texts, features_of_texts(texts), strict=True)
    ]


def decide(row_ids: Sequence[str], examined: Sequence[Examined], index: Overlay) -> list[Verdict]:
    """The part of `judge` that needs the rows that stand already."""
    return [
        _verdict(ordinal, row_id, one, index)
        for ordinal, (row_id, one) in enumerate(zip(row_ids, examined, strict=True))
    ]


@contextmanager
def rare_collections() -> Iterator[None]:
    """While a contribution is taken apart: that makes a hundred thousand objects and no cycle, and to look for some
    every 700 objects costs an eighth of the time. Cycles that a detector makes are found all the same, later."""
    before = gc.get_threshold()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def text_reasons(draft: RowDraft, texts: tuple[Text, Text] | None = None) -> tuple[str, ...]:
    """Why the text of `draft` alone, whatever stands already, is rejected; empty if it is not. `texts` are prompt and
    completion, where they have been taken apart before."""
    if not _visible(draft.prompt) or not _visible(draft.completion):
        return ("empty",)
    question, answer = texts or (text_of(draft.prompt), text_of(draft.completion))
    checks = {
        "too_short": len(answer.words) < MIN_WORDS,
        "too_long": max(len(answer.words), len(question.words)) > MAX_WORDS,
        "invalid_text": any(map(_is_invalid, (draft.prompt, draft.completion, draft.source))),
        "noise": is_noise(draft.completion) or _has_few_letters(draft.prompt) or _is_tangled(draft.prompt),
        "repetition": _repeats(draft.completion, answer),
        "placeholder": _is_placeholder(answer.normal),
    }
    return tuple(reason for reason, holds in checks.items() if holds)


def is_noise(text: str) -> bool:
    """Too few letters among its visible characters, or too many words that could not be spoken."""
    return _has_few_letters(text) or _is_unspeakable(text) or _is_tangled(text)


def is_repetitive(text: str) -> bool:
    """One character ten times in a row, one word for most of the text, or the same pairs of words again and again."""
    return _repeats(text, text_of(text))


def has_personal_data(text: str) -> bool:
    """Patterns and, for cards (Luhn, ISO/IEC 7812-1) and bank accounts (mod 97, ISO 13616), check digits. A reason to
    look, not a guarantee."""
    if "@" in text and _EMAIL.search(text):
        return True
    if not _holds_any(text, _DIGIT, _DIGITS):
        return False
    if _PHONE.search(text) or _SOCIAL_SECURITY.search(text):
        return True
    if any(_passes_mod_97(match.group().replace(" ", "")) for match in _IBAN.finditer(text)):
        return True
    return any(_passes_luhn(re.sub(r"\D", "", match.group())) for match in _CARD.finditer(text))


def _examined(
    draft: RowDraft, texts: tuple[Text, Text], features: Features, detectors: Detectors, rules: Rules
) -> Examined:
    if reasons := _own_reasons(draft, rules):
        return Examined(reasons, (), features)
    keeps = _keeps_licence(draft, rules)
    if keeps is False:
        return Examined(("wrong_licence",), (), features)
    columns = _column_texts(draft, rules.schema)
    reasons = text_reasons(draft, texts) or _column_reasons(columns) or _language_reasons(draft, texts, rules)
    if reasons:
        return Examined(reasons, (), features)
    said = (draft.prompt, draft.completion, *columns)
    doubts: tuple[str, ...] = ("personal_data",) if has_personal_data("\n".join(said)) else ()
    doubts += ("unknown_licence",) if keeps is None else ()
    doubts += tuple(sorted(reason for reason, detects in detectors.items() if detects(draft)))
    return Examined((), doubts, features)


def _verdict(ordinal: int, row_id: str, row: Examined, index: Overlay) -> Verdict:
    if row.reasons:
        return Verdict(row_id=row_id, ordinal=ordinal, outcome="reject", reasons=row.reasons)
    if duplicate := index.find(row.features):
        return Verdict(
            row_id=row_id,
            ordinal=ordinal,
            outcome="reject",
            reasons=(duplicate.kind,),
            duplicate_of=duplicate.row_id,
        )
    index.add(row_id, row.features, ordinal=ordinal)
    return Verdict(row_id=row_id, ordinal=ordinal, outcome="review" if row.doubts else "accept", reasons=row.doubts)


def _own_reasons(draft: RowDraft, rules: Rules) -> tuple[str, ...]:
    return tuple(dict.fromkeys(problem.code for problem in rules.schema.problems(draft)))


def _keeps_licence(draft: RowDraft, rules: Rules) -> bool | None:
    """None where the row names a licence that isn't known."""
    own = own_licence(draft) if rules.licence else ""
    return row_keeps(own, rules.licence) if own else True


def _column_texts(draft: RowDraft, schema: RowSchema) -> list[str]:
    if not draft.extra:
        return []
    values = read_extra(draft.extra)
    found = [values.get(column.name) for column in schema.columns if column.type == "string"]
    return [text for text in found if text]


def _column_reasons(texts: Sequence[str]) -> tuple[str, ...]:
    checks = {
        "invalid_text": any(map(_is_invalid, texts)),
        "noise": any(_is_unspeakable(text) or _is_tangled(text) for text in texts),
    }
    return tuple(reason for reason, holds in checks.items() if holds)


def _language_reasons(draft: RowDraft, texts: tuple[Text, Text], rules: Rules) -> tuple[str, ...]:
    if not rules.languages or len(texts[1].words) < MIN_WORDS_FOR_LANGUAGE:
        return ()
    return () if is_in(draft.completion, rules.languages) else ("wrong_language",)


def _visible(text: str) -> bool:
    """Whether any character leaves a mark; zero-width ones (category Cf) don't."""
    return any(not character.isspace() and unicodedata.category(character) not in ("Cf", "Cc") for character in text)


def _is_invalid(text: str) -> bool:
    return not text.isprintable() and _CONTROL.search(text) is not None


def _is_placeholder(normal: str) -> bool:
    return any(known in normal for known in _PLACEHOLDERS) or _STUB.fullmatch(normal) is not None


def _repeats(text: str, said: Text) -> bool:
    found = said.words
    if _has_character_run(text):
        return True
    if len(found) < MIN_WORDS_FOR_REPETITION or len(said.distinct) > len(found) // 2 + 1:
        return False  # with that many distinct words, neither one word nor its pairs can be too often there
    num_repeated = len(found) - 1 - len(set(pairwise(found)))
    return max(Counter(found).values()) > MAX_TOP_WORD_RATIO * len(found) or num_repeated > MAX_REPEATED_PAIR_RATIO * (
        len(found) - 1
    )


def _has_character_run(text: str) -> bool:
    if text.isascii():  # a run of n signs is n - 1 that equal the one before
        signs = np.frombuffer(text.encode(), np.uint8)
        if _EQUAL_RUN not in (signs[1:] == signs[:-1]).tobytes():
            return False
    return any(_CHARACTER_RUN.search(word) for word in text.split() if len(word) >= MIN_CHARACTER_RUN)


def _has_few_letters(text: str) -> bool:
    if text.isascii():
        signs = text.encode()
        num_visible = len(signs.translate(None, _BLANKS))
        return len(signs.translate(None, _NOT_LETTERS)) < MIN_LETTER_RATIO * num_visible
    return sum(map(str.isalpha, text)) < MIN_LETTER_RATIO * sum(map(len, text.split()))


def _is_tangled(text: str) -> bool:
    """Letters, digits and signs taking turns within words, as in b4r82bv, for too many of the words that can be judged:
    those in lower-case letters, and those of four characters or more that mix. `sha256` and `conv2d` pass."""
    if not _holds_any(text, _MARK, _MARKS) or not _MIXED.search(text):
        return False
    mixed = [word for word in _JOINERS.split(text) if len(word) >= 4 and not word.isalpha() and not word.isdigit()]
    num_tangled = sum(map(_takes_turns, mixed))
    num_judged = len(mixed) + len(_LATIN_WORD.findall(text))
    return num_tangled >= MIN_TANGLED_WORDS and num_tangled > MAX_TANGLED_RATIO * num_judged


def _takes_turns(word: str) -> bool:
    if _HEX.fullmatch(word):
        return False
    runs = _RUNS.findall(word)
    return len(runs) >= 4 or len(runs) == 1 or (len(runs) == 3 and not _VOWEL.search(word))


def _is_unspeakable(text: str) -> bool:
    """Judged by lower-case ASCII words of four letters or more, which are neither acronyms nor names with digits."""
    num_found, num_speakable = divmod(sum(map(_JUDGED_WORDS.__getitem__, text.split())), _ONE_FOUND)
    return num_found >= MIN_WORDS_FOR_SPEAKABLE and num_speakable < MIN_SPEAKABLE_RATIO * num_found


class _JudgedWords(dict[str, int]):
    """For a piece of text without blanks how many of its words are judged, times `_ONE_FOUND`, and how many of these
    can be spoken. Texts repeat their words, so it remembers short pieces, and forgets all when they are too many."""

    def __missing__(self, piece: str) -> int:
        found = _LATIN_WORD.findall(piece)
        count = len(found) * _ONE_FOUND + sum(not _UNSPEAKABLE.search(word) for word in found)
        if len(piece) <= _REMEMBERED_CHARS:
            if len(self) >= _REMEMBERED_PIECES:
                self.clear()
            self[piece] = count
        return count


_ONE_FOUND = 1 << 32
_REMEMBERED_CHARS, _REMEMBERED_PIECES = 64, 65_536
_JUDGED_WORDS = _JudgedWords()


def _holds_any(text: str, pattern: re.Pattern[str], signs: bytes) -> bool:
    """Whether `pattern`, of one character, is found; `signs` are all of ASCII that it finds."""
    if text.isascii():  # the same by a shorter way
        return len(text.encode().translate(None, signs)) < len(text)
    return pattern.search(text) is not None


def _passes_luhn(digits: str) -> bool:
    values = [int(digit) for digit in reversed(digits)]
    total = sum(values[0::2]) + sum(sum(divmod(2 * value, 10)) for value in values[1::2])
    return total % 10 == 0 and len(set(digits)) > 1


def _passes_mod_97(account: str) -> bool:
    moved = account[4:] + account[:4]
    return int("".join(str(int(sign, 36)) for sign in moved)) % 97 == 1
