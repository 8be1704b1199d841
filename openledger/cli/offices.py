"""The commands of stake, votes and payouts: each one call of the SDK, and how its answer is shown."""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openledger.cli import output
from openledger.cli.keys import own_key
from openledger.cli.remote import connect
from openledger.core.errors import InsufficientFunds, InvalidInput, NotFound
from openledger.core.files import write_durably
from openledger.core.money import format_money, parse_open

_OF_A_ROW = ("expected", "error", "this run")


def show_stake(options: Namespace) -> None:
    with connect(options) as client:
        found = client.stakes()
    if options.json:
        output.print_json(found)
        return
    staked = [{"object": of, "staked_nano": amount_nano} for of, amount_nano in found["staked_nano"].items()]
    output.print_rows("Staked", staked)
    output.print_rows("Cooling down", [_dated(one, "ends_ms") for one in found["cooling"]])
    output.print_rows("Slashed", [_dated(one, "ends_ms") for one in found["slashed"]])
    output.print_pairs({"votes with": found["delegate"], "power_nano": found["power_nano"]}, as_json=False)


def add_stake(options: Namespace) -> None:
    with connect(options) as client:
        told = client.stake(options.object, parse_open(options.amount), idempotency_key=options.idempotency_key)
    output.print_pairs({name: told[name] for name in ("staked_on", "amount_nano")}, as_json=options.json)


def remove_stake(options: Namespace) -> None:
    with connect(options) as client:
        told = client.unstake(options.object, parse_open(options.amount), idempotency_key=options.idempotency_key)
    shown = {name: told[name] for name in ("staked_on", "amount_nano", "ends_ms")}
    output.print_pairs(shown if options.json else _dated(shown, "ends_ms"), as_json=options.json)


def delegate(options: Namespace) -> None:
    with connect(options) as client:
        output.print_pairs(client.delegate(options.delegate), as_json=options.json)


def parameters(options: Namespace) -> None:
    with connect(options) as client:
        found = client.parameters()
    rows = [
        {"parameter": name, "value": value, "next": _changed(found, name),
         "bounds": " to ".join(map(str, found["bounds"].get(name, [])))}
        for name, value in found["values"].items()
    ]  # fmt: skip
    title = f"Parameters, version {found['in_force']} in {found['period']}"
    output.print_rows(title, rows, as_json=options.json, whole=found)


def proposals(options: Namespace) -> None:
    with connect(options) as client:
        found = client.proposals()
    rows = [
        {"proposal": one["proposal"], "state": one["state"], "title": one["title"],
         "votes end": _moment(one["deadline_ms"]), "for_nano": one["votes_nano"]["for"],
         "against_nano": one["votes_nano"]["against"], "quorum_nano": one["quorum_nano"]}
        for one in found
    ]  # fmt: skip
    output.print_rows("Proposals", rows, as_json=options.json, whole=found)


def proposal(options: Namespace) -> None:
    with connect(options) as client:
        _show_proposal(client.proposal(options.proposal), options)


def propose(options: Namespace) -> None:
    action = _action(options)
    if options.dry_run:
        _dry_run(options, action)
        return
    with connect(options) as client:
        told = client.propose(options.title, action, options.text, idempotency_key=options.idempotency_key)
    _show_proposal(told, options)


def vote(options: Namespace) -> None:
    with connect(options) as client:
        output.print_pairs(client.vote(options.proposal, options.support), as_json=options.json)


def cancel(options: Namespace) -> None:
    with connect(options) as client:
        _show_proposal(client.cancel_proposal(options.proposal), options)


def simulate(options: Namespace) -> None:
    with connect(options) as client:
        found = client.simulate(_changes(options.change), options.period or "")
    if options.json:
        output.print_json(found)
        return
    for pool in found["pools"]:
        rows = [
            {"who": name, "was_nano": was, "would be_nano": would, "difference_nano": would - was}
            for name, (was, would) in {**pool["parts_nano"], **pool["payouts_nano"]}.items()
        ]
        output.print_rows(f"{pool['adapter']} in {found['period']}: parts of the fees, then payouts", rows)
        if pool.get("unpaid_as_settled"):
            was, would = pool["shares_rule"]
            output.print_text(
                f"{pool['adapter']} was settled by {was}. Which rows repeat others by {would} nobody knows without the"
                " rows: those that the settlement names are taken, and what else the change would leave unpaid isn't"
                " in these figures.\n"
            )


def explain(options: Namespace) -> None:
    with connect(options) as client:
        lines = client.explain(options.transfer_id)
    if options.json:
        output.print_json(lines)
        return
    output.print_text("".join(f"{line}\n" for line in lines))


def withdraw(options: Namespace) -> None:
    amount_nano = parse_open(options.amount)
    if options.dry_run:
        with connect(options) as client:
            found = client.balance(own_key(options))
        _check_covered(found, amount_nano, options)
        told = {"amount_nano": amount_nano, "address": options.to, "available_nano": found["available_nano"]}
        output.print_pairs({**told, "sent": False}, as_json=options.json)
        return
    with connect(options) as client:
        given = {"key": own_key(options), "idempotency_key": options.idempotency_key}
        told = client.withdraw(amount_nano, options.to, **given)
    output.print_pairs(told, as_json=options.json)


