"""Published versions: an immutable manifest for each, from which anyone can recompute the row root and the order of
credit: whose row was first.

**The order of credit.** Rows stand where their contribution stands, and in it as they were sent. A contribution stands
where it came among all contributions to all Datanets, a sealed one where its seal came (`seals`), which is in the log
before anybody has seen a row. Nothing that a contributor chooses changes it: not the rows' ids, nor his key, nor the
Datanet, nor that a row was withdrawn and sent again, which is another row then. A row that an appeal or a review lets
in afterwards stands where its contribution came, too: it is one that was signed then, and can come in before rows that
are in versions already. A place never changes, so of two versions that have the same two rows both name the same one
first.

    row_root      over the row ids, sorted                 credit_root   over the row ids, first credited first

The manifest also states on what terms the version was published, its licence among them, and whose rows it had then:
later changes of either are of later versions. The registry keeps a digest of that, so that a file which says otherwise
is found out (`stated_digest`).
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from openledger.core import merkle
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import write_json_durably
from openledger.core.hashing import digest_bytes
from openledger.core.signed import signed_id
from openledger.core.values import DatanetVersion, Row
from openledger.datanets.contribution import is_row_of
from openledger.datanets.folders import make_folder
from openledger.datanets.registry import ContributorStatistics
from openledger.datanets.row_schema import PLAIN, RowSchema
from openledger.datanets.terms import Terms, changed_terms

FORMAT_1 = "openledger/datanet-version/1"  # without the order of credit
FORMAT_2 = "openledger/datanet-version/2"  # without terms and statistics
FORMAT = "openledger/datanet-version/3"
LoggedOpening = tuple[int, int, Mapping[str, Any]]  # see `ledger.seals.Seals.openings`


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """What a version was published with beside its rows."""

    terms: Terms = field(default_factory=Terms)
    statistics: tuple[ContributorStatistics, ...] = ()


def row_root(row_ids: Sequence[str]) -> str:
    """The RFC 9162 root (hex) whose leaves are the row ids in sorted order, as UTF-8."""
    return credit_root(sorted(row_ids))


def credit_root(row_ids: Sequence[str]) -> str:
    """The same with the leaves in the order of `row_ids`."""
    return merkle.root([merkle.leaf_hash(row_id.encode()) for row_id in row_ids]).hex()


def write_manifest(
    folder: Path,
    version: DatanetVersion,
    row_ids: Sequence[str],
    row_schema: RowSchema = PLAIN,
    stated: Stated = Stated(),
) -> str:
    """`row_ids` first credited first. Durable. A manifest that no registered version names is a publication that was
    cut off; it is written over. What it gives is the digest of what is stated."""
    places = {row_id: place for place, row_id in enumerate(row_ids)}
    ordered = sorted(row_ids)
    told = {"row_schema": row_schema.to_json(), "row_ids": ordered, "credit": [places[row_id] for row_id in ordered]}
    told |= asdict(stated)
    make_folder(folder / version.datanet)
    write_json_durably(_path(folder, version), {"format": FORMAT, **asdict(version), **told})
    return stated_digest({"format": FORMAT, **told})


def stated_digest(told: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a manifest's format, terms and statistics."""
    own = {name: told.get(name) for name in ("format", "terms", "statistics")}
    return digest_bytes(json.dumps(own, sort_keys=True).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`places` are the rows' in the order of credit, in the order of `row_ids`, which are sorted; empty in versions of
    before. `stated` is None in those too."""

    row_ids: tuple[str, ...]
    places: tuple[int, ...]
    stated: Stated | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """One leaf of both roots. `place` is None in versions of before, `tombstone` the salted hash of a removed row."""

    row_id: str
    place: int | None
    tombstone: str | None


class Manifests:
    """Those that were read last, in memory: as many as have `max_bytes` together, and one in any case."""

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._kept = dict[DatanetVersion, tuple[Manifest, int]]()

    def find(self, version: DatanetVersion) -> Manifest | None:
        if (known := self._kept.pop(version, None)) is None:
            return None
        self._kept[version] = known
        return known[0]

    def keep(self, version: DatanetVersion, manifest: Manifest) -> Manifest:
        self._kept[version] = manifest, _num_bytes(manifest)
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self._max_bytes:
            del self._kept[next(iter(self._kept))]
        return manifest


def _num_bytes(manifest: Manifest) -> int:
    """Roughly, in memory."""
    each = manifest.row_ids, manifest.places
    listed = sum(sys.getsizeof(values) + sum(map(sys.getsizeof, values)) for values in each)
    return listed + (0 if manifest.stated is None else 2 * len(json.dumps(asdict(manifest.stated))))


def read_manifest(folder: Path, version: DatanetVersion, digest: str = "") -> Manifest:
    """`digest` is that of what it states, where the registry has one. Raises Corrupt (`corrupt_manifest`) unless it
    leads to the version's roots, and to that."""
    row_ids, told = _read(folder, version)
    path = _path(folder, version)
    places = _places(path, version, row_ids, told)
    return Manifest(row_ids=tuple(row_ids), places=tuple(places), stated=_stated(path, told, digest))


def read_row_ids(folder: Path, version: DatanetVersion) -> list[str]:
    """The version's row ids, sorted. Raises Corrupt (`corrupt_manifest`) unless they lead to its row root."""
    return _read(folder, version)[0]


def read_credit(folder: Path, version: DatanetVersion) -> list[str]:
    """The version's row ids, first credited first; empty for one of before. Raises Corrupt (`corrupt_manifest`) unless
    they lead to its row root and its root of credit."""
    row_ids, told = _read(folder, version)
    places = _places(_path(folder, version), version, row_ids, told)
    return [row_id for _, row_id in sorted(zip(places, row_ids, strict=True))] if places else []


def read_stated(folder: Path, version: DatanetVersion, digest: str = "") -> Stated | None:
    """What the version was published with; None for one of before, which doesn't say. Raises Corrupt
    (`corrupt_manifest`)."""
    return _stated(_path(folder, version), _read(folder, version)[1], digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Misplaced:
    """A sealed row that stands elsewhere in an order of credit than its seal in the log."""

    row: Row
    problem: str
    opening: LoggedOpening


def check_sealed(order: Sequence[str], rows: Iterable[Row], openings: Sequence[LoggedOpening]) -> None:
    """Whether a version's `order` of credit has its sealed rows as the log has their seals: earlier seals first, and
    rows under one seal as they were signed. `rows` are those that are there; whose seal is whose follows from what they
    say (`contribution.is_row_of`), from no word of the registry's. Raises InvalidInput (`other_credit`).

    Two seals that came at once can stand in the log the other way round (`seals`): one counts as earlier that is
    earlier both in the log and by its expiry. Of rows without a seal the log says nothing, nor does this."""
    rows = list(rows)
    sealed = sealed_rows(rows, openings)
    sealed |= _hidden(rows, openings, sealed)
    for found in misplaced(order, rows, sealed):
        raise other_credit(found)


def sealed_rows(rows: Iterable[Row], openings: Sequence[LoggedOpening]) -> dict[str, LoggedOpening]:
    """The opening of each sealed row, by its id: of the contribution that the row names, which is the registry's word,
    where its id follows from that. One hash for each row; `check_sealed` takes nobody's word, and looks for more."""
    of_contribution = {signed_id(opening[2]): opening for opening in openings}
    return {
        row.row_id: opening
        for row in rows
        if (opening := of_contribution.get(row.contribution_id)) is not None and is_row_of(row, opening[2])
    }


def misplaced(order: Sequence[str], rows: Iterable[Row], sealed: Mapping[str, LoggedOpening]) -> Iterator[Misplaced]:
    """Sealed rows that stand behind what was sealed, or signed, after them; in this order."""
    there = {row.row_id: row for row in rows if row.row_id in sealed}
    latest: list[LoggedOpening] = []  # of those so far, all that no other is later than in both
    last_ordinal: dict[int, int] = {}
    for row_id in order:
        if row_id not in there:
            continue
        row, opening = there[row_id], sealed[row_id]
        place, expires_ms, _ = opening
        if any(place < other[0] and expires_ms < other[1] for other in latest):
            yield Misplaced(row=row, problem="stands behind rows that were sealed after it", opening=opening)
        elif row.ordinal < last_ordinal.get(place, -1):
            yield Misplaced(row=row, problem="stands behind rows that were signed after it", opening=opening)
        else:
            last_ordinal[place] = row.ordinal
            latest = [other for other in latest if other[0] > place or other[1] > expires_ms] + [opening]


def other_credit(found: Misplaced) -> InvalidInput:
    row = found.row
    return InvalidInput(
        f"the version's order of credit is not the log's: {row.row_id} of {row.contribution_id} {found.problem}",
        code="other_credit",
        param="credit",
        fix="don't settle by it: show manifest and log to whoever publishes the Datanet, who restores registry and"
        " ledger of one time, or removes that contribution's rows",
    )


def _hidden(
    rows: Sequence[Row], openings: Sequence[LoggedOpening], known: Mapping[str, LoggedOpening]
) -> dict[str, LoggedOpening]:
    """Rows that name another contribution than the sealed one that they are of: a hash for each with each opening of
    its contributor that has no row of this ordinal yet."""
    taken = {(known[row.row_id][0], row.ordinal) for row in rows if row.row_id in known}
    of_contributor = defaultdict[str, list[LoggedOpening]](list)
    for opening in openings:
        of_contributor[opening[2]["contributor_id"]].append(opening)
    return {
        row.row_id: opening
        for row in rows
        if row.row_id not in known
        for opening in of_contributor[row.contributor_id]
        if (opening[0], row.ordinal) not in taken and is_row_of(row, opening[2])
    }


def _read(folder: Path, version: DatanetVersion) -> tuple[list[str], dict[str, Any]]:
    path = _path(folder, version)
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        row_ids = [str(row_id) for row_id in manifest["row_ids"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _corrupt(path, f"can't be read: {error}") from error
    known = manifest.get("format") in (FORMAT_1, FORMAT_2, FORMAT)
    if not known or row_ids != sorted(row_ids) or row_root(row_ids) != version.row_root:
        raise _corrupt(path, "does not lead to the version's row root")
    return row_ids, manifest


def _places(path: Path, version: DatanetVersion, row_ids: Sequence[str], told: Mapping[str, Any]) -> list[int]:
    if not version.credit_root:
        return []
    credit = told.get("credit")
    if not _is_order(credit, len(row_ids)):
        raise _corrupt(path, "has not one place in the order of credit for each row")
    if credit_root([row_id for _, row_id in sorted(zip(credit, row_ids, strict=True))]) != version.credit_root:
        raise _corrupt(path, "does not lead to the version's root of credit")
    return credit


def _stated(path: Path, told: Mapping[str, Any], digest: str) -> Stated | None:
    if digest and stated_digest(told) != digest:
        raise _corrupt(path, "says other terms or statistics than the version was published with")
    if told["format"] != FORMAT:
        return None
    try:
        statistics = tuple(ContributorStatistics(**one) for one in told["statistics"])
        return Stated(terms=changed_terms(None, told["terms"]), statistics=statistics)
    except (KeyError, TypeError, AttributeError, InvalidInput) as error:
        raise _corrupt(path, f"does not say its terms and statistics: {error}") from error


def _is_order(credit: Any, num_rows: int) -> TypeGuard[list[int]]:
    """Whether it is each of the places 0 to `num_rows` - 1 once."""
    if not isinstance(credit, list) or any(type(place) is not int for place in credit):
        return False
    return sorted(credit) == list(range(num_rows))


def _path(folder: Path, version: DatanetVersion) -> Path:
    return folder / version.datanet / f"{version.number}.json"


def _corrupt(path: Path, problem: str) -> Corrupt:
    return Corrupt(
        f"the manifest {path} {problem}",
        code="corrupt_manifest",
        param=str(path),
        fix="restore this file from a backup",
    )
