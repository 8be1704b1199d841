"""Signing rows of files; sealing them, and sending them to a Datanet."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from openledger.cli import output
from openledger.cli.keys import is_first_recovery, load_key, name_first_recovery
from openledger.cli.remote import connect, find_datanet
from openledger.core.errors import InvalidInput, NotFound, TooLarge, Unavailable
from openledger.core.values import PRIVATE_ROW, Contribution, RowDraft, Verdict

if TYPE_CHECKING:
    from openledger.client import OpenLedger
    from openledger.core.sealing import Seal
    from openledger.core.signing import SigningKey
    from openledger.datanets.gate import Rules
    from openledger.datanets.records import Refused
    from openledger.datanets.row_schema import RowSchema

_MAX_TOLD = 20
_SAMPLES, _SAMPLE_CHARACTERS = 3, 160
Judge = Callable[[Contribution], tuple[str, Sequence[Verdict]]]


@dataclass(slots=True)
class _Told:
    """What became of the rows so far; of what was refused or not accepted, the first few are kept."""

    contributions: list[str] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused: list["Refused"] = field(default_factory=list)
    num_refused: int = 0
    num_stored_before: int = 0
    not_accepted: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    is_unsealed: bool = False

    @property
    def num_rows(self) -> int:
        return self.counts.total()


def contribute(options: Namespace) -> None:
    key, told, schema = load_key(options.key), _Told(), row_schema(options)
    recovery = _Recovery(key, options)
    contributions = _signed(key, options, told, schema)
    if options.seal:
        _seal(key, contributions, told, recovery, options)
        return
    if options.dry_run:
        _judge(contributions, _local_gate(schema, options), told, options)
    else:
        with connect(options) as client:
            if options.preview:
                _judge(contributions, lambda one: ("", client.preview(one)), told, options)
            else:
                _judge(contributions, lambda one: _stored(client, one, key, told, options), told, options, recovery)
    _print(told, options)


class _Recovery:
    """The key of --recovery: looked at before a row is sent, and named once something of the contributor's is there.
    Then he waits for no stranger's changes of keys, and is cut off with few rows, or none, that it doesn't guard."""

    def __init__(self, key: "SigningKey", options: Namespace):
        self._key, self._options = key, options
        with _told_to_repeat():
            self._is_due = bool(options.recovery) and is_first_recovery(options, key, options.recovery)

    def name(self) -> None:
        if self._is_due:
            named = name_first_recovery(self._options, self._key, self._options.recovery)
            output.print_note(f"the key in {named['written']} alone changes your keys from now on: keep it elsewhere")
            self._is_due = False


def row_schema(options: Namespace) -> "RowSchema":
    """Of --schema, or the Datanet's, as the server tells it. Where a dry run finds no server, rows without columns."""
    from openledger.datanets.row_schema import RowSchema

    given = RowSchema.from_json(read_json(options.schema, "schema")) if options.schema else None
    if options.dry_run:
        found = find_datanet(options) or {}
        return given or RowSchema.from_json(found.get("row_schema") or {})
    if given is not None:
        return given
    with connect(options) as client, _told_to_repeat():
        return RowSchema.from_json(client.datanet(options.datanet).get("row_schema") or {})


def read_json(name: str, param: str) -> Any:
    """Raises InvalidInput where the file isn't there, or isn't JSON."""
    try:
        return json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"{name} can't be read as JSON: {reason}", code="unreadable_file", param=param) from error


def _seal(
    key: "SigningKey",
    contributions: Iterator[Contribution],
    told: _Told,
    recovery: _Recovery,
    options: Namespace,
) -> None:
    """Keep the places of what would be sent; each contribution has a seal of its own."""
    from openledger.datanets.seals import seal_of

    num_rows, seals = 0, list["Seal"]()
    for contribution in contributions:
        num_rows = max(num_rows, len(contribution.drafts))
        seals.append(seal_of(key, contribution))
    if not seals:
        raise _nothing_to_send(told, options)
    if options.dry_run:
        for seal in seals:
            summary = {"datanet": seal.datanet, "contributor_id": seal.contributor_id, "seal": seal.digest}
            output.print_pairs({**summary, "sent": False}, as_json=options.json)
        return
    with connect(options) as client:
        _check_part(client, options, num_rows)
        for seal in seals:
            receipt = client.seal(seal)
            found = {name: getattr(receipt, name) for name in ("datanet", "contributor_id", "digest", "state")}
            times = {name: getattr(receipt, f"{name}_ms") for name in ("sealed", "expires")}
            shown = {name: output.format_time(time_ms) for name, time_ms in times.items()}
            output.print_pairs({**found, **shown}, as_json=options.json)
            recovery.name()
    output.print_note("the place is yours; send the same rows with the same key and nonce before it expires")


