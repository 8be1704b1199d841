"""The Triton kernels against double precision: on a GPU where there is one, else in Triton's interpreter.

TRITON_INTERPRET=1 runs them without a GPU; they need the package `triton`, which torch for CUDA brings along.
"""

import importlib.util
import os

import pytest
import torch

from openledger.openlora.attention import attend_piece
from openledger.openlora.native import Rows, Weighing

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not installed"),
    pytest.mark.skipif(
        not (INTERPRETED or torch.cuda.is_available()), reason="there is no GPU, and TRITON_INTERPRET isn't 1"
    ),
]
DEVICE = "cpu" if INTERPRETED else "cuda"
FLOAT, HALF = torch.float32, torch.bfloat16
DTYPES = [FLOAT] if INTERPRETED else [FLOAT, HALF]
LENGTHS = (1, 15, 16, 17, 33, 70, 0, 300)
TOLERANCE = {FLOAT: 2e-5, HALF: 2e-2}


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def _kernels():
    from openledger.openlora.triton_kernels import TritonKernels

    return TritonKernels()


def _random(*shape: int, dtype: torch.dtype = FLOAT) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


class TestAttention:
    @pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 4, 64), (4, 1, 80), (7, 1, 8)])
    @pytest.mark.parametrize("splits", [1, 4])
    @pytest.mark.parametrize("window", [None, 7, 40])
    def test_equals_torch(
        self, heads: int, kv_heads: int, size: int, splits: int, window: int | None, dtype: torch.dtype
    ) -> None:
        self._compare(heads, kv_heads, size, dtype, splits, Weighing(scale=size**-0.5, window=window))

    @pytest.mark.parametrize("splits", [1, 4])
    def test_softcap_and_sinks(self, splits: int, dtype: torch.dtype) -> None:
        torch.manual_seed(1)
        sinks = _random(8) * 3
        self._compare(8, 4, 64, dtype, splits, Weighing(scale=1.0, softcap=5.0, sinks=sinks))
        self._compare(8, 4, 64, dtype, splits, Weighing(scale=2.0, sinks=sinks, window=9))

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
