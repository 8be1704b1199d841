"""What each page shows, chosen from the report. Pure functions from JSON values to JSON values.

Every part of a report may be missing while a run is under way: lists become empty, single values None.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

Json = dict[str, Any]

TOP_EARNERS = 20
RECENT_PAYOUTS = 100
SHOWN_WEEKS = 12


def overview(report: Json) -> Json:
    datanets = _dicts(report.get("datanets"))
    return {
        **_frame(report),
        "totals": _dict(report.get("totals")),
        "datanets": [_summary(datanet) for datanet in datanets],
        "earners": _earners(datanets),
        "gaming": _dicts(report.get("gaming")),
        "answers": [_line(answer) for answer in _dicts(report.get("answers"))],
        "ledger": _dict(report.get("ledger")),
        "stages": _dicts(report.get("stages")),
    }


def datanet(report: Json, found: Json) -> Json:
    contributors = sorted(_dicts(found.get("contributors")), key=_by_earnings)
    return {
        **_frame(report),
        "datanet": {**found, "contributors": contributors, "reasons": _most_common(found.get("reasons"))},
        "rouge": _rouge(_dict(_dict(found.get("adapter")).get("evaluation"))),
        "pool": _pool(report, found),
        "answers": [
            _line(answer)
            for answer in _dicts(report.get("answers"))
            if answer.get("adapter") in {found.get("name"), _dict(found.get("adapter")).get("name")}
        ],
    }


def answer(report: Json, found: Json) -> Json:
    parts = {account: nano for account, nano in _dict(found.get("parts")).items() if isinstance(nano, int)}
    return {
        **_frame(report),
        "answer": {
            **found,
            "sources": _dicts(found.get("sources")),
            "contributors": _dicts(found.get("contributors")),
            "parts": parts,
        },
        "highest_score": max((abs(_score(source)) for source in _dicts(found.get("sources"))), default=0.0),
    }


def ledger(report: Json, checkpoint: str, payouts: Iterable[Json]) -> Json:
    known = _dict(report.get("ledger"))
    return {
        **_frame(report),
        "ledger": {**known, "checkpoint": checkpoint},
        "payouts": list(payouts)[:RECENT_PAYOUTS],
        "names": _names(report),
    }


def disputes(report: Json, adapter: str, period: str, found: Iterable[Json]) -> Json:
    known = list(found)
    states = Counter(str(one.get("state")) for one in known)
    totals: Json = {state: states[state] for state in ("open", "upheld", "rejected", "expired")}
    awards = [one.get("award_nano") for one in known]
    return {
        **_frame(report),
        "pool": {"adapter": adapter, "period": period},
        "totals": {**totals, "award_nano": sum(award for award in awards if isinstance(award, int))},
        "disputes": known,
        "verdicts": [one for one in known if _dict(one.get("verdict")).get("scorer")],
        "names": _names(report),
    }


def rows(report: Json, found: Json) -> Json:
    return {
        **_frame(report),
        "pool": {"adapter": found.get("adapter"), "period": found.get("period")},
        "adapters": _dicts(found.get("adapters")),
        "rows": _dicts(found.get("rows")),
        "next": str(found.get("next") or ""),
        "names": _names(report),
    }


def appeals(report: Json, datanet: Json, found: Iterable[Json]) -> Json:
    return {
        **_frame(report),
        "datanet": {"name": datanet.get("name")},
        "appeals": list(found),
        "names": _names(report),
    }


def leaderboard(report: Json, found: Json) -> Json:
    people, cohorts = _dicts(found.get("contributors")), _dicts(found.get("cohorts"))
    weeks = max((len(cohort.get("active") or ()) for cohort in cohorts), default=0)
    return {
        **_frame(report),
        "datanet": {"name": found.get("datanet")},
        "contributors": people,
        "totals": {
            "contributors": found.get("num_contributors", len(people)),
            "rows_a_week": found.get("rows_a_week"),
            "duplicates": found.get("duplicates"),
            "earned_nano": sum(person.get("earned_nano") or 0 for person in people),
        },
        "next": people[-1].get("contributor_id") if people and found.get("has_more") else None,
        "most_accepted": max((person.get("accepted") or 0 for person in people), default=0),
        "cohorts": cohorts,
        "weeks": list(range(min(weeks, SHOWN_WEEKS))),
        "reviewers": _dicts(found.get("reviewers")),
    }


def find(items: Any, key: str, value: str) -> Json | None:
    return next((item for item in _dicts(items) if item.get(key) == value), None)


def _frame(report: Json) -> Json:
    """What every page's head and foot show."""
    return {
        "unit": report.get("unit", "OPEN"),
        "period": report.get("period"),
        "base_model": _dict(report.get("base_model")),
        "urls": _dict(report.get("urls")),
        "complete": bool(report.get("ledger")) and "gaming" in report,
    }


def _names(report: Json) -> Json:
    """Contributors' names by id."""
    rows = [row for found in _dicts(report.get("datanets")) for row in _dicts(found.get("contributors"))]
    return {str(row.get("contributor_id")): row.get("name") for row in rows}


def _pool(report: Json, found: Json) -> Json:
    """Which settled pool the report's earnings came from, where it tells one."""
    adapter = _dict(found.get("adapter")).get("name") if isinstance(found.get("pool_nano"), int) else None
    return {"adapter": adapter, "period": report.get("period")}


def _summary(found: Json) -> Json:
    adapter = _dict(found.get("adapter"))
    kept = ("name", "summary", "version", "rows_in", "accepted", "rejected", "review", "pool_nano", "unattributed_nano")
    return {
        **{key: found.get(key) for key in kept},
        "num_contributors": len(_dicts(found.get("contributors"))),
        "final_loss": adapter.get("final_loss"),
        "rouge": _rouge(_dict(adapter.get("evaluation"))),
    }


def _earners(datanets: Iterable[Json]) -> list[Json]:
    rows = [{**row, "datanet": found.get("name")} for found in datanets for row in _dicts(found.get("contributors"))]
    return sorted(rows, key=_by_earnings)[:TOP_EARNERS]


def _line(found: Json) -> Json:
    return {key: found.get(key) for key in ("answer_id", "adapter", "question", "kind", "fee_nano")}


def _rouge(evaluation: Json) -> list[Json]:
    """One row for held-in and one for new questions, where they were measured."""
    rows = [
        {
            "questions": questions,
            "adapter": evaluation.get(f"rouge_{questions}_adapter"),
            "base": evaluation.get(f"rouge_{questions}_base"),
        }
        for questions in ("held_in", "new")
    ]
    return [row for row in rows if row["adapter"] is not None or row["base"] is not None]


def _most_common(reasons: Any) -> list[list[Any]]:
    counts = Counter({code: count for code, count in _dict(reasons).items() if isinstance(count, int)})
    return [[code, count] for code, count in counts.most_common()]


def _by_earnings(row: Json) -> tuple[int, str]:
    earned = row.get("earned_nano")
    return (-earned if isinstance(earned, int) else 0, str(row.get("name", "")))


def _score(source: Json) -> float:
    score = source.get("score")
    return float(score) if isinstance(score, int | float) else 0.0


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _dicts(value: Any) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list | tuple) else []
