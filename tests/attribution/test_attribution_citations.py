"""Citations: BM25 against the formula written out, and what the channel does not claim."""

import math
from collections import Counter
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_rows

from openledger.attribution.citations import Citation, CitationIndex, row_text
from openledger.core.errors import InvalidInput

K1, B = 1.2, 0.75


def plain_bm25(query: str, texts: dict[str, str]) -> dict[str, float]:
    """The docstring's formula, text by text."""
    words = {row_id: text.split() for row_id, text in texts.items()}
    mean = sum(map(len, words.values())) / len(words)
    scores = {}
    for row_id, held in words.items():
        score = 0.0
        for word in set(query.split()):
            holders = sum(word in others for others in words.values())
            idf = math.log(1 + (len(words) - holders + 0.5) / (holders + 0.5))
            count = Counter(held)[word]
            if count:
                score += idf * count * (K1 + 1) / (count + K1 * (1 - B + B * len(held) / mean))
        scores[row_id] = score
    return {row_id: score for row_id, score in scores.items() if score > 0}


sentences = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), max_size=8).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(sentences, min_size=1, max_size=8), query=sentences)
def test_scores_are_those_of_the_formula(texts, query):
    named = {f"row_{number}": text for number, text in enumerate(texts)}
    citations = CitationIndex(named.items()).cite(query, top=100)
    assert {c.row_id: c.bm25 for c in citations} == pytest.approx(plain_bm25(query, named))
    assert [c.bm25 for c in citations] == sorted((c.bm25 for c in citations), reverse=True)


def test_the_row_a_question_is_about_is_cited_first():
    rows = tiny_rows()
    citations = CitationIndex((row.row_id, row_text(row)) for row in rows).cite("What does sigma 37 do?")
    assert citations[0].row_id == "row_037"
    assert [c.rank for c in citations] == [1, 2, 3, 4, 5]


def test_an_answers_own_words_find_the_completion_that_holds_them():
    texts = {"row_a": "question\nthe quick brown fox", "row_b": "question\na slow green turtle"}
    assert CitationIndex(texts.items()).cite("A turtle, slow.")[0].row_id == "row_b"


def test_ties_are_in_the_order_of_row_ids_whatever_order_rows_came_in():
    texts = [("row_c", "same words"), ("row_a", "same words"), ("row_b", "same words")]
    for order in (texts, texts[::-1]):
        assert [c.row_id for c in CitationIndex(order).cite("words same", top=2)] == ["row_a", "row_b"]


def test_case_punctuation_and_compatibility_forms_are_one_word():
    (citation,) = CitationIndex([("row_a", "The ﬁle, SORTED."), ("row_b", "other")]).cite("FILE sorted!")
    assert citation.row_id == "row_a"


def test_a_word_repeated_in_the_query_counts_once():
    index = CitationIndex([("row_a", "alpha beta"), ("row_b", "gamma")])
    assert index.cite("alpha alpha alpha") == index.cite("alpha")


@pytest.mark.parametrize("query", ["", "?!", "unheard"])
def test_a_query_that_shares_no_word_cites_nothing(query):
    assert CitationIndex([("row_a", "alpha"), ("row_b", "")]).cite(query) == ()


def test_no_rows_cite_nothing():
    assert CitationIndex([]).cite("alpha") == ()


def test_a_row_id_that_comes_twice_is_refused():
    with pytest.raises(InvalidInput) as caught:
        CitationIndex([("row_a", "alpha"), ("row_a", "beta")])
    assert caught.value.code == "duplicate_row"


def test_a_limit_below_one_is_refused():
    with pytest.raises(InvalidInput) as caught:
        CitationIndex([("row_a", "alpha")]).cite("alpha", top=0)
    assert caught.value.param == "top"


def test_a_citation_carries_its_channel_and_no_score_of_another():
    assert asdict(Citation(row_id="row_a", rank=1, bm25=2.0)) == {
        "channel": "citation",
        "row_id": "row_a",
        "rank": 1,
        "bm25": 2.0,
    }
    with pytest.raises(TypeError):
        Citation(row_id="row_a", rank=1, bm25=2.0, channel="influence")
