"""The attacks on rows, each a function from honest rows to those that an attacker sends.

Text: rows are `ClusterRow`s, whose `order` is their place in the order of contribution. Pixels: rows are `Digit`s.
Attacks that send nothing (buying answers, trying out constants) are in `redteam`.

Shapes: B rows, P parameters.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import digits_task
from benchmarks.clusters import editor, restated, with_synonyms
from benchmarks.digits_task import Digit
from openledger.datanets.clusters import ClusterRow

LAST = 10**6  # a place in the order after everybody's
FILLER = "It does what its name says and returns the result to the caller."


# text


def copied(rows: Sequence[ClusterRow], by: str, order: int = LAST) -> list[ClusterRow]:
    """The rows, word for word, under another name."""
    return [
        replace(row, row_id=f"{by}/{row.row_id}", contributor_id=by, order=order + place)
        for place, row in enumerate(rows)
    ]


def edited(rows: Sequence[ClusterRow], percent: int, vocabulary: Sequence[str], seed: int) -> list[ClusterRow]:
    """`percent` of an answer's words (at least one) replaced by words of other answers."""
    return _answers(rows, editor(percent, vocabulary, random.Random(f"{seed}-{percent}")))


def paraphrased(rows: Sequence[ClusterRow]) -> list[ClusterRow]:
    """Words replaced by others of the same meaning, and the question put in other words."""
    return [replace(row, prompt=restated(row.prompt), completion=with_synonyms(row.completion)) for row in rows]


def split_names(rows: Sequence[Any], name: str, k: int) -> list[Any]:
    """The same rows over `k` names, in turn."""
    own = [row for row in rows if row.contributor_id == name]
    names = {row.row_id: f"{name}.{place % k}" for place, row in enumerate(own)}
    return [_renamed(row, names.get(row.row_id, row.contributor_id)) for row in rows]


def sybils(rows: Sequence[Any], name: str, k: int) -> list[Any]:
    """Rows of nobody's yet under `k` names of one person, in turn."""
    return [_renamed(row, f"{name}.{place % k}") for place, row in enumerate(rows)]


