"""The report: what was contributed, trained, asked, attributed and paid. Plain JSON values, money in nano-OPEN.

Written to report.json after every stage, read by the console and the API, printed at the end of the quickstart.
"""

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

from openledger.adapters.card import AdapterCard
from openledger.attribution.index import IndexEntry
from openledger.attribution.row_pages import RowPages, order_key
from openledger.attribution.row_scores import WholeRows
from openledger.core.errors import InvalidInput
from openledger.core.money import NANO_PER_OPEN
from openledger.core.shares import WHOLE_PPB, WHOLE_PPM, ceiling_nano, shares_ppb
from openledger.core.values import UNATTRIBUTED, ContributorScores, DatanetVersion, Row, Settlement
from openledger.datanets.registry import DEFAULT_DISPLAY, ContributorStatistics, Display
from openledger.ledger.audit import AuditReport
from openledger.platform.demonstration import Contributor

_TOP_SOURCES = 5
_TEXT = ("source", "prompt", "completion")


def datanet_entry(
    name: str,
    summary: str,
    version: DatanetVersion,
    statistics: Sequence[ContributorStatistics],
    people: dict[str, Contributor],
) -> dict[str, Any]:
    """One Datanet: rows in, accepted, rejected and in review, in all and for each contributor."""
    contributors: list[dict[str, Any]] = [
        {
            "contributor_id": numbers.contributor_id,
            "name": numbers.name,
            "kind": people[numbers.contributor_id].kind if numbers.contributor_id in people else "honest",
            "accepted": numbers.accepted,
            "rejected": numbers.rejected,
            "review": numbers.review,
            "reasons": dict(numbers.reasons),
        }
        for numbers in statistics
    ]
    reasons: dict[str, int] = {}
    for contributor in contributors:
        for reason, count in contributor["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + count
    counts = {key: sum(c[key] for c in contributors) for key in ("accepted", "rejected", "review")}
    return {
        "name": name,
        "summary": summary,
        "version": version.number,
        "row_root": version.row_root,
        "rows_in": sum(counts.values()),
        **counts,
        "reasons": reasons,
        "contributors": contributors,
    }


def adapter_entry(card: AdapterCard, curve: Sequence[float]) -> dict[str, Any]:
    return {
        "name": card.name,
        "digest": card.digest,
        "final_loss": card.final_loss,
        "rows_trained": len(card.rows_trained),
        "loss_curve": list(curve),
        "evaluation": card.evaluation,
    }


def add_settlement(
    entry: dict[str, Any],
    settlement: Settlement,
    scores: ContributorScores,
    rows_trained: dict[str, int],
    improvement: ContributorScores | None = None,
) -> None:
    """Add shares, their errors and earnings to a Datanet's entry; `rows_trained` counts by contributor. A share's error
    is the sum of its parts' errors, its upper bound; `unpaid_ppb` is what repeated rows would have had."""
    measured = {"use": scores} if improvement is None else {"use": scores, "improvement": improvement}
    entry["pool_nano"] = settlement.pool_nano
    entry["unattributed_nano"] = settlement.payouts_nano.get(UNATTRIBUTED, 0)
    entry["attribution"] = {"method": scores.method, "gain_nano": scores.gain_nano, "quality": scores.quality}
    entry["pool_parts"] = {
        name: {"ppm": part.ppm, "pool_nano": part.pool_nano, "measured": part.measured, "method": part.method}
        for name, part in settlement.parts.items()
    }
    for contributor in entry["contributors"]:
        contributor_id = contributor["contributor_id"]
        account = f"contributor:{contributor_id}"
        contributor["share_ppb"] = settlement.shares_ppb.get(contributor_id, 0)
        contributor["error_ppb"] = _ppb(contributor_id, settlement, measured, lambda own: own.errors_nano)
        contributor["unpaid_ppb"] = _ppb(contributor_id, settlement, measured, lambda own: own.unpaid_nano)
        contributor["earned_nano"] = settlement.payouts_nano.get(contributor_id, 0)
        contributor["earned_parts_nano"] = {
            name: part.payouts_nano.get(contributor_id, 0) for name, part in settlement.parts.items()
        }
        contributor["rows_trained"] = rows_trained.get(contributor_id, 0)
        contributor["transfer_id"] = settlement.transfer_ids.get(account, "")


def _ppb(
    contributor_id: str,
    settlement: Settlement,
    measured: Mapping[str, ContributorScores],
    stated: Callable[[ContributorScores], Mapping[str, int]],
) -> int:
    """What the scores state of a contributor beside his score, as a part of the pool. 0 where nothing can be
    attributed: then there is no share either."""
    total = 0
    for name, scores in measured.items():
        positive = sum(max(0, score) for score in scores.scores_nano.values())
        whole = max(scores.gain_nano, positive, ceiling_nano(scores.ceilings))
        if whole > 0:
            part = stated(scores).get(contributor_id, 0) * WHOLE_PPB * settlement.parts[name].ppm
            total += part // (WHOLE_PPM * whole)
    return total


def sources(
    entries: Sequence[IndexEntry], scores: Sequence[float], rows: dict[str, Row], names: dict[str, str]
) -> list[dict[str, Any]]:
    """An answer's top rows with their text, best first; decoys are left out. `displayed` says who may see what."""
    ranked = sorted(
        ((float(score), entry) for entry, score in zip(entries, scores, strict=True) if entry.trained),
        key=lambda pair: (-pair[0], pair[1].row_id),
    )
    return [
        {
            "row_id": entry.row_id,
            "contributor_id": entry.contributor_id,
            "contributor": names.get(entry.contributor_id, entry.contributor_id),
            "datanet": rows[entry.row_id].datanet,
            "source": rows[entry.row_id].source,
            "prompt": rows[entry.row_id].prompt,
            "completion": rows[entry.row_id].completion,
            "score": round(score, 6),
        }
        for score, entry in ranked[:_TOP_SOURCES]
    ]


def answer_shares(scores: ContributorScores, z_milli: int, names: dict[str, str]) -> list[dict[str, Any]]:
    """Whose rows one answer owes itself to, largest influence first: the share that the rule would give for this answer
    alone, and the influence with its standard error, in nats per token. They pay nobody."""
    shares = shares_ppb(
        scores.scores_nano, scores.errors_nano, scores.gain_nano, z_milli, unpaid_nano=scores.unpaid_nano
    )
    ranked = sorted(scores.scores_nano.items(), key=lambda pair: (-pair[1], pair[0]))
    return [
        {
            "contributor_id": contributor,
            "contributor": names.get(contributor, contributor),
            "share_ppb": shares[contributor],
            "influence": round(score / NANO_PER_OPEN, 6),
            "error": round(scores.errors_nano[contributor] / NANO_PER_OPEN, 6),
            "method": scores.method,
        }
        for contributor, score in ranked[:_TOP_SOURCES]
    ]


def row_lines(
    documents: Sequence[RowPages | WholeRows], contributor: str = "", limit: int = 100, after: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """The rows that moved a settled pool's answers most, most first: of all contributors or one, behind the page that
    ended `after`. With them where this page ends, empty for the last one. Amounts are in nano-OPEN x nats; where there
    is no bank, those of this run count. Raises InvalidInput (`invalid_after`), and as `RowPages.rows`."""
    last = _place(after) if after else None
    begin = None if last is None else last[:2]
    each = [_numbered(one, number, contributor, begin) for number, one in enumerate(documents)]
    merged = heapq.merge(*each, key=itemgetter(0))
    left = (found for found in merged if last is None or found[0] > last)
    page = list(islice(left, limit + 1))
    return [row for _, row in page[:limit]], _end(page[limit - 1][0]) if len(page) > limit else ""


def _numbered(
    document: RowPages | WholeRows, number: int, contributor: str, begin: list[Any] | None
) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Rows with their places among those of all documents."""
    digest = document.stated.get("adapter_digest", "")
    for row in document.rows(contributor, begin):
        yield [*order_key(row), number], {**row, "adapter_digest": digest}


def _end(place: list[Any]) -> str:
    moved, row_id, number = place
    return f"{moved}.{number}.{row_id}"


def _place(after: str) -> list[Any]:
    moved, _, rest = after.partition(".")
    number, _, row_id = rest.partition(".")
    try:
        if not row_id:
            raise ValueError("it names no row")
        return [int(moved), row_id, int(number)]
    except ValueError as error:
        raise InvalidInput(
            f"no page of rows ends at {after!r}",
            code="invalid_after",
            param="after",
            fix="give what stands under `next` of the page before",
        ) from error


def displayed(answer: dict[str, Any], displays: Mapping[str, Display]) -> dict[str, Any]:
    """`answer` with as much of its sources as each one's Datanet lets a customer see, and how many are hidden.

    A source without a Datanet's name is of the adapter's; a Datanet that isn't there shows references.
    """
    found = [dict(source) for source in answer.get("sources", [])]
    policies = [displays.get(source.get("datanet", answer.get("adapter", "")), DEFAULT_DISPLAY) for source in found]
    shown = [
        source if policy == "text" else {name: value for name, value in source.items() if name not in _TEXT}
        for source, policy in zip(found, policies, strict=True)
        if policy != "none"
    ]
    hidden = answer.get("num_hidden_sources", 0) + len(found) - len(shown)
    told = displays.get(answer.get("adapter", ""), DEFAULT_DISPLAY) != "none"
    return {
        **answer,
        "sources": shown,
        "num_hidden_sources": hidden,
        "contributors": answer.get("contributors", []) if told else [],
    }


def told_rows(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Ids of the rows of which the answers tell: their sources, and the rows whose question was asked."""
    asked = {str(answer["asked_row"]) for answer in answers if answer.get("asked_row")}
    return sorted(asked | {str(source["row_id"]) for answer in answers for source in answer.get("sources", [])})


def without_rows(answer: Mapping[str, Any], gone: Collection[str]) -> dict[str, Any]:
    """`answer` without what it tells of rows that were taken back: they are no sources of it, and where its question
    was one's, question, answer and what was expected are empty. So they are where the question is some row's and the
    report is too old to say which."""
    found = answer.get("sources", [])
    kept = [source for source in found if source["row_id"] not in gone]
    told = {**answer, "sources": kept}
    if len(kept) < len(found):
        told["num_removed_sources"] = answer.get("num_removed_sources", 0) + len(found) - len(kept)
    asked = answer.get("asked_row")
    if asked in gone or (asked is None and answer.get("kind") == "held_in"):
        told |= dict.fromkeys(("question", "expected", "answer"), "")
    return told


def gaming_entries(datanets: Sequence[dict[str, Any]], people: dict[str, Contributor]) -> list[dict[str, Any]]:
    """What each bad contributor earned beside an honest reference.

    The copier's is whom he copied; the spammer's the mean honest contributor; the splitter's (all his names together)
    the honest contributors' mean for as many accepted rows.
    """
    found = []
    for entry in datanets:
        kinds = {c["kind"] for c in entry["contributors"]} - {"honest"}
        for kind in sorted(kinds):
            group = [c for c in entry["contributors"] if c["kind"] == kind]
            reference, reference_nano = _reference(kind, group, entry, people)
            earned_nano = sum(c.get("earned_nano", 0) for c in group)
            found.append(
                {
                    "kind": kind,
                    "name": people[group[0]["contributor_id"]].of or group[0]["name"],
                    "datanet": entry["name"],
                    "identities": len(group),
                    "accepted": sum(c["accepted"] for c in group),
                    "sent": sum(c["accepted"] + c["rejected"] + c["review"] for c in group),
                    "earned_nano": earned_nano,
                    "reference": reference,
                    "reference_nano": reference_nano,
                    "ratio": round(earned_nano / reference_nano, 4) if reference_nano else None,
                }
            )
    return found


def _reference(
    kind: str, group: Sequence[dict[str, Any]], entry: dict[str, Any], people: dict[str, Contributor]
) -> tuple[str, int]:
    honest = [c for c in entry["contributors"] if c["kind"] == "honest"]
    earned = sum(c.get("earned_nano", 0) for c in honest)
    if kind == "copier":
        original = people[group[0]["contributor_id"]].of
        return original, sum(c.get("earned_nano", 0) for c in honest if c["name"] == original)
    if kind == "splitter":
        trained = sum(c.get("rows_trained", 0) for c in group)
        of_all = max(1, sum(c.get("rows_trained", 0) for c in honest))
        return "honest mean for as many rows", earned * trained // of_all
    return "mean honest contributor", earned // max(1, len(honest))


def audit_entry(audit: AuditReport) -> dict[str, Any]:
    """An audit that found nothing wrong; one that does raises."""
    message = (
        f"clean: {audit.num_transfers} transfers in {audit.num_batches} batches, {audit.num_answers} answers, "
        f"{audit.num_settlements} settlements, {audit.num_accounts} accounts recomputed"
    )
    return {"ok": True, "entries": audit.num_transfers, "leaves": audit.num_batches, "message": message}


def totals(report: dict[str, Any]) -> dict[str, int]:
    datanets, answers = report.get("datanets", []), report.get("answers", [])
    counts = {key: sum(entry[key] for entry in datanets) for key in ("rows_in", "accepted", "rejected", "review")}
    pools = sum(entry.get("pool_nano", 0) for entry in datanets)
    unattributed = sum(entry.get("unattributed_nano", 0) for entry in datanets)
    return {
        **counts,
        "answers": len(answers),
        "fees_nano": sum(answer["fee_nano"] for answer in answers),
        "paid_nano": pools - unattributed,
        "unattributed_nano": unattributed,
    }
