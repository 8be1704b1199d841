"""A shard's Lance dataset in an object store, at any URI that Lance takes: `s3://`, `gs://`, `az://`.

What a store has answered is durable there, and Lance's commit puts each version's manifest only if there is none of
that number yet: so a version is whole or not there, and no list of ours stands beside it. Damage is the store's to
find: nothing is read back when a shard is opened but ids and keys.

A store has no lock. A process that was cut off from the cluster may still write while its successor does; `Shard`
tells by a version that isn't the next one, and removes what stands twice.

Removing rows takes three steps here, each of which the store may refuse: a version without them, files without them,
and the end of all older versions with their files. A removal that is repeated takes the last two in any case.

The last step also deletes what no version names, which a crash may have left, or another process has written and is
about to commit. So it is taken in this order: list the files; put a version that is a fence, as Lance refuses every
append that was begun before it; delete what was listed and the fence doesn't name. An append is committed before the
fence, which then names its files, or after it, with files that weren't listed, or is refused while the fence's manifest
is there. Once small files were made large ones it isn't: then an append may be committed whose files are gone. Its
writer finds that out before it answers, and writes them again (`Shard`).
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from openledger.core.errors import Corrupt, Unavailable

_ANY_AGE = timedelta(0)
_CONTENT = ("data/", "_deletions/", "_transactions/")
_TRIES = 10


class ObjectFiles:
    """`options` are Lance's storage options: endpoint, region, keys. Without them the environment's are used.

    Raises Unavailable (`storage_unavailable`) where the store can't be reached.
    """

    compression: str | None = None  # bytes that travel cost more than encoding them
    keeps_one_version = False
    journal = None  # a put is a put, however small

    def __init__(self, uri: str, options: Mapping[str, str] | None = None):
        self.name = self.uri = uri
        self.options = dict(options or {})

    def open(self) -> Any:
        """The Lance dataset; None where there is none yet."""
        import lance

        try:
            return lance.dataset(self.uri, storage_options=self.options)
        except (OSError, ValueError) as error:
            if is_refusal(error):
                raise Unavailable(
                    f"shard {self.uri} can't be read: {error}",
                    code="storage_unavailable",
                    param=self.uri,
                    fix="check the store's address and keys, then send the same again",
                ) from error
            if "not found" not in str(error).lower():
                raise self.corrupt("", str(error)) from error
            return None

    def settle(self, dataset: Any) -> None:
        """Nothing is left to do for appends: a store's answer is durable."""

    def forget_old_versions(self, dataset: Any, *, everything: bool) -> Any:
        """The dataset as it is then. `everything` so that no byte of a removed row stays, not even in files that a
        crash has left: another process's go too that it hasn't committed yet, and its commit is refused."""
        dataset.cleanup_old_versions(older_than=_ANY_AGE)
        if not everything:
            return dataset
        session = _session(self.uri, self.options)
        listed = {path for path in session.list() if path.startswith(_CONTENT)}
        dataset = self._fenced()
        for path in sorted(listed - _named(dataset)):
            _delete(session, path)
        dataset.cleanup_old_versions(older_than=_ANY_AGE)
        return dataset

    def _fenced(self) -> Any:
        """The same rows in a version of their own. It comes right behind the one it was made of, or it is tried again:
        it must leave out no append."""
        import lance

        for _ in range(_TRIES):
            dataset = self.open()
            same = lance.LanceOperation.Overwrite(dataset.schema, [one.metadata for one in dataset.get_fragments()])
            try:
                return lance.LanceDataset.commit(
                    dataset, same, read_version=dataset.version, storage_options=self.options, max_retries=0
                )
            except Exception as error:
                if not is_conflict(error):
                    raise
        raise OSError("other processes write all the time")

    def roll_back(self) -> Any:
        """A commit that failed left no version."""
        return self.open()

    def corrupt(self, path: str, problem: str) -> Corrupt:
        return Corrupt(
            f"shard {self.uri}: {problem}",
            code="corrupt_shard_file",
            param=f"{self.uri}/{path}",
            fix="restore this Datanet's objects alone from a backup, then start again: beside them others write on",
        )


def is_conflict(error: Exception) -> bool:
    """Whether another process's change came first, and this one isn't there."""
    from lance.commit import CommitConflictError

    return isinstance(error, CommitConflictError)


def _named(dataset: Any) -> set[str]:
    """The files that its rows are read from, and what its versions were committed by."""
    named = set[str]()
    for fragment in dataset.get_fragments():
        named |= {f"data/{file.path}" for file in fragment.metadata.files}
        named |= {deleted} if (deleted := fragment.deletion_file()) else set()
    done = [dataset.read_transaction(one["version"]) for one in dataset.versions()]
    return named | {f"_transactions/{one.read_version}-{one.uuid}.txn" for one in done if one is not None}


def _delete(session: Any, path: str) -> None:
    """Of what is gone by now another process has taken care."""
    try:
        session.delete_file(path)
    except OSError as error:
        if "not found" not in str(error).lower():
            raise


def _session(uri: str, options: Mapping[str, str]) -> Any:
    from lance.file import LanceFileSession

    return LanceFileSession(uri, dict(options))


def is_refusal(error: Exception) -> bool:
    """Whether the storage, and not what was asked of it, is the reason: Lance says both with ValueError."""
    return isinstance(error, OSError) or "LanceError(IO)" in str(error)
