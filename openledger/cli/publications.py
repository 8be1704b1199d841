"""What a Datanet published, checked here: the roots are recomputed from the rows' ids, not taken from the server."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger.cli import output
from openledger.cli.remote import connect
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import write_json_durably

if TYPE_CHECKING:
    from openledger.client import OpenLedger

_LISTED = ("number", "num_rows", "gate_version", "row_root")
_SHOWN = ("datanet", "number", "num_rows", "gate_version", "row_root", "credit_root")


def versions(options: Namespace) -> None:
    with connect(options) as client:
        found = client.versions(options.datanet)
    rows = [{**{name: one[name] for name in _LISTED}, "published": output.format_time(one["published_ms"])}
            for one in found]  # fmt: skip
    output.print_rows(f"Versions of {options.datanet}", rows, as_json=options.json, whole=found)


def version(options: Namespace) -> None:
    with connect(options) as client:
        told, rows, recomputed = _checked(client, options.datanet, options.number)
        older = None if options.since is None else _checked(client, options.datanet, options.since)[1]
    if options.out is not None:
        _write(options.out, {**told, "rows": rows})
    shown = {name: told[name] for name in _SHOWN} | {
        "licence": told["terms"]["licence"],
        "published": output.format_time(told["published_ms"]),
        "removed since": sum(row["tombstone"] is not None for row in rows),
        "roots recomputed": ", ".join(recomputed),
    }
    if options.out is not None:
        shown |= {"written": options.out}
    if older is not None:
        now, before = ({row["row_id"] for row in some} for some in (rows, older))
        shown |= {f"added since {options.since}": sorted(now - before), "gone since": sorted(before - now)}
    output.print_pairs(shown if options.json else {name: _short(value) for name, value in shown.items()},
                       as_json=options.json)  # fmt: skip


def _checked(
    client: "OpenLedger", datanet: str, number: int
) -> tuple[dict[str, Any], list[dict[str, Any]], tuple[str, ...]]:
    """A version, its rows, and which of its roots they were found to lead to. Raises Corrupt (`wrong_root`) where they
    don't."""
    from openledger.datanets.versions import credit_root, row_root

    told, rows = client.version(datanet, number), list(client.version_rows(datanet, number))
    ids = [row["row_id"] for row in rows]
    found = {"row_root": row_root(ids)}
    if told["credit_root"]:
        found["credit_root"] = credit_root([row["row_id"] for row in sorted(rows, key=lambda row: row["place"])])
    for name, root in found.items():
        if root != told[name]:
            raise Corrupt(
                f"the {len(ids)} rows of version {number} of {datanet} lead to {root}, not to its {name}",
                code="wrong_root",
                param=name,
                fix="trust neither; keep what the server told, and show it to the Datanet's owner and contributors",
            )
    return told, rows, tuple(found)


def _short(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return f"{len(value)} rows" + (f": {', '.join(value[:3])}{' ...' if len(value) > 3 else ''}" if value else "")


def _write(name: str, value: dict[str, Any]) -> None:
    try:
        write_json_durably(Path(name), value)
    except OSError as error:
        raise InvalidInput(f"{name} can't be written: {error.strerror}", code="unwritable", param="out") from error