def _check_covered(found: Mapping[str, Any], amount_nano: int, options: Namespace) -> None:
    """Raises as the server would of a withdrawal that it doesn't know yet."""
    available_nano = found["available_nano"]
    if not found.get("is_open", True):
        raise NotFound(
            f"there is no account {found['account']}",
            code="account_not_found",
            param="account",
            fix="nothing has been paid to it yet: it opens with its first payment",
        )
    if amount_nano > available_nano and not options.idempotency_key:
        raise InsufficientFunds(
            f"{found['account']} has {format_money(available_nano)}, and not {format_money(amount_nano)}",
            code="insufficient_funds",
            param="amount",
            fix="take out less; 'openledger payouts' lists what came in",
        )
    if amount_nano > available_nano:  # the server answers again what it knows by its key, whatever is left
        output.print_note("there is less than that: only a withdrawal that was made with this key before comes back")


def payouts_csv(options: Namespace) -> None:
    """The file's bytes as they are: `--json` changes nothing but the message of where they were written."""
    with connect(options) as client:
        data = client.payouts_csv(own_key(options))
    if options.out is None:
        sys.stdout.buffer.write(data)
        return
    try:
        write_durably(Path(options.out), data)
    except OSError as error:
        raise InvalidInput(
            f"{options.out} can't be written: {error.strerror}", code="unwritable", param="out"
        ) from error
    output.print_pairs({"written": options.out, "bytes": len(data)}, as_json=options.json)


def _show_proposal(found: dict[str, Any], options: Namespace) -> None:
    if options.json:
        output.print_json(found)
        return
    times = {name: found[f"{name}_ms"] for name in ("snapshot", "deadline", "eta", "expires")}
    output.print_pairs(
        {
            **{name: found[name] for name in ("proposal", "state", "title", "proposer")},
            "action": json.dumps(found["action"]),
            **{name: _moment(time_ms) for name, time_ms in times.items()},
            **{f"{support}_nano": amount_nano for support, amount_nano in found["votes_nano"].items()},
            "quorum_nano": found["quorum_nano"],
        },
        as_json=False,
    )
    output.print_text(f"{found['text']}\n" if found["text"] else "")


def _dry_run(options: Namespace, action: dict[str, Any]) -> None:
    """What would be sent; for parameters also that they are within their bounds, which a simulation checks."""
    if action["kind"] == "parameters":
        with connect(options) as client:
            client.simulate(action["changes"])
    output.print_pairs({"title": options.title, "action": json.dumps(action), "sent": False}, as_json=options.json)


def _action(options: Namespace) -> dict[str, Any]:
    given = [name for name in ("change", "spend", "bounty", "appeal") if getattr(options, name) is not None]
    if len(given) > 1:
        raise InvalidInput(
            f"a proposal does one thing, not {' and '.join(given)}", code="usage", fix="make a proposal for each"
        )
    if not given:
        return {"kind": "text"}
    if given == ["change"]:
        return {"kind": "parameters", "changes": _changes(options.change)}
    if given == ["appeal"]:
        return {"kind": "appeal", "slash": options.appeal}
    recipient, amount = getattr(options, given[0])
    paid = {"recipient": recipient, "amount_nano": parse_open(amount)}
    if given == ["bounty"]:
        pool = {} if options.pool is None else {"from_nano": {options.pool: paid["amount_nano"]}}
        return {"kind": "bounty", "bounty": options.title, "object": options.object, **paid, **pool}
    return {"kind": "spend", "source": options.source, **paid}


def _changes(given: list[str]) -> dict[str, Any]:
    """`name=value`, the value a whole number, or text for an account."""
    changes: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise InvalidInput(f"{text!r} changes nothing", code="usage", param="change", fix="write owner_ppm=150000")
        changes[name] = int(value) if value.lstrip("-").isdigit() else value
    return changes


def _changed(found: dict[str, Any], name: str) -> Any:
    value = found["next_values"][name]
    return None if value == found["values"][name] else value


def _dated(entry: dict[str, Any], name: str) -> dict[str, Any]:
    return {(key.removesuffix("_ms") if key == name else key): _moment(value) if key == name else value
            for key, value in entry.items()}  # fmt: skip


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def row_scores(options: Namespace) -> None:
    with connect(options) as client:
        asked = {"contributor": options.contributor or "", "limit": options.limit, "after": options.after or ""}
        found = client.row_scores(options.adapter, options.period, **asked)
    lines = [
        {
            "row": row["row_id"],
            "contributor": row["contributor_id"],
            **{f"{part} {name}": _nano(row, part, name) for part in ("use", "improvement") for name in _OF_A_ROW},
        }
        for row in found["rows"]
    ]
    title = f"Rows of {options.adapter} in {options.period}, in nano-OPEN x nats"
    output.print_rows(title, lines, as_json=options.json, whole=found)
    if found["has_more"] and not options.json:
        output.print_note(f"more: --after {found['next']}")


def _nano(row: Mapping[str, Any], part: str, name: str) -> int | None:
    value = row.get(part, {}).get(f"{name.replace(' ', '_')}_nano")
    return value if isinstance(value, int) else None
