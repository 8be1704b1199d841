"""Row vectors on disk, and products of queries with them.

A shard holds some consecutive rows of one view of an index: each row's scale (fp32), then the rows themselves as fp16,
divided by their scale, which is their largest absolute value. One row takes 2 bytes for each parameter and 4 more; a
product is off by about 2^-12 of the row's and the query's norms divided by the root of the number of parameters.
A shard is mapped into memory and checked against its SHA-256 digest when it is first read. It knows no row's name.

Shapes: R rows of a shard, P parameters, Q queries, K results of a query.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openledger.core.errors import Corrupt
from openledger.core.files import write_durably

Float = npt.NDArray[np.float32]
_TILE_ROWS, _TILE_PARAMETERS = 64, 4096  # one tile of fp32 stays in a core's cache


@dataclass(frozen=True, slots=True)
class RowVectors:
    """`rows_RP` times `scale_R` are the vectors."""

    rows_RP: npt.NDArray[np.float16]
    scale_R: Float


def halved(vectors_RP: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in half precision and their scales; changes `vectors_RP`."""
    largest_R = torch.maximum(vectors_RP.amax(dim=1), -vectors_RP.amin(dim=1))
    scale_R = largest_R.clamp_min(torch.finfo(torch.float32).tiny)
    return vectors_RP.div_(scale_R[:, None]).half(), scale_R


def write_shard(path: Path, vectors: RowVectors) -> str:
    data = bytearray(4 * vectors.scale_R.size + 2 * vectors.rows_RP.size)
    data[: 4 * vectors.scale_R.size] = vectors.scale_R.tobytes()
    np.frombuffer(data, np.float16, offset=4 * vectors.scale_R.size)[:] = vectors.rows_RP.reshape(-1)
    return write_checked(path, data)


def write_checked(path: Path, data: bytes | bytearray) -> str:
    """Put `data` at `path`, whole or not at all, then its SHA-256 beside it; the digest."""
    digest = hashlib.sha256(data).hexdigest()
    write_durably(path, data)
    write_durably(path.with_suffix(".sha256"), f"{digest}  {path.name}\n".encode())
    return digest


def written_digest(path: Path) -> str | None:
    """The digest beside the file at `path`; None where it isn't finished."""
    beside = path.with_suffix(".sha256")
    return beside.read_text().split()[0] if beside.exists() and path.exists() else None


class Shard:
    """A finished shard. Raises Corrupt (`corrupt_shard`) where its file is missing, cut off or changed."""

    def __init__(self, path: Path, num_rows: int, num_parameters: int, digest: str):
        self._path, self._num_rows, self._num_parameters, self._digest = path, num_rows, num_parameters, digest
        check_size(path, num_rows * (2 * num_parameters + 4))

    @cached_property
    def vectors(self) -> RowVectors:
        """Mapped, not read into memory; checked against the digest once."""
        flat = mapped(self._path, self._digest, np.float16)
        rows_RP = flat[2 * self._num_rows :].reshape(self._num_rows, self._num_parameters)
        return RowVectors(rows_RP, flat[: 2 * self._num_rows].view(np.float32))

    def row(self, number: int) -> Float:
        """One row in full by its number within the shard, [P]."""
        return self.vectors.rows_RP[number].astype(np.float32) * self.vectors.scale_R[number]

    def add_to(self, sums_GP: torch.Tensor, group_R: torch.Tensor) -> None:
        """Add every row to the sum that `group_R` gives it; to none where that is negative."""
        rows_RP, scale_R = torch.from_numpy(self.vectors.rows_RP), torch.from_numpy(self.vectors.scale_R)
        for tile in _slices(self._num_rows, _TILE_ROWS):
            chosen = group_R[tile] >= 0
            rows = rows_RP[tile][chosen].float() * scale_R[tile][chosen][:, None]
            sums_GP.index_add_(0, group_R[tile][chosen], rows)

    def products(self, queries_QP: Float) -> Float:
        """Inner products, [R, Q]."""
        rows_RP, queries_PQ = torch.from_numpy(self.vectors.rows_RP), torch.from_numpy(queries_QP).T
        found_RQ = torch.zeros(self._num_rows, queries_PQ.shape[1])
        # one query reads whole rows; several are multiplied with a tile while it is in the cache
        num_rows, num_columns = (_TILE_ROWS, _TILE_PARAMETERS) if queries_PQ.shape[1] > 1 else (4, self._num_parameters)
        buffer = torch.empty(num_rows, num_columns)
        for rows in _slices(self._num_rows, num_rows):
            for columns in _slices(self._num_parameters, num_columns):
                half = rows_RP[rows, columns]
                tile = buffer[: half.shape[0], : half.shape[1]].copy_(half)
                found_RQ[rows].addmm_(tile, queries_PQ[columns])
        return np.asarray(found_RQ.numpy() * self.vectors.scale_R[:, None], dtype=np.float32)


