"""What the operator of an economy does: choose its unit, distribute the supply, open and fund accounts, refund, slash,
hand withdrawals over, cap a key.

    python jobs/operate.py --workdir .openledger unit EUR
    python jobs/operate.py --workdir .openledger genesis --dry-run
    python jobs/operate.py --workdir .openledger genesis --investors user:fund --team user:team --liquidity user:desk
    python jobs/operate.py --workdir .openledger account user:alice --fund 25 --grant first --key-out alice.api_key
    python jobs/operate.py --workdir .openledger refund ans_01... --reason "the wrong adapter was deployed"
    python jobs/operate.py --workdir .openledger slash adapter:tables --cause false_lineage --evidence SHA256
    python jobs/operate.py --workdir .openledger claims --out claims.csv
    python jobs/operate.py --workdir .openledger paid-out 1 --reference SEPA-2026-0117
    python jobs/operate.py --workdir .openledger cap API_KEY 25

Prints one line of JSON; `claims` without --out prints the CSV instead, and that line to standard error. Everything but
`claims` may be repeated: what was done is told again. `claims` hands over what waits now as a new round; with --round
it writes an earlier one again. `account` gives each --grant once; a key file that is there already is kept, and no
second key made. `unit` comes before anything else, or the unit is OPEN; in a currency there is no genesis, --fund is
what was paid in, --grant the payment's reference, and `paid-out` records that a round of claims was paid.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openledger.core.errors import InvalidInput
from openledger.core.files import write_durably, write_secret
from openledger.core.money import format_open, parse_open, showing, shown_unit
from openledger.ledger.stakes import CAUSES
from openledger.ledger.vesting import standard_plan
from openledger.platform.job import begin, ended
from openledger.platform.stages import tell

Ask = Callable[..., Any]  # a method of the economy by name, and its arguments
_FIRST = ("unit", "genesis", "account")  # what an installation may begin with
_REPEAT = "the same command tells again what was done, and does what wasn't"
_REPEAT_CLAIMS = "if a round was closed, 'claims --round N' writes it again"


def main() -> int:
    arguments = parse_arguments()

    def told() -> None:
        is_plan = arguments.action == "genesis" and arguments.dry_run
        found = planned(arguments) if is_plan else over_the_actor(arguments)
        sys.stdout.write(found if isinstance(found, str) else f"{json.dumps(found)}\n")

    return ended(told, when_interrupted=_REPEAT_CLAIMS if arguments.action == "claims" else _REPEAT)


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    actions = parser.add_subparsers(dest="action", required=True)
    unit = actions.add_parser(
        "unit", help="reckon in a currency instead of OPEN; for an installation that has no log yet"
    )
    unit.add_argument("unit", metavar="CODE", help="like EUR")
    genesis = actions.add_parser("genesis", help="distribute the whole supply by the standard plan, once")
    for name in ("investors", "team", "liquidity"):
        genesis.add_argument(f"--{name}", default=f"user:{name}", metavar="ACCOUNT")
    genesis.add_argument("--dry-run", action="store_true", help="print the plan and do nothing")
    account = actions.add_parser("account", help="open a customer's account, give it OPEN, make its API key")
    account.add_argument("account", metavar="ACCOUNT", help="like user:alice")
    account.add_argument("--fund", default="", metavar="OPEN", help="from what genesis left undistributed")
    account.add_argument(
        "--grant", default="", metavar="NAME", help="what --fund is known by: given once for each name"
    )
    account.add_argument("--key-out", type=Path, metavar="FILE", help="make an API key, into this file (mode 0600)")
    account.add_argument("--cap", default="", metavar="OPEN", help="what the new key may spend in a day")
    refund = actions.add_parser("refund", help="give an answer's whole fee back")
    refund.add_argument("answer_id")
    refund.add_argument("--reason", required=True, help="stands in the log for everybody")
    slash = actions.add_parser("slash", help="take what the rules say of every stake on an object, into escrow")
    slash.add_argument("object", metavar="adapter:NAME|datanet:NAME")
    slash.add_argument("--cause", required=True, choices=sorted(CAUSES))
    slash.add_argument("--evidence", required=True, help="SHA-256 of what shows the cause, in hex")
    claims = actions.add_parser("claims", help="hand over the withdrawals that wait, as CSV")
    claims.add_argument("--round", type=int, help="an earlier round again, instead of a new one")
    claims.add_argument("--out", type=Path, help="the CSV; standard output without it")
    paid_out = actions.add_parser("paid-out", help="record that a round of claims was paid, in a currency")
    paid_out.add_argument("round", type=int)
    paid_out.add_argument("--reference", required=True, help="of the payment")
    cap = actions.add_parser("cap", help="how much a key may spend in a day")
    cap.add_argument("api_key")
    cap.add_argument("amount", metavar="OPEN")
    return parser.parse_args(words)


def act(ask: Ask, arguments: argparse.Namespace) -> dict[str, Any] | str:
    """Do it, through `ask`; what to print."""
    if arguments.action == "genesis":
        plan = standard_plan(arguments.investors, arguments.team, arguments.liquidity)
        return dict(ask("found", plan))
    if arguments.action == "account":
        return open_account(ask, arguments)
    if arguments.action == "refund":
        return dict(ask("refund", arguments.answer_id, arguments.reason))
    if arguments.action == "slash":
        return dict(ask("slash", arguments.object, arguments.cause, arguments.evidence))
    if arguments.action == "claims":
        return hand_over(ask, arguments)
    if arguments.action == "paid-out":
        return {
            "round": arguments.round,
            _named("paid"): format_open(ask("pay_out", arguments.round, arguments.reference)),
        }
    ask("set_daily_cap", arguments.api_key, parse_open(arguments.amount))
    return {_named("daily_cap"): arguments.amount}


def _named(what: str) -> str:
    """`what`, with the unit: `paid_open`, `paid_eur`."""
    return f"{what}_{shown_unit().name.lower()}"


def open_account(ask: Ask, arguments: argparse.Namespace) -> dict[str, Any]:
    if not (arguments.fund or arguments.key_out):
        raise InvalidInput("nothing to do", code="usage", param="account", fix="give --fund, --key-out or both")
    if bool(arguments.fund) != bool(arguments.grant):
        raise InvalidInput(
            "--fund and --grant go together", code="usage", param="grant", fix="name the grant, such as --grant first"
        )
    told = {"account": arguments.account}
    if arguments.fund:
        told["grant"] = ask("grant", arguments.account, parse_open(arguments.fund), arguments.grant)
    if arguments.key_out and not arguments.key_out.exists():
        cap_nano = parse_open(arguments.cap) if arguments.cap else None
        write_secret(arguments.key_out, ask("create_key", arguments.account, cap_nano).encode())
    return {**told, "key_file": str(arguments.key_out or ""), **_available(ask, arguments.account)}


def _available(ask: Ask, account: str) -> dict[str, str]:
    return {_named("available"): format_open(ask("balance", account).available_nano)}


def hand_over(ask: Ask, arguments: argparse.Namespace) -> dict[str, Any] | str:
    """What there is to say of a round, or its CSV where no file takes that. A file that can't be written is refused
    before a round is closed for it."""
    if arguments.out is not None and (arguments.out.is_dir() or not arguments.out.parent.is_dir()):
        raise InvalidInput(
            f"{arguments.out} can't be written", code="usage", param="out", fix="name a file in a folder that is there"
        )
    number = arguments.round or _closed_round(ask)
    text, claims = ask("claims_csv", number), ask("claims", number)
    total_nano = sum(amount_nano for _, amount_nano in claims)
    told = {"round": number, "claims": len(claims), _named("total"): format_open(total_nano)}
    if arguments.out is None:
        tell(json.dumps(told))
        return str(text)
    write_durably(arguments.out, text.encode())
    return told


def _closed_round(ask: Ask) -> int:
    """Told at once: whoever stops the job behind it needs the number."""
    number = int(ask("close_claims"))
    tell(f"round {number} is closed")
    return number


def planned(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        {
            "bucket": bucket.name,
            "total_open": format_open(bucket.total_nano),
            "at_once_open": format_open(bucket.initial_nano),
            "months": f"{bucket.first_month} to {bucket.last_month}" if bucket.months else "",
            "recipient": bucket.recipient,
        }
        for bucket in standard_plan(arguments.investors, arguments.team, arguments.liquidity)
    ]


def over_the_actor(arguments: argparse.Namespace) -> dict[str, Any] | str:
    workdir = begin(arguments.workdir, makes_workdir=arguments.action in _FIRST)  # before anything imports ray
    import ray

    from openledger.platform.actors import choose_unit, economy_actor, ledger_actor
    from openledger.platform.cluster import connected

    with connected(workdir):
        tell("loading ledger and economy ...")
        if arguments.action == "unit":
            unit = choose_unit(ledger_actor(workdir), arguments.unit)
            return {"unit": unit.name, "smallest": unit.smallest}
        economy = economy_actor(workdir)

        def ask(method: str, *given: Any) -> Any:
            return ray.get(getattr(economy, method).remote(*given))

        with showing(ask("unit")):
            return act(ask, arguments)


if __name__ == "__main__":
    sys.exit(main())
