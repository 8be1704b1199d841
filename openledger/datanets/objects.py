"""A shard's Lance dataset in an object store, at any URI that Lance takes: `s3://`, `gs://`, `az://`.

What a store has answered is durable there, and Lance's commit puts each version's manifest only if there is none of
that number yet: so a version is whole or not there, and no list of ours stands beside it. Damage is the store's to
find: nothing is read back when a shard is opened but ids and keys.

A store has no lock. A process that was cut off from the cluster may still write while its successor does; `Shard`
tells by a version that isn't the next one, and removes what stands twice, or what its successor's removals have taken
the file of.

Removing rows takes three steps here, each of which the store may refuse: a version without them, files without them,
and the end of all older versions with their files. A removal that is repeated takes the last two in any case.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from openledger.core.errors import Corrupt, Unavailable


class ObjectFiles:
    """`options` are Lance's storage options: endpoint, region, keys. Without them the environment's are used.

    Raises Unavailable (`storage_unavailable`) where the store can't be reached.
    """

    compression: str | None = None  # bytes that travel cost more than encoding them
    keeps_one_version = False

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

    def forget_old_versions(self, dataset: Any, *, everything: bool) -> None:
        """`everything` so that no byte of a removed row stays, not even in files that a crash has left: then another
        process's go too that it hasn't committed yet."""
        dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=everything)

    def roll_back(self) -> Any:
        """A commit that failed left no version."""
        return self.open()

    def confirm(self) -> None:
        """What is in a version is durable."""

    def corrupt(self, path: str, problem: str) -> Corrupt:
        return Corrupt(
            f"shard {self.uri}: {problem}",
            code="corrupt_shard_file",
            param=f"{self.uri}/{path}",
            fix="restore the shard's objects from a backup; the other shards are not affected",
        )


def is_refusal(error: Exception) -> bool:
    """Whether the storage, and not what was asked of it, is the reason: Lance says both with ValueError."""
    return isinstance(error, OSError) or "LanceError(IO)" in str(error)
