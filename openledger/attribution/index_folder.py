"""The folder of an index: what it is of, and how far it has come.

    plan.json                          what is indexed, written first
    view-00/basis.pt                   the eigenbasis
    view-00/rows-00000.f16, .sha256    a shard of consecutive rows (shards.py), finished once its digest is beside it
    view-00/sums.f32, .sha256          each contributor's trained rows, summed
    index.json                         plan and digests, written last: a folder that has it is complete

Knows nothing of modules and gradients.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from openledger.attribution.ekfac import Basis, Damping, Eigenbasis
from openledger.attribution.gradients import Site
from openledger.attribution.shards import RowVectors, Shard, Sums, write_checked, write_shard, written_digest
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import read_document, sync_folder, write_durably, write_json_durably
from openledger.training.members import Weights
from openledger.training.task import Trainable

INDEX_FORMAT = "openledger.index/2"
METHOD = "index/ekfac-3"
METHODS = {METHOD: Damping(least=0.01, unseen=0.25), "index/ekfac-2": Damping(least=0.01, unseen=0.0)}
_SHARD_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A module's trainable parameters by name, as they stood somewhere in a run."""

    name: str
    weights: Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    row_id: str
    contributor_id: str
    trained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPlan:
    """What an index is of. `views` are names with the digests of their parameters."""

    adapter_digest: str
    base_digest: str
    sites: tuple[Site, ...]
    views: tuple[tuple[str, str], ...]
    entries: tuple[IndexEntry, ...]
    shard_rows: int
    fit_rows: int
    method: str = METHOD

    @property
    def damping(self) -> Damping:
        return METHODS[self.method]

    @property
    def num_parameters(self) -> int:
        return sum(site.size for site in self.sites)

    @property
    def shards(self) -> list[slice]:
        """Each shard's rows."""
        starts = range(0, len(self.entries), self.shard_rows)
        return [slice(start, min(start + self.shard_rows, len(self.entries))) for start in starts]

    @property
    def num_bytes(self) -> int:
        """Of all shards (`shards.Shard`)."""
        return len(self.views) * len(self.entries) * (2 * self.num_parameters + 4)

    @property
    def contributors(self) -> list[str]:
        """Those with trained rows, sorted: what sums are kept of."""
        return sorted({entry.contributor_id for entry in self.entries if entry.trained})

    def document(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"format": INDEX_FORMAT, **values}


