"""On what terms a Datanet is open: its description, licence, quota, and who may contribute to it and train on it.

Owns the values, their checks and the two tables that keep them, in the registry's SQLite file. Permissions go

    requested -> approved -> revoked (or expired)

for a party (a contributor for `contribute`, an account for `train`). The owner may always do both. They are asked where
rows are stored and read, not where a page is shown.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import apsw

from openledger.core.errors import Corrupt, Forbidden, InvalidInput, TooLarge
from openledger.datanets.language import KNOWN_LANGUAGES
from openledger.datanets.licences import LICENCES, WITHDRAWN, FormerLicences, may_train

Action = Literal["contribute", "train"]
State = Literal["requested", "approved", "revoked"]
CONTRIBUTE_ACCESS = ("open", "approval", "invited")
TRAIN_ACCESS = ("open", "request", "private")
SCHEMA = """
CREATE TABLE IF NOT EXISTS terms (
    datanet TEXT PRIMARY KEY REFERENCES datanets (name), value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS permissions (
    datanet TEXT NOT NULL REFERENCES datanets (name), party TEXT NOT NULL,
    action TEXT NOT NULL CHECK (action IN ('contribute', 'train')),
    state TEXT NOT NULL CHECK (state IN ('requested', 'approved', 'revoked')),
    expires_ms INTEGER NOT NULL, changed_ms INTEGER NOT NULL,
    PRIMARY KEY (datanet, action, party)
) STRICT, WITHOUT ROWID;
"""
_MAX_DESCRIPTION_CHARS = 20_000
_MAX_TAGS = 16
MAX_REVIEWS = 9
MIN_PANEL = 3  # of two, each tells what the other said


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """`licence` is an SPDX id of LICENCES, or `withdrawn`. `max_rows_a_day` is what one contributor may send in 24
    hours, `max_rows_an_hour` in one, 0 for any number. `languages` are BCP 47 tags; with `only_languages` the gate
    rejects rows in others. `min_reviews` is how many reviewers look at a row before it is decided (see `reviews`); with
    `panel` they commit to their verdicts before anybody tells his (see `panels`)."""

    description: str = ""
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ("en",)
    licence: str = "LicenseRef-openledger-training"
    contribute: str = "open"
    train: str = "open"
    max_rows_a_day: int = 0
    max_rows_an_hour: int = 0
    only_languages: bool = False
    min_reviews: int = 1
    panel: bool = False

    def __post_init__(self) -> None:
        if self.licence not in LICENCES and self.licence != WITHDRAWN:
            raise _invalid("licence", f"{self.licence!r} is no licence that is known here", ", ".join(LICENCES))
        if self.contribute not in CONTRIBUTE_ACCESS:
            raise _invalid("contribute", f"{self.contribute!r} is no access", ", ".join(CONTRIBUTE_ACCESS))
        if self.train not in TRAIN_ACCESS:
            raise _invalid("train", f"{self.train!r} is no access", ", ".join(TRAIN_ACCESS))
        if len(self.description) > _MAX_DESCRIPTION_CHARS:
            raise _invalid("description", "the description is too long", f"at most {_MAX_DESCRIPTION_CHARS} characters")
        if len(self.tags) > _MAX_TAGS or not all(tag and tag.isprintable() and len(tag) <= 64 for tag in self.tags):
            raise _invalid("tags", "not a list of tags", f"at most {_MAX_TAGS}, of 1 to 64 characters")
        if self.only_languages and not (self.spoken and set(self.spoken) <= KNOWN_LANGUAGES):
            unknown = ", ".join(sorted(set(self.spoken) - KNOWN_LANGUAGES)) or "none"
            raise _invalid("languages", f"the gate can't tell apart: {unknown}", " ".join(sorted(KNOWN_LANGUAGES)))
        if not 1 <= self.min_reviews <= MAX_REVIEWS:
            raise _invalid("min_reviews", f"{self.min_reviews} reviewers can't be asked", f"1 to {MAX_REVIEWS}")
        if self.panel and self.min_reviews < MIN_PANEL:
            raise _invalid("panel", "a panel has several reviewers", f"set min_reviews to {MIN_PANEL} or more")
        for name in ("max_rows_a_day", "max_rows_an_hour"):
            if getattr(self, name) < 0:
                raise _invalid(name, "a quota isn't negative", "0 for none")

    @property
    def spoken(self) -> tuple[str, ...]:
        """`languages` as ISO 639-1."""
        return tuple(tag.partition("-")[0].lower() for tag in self.languages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """`expires_ms` 0 is never."""

    party: str
    action: Action
    state: State
    expires_ms: int

    def allows(self, now_ms: int) -> bool:
        return self.state == "approved" and (not self.expires_ms or now_ms < self.expires_ms)


MAX_OPEN_REQUESTS = 1_000  # for each Datanet


class TermsBook:
    """Shares the registry's connection; `writing` is its durable transaction."""

    def __init__(self, connection: apsw.Connection, writing: Callable[[], AbstractContextManager[None]]):
        self._connection = connection
        self._writing = writing
        self.licences = FormerLicences(connection)

    def terms(self, datanet: str) -> Terms:
        """The defaults where none were set."""
        row = self._connection.execute("SELECT value FROM terms WHERE datanet = ?", (datanet,)).fetchone()
        if row is None:
            return Terms()
        try:
            value: dict[str, Any] = json.loads(str(row[0]))
            values: Any = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
            return Terms(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise Corrupt(
                f"the terms of {datanet} can't be read: {error}", code="corrupt_terms", param=datanet
            ) from error

    def are_set(self, datanet: str) -> bool:
        return self._connection.execute("SELECT 1 FROM terms WHERE datanet = ?", (datanet,)).fetchone() is not None

    def set_terms(self, datanet: str, terms: Terms) -> None:
        former = self.terms(datanet).licence
        with self._writing():
            if terms.licence != former:
                self.licences.end(datanet, former)
            value = json.dumps(asdict(terms))
            self._connection.execute("INSERT OR REPLACE INTO terms VALUES (?, ?)", (datanet, value))

    def permission(self, datanet: str, party: str, action: Action) -> Permission | None:
        query = "SELECT state, expires_ms FROM permissions WHERE datanet = ? AND action = ? AND party = ?"
        row: Any = self._connection.execute(query, (datanet, action, party)).fetchone()
        return None if row is None else Permission(party=party, action=action, state=row[0], expires_ms=row[1])

    def permissions(self, datanet: str) -> list[Permission]:
        query = "SELECT party, action, state, expires_ms FROM permissions WHERE datanet = ? ORDER BY action, party"
        rows: list[Any] = self._connection.execute(query, (datanet,)).fetchall()
        return [Permission(party=row[0], action=row[1], state=row[2], expires_ms=row[3]) for row in rows]

    def check_request(self, datanet: str, party: str, action: Action) -> None:
        """Anybody with a key may ask. Raises TooLarge (`too_many_requests_open`) where too many wait for the owner."""
        query = "SELECT count(*) FROM permissions WHERE datanet = ? AND state = 'requested'"
        row: Any = self._connection.execute(query, (datanet,)).fetchone()
        if row[0] >= MAX_OPEN_REQUESTS and self.permission(datanet, party, action) is None:
            raise TooLarge(
                f"{row[0]} requests wait for the owner of {datanet!r}",
                code="too_many_requests_open",
                param="party",
                fix="ask again when the owner has answered some, or be invited",
            )

    def set_permission(self, datanet: str, permission: Permission, now_ms: int) -> None:
        one = permission
        with self._writing():
            self._connection.execute(
                "INSERT OR REPLACE INTO permissions VALUES (?, ?, ?, ?, ?, ?)",
                (datanet, one.party, one.action, one.state, one.expires_ms, now_ms),
            )


def changed_terms(terms: Terms | None, changes: Mapping[str, Any]) -> Terms:
    """`terms` (None: the defaults) with `changes` as JSON has them. Raises InvalidInput (`invalid_terms`)."""
    values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    try:
        return replace(terms or Terms(), **values)
    except TypeError as error:
        raise _invalid("terms", f"not terms of a Datanet: {error}", ", ".join(Terms.__dataclass_fields__)) from error


def check_action(action: str) -> None:
    if action not in get_args(Action):
        raise _invalid("action", f"{action!r} is no action", " or ".join(get_args(Action)))


def check_permitted(terms: Terms, permission: Permission | None, action: Action, party: str, now_ms: int) -> None:
    """Raises Forbidden (`not_permitted`) where `party` isn't the owner and the terms ask for more than it has."""
    access = terms.contribute if action == "contribute" else terms.train
    if permission is not None and permission.state == "revoked":
        raise _forbidden(f"{party} may not {action} here any more", "ask the owner")
    if access != "open" and (permission is None or not permission.allows(now_ms)):
        fix = "request it, and wait for the owner" if access in ("approval", "request") else "ask the owner"
        raise _forbidden(f"{party} may not {action} here: that is by {access}", fix)


def check_licence(terms: Terms) -> None:
    """Raises Forbidden (`licence_forbids`, `licence_withdrawn`) where nobody may train and sell on these terms."""
    check_not_withdrawn(terms)
    if not may_train(terms.licence):
        raise Forbidden(
            f"{terms.licence} doesn't let an adapter be trained on the rows and sold",
            code="licence_forbids",
            param="licence",
            fix="agree on another licence with the contributors",
        )


def check_not_withdrawn(terms: Terms) -> None:
    """Raises Forbidden (`licence_withdrawn`) where rows are neither taken nor trained on any more."""
    if terms.licence == WITHDRAWN:
        raise Forbidden(
            "the Datanet's licence was withdrawn",
            code="licence_withdrawn",
            param="licence",
            fix="ask its owner: 'openledger datanet terms DATANET --licence ID' gives it one again",
        )


def _forbidden(message: str, fix: str) -> Forbidden:
    return Forbidden(message, code="not_permitted", param="party", fix=fix)


def _invalid(param: str, message: str, fix: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_terms", param=param, fix=f"one of: {fix}" if "," in fix else fix)
