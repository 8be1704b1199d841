"""A Datanet's leaderboard: who contributes, how fast, and whether they come back. Counts alone; money is the economy's.

A week is seven days from the first of January 1970 on, a Thursday, in UTC. Velocity counts rows that were received in
the last 24 hours or seven days and stand accepted now. Retention follows cohorts: of the contributors whose first
contribution came in week w, how many sent one in week w + k.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import apsw

from openledger.core.errors import NotFound

DAY_MS = 24 * 60 * 60 * 1000
WEEK_MS = 7 * DAY_MS
KEPT_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """`duplicates` are among the rejected; `rows_a_day` and `rows_a_week` are accepted rows of the last day and week;
    `feedback` counts corrections, edge cases and ratings."""

    contributor_id: str
    name: str
    accepted: int
    rejected: int
    duplicates: int
    review: int
    removed: int
    rows_a_day: int
    rows_a_week: int
    weeks_active: int
    first_ms: int
    last_ms: int
    feedback: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Contributors who began in the week from `week_ms` on: `active[k]` of them contributed k weeks later."""

    week_ms: int
    active: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderboardPage:
    """Some of the `contributors`, of which `first` is the place of the first one, counted from 0; all else is of the
    whole leaderboard."""

    first: int
    contributors: tuple[Activity, ...]
    num_contributors: int
    rows_a_week: int
    duplicates: int
    cohorts: tuple[Cohort, ...]
    reviewers: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """`reviewers`: how many reviews each has made."""

    contributors: tuple[Activity, ...]
    cohorts: tuple[Cohort, ...]
    reviewers: Mapping[str, int]

    def page(self, after: str, limit: int) -> LeaderboardPage:
        """Up to `limit` contributors behind the one whose id is `after`, or from the top without it. Raises NotFound
        (`unknown_contributor`) for who isn't on it."""
        first = 0
        if after:
            places = {one.contributor_id: place for place, one in enumerate(self.contributors)}
            if after not in places:
                raise NotFound(
                    f"{after} isn't on this leaderboard",
                    code="unknown_contributor",
                    param="after",
                    fix="send the last contributor_id of the page before, or nothing to begin at the top",
                )
            first = places[after] + 1
        return LeaderboardPage(
            first=first,
            contributors=self.contributors[first : first + limit],
            num_contributors=len(self.contributors),
            rows_a_week=sum(one.rows_a_week for one in self.contributors),
            duplicates=sum(one.duplicates for one in self.contributors),
            cohorts=self.cohorts,
            reviewers=self.reviewers,
        )


class LeaderboardCache:
    """Anybody may ask, and each reading goes through all verdicts: so a Datanet's is read once a minute."""

    def __init__(self, connection: apsw.Connection, feedback: Callable[[str], Mapping[str, dict[str, int]]]):
        self._connection = connection
        self._feedback = feedback
        self._kept: dict[str, tuple[int, Leaderboard]] = {}

    def read(self, datanet: str, now_ms: int) -> Leaderboard:
        """At most a minute old."""
        kept = self._kept.get(datanet)
        if kept is None or not 0 <= now_ms - kept[0] < KEPT_MS:
            kept = now_ms, read_leaderboard(self._connection, datanet, self._feedback(datanet), now_ms)
            self._kept[datanet] = kept
        return kept[1]


def read_leaderboard(
    connection: apsw.Connection, datanet: str, feedback: Mapping[str, dict[str, int]], now_ms: int
) -> Leaderboard:
    """Most accepted rows first. From the registry's tables."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    times: dict[str, set[int]] = defaultdict(set)
    for contributor, received_ms, outcome, reasons, number in connection.execute(
        "SELECT contributor_id, received_ms, CASE WHEN removed_rows.row_id IS NULL THEN outcome ELSE 'removed' END,"
        " reasons, count(*) FROM contributions JOIN verdicts USING (sequence) LEFT JOIN removed_rows USING (row_id)"
        " WHERE datanet = ? GROUP BY contributions.sequence, 3, 4",
        (datanet,),
    ):
        own, age_ms = counts[contributor], now_ms - received_ms
        times[contributor].add(received_ms)
        own[outcome] += number
        own["duplicates"] += number if any(code.endswith("_duplicate") for code in json.loads(reasons)) else 0
        if outcome == "accept":
            own["day"] += number if age_ms < DAY_MS else 0
            own["week"] += number if age_ms < WEEK_MS else 0
    rows = connection.execute("SELECT contributor_id, name FROM contributors")
    names = {str(contributor): str(name) for contributor, name in rows}
    people = [
        Activity(
            contributor_id=contributor,
            name=names.get(contributor, contributor),
            accepted=own["accept"],
            rejected=own["reject"],
            duplicates=own["duplicates"],
            review=own["review"],
            removed=own["removed"],
            rows_a_day=own["day"],
            rows_a_week=own["week"],
            weeks_active=len({time // WEEK_MS for time in times[contributor]}),
            first_ms=min(times[contributor]),
            last_ms=max(times[contributor]),
            feedback=feedback.get(contributor, {}),
        )
        for contributor, own in counts.items()
    ]
    people.sort(key=lambda one: (-one.accepted, one.name, one.contributor_id))
    query = "SELECT reviewer, count(*) FROM reviews WHERE datanet = ? GROUP BY reviewer ORDER BY reviewer"
    reviewers = {str(reviewer): int(number) for reviewer, number in connection.execute(query, (datanet,))}
    return Leaderboard(contributors=tuple(people), cohorts=cohorts(times, now_ms), reviewers=reviewers)


def cohorts(times: Mapping[str, set[int]], now_ms: int) -> tuple[Cohort, ...]:
    """Of contributors' times of contributing, in milliseconds."""
    weeks = {contributor: {time // WEEK_MS for time in own} for contributor, own in times.items()}
    began: dict[int, list[set[int]]] = defaultdict(list)
    for own in weeks.values():
        began[min(own)].append(own)
    return tuple(
        Cohort(
            week_ms=first * WEEK_MS,
            active=tuple(sum(week in own for own in members) for week in range(first, now_ms // WEEK_MS + 1)),
        )
        for first, members in sorted(began.items())
    )
