"""The products of many adapters against the plain one, row by row; both ways of computing them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from openledger.adapters.checks import AdapterDescription, AdapterWeights
from openledger.core.errors import InvariantBroken
from openledger.openlora import lora, native
from openledger.openlora.kv import KeyValueBlocks
from openledger.openlora.lora import LoraLayers, NativeProducts, Products
from openledger.openlora.lora_torch import TorchProducts
from openledger.openlora.packing import PackedStep, Piece, pack

RANKS = {"a": 1, "b": 4, "c": 7}
WAYS = ["torch", *native.available()]


def _products(way: str, dtype: torch.dtype = torch.float32) -> Products:
    kernels = native.load(way)
    return TorchProducts(dtype) if kernels is None else NativeProducts(kernels, dtype)


def _weights(rank: int, modules: tuple[str, ...]) -> AdapterWeights:
    generator = torch.Generator().manual_seed(rank)
    factors = {
        name: (torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator), 0.5)
        for name in modules
    }
    description = AdapterDescription(folder="", digest="", ranks={}, num_parameters=0, card=None)
    return AdapterWeights(description=description, factors=factors)


def _layers(way: str = "torch") -> tuple[nn.Module, LoraLayers]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"x": nn.Linear(6, 5), "y": nn.Linear(6, 5)}).requires_grad_(False)
    layers = LoraLayers(model, _products(way))
    for name, rank in RANKS.items():
        layers.install(name, _weights(rank, ("x",) if name == "b" else ("x", "y")))
    return model, layers


def _step(rows: list[tuple[str, int]]) -> PackedStep:
    kv = KeyValueBlocks(4 * len(rows))
    return pack([Piece(token_ids=[1] * n, blocks=kv.allocate(-(-n // 16)), adapter=name) for name, n in rows], kv)


def _expected(base: nn.Linear, x_TI: torch.Tensor, step: PackedStep, module: str) -> torch.Tensor:
    rows = base(x_TI)
    for segment in step.segments:
        adapter = segment.piece.adapter
        if adapter and not (adapter == "b" and module == "y"):
            a_RI, b_OR, scale = _weights(RANKS[adapter], ("x",) if adapter == "b" else ("x", "y")).factors[module]
            rows[segment.begin : segment.end] += scale * (x_TI[segment.begin : segment.end] @ a_RI.t()) @ b_OR.t()
    return rows


_ROWS = st.lists(
    st.tuples(st.sampled_from(["", "a", "b", "c"]), st.sampled_from([1, 2, 3, 4, 18])), min_size=1, max_size=12
)


@pytest.mark.parametrize("way", WAYS)
class TestProduct:
    @given(rows=_ROWS)
    def test_equals_row_by_row(self, way: str, rows: list[tuple[str, int]]) -> None:
        model, layers = _layers(way)
        step = _step(rows)
        layers.use(step)
        x_TI = torch.randn(step.num_rows, 6, generator=torch.Generator().manual_seed(1))
        for module in ("x", "y"):
            wrapped = model.get_submodule(module)
            torch.testing.assert_close(wrapped(x_TI), _expected(wrapped.base, x_TI, step, module), atol=1e-5, rtol=1e-5)

    def test_an_adapter_installed_later_may_have_more_modules(self, way: str) -> None:
        model = nn.ModuleDict({"x": nn.Linear(6, 5), "y": nn.Linear(6, 5)}).requires_grad_(False)
        layers = LoraLayers(model, _products(way))
        layers.install("b", _weights(RANKS["b"], ("x",)))
        layers.install("a", _weights(RANKS["a"], ("x", "y")))
        step = _step([("a", 1), ("b", 2)])
        layers.use(step)
        x_TI = torch.ones(3, 6)
        for module in ("x", "y"):
            wrapped = model.get_submodule(module)
            torch.testing.assert_close(wrapped(x_TI), _expected(wrapped.base, x_TI, step, module), atol=1e-5, rtol=1e-5)

    def test_a_layer_that_gets_other_rows_is_a_bug(self, way: str) -> None:
        model, layers = _layers(way)
        layers.use(_step([("a", 2)]))
        with pytest.raises(InvariantBroken):
            model.get_submodule("x")(torch.zeros(3, 6))

    def test_removed_and_installed_anew_is_not_the_old(self, way: str) -> None:
        model, layers = _layers(way)
        step = _step([("a", 1), ("c", 1)])
        layers.use(step)
        x_TI = torch.ones(2, 6)
        before = model.get_submodule("x")(x_TI)
        layers.remove("a")
        layers.install("a", _weights(2, ("x",)))
        layers.use(step)
        after = model.get_submodule("x")(x_TI)
        assert not torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])

    def test_a_pass_that_gives_way_does_so_within_a_large_layer(
        self, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lora, "_PART_PRODUCTS", 6 * 3 * 2)
        monkeypatch.setattr(lora, "_PART_LEAST", 1)
        model, layers = _layers(way)
        step = _step([("a", 2), ("b", 1)])
        calls: list[None] = []
        layers.use(replace(step, between=lambda: calls.append(None)))
        x_TI = torch.randn(3, 6)
        for module in ("x", "y"):
            calls.clear()
            wrapped = model.get_submodule(module)
            torch.testing.assert_close(wrapped(x_TI), _expected(wrapped.base, x_TI, step, module), atol=1e-5, rtol=1e-5)
            assert len(calls) == 3  # before two, two and one of its outputs

    def test_what_was_aimed_at_is_so_again_after_an_interruption(self, way: str) -> None:
        model, layers = _layers(way)
        step = _step([("a", 1), ("c", 1)])
        layers.use(step)
        wrapped, x_TI = model.get_submodule("x"), torch.ones(2, 6)
        before = wrapped(x_TI)
        with layers.set_aside():
            layers.use(_step([("b", 3)]))
            wrapped(torch.ones(3, 6))
        assert torch.equal(wrapped(x_TI), before)


class TestResidency:
    def test_bytes_are_those_of_the_factors(self) -> None:
        _, layers = _layers()
        assert layers.num_bytes() == 4 * (2 * (6 + 5) * (1 + 7) + (6 + 5) * 4)

    @pytest.mark.skipif(not native.available(), reason="no kernels and no compiler")
    def test_a_real_adapter_takes_no_more_than_its_file(self) -> None:
        """Rank 12, features multiples of 32: nothing is padded, beside the table of where factors lie."""
        factors = {str(n): (torch.ones(12, 64), torch.ones(96, 12), 1.0) for n in range(4)}
        description = AdapterDescription(folder="", digest="", ranks={}, num_parameters=0, card=None)
        for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
            products = _products("auto", dtype)
            products.install("a", AdapterWeights(description=description, factors=factors))
            assert products.num_bytes() == 4 * 12 * (64 + 96) * size + 4 * 4 * 8

    def test_removed_is_gone(self) -> None:
        _, layers = _layers()
        layers.remove("a")
        assert layers.resident() == ("b", "c")
