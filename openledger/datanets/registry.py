"""What is known about Datanets apart from their rows: contributors, contributions with their verdicts, versions.

Owns one SQLite file (WAL, `synchronous=FULL`: a commit is on disk when it returns). Knows neither the gate nor the
shards. A contribution is `pending` from the moment its verdicts are fixed until its rows stand in the shards, and keeps
its drafts until then; so whatever was cut off can be finished with the same verdicts. Where a review or an appeal
changes a verdict, what the gate had said is kept beside it: a contribution that is sent again gets the same answer.

Each opening takes the next epoch. A process that was replaced, and doesn't know it, is refused by its old one: its
duplicate index is no longer the whole truth.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

import apsw

from openledger.core.database import check_sqlite_version, writing
from openledger.core.errors import Conflict, Corrupt, InvalidInput, NotFound, Unavailable
from openledger.core.files import sync_folder
from openledger.core.signed import contribution_id
from openledger.core.values import Contribution, ContributionReceipt, DatanetVersion, Outcome, RowDraft, Verdict
from openledger.datanets.appeals import SCHEMA as APPEALS_SCHEMA
from openledger.datanets.appeals import AppealStore
from openledger.datanets.contribution import drafts_json
from openledger.datanets.feedback import SCHEMA as FEEDBACK_SCHEMA
from openledger.datanets.feedback import FeedbackStore
from openledger.datanets.folders import make_folder
from openledger.datanets.holders import SCHEMA as HOLDERS_SCHEMA
from openledger.datanets.holders import HolderStore
from openledger.datanets.leaderboard import Leaderboard, LeaderboardCache
from openledger.datanets.licences import SCHEMA as LICENCES_SCHEMA
from openledger.datanets.panels import SCHEMA as PANELS_SCHEMA
from openledger.datanets.panels import PanelStore
from openledger.datanets.reviews import SCHEMA as REVIEWS_SCHEMA
from openledger.datanets.reviews import ReviewStore
from openledger.datanets.row_schema import PLAIN, RowSchema
from openledger.datanets.seals import SCHEMA as SEALS_SCHEMA
from openledger.datanets.seals import Opening, Place, SealStore
from openledger.datanets.terms import SCHEMA as TERMS_SCHEMA
from openledger.datanets.terms import TermsBook
from openledger.datanets.tombstones import REMOVED, Tombstones
from openledger.datanets.tombstones import SCHEMA as REMOVALS_SCHEMA

FORMAT = "1"
Display = Literal["none", "reference", "text"]
DEFAULT_DISPLAY: Display = "reference"
_BUSY_MS = 10_000
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA secure_delete=ON",  # drafts that were dropped leave no bytes behind
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS properties (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS datanets (
    name TEXT PRIMARY KEY, summary TEXT NOT NULL, owner TEXT NOT NULL, created_ms INTEGER NOT NULL,
    display TEXT NOT NULL DEFAULT 'reference' CHECK (display IN ('none', 'reference', 'text')),
    row_schema TEXT NOT NULL DEFAULT ''
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contributors (
    contributor_id TEXT PRIMARY KEY, public_key TEXT NOT NULL, name TEXT NOT NULL, registered_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contributions (
    sequence INTEGER PRIMARY KEY,
    contribution_id TEXT NOT NULL UNIQUE,
    datanet TEXT NOT NULL REFERENCES datanets (name),
    contributor_id TEXT NOT NULL REFERENCES contributors (contributor_id),
    content_root TEXT NOT NULL, nonce TEXT NOT NULL, signature TEXT NOT NULL,
    gate_version TEXT NOT NULL, received_ms INTEGER NOT NULL,
    pending_drafts TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS contributions_of_datanet ON contributions (datanet);
CREATE INDEX IF NOT EXISTS pending_contributions ON contributions (datanet) WHERE pending_drafts IS NOT NULL;
CREATE TABLE IF NOT EXISTS verdicts (
    sequence INTEGER NOT NULL REFERENCES contributions (sequence), ordinal INTEGER NOT NULL, row_id TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('accept', 'reject', 'review')),
    reasons TEXT NOT NULL, duplicate_of TEXT,
    PRIMARY KEY (sequence, ordinal)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS verdicts_of_row ON verdicts (row_id);
CREATE TABLE IF NOT EXISTS first_verdicts (
    sequence INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    outcome TEXT NOT NULL, reasons TEXT NOT NULL, duplicate_of TEXT,
    PRIMARY KEY (sequence, ordinal), FOREIGN KEY (sequence, ordinal) REFERENCES verdicts (sequence, ordinal)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS keep_first_verdict BEFORE UPDATE ON verdicts BEGIN
    INSERT OR IGNORE INTO first_verdicts
    VALUES (OLD.sequence, OLD.ordinal, OLD.outcome, OLD.reasons, OLD.duplicate_of);
END;
CREATE TABLE IF NOT EXISTS versions (
    datanet TEXT NOT NULL REFERENCES datanets (name), number INTEGER NOT NULL, row_root TEXT NOT NULL,
    num_rows INTEGER NOT NULL, gate_version TEXT NOT NULL, published_ms INTEGER NOT NULL,
    credit_root TEXT NOT NULL DEFAULT '', stated_digest TEXT,
    PRIMARY KEY (datanet, number)
) STRICT, WITHOUT ROWID;
"""
_SCHEMAS = (
    _SCHEMA, SEALS_SCHEMA, APPEALS_SCHEMA, REMOVALS_SCHEMA, TERMS_SCHEMA, REVIEWS_SCHEMA, FEEDBACK_SCHEMA,
    HOLDERS_SCHEMA, PANELS_SCHEMA, LICENCES_SCHEMA,
)  # fmt: skip
_VERDICTS = "SELECT row_id, ordinal, outcome, reasons, duplicate_of FROM verdicts WHERE sequence = ? ORDER BY ordinal"
_FIRST_VERDICTS = (
    "SELECT row_id, ordinal, coalesce(f.outcome, v.outcome), coalesce(f.reasons, v.reasons),"
    " iif(f.outcome IS NULL, v.duplicate_of, f.duplicate_of)"
    " FROM verdicts v LEFT JOIN first_verdicts f USING (sequence, ordinal) WHERE sequence = ? ORDER BY ordinal"
)
_CREDITED = (  # rows of contributions with their places: see `seals`
    "FROM contributions JOIN verdicts USING (sequence) LEFT JOIN seals USING (sequence)"
    " {where} ORDER BY coalesce(seals.place_after, sequence), coalesce(seals.number, 0), ordinal"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Datanet:
    """A community dataset for one domain. `owner` is the account or contributor that created it.

    `display` is what a customer may see of a row that an answer rests on: nothing, who contributed it and its id, or
    its text as well. `row_schema` is fixed when it is created.
    """

    name: str
    summary: str
    owner: str
    display: Display = DEFAULT_DISPLAY
    row_schema: RowSchema = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributor:
    contributor_id: str
    public_key: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributorStatistics:
    """One contributor's rows in one Datanet by outcome; those taken back are `removed` and nothing else. `reasons`
    counts codes, a row may have several."""

    contributor_id: str
    name: str
    accepted: int
    rejected: int
    review: int
    removed: int = 0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CreditedRow:
    """A stored row: its place, then its number within its contribution."""

    row_id: str
    datanet: str
    order: tuple[Place, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingContribution:
    """Judged, perhaps not yet stored."""

    receipt: ContributionReceipt
    drafts: tuple[RowDraft, ...]


def check_display(display: str) -> None:
    """Raises InvalidInput (`invalid_display`)."""
    if display not in get_args(Display):
        raise InvalidInput(
            f"{display!r} is no display policy",
            code="invalid_display",
            param="display",
            fix=f"one of {', '.join(get_args(Display))}",
        )


class Registry:
    def __init__(self, path: Path):
        check_sqlite_version(apsw.sqlite_lib_version())
        make_folder(path.parent)
        self._path = path
        try:
            self._connection = apsw.Connection(str(path))
            self._connection.set_busy_timeout(_BUSY_MS)
            for statement in _PRAGMAS:
                self._connection.execute(statement).fetchall()
            with self._connection:
                for schema in _SCHEMAS:
                    self._connection.execute(schema)
                self._add_columns()
            self._forget_text_of_before()
            self._check_format()
            self.epoch = self._next_epoch()
            self.seals = SealStore(self._connection, self._writing)
            self.holders = HolderStore(self._connection, self._writing)
            self.appeals = AppealStore(self._connection, self._writing, self.holders.held_by)
            sync_folder(path.parent)
            self.tombstones = Tombstones(self._connection, self._writing)
            self.terms = TermsBook(self._connection, self._writing)
            self.reviews = ReviewStore(self._connection, self._writing)
            self.panels = PanelStore(self._connection, self._writing)
            self.feedback = FeedbackStore(self._connection, self._writing)
            self._leaderboards = LeaderboardCache(self._connection, self.feedback.counts)
        except (apsw.NotADBError, apsw.CorruptError) as error:
            raise Corrupt(f"{path} is no registry: {error}", code="corrupt_registry", param=str(path)) from error

    def close(self) -> None:
        self._connection.close()

    def fix_property(self, name: str, value: str) -> str:
        """The stored value of a property that is set once; `value` if there was none."""
        with self._writing():
            self._connection.execute("INSERT OR IGNORE INTO properties VALUES (?, ?)", (name, value))
        return str(self._connection.execute("SELECT value FROM properties WHERE name = ?", (name,)).get)

    def find_property(self, name: str) -> str | None:
        row = self._connection.execute("SELECT value FROM properties WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_property(self, name: str, value: str) -> None:
        with self._writing():
            self._connection.execute("INSERT OR REPLACE INTO properties VALUES (?, ?)", (name, value))

    def add_datanet(self, datanet: Datanet, created_ms: int) -> None:
        """Raises Conflict when the name stands for other content."""
        with self._writing():
            stored = self._find_datanet(datanet.name)
            if stored is None:
                schema = json.dumps(datanet.row_schema.to_json())
                values = (datanet.name, datanet.summary, datanet.owner, created_ms, datanet.display, schema)
                self._connection.execute(
                    "INSERT INTO datanets (name, summary, owner, created_ms, display, row_schema)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    values,
                )
            elif replace(stored, display=datanet.display) != datanet:
                raise Conflict(
                    f"the Datanet {datanet.name!r} exists with another summary, owner or row schema",
                    code="datanet_exists",
                    param="name",
                    fix="choose another name",
                )

    def datanet(self, name: str) -> Datanet:
        found = self._find_datanet(name)
        if found is None:
            raise NotFound(
                f"there is no Datanet {name!r}",
                code="unknown_datanet",
                param="datanet",
                fix="'openledger datanets' lists them; 'openledger datanet create' makes one",
            )
        return found

    def set_display(self, name: str, display: Display) -> Datanet:
        """Raises NotFound, and InvalidInput for a policy that there isn't."""
        check_display(display)
        self.datanet(name)
        with self._writing():
            self._connection.execute("UPDATE datanets SET display = ? WHERE name = ?", (display, name))
        return self.datanet(name)

    def names(self) -> list[str]:
        return [name for (name,) in self._connection.execute("SELECT name FROM datanets ORDER BY name")]

    def add_contributor(self, contributor: Contributor, registered_ms: int) -> None:
        """Raises Conflict when the key is registered under another name."""
        with self._writing():
            stored = self._find_contributor(contributor.contributor_id)
            if stored is None:
                values = (contributor.contributor_id, contributor.public_key, contributor.name, registered_ms)
                self._connection.execute("INSERT INTO contributors VALUES (?, ?, ?, ?)", values)
            elif stored != contributor:
                raise Conflict(
                    f"this key is registered as {stored.name!r}", code="contributor_exists", param="public_key"
                )

    def contributed_by(self, datanet: str, row_ids: Iterable[str]) -> dict[str, str]:
        """The contributor of each of these rows that was stored in the Datanet, also of removed ones."""
        query = (
            "SELECT contributor_id FROM verdicts JOIN contributions USING (sequence)"
            " WHERE row_id = ? AND datanet = ? AND outcome != 'reject'"
        )
        found = {row_id: self._connection.execute(query, (row_id, datanet)).fetchone() for row_id in row_ids}
        return {row_id: row[0] for row_id, row in found.items() if row is not None}

    def origin(self, row_id: str) -> tuple[str, str] | None:
        """The Datanet in which a row stands, or would if it hadn't been refused, and its contributor."""
        row = self._connection.execute(
            "SELECT datanet, contributor_id FROM verdicts JOIN contributions USING (sequence) WHERE row_id = ?"
            " ORDER BY outcome = 'reject', sequence LIMIT 1",
            (row_id,),
        ).fetchone()
        return None if row is None else (str(row[0]), str(row[1]))

    def knows_contributor(self, contributor_id: str) -> bool:
        return self._find_contributor(contributor_id) is not None

    def contributor(self, contributor_id: str) -> Contributor:
        found = self._find_contributor(contributor_id)
        if found is None:
            raise NotFound(
                f"the contributor {contributor_id} is not registered",
                code="unknown_contributor",
                param="contributor_id",
                fix="register the public key first",
            )
        return found

    def contributors(self) -> list[Contributor]:
        rows = self._connection.execute("SELECT contributor_id, public_key, name FROM contributors ORDER BY name")
        return [Contributor(contributor_id=a, public_key=b, name=c) for a, b, c in rows]

    def begin_contribution(
        self,
        contribution: Contribution,
        verdicts: tuple[Verdict, ...],
        gate_version: str,
        received_ms: int,
        opening: Opening | None = None,
    ) -> PendingContribution:
        """Fix the verdicts durably, with the seal that the contribution opens. From here on it will be stored, by this
        process or the next."""
        drafts = drafts_json(contribution.drafts)
        identifier = contribution_id(contribution)
        with self._writing():
            self._connection.execute(
                "INSERT INTO contributions (contribution_id, datanet, contributor_id, content_root, nonce, signature,"
                " gate_version, received_ms, pending_drafts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (identifier, contribution.datanet, contribution.contributor_id, contribution.content_root,
                 contribution.nonce, contribution.signature, gate_version, received_ms, drafts),
            )  # fmt: skip
            sequence = self._connection.last_insert_rowid()
            self._connection.executemany(
                "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?)",
                [(sequence, v.ordinal, v.row_id, v.outcome, _as_json(v.reasons), v.duplicate_of) for v in verdicts],
            )
            if opening is not None:
                self.seals.open(opening, sequence, received_ms)
        receipt = ContributionReceipt(
            contribution_id=identifier,
            datanet=contribution.datanet,
            contributor_id=contribution.contributor_id,
            verdicts=verdicts,
        )
        return PendingContribution(receipt=receipt, drafts=contribution.drafts)

    def finish_contributions(self, contribution_ids: Iterable[str]) -> None:
        """Their rows stand in the shards: forget the drafts."""
        with self._writing():
            self._connection.executemany(
                "UPDATE contributions SET pending_drafts = NULL WHERE contribution_id = ?",
                [(one,) for one in contribution_ids],
            )

    def receipt(self, contribution_id: str) -> ContributionReceipt | None:
        """A contribution, also one that is pending, with its verdicts as they stand; None if it was never judged."""
        return self._receipt(contribution_id, _VERDICTS)

    def first_receipt(self, contribution_id: str) -> ContributionReceipt | None:
        """`receipt` with what the gate said, whatever reviews and appeals made of it."""
        return self._receipt(contribution_id, _FIRST_VERDICTS)

    def _receipt(self, contribution_id: str, query: str) -> ContributionReceipt | None:
        row = self._connection.execute(
            "SELECT sequence, datanet, contributor_id FROM contributions WHERE contribution_id = ?", (contribution_id,)
        ).fetchone()
        if row is None:
            return None
        sequence, datanet, contributor = row
        return ContributionReceipt(
            contribution_id=contribution_id,
            datanet=datanet,
            contributor_id=contributor,
            verdicts=tuple(self._verdicts(sequence, query)),
        )

    def is_pending(self, contribution_id: str) -> bool:
        """Whether it was judged and perhaps not stored."""
        query = "SELECT count(*) FROM contributions WHERE contribution_id = ? AND pending_drafts IS NOT NULL"
        return bool(self._connection.execute(query, (contribution_id,)).get)

    def find_pending(self, contribution_id: str) -> PendingContribution | None:
        """With its drafts, of which there may be many: one at a time. None where it isn't pending."""
        query = "SELECT pending_drafts FROM contributions WHERE contribution_id = ? AND pending_drafts IS NOT NULL"
        row = self._connection.execute(query, (contribution_id,)).fetchone()
        receipt = None if row is None else self.first_receipt(contribution_id)
        if row is None or receipt is None:
            return None
        return PendingContribution(receipt=receipt, drafts=tuple(RowDraft(**one) for one in json.loads(str(row[0]))))

    def pending_ids(self, datanets: Iterable[str]) -> list[str]:
        """Contributions to these Datanets that are pending, oldest first."""
        query = "SELECT sequence, contribution_id FROM contributions WHERE datanet = ? AND pending_drafts IS NOT NULL"
        found = [one for name in datanets for one in self._connection.execute(query, (name,))]
        return [str(identifier) for _, identifier in sorted(found)]

    def row_ids(self, datanet: str, outcomes: Iterable[Outcome]) -> list[str]:
        """Ids of the Datanet's rows with one of these outcomes, in the order in which they were credited."""
        wanted = set(outcomes)
        where = f"WHERE contributions.datanet = ? AND row_id NOT IN ({REMOVED})"
        rows = self._connection.execute("SELECT row_id, outcome " + _CREDITED.format(where=where), (datanet,))
        return [row_id for row_id, outcome in rows if outcome in wanted]

    def received_since(self, datanet: str, contributor_id: str, since_ms: int) -> list[tuple[int, int]]:
        """When a contributor's contributions came, and of how many rows, whatever became of them; oldest first."""
        query = (
            "SELECT received_ms, count(*) FROM contributions JOIN verdicts USING (sequence)"
            " WHERE datanet = ? AND contributor_id = ? AND received_ms > ? GROUP BY sequence ORDER BY received_ms"
        )
        rows = self._connection.execute(query, (datanet, contributor_id, since_ms))
        return [(int(received_ms), int(number)) for received_ms, number in rows]

    def credit_order(self) -> list[str]:
        """Ids of all stored rows of all Datanets, first credited first."""
        return [one.row_id for one in self.credited()]

    def credited(self) -> list[CreditedRow]:
        """The rows of `credit_order` with their places."""
        place = "coalesce(seals.place_after, sequence), coalesce(seals.number, 0)"
        where = f"WHERE outcome != 'reject' AND row_id NOT IN ({REMOVED})"
        query = f"SELECT row_id, contributions.datanet, {place}, ordinal " + _CREDITED.format(where=where)
        return [
            CreditedRow(row_id, datanet, ((after, number), ordinal))
            for row_id, datanet, after, number, ordinal in self._connection.execute(query)
        ]

    def next_place(self) -> Place:
        """Where rows stand that come now, without a seal."""
        return int(self._connection.execute("SELECT coalesce(max(sequence), 0) + 1 FROM contributions").get), 0

    def place_of(self, sequence: int) -> Place:
        """Where the rows of a contribution stand, sealed or not."""
        query = "SELECT place_after, number FROM seals WHERE sequence = ?"
        row = self._connection.execute(query, (sequence,)).fetchone()
        return (sequence, 0) if row is None else (int(row[0]), int(row[1]))

    def add_version(self, version: DatanetVersion, stated_digest: str) -> None:
        with self._writing():
            self._connection.execute(
                "INSERT INTO versions (datanet, number, row_root, num_rows, gate_version, published_ms, credit_root,"
                " stated_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (version.datanet, version.number, version.row_root, version.num_rows, version.gate_version,
                 version.published_ms, version.credit_root, stated_digest),
            )  # fmt: skip

    def stated_digest(self, version: DatanetVersion) -> str:
        """See `versions.stated_digest`; empty for one that was published before digests were kept."""
        query = "SELECT stated_digest FROM versions WHERE datanet = ? AND number = ?"
        row = self._connection.execute(query, (version.datanet, version.number)).fetchone()
        return "" if row is None or row[0] is None else str(row[0])

    def versions(self, datanet: str) -> list[DatanetVersion]:
        rows = self._connection.execute(
            "SELECT number, row_root, num_rows, gate_version, published_ms, credit_root FROM versions"
            " WHERE datanet = ? ORDER BY number",
            (datanet,),
        )
        return [
            DatanetVersion(
                datanet=datanet,
                number=number,
                row_root=root,
                num_rows=num_rows,
                gate_version=gate,
                published_ms=time,
                credit_root=credit,
            )
            for number, root, num_rows, gate, time, credit in rows
        ]

    def statistics(self, datanet: str) -> list[ContributorStatistics]:
        """Sorted by name, then id."""
        outcomes, reasons = self._counts(datanet)
        contributors = sorted({contributor for contributor, _ in outcomes})
        found = [
            ContributorStatistics(
                contributor_id=contributor,
                name=self.contributor(contributor).name,
                accepted=outcomes[contributor, "accept"],
                rejected=outcomes[contributor, "reject"],
                review=outcomes[contributor, "review"],
                removed=outcomes[contributor, "removed"],
                reasons={code: number for (who, code), number in sorted(reasons.items()) if who == contributor},
            )
            for contributor in contributors
        ]
        return sorted(found, key=lambda one: (one.name, one.contributor_id))

    def leaderboard(self, datanet: str, now_ms: int) -> Leaderboard:
        return self._leaderboards.read(datanet, now_ms)

    def _counts(self, datanet: str) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
        outcomes: Counter[tuple[str, str]] = Counter()
        reasons: Counter[tuple[str, str]] = Counter()
        for contributor, outcome, codes, number in self._connection.execute(
            "SELECT contributor_id, CASE WHEN removed_rows.row_id IS NULL THEN outcome ELSE 'removed' END, reasons,"
            " count(*) FROM contributions JOIN verdicts USING (sequence) LEFT JOIN removed_rows USING (row_id)"
            " WHERE datanet = ? GROUP BY 1, 2, 3",
            (datanet,),
        ):
            outcomes[contributor, outcome] += number
            for code in json.loads(codes):
                reasons[contributor, code] += number
        return outcomes, reasons

    def _verdicts(self, sequence: int, query: str) -> Iterator[Verdict]:
        for row_id, ordinal, outcome, reasons, duplicate_of in self._connection.execute(query, (sequence,)):
            yield Verdict(
                row_id=row_id,
                ordinal=ordinal,
                outcome=outcome,
                reasons=tuple(json.loads(reasons)),
                duplicate_of=duplicate_of,
            )

    def _find_datanet(self, name: str) -> Datanet | None:
        query = "SELECT name, summary, owner, display, row_schema FROM datanets WHERE name = ?"
        found = self._connection.execute(query, (name,)).fetchone()
        if found is None:
            return None
        schema = RowSchema.from_json(json.loads(found[4])) if found[4] else PLAIN
        return Datanet(name=found[0], summary=found[1], owner=found[2], display=found[3], row_schema=schema)

    def _find_contributor(self, contributor_id: str) -> Contributor | None:
        row = self._connection.execute(
            "SELECT contributor_id, public_key, name FROM contributors WHERE contributor_id = ?", (contributor_id,)
        ).fetchone()
        return Contributor(contributor_id=row[0], public_key=row[1], name=row[2]) if row else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One durable transaction; refused when a later process has opened the registry."""
        try:
            with writing(self._connection):
                self._check_epoch()
                yield
        except (apsw.BusyError, apsw.FullError, apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError) as error:
            raise self._unavailable(str(error)) from error

    def _check_epoch(self) -> None:
        if self._stored_epoch() != self.epoch:
            raise Unavailable(
                f"another process has opened {self._path}",
                code="stale_process",
                fix="send the request to the process that has it now",
            )

    def _add_columns(self) -> None:
        """Registries of before had no such columns."""
        columns = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(datanets)")}
        if "row_schema" not in columns:
            self._connection.execute("ALTER TABLE datanets ADD COLUMN row_schema TEXT NOT NULL DEFAULT ''")
        if "display" not in columns:
            self._connection.execute(
                "ALTER TABLE datanets ADD COLUMN display TEXT NOT NULL DEFAULT 'reference'"
                " CHECK (display IN ('none', 'reference', 'text'))"
            )
        columns = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(versions)")}
        if "credit_root" not in columns:
            self._connection.execute("ALTER TABLE versions ADD COLUMN credit_root TEXT NOT NULL DEFAULT ''")
        if "stated_digest" not in columns:
            self._connection.execute("ALTER TABLE versions ADD COLUMN stated_digest TEXT")
        columns = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(seals)")}
        if "licence" not in columns:
            self._connection.execute("ALTER TABLE seals ADD COLUMN licence TEXT")
        columns = {name for _, name, *_ in self._connection.execute("PRAGMA table_info(decisions)")}
        if "told" not in columns:
            self._connection.execute("ALTER TABLE decisions ADD COLUMN told INTEGER NOT NULL DEFAULT 0")

    def _forget_text_of_before(self) -> None:
        """Registries of before kept the bytes of dropped drafts in their free pages."""
        query = "SELECT value FROM properties WHERE name = 'secure_delete'"
        if self._connection.execute(query).fetchone() is None:
            self._connection.execute("VACUUM")
            self._connection.execute("INSERT OR IGNORE INTO properties VALUES ('secure_delete', '1')")

    def _check_format(self) -> None:
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO properties VALUES ('format', ?)", (FORMAT,))
        stored = self._connection.execute("SELECT value FROM properties WHERE name = 'format'").get
        if stored != FORMAT:
            raise Corrupt(f"{self._path} has format {stored}, not {FORMAT}", code="unknown_format")

    def _next_epoch(self) -> int:
        with writing(self._connection):
            epoch = self._stored_epoch() + 1
            self._connection.execute("INSERT OR REPLACE INTO properties VALUES ('epoch', ?)", (str(epoch),))
        return epoch

    def _stored_epoch(self) -> int:
        row = self._connection.execute("SELECT value FROM properties WHERE name = 'epoch'").fetchone()
        return int(row[0]) if row else 0

    def _unavailable(self, problem: str) -> Unavailable:
        return Unavailable(
            f"can't write {self._path}: {problem}",
            code="storage_unavailable",
            param=str(self._path),
            fix="free space or restore access, then send the same again",
        )


@lru_cache(maxsize=1_000)
def _as_json(reasons: tuple[str, ...]) -> str:
    return json.dumps(reasons)
