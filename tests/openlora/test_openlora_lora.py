"""The packed product against the plain one, row by row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openledger.adapters.checks import AdapterDescription, AdapterWeights
from openledger.core.errors import InvariantBroken
from openledger.openlora.kv import KeyValueSlots
from openledger.openlora.lora import LoraLayers
from openledger.openlora.packing import PackedStep, Piece, pack

RANKS = {"a": 1, "b": 4, "c": 7}


def _weights(rank: int, modules: tuple[str, ...]) -> AdapterWeights:
    generator = torch.Generator().manual_seed(rank)
    factors = {
        name: (torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator), 0.5)
        for name in modules
    }
    description = AdapterDescription(folder="", digest="", ranks={}, num_parameters=0, card=None)
    return AdapterWeights(description=description, factors=factors)


def _layers() -> tuple[nn.Module, LoraLayers]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"x": nn.Linear(6, 5), "y": nn.Linear(6, 5)}).requires_grad_(False)
    layers = LoraLayers(model)
    for name, rank in RANKS.items():
        layers.install(name, _weights(rank, ("x",) if name == "b" else ("x", "y")))
    return model, layers


def _expected(base: nn.Linear, x_TI: torch.Tensor, step: PackedStep, module: str) -> torch.Tensor:
    rows = base(x_TI)
    for segment in step.segments:
        adapter = segment.piece.adapter
        if adapter and not (adapter == "b" and module == "y"):
            a_RI, b_OR, scale = _weights(RANKS[adapter], ("x",) if adapter == "b" else ("x", "y")).factors[module]
            rows[segment.begin : segment.end] += scale * (x_TI[segment.begin : segment.end] @ a_RI.t()) @ b_OR.t()
    return rows


_ROWS = st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(1, 4)), min_size=1, max_size=12)


class TestProduct:
    @given(rows=_ROWS)
    def test_equals_row_by_row(self, rows: list[tuple[str, int]]) -> None:
        model, layers = _layers()
        kv = KeyValueSlots(len(rows), 8)
        step = pack([Piece(token_ids=[1] * n, slot=slot, adapter=name) for slot, (name, n) in enumerate(rows)], kv)
        layers.use(step)
        x_TI = torch.randn(step.num_rows, 6, generator=torch.Generator().manual_seed(1))
        for module in ("x", "y"):
            wrapped = model.get_submodule(module)
            torch.testing.assert_close(wrapped(x_TI), _expected(wrapped.base, x_TI, step, module), atol=1e-5, rtol=1e-5)

    def test_another_input_of_the_same_shape_is_not_mixed_up(self) -> None:
        """Rows gathered for one input are kept for layers that share it, and for no other."""
        model, layers = _layers()
        pieces = [Piece(token_ids=[1], slot=slot, adapter=name) for slot, name in enumerate("aabc")]
        step = pack(pieces, KeyValueSlots(4, 8))
        layers.use(step)
        wrapped = model.get_submodule("x")
        for seed in range(4):
            x_TI = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
            torch.testing.assert_close(wrapped(x_TI), _expected(wrapped.base, x_TI, step, "x"), atol=1e-5, rtol=1e-5)

    def test_a_layer_that_gets_other_rows_is_a_bug(self) -> None:
        model, layers = _layers()
        layers.use(pack([Piece(token_ids=[1, 2], slot=0, adapter="a")], KeyValueSlots(1, 8)))
        with pytest.raises(InvariantBroken):
            model.get_submodule("x")(torch.zeros(3, 6))


class TestResidency:
    def test_bytes_are_those_of_the_factors(self) -> None:
        _, layers = _layers()
        assert layers.num_bytes() == 4 * (2 * (6 + 5) * (1 + 7) + (6 + 5) * 4)

    def test_removed_is_gone(self) -> None:
        _, layers = _layers()
        layers.remove("a")
        assert layers.resident() == ("b", "c")

    def test_removed_and_installed_anew_is_not_the_packed_old(self) -> None:
        model, layers = _layers()
        step = pack(
            [Piece(token_ids=[1], slot=slot, adapter=name) for slot, name in enumerate("ac")], KeyValueSlots(2, 8)
        )
        layers.use(step)
        x_TI = torch.ones(2, 6)
        before = model.get_submodule("x")(x_TI)
        layers.remove("a")
        layers.install("a", _weights(2, ("x",)))
        layers.use(step)
        after = model.get_submodule("x")(x_TI)
        assert not torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])