def merged_names(rows: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """The rows of several contributors under the first one's name."""
    return [_renamed(row, names[0] if row.contributor_id in names else row.contributor_id) for row in rows]


def in_pieces(rows: Sequence[Any], size: int) -> list[Any]:
    """Everybody's rows over as many names as he has times `size` of them, in the order in which they stand."""
    places, found = Counter[str](), []
    for row in rows:
        found.append(_renamed(row, f"{row.contributor_id}.piece-{places[row.contributor_id] // size}"))
        places[row.contributor_id] += 1
    return found


def repeated(
    rows: Sequence[Any], n: int, change: Callable[[Sequence[Any], int], Sequence[Any]] | None = None
) -> list[Any]:
    """The rows `n` times; the repetitions changed by `change(rows, number)` where there is one."""
    found = list(rows)
    for number in range(1, n):
        again = rows if change is None else change(rows, number)
        found += [_with_id(row, f"{row.row_id}#{number}", number * len(rows)) for row in again]
    return found


def lengthened(rows: Sequence[ClusterRow]) -> list[ClusterRow]:
    """Each answer with a sentence at its end that says nothing."""
    return _answers(rows, lambda text: f"{text} {FILLER}")


def fillers(name: str, number: int, topics: Sequence[str], seed: int) -> list[ClusterRow]:
    """Rows that cost nothing to write: a question about a made-up function, an answer made of its name."""
    draw = random.Random(seed)
    rows = []
    for place in range(number):
        one, other = draw.sample(list(topics), 2)
        prompt = f"What does the function tools.{one}_{other}({other}) do?"
        rows.append(_text(f"{name}/filler-{place}", name, prompt, f"Apply the {one} to the given {other}, return it."))
    return rows


def noise_characters(name: str, number: int, seed: int) -> list[ClusterRow]:
    draw = random.Random(seed)
    letters = "bcdfghjklmnpqrstvwxz0123456789#$%&"

    def words(count: int) -> str:
        return " ".join("".join(draw.choices(letters, k=7)) for _ in range(count))

    return [_text(f"{name}/noise-{place}", name, f"{words(4)}?", words(10)) for place in range(number)]


def noise_words(rows: Sequence[ClusterRow], name: str, vocabulary: Sequence[str], seed: int) -> list[ClusterRow]:
    """Questions like the rows', answers of random words."""
    draw = random.Random(seed)
    return [
        _text(
            f"{name}/salad-{place}", name, _other_name(row.prompt, draw), " ".join(draw.choices(list(vocabulary), k=10))
        )
        for place, row in enumerate(rows)
    ]


def common_phrases(rows: Sequence[ClusterRow], num_words: int, number: int) -> list[str]:
    """The runs of `num_words` words that most answers hold, no two sharing more than half of their words."""
    counts: Counter[str] = Counter()
    for row in rows:
        words = row.completion.split()
        counts.update({" ".join(words[at : at + num_words]) for at in range(len(words) - num_words + 1)})
    found: list[str] = []
    for phrase in sorted(counts, key=lambda phrase: (-counts[phrase], phrase)):
        if all(len(set(phrase.split()) & set(other.split())) <= num_words // 2 for other in found):
            found.append(phrase)
        if len(found) == number:
            break
    return found


def seeded(rows: Sequence[ClusterRow], phrases: Sequence[str], each: int = 3) -> list[ClusterRow]:
    """Phrases that answers are likely to hold, `each` of them at the end of every row, in turn."""
    found = []
    for place, row in enumerate(rows):
        own = [phrases[(place * each + number) % len(phrases)] for number in range(each)]
        found.append(replace(row, completion=f"{row.completion} {'. '.join(own)}."))
    return found


# pixels


def flipped(rows: Sequence[Digit], every: int = 1) -> list[Digit]:
    """Every `every`-th label wrong, each in its own way."""
    return [
        replace(row, label=(row.label + 1 + place % 9) % 10) if place % every == 0 else row
        for place, row in enumerate(rows)
    ]


def falsehoods(images: Sequence[Digit], name: str, told: int) -> list[Digit]:
    """The images, all told to be the digit `told`."""
    return [
        replace(image, row_id=f"{name}-false-{place}", contributor_id=name, label=told)
        for place, image in enumerate(images)
    ]


def noise_images(name: str, number: int, seed: int) -> list[Digit]:
    draw = np.random.default_rng(seed)
    return [
        Digit(f"{name}-noise-{place}", name, tuple(draw.random(64).tolist()), int(draw.integers(10)))
        for place in range(number)
    ]


def jittered(rows: Sequence[Digit], number: int, size: float = 0.05) -> list[Digit]:
    """The images with a little noise on every pixel: the same evidence, another file."""
    draw = np.random.default_rng(number)
    return [
        replace(row, pixels=tuple(np.clip(np.array(row.pixels) + draw.normal(0, size, 64), 0, 1).tolist()))
        for row in rows
    ]


def many_repeated(rows: Sequence[Digit], name: str, names: int, each: int) -> list[Digit]:
    """Repetitions of the rows in turn, each with a little noise of its own, `each` of them under every one of `names`
    accounts of one person."""
    rounds = -(-names * each // len(rows))
    again = repeated(rows, 1 + rounds, jittered)[len(rows) :][: names * each]
    return sybils(again, name, names)


def outliers(rows: Sequence[Digit], module: Any, epsilon: float) -> list[Digit]:
    """The outlier attack of arXiv 2409.05657: a row is pushed to where the deployed model thinks its (true) label
    unlikely. The paper searches by queries alone (SimBA); here the attacker sees the gradient, which is stronger."""
    pixels_BI = _pixels(rows).requires_grad_()
    losses = digits_task.TASK.losses(_Given(module, pixels_BI), rows)
    (gradient_BI,) = torch.autograd.grad(losses.sum(), pixels_BI)
    return _stepped(rows, gradient_BI, epsilon)


def shadowed(rows: Sequence[Digit], modules: Sequence[Any], targets: Sequence[Digit], epsilon: float) -> list[Digit]:
    """The shadow attack of arXiv 2409.05657: one step of each pixel by the sign of the gradient of
    sum over shadow models of <grad loss(row), grad loss(targets)>."""
    pixels_BI = _pixels(rows).requires_grad_()
    total = torch.zeros(())
    for module in modules:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        wanted = torch.autograd.grad(digits_task.TASK.losses(module, targets).mean(), parameters)
        own = torch.autograd.grad(
            digits_task.TASK.losses(_Given(module, pixels_BI), rows).sum(), parameters, create_graph=True
        )
        total = total + torch.stack([(a * b.detach()).sum() for a, b in zip(own, wanted, strict=True)]).sum()
    (gradient_BI,) = torch.autograd.grad(total, pixels_BI)
    return _stepped(rows, gradient_BI, epsilon)


def by_worth(rows: Sequence[Digit], bad: Sequence[str], name: str) -> list[Digit]:
    """The rows whose ids are in `bad` under a second name."""
    return [replace(row, contributor_id=f"{name}.bad" if row.row_id in bad else row.contributor_id) for row in rows]


class _Given:
    """A module that is asked about given pixels, whatever the examples say."""

    def __init__(self, module: Any, pixels_BI: torch.Tensor):
        self._module, self._pixels_BI = module, pixels_BI

    def __call__(self, _: torch.Tensor) -> torch.Tensor:
        return self._module(self._pixels_BI)


def _stepped(rows: Sequence[Digit], gradient_BI: torch.Tensor, epsilon: float) -> list[Digit]:
    moved = (_pixels(rows) + epsilon * gradient_BI.sign()).clamp(0, 1)
    return [replace(row, pixels=tuple(float(v) for v in own)) for row, own in zip(rows, moved, strict=True)]


def _pixels(rows: Sequence[Digit]) -> torch.Tensor:
    return torch.tensor([row.pixels for row in rows], dtype=torch.float32)


def _answers(rows: Sequence[ClusterRow], change: Callable[[str], str]) -> list[ClusterRow]:
    return [replace(row, completion=change(row.completion)) for row in rows]


def _renamed(row: Any, name: str) -> Any:
    return replace(row, contributor_id=name)


def _with_id(row: Any, row_id: str, later: int) -> Any:
    return (
        replace(row, row_id=row_id, order=row.order + later) if hasattr(row, "order") else replace(row, row_id=row_id)
    )


def _text(row_id: str, name: str, prompt: str, completion: str) -> ClusterRow:
    return ClusterRow(
        row_id=row_id,
        contributor_id=name,
        order=LAST + int(row_id.rsplit("-", 1)[-1]),
        prompt=prompt,
        completion=completion,
    )


def _other_name(prompt: str, draw: random.Random) -> str:
    """The question about a function that nobody has: its name's letters in another order."""
    head, _, tail = prompt.partition("(")
    words = head.split()
    letters = list(words[-1].strip("?"))
    draw.shuffle(letters)
    return " ".join([*words[:-1], "".join(letters)]) + (f"({tail}" if tail else "?")
