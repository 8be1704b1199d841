"""Nonces around publishing a version: committed before it, drawn after it, and what is trained by them."""

import pytest
from tiny_model import make_tiny_base, tiny_rows

from openledger.core.clock import ManualClock
from openledger.core.errors import Unavailable
from openledger.core.signing import SigningKey
from openledger.core.values import DatanetVersion
from openledger.economy import Economy
from openledger.economy.nonces import DEPOSIT_NANO, NonceBook
from openledger.ledger import Ledger
from openledger.ledger.nonces import commitment
from openledger.platform import pipeline
from openledger.training.recipe import Recipe, public_constant

OWNER, OPERATOR, STRANGER = "user:owner", "user:operator", "user:stranger"
VERSION = DatanetVersion(datanet="greek", number=1, row_root="aa", num_rows=48, gate_version="g/1", published_ms=1)
RECIPE = Recipe(max_rows=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db", ManualClock(), SigningKey(b"k" * 32), "openledger/test")
    economy = Economy(ledger, tmp_path, ManualClock())
    for party in (OWNER, OPERATOR, STRANGER):
        economy.grant(party, DEPOSIT_NANO, party)
    yield ledger
    economy.close()
    ledger.close()


@pytest.fixture
def book(ledger, tmp_path):
    book = NonceBook(ledger)
    pipeline.commit_nonces(book, tmp_path / "nonces", "greek", 1, OWNER, [OPERATOR])
    return book


@pytest.fixture
def draw(book, base, tmp_path):
    return lambda recipe=RECIPE, version=VERSION: pipeline.draw_nonces(book, tmp_path / "nonces", version, base, recipe)


def test_what_was_committed_before_publishing_is_drawn_after_it_once(book, draw, ledger):
    nonces = draw()
    assert len(nonces) == 2
    before = ledger.checkpoint()
    assert draw() == nonces
    assert ledger.checkpoint() == before
    ledger.audit()


def test_committing_again_before_publishing_changes_nothing(book, ledger, tmp_path):
    before = ledger.checkpoint()
    pipeline.commit_nonces(book, tmp_path / "nonces", "greek", 1, OWNER, [OPERATOR])
    assert ledger.checkpoint() == before


def test_nonces_that_are_known_serve_no_other_recipe(draw):
    assert draw()
    assert draw(recipe=Recipe(max_rows=9)) == ()


def test_a_version_without_a_round_has_no_nonces(draw):
    other = DatanetVersion(datanet="greek", number=2, row_root="aa", num_rows=48, gate_version="g/1", published_ms=1)
    assert draw(version=other) == ()


def test_a_strangers_nonce_that_stays_out_holds_the_version_up(book, draw):
    book.commit("greek", 1, STRANGER, commitment("greek", 1, STRANGER, "0a" * 32))
    with pytest.raises(Unavailable) as caught:
        draw()
    assert (caught.value.code, caught.value.param) == ("nonces_withheld", STRANGER)
    book.reveal("greek", 1, STRANGER, "0a" * 32)
    assert len(draw()) == 3


def test_nonces_decide_the_constant_and_which_rows_are_drawn(base, draw, tmp_path):
    rows, nonces = tiny_rows("greek"), draw()
    drawn, _ = pipeline.plan_training(base, VERSION, rows, RECIPE, tmp_path, nonces=nonces)
    other, _ = pipeline.plan_training(base, VERSION, rows, RECIPE, tmp_path, nonces=("0c" * 32, *nonces[1:]))
    assert drawn.constant == public_constant(base.digest, "greek", 1, nonces)
    assert len(drawn.rows) == RECIPE.max_rows
    assert {row.row_id for row in drawn.rows} != {row.row_id for row in other.rows}


def test_copies_are_neither_trained_on_nor_measured_with(base, tmp_path):
    rows = tiny_rows("greek")
    copies = {row.row_id: rows[0].row_id for row in rows[1:20]}
    job, decoys = pipeline.plan_training(base, VERSION, rows, Recipe(max_rows=100), tmp_path, copies=copies)
    used = {row.row_id for row in (*job.rows, *job.held_out, *decoys)}
    assert used == {row.row_id for row in rows} - set(copies)
    assert len(job.held_out) == 2
