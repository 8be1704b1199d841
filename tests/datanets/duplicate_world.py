"""Datanets with rows that repeat each other in every way that the gate knows, and what they answer, for tests that
compare one way of keeping the duplicate index with another."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datanet_samples import ANSWERS, Copier, key_of, module_drafts, sample_drafts, signed

from openledger.core.clock import ManualClock
from openledger.core.values import Contribution, RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.datanets import Datanets
from openledger.datanets.seals import seal_of
from openledger.datanets.shard import ShardHost

DATANETS = ("docs", "notes", "secret")
NAMES = ("ada", "bob", "eve")


def opened(folder: Path, hosts: Sequence[ShardHost], num_shards: int | None = None, **more: Any) -> Datanets:
    datanets = Datanets(folder, hosts, ManualClock(), num_shards=num_shards, **more)
    for name in DATANETS:
        datanets.create(name, "What functions do", "acct_owner")
    for name in NAMES:
        datanets.register_contributor(key_of(name).public_key, name)
    return datanets


def hosts_of(folder: Path, number: int) -> list[ShardHost]:
    return [ShardHost(folder / f"shard-{one}") for one in range(number)]


def contributions(seed: int = 5) -> Iterator[Contribution]:
    """Honest rows, formulaic ones, and copies of all kinds: word for word and edited, within a contribution and across
    contributors and Datanets."""
    honest = [*module_drafts("json")[:60], *module_drafts("argparse")[:90], *sample_drafts(40)]
    copier = Copier(seed, [word for draft in honest for word in draft.completion.split()])
    rows = [*honest[:20], *map(copier.copy, honest[:10]), *map(copier.rephrase, honest[10:20]), *honest[5:8]]
    yield signed("ada", rows, "mixed")
    for number, start in enumerate(range(20, len(honest), 40)):
        part = honest[start : start + 40]
        yield signed(NAMES[number % 3], part, f"honest-{number}", DATANETS[number % 3])
        again = [*map(copier.copy, part[::3]), *part[1::7], *map(copier.rephrase, part[2::5])]
        yield signed(NAMES[(number + 1) % 3], again, f"again-{number}", DATANETS[(number + 1) % 3])
    yield signed("eve", [*formulas(), *templates(), *neighbours()[:2], *doses(), *told_again(doses())], "many", "notes")
    thanked = [replace(row, completion=f"{row.completion} Thanks.") for row in formulas()[3::6]]
    other = [*map(copier.copy, templates()), *neighbours()[2:], *told_again(doses()), *formulas()[::-9]]
    yield signed("bob", [*thanked, *other], "many", "secret")


def formulas() -> list[RowDraft]:
    """Two hundred rows with like sketches, of which only the first hundred are looked at."""
    text = "Return a string representation of it that is as short as the library allows"
    return [RowDraft(prompt=f"What does {one} do?", completion=f"{text} {one}.") for one in map(_name, range(200))]


def doses() -> list[RowDraft]:
    """Questions without a dotted name, whose subject only the number of questions with each word tells."""
    names = ("ibuprofen", "paracetamol", "naproxen", "codeine")
    text = "{0} mg every six hours, for adults at most {1} mg a day, with a glass of water and some food."
    return [
        RowDraft(prompt=f"What dose of {name} is usual?", completion=text.format(400 + 50 * at, 3000 + 111 * at))
        for at, name in enumerate(names)
    ]


def told_again(rows: Sequence[RowDraft]) -> list[RowDraft]:
    """To the same question in other words, and to another one about a neighbour."""
    subjects = [row.prompt.split()[3] for row in rows]
    again = [f"How much {name} does one take?" for name in subjects] + [f"Why take {name}?" for name in subjects[1:]]
    texts = [row.completion.replace("glass", "cup") for row in (*rows, *rows[:-1])]
    return [RowDraft(prompt=prompt, completion=text) for prompt, text in zip(again, texts, strict=True)]


def templates() -> list[RowDraft]:
    """Answers that share half of their words, to questions that share all but their subject."""
    return [
        RowDraft(prompt=f"What does archive.{kind}(index) do with it?", completion=f"{ANSWERS[0]} Then {kind} it.")
        for kind in ("size", "name", "owner", "mode", "parent", "checksum", "comment", "version")
    ]


def neighbours() -> list[RowDraft]:
    """What is said of one thing is said of its neighbour, word for word but for its name; of the last two, with another
    word besides."""
    words = " ".join(dict.fromkeys(" ".join(draft.completion for draft in sample_drafts(5, "pool")).split()))
    text = " ".join(words.replace(".", "").lower().split()[:38])
    rows = [
        RowDraft(prompt=f"What does nn.pool{size}(planes) do?", completion=f"{text} {size}.")
        for size in ("1d", "2d", "3d", "4d")
    ]
    return [*rows, replace(rows[0], prompt="What is a plane?", completion=f"{text} other.")]


def contribute_all(datanets: Datanets, some: Sequence[Contribution]) -> list[Any]:
    return [datanets.contribute(one).verdicts for one in some]


def sealed_late(datanets: Datanets, name: str = "ada") -> Contribution:
    """Rows whose seal is in the log, and which come when others have copied them."""
    rows = sample_drafts(12, "sealed")
    contribution = sign_contribution(key_of(name), "docs", rows, "sealed")
    datanets.seal(seal_of(key_of(name), contribution))
    for seal in datanets.unlogged_seals():
        datanets.mark_seal_logged(seal.contributor_id, seal.digest, opened=False)
    return contribution


def _name(number: int) -> str:
    return f"module.part{number % 7}.object{number}"
