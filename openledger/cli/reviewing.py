"""Looking at rows in review, and saying what answers were worth."""

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from openledger.cli import output
from openledger.cli.keys import load_key
from openledger.cli.remote import connect, find_datanet
from openledger.core.errors import InvalidInput
from openledger.core.values import RowDraft

if TYPE_CHECKING:
    from openledger.core.signing import SigningKey

_ITEM = ("row_id", "prompt", "completion", "source")
_RECORD = ("reviewer", "num_reviews", "num_known", "num_right", "num_decided", "num_agreed", "num_withheld", "is_heard")


def queue(options: Namespace) -> None:
    with connect(options) as client:
        found = client.review_queue(options.datanet, options.limit)
    output.print_found(f"To review in {options.datanet}", found, _ITEM, as_json=options.json)


def review(options: Namespace) -> None:
    with connect(options) as client:
        _print(client.review(options.datanet, options.row_id, accept=options.accept), options)


def commit(options: Namespace) -> None:
    from openledger.core.paneling import panel_digest, panel_nonce

    nonce = panel_nonce(load_key(options.key), options.datanet, options.row_id)
    with connect(options) as client:
        reviewer = client.panels(options.datanet)["reviewer"]
        digest = panel_digest(options.datanet, options.row_id, reviewer, nonce, accept=options.accept)
        if options.dry_run:
            told = {"datanet": options.datanet, "row_id": options.row_id, "reviewer": reviewer, "digest": digest}
            return output.print_pairs({**told, "sent": False}, as_json=options.json)
        return _print(client.commit_review(options.datanet, options.row_id, digest), options)


def reveal(options: Namespace) -> None:
    """Of every seat that can be revealed: the key says which verdict it was."""
    key = load_key(options.key)
    with connect(options) as client:
        told = client.panels(options.datanet)
        ready = [one for one in told["seats"] if one["state"] == "revealing" and not one["is_revealed"]]
        found = [_opened(key, options.datanet, told["reviewer"], seat) for seat in ready]
        if not options.dry_run:
            for row_id, nonce, accept in found:
                client.reveal_review(options.datanet, row_id, nonce, accept=accept)
    rows = [{"row_id": row_id, "accept": accept, "sent": not options.dry_run} for row_id, _, accept in found]
    output.print_rows(f"Revealed in {options.datanet}", rows, as_json=options.json, whole=rows)


def panels(options: Namespace) -> None:
    with connect(options) as client:
        seats = client.panels(options.datanet)["seats"]
    rows = [output.with_times({**seat, "reveal_by_ms": seat["reveal_by_ms"] or None}, "reveal_by_ms") for seat in seats]
    output.print_rows(f"Your panels in {options.datanet}", rows, as_json=options.json, whole=seats)


def _opened(key: "SigningKey", datanet: str, reviewer: str, seat: dict[str, Any]) -> tuple[str, str, bool]:
    """Row id, nonce and verdict of a seat. Raises InvalidInput where another key made it."""
    from openledger.core.paneling import panel_digest, panel_nonce

    nonce = panel_nonce(key, datanet, seat["row_id"])
    for accept in (True, False):
        if panel_digest(datanet, seat["row_id"], reviewer, nonce, accept=accept) == seat["digest"]:
            return seat["row_id"], nonce, accept
    raise InvalidInput(
        f"the commitment on {seat['row_id']} was made with another key",
        code="wrong_reveal",
        param="key",
        fix="give the key file that you committed with",
    )


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
        find_datanet(options)
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
