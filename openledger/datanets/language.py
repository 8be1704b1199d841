"""Which language a text is in, for Datanets that take some languages alone.

Owns the threshold. The probabilities are py3langid's: naive Bayes over runs of bytes, by a model that lies in its wheel
(docs/decisions/0012-language-detection.md). A text is turned away only where the languages that are taken have together
less than one chance in a hundred: sisters such as Norwegian and Danish are not told apart, and neither are short texts.
"""

from collections.abc import Collection
from functools import cache
from typing import Any

MIN_WORDS_FOR_LANGUAGE = 6
MIN_PROBABILITY = 0.01
_CODES = (
    "af am ar as az be bg bn br bs ca cs cy da de el en eo es et eu fa fi fr fy ga gd gl gu ha he hi hr ht hu hy id ig"
    " is it ja jv ka kk km kn ko ku ky la lg ln lo lt lv mg mk ml mn mr ms my ne nl no om or pa pl ps pt qu ro ru sa si"
    " sk sl so sq sr sv sw ta te th tl tr ug uk ur uz vi xh yo zh zu"
)
KNOWN_LANGUAGES = frozenset(_CODES.split())


def is_in(text: str, languages: Collection[str]) -> bool:
    """Whether `text` may be in one of `languages` (ISO 639-1)."""
    probabilities = dict(_identifier().rank(text))
    return sum(probabilities.get(language, 0.0) for language in languages) >= MIN_PROBABILITY


@cache
def _identifier() -> Any:
    """Three quarters of a second and some 70 MB, once in a process that needs it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
