"""Rows in pages that are found, and proved, from one digest: the document of row scores, from its second format on.

    root     a line of JSON: the format, what is stated of all rows, and where the two trees begin. Its digest is the
             document's.
    nodes    leaves of up to LEAF rows, and inner nodes of up to FANOUT references to nodes below them
    a reference is [the node's first key, its offset behind the root, its length, its digest]

The rows stand there twice: in the order of what they moved, and contributor by contributor in that order. Each tree is
a B+ tree that is written once. Whoever asks for a page reads from the root down to the leaves that have it, and
compares each node with the digest that the one above it has: what is told is what the document's digest stands for, and
the bytes of it are those of a few nodes, whatever the number of rows.

    depth = log_FANOUT(rows / LEAF)
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from openledger.core.errors import Corrupt, invariant
from openledger.core.hashing import digest_bytes

LEAF = 64
FANOUT = 64
MOST_ROOT = 1 << 20  # bytes of a root's line
Json = dict[str, Any]
Key = list[Any]
Reference = list[Any]


def paged(stated: Mapping[str, Any], rows: Sequence[Json]) -> tuple[bytes, str]:
    """The document, and its digest. `stated` has its format."""
    nodes = bytearray()
    trees = {"most": _tree(rows, order_key, nodes), "contributors": _tree(rows, _own_key, nodes)}
    root = _json({**stated, "num_rows": len(rows), **trees})
    invariant(len(root) <= MOST_ROOT, "what is stated of all rows is bounded")
    return root + b"\n" + nodes, digest_bytes(root)


def order_key(row: Mapping[str, Any]) -> Key:
    """Rows that moved most first, by what the bank says of them, and where there is none by this run."""
    use = row.get("use", {})
    return [-abs(int(use.get("expected_nano", use.get("this_run_nano", 0)))), row["row_id"]]


def _own_key(row: Mapping[str, Any]) -> Key:
    return [row["contributor_id"], *order_key(row)]


class RowPages:
    """A document on disk. Nothing of it is kept in memory but its root."""

    def __init__(self, path: Path, root: bytes):
        self.stated: Json = json.loads(root)
        self._path, self._begin = path, len(root) + 1

    def rows(self, contributor: str = "", begin: Key | None = None) -> Iterator[Json]:
        """The rows from the key `begin` (`order_key`) on: of all contributors, or one. Raises Corrupt
        (`corrupt_row_scores`) at the first node that isn't what the digest stands for, or can't be read."""
        with self._open() as stream:
            if not contributor:
                yield from self._from(stream, self.stated["most"], order_key, begin or [])
                return
            for row in self._from(stream, self.stated["contributors"], _own_key, [contributor, *(begin or [])]):
                if row["contributor_id"] != contributor:
                    return
                yield row

    def _open(self) -> BinaryIO:
        try:
            return self._path.open("rb")
        except OSError as error:
            raise corrupt(self._path, error) from error

    def _from(self, stream: BinaryIO, tree: Json, key: Callable[[Json], Key], begin: Key) -> Iterator[Json]:
        """A tree's rows with this key or a later one."""

        def below(reference: Reference, height: int) -> Iterator[Json]:
            node = self._node(stream, reference)
            if not height:
                yield from (row for row in node if key(row) >= begin)
                return
            for child, following in zip(node, [*node[1:], None], strict=True):
                if following is None or following[0] > begin:
                    yield from below(child, height - 1)

        if tree["top"] is not None:
            yield from below(tree["top"], tree["height"])

    def _node(self, stream: BinaryIO, reference: Reference) -> list[Any]:
        _, offset, length, digest = reference
        try:
            stream.seek(self._begin + offset)
            data = stream.read(length)
        except OSError as error:
            raise corrupt(self._path, error) from error
        if digest_bytes(data) != digest:
            raise corrupt(self._path, f"what stands at byte {self._begin + offset} isn't what the settlement names")
        found: list[Any] = json.loads(data)
        return found


def corrupt(path: Path, reason: object) -> Corrupt:
    return Corrupt(
        f"the rows' scores in {path} can't be read: {reason}",
        code="corrupt_row_scores",
        param=str(path),
        fix="restore the file from a backup: the settlement names its digest",
    )


def _tree(rows: Sequence[Json], key: Callable[[Json], Key], nodes: bytearray) -> Json:
    """Write a tree's nodes behind `nodes`, the leaves first; where it begins, and how many levels lie below that."""
    level = [_written(part, key(part[0]), nodes) for part in _parts(sorted(rows, key=key), LEAF)]
    height = 0
    while len(level) > 1:
        level = [_written(part, part[0][0], nodes) for part in _parts(level, FANOUT)]
        height += 1
    return {"top": level[0] if level else None, "height": height}


def _written(node: Sequence[Any], first: Key, nodes: bytearray) -> Reference:
    data, offset = _json(node), len(nodes)
    nodes += data + b"\n"
    return [first, offset, len(data), digest_bytes(data)]


def _parts(whole: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (whole[at : at + size] for at in range(0, len(whole), size))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
