"""The commands that ask a server: each one call of the SDK, and how its answer is shown."""

import sys
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger.cli import output
from openledger.cli.keys import own_key
from openledger.core.errors import InvalidInput, OpenLedgerError
from openledger.core.files import write_durably
from openledger.core.money import format_money, format_open, shown_unit
from openledger.core.values import SamplingParameters

if TYPE_CHECKING:
    from openledger.client import OpenLedger, Receipt

_DRY_RUN_TIMEOUT_S = 10.0
_CONTRIBUTOR = ("name", "kind", "accepted", "rejected", "review", "share_ppb", "earned_nano")
_GAMING = ("kind", "name", "earned_nano", "reference", "reference_nano", "ratio")


def connect(options: Namespace) -> "OpenLedger":
    from openledger.client import OpenLedger  # the HTTP library is half of a second: only commands that need it pay

    return OpenLedger(options.url, options.api_key)


def find_datanet(options: Namespace) -> dict[str, Any] | None:
    """The Datanet that a dry run names, which sends that name and no key. None where nobody can say, which is told: a
    dry run needs no server, and anything may listen at the URL. Raises NotFound (`unknown_datanet`), as what would be
    sent does, and InvalidInput (`invalid_url`)."""
    from openledger.client import OpenLedger

    with OpenLedger(options.url, timeout_s=_DRY_RUN_TIMEOUT_S) as client:
        try:
            return client.datanet(options.datanet)
        except OpenLedgerError as error:
            if error.code == "unknown_datanet":
                raise
            output.print_note(f"not checked whether there is a Datanet {options.datanet!r}: {error.message}")
            return None


def models(options: Namespace) -> None:
    with connect(options) as client:
        found = [asdict(model) for model in client.models()]
    rows = [
        {
            "model": model["id"],
            "datanet": _datanet_of(model),
            "base": model["base_model"],
            f"prompt {shown_unit().name}/token": format_open(model["prompt_price_nano"]),
            f"completion {shown_unit().name}/token": format_open(model["completion_price_nano"]),
        }
        for model in found
    ]
    output.print_rows("Models", rows, as_json=options.json, whole=found)


def _datanet_of(model: dict[str, Any]) -> str:
    if model["datanet"]:
        return f"{model['datanet']} v{model['datanet_version']}"
    return "merged adapters" if model["adapter_digest"] else "base model alone"


def ask(options: Namespace) -> None:
    with connect(options) as client:
        if options.json:
            output.print_json(asdict(client.ask(options.model, options.question, sampling=_sampling(options))))
            return
        _print_as_it_comes(client, options)


def datanets(options: Namespace) -> None:
    with connect(options) as client:
        found = client.datanets()
    columns = ("name", "version", "rows_in", "accepted", "rejected", "review", "summary")
    output.print_rows("Datanets", _chosen(found, *columns), as_json=options.json, whole=found)


def balance(options: Namespace) -> None:
    with connect(options) as client:
        found = client.balance(own_key(options))
    if options.json:
        output.print_json(found)
        return
    output.print_pairs({name: value for name, value in found.items() if name != "is_open"}, as_json=False)
    if not found.get("is_open", True):
        output.print_note("nothing has been paid to this account yet: it opens with its first payment")


def payouts(options: Namespace) -> None:
    with connect(options) as client:
        found = client.payouts(own_key(options))
    columns = ("transfer_id", "adapter", "period", "amount_nano", "funding")
    output.print_rows("Payouts", _chosen(found, *columns), as_json=options.json, whole=found)


def proof(options: Namespace) -> None:
    """The proof's bytes as they are: `--json` changes nothing but the message of where they were written."""
    with connect(options) as client:
        _download(client.proof(options.transfer_id), options)


def receipt(options: Namespace) -> None:
    """As `proof`, of one answer's receipt."""
    with connect(options) as client:
        _download(client.receipt(options.answer_id), options)


def report(options: Namespace) -> None:
    with connect(options) as client:
        found = client.report()
    if options.json:
        output.print_json(found)
        return
    output.print_pairs(found.get("totals") or {"answers": 0}, as_json=False)
    for datanet in found.get("datanets") or []:
        output.print_rows(str(datanet.get("name")), _chosen(datanet.get("contributors") or [], *_CONTRIBUTOR))
    output.print_rows("Gaming", _chosen(found.get("gaming") or [], *_GAMING))


def status(options: Namespace) -> None:
    with connect(options) as client:
        checkpoint = client.checkpoint().splitlines()
        found = {
            "url": options.url,
            **client.health(),
            "datanets": len(client.datanets()),
            "models": len(client.models()) if options.api_key else None,
            "log_size": int(checkpoint[1]) if len(checkpoint) > 1 and checkpoint[1].isdigit() else None,
        }
    output.print_pairs(found, as_json=options.json)


def _download(data: bytes, options: Namespace) -> None:
    if options.out is None:
        sys.stdout.buffer.write(data)
        return
    _write(Path(options.out), data)
    output.print_pairs({"written": options.out, "bytes": len(data)}, as_json=options.json)


def _print_as_it_comes(client: "OpenLedger", options: Namespace) -> None:
    receipt: Receipt | None = None
    shown_unit()  # before anything is paid: the fee is told in it
    messages = [{"role": "user", "content": options.question}]
    for piece in client.chat_stream(options.model, messages, sampling=_sampling(options)):
        output.print_text(piece.text)
        receipt = piece.receipt or receipt
    output.print_text("\n")
    if receipt is not None:
        output.print_note(
            f"{receipt.prompt_tokens} + {receipt.completion_tokens} tokens, "
            f"{format_money(receipt.fee_nano)}, {receipt.answer_id}"
        )


def _sampling(options: Namespace) -> SamplingParameters:
    given = {name: getattr(options, name) for name in ("max_tokens", "temperature", "seed")}
    return replace(SamplingParameters(), **{name: value for name, value in given.items() if value is not None})


def _chosen(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    return [{column: row.get(column) for column in columns} for row in rows]


def _write(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}", code="unwritable", param="out") from error
