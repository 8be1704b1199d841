"""Looking at rows in review, and saying what answers were worth."""

from argparse import Namespace
from typing import Any

from openledger.cli import output
from openledger.cli.keys import load_key
from openledger.cli.remote import connect
from openledger.core.values import RowDraft

_ITEM = ("row_id", "prompt", "completion", "source")
_RECORD = ("reviewer", "num_reviews", "num_known", "num_right", "num_decided", "num_agreed", "is_heard")


def queue(options: Namespace) -> None:
    with connect(options) as client:
        found = client.review_queue(options.datanet, options.limit)
    output.print_found(f"To review in {options.datanet}", found, _ITEM, as_json=options.json)


def review(options: Namespace) -> None:
    with connect(options) as client:
        _print(client.review(options.datanet, options.row_id, accept=options.accept), options)


def add_known(options: Namespace) -> None:
    draft = RowDraft(prompt=options.prompt, completion=options.completion, source=options.source)
    with connect(options) as client:
        _print(client.add_known_answer(options.datanet, draft, accept=options.accept), options)


def records(options: Namespace) -> None:
    with connect(options) as client:
        found = client.reviewer_records(options.datanet)
    output.print_found(f"Reviewers of {options.datanet}", found, _RECORD, as_json=options.json)


def correct(options: Namespace) -> None:
    from openledger.core.rating import feedback_salt, feedback_source
    from openledger.datanets.contribution import sign_contribution

    kind = "edge_case" if options.edge_case else "correction"
    key = load_key(options.key)
    salt = feedback_salt(key, options.answer_id)
    source = feedback_source(options.answer_id, kind, salt)
    draft = RowDraft(prompt=options.prompt, completion=options.completion, source=source)
    contribution = sign_contribution(key, options.datanet, [draft], nonce="feedback")
    if options.dry_run:
        told = {"datanet": options.datanet, "contributor_id": contribution.contributor_id, "source": source}
        output.print_pairs({**told, "consent": options.consent, "sent": False}, as_json=options.json)
        return
    with connect(options) as client:
        receipt = client.give_feedback(options.answer_id, kind, contribution, salt=salt, consent=options.consent)
    (verdict,) = receipt.verdicts
    told = {"contribution_id": receipt.contribution_id, "contributor_id": receipt.contributor_id}
    gate = {"row_id": verdict.row_id, "outcome": verdict.outcome, "reasons": ", ".join(verdict.reasons) or None}
    output.print_pairs({**told, **gate}, as_json=options.json)


def rate(options: Namespace) -> None:
    key = load_key(options.key)
    if options.dry_run:
        told = {"answer_id": options.answer_id, "rating": options.rating, "public_key": key.public_key, "sent": False}
        output.print_pairs(told, as_json=options.json)
        return
    with connect(options) as client:
        _print(client.rate(key, options.answer_id, options.rating), options)


def _print(found: dict[str, Any], options: Namespace) -> None:
    output.print_pairs({name: value for name, value in found.items() if name != "object"}, as_json=options.json)
