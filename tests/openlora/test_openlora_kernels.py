"""Every instruction set that this machine has, and torch alone, against one reference in double precision."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from openlora_models import Served

from openledger.adapters.checks import StoredFactor
from openledger.core.errors import InvalidInput
from openledger.openlora import build_kernels, native
from openledger.openlora.attention import attend_piece
from openledger.openlora.native import Kernels, Rows, Weighing, packed_size
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

pytestmark = pytest.mark.skipif(not native.available(), reason="no kernels and no compiler")
FLOAT, HALF = torch.float32, torch.bfloat16


@pytest.fixture(params=list(native.available()) or ["none"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return native.available()[request.param]


def _packed(matrix_RN: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(packed_size(*matrix_RN.shape, dtype), dtype=dtype)
    native.load().pack([(StoredFactor.of(matrix_RN), False, 1.0, out.data_ptr())], dtype)
    return out


def _segments(fields: list[list[int]]) -> np.ndarray:
    """All of weight one."""
    return np.array([[*each, np.float64(1).view(np.int64)] for each in fields], np.int64)


class TestPack:
    @pytest.mark.parametrize("dtype", [FLOAT, HALF])
    @pytest.mark.parametrize(("rank", "size"), [(1, 16), (4, 64), (3, 33), (17, 5)])
    def test_both_factors_in_one_call_equal_the_layout_written_by_torch(
        self, dtype: torch.dtype, rank: int, size: int
    ) -> None:
        torch.manual_seed(0)
        a_RN, b_NR, scale = torch.randn(rank, size), torch.randn(size, rank), 0.37
        each = packed_size(rank, size, dtype)
        out = torch.full((2 * each,), 7.0, dtype=dtype)
        places = out.data_ptr(), out.data_ptr() + each * dtype.itemsize
        packing = [(StoredFactor.of(a_RN), False, 1.0, places[0]), (StoredFactor.of(b_NR), True, scale, places[1])]
        native.load().pack(packing, dtype)
        assert torch.equal(out, torch.cat([_laid_out(a_RN, dtype), _laid_out(b_NR.t() * scale, dtype)]))

    @pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
    def test_every_number_of_half_precision_is_read_as_torch_reads_it(self, stored: torch.dtype) -> None:
        """Zeros of both signs and numbers below the smallest normal one among them."""
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(stored)
        matrix_RN = every[torch.isfinite(every)].view(8, -1)
        assert torch.equal(_packed(matrix_RN, FLOAT), _laid_out(matrix_RN.float(), FLOAT))


def _laid_out(matrix_RN: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    chunk = 64 // dtype.itemsize
    padded = torch.nn.functional.pad(matrix_RN, (0, -matrix_RN.shape[1] % chunk)).to(dtype)
    chunks = padded.view(len(matrix_RN), -1, chunk).transpose(0, 1)
    if dtype is HALF:
        chunks = chunks.unflatten(2, (2, 16)).transpose(2, 3)
    return chunks.flatten()


class TestLora:
    @pytest.mark.parametrize(("size_in", "size_out"), [(64, 96), (100, 33), (6, 5), (16, 160), (32, 16)])
    @pytest.mark.parametrize("dtypes", [(FLOAT, FLOAT), (FLOAT, HALF), (HALF, HALF), (HALF, FLOAT)])
    def test_equals_the_reference(
        self, kernels: Kernels, size_in: int, size_out: int, dtypes: tuple[torch.dtype, torch.dtype]
    ) -> None:
        """Runs of 1 to 9 rows, ranks that fill no register and one over a slab, one row without adapter."""
        torch.manual_seed(0)
        x_dtype, w_dtype = dtypes
        runs = [(0, 1, 8), (1, 4, 3), (5, 14, 17), (14, 18, 1), (18, 19, 150)]
        x, before = torch.randn(19, size_in).to(x_dtype), torch.randn(19, size_out).to(x_dtype)
        y, expected, segments, held = before.clone(), before.double(), [], []
        for begin, end, rank in runs:
            a, b = torch.randn(rank, size_in) / 8, torch.randn(rank, size_out) / 8
            held += [_packed(a, w_dtype), _packed(b, w_dtype)]
            pointers = [part.data_ptr() for part in held[-2:]]
            segments.append([begin, end, *pointers, rank, w_dtype is HALF])
            a, b = a.to(w_dtype).double(), b.to(w_dtype).double()
            expected[begin:end] += x[begin:end].double() @ a.t() @ b * (-0.7 if rank == 17 else 1)
        table = _segments(segments)
        table.view(np.float64)[2, -1] = -0.7
        kernels.add_lora(x, y, table.ctypes.data, len(runs))
        tolerance = 1e-5 if x_dtype is FLOAT else 8e-3
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
        assert torch.equal(y[4], before[4])

    def test_rows_wider_than_the_matrix_are_left_alone(self, kernels: Kernels) -> None:
        a, b = _packed(torch.ones(2, 5), FLOAT), _packed(torch.ones(2, 7), FLOAT)
        x, y = torch.ones(3, 9)[:, :5], torch.zeros(3, 12)
        table = _segments([[0, 3, a.data_ptr(), b.data_ptr(), 2, 0]])
        kernels.add_lora(x, y[:, :7], table.ctypes.data, 1)
        assert torch.equal(y[:, :7], torch.full((3, 7), 10.0))
        assert torch.equal(y[:, 7:], torch.zeros(3, 5))

    def test_many_threads_at_once(self, kernels: Kernels) -> None:
        a, b = torch.randn(16, 64), torch.randn(16, 64)
        packed = [_packed(a, FLOAT), _packed(b, FLOAT)]
        table = _segments([[0, 8, packed[0].data_ptr(), packed[1].data_ptr(), 16, 0]])
        inputs = [torch.randn(8, 64) for _ in range(4)]
        outputs = [torch.zeros(8, 64) for _ in range(4)]

        def work(x: torch.Tensor, y: torch.Tensor) -> None:
            for _ in range(50):
                y.zero_()
                kernels.add_lora(x, y, table.ctypes.data, 1)

        threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, outputs, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for x, y in zip(inputs, outputs, strict=True):
            torch.testing.assert_close(y, x @ a.t() @ b, rtol=1e-4, atol=1e-4)


LENGTHS = (1, 15, 16, 17, 33, 70)


def _stored(kernels: Kernels, dtype: torch.dtype, kv_heads: int, size: int) -> tuple[torch.Tensor, ...]:
    """Sequences of LENGTHS, in blocks far from order, whose other positions hold NaN. Contents and storage."""
    longest = max(-(-length // 16) for length in LENGTHS)
    tables = torch.randperm(len(LENGTHS) * longest).view(len(LENGTHS), -1).to(torch.int32)
    keys = torch.full((tables.numel(), kv_heads, size, 16), float("nan"), dtype=dtype)
    values = torch.full((tables.numel(), kv_heads, 16, size), float("nan"), dtype=dtype)
    total = sum(LENGTHS)
    key, value = (torch.randn(total, kv_heads, size).to(dtype) for _ in range(2))
    slots = [int(table[at // 16]) * 16 + at % 16 for table, n in zip(tables, LENGTHS, strict=True) for at in range(n)]
    kernels.store(key, value, keys, values, torch.tensor(slots))
    return key, value, keys, values, tables


class TestAttention:
    @pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 4, 64), (4, 4, 16), (4, 1, 80), (7, 1, 8), (6, 2, 12)])
    @pytest.mark.parametrize("dtype", [FLOAT, HALF])
    @pytest.mark.parametrize("window", [None, 7, 16])
    def test_equals_torch(
        self, kernels: Kernels, heads: int, kv_heads: int, size: int, dtype: torch.dtype, window: int | None
    ) -> None:
        self._compare(kernels, heads, kv_heads, size, dtype, Weighing(scale=size**-0.5, window=window))

    def test_softcap_and_sinks(self, kernels: Kernels) -> None:
        torch.manual_seed(1)
        sinks = torch.randn(8) * 3
        self._compare(kernels, 8, 4, 64, FLOAT, Weighing(scale=1.0, softcap=5.0, sinks=sinks))
        self._compare(kernels, 8, 4, 64, FLOAT, Weighing(scale=2.0, sinks=sinks, window=9))

    def test_scores_far_apart_do_not_overflow(self, kernels: Kernels) -> None:
        self._compare(kernels, 4, 2, 16, FLOAT, Weighing(scale=300.0))

    def _compare(
        self, kernels: Kernels, heads: int, kv_heads: int, size: int, dtype: torch.dtype, weighing: Weighing
    ) -> None:
        torch.manual_seed(0)
        key, value, keys, values, tables = _stored(kernels, dtype, kv_heads, size)
        query_HTd = torch.randn(len(LENGTHS), heads, size).to(dtype).transpose(0, 1)
        rows = Rows(
            tables=tables,
            row_tables=torch.arange(len(LENGTHS), dtype=torch.int32),
            lengths=torch.tensor(LENGTHS, dtype=torch.int32),
        )
        out_THd = torch.empty(len(LENGTHS), heads, size, dtype=dtype)
        kernels.attend(query_HTd, keys, values, rows, out_THd, weighing)
        begin = 0
        for row, length in enumerate(LENGTHS):
            seen = [x[begin : begin + length].transpose(0, 1)[None].float() for x in (key, value)]
            expected = attend_piece(query_HTd[None, :, row : row + 1].float(), *seen, length - 1, weighing)
            tolerance = 2e-5 if dtype is FLOAT else 2e-2
            torch.testing.assert_close(out_THd[row : row + 1].float(), expected, rtol=tolerance, atol=tolerance)
            begin += length

    def test_what_is_not_finite_is_told(self, kernels: Kernels) -> None:
        keys, values = torch.ones(1, 1, 8, 16), torch.ones(1, 1, 16, 8)
        keys[0, 0, 0, 2] = float("nan")
        rows = Rows(
            tables=torch.zeros(1, 1, dtype=torch.int32),
            row_tables=torch.zeros(2, dtype=torch.int32),
            lengths=torch.tensor([2, 3], dtype=torch.int32),
        )
        out = torch.empty(2, 1, 8)
        kernels.attend(torch.ones(1, 2, 8), keys, values, rows, out, Weighing(scale=1.0))
        assert torch.isfinite(out[0]).all()
        assert torch.isnan(out[1]).all()


class TestLoading:
    def test_the_last_is_the_best_and_is_taken(self) -> None:
        assert native.load("auto") is list(native.available().values())[-1]
        assert native.load("torch") is None

    def test_one_that_is_not_there_is_told(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            native.load("avx4096")
        assert (caught.value.code, caught.value.param) == ("unknown_kernels", "kernels")
        assert "baseline" in caught.value.message

    def test_without_a_compiler_torch_computes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(build_kernels, "LIBRARY", "nothing.so")
        monkeypatch.setenv("CXX", "/no/such/compiler")
        assert native.available.__wrapped__() == {}

    def test_a_failing_compiler_is_no_failure(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(build_kernels, "LIBRARY", "nothing.so")
        monkeypatch.setenv("CXX", "false")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert native.available.__wrapped__() == {}
        assert list((tmp_path / "openledger").iterdir()) == []

    def test_a_library_that_is_none_is_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "kernels.so").write_bytes(b"\x7fELF not quite")
        assert native._open(tmp_path / "kernels.so", "here") == {}

    def test_a_cache_that_others_may_write_is_not_used(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        (tmp_path / "openledger").mkdir()
        (tmp_path / "openledger").chmod(0o777)
        with pytest.raises(build_kernels.BuildFailed, match="written by others"):
            build_kernels.cache_folder()

    @pytest.mark.parametrize("choice", ["torch", "baseline"])
    def test_the_engine_says_which_are_live(self, served: Served, choice: str) -> None:
        description = TorchEngine(served.base, EngineOptions(kernels=choice)).describe()
        assert choice in description["lora_path"]
        assert choice in description["attention_path"]