class Sums:
    """Row vectors summed for each contributor, fp32. Raises Corrupt (`corrupt_shard`) as `Shard` does."""

    def __init__(self, path: Path, num_groups: int, num_parameters: int, digest: str):
        self._path, self._num_parameters, self._digest = path, num_parameters, digest
        check_size(path, num_groups * num_parameters * 4)

    def products(self, queries_QP: Float) -> Float:
        """Inner products, [G, Q]."""
        return np.asarray((self._vectors @ torch.from_numpy(queries_QP).T).numpy(), dtype=np.float32)

    @cached_property
    def _vectors(self) -> torch.Tensor:
        return torch.from_numpy(mapped(self._path, self._digest, np.float32)).view(-1, self._num_parameters)


def check_size(path: Path, num_bytes: int) -> None:
    if not path.exists() or path.stat().st_size != num_bytes:
        raise _corrupt(path, "it is missing or cut off")


def mapped(path: Path, digest: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
            raise _corrupt(path, "its bytes are not those that were written")
    # copy on write: nothing is written, but torch refuses to look at read-only memory
    return np.memmap(path, dtype=dtype, mode="c")


@dataclass(frozen=True, slots=True)
class Top:
    """The largest scores of each query and the rows that have them, best first; of equal scores the lower row."""

    scores_QK: Float
    rows_QK: npt.NDArray[np.int64]


def top_of(scores_RQ: Float, rows_R: npt.NDArray[np.int64], k: int) -> Top:
    """`rows_R` are the row numbers of the whole index."""
    return _best(scores_RQ.T, np.broadcast_to(rows_R, scores_RQ.T.shape), k)


def merge_tops(tops: Sequence[Top], k: int) -> Top:
    """The top of several shards' rows together, by pairs: the same for every order and grouping."""
    while len(tops) > 1:
        tops = [_merge(tops[at : at + 2], k) for at in range(0, len(tops), 2)]
    return tops[0]


def _merge(tops: Sequence[Top], k: int) -> Top:
    scores = np.concatenate([top.scores_QK for top in tops], axis=1)
    return _best(scores, np.concatenate([top.rows_QK for top in tops], axis=1), k)


def _best(scores_QN: Float, rows_QN: npt.NDArray[np.int64], k: int) -> Top:
    k = min(k, scores_QN.shape[1])
    if 4 * k < scores_QN.shape[1]:  # sorting all would cost more; ties at the border must stay in
        border_Q1 = -np.partition(-scores_QN, k - 1, axis=1)[:, k - 1 : k]
        width = int((scores_QN >= border_Q1).sum(axis=1).max(initial=k))
        kept = np.argpartition(-scores_QN, width - 1, axis=1)[:, :width]
        scores_QN, rows_QN = np.take_along_axis(scores_QN, kept, 1), np.take_along_axis(rows_QN, kept, 1)
    order = np.lexsort((rows_QN, -scores_QN), axis=-1)[:, :k]
    return Top(np.take_along_axis(scores_QN, order, 1), np.take_along_axis(rows_QN, order, 1))


class Batcher:
    """Answers requests that came while the last product was computed by one product, together.

    `compute` takes queries [V, Q, P] and k, and may be slow: it runs in a thread, one call at a time.
    """

    def __init__(self, compute: Callable[[Float, int], Top]):
        self._compute = compute
        self._waiting: list[tuple[Float, int, asyncio.Future[Top]]] = []
        self._running: asyncio.Task[None] | None = None

    async def top(self, queries_VQP: Float, k: int) -> Top:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((queries_VQP, k, future))
        if self._running is None:
            self._running = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            try:
                together = np.concatenate([queries for queries, _, _ in taken], axis=1)
                found = await asyncio.to_thread(self._compute, together, max(k for _, k, _ in taken))
            except Exception as error:  # noqa: BLE001 - it belongs to those who asked
                _fail([future for _, _, future in taken], error)
            else:
                _hand_out(taken, found)
        self._running = None


def _hand_out(taken: Sequence[tuple[Float, int, "asyncio.Future[Top]"]], found: Top) -> None:
    start = 0
    for queries_VQP, k, future in taken:
        own = slice(start, start + queries_VQP.shape[1])
        start = own.stop
        if not future.done():
            future.set_result(Top(found.scores_QK[own, :k], found.rows_QK[own, :k]))


def _fail(futures: Sequence["asyncio.Future[Top]"], error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def _corrupt(path: Path, reason: str) -> Corrupt:
    return Corrupt(
        f"{path} of an attribution index is damaged: {reason}",
        code="corrupt_shard",
        param=str(path),
        fix="remove this file and the index's index.json, and build it again: only what is missing is built",
    )
