"""The report for a person at a terminal."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from openledger.core.money import format_money, format_open

SPLITTER_NOTE = (
    "The splitter stands beside other people's rows, which may be better: the ratio is no loss by splitting. The same\n"
    "  rows under one name and several are compared in docs/attribution/redteam.md."
)

ERROR_NOTE = (
    "± error says how well a share was measured for trainings from this initial A of LoRA. Another initial A gives\n"
    "  another adapter and other shares: docs/concepts/attribution.md."
)


def print_report(report: dict[str, Any], console: Console, *, serves: bool = True) -> None:
    """Addresses are told only where something `serves` them on."""
    console.print()
    for entry in report.get("datanets", []):
        console.print(_datanet_table(entry))
        for person in entry["contributors"]:
            if person["rejected"] + person["review"] > person["accepted"]:
                console.print(f"  turned away of {person['name']}: {_turned_away(person)}", highlight=False)
            if unpaid_ppb := person.get("unpaid_ppb", 0):
                console.print(
                    f"  unpaid of {person['name']}: {unpaid_ppb / 1e7:.1f} %, by rows that repeat earlier ones"
                )
    if report.get("datanets"):
        console.print(f"  {ERROR_NOTE}\n", highlight=False)
    console.print(_gaming_table(report.get("gaming", [])))
    if any(entry["kind"] == "splitter" for entry in report.get("gaming", [])):
        console.print(f"  {SPLITTER_NOTE}", highlight=False)
    _print_answer(report.get("answers", []), console)
    _print_ledger(report, console)
    if not serves:
        console.print("to serve   make quickstart", highlight=False)
        return
    for name, url in report.get("urls", {}).items():
        console.print(f"{name:<10} {url}", highlight=False, soft_wrap=True)


def _datanet_table(entry: dict[str, Any]) -> Table:
    pool, unattributed = format_open(entry.get("pool_nano", 0)), format_open(entry.get("unattributed_nano", 0))
    title = f"{entry['name']} v{entry['version']}: pool {pool} OPEN, of which unattributed {unattributed}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("contributor", overflow="fold")
    for column in ("accepted", "trained", "share", "± error", "earned OPEN"):
        table.add_column(
            column, justify="right", no_wrap=True, min_width=len(column) if column != "earned OPEN" else 12
        )
    for person in sorted(entry["contributors"], key=lambda person: -person.get("earned_nano", 0)):
        kind = "" if person["kind"] in ("honest", person["name"]) else f" [yellow]{person['kind']}[/]"
        sent = person["accepted"] + person["rejected"] + person["review"]
        table.add_row(
            person["name"] + kind,
            f"{person['accepted']} of {sent}",
            str(person.get("rows_trained", 0)),
            f"{person.get('share_ppb', 0) / 1e7:.1f} %",
            f"{person.get('error_ppb', 0) / 1e7:.1f} %",
            format_open(person.get("earned_nano", 0)),
        )
    return table


def _turned_away(person: dict[str, Any]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(person["reasons"].items()))


def _gaming_table(entries: list[dict[str, Any]]) -> Table:
    table = Table(title="what gaming earned", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("who", "accepted", "earned OPEN", "beside", "earned OPEN", "ratio"):
        table.add_column(column, justify="left" if column in ("who", "beside") else "right")
    for entry in entries:
        table.add_row(
            f"{entry['kind']} of {entry['name']}" if entry["kind"] != "spammer" else "spammer",
            f"{entry['accepted']} of {entry['sent']}",
            format_open(entry["earned_nano"]),
            entry["reference"],
            format_open(entry["reference_nano"]),
            "-" if entry["ratio"] is None else f"{entry['ratio']:.2f}",
        )
    return table


def _print_answer(answers: list[dict[str, Any]], console: Console) -> None:
    shown = next((answer for answer in answers if answer["kind"] == "held_in" and answer["sources"]), None)
    if shown is None:
        return
    console.print(f"\n[bold]one answer[/] ({shown['adapter']}, {format_money(shown['fee_nano'])})", highlight=False)
    console.print(f"  Q  {shown['question']}\n  A  {shown['answer']}", markup=False, highlight=False)
    console.print("  rows behind it, by the index: scores compare rows with one another, in no unit", highlight=False)
    for source in shown["sources"]:
        text = f"{source['source']}  {source['completion'][:70]}" if "completion" in source else source["row_id"]
        line = f"  {source['score']:+.4f}  {source['contributor']}: {text}"
        console.print(line, markup=False, highlight=False)


def _print_ledger(report: dict[str, Any], console: Console) -> None:
    quality, ledger = report.get("quality", {}), report.get("ledger", {})
    if quality:
        console.print(
            f"\nROUGE-L  held-in: adapter {quality['rouge_held_in_adapter']:.3f}, base "
            f"{quality['rouge_held_in_base']:.3f}   new: adapter {quality['rouge_new_adapter']:.3f}, base "
            f"{quality['rouge_new_base']:.3f}",
            highlight=False,
        )
    if ledger:
        console.print(f"ledger   {ledger['audit']['message']}", highlight=False)
        console.print("".join(f"         {line}\n" for line in ledger["checkpoint"].splitlines()[:3]), highlight=False)
    if "proof" in report:
        console.print(
            f"proof    openledger ledger verify {report['proof']['path']} --key '{ledger['vkey']}'", soft_wrap=True
        )
