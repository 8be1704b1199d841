"""ROUGE-L against values worked out by hand, and the measuring of an adapter beside its base."""

import pytest

from openledger.core.values import RowDraft
from openledger.factory.evaluation import measure, rouge_l


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat on the mat", "the cat on mat", 2 * 4 / 10),
        ("police killed the gunman", "police kill the gunman", 2 * 3 / 8),
        ("police killed the gunman", "the gunman kill police", 2 * 2 / 8),
        ("Return a List.", "return A list", 1.0),
        ("one two", "three four", 0.0),
        ("one two", "", 0.0),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(reference, candidate, expected):
    assert rouge_l(reference, candidate) == pytest.approx(expected)


async def test_adapter_and_base_are_asked_the_same_questions():
    asked = []

    async def generate(question: str, digest: str) -> str:
        asked.append((question, digest))
        return "right words here" if digest else "right"

    drafts = [RowDraft(prompt=f"q{number}", completion="right words here") for number in range(3)]
    quality = await measure(generate, drafts, "digest")
    assert (quality.adapter, quality.base) == (pytest.approx(1.0), pytest.approx(0.5))
    assert sorted(asked) == sorted((f"q{n}", digest) for n in range(3) for digest in ("digest", ""))
