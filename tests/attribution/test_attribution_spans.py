"""Verbatim spans, against a plain search through every row."""

import json
import math
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import make_tiny_base, tiny_rows

from openledger.adapters.base_model import load_tokenizer
from openledger.attribution import spans as spans_module
from openledger.attribution.spans import SpanIndex, build_span_index, suffix_array
from openledger.core.errors import Corrupt, InvalidInput, NotFound, TooLarge
from openledger.core.shares import shares_ppb
from openledger.datanets.versions import row_root
from openledger.training.examples import encode_row

END = 9


@dataclass(frozen=True)
class TokenRow:
    row_id: str
    ids: tuple[int, ...]


def rows_of(*texts) -> list[TokenRow]:
    return [TokenRow(f"row_{number:03d}", tuple(text)) for number, text in enumerate(texts)]


def root_of(rows) -> str:
    return row_root([row.row_id for row in rows])


def build(rows, folder, special_ids=(END,), base_digest="base") -> SpanIndex:
    return build_span_index(rows, folder, row_root=root_of(rows), base_digest=base_digest, special_ids=special_ids)


def reopen(folder, rows, base_digest="base") -> SpanIndex:
    return SpanIndex.open(folder, row_root=root_of(rows), base_digest=base_digest)


def places_of(piece, rows) -> list[str]:
    """The id of the row at each place where `piece` stands."""
    size = len(piece)
    return [row.row_id for row in rows for at in range(len(row.ids) - size + 1) if row.ids[at : at + size] == piece]


def plain_search(answer, rows, min_tokens) -> dict[tuple[int, int], list[str]]:
    """(start, stop) -> places, by trying every piece of the answer that no longer found piece contains."""
    found: dict[tuple[int, int], list[str]] = {}
    for size in range(len(answer), min_tokens - 1, -1):
        for start in range(len(answer) - size + 1):
            piece = answer[start : start + size]
            inside = any(low <= start and start + size <= high for low, high in found)
            if not inside and END not in piece and (places := places_of(piece, rows)):
                found[start, start + size] = places
    return found


ids = st.lists(st.sampled_from([0, 1, 2, END]), max_size=24)
nested = st.lists(ids, min_size=1, max_size=8).filter(lambda texts: any(set(text) - {END} for text in texts))


@settings(max_examples=150, deadline=None)
@given(texts=nested, answer=st.lists(st.sampled_from([0, 1, 2, 3, END]), max_size=30), min_tokens=st.integers(1, 4))
def test_spans_are_those_of_a_plain_search(texts, answer, min_tokens):
    rows, expected = rows_of(*texts), {}
    with TemporaryDirectory() as folder:
        found = build(rows, Path(folder) / "spans").spans(answer, min_tokens=min_tokens, max_rows=100)
    for place, holders in plain_search(tuple(answer), rows, min_tokens).items():
        expected[place] = (tuple(answer[slice(*place)]), tuple(sorted(set(holders))), len(holders), 0)
    assert {(s.start, s.stop): (s.token_ids, s.row_ids, s.num_occurrences, s.num_more_rows) for s in found} == expected


@settings(max_examples=150, deadline=None)
@given(texts=nested)
def test_the_suffix_array_is_that_of_a_plain_sort(texts):
    text = [value for row in texts for value in (*(0 if token == END else token + 1 for token in row), 0)]
    suffixes = {at: text[at : text.index(0, at)] for at in range(len(text)) if text[at]}
    expected = sorted(suffixes, key=lambda at: (suffixes[at], at))
    assert suffix_array(np.array(text, dtype=np.uint32)).tolist() == expected


def test_a_long_answer_made_of_long_rows_is_found_whole(tmp_path):
    """Longer than the first window of comparison, and repetitive: every row begins with the same 300 tokens."""
    rows = rows_of(*((5,) * 300 + tuple(range(10 + n, 210 + n)) for n in range(4)))
    index = build(rows, tmp_path / "spans")
    spans = index.spans(rows[2].ids + rows[0].ids)
    assert {(s.start, s.stop, s.row_ids) for s in spans} == {(0, 500, ("row_002",)), (500, 1000, ("row_000",))}


def test_no_span_crosses_into_the_next_row(tmp_path):
    index = build(rows_of((1, 2, 3), (4, 5, 6)), tmp_path / "spans")
    assert [s.token_ids for s in index.spans((1, 2, 3, 4, 5, 6), min_tokens=1)] == [(1, 2, 3), (4, 5, 6)]


def test_special_tokens_neither_begin_nor_join_spans(tmp_path):
    rows = rows_of((END, 1, 2, END, 3, 4, END))
    index = build(rows, tmp_path / "spans")
    assert [s.token_ids for s in index.spans(rows[0].ids, min_tokens=1)] == [(1, 2), (3, 4)]