def _tell_place(client: "OpenLedger", seal: "Seal", told: _Told) -> None:
    """Which place the rows have, where they were sealed before: losing it must not go unseen. Rows are sealed all
    together or not at all, so the first part without a seal tells of those behind it."""
    if told.is_unsealed:
        return
    try:
        found = client.find_seal(seal)
    except NotFound:
        told.is_unsealed = True
        return
    if found.state == "opened":
        output.print_note(f"sealed {output.format_time(found.sealed_ms)}: that is their place in the order of credit")
    else:
        output.print_note("their seal had expired: they stand where they arrived")


def _signed(key: "SigningKey", options: Namespace, told: _Told, schema: "RowSchema") -> Iterator[Contribution]:
    from openledger.datanets.reading import read_drafts
    from openledger.datanets.records import Refused

    def rows() -> Iterator[RowDraft]:
        for item in read_drafts(Path(options.rows), schema):
            if not isinstance(item, Refused):
                yield item
                continue
            told.num_refused += 1
            if len(told.refused) < _MAX_TOLD:
                told.refused.append(item)

    return signed_parts(key, options, rows())


def signed_parts(key: "SigningKey", options: Namespace, rows: Iterable[RowDraft]) -> Iterator[Contribution]:
    """By --nonce and --part-rows: the same rows make the same contributions by the same options alone."""
    from openledger.datanets.contribution import BATCH_ROWS, sign_batches

    return sign_batches(key, options.datanet, rows, options.nonce, options.part_rows or BATCH_ROWS)


def _judge(
    contributions: Iterator[Contribution],
    judge: Judge,
    told: _Told,
    options: Namespace,
    recovery: _Recovery | None = None,
) -> None:
    with _receipts(options.receipts) as receipts:
        for contribution in contributions:
            with _told_to_repeat():
                identifier, verdicts = judge(contribution)
            told.contributions += [identifier] if identifier else []
            told.counts.update((verdict.outcome, ", ".join(verdict.reasons)) for verdict in verdicts)
            told.not_accepted += _not_accepted(contribution, verdicts)[: _MAX_TOLD - len(told.not_accepted)]
            told.samples += _samples(contribution, verdicts)[: _SAMPLES - len(told.samples)]
            receipts.write(contribution, verdicts)
            if recovery is not None:
                with _told_to_repeat():
                    recovery.name()
            output.print_progress(f"{told.num_rows:,} rows, {told.num_refused:,} refused")
    output.print_progress("")


@contextmanager
def _told_to_repeat() -> Iterator[None]:
    try:
        yield
    except Unavailable as error:
        error.fix = "run the same command again: what is stored already is not sent twice"
        raise


