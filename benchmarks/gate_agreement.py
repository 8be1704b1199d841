"""How far the gate's rules agree with datatrove's, rule by rule, on the same texts.

    pip install -r benchmarks/gate_requirements.txt       into an environment of its own
    python benchmarks/gate_agreement.py

The gate's rules follow Gopher (Rae et al., 2021, appendix A) and C4 (Raffel et al., 2020) as far as they apply to
rows of a few words. datatrove's filters for the same rules are given the gate's thresholds where they have one, and
each rule is asked alone. Of letters the gate asks half of the visible characters, Gopher four in five of the words;
datatrove takes each sign for a word and a word of six letters for one, so half of the characters are a quarter of what
it calls words. It is asked with that threshold, and beside it with others, the gate's own number among them.

Texts are documentation strings of installed packages, which are honest, and made ones that break one rule each, from a
fixed seed. Agreement is the share of texts on which both say the same; where they differ, the first texts are printed.
CPU is this process's, each side over all texts of a rule, by turns.
"""

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
from rich.console import Console
from rich.table import Table

from openledger.core.values import RowDraft
from openledger.datanets.docstrings import package_rows
from openledger.datanets.gate import (
    MAX_REPEATED_PAIR_RATIO,
    MAX_WORDS,
    MIN_WORDS,
    is_noise,
    is_repetitive,
    text_reasons,
)