def test_the_least_likely_span_comes_first_though_it_is_shorter(tmp_path):
    rows = rows_of(*[(1, 1, 1, 1)] * 20, (7, 8, 6))
    spans = build(rows, tmp_path / "spans").spans((1, 1, 1, 1, 5, 7, 8, 6), min_tokens=3)
    assert [s.token_ids for s in spans] == [(7, 8, 6), (1, 1, 1, 1)]


def test_bits_are_the_unigram_surprise_of_the_version(tmp_path):
    rows = rows_of((1, 1, 2, END), (2, 3, 1, 4))
    counts = Counter(token for row in rows for token in row.ids if token != END)
    (span,) = build(rows, tmp_path / "spans").spans((2, 3, 1), min_tokens=2)
    assert span.bits == pytest.approx(sum(math.log2(counts.total() / counts[token]) for token in (2, 3, 1)))


def test_equally_likely_spans_are_in_the_order_of_the_answer(tmp_path):
    spans = build(rows_of((1, 2), (3, 4)), tmp_path / "spans").spans((3, 4, 1, 2, 3, 4), min_tokens=2)
    assert [s.start for s in spans] == [0, 2, 4]


def test_rows_beyond_the_limit_are_counted(tmp_path):
    rows = rows_of(*[(1, 2, 3, 1, 2, 3)] * 7, (4, 4))
    (span,) = build(rows, tmp_path / "spans").spans((1, 2, 3, 4), min_tokens=3, max_rows=2)
    assert (span.row_ids, span.num_more_rows, span.num_occurrences) == (("row_000", "row_001"), 5, 14)


def test_a_span_carries_its_channel_and_no_score_of_another():
    names = set(spans_module.VerbatimSpan.__dataclass_fields__)
    assert names == {"channel", "start", "stop", "token_ids", "row_ids", "num_more_rows", "num_occurrences", "bits"}
    values = dict.fromkeys(names - {"channel"}, 0)
    assert asdict(spans_module.VerbatimSpan(**values))["channel"] == "verbatim"
    with pytest.raises(TypeError):
        spans_module.VerbatimSpan(**values, channel="influence")


def test_a_span_is_refused_where_shares_are_made(tmp_path):
    (span,) = build(rows_of((1, 2, 3)), tmp_path / "spans").spans((1, 2, 3), min_tokens=3)
    with pytest.raises(TypeError):
        shares_ppb({"contributor": span}, {"contributor": 0}, 0, 1000)


@pytest.mark.parametrize("answer", [(), (END, END), (7, 7, 7)], ids=["empty", "only special", "unknown tokens"])
def test_an_answer_without_overlap_has_no_spans(tmp_path, answer):
    assert build(rows_of((1, 2, 3)), tmp_path / "spans").spans(answer, min_tokens=1) == ()


def test_an_answer_of_a_trained_row_is_found_through_the_tokenizer(tmp_path):
    base = make_tiny_base(tmp_path / "base")
    tokenizer = load_tokenizer(base)
    examples = [encode_row(tokenizer, row) for row in tiny_rows()]
    index = build(examples, tmp_path / "spans", tokenizer.all_special_ids, base.digest)
    answer = examples[5].ids[examples[5].num_prompt :]
    best = index.spans(answer)[0]
    assert (best.start, best.stop) == (0, len(answer) - 1)  # all but the end token
    same = [e.row_id for e in examples if e.ids[e.num_prompt :] == answer]
    assert list(best.row_ids) == same


def test_a_reopened_index_answers_the_same(tmp_path):
    rows = rows_of((1, 2, 3, 4), (2, 3, 4, 5))
    before = build(rows, tmp_path / "spans").spans((1, 2, 3, 4, 5), min_tokens=2)
    assert reopen(tmp_path / "spans", rows).spans((1, 2, 3, 4, 5), min_tokens=2) == before != ()


def test_files_do_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = rows_of((1, 2, 3, 4), (2, 3, 4, 5), (3, 3))
    build(rows, tmp_path / "one")
    build(rows[::-1], tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_an_index_is_built_once_and_left_alone(tmp_path):
    rows = rows_of((1, 2, 3, 4))
    build(rows, tmp_path / "spans")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "spans").iterdir()}
    build(rows, tmp_path / "spans").spans((1, 2))
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "spans").iterdir()} == before


