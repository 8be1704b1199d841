from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openlora_models import END

from openledger.openlora.text import TextStream, decoder
from openledger.training.pretraining import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(iter(["hello world, hello there"] * 3), 300)


def _pieces(tokenizer: Any, ids: Sequence[int], stops: Sequence[str] = ()) -> list[str]:
    stream = TextStream(decoder(tokenizer), stops)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces
    return [*pieces, stream.finish()]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class TestCharacters:
    def test_spread_over_tokens_come_whole(self, tokenizer: Any) -> None:
        ids = _encode(tokenizer, "a🎉b")
        pieces = _pieces(tokenizer, ids)
        assert len(ids) == 6
        assert [piece for piece in pieces if piece] == ["a", "🎉", "b"]

    @given(text=st.text(max_size=30))
    def test_joined_pieces_are_the_text(self, tokenizer: Any, text: str) -> None:
        ids = _encode(tokenizer, text)
        assert "".join(_pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)

    @given(ids=st.lists(st.integers(min_value=5, max_value=290), max_size=40))
    def test_wrong_bytes_are_shown_as_such_and_nothing_is_lost(self, tokenizer: Any, ids: list[int]) -> None:
        pieces = _pieces(tokenizer, ids)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(pieces).replace("�", "") == whole.replace("�", "")

    def test_endless_wrong_bytes_are_not_held_for_ever(self, tokenizer: Any) -> None:
        """0xE2 begins a character that never comes; eight tokens later it is given up."""
        byte = _encode(tokenizer, "€")[0]
        pieces = _pieces(tokenizer, [byte] * 20)
        assert any(pieces[:-1])

    def test_special_tokens_have_no_text(self, tokenizer: Any) -> None:
        assert "".join(_pieces(tokenizer, [END, *_encode(tokenizer, "hi"), END])) == "hi"


class TestStops:
    @given(
        text=st.text(alphabet="abc ", min_size=1, max_size=40),
        stops=st.lists(st.text(alphabet="abc ", min_size=1, max_size=4), min_size=1, max_size=3),
    )
    def test_text_ends_before_the_first(self, tokenizer: Any, text: str, stops: list[str]) -> None:
        """The control is to look for them in the whole text; a stop that ends earlier is seen earlier."""
        pieces = _pieces(tokenizer, _encode(tokenizer, text), stops)
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        expected = text if not ends else None
        if expected is not None:
            assert "".join(pieces) == expected
        else:
            shown = "".join(pieces)
            assert text.startswith(shown)
            assert not any(stop in shown for stop in stops)
            assert len(shown) <= min(ends)

    def test_across_tokens(self, tokenizer: Any) -> None:
        ids = [token for letter in "xxENDyy" for token in _encode(tokenizer, letter)]
        assert "".join(_pieces(tokenizer, ids, ["END"])) == "xx"

    def test_what_only_begins_like_one_is_shown_in_the_end(self, tokenizer: Any) -> None:
        ids = [token for letter in "xxEN" for token in _encode(tokenizer, letter)]
        pieces = _pieces(tokenizer, ids, ["END"])
        assert ("".join(pieces[:-1]), pieces[-1]) == ("xx", "EN")

    def test_nothing_comes_after(self, tokenizer: Any) -> None:
        stream = TextStream(decoder(tokenizer), ["b"])
        shown = [stream.push(token) for token in _encode(tokenizer, "abc")]
        assert stream.stopped
        assert stream.finish() == ""
        assert "".join(shown).startswith("a")
