"""The report for a person at a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from openledger.core.money import format_open


def print_report(report: dict[str, Any], console: Console) -> None:
    console.print()
    for entry in report.get("datanets", []):
        console.print(_datanet_table(entry))
    console.print(_gaming_table(report.get("gaming", [])))
    _print_answer(report.get("answers", []), console)
    _print_ledger(report, console)


def _datanet_table(entry: dict[str, Any]) -> Table:
    pool, unattributed = format_open(entry.get("pool_nano", 0)), format_open(entry.get("unattributed_nano", 0))
    table = Table(
        title=f"{entry['name']} v{entry['version']}: pool {pool} OPEN, unattributed {unattributed}",
        title_justify="left",
    )
    table.add_column("contributor")
    for column in ("accepted", "rejected", "review", "trained", "share", "± error", "earned OPEN"):
        table.add_column(column, justify="right")
    table.add_column("why rejected")
    for person in sorted(entry["contributors"], key=lambda person: -person.get("earned_nano", 0)):
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(person["reasons"].items()))
        kind = "" if person["kind"] == "honest" else f" [yellow]({person['kind']})[/]"
        table.add_row(
            person["name"] + kind,
            *(str(person[key]) for key in ("accepted", "rejected", "review")),
            str(person.get("rows_trained", 0)),
            f"{person.get('share_ppb', 0) / 1e7:.2f} %",
            f"{person.get('error_ppb', 0) / 1e7:.2f} %",
            format_open(person.get("earned_nano", 0)),
            reasons,
        )
    return table


def _gaming_table(entries: list[dict[str, Any]]) -> Table:
    table = Table(title="what gaming earned", title_justify="left")
    for column in ("who", "accepted of sent", "earned OPEN", "beside", "earned OPEN", "ratio"):
        table.add_column(column, justify="left" if column in ("who", "beside") else "right")
    for entry in entries:
        table.add_row(
            f"{entry['kind']} of {entry['name']}" if entry["kind"] != "spammer" else "spammer",
            f"{entry['accepted']} of {entry['sent']}",
            format_open(entry["earned_nano"]),
            entry["reference"],
            format_open(entry["reference_nano"]),
            f"{entry['ratio']:.2f}",
        )
    return table


def _print_answer(answers: list[dict[str, Any]], console: Console) -> None:
    shown = next((answer for answer in answers if answer["kind"] == "held_in" and answer["sources"]), None)
    if shown is None:
        return
    console.print(f"\n[bold]one answer[/] ({shown['adapter']}, {format_open(shown['fee_nano'])} OPEN)", highlight=False)
    console.print(f"  Q  {shown['question']}\n  A  {shown['answer']}", markup=False, highlight=False)
    for source in shown["sources"]:
        line = f"  {source['score']:+.4f}  {source['contributor']}: {source['source']}  {source['completion'][:70]}"
        console.print(line, markup=False, highlight=False)


def _print_ledger(report: dict[str, Any], console: Console) -> None:
    quality, ledger, urls = report.get("quality", {}), report.get("ledger", {}), report.get("urls", {})
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
    for name, url in urls.items():
        console.print(f"{name:<9}{url}", highlight=False)
