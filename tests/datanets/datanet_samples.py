"""Rows, copies and Datanets for the tests: real documentation strings, and the edits a copier makes."""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from openledger.core.clock import ManualClock
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.docstrings import package_rows
from openledger.datanets.shard import ShardHost
from openledger.platform.demonstration import contributed_modules

ANSWERS = (
    "Open the archive and return its members in the order in which they were written.",
    "Close every connection that has been idle for longer than the timeout.",
    "Compute the eigenvalues of a symmetric matrix by bisection.",
    "Parse a date in any of the formats that the mail standard allows.",
    "Send the remaining bytes and wait until the peer acknowledges them.",
    "Remove leading zeros without changing the sign of the number.",
)


@cache
def module_drafts(module: str) -> tuple[RowDraft, ...]:
    return tuple(
        RowDraft(prompt=row.prompt, completion=row.completion, source=row.source) for row in package_rows(module)
    )


def contributed_drafts() -> Iterator[tuple[str, tuple[RowDraft, ...]]]:
    """Every contributor of the demonstration with its rows."""
    for module in contributed_modules():
        yield module, module_drafts(module)


def key_of(name: str) -> SigningKey:
    return SigningKey(name.encode().ljust(32, b"\0")[:32])


def sample_drafts(num_rows: int, subject: str = "archive") -> list[RowDraft]:
    """Distinct rows; the same arguments give the same ones."""
    return [
        RowDraft(
            prompt=f"What does the function {subject}.{_word(f'{subject}-name-{number}')}_{number} do?",
            completion=" ".join(_word(f"{subject}-{number}-{place}") for place in range(11)).capitalize() + ".",
            source=f"{subject}:{number}",
        )
        for number in range(num_rows)
    ]


def signed(name: str, drafts: Sequence[RowDraft], nonce: str = "1", datanet: str = "docs") -> Contribution:
    return sign_contribution(key_of(name), datanet, drafts, nonce)


def open_datanets(folder: Path, num_shards: int = 3) -> Datanets:
    """Datanets over shards in this process, with the Datanet `docs` and its contributors ada, bob and eve."""
    shards = [ShardHost(folder / f"shard-{number}") for number in range(num_shards)]
    datanets = Datanets(folder, shards, ManualClock())
    datanets.create("docs", "What functions do", "acct_owner")
    for name in ("ada", "bob", "eve"):
        datanets.register_contributor(key_of(name).public_key, name)
    return datanets


def clock_of(datanets: Datanets) -> ManualClock:
    clock = datanets._clock
    assert isinstance(clock, ManualClock)
    return clock


class Copier:
    """Copies rows with one or two words in ten changed, and case, punctuation and filler besides."""

    def __init__(self, seed: int, vocabulary: Sequence[str]):
        self._random = random.Random(seed)
        self._vocabulary = vocabulary

    def copy(self, draft: RowDraft) -> RowDraft:
        words = draft.completion.split()
        for _ in range(max(1, round(len(words) * self._random.choice((0.1, 0.2))))):
            self._edit(words)
        return RowDraft(prompt=draft.prompt, completion=self._dress(" ".join(words)))

    def rephrase(self, draft: RowDraft) -> RowDraft:
        """As `copy`, with the question put in other words."""
        subject = draft.prompt.split("(")[0].split()[-1].rstrip("?")
        template = self._random.choice(("Explain {}.", "What is {} for?", "Please tell me the purpose of {} in short."))
        return RowDraft(prompt=template.format(subject), completion=self.copy(draft).completion)

    def _edit(self, words: list[str]) -> None:
        place, kind = self._random.randrange(len(words)), self._random.random()
        if kind < 0.6:
            words[place] = self._random.choice(self._vocabulary)
        elif kind < 0.8 and len(words) > 3:
            words.pop(place)
        else:
            words.insert(place, self._random.choice(self._vocabulary))

    def _dress(self, text: str) -> str:
        text = self._random.choice((text, text, text.upper(), text.lower()))
        text = self._random.choice((text, text.rstrip(".") + "!", text.replace(" ", ", ", 1)))
        return self._random.choice((text, text, f"In short, {text}", f"{text} That is what it does."))


def _word(seed: str) -> str:
    """A word that can be spoken: consonants and vowels in turn."""
    dice = random.Random(seed)
    return "".join(dice.choice("bdfgklmnprst") + dice.choice("aeiou") for _ in range(dice.choice((2, 3, 4))))
