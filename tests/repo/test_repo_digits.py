"""The digits' benchmark at its smallest: every table is made, is taken up again, and what is exact by its making is."""

import math

import numpy as np
import pytest

pytest.importorskip("sklearn")

from benchmarks.attribution_digits import goals, tables
from benchmarks.attribution_intervals import exact_coverage
from benchmarks.digits_peers import DigitPeers
from benchmarks.digits_study import Sizes, Study

SMALLEST = Sizes(
    contributors=4, queries=6, halves=4, row_halves=4, removals=3, coalitions=(8,), twins=2, replayed=2
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("digits")


@pytest.fixture(scope="module")
def found(folder):
    return tables(Study(folder, SMALLEST))


def test_the_digits_have_every_table_of_the_language_task(found):
    assert set(found) == {
        "contributors, expected",
        "rows, expected",
        "contributors, this run",
        "rows, this run",
        "all row weights at once",
        "contributors, this run, smooth units",
        "rows, this run, smooth units",
        "all row weights at once, smooth units",
    }
    assert {"noise ceiling", "gradient dot", "index of a run with its bank", "estimate"} <= set(found["rows, expected"])
    assert all(math.isfinite(f) for rows in found.values() for figures in rows.values() for f in figures.values())


def test_the_digits_replay_is_the_derivative_in_all_row_weights(found):
    assert found["all row weights at once, smooth units"]["replay, weights changed by 1 %"]["correlation"] > 0.999


def test_the_digits_goals_are_held_against_the_better_ekfac(found):
    rows, goal = found["rows, expected"], goals(found)["rows: index of a run, to EK-FAC of one run"]
    better = max(rows[f"{kind}, one run"]["per answer"] for kind in ("EK-FAC", "EK-FAC fitted on all rows"))
    assert goal["ratio"] == pytest.approx(rows["index of a run"]["per answer"] / better)


def test_the_digits_tables_are_made_again_from_what_is_kept(folder, found):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors") if path.parent.name != "peers"}
    assert tables(Study(folder, SMALLEST)) == found
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors") if path.parent.name != "peers"}
    assert after == before


def test_other_libraries_are_given_the_digits_own_model_rows_and_answers(folder, found, tmp_path):
    assert np.allclose(DigitPeers(folder, tmp_path).dot, Study(folder, SMALLEST).dot(), rtol=1e-3, atol=1e-4)


def test_intervals_of_a_bank_are_held_against_every_coalition(tmp_path):
    (covers,) = exact_coverage(tmp_path, world=0, number=8, num_contributors=4, num_banks=1)
    assert {"values", "new trainings", "sum's values", "new trainings' sum"} == set(covers)
    assert covers["values"] > 0.5
