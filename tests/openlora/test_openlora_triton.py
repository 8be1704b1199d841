"""The Triton kernels against double precision: on a GPU where there is one, else in Triton's interpreter.

TRITON_INTERPRET=1 runs them without a GPU; they need the package `triton`, which torch for CUDA brings along.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from openlora_models import (
    Served,
    assert_same_greedy,
    generate_alone,
    peft_model,
    prompt_of,
    request,
    run,
    tokens_of,
)  # fmt: skip
from transformers import AutoModelForCausalLM

from openledger.adapters.checks import AdapterDescription, AdapterWeights
from openledger.core.errors import InvalidInput
from openledger.openlora.attention import attend_piece
from openledger.openlora.lora import Run
from openledger.openlora.native import Rows, Weighing
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed"),
    pytest.mark.skipif(
        not (INTERPRETED or torch.cuda.is_available()), reason="there is no GPU, and TRITON_INTERPRET isn't 1"
    ),
]
graph_step_module = partial(importlib.import_module, "openledger.openlora.graph_step")  # imports Triton
DEVICE = "cpu" if INTERPRETED else "cuda"
FLOAT, HALF = torch.float32, torch.bfloat16
DTYPES = [FLOAT] if INTERPRETED else [FLOAT, HALF]
LENGTHS = (16, 70, 0) if INTERPRETED else (1, 15, 16, 17, 33, 70, 0, 300)
SIZES = [(4, 2, 20), (3, 1, 8)] if INTERPRETED else [(8, 4, 64), (4, 1, 80), (7, 1, 8), (8, 2, 128)]
TOLERANCE = {FLOAT: 2e-5, HALF: 2e-2}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def _kernels() -> Any:
    from openledger.openlora.triton_kernels import TritonKernels

    return TritonKernels()


def _random(*shape: int, dtype: torch.dtype = FLOAT) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


class TestAttention:
    @pytest.mark.parametrize(("heads", "kv_heads", "size"), SIZES)
    @pytest.mark.parametrize("splits", [1, 4])
    @pytest.mark.parametrize("window", [None, 7, 40])
    def test_equals_torch(
        self, heads: int, kv_heads: int, size: int, splits: int, window: int | None, dtype: torch.dtype
    ) -> None:
        self._compare(heads, kv_heads, size, dtype, splits, Weighing(scale=size**-0.5, window=window))

    @pytest.mark.parametrize("splits", [1, 4])
    def test_softcap_and_sinks(self, splits: int, dtype: torch.dtype) -> None:
        torch.manual_seed(1)
        sinks = _random(4) * 3
        self._compare(4, 2, 24, dtype, splits, Weighing(scale=1.0, softcap=5.0, sinks=sinks))
        self._compare(4, 2, 24, dtype, splits, Weighing(scale=2.0, sinks=sinks, window=9))

    def _compare(
        self, heads: int, kv_heads: int, size: int, dtype: torch.dtype, splits: int, weighing: Weighing
    ) -> None:
        """Blocks lie far from order; what no row may look at holds NaN."""
        torch.manual_seed(0)
        longest = max(-(-length // 16) for length in LENGTHS)
        tables = torch.randperm(len(LENGTHS) * longest).view(len(LENGTHS), -1).to(torch.int32)
        keys = torch.full((tables.numel(), kv_heads, size, 16), float("nan"), dtype=dtype, device=DEVICE)
        values = torch.full((tables.numel(), kv_heads, 16, size), float("nan"), dtype=dtype, device=DEVICE)
        key, value = (_random(sum(LENGTHS), kv_heads, size, dtype=dtype) for _ in range(2))
        slots = [int(t[at // 16]) * 16 + at % 16 for t, n in zip(tables, LENGTHS, strict=True) for at in range(n)]
        _kernels().store(key, value, keys, values, torch.tensor(slots, device=DEVICE))
        query_HTd = _random(len(LENGTHS), heads, size, dtype=dtype).transpose(0, 1)
        out_THd = torch.full((len(LENGTHS), heads, size), float("nan"), dtype=dtype, device=DEVICE)
        rows = Rows(
            tables=tables.to(DEVICE),
            row_tables=torch.arange(len(LENGTHS), dtype=torch.int32, device=DEVICE),
            lengths=torch.tensor(LENGTHS, dtype=torch.int32, device=DEVICE),
        )
        _kernels().attend(query_HTd, keys, values, rows, out_THd, weighing, splits=splits)
        begin = 0
        for row, length in enumerate(LENGTHS):
            seen = slice(begin, begin + length)
            begin += length
            if length == 0:
                assert not out_THd[row].any()
                continue
            expected = attend_piece(
                query_HTd[None, :, row : row + 1].double().cpu(),
                key[None, seen].double().cpu().transpose(1, 2),
                value[None, seen].double().cpu().transpose(1, 2),
                length - 1,
                Weighing(
                    scale=weighing.scale, window=weighing.window, softcap=weighing.softcap,
                    sinks=None if weighing.sinks is None else weighing.sinks.double().cpu(),
                ),
            )[0]  # fmt: skip
            torch.testing.assert_close(
                out_THd[row].double().cpu(), expected.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
            )


class TestSmallOperations:
    def test_norms(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        x, delta, norm = _random(5, 50, dtype=dtype), _random(5, 50, dtype=dtype), _random(50)
        total = (x.float() + delta.float()).to(dtype)
        for added in (delta, None):
            got = _kernels().add_norm(x, added, norm, 1e-5)  # the second time of the sum
            assert torch.equal(x, total)
            wide = total.double()
            expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.double()
            torch.testing.assert_close(got.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    def test_gate(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        both = _random(3, 2 * 1100, dtype=dtype)
        gate, up = both.double().chunk(2, -1)
        torch.testing.assert_close(
            _kernels().silu_gate(both).double(), gate * torch.sigmoid(gate) * up,
            rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype],
        )  # fmt: skip

    @pytest.mark.parametrize("normed", [False, True])
    def test_rotation_leaves_queries_in_place_and_keys_and_values_in_their_slots(
        self, normed: bool, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(0)
        heads, kv_heads, size = 4, 2, 24
        qkv = _random(3, (heads + 2 * kv_heads) * size, dtype=dtype)
        before = qkv.double().view(3, -1, size)
        angles = torch.rand(3, size // 2, device=DEVICE) * 6
        keys = torch.zeros(4, kv_heads, size, 16, dtype=dtype, device=DEVICE)
        values = torch.zeros(4, kv_heads, 16, size, dtype=dtype, device=DEVICE)
        norms = (_random(size), _random(size)) if normed else None
        slots = [35, -1, 0]
        _kernels().rotate_and_store(
            qkv, angles.cos(), angles.sin(), norms, 1e-6, keys, values, torch.tensor(slots, device=DEVICE), heads
        )
        if norms is not None:
            root = (before.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
            scaled = [before[:, :heads] / root[:, :heads] * norms[0].double()]
            rest = slice(heads, heads + kv_heads)
            scaled += [before[:, rest] / root[:, rest] * norms[1].double(), before[:, heads + kv_heads :]]
            before = torch.cat(scaled, 1)
        low, high = before.chunk(2, -1)
        cos, sin = angles.double().cos()[:, None], angles.double().sin()[:, None]
        rotated = torch.cat([low * cos - high * sin, high * cos + low * sin], -1)
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(qkv.double().view(3, -1, size)[:, :heads], rotated[:, :heads], **close)
        for row, slot in enumerate(slots):
            if slot >= 0:
                key = keys[slot // 16, :, :, slot % 16].double()
                torch.testing.assert_close(key, rotated[row, heads : heads + kv_heads], **close)
                value = values[slot // 16, :, slot % 16].double()
                torch.testing.assert_close(value, before[row, heads + kv_heads :], **close)
        assert int((keys != 0).any((1, 2)).sum()) == 2


def _weights(ranks: dict[str, int]) -> AdapterWeights:
    """A of `[rank, 40]`, B of `[56, rank]`."""
    factors = {module: (torch.randn(rank, 40), torch.randn(56, rank), 0.5) for module, rank in ranks.items()}
    description = AdapterDescription(folder="", digest="", ranks={}, num_parameters=0, card=None)
    return AdapterWeights(description=description, factors=factors)


class TestProducts:
    def _products(self, dtype: torch.dtype, modules: Sequence[str] = ("x", "y")) -> Any:
        from openledger.openlora.lora_triton import TritonProducts

        return TritonProducts(_kernels(), modules, dtype, torch.device(DEVICE))

    @pytest.mark.parametrize("rows", [19, 300])
    @pytest.mark.parametrize("same", [True, False])
    def test_equal_the_reference_run_by_run(self, rows: int, same: bool, dtype: torch.dtype) -> None:
        """Ranks that fill no register and one over a chunk, an adapter without the module, rows under none, and under
        an ensemble of two; adapters kept in the rows' type or not."""
        torch.manual_seed(0)
        kept = dtype if same else {FLOAT: HALF, HALF: FLOAT}[dtype]
        if INTERPRETED:
            kept = FLOAT
        products = self._products(kept)
        adapters = {name: _weights({"x": rank}) for name, rank in {"a": 8, "b": 3, "c": 70}.items()}
        adapters["without"] = _weights({"y": 4})
        for name, weights in adapters.items():
            products.install(name, weights)
        runs = [Run(0, 1, "a"), Run(1, 5, "c", -0.7), Run(5, 8, "b"), Run(5, 8, "a", 0.3), Run(9, rows, "b")]
        runs.append(Run(8, 9, "without"))
        x, y = _random(rows, 40, dtype=dtype), _random(rows, 56, dtype=dtype)
        expected = y.double()
        for each in runs[:-1]:
            a_RI, b_OR, scale = adapters[each.digest].factors["x"]
            a_RI, b_RO = (factor.to(DEVICE, kept).double() for factor in (a_RI, b_OR.t() * scale))
            own = slice(each.begin, each.end)
            expected[own] += each.weight * x[own].double() @ a_RI.t() @ b_RO
        products.plan(runs).add("x", x, y)
        error = (y.double() - expected).norm() / expected.norm()
        assert error < (2e-2 if dtype is HALF else 1e-5)

    def test_modules_side_by_side(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        products = self._products(dtype, ("x", "y", "z"))
        weights = _weights({"x": 4, "z": 2})
        products.install("a", weights)
        plan = products.plan([Run(0, 3, "a")])
        x, y = _random(3, 40, dtype=dtype), _random(3, 3 * 56, dtype=dtype)
        expected = y.double()
        products.kernels.add_lora(x, y, plan._tiles()[0], 0, (56, 56, 56))
        for place, module in enumerate(("x", "y", "z")):
            if module in weights.factors:
                a_RI, b_OR, scale = weights.factors[module]
                a_RI, b_RO = (factor.to(DEVICE, dtype).double() for factor in (a_RI, b_OR.t() * scale))
                expected[:, 56 * place : 56 * place + 56] += x.double() @ a_RI.t() @ b_RO
        torch.testing.assert_close(y.double(), expected, rtol=2e-5 if dtype is FLOAT else 2e-2, atol=TOLERANCE[dtype])

    def test_a_slot_is_used_again_and_more_are_made(self) -> None:
        """The table grows; plans made before it are not used after."""
        products = self._products(FLOAT)
        names = [str(number) for number in range(70)]
        weights = {name: _weights({"x": 2}) for name in names}
        for name in names[:64]:
            products.install(name, weights[name])
        old = products.plan([Run(0, 1, "3")])
        assert old.table is products.table
        products.remove("5")
        for name in names[64:]:
            products.install(name, weights[name])
        assert len(products.table) == 128
        assert products.plan([Run(0, 1, "3")]).table is products.table
        assert sorted(products.resident()) == sorted({*names} - {"5"})
        for name in ("3", "64", "69"):
            x, y = _random(1, 40), torch.zeros(1, 56, device=DEVICE)
            products.plan([Run(0, 1, name)]).add("x", x, y)
            a_RI, b_OR, scale = (
                each.to(DEVICE) if torch.is_tensor(each) else each for each in weights[name].factors["x"]
            )
            torch.testing.assert_close(y, x @ a_RI.t() @ b_OR.t() * scale, rtol=1e-4, atol=1e-4)

    def test_an_adapter_that_comes_back_to_another_slot_is_planned_anew(self) -> None:
        """The same runs as before, while another adapter has what was its slot."""
        torch.manual_seed(0)
        products, runs, weights = self._products(FLOAT), [Run(0, 1, "a")], _weights({"x": 2})
        products.install("a", weights)
        x, before, after = _random(1, 40), torch.zeros(1, 56, device=DEVICE), torch.zeros(1, 56, device=DEVICE)
        products.plan(runs).add("x", x, before)
        slot = products._adapters["a"].slot
        products.remove("a")
        products.install("b", _weights({"x": 2}))
        assert products._adapters["b"].slot == slot
        products.install("a", weights)
        products.plan(runs).add("x", x, after)
        assert before.any()
        assert torch.equal(after, before)

    def test_an_adapter_that_finds_no_memory_takes_no_slot(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither where its factors find none, nor where a larger table doesn't."""
        products, weights = self._products(FLOAT), _weights({"x": 2})

        def full(*_: Any) -> None:
            raise torch.OutOfMemoryError

        with monkeypatch.context() as patched:
            patched.setattr(products, "_packed", full)
            with pytest.raises(torch.OutOfMemoryError):
                products.install("a", weights)
        for number in range(64):
            products.install(str(number), weights)
        assert len(products.table) == 64
        with monkeypatch.context() as patched:
            patched.setattr(torch, "zeros_like", full)
            with pytest.raises(torch.OutOfMemoryError):
                products.install("64", weights)
        assert len(products.table) == 64
        assert "64" not in products.resident()
        products.remove("63")
        products.install("64", weights)
        assert len(products.table) == 64
        assert sorted(each.slot for each in products._adapters.values()) == list(range(64))


class TestEngine:
    """All that a processor's engine is tested for by `test_openlora_against_peft` holds here too: it runs on the GPU
    where there is one. Here is what only a GPU's engine has."""

    def _engine(self, served: Served, **options: Any) -> TorchEngine:
        engine = TorchEngine(served.base, EngineOptions(max_batch=8, kernels="triton", **options))
        for name, folder in served.folders.items():
            engine.load(served.digests[name], folder)
        return engine

    def test_says_which_path_is_live(self, served: Served) -> None:
        told = self._engine(served).describe()
        assert told["lora_path"].startswith("kernels: triton")
        assert told["decode_path"] == ("kernel by kernel" if INTERPRETED else "one graph")

    def test_a_graph_that_does_not_compile_is_given_up(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        from triton.runtime.errors import OutOfResources

        from openledger.openlora.triton_kernels import TritonKernels

        def fail(*_: Any) -> None:
            raise OutOfResources(1 << 20, 1 << 17, "shared memory")

        monkeypatch.setattr(TritonKernels, "silu_gate", fail)
        told = self._engine(served).describe()
        assert told["lora_path"].startswith("kernels: triton")
        assert told["decode_path"] == "module by module"

    def test_an_answer_under_an_adapter_beside_others_is_pefts(self, served: Served) -> None:
        engine, names = self._engine(served), ("one", None, "two")
        asked = [
            request(str(number), prompt_of(5 + 9 * number), served.digests[name] if name else "", max_tokens=4)
            for number, name in enumerate(names)
        ]
        events = run(engine, *asked)
        for number, name in enumerate(names):
            expected = generate_alone(peft_model(served, name), prompt_of(5 + 9 * number), 4)
            assert_same_greedy(tokens_of(events[str(number)]), expected)

    def test_merges_nothing(self, served: Served) -> None:
        if INTERPRETED:
            pytest.skip("only a GPU refuses to merge")
        with pytest.raises(InvalidInput) as caught:
            self._engine(served).merge(served.digests["one"])
        assert caught.value.code == "merging_unsupported"

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a GPU")
    def test_a_graph_serves_adapters_that_come_later(self, served: Served) -> None:
        """Graphs are captured with one adapter here; then others answer through them, and in another order."""
        engine = TorchEngine(served.base, EngineOptions(max_batch=8))
        engine.load(served.digests["one"], served.folders["one"])
        run(engine, *(request(str(n), prompt_of(9, n), served.digests["one"]) for n in range(2)))
        graphs = engine._model._graphs
        assert graphs is not None
        assert graphs.num_graphs > 0
        for name in ("two", "three"):
            engine.load(served.digests[name], served.folders[name])
        asked = [request(name, prompt_of(9, 7), served.digests[name]) for name in ("three", "two")]
        events = run(engine, *asked)
        for name in ("three", "two"):
            assert_same_greedy(tokens_of(events[name]), generate_alone(peft_model(served, name), prompt_of(9, 7), 12))

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs need a GPU")
    def test_steps_in_graphs_give_what_modules_give(self, served: Served) -> None:
        engines = [self._engine(served), self._engine(served)]
        engines[1]._model._graphs = None
        asked = [
            request(str(n), prompt_of(20 + n), ("", *served.digests.values())[n % 4], max_tokens=20, logprobs=0)
            for n in range(8)
        ]
        by_graphs, by_modules = (run(engine, *asked) for engine in engines)
        for each in asked:
            assert tokens_of(by_graphs[each.request_id]) == tokens_of(by_modules[each.request_id])


class _Recorded:
    """In the place of a CUDA graph, without a GPU: computes once more."""

    def __init__(self, compute: Callable[[], object]):
        self.replay = compute


@pytest.mark.skipif(not INTERPRETED, reason="where there is a GPU graphs are captured")
class TestWhichStepsHaveAGraph:
    @pytest.fixture
    def graphs(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> Any:
        from openledger.openlora.graph_step import GraphStep

        monkeypatch.setattr(GraphStep, "_record", lambda _, compute: _Recorded(compute))
        base = AutoModelForCausalLM.from_pretrained(served.base.path)
        weighings = {number: Weighing(scale=1.0) for number in range(base.config.num_hidden_layers)}
        graphs = GraphStep(base, _kernels(), weighings, capture=False)
        graphs._capture = True
        return graphs

    def _ask(self, graphs: Any, *key: Any) -> torch.Tensor:
        return graphs._run(key, lambda: torch.full((key[0], len(graphs._head.weight)), float(key[1])))

    def test_the_second_of_a_size_and_graphs_of_one_size_share_their_logits(self, graphs: Any) -> None:
        for blocks in (16, 32):
            first = self._ask(graphs, 4, blocks, 0, False)
            assert graphs.num_graphs == (blocks == 32)
            second = self._ask(graphs, 4, blocks, 0, False)
            assert torch.equal(first, second)
        assert graphs.num_graphs == 2
        assert second.data_ptr() == self._ask(graphs, 4, 16, 0, False).data_ptr()
        assert second.unique().tolist() == [16.0]  # good until the next call
        assert second.dtype is torch.float32

    def test_the_one_not_used_for_longest_goes(self, graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(graph_step_module(), "MAX_GRAPHS", 2)
        for blocks in (16, 16, 32, 32, 16, 64, 64):
            self._ask(graphs, 4, blocks, 0, False)
        assert [blocks for _, blocks, _, _ in graphs._graphs] == [16, 64]

    def test_one_that_finds_no_memory_is_not_tried_again(self, graphs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        tried = []

        def full(graphs: Any, compute: Callable[[], object]) -> None:
            tried.append(compute)
            graphs._pool = "lost"
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(type(graphs), "_record", full)
        told = [self._ask(graphs, 4, 16, 0, False) for _ in range(4)]
        assert all(torch.equal(each, told[0]) for each in told)
        assert len(tried) == 1
        assert graphs.num_graphs == 0
        assert graphs._pool is None
        monkeypatch.setattr(type(graphs), "_record", lambda _, compute: _Recorded(compute))
        for _ in range(2):
            self._ask(graphs, 8, 16, 0, False)
        assert graphs.num_graphs == 1

    def test_answers_of_replayed_steps_are_pefts_and_small_ranks_share_a_graph(
        self, served: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from openledger.openlora.graph_step import GraphStep

        monkeypatch.setattr(GraphStep, "_record", lambda _, compute: _Recorded(compute))
        engine = TorchEngine(served.base, EngineOptions(max_batch=2, kernels="triton"))
        graphs: Any = engine._model._graphs
        graphs._capture = True
        ranks = set()
        for name in ("one", "two"):
            engine.load(served.digests[name], served.folders[name])
            ranks.add(engine._lora._products.max_rank)  # type: ignore[attr-defined]
            events = run(engine, request("r", prompt_of(9), served.digests[name], max_tokens=4))
            assert_same_greedy(tokens_of(events["r"]), generate_alone(peft_model(served, name), prompt_of(9), 4))
        assert ranks == {4, 8}
        assert [key[:3] for key in graphs._graphs] == [(16, 16, 16), (1, 16, 16)]  # a prompt's and a token's
