"""A model family is admitted by what it computes, or refused by its name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from openlora_models import FAMILIES, OTHERS, make_base

from openledger.core.errors import InvalidInput
from openledger.openlora import attention, native
from openledger.openlora.packed_model import PackedModel


class TestFamilies:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("kernels", ["auto", "torch"])
    def test_admitted(self, tmp_path: Path, family: str, kernels: str) -> None:
        """Its packed logits equal its own, in pieces and token by token: `PackedModel` raises otherwise."""
        assert PackedModel(make_base(tmp_path, family), native.load(kernels)).bytes_per_token > 0

    @pytest.mark.parametrize("family", OTHERS)
    def test_refused_by_name(self, tmp_path: Path, family: str) -> None:
        with pytest.raises(InvalidInput, match=family) as caught:
            PackedModel(make_base(tmp_path, family))
        assert caught.value.code == "unsupported_model"

    def test_bytes_of_a_token(self, tmp_path: Path) -> None:
        """3 layers, 2 key/value heads of 8, keys and values, 4 bytes."""
        assert PackedModel(make_base(tmp_path)).bytes_per_token == 3 * 2 * 8 * 2 * 4


class TestSilentDifference:
    """A model that accepts the function and computes something else must not pass."""

    def _refusal(self, base: Any) -> str:
        with pytest.raises(InvalidInput) as caught:
            PackedModel(base)
        return caught.value.message

    def test_wrong_scaling(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = attention.packed_attention

        def wrong(*arguments: Any, scaling: float, **options: Any) -> Any:
            return plain(*arguments, scaling=scaling * 1.01, **options)

        monkeypatch.setattr(attention, "packed_attention", wrong)
        assert "differ" in self._refusal(make_base(tmp_path))

    def test_a_layer_that_does_not_call(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = attention.packed_attention

        def deaf(module: Any, query: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            if module.layer_idx == 1:
                return query.transpose(1, 2), None
            return plain(module, query, *arguments, **options)

        monkeypatch.setattr(attention, "packed_attention", deaf)
        assert "called attention 2 times" in self._refusal(make_base(tmp_path))

    def test_later_positions_are_hidden(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(attention, "_mask", lambda start, end, *_: torch.ones(end - start, end).bool())
        assert "differ" in self._refusal(make_base(tmp_path))
