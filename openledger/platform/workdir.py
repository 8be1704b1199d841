"""The working folder: where everything that one installation keeps lies. Paths only; it creates nothing but folders.
A job that works on what an installation holds looks for one (`found_workdir`): a mistyped path must not become one.

config.yaml        resolved settings of the last run        runs/       Ray Train runs and their checkpoints
keys/              signing keys and nonces, mode 0600       adapters/   PEFT folders with cards, registry.db
datanets/          shards, receipts, versions               indexes/    attribution indexes
ledger/            ledger.db, answers.db                    proofs/     exported proofs
report.json        the last run's report                    running     lock of the process that serves
incoming/          adapters to be added over HTTP           cache/      adapters fetched from elsewhere
rows/              row scores of settled periods
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from openledger.core.errors import InvalidInput, NotFound

_KEPT = ("adapters/registry.db", "datanets/registry.sqlite", "ledger/ledger.db")  # one of them, once anything is kept


@dataclass(frozen=True, slots=True)
class Workdir:
    root: Path

    def __post_init__(self) -> None:
        """Raises InvalidInput (`invalid_workdir`) where no folder can be."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _invalid(self.root, error) from error

    def folder(self, name: str) -> Path:
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def keys(self) -> Path:
        return self.folder("keys")

    @property
    def customer_key(self) -> Path:
        return self.keys / "customer.api_key"

    @property
    def nonces(self) -> Path:
        return self.keys / "nonces"

    @property
    def datanets(self) -> Path:
        return self.folder("datanets")

    @property
    def ledger(self) -> Path:
        return self.folder("ledger")

    @property
    def runs(self) -> Path:
        return self.folder("runs")

    @property
    def adapters(self) -> Path:
        return self.folder("adapters")

    @property
    def incoming(self) -> Path:
        return self.folder("incoming")

    @property
    def indexes(self) -> Path:
        return self.folder("indexes")

    @property
    def rows(self) -> Path:
        return self.folder("rows")

    @property
    def proofs(self) -> Path:
        return self.folder("proofs")

    @property
    def report(self) -> Path:
        return self.root / "report.json"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"


def named_workdir(path: Path) -> Path:
    """`path` as a working folder's root; nothing is made. Raises InvalidInput (`invalid_workdir`) as `Workdir` does."""
    try:
        root = path.expanduser().resolve()
        standing = next(above for above in (root, *root.parents) if above.exists())
    except RuntimeError as error:  # ~NAME of nobody here, or a circle of links
        raise _invalid(path, OSError(errno.ENOENT, str(error))) from error
    except OSError as error:
        raise _invalid(path, error) from error
    if not standing.is_dir():
        raise _invalid(root, _because(errno.EEXIST if standing == root else errno.ENOTDIR))
    if not os.access(standing, os.W_OK | os.X_OK):
        raise _invalid(root, _because(errno.EACCES))
    return root


def is_workdir(root: Path) -> bool:
    """Whether an installation has kept something there. Its files say so: other folders, such as this package, have
    parts of the same names."""
    return any((root / part).is_file() for part in _KEPT)


def is_begun(root: Path) -> bool:
    """Whether a job has worked there, also one that keeps nothing: each has the folder for its keys."""
    return (root / "keys").is_dir() or is_workdir(root)


def found_workdir(path: Path) -> Workdir:
    """One that is there already. Raises NotFound (`workdir_not_found`), and as `named_workdir`."""
    root = named_workdir(path)
    if not is_workdir(root):
        reason = f"the folder has none of {', '.join(_KEPT)}" if root.exists() else "there is no such folder"
        raise NotFound(
            f"{root} is no working folder: {reason}",
            code="workdir_not_found",
            param="workdir",
            fix="check the path; 'openledger quickstart --workdir DIR' makes a working folder",
        )
    return Workdir(root)


def _because(reason: int) -> OSError:
    return OSError(reason, os.strerror(reason))


def _invalid(root: Path, error: OSError) -> InvalidInput:
    return InvalidInput(
        f"{root} can't be a working folder: {error.strerror}",
        code="invalid_workdir",
        param="workdir",
        fix="name a folder, or a path where one may be made",
    )