SEED = 1
PACKAGES = ("json", "email", "asyncio", "logging", "numpy", "pyarrow", "pandas")
MAX_TOLD = 5
LETTERS = 0.25  # of datatrove's words, where half of the characters are letters
OTHER_LETTERS = (0.2, 0.3, 0.4, 0.5, 0.8)
_OFF = {  # every rule of GopherQualityFilter but the one that is asked
    "min_doc_words": None,
    "max_doc_words": None,
    "min_avg_word_length": None,
    "max_avg_word_length": None,
    "max_symbol_word_ratio": None,
    "max_bullet_lines_ratio": None,
    "max_ellipsis_lines_ratio": None,
    "max_non_alpha_words_ratio": None,
    "min_stop_words": None,
}
_PLAIN_C4 = {
    "split_paragraph": False,
    "remove_citations": False,
    "filter_no_terminal_punct": False,
    "min_num_sentences": -1,
    "min_words_per_line": -1,
    "max_word_length": -1,
    "filter_javascript": False,
    "filter_curly_bracket": False,
    "filter_policy": False,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Both say whether a text is to be rejected. `made` breaks the rule; the honest texts mostly don't."""

    name: str
    ours: Callable[[str], bool]
    theirs: Callable[[str], bool]
    made: Callable[[random.Random, Sequence[str]], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000, help="honest texts, drawn from the packages'")
    parser.add_argument("--made", type=int, default=1_000, help="texts that break each rule")
    arguments = parser.parse_args()
    dice = random.Random(SEED)
    every = [row.completion for package in PACKAGES for row in package_rows(package)]
    honest = dice.sample(every, min(arguments.rows, len(every)))
    words = [word for text in honest for word in text.split()]
    table = Table(title=f"{len(honest):,} honest texts and {arguments.made:,} made for each rule, seed {SEED}")
    for column in (
        "rule",
        "agreement",
        "honest",
        "made",
        "both",
        "ours alone",
        "datatrove alone",
        "ours us/text",
        "datatrove us/text",
    ):
        table.add_column(column, justify="right" if column != "rule" else "left")
    for rule in rules():
        made = [rule.made(dice, words) for _ in range(arguments.made)]
        table.add_row(rule.name, *compare(rule, honest, made))
    Console(width=140).print(table)


def compare(rule: Rule, honest: Sequence[str], made: Sequence[str]) -> list[str]:
    texts = [*honest, *made]
    (ours, our_us), (theirs, their_us) = timed(rule.ours, texts), timed(rule.theirs, texts)
    pairs = list(zip(ours, theirs, strict=True))
    differing = [(text, pair) for text, pair in zip(texts, pairs, strict=True) if pair[0] != pair[1]]
    for text, (mine, _) in differing[:MAX_TOLD]:
        print(f"{rule.name}: {'ours' if mine else 'datatrove'} alone rejects {text[:100]!r}")
    counts = [pairs.count(kind) for kind in ((True, True), (True, False), (False, True))]
    parts = [pairs, pairs[: len(honest)], pairs[len(honest) :]]
    agreement = [f"{100 * sum(mine == other for mine, other in part) / len(part):.2f} %" for part in parts]
    return [*agreement, *map(str, counts), f"{our_us:.0f}", f"{their_us:.0f}"]


def timed(rejects: Callable[[str], bool], texts: Sequence[str]) -> tuple[list[bool], float]:
    rejects(texts[0])
    start = time.process_time()
    found = [rejects(text) for text in texts]
    return found, (time.process_time() - start) / len(texts) * 1e6


def rules() -> list[Rule]:
    length = GopherQualityFilter(**{**_OFF, "min_doc_words": MIN_WORDS, "max_doc_words": MAX_WORDS})
    pairs = GopherRepetitionFilter(
        dup_line_frac=None, dup_para_frac=None, dup_line_char_frac=None, dup_para_char_frac=None,
        top_n_grams=((1, 0.5),), dup_n_grams=((2, MAX_REPEATED_PAIR_RATIO),),
    )  # fmt: skip
    lorem = C4QualityFilter(**_PLAIN_C4)
    return [
        Rule(
            "length (Gopher)",
            lambda text: bool(_reasons(text) & {"too_short", "too_long"}),
            dropped_by(length),
            lengths,
        ),
        Rule("letters (Gopher)", is_noise, dropped_by(letters(LETTERS)), signs),
        *(
            Rule(f"letters, {ratio:g} of the words", is_noise, dropped_by(letters(ratio)), signs)
            for ratio in OTHER_LETTERS
        ),
        Rule("repetition (Gopher)", is_repetitive, dropped_by(pairs), repeated),
        Rule("lorem ipsum (C4)", lambda text: "placeholder" in _reasons(text), dropped_by(lorem), placeholders),
    ]


def letters(ratio: float) -> GopherQualityFilter:
    return GopherQualityFilter(**{**_OFF, "max_non_alpha_words_ratio": ratio})


def dropped_by(kept: object) -> Callable[[str], bool]:
    def rejects(text: str) -> bool:
        found = kept.filter(Document(text=text, id="0"))  # type: ignore[attr-defined]
        return not (found[0] if isinstance(found, tuple) else found)

    return rejects


def lengths(dice: random.Random, words: Sequence[str]) -> str:
    return " ".join(dice.choices(words, k=dice.choice((1, 2, 3, 4, 1_400, 1_600, 3_000))))


def signs(dice: random.Random, words: Sequence[str]) -> str:
    """Words of signs and digits among others, from none to all."""
    share = dice.random()
    marks = ["".join(dice.choices("0123456789#%&*-+=", k=dice.randint(1, 6))) for _ in range(30)]
    return " ".join(dice.choice(marks) if dice.random() < share else dice.choice(words) for _ in range(30))


def repeated(dice: random.Random, words: Sequence[str]) -> str:
    """A few words over and over, with others between them."""
    few, share = dice.choices(words, k=dice.choice((1, 2, 3))), dice.random()
    told: list[str] = []
    while len(told) < 40:
        told += few if dice.random() < share else [dice.choice(words)]
    return " ".join(told)


def placeholders(dice: random.Random, words: Sequence[str]) -> str:
    text = dice.choices(words, k=20)
    text.insert(dice.randrange(20), dice.choice(("lorem ipsum", "Lorem Ipsum dolor", "LOREM IPSUM", "ipsum")))
    return " ".join(text)


def _reasons(text: str) -> set[str]:
    return set(text_reasons(RowDraft(prompt="What is it?", completion=text)))


if __name__ == "__main__":
    main()
