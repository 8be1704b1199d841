"""The command line's grammar: every command, its options, its help. Knows no command's work."""

import argparse
from typing import Any

from openledger import __version__
from openledger.attribution.options import add_commands
from openledger.cli import (
    appealing,
    contributing,
    disputing,
    keys,
    offices,
    processes,
    remote,
    retaining,
    withdrawing,
)
from openledger.cli.commands import (
    Parser,
    add_idempotency,
    add_schema,
    command,
    group,
    ordinal,
    port,
    positive,
    remote_command,
)
from openledger.cli.datanet_commands import add_datanet_commands
from openledger.ledger.options import add_commands as add_ledger_commands

_EXAMPLES = """examples:
  openledger quickstart --exit             run everything once and print the report
  openledger models                        what can be asked, and for how much
  openledger ask MODEL "What does os.path.join do?"
  openledger keys new --out my.key         an identity to contribute with
  openledger keys recovery --key my.key --out recovery.key
  openledger contribute DATANET notes/ --key my.key --seal
  openledger contribute DATANET notes/ --key my.key
  openledger withdraw DATANET ROW_ID --key my.key
  openledger datanet leaderboard NAME      who contributes, how fast, and what it earned
  openledger payouts --key my.key          what the key's contributor was paid; without --key, this account
  openledger disputes open ADAPTER PERIOD 0.5 --key my.key --reason "my rows are missing"
  openledger appeals open DATANET notes/ --row 3 --key my.key --reason "it is no copy"
  openledger payout explain TRANSFER_ID    where a payout comes from, line by line
  openledger payout withdraw 12.5 --to 0xADDRESS --key my.key
  openledger stake add adapter:NAME 100    back an adapter, and get a say
  openledger govern propose "Less for owners" --change owner_ppm=150000 --change treasury_ppm=150000
  openledger govern vote prop_000007 for
  openledger proof TRANSFER_ID -o payout.json
  openledger ledger verify payout.json --key KEY
  openledger attribution score --help      influence of rows and contributors, from files

OPENLEDGER_URL and OPENLEDGER_API_KEY stand in for --url and --api-key.
"""


_TO_HELP = (
    "0x and 40 hex digits; in a currency also a text by which the operator knows whom to pay."
    " It stands in the public log: a customer number says less than a bank account"
)
_CONTRIBUTE_HELP = """formats:
  .jsonl .ndjson .csv .tsv .parquet .arrow     records with prompt and completion (or instruction and response,
                                               question and answer, messages, text), and optionally source
  .md .txt .pdf .docx                          a row for each paragraph, asked by the heading above it
  a folder                                     its files, by name; also a Hugging Face dataset directory

What can't be read is told with its file and place, and the rest goes on. Large files are sent in parts of 1,000 rows;
after a broken connection run the same command again: what is stored already is not sent twice.

examples:
  openledger contribute DATANET notes/ --key my.key --dry-run
  openledger contribute DATANET rows.jsonl --key my.key --recovery recovery.key --receipts verdicts.jsonl
"""


_TERMS_HELP = "for a dry run: the Datanet's languages and licence, as 'datanet terms DATANET --json' tells them"
_PART_ROWS_HELP = "at most so many go together (1,000); keep to one number: another one signs the rows anew"
_KEYS_HELP = """Your contributor id, your rows and your earnings stay yours: only the key that speaks for you changes.
Without a recovery key, who has your key can replace it. Name one before you contribute, and keep its file elsewhere.
The new key is written before anything is sent; after a broken connection run the same command again.

examples:
  openledger keys recovery --key my.key --out recovery.key
  openledger keys rotate --key my.key --recovery-key recovery.key --out new.key
  openledger keys recover --recovery-key recovery.key --out new.key
"""