def test_what_an_interrupted_build_left_is_no_index_and_no_obstacle(tmp_path):
    (tmp_path / ".spans.building").mkdir()
    (tmp_path / ".spans.building" / "tokens.u4").write_bytes(b"half")
    with pytest.raises(NotFound):
        reopen(tmp_path / "spans", rows_of((1, 2)))
    assert build(rows_of((1, 2)), tmp_path / "spans").spans((1, 2), min_tokens=2)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    rows = rows_of((1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1))
    build(rows, tmp_path_factory.mktemp("stored") / "spans")
    return rows, tmp_path_factory.getbasetemp() / "stored0" / "spans"


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "bit flipped": flip_a_bit,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-4]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
    "other JSON": lambda path: path.write_text("null"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["tokens.u4", "suffixes.u4", "rows.json", "spans.json"])
def test_a_damaged_file_is_refused(stored, tmp_path, name, damage):
    rows, folder = stored
    shutil.copytree(folder, tmp_path / "spans")
    DAMAGES[damage](tmp_path / "spans" / name)
    with pytest.raises(Corrupt) as caught:
        reopen(tmp_path / "spans", rows)
    assert caught.value.code == "corrupt_span_index"


def test_a_header_that_names_another_version_after_the_fact_is_refused(stored, tmp_path):
    _, folder = stored
    shutil.copytree(folder, tmp_path / "spans")
    header = json.loads((folder / "spans.json").read_text())
    other = rows_of((1,))
    (tmp_path / "spans" / "spans.json").write_text(json.dumps({**header, "row_root": root_of(other)}))
    with pytest.raises(Corrupt):
        reopen(tmp_path / "spans", other)


def test_the_index_of_another_version_or_tokenizer_is_refused(stored):
    rows, folder = stored
    for param, arguments in (("row_root", (rows[:1],)), ("base_digest", (rows, "another base"))):
        with pytest.raises(InvalidInput) as caught:
            reopen(folder, *arguments)
        assert (caught.value.code, caught.value.param) == ("wrong_span_index", param)


def test_building_another_version_over_an_index_is_refused(stored):
    with pytest.raises(InvalidInput) as caught:
        build(rows_of((1, 2)), stored[1])
    assert caught.value.code == "wrong_span_index"


def test_rows_that_are_not_the_versions_are_refused_and_leave_nothing(tmp_path):
    rows = rows_of((1, 2), (3, 4))
    for given_rows in (rows[:1], [*rows, rows[0]], [*rows, TokenRow("row_new", (1,))]):
        with pytest.raises(InvalidInput) as caught:
            build_span_index(given_rows, tmp_path / "spans", row_root=root_of(rows), base_digest="base", special_ids=())
        assert caught.value.code == "wrong_rows"
    assert list(tmp_path.iterdir()) == []


def test_a_version_without_text_is_refused(tmp_path):
    for rows in ([], rows_of(()), rows_of((END, END))):
        with pytest.raises(InvalidInput) as caught:
            build(rows, tmp_path / "spans")
        assert caught.value.code == "no_text"


@pytest.mark.parametrize("bad", [(-1, 2), (1.0, 2.0), (True, False), (2**32 - 1,), (2**70,), ("1",)])
def test_ids_that_cannot_be_token_ids_are_refused(stored, tmp_path, bad):
    with pytest.raises(InvalidInput) as asked:
        reopen(stored[1], stored[0]).spans(bad)
    with pytest.raises(InvalidInput) as built:
        build(rows_of((1, 2), bad), tmp_path / "spans")
    assert (asked.value.code, built.value.code) == ("invalid_token_ids", "invalid_token_ids")
    assert "row_001" in built.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limits", [{"min_tokens": 0}, {"max_rows": 0}])
def test_limits_below_one_are_refused(stored, limits):
    with pytest.raises(InvalidInput) as caught:
        reopen(stored[1], stored[0]).spans((1,), **limits)
    assert caught.value.param == next(iter(limits))


def test_more_tokens_than_an_index_holds_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(spans_module, "MAX_INDEX_TOKENS", 5)
    with pytest.raises(TooLarge):
        build(rows_of((1, 2), (3, 4)), tmp_path / "spans")


def test_the_number_of_comparisons_grows_with_the_logarithm_of_the_version(tmp_path, monkeypatch):
    """A lookup is one bisection: one for each start (and for each doubling of its window), two for each span found and
    each token in one. A search through the text would read 40,000 places for each start."""
    random = np.random.default_rng(3)
    rows = rows_of(*(tuple(row) for row in random.integers(10, 300, (2000, 20)).tolist()))
    index = build(rows, tmp_path / "spans")
    reads, plain = [], SpanIndex._read
    monkeypatch.setattr(SpanIndex, "_read", lambda self, *arguments: reads.append(1) or plain(self, *arguments))
    answer = [token for row in rows[:10] for token in row.ids]
    assert len(index.spans(answer)) == 10
    lookups = len(answer) + 10 + 2 * 10 + 2 * len(set(answer))
    assert len(reads) <= lookups * (math.ceil(math.log2(index.num_tokens)) + 3)
