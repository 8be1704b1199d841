"""What the base model was pretrained on, what the Datanets hold, and what is asked as new are disjoint."""

import json
from functools import cache
from pathlib import Path

import pytest
from datanet_samples import contributed_drafts, module_drafts

import openledger
from openledger.core.values import RowDraft
from openledger.datanets.shingles import ShingleFilter, normalized_words, shingles
from openledger.platform.demonstration import (
    DATANETS,
    contributed_modules,
    contributors,
    new_packages,
    new_questions,
)

BASE_MODEL = Path(openledger.__file__).parent / "base_model"
SEEN_CONTAINMENT = 0.8
MIN_WORDS = 6


def seen_rows(seen: ShingleFilter, drafts: list[RowDraft]) -> list[RowDraft]:
    """Rows of some length whose answers the filter holds to at least SEEN_CONTAINMENT."""
    return [
        draft
        for draft in drafts
        if len(normalized_words(draft.completion)) >= MIN_WORDS
        and seen.containment(draft.completion) >= SEEN_CONTAINMENT
    ]


@cache
def protected_drafts() -> list[RowDraft]:
    contributed = [draft for _, drafts in contributed_drafts() for draft in drafts]
    return contributed + [draft for package in new_packages() for draft in module_drafts(package)]


class TestPackages:
    def test_contributed_and_new_packages_are_disjoint(self) -> None:
        assert not {module.split(".")[0] for module in contributed_modules()} & set(new_packages())

    def test_no_module_is_contributed_twice(self) -> None:
        assert len(set(contributed_modules())) == len(contributed_modules())

    def test_pretraining_saw_none_of_these_packages(self) -> None:
        packages = set(json.loads(_shipped("pretraining.json").read_text())["packages"])
        assert packages, "the record names no package"
        assert not packages & {module.split(".")[0] for module in (*contributed_modules(), *new_packages())}


class TestRows:
    def test_pretraining_saw_no_row_that_is_contributed_or_asked(self) -> None:
        seen = ShingleFilter.load(_shipped("seen.bloom"))
        drafts = [draft for datanet in DATANETS for person in contributors(datanet) for draft in person.drafts]
        drafts += [draft for datanet in DATANETS for draft in new_questions(datanet, 100)]
        assert len(drafts) > 3000
        assert not seen_rows(seen, drafts)

    def test_hardly_a_row_of_these_packages_was_even_met_in_pieces(self) -> None:
        """No pretraining answer holds half of any row; a few formulas are met piece by piece in several answers."""
        found = seen_rows(ShingleFilter.load(_shipped("seen.bloom")), protected_drafts())
        examples = "\n".join(f"{draft.source}: {draft.completion}" for draft in found[:10])
        assert len(found) < len(protected_drafts()) / 1000, f"{len(found)} rows, among them:\n{examples}"

    def test_a_filter_that_has_seen_rows_accuses_them_and_no_others(self) -> None:
        """The control: the same check finds what was put in."""
        drafts = [draft for draft in module_drafts("email") if len(normalized_words(draft.completion)) >= MIN_WORDS]
        told = drafts[:40]
        seen = ShingleFilter.build(value for draft in told for value in shingles(draft.completion))
        found = seen_rows(seen, drafts)
        assert set(told) <= set(found)
        assert len(found) < len(drafts) / 2


def _shipped(name: str) -> Path:
    if not (BASE_MODEL / name).exists():
        pytest.skip(f"the embedded base model has no {name} yet")
    return BASE_MODEL / name