def build_parser() -> Parser:
    parser = Parser(
        prog="openledger",
        description="Pay the people whose data made the answer.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"openledger {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    _add_quickstart(commands)
    _add_ledger(commands)
    _add_attribution(commands)
    _add_questions(commands)
    _add_data(commands)
    _add_removals(commands)
    add_datanet_commands(commands)
    _add_money(commands)
    _add_disputes(commands)
    _add_appeals(commands)
    _add_spot_checks(commands)
    _add_trust(commands)
    _add_reviewers(commands)
    _add_retention(commands)
    _add_payout(commands)
    _add_stake(commands)
    _add_govern(commands)
    _add_keys(commands)
    return parser


def _add_quickstart(commands: Any) -> None:
    parser = command(commands, "quickstart", processes.quickstart, "run the whole loop on this machine, then serve it")
    parser.add_argument("--workdir", metavar="DIR", help="where everything is kept, and found again by the next run")
    parser.add_argument("--base-model", metavar="ID_OR_PATH", help="a Hugging Face causal LM; without it the embedded")
    parser.add_argument("--port", type=port, metavar="N", help="for API and console; 0 for any free one")
    parser.add_argument("--config", metavar="FILE", help="settings as YAML, as a run leaves them in config.yaml")
    parser.add_argument("--exit", action="store_true", help="end after the report instead of serving on")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done and do nothing")


def _add_ledger(commands: Any) -> None:
    ledger = commands.add_parser("ledger", help="check proofs and books without a server; copy and witness them")
    actions = ledger.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    add_ledger_commands(actions)
    for action in actions.choices.values():
        action.set_defaults(run=processes.ledger)


def _add_attribution(commands: Any) -> None:
    group = commands.add_parser("attribution", help="measure influence from files, without any server")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    add_commands(actions)
    for action in actions.choices.values():
        action.set_defaults(run=processes.attribution)


def _add_questions(commands: Any) -> None:
    remote_command(commands, "models", remote.models, "list the adapters and their prices")
    ask = remote_command(commands, "ask", remote.ask, "ask one question, paid from your account")
    ask.add_argument("model", metavar="MODEL")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--max-tokens", type=positive, metavar="N")
    ask.add_argument("--temperature", type=float, metavar="T", help="0 is greedy, the default")
    ask.add_argument("--seed", type=int, metavar="N", help="makes sampling repeatable")
    remote_command(commands, "report", remote.report, "who contributed, who was paid, what gaming earned")
    remote_command(commands, "status", remote.status, "is the server there, and what does it hold")


def _add_data(commands: Any) -> None:
    remote_command(commands, "datanets", remote.datanets, "list the Datanets")
    contribute = remote_command(commands, "contribute", contributing.contribute, "sign rows and send them to a Datanet")
    contribute.formatter_class = argparse.RawDescriptionHelpFormatter
    contribute.epilog = _CONTRIBUTE_HELP
    contribute.add_argument("datanet", metavar="DATANET")
    contribute.add_argument("rows", metavar="PATH", help="a file, or a folder of files; see below")
    contribute.add_argument("--key", required=True, metavar="KEYFILE", help="made by 'openledger keys new'")
    contribute.add_argument("--nonce", default="0", help="another one sends the same rows as a new contribution")
    contribute.add_argument("--part-rows", type=positive, metavar="N", help=_PART_ROWS_HELP)
    contribute.add_argument("--seal", action="store_true", help="send no row yet: keep their place, for 7 days")
    add_schema(contribute)
    contribute.add_argument("--terms", metavar="FILE", help=_TERMS_HELP)
    contribute.add_argument("--receipts", metavar="FILE", help="write each row's id and verdict there, one a line")
    trial = contribute.add_mutually_exclusive_group()
    trial.add_argument("--dry-run", action="store_true", help="judge the rows by the gate here; send none")
    trial.add_argument("--preview", action="store_true", help="ask the server for the verdicts; store nothing")
    trial.add_argument("--recovery", metavar="KEYFILE", help="make a recovery key there, named with the first rows")


def _add_removals(commands: Any) -> None:
    withdraw = remote_command(commands, "withdraw", withdrawing.withdraw, "take back rows that you contributed")
    withdraw.add_argument("--key", required=True, metavar="KEYFILE", help="the key that contributed them")
    withdraw.add_argument("--nonce", default="0", help="another one makes another withdrawal of the same rows")
    withdraw.add_argument("--dry-run", action="store_true", help="sign it; send the Datanet's name alone")
    remove = remote_command(commands, "remove", withdrawing.remove, "remove rows from a Datanet that you own")
    remove.add_argument("--reason", required=True, metavar="WORD", help="such as court_order; it stands in the log")
    for parser in (withdraw, remove):
        parser.add_argument("datanet", metavar="DATANET")
        parser.add_argument("row_ids", metavar="ROW_ID", nargs="+", help="or - for one a line from standard input")


def _add_money(commands: Any) -> None:
    _of_contributor(remote_command(commands, "balance", remote.balance, "what your account holds"))
    _of_contributor(remote_command(commands, "payouts", remote.payouts, "what your account was paid"))
    proof = remote_command(commands, "proof", remote.proof, "download the proof of one transfer")
    proof.add_argument("transfer_id", metavar="TRANSFER_ID")
    receipt = remote_command(commands, "receipt", remote.receipt, "download the signed receipt of a paid answer")
    receipt.add_argument("answer_id", metavar="ANSWER_ID")
    for download in (proof, receipt):
        download.add_argument("-o", "--out", metavar="FILE", help="standard output without it")


def _add_disputes(commands: Any) -> None:
    actions = group(commands, "disputes", "contest what a settled pool paid")
    pool = remote_command(actions, "list", disputing.show_pool, "a settled pool's disputes")
    one = remote_command(actions, "show", disputing.show, "one dispute, and its verdict")
    claim = remote_command(actions, "open", disputing.open_claim, "claim more of a settled pool, against a deposit")
    resolve = remote_command(actions, "resolve", disputing.resolve, "decide a dispute by scores that you sign")
    for action in (pool, claim):
        action.add_argument("adapter", metavar="ADAPTER")
        action.add_argument("period", metavar="PERIOD")
    for action in (one, resolve):
        action.add_argument("dispute_id", metavar="DISPUTE_ID")
    claim.add_argument("claimed", metavar="OPEN", help="what would have been right, all in all")
    claim.add_argument("--reason", default="", metavar="TEXT", help="stands in the log for everybody")
    claim.add_argument("--key", metavar="KEYFILE", help="sign as the contributor; without it the API key's account")
    claim.add_argument("--contributor", metavar="ID", help="where the account was paid for another name than its own")
    add_idempotency(claim)
    resolve.add_argument("scores", metavar="SCORES.json", help="what was recomputed of the whole pool")
    resolve.add_argument("--scorer", required=True, metavar="ACCOUNT", help="whose key it is, as it was registered")
    resolve.add_argument("--key", required=True, metavar="KEYFILE")
    for action in (claim, resolve):
        action.add_argument("--dry-run", action="store_true", help="check and sign; send nothing")


def _add_appeals(commands: Any) -> None:
    actions = group(commands, "appeals", "contest what the gate said of a row")
    every = remote_command(actions, "list", appealing.show_all, "a Datanet's appeals")
    one = remote_command(actions, "show", appealing.show, "one appeal, and its decision")
    claim = remote_command(actions, "open", appealing.open_appeal, "contest the verdict on one row, against a deposit")
    decide = remote_command(actions, "decide", appealing.decide, "overturn or uphold a verdict, as a reviewer")
    for action in (every, one, claim, decide):
        action.add_argument("datanet", metavar="DATANET")
    for action in (one, decide):
        action.add_argument("row_id", metavar="ROW_ID")
    one.add_argument("--row", action="store_true", help="the row's text too, for the Datanet's owner and reviewers")
    claim.add_argument("rows", metavar="PATH", help="the file or folder that was contributed, whole and unchanged")
    claim.add_argument("--row", type=ordinal, required=True, metavar="N", help="which one, counted from 0")
    claim.add_argument("--reason", required=True, metavar="TEXT", help="stands in the log for everybody")
    claim.add_argument("--key", required=True, metavar="KEYFILE", help="that it was contributed with")
    claim.add_argument("--nonce", default="0", help="that it was contributed with")
    claim.add_argument("--part-rows", type=positive, metavar="N", help="that it was contributed with")
    add_schema(claim)
    claim.add_argument("--dry-run", action="store_true", help="find and sign the row; send nothing")
    add_idempotency(claim)
    either = decide.add_mutually_exclusive_group(required=True)
    either.add_argument("--overturn", action="store_true", help="accept the row, in its contribution's place")
    either.add_argument("--uphold", action="store_true", help="the verdict stands, and the deposit is lost")
    decide.add_argument("--account", required=True, metavar="ACCOUNT", help="whose key it is, as it was named")
    decide.add_argument("--key", required=True, metavar="KEYFILE")
    decide.add_argument("--note", default="", metavar="TEXT", help="why; stands in the log for everybody")


def _add_spot_checks(commands: Any) -> None:
    actions = group(commands, "spot-checks", "look again at accepted rows that were drawn for it")
    due = remote_command(actions, "list", appealing.show_spot_checks, "a Datanet's rows that wait for a spot check")
    close = remote_command(actions, "close", appealing.spot_check, "say what a row is, as owner or reviewer")
    for action in (due, close):
        action.add_argument("datanet", metavar="DATANET")
    close.add_argument("row_id", metavar="ROW_ID")
    close.add_argument("finding", choices=("good", "spam", "duplicate"))


def _add_trust(commands: Any) -> None:
    vouch = remote_command(commands, "vouch", appealing.vouch, "vouch for a contributor: he may send more rows a day")
    trust = remote_command(commands, "trust", appealing.trust, "say whom you trust in your Datanet: trust flows on")
    for action in (vouch, trust):
        action.add_argument("datanet", metavar="DATANET")
        action.add_argument("contributor_id", metavar="CONTRIBUTOR")
        action.add_argument("--back", action="store_true", help="take it back")


def _add_reviewers(commands: Any) -> None:
    actions = group(commands, "reviewers", "who decides appeals of a Datanet")
    sign = command(actions, "sign", appealing.sign_reviewer, "what a reviewer sends the Datanet's owner")
    add = remote_command(actions, "add", appealing.add_reviewer, "name a reviewer of your Datanet")
    end = remote_command(actions, "end", appealing.end_reviewer, "let a key decide nothing any more")
    for action in (sign, add, end):
        action.add_argument("datanet", metavar="DATANET")
        action.add_argument("--account", required=True, metavar="ACCOUNT", help="the reviewer's, such as user:bob")
    sign.add_argument("--key", required=True, metavar="KEYFILE")
    add.add_argument("--key", metavar="KEYFILE", help="the reviewer's own, where you have it")
    add.add_argument("--public-key", metavar="KEY")
    add.add_argument("--signature", metavar="HEX", help="as 'reviewers sign' prints it")
    end.add_argument("--public-key", required=True, metavar="KEY")


def _add_retention(commands: Any) -> None:
    actions = group(commands, "retention", "what is kept of your prompts and answers")
    remote_command(actions, "show", retaining.show, "whether they are kept, and how many are")
    change = remote_command(actions, "set", retaining.change, "keep them until they are settled, or not at all")
    change.add_argument("keep", choices=("yes", "no"))
    forget = remote_command(actions, "forget", retaining.forget, "delete what is kept, and the key that opens it")
    forget.add_argument("--yes", action="store_true", help="needed: it can't be undone")


def _add_payout(commands: Any) -> None:
    group = commands.add_parser("payout", help="explain, withdraw and export what you were paid")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    explain = remote_command(actions, "explain", offices.explain, "where a transfer comes from, line by line")
    explain.add_argument("transfer_id", metavar="TRANSFER_ID")
    withdraw = remote_command(actions, "withdraw", offices.withdraw, "take OPEN out, to be claimed on another ledger")
    withdraw.add_argument("amount", metavar="OPEN")
    withdraw.add_argument("--to", required=True, metavar="ADDRESS", help=_TO_HELP)
    withdraw.add_argument(
        "--dry-run", action="store_true", help="say what is available and what would go; send nothing"
    )
    _of_contributor(withdraw)
    _retriable(withdraw)
    rows = remote_command(actions, "rows", offices.row_scores, "what each row did to what an adapter sold in a period")
    rows.add_argument("adapter", metavar="ADAPTER")
    rows.add_argument("period", metavar="PERIOD")
    rows.add_argument("--contributor", metavar="ID", help="only this contributor's rows")
    rows.add_argument("--limit", type=int, default=100, metavar="N", help="most first (default 100, at most 1000)")
    rows.add_argument("--after", metavar="PLACE", help="the next page, behind the place that the last one named")
    export = remote_command(actions, "csv", offices.payouts_csv, "every payout of your account as CSV")
    export.add_argument("-o", "--out", metavar="FILE", help="standard output without it")
    _of_contributor(export)


def _of_contributor(parser: argparse.ArgumentParser) -> None:
    about = "as the contributor whose key it is; without it, the API key's account"
    parser.add_argument("--key", metavar="KEYFILE", help=about)


def _add_stake(commands: Any) -> None:
    group = commands.add_parser("stake", help="put OPEN behind an adapter or a Datanet")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    remote_command(actions, "show", offices.show_stake, "what you have staked, and your voting power")
    for name, run, about in (
        ("add", offices.add_stake, "stake OPEN; it earns from the object's stakers' part"),
        ("remove", offices.remove_stake, "begin the cool-down, after which it comes back by itself"),
    ):
        action = remote_command(actions, name, run, about)
        action.add_argument("object", metavar="OBJECT", help="adapter:NAME or datanet:NAME")
        action.add_argument("amount", metavar="OPEN")
        _retriable(action)
    delegate = remote_command(actions, "delegate", offices.delegate, "let another account vote with your stake")
    delegate.add_argument("delegate", metavar="ACCOUNT", help="like user:bob; your own takes it back")


def _add_govern(commands: Any) -> None:
    group = commands.add_parser("govern", help="parameters, proposals and votes")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    remote_command(actions, "parameters", offices.parameters, "every parameter, what it will be next, and its bounds")
    remote_command(actions, "proposals", offices.proposals, "list the proposals")
    for name, run, about in (
        ("show", offices.proposal, "one proposal and its votes"),
        ("cancel", offices.cancel, "take your proposal back while it is Pending"),
    ):
        remote_command(actions, name, run, about).add_argument("proposal", metavar="PROPOSAL")
    _add_propose(
        remote_command(actions, "propose", offices.propose, "propose a change, a spending, an appeal or a text")
    )
    vote = remote_command(actions, "vote", offices.vote, "vote with the power you had at the snapshot")
    vote.add_argument("proposal", metavar="PROPOSAL")
    vote.add_argument("support", choices=("for", "against", "abstain"))
    about = "what a change would have done to a settled period's payouts; writes nothing"
    simulate = remote_command(actions, "simulate", offices.simulate, about)
    simulate.add_argument("change", nargs="+", metavar="NAME=VALUE")
    simulate.add_argument("--period", metavar="PERIOD", help="like p0001; the last settled one without it")


def _add_propose(propose: argparse.ArgumentParser) -> None:
    propose.add_argument("title", metavar="TITLE")
    propose.add_argument("--text", default="", help="why")
    propose.add_argument("--change", action="append", metavar="NAME=VALUE", help="a parameter; may be repeated")
    propose.add_argument("--spend", nargs=2, metavar=("ACCOUNT", "OPEN"), help="pay from the treasury")
    propose.add_argument("--source", default="treasury", help="of --spend: treasury or treasury:ecosystem")
    propose.add_argument("--bounty", nargs=2, metavar=("ACCOUNT", "OPEN"), help="pay from what is unattributed")
    propose.add_argument("--for", dest="object", default="", metavar="OBJECT", help="of --bounty: like datanet:py-docs")
    propose.add_argument("--pool", metavar="POOL", help="of --bounty: like pool:py-docs:p0007; the oldest without it")
    propose.add_argument("--appeal", type=positive, metavar="SLASH", help="return what slash number SLASH took")
    propose.add_argument("--dry-run", action="store_true", help="check and show it; send nothing")
    _retriable(propose)


def _retriable(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--idempotency-key", metavar="KEY", help="send the same one to repeat a call safely")


def _add_keys(commands: Any) -> None:
    group = commands.add_parser("keys", help="your identity as a contributor")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    new = command(actions, "new", keys.new, "make an Ed25519 key; the file is yours alone to keep")
    new.add_argument("-o", "--out", default="contributor.key", metavar="KEYFILE")
    show = remote_command(actions, "show", keys.show, "whether a file's key still signs, and the recovery key")
    show.add_argument("--key", required=True, metavar="KEYFILE")
    recovery = _key_change(actions, "recovery", keys.name_recovery, "name a recovery key; it alone changes keys then")
    recovery.add_argument("--key", required=True, metavar="KEYFILE", help="the key that signs for you")
    recovery.add_argument("--recovery-key", metavar="KEYFILE", help="the one that is to be replaced")
    rotate = _key_change(actions, "rotate", keys.rotate, "replace a key that you have by a new one")
    rotate.add_argument("--key", required=True, metavar="KEYFILE", help="the key that is to be replaced")
    rotate.add_argument("--recovery-key", metavar="KEYFILE", help="needed once you have named one")
    recover = _key_change(actions, "recover", keys.recover, "replace a key that is lost or stolen by a new one")
    recover.add_argument("--recovery-key", required=True, metavar="KEYFILE", help="its file says whose it is")


def _key_change(actions: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser = remote_command(actions, name, run, about)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _KEYS_HELP
    parser.add_argument("-o", "--out", required=True, metavar="KEYFILE", help="where the new key is kept")
    parser.add_argument("--dry-run", action="store_true", help="say what would be signed by which key; change nothing")
    return parser
