"""Signing and reading contributions."""

import itertools
import json
from dataclasses import replace

import pytest
from datanet_samples import key_of, sample_drafts, signed
from hypothesis import given
from hypothesis import strategies as st

from openledger.core import merkle
from openledger.core.errors import InvalidInput, TooLarge
from openledger.core.hashing import canonical_json
from openledger.core.signed import contribution_id
from openledger.core.signing import contributor_id
from openledger.core.values import RowDraft
from openledger.datanets.contribution import (
    BATCH_BYTES,
    MAX_ROW_BYTES,
    MAX_ROWS,
    check_public_key,
    check_signature,
    draft_bytes,
    draft_json,
    drafts_json,
    row_ids,
    sign_batches,
    sign_contribution,
    signed_bytes,
)

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
drafts = st.lists(st.builds(RowDraft, prompt=texts, completion=texts, source=texts), min_size=1, max_size=6)


class TestSignature:
    @given(drafts)
    def test_what_a_key_signs_is_accepted(self, rows: list[RowDraft]) -> None:
        check_signature(signed("ada", rows))

    @given(drafts, texts)
    def test_what_is_signed_of_a_row_is_its_canonical_json(self, rows, extra) -> None:
        for row in (*rows, replace(rows[0], extra=extra)):
            assert draft_bytes(row, 0) == canonical_json(draft_json(row))
        assert json.loads(drafts_json(rows)) == [draft_json(row) for row in rows]

    @pytest.mark.parametrize("sign", [chr(code) for code in (*range(32), ord('"'), ord("\\"), 0x7F, 0x85, 0x2028)])
    def test_every_sign_that_json_escapes_is_escaped(self, sign: str) -> None:
        row = RowDraft(prompt=f"a{sign}b", completion=sign, source=f"{sign}é")
        assert draft_bytes(row, 0) == canonical_json(draft_json(row))

    def test_signed_bytes_are_the_documented_canonical_json(self) -> None:
        contribution = signed("ada", sample_drafts(2), nonce="n1")
        leaves = [merkle.leaf_hash(canonical_json(draft_json(draft))) for draft in contribution.drafts]
        assert json.loads(signed_bytes(contribution)) == {
            "format": "openledger/contribution/1",
            "datanet": "docs",
            "contributor_id": contributor_id(key_of("ada").public_key),
            "content_root": merkle.root(leaves).hex(),
            "num_rows": 2,
            "nonce": "n1",
        }

    def test_a_signature_by_another_key_is_refused(self) -> None:
        honest, other = signed("ada", sample_drafts(2)), signed("eve", sample_drafts(2))
        forged = replace(honest, signature=other.signature)
        self._refused(forged, "signature")

    def test_changed_rows_are_refused(self) -> None:
        honest = signed("ada", sample_drafts(2))
        self._refused(replace(honest, drafts=honest.drafts[:1]), "content_root")

    @pytest.mark.parametrize("change", [{"datanet": "other"}, {"nonce": "2"}, {"signature": "00" * 64}])
    def test_a_changed_field_is_refused(self, change: dict[str, str]) -> None:
        self._refused(replace(signed("ada", sample_drafts(2)), **change), "signature")

    def test_a_key_in_another_spelling_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="lower-case hex"):
            check_public_key(key_of("ada").public_key.upper())

    def _refused(self, forged: object, param: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            check_signature(forged)  # type: ignore[arg-type]
        assert (caught.value.code, caught.value.param) == ("invalid_signature", param)


class TestIds:
    def test_the_same_content_has_the_same_ids(self) -> None:
        one, again = signed("ada", sample_drafts(3)), signed("ada", sample_drafts(3))
        assert (contribution_id(one), row_ids(one)) == (contribution_id(again), row_ids(again))

    @pytest.mark.parametrize(("name", "nonce"), [("eve", "1"), ("ada", "2")])
    def test_another_contributor_or_nonce_shares_no_id(self, name: str, nonce: str) -> None:
        one, other = signed("ada", sample_drafts(3)), signed(name, sample_drafts(3), nonce=nonce)
        assert contribution_id(one) != contribution_id(other)
        assert not set(row_ids(one)) & set(row_ids(other))

    def test_equal_rows_in_one_contribution_have_their_own_ids(self) -> None:
        assert len(set(row_ids(signed("ada", sample_drafts(1) * 3)))) == 3


class TestLimits:
    def test_an_oversized_row_is_named(self) -> None:
        rows = [*sample_drafts(2), RowDraft(prompt="What is long?", completion="x" * MAX_ROW_BYTES)]
        with pytest.raises(TooLarge) as caught:
            signed("ada", rows)
        assert (caught.value.code, caught.value.param) == ("row_too_large", "drafts[2]")

    def test_the_largest_row_passes(self) -> None:
        empty = len(canonical_json(draft_json(RowDraft(prompt="", completion=""))))
        check_signature(signed("ada", [RowDraft(prompt="", completion="x" * (MAX_ROW_BYTES - empty))]))

    def test_too_many_rows_are_refused(self) -> None:
        with pytest.raises(TooLarge, match="at most"):
            signed("ada", [RowDraft(prompt="a", completion="b")] * (MAX_ROWS + 1))

    def test_no_rows_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="needs a row"):
            signed("ada", [])

    @pytest.mark.parametrize("nonce", ["", "n" * 129, "line\nbreak", "naïve"])
    def test_a_bad_nonce_is_refused(self, nonce: str) -> None:
        with pytest.raises(InvalidInput, match="nonce"):
            signed("ada", sample_drafts(1), nonce=nonce)

    def test_a_path_as_datanet_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="not a valid name"):
            sign_contribution(key_of("ada"), "../docs", sample_drafts(1), "1")

    def test_an_unpaired_surrogate_is_refused_with_its_row(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            signed("ada", [*sample_drafts(1), RowDraft(prompt="What?", completion="half \ud800 a pair")])
        assert (caught.value.code, caught.value.param) == ("invalid_text", "drafts[1]")


class TestBatches:
    def test_a_stream_becomes_contributions_that_hold_its_rows_in_order(self) -> None:
        rows = sample_drafts(25)
        found = list(sign_batches(key_of("ada"), "docs", iter(rows), "1", max_rows=10))
        assert [len(one.drafts) for one in found] == [10, 10, 5]
        assert [draft for one in found for draft in one.drafts] == rows
        for one in found:
            check_signature(one)

    def test_the_same_stream_again_is_the_same_contributions(self) -> None:
        first, again = (list(sign_batches(key_of("ada"), "docs", sample_drafts(25), "1", 10)) for _ in range(2))
        assert [contribution_id(one) for one in first] == [contribution_id(one) for one in again]

    def test_one_holds_no_more_bytes_than_a_request(self) -> None:
        rows = [RowDraft(prompt=f"{number}", completion="x" * 16_000) for number in range(600)]
        found = list(sign_batches(key_of("ada"), "docs", rows, "1"))
        assert max(sum(len(draft.completion) for draft in one.drafts) for one in found) <= BATCH_BYTES
        assert sum(len(one.drafts) for one in found) == 600

    def test_an_endless_stream_is_signed_as_it_comes(self) -> None:
        endless = (RowDraft(prompt="p", completion=str(number)) for number in itertools.count())
        assert len(next(sign_batches(key_of("ada"), "docs", endless, "1")).drafts) == 1_000

    def test_no_rows_make_no_contribution(self) -> None:
        assert list(sign_batches(key_of("ada"), "docs", [], "1")) == []
