"""The working folder: where everything that one installation keeps lies. Paths only; it creates nothing but folders.

config.yaml        resolved settings of the last run        runs/       Ray Train runs and their checkpoints
keys/              signing keys and nonces, mode 0600       adapters/   PEFT folders with cards, registry.db
datanets/          shards, receipts, versions               indexes/    attribution indexes
ledger/            ledger.db, answers.db                    proofs/     exported proofs
report.json        the last run's report                    running     lock of the process that serves
incoming/          adapters to be added over HTTP           cache/      adapters fetched from elsewhere
rows/              row scores of settled periods
"""

from dataclasses import dataclass
from pathlib import Path

from openledger.core.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Workdir:
    root: Path

    def __post_init__(self) -> None:
        """Raises InvalidInput (`invalid_workdir`) where no folder can be."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"{self.root} can't be a working folder: {error.strerror}",
                code="invalid_workdir",
                param="workdir",
                fix="name a folder, or a path where one may be made",
            ) from error

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