def _not_accepted(contribution: Contribution, verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [
        {"source": draft.source, "outcome": verdict.outcome, "reasons": ", ".join(verdict.reasons),
         "duplicate_of": verdict.duplicate_of}
        for draft, verdict in zip(contribution.drafts, verdicts, strict=True)
        if verdict.outcome != "accept"
    ]  # fmt: skip


def _samples(contribution: Contribution, verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Accepted rows as they became of the files, so that a person sees what a dry run would send."""
    accepted = (draft for draft, verdict in zip(contribution.drafts, verdicts, strict=True)
                if verdict.outcome == "accept")  # fmt: skip
    return [
        {name: _short(getattr(draft, name)) for name in ("source", "prompt", "completion")}
        for draft, _ in zip(accepted, range(_SAMPLES), strict=False)
    ]


def _short(text: str) -> str:
    return text if len(text) <= _SAMPLE_CHARACTERS else f"{text[: _SAMPLE_CHARACTERS - 1]}…"


def _stored(
    client: "OpenLedger", contribution: Contribution, key: "SigningKey", told: _Told, options: Namespace
) -> tuple[str, Sequence[Verdict]]:
    from openledger.datanets.seals import seal_of

    try:
        known = client.stored(contribution)
        receipt = known or client.contribute(contribution)
    except TooLarge as error:
        if error.code == "quota_exceeded":
            _check_part(client, options, len(contribution.drafts))
        raise
    told.num_stored_before += len(receipt.verdicts) if known else 0
    _tell_place(client, seal_of(key, contribution), told)
    return receipt.contribution_id, receipt.verdicts


def _check_part(client: "OpenLedger", options: Namespace, num_rows: int) -> None:
    """Raises TooLarge where the Datanet takes fewer rows at a time than a part has: waiting is no help then."""
    terms = client.terms(options.datanet)
    room = min(filter(None, map(terms.get, ("max_rows_an_hour", "max_rows_a_day"))), default=num_rows)
    if num_rows > room:
        raise TooLarge(
            f"{options.datanet!r} takes {room} rows at a time from one contributor, and a part has {num_rows}",
            code="quota_exceeded",
            param="part_rows",
            fix=f"give --part-rows {room} in this and every later command on these rows: another one signs them anew",
        )


def _local_gate(schema: "RowSchema", options: Namespace) -> Judge:
    """The gate as it would judge these rows in an empty Datanet, with the detectors that are installed here."""
    from openledger.datanets.contribution import row_ids
    from openledger.datanets.dedupe import DuplicateIndex
    from openledger.datanets.detectors import installed_detectors
    from openledger.datanets.gate import judge

    index, rules, detectors = DuplicateIndex(), _rules(schema, options), installed_detectors()
    return lambda contribution: ("", judge(contribution.drafts, row_ids(contribution), index, detectors, rules))


def _rules(schema: "RowSchema", options: Namespace) -> "Rules":
    from openledger.datanets import gate
    from openledger.datanets.terms import Terms, changed_terms

    if not options.terms:
        return gate.Rules(schema=schema)
    told = read_json(options.terms, "terms")
    if not isinstance(told, dict):
        raise InvalidInput(f"{options.terms} holds no terms", code="invalid_terms", param="terms", fix="see --help")
    known = {name: value for name, value in told.items() if name in Terms.__dataclass_fields__}
    return gate.Rules.of(schema, changed_terms(None, known))


class _receipts:  # noqa: N801 - reads as a function
    """One line of JSON for each row, written as verdicts come: what a later withdrawal names is here."""

    def __init__(self, name: str | None):
        self._name = name
        self._stream: TextIO | None = None

    def __enter__(self) -> "_receipts":
        if self._name:
            try:
                self._stream = Path(self._name).open("w", encoding="utf-8")
            except OSError as error:
                raise InvalidInput(
                    f"{self._name} can't be written: {error.strerror}", code="unwritable", param="receipts"
                ) from error
        return self

    def __exit__(self, *failure: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, contribution: Contribution, verdicts: Sequence[Verdict]) -> None:
        if self._stream is not None:
            for draft, verdict in zip(contribution.drafts, verdicts, strict=True):
                self._stream.write(json.dumps({**asdict(verdict), "source": draft.source}) + "\n")


def _print(told: _Told, options: Namespace) -> None:
    if not told.num_rows:
        raise _nothing_to_send(told, options)
    verdicts = [
        {"outcome": outcome, "reasons": reasons, "rows": number}
        for (outcome, reasons), number in sorted(told.counts.items())
    ]
    whole = {
        "datanet": options.datanet,
        "rows": told.num_rows,
        "sent": not (options.dry_run or options.preview),
        "contributions": told.contributions,
        "stored_before": told.num_stored_before,
        "verdicts": verdicts,
        "not_accepted": told.not_accepted,
        "samples": told.samples,
        "num_refused": told.num_refused,
        "refused": [asdict(one) for one in told.refused],
    }
    output.print_rows(
        "Verdicts" if whole["sent"] else "Verdicts (nothing was sent)", verdicts, as_json=options.json, whole=whole
    )
    if told.num_stored_before:
        output.print_note(
            f"{told.num_stored_before} of {told.num_rows} rows came in before, with the same key and nonce:"
            " they weren't sent again, and their verdicts are as they stand now"
        )
    if told.samples and not whole["sent"] and not options.json:
        output.print_rows(f"Rows as they would be sent, the first {len(told.samples)}", told.samples)
    if told.not_accepted and not options.json:
        shown, left = len(told.not_accepted), told.num_rows - told.counts["accept", ""]
        more = f", the first {shown} of {left}; --receipts FILE has all" if left > shown else ""
        output.print_rows(f"Rows that were not accepted{more}", list(map(_with_original, told.not_accepted)))
    if not (whole["sent"] or options.receipts or options.json):
        output.print_note("--receipts FILE writes the verdict on every row, one a line")
    if told.num_refused and not options.json:
        output.print_note(f"{told.num_refused} rows or files were refused; the others were read")
        for one in told.refused:
            output.print_note(f"  {one.file}{', ' if one.place else ''}{one.place}: {one.reason} ({one.code})")


def _with_original(row: dict[str, Any]) -> dict[str, Any]:
    is_private = row["duplicate_of"] == PRIVATE_ROW
    return {**row, "duplicate_of": "an earlier row of a Datanet that isn't public"} if is_private else row


def _nothing_to_send(told: _Told, options: Namespace) -> InvalidInput:
    reasons = "; ".join(f"{one.file} {one.place}: {one.reason}" for one in told.refused[:3])
    return InvalidInput(
        f"{options.rows} has no row to contribute" + (f" ({told.num_refused} refused: {reasons})" if reasons else ""),
        code="empty_contribution",
        param="rows",
        fix="see 'openledger contribute --help' for the formats that are read",
    )
