"""Word shingles and the filter that remembers them."""

from pathlib import Path

from datanet_samples import sample_drafts
from hypothesis import given
from hypothesis import strategies as st

from openledger.datanets.shingles import ShingleFilter, normalized_words, shingles


class TestShingles:
    def test_a_text_has_a_shingle_for_each_run_of_five_words(self) -> None:
        assert len(shingles("one two three four five six seven")) == 3

    def test_a_short_text_is_one_shingle_and_an_empty_text_none(self) -> None:
        assert len(shingles("one two")) == 1
        assert shingles(" ... ") == set()

    def test_case_width_and_punctuation_do_not_count(self) -> None:
        assert shingles("Open the ＦＩＬＥ, please: now") == shingles("open THE file please now!")

    def test_another_word_makes_other_shingles(self) -> None:
        assert not shingles("open the file please now") & shingles("open the file please later")

    @given(st.text(max_size=200))
    def test_any_text_has_at_most_as_many_shingles_as_words(self, text: str) -> None:
        assert len(shingles(text)) <= len(normalized_words(text))


class TestFilter:
    def test_everything_put_in_is_found_also_after_saving(self, tmp_path: Path) -> None:
        texts = [draft.completion for draft in sample_drafts(200)]
        _filter(texts).save(tmp_path / "seen.bloom")
        loaded = ShingleFilter.load(tmp_path / "seen.bloom")
        assert min(loaded.containment(text) for text in texts) == 1.0

    def test_few_of_the_others_are_claimed(self) -> None:
        held = _filter([draft.completion for draft in sample_drafts(500)])
        others = [held.containment(draft.completion) for draft in sample_drafts(500, "mail")]
        assert sum(others) / len(others) < 0.02

    def test_a_text_without_words_is_not_contained(self) -> None:
        assert _filter(["one two three four five"]).containment("...") == 0.0

    def test_an_empty_filter_holds_nothing(self) -> None:
        assert ShingleFilter.build([]).containment("one two three four five") == 0.0


def _filter(texts: list[str]) -> ShingleFilter:
    return ShingleFilter.build(value for text in texts for value in shingles(text))