def plan_index(
    sites: Sequence[Site],
    views: Sequence[tuple[str, str]],
    trained: Sequence[Trainable],
    decoys: Sequence[Trainable],
    adapter_digest: str,
    *,
    base_digest: str,
    fit_rows: int,
    shard_rows: int | None,
    method: str = METHOD,
) -> IndexPlan:
    """Shards are of about 64 MiB where `shard_rows` doesn't say otherwise. Raises InvalidInput where there is no
    trained row, two views have one name, or the method is none of METHODS."""
    names = [name for name, _ in views]
    if not trained:
        raise InvalidInput("there are no trained rows to index", code="empty_index", param="rows")
    if len(set(names)) < len(names):
        raise InvalidInput(f"two views have one name: {', '.join(names)}", code="invalid_view", param="views")
    if method not in METHODS:
        raise InvalidInput(
            f"no index is built by {method!r} here",
            code="unknown_method",
            param="method",
            fix=f"one of {', '.join(METHODS)}, or a version of OpenLedger that knows it",
        )
    rows = [(row, True) for row in trained] + [(row, False) for row in decoys]
    return IndexPlan(
        adapter_digest=adapter_digest,
        base_digest=base_digest,
        sites=tuple(sites),
        views=tuple(views),
        entries=tuple(IndexEntry(row_id=r.row_id, contributor_id=r.contributor_id, trained=t) for r, t in rows),
        shard_rows=shard_rows or max(16, _SHARD_BYTES // (2 * sum(site.size for site in sites))),
        fit_rows=fit_rows,
        method=method,
    )


class IndexFolder:
    """An index that is being built: a view's basis, then its shards, by any processes, in any order. Each is a file
    that is written whole or not at all, and comes out the same when it is built a second time."""

    def __init__(self, folder: Path, plan: IndexPlan):
        """Raises InvalidInput (`wrong_index`) where the folder has the index of something else."""
        self.folder, self.plan = folder, plan
        _clear_older(folder)
        document, found = plan.document(), _json(folder / "plan.json")
        if found is None:
            write_json_durably(folder / "plan.json", document)
        elif found != document:
            differ = [name for name in document if found.get(name) != document[name]]
            raise wrong_index(folder, f"it differs in {', '.join(differ)}")

    @property
    def finished(self) -> bool:
        return (self.folder / "index.json").exists()

    def missing(self) -> dict[int, list[int]]:
        """The shards that aren't built yet, by view."""
        views = {} if self.finished else {view: self.missing_of(view) for view in range(len(self.plan.views))}
        return {view: shards for view, shards in views.items() if shards}

    def missing_of(self, view: int) -> list[int]:
        shards = range(len(self.plan.shards))
        return [shard for shard in shards if written_digest(shard_path(self.folder, view, shard)) is None]

    def basis(self, view: int) -> Basis | None:
        path = view_folder(self.folder, view) / "basis.pt"
        if not path.exists():
            return None
        stored = torch.load(path, weights_only=True)
        return {name: Eigenbasis(*parts) for name, parts in stored.items()}

    def add_basis(self, view: int, basis: Basis) -> None:
        stream = io.BytesIO()
        torch.save({name: (own.short_SS, own.long_LL, own.curvature_SL) for name, own in basis.items()}, stream)
        write_durably(view_folder(self.folder, view) / "basis.pt", stream.getvalue())

    def add_shard(self, view: int, shard: int, vectors: RowVectors) -> None:
        write_shard(shard_path(self.folder, view, shard), vectors)

    def adopt(self, other: Path) -> None:
        """Take over the views that another finished index of these rows has too. They share their files (hard links):
        it costs no space, and nothing changes for the other one. Where storage has no links, nothing is taken."""
        if self.finished or not is_finished(other):
            return
        theirs, _ = read_index(other)
        if replace(theirs, views=self.plan.views) == self.plan:
            for number, view in enumerate(self.plan.views):
                if view in theirs.views and self.basis(number) is None:
                    _link_files(view_folder(other, theirs.views.index(view)), view_folder(self.folder, number))

    def finish(self) -> None:
        """Check every shard, sum the contributors' rows, and write index.json."""
        if not self.finished:
            views = [self._finished_view(number) for number in range(len(self.plan.views))]
            write_json_durably(self.folder / "index.json", {**self.plan.document(), "finished": views})
            for half_written in self.folder.rglob(".*.new"):  # of workers that were killed
                half_written.unlink(missing_ok=True)

    def _finished_view(self, view: int) -> dict[str, Any]:
        plan, places = self.plan, {name: at for at, name in enumerate(self.plan.contributors)}
        group_R = torch.tensor([places[entry.contributor_id] if entry.trained else -1 for entry in plan.entries])
        sums_GP = torch.zeros(len(places), plan.num_parameters)
        digests = [written_digest(shard_path(self.folder, view, shard)) or "" for shard in range(len(plan.shards))]
        for rows, shard in zip(plan.shards, open_shards(self.folder, plan, view, digests), strict=True):
            shard.add_to(sums_GP, group_R[rows])
        basis = self.basis(view)
        return {
            "shards": digests,
            "sums": write_checked(view_folder(self.folder, view) / "sums.f32", sums_GP.numpy().tobytes()),
            "balance": [own.balance for own in (basis or {}).values()],
        }


def read_index(folder: Path) -> tuple[IndexPlan, list[dict[str, Any]]]:
    """A finished index's plan and, for each view, its digests. Raises Corrupt (`corrupt_index`)."""

    def parse(document: dict[str, Any]) -> tuple[IndexPlan, list[dict[str, Any]]]:
        finished = document.pop("finished")
        document["sites"] = tuple(Site(**site) for site in document["sites"])
        document["views"] = tuple((name, digest) for name, digest in document["views"])
        document["entries"] = tuple(IndexEntry(**entry) for entry in document["entries"])
        plan = IndexPlan(**document)
        if len(finished) != len(plan.views) or any(len(own["shards"]) != len(plan.shards) for own in finished):
            raise ValueError("views or shards are missing")
        return plan, finished

    return read_document(
        folder / "index.json",
        INDEX_FORMAT,
        parse,
        lambda reason: Corrupt(
            f"the attribution index at {folder} can't be read: {reason}",
            code="corrupt_index",
            param=str(folder),
            fix="remove the folder; it is built again from the adapter and its rows",
        ),
    )


def method_at(folder: Path) -> str:
    """By which method the index at the folder is or was begun: it stays by that until it is removed. METHOD where there
    is none, or one of an older format."""
    found = _json(folder / "plan.json") or _json(folder / "index.json") or {}
    return str(found["method"]) if found.get("format") == INDEX_FORMAT and "method" in found else METHOD


def is_finished(folder: Path) -> bool:
    """Whether the folder has a whole index of this format."""
    return (_json(folder / "index.json") or {}).get("format") == INDEX_FORMAT


def open_shards(folder: Path, plan: IndexPlan, view: int, digests: Sequence[str]) -> list[Shard]:
    return [
        Shard(shard_path(folder, view, number), rows.stop - rows.start, plan.num_parameters, digest)
        for number, (rows, digest) in enumerate(zip(plan.shards, digests, strict=True))
    ]


def open_sums(folder: Path, plan: IndexPlan, view: int, digest: str) -> Sums:
    return Sums(view_folder(folder, view) / "sums.f32", len(plan.contributors), plan.num_parameters, digest)


def view_folder(folder: Path, view: int) -> Path:
    return folder / f"view-{view:02}"


def shard_path(folder: Path, view: int, shard: int) -> Path:
    return view_folder(folder, view) / f"rows-{shard:05}.f16"


def weights_digest(weights: Weights) -> str:
    """SHA-256 over names, shapes and values (fp32), in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().cpu().float().contiguous()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


def wrong_index(folder: Path, reason: str) -> InvalidInput:
    return InvalidInput(
        f"{folder} has the index of something else: {reason}",
        code="wrong_index",
        param="adapter",
        fix="name the folder of this adapter's index, or remove this one",
    )


def _clear_older(folder: Path) -> None:
    """An index is made of what else is kept: one of an older format is built again."""
    found = _json(folder / "plan.json") or _json(folder / "index.json")
    form = str(found.get("format")) if found else ""
    if form.startswith("openledger.index/") and form != INDEX_FORMAT:
        for name in ("index.json", "plan.json", "rows.f16", "scales.npy", "basis.pt"):
            (folder / name).unlink(missing_ok=True)
        for path in folder.glob("view-*"):
            shutil.rmtree(path)


def _link_files(source: Path, target: Path) -> None:
    """The basis first: what is missing after a crash is built with it. Then shards, each before the digest that says it
    is finished."""
    target.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        for path in [source / "basis.pt", *sorted(source.glob("rows-*"))]:
            os.link(path, target / path.name)
    sync_folder(target)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
