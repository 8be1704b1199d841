"""The calls of a Datanet's people beside contributing: terms, permissions, reviews, feedback, the leaderboard."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from openledger.client import values
from openledger.client.transport import Transport
from openledger.client.values import read_as, segment
from openledger.core.permitting import sign_request
from openledger.core.rating import sign_rating
from openledger.core.rekeying import KeyChange, change_json
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, ContributionReceipt, RowDraft

_PAGE_ROWS = 10_000


class Communities:
    """What `OpenLedger` inherits. Owners' calls need the API key of the Datanet's owner."""

    _transport: Transport

    def create_datanet(
        self,
        name: str,
        summary: str,
        *,
        row_schema: Mapping[str, Any] | None = None,
        terms: Mapping[str, Any] | None = None,
        display: str | None = None,
    ) -> dict[str, Any]:
        """A Datanet of this API key's account. `display` is as in `set_display`; `reference` without it. The same again
        changes nothing."""
        body = {"name": name, "summary": summary, "row_schema": dict(row_schema or {}), "terms": dict(terms or {})}
        body |= {"display": display} if display else {}
        return self._told("/v1/datanets", body)

    def terms(self, datanet: str) -> dict[str, Any]:
        return read_as(values.read_object, self._transport.get_json(f"{_path(datanet)}/terms"))

    def set_terms(self, datanet: str, **changes: Any) -> dict[str, Any]:
        """What isn't named stays as it is."""
        return self._told(f"{_path(datanet)}/terms", changes)

    def set_display(self, datanet: str, display: str) -> dict[str, Any]:
        """What a customer may see of rows: `none`, `reference` or `text`."""
        return self._told(f"{_path(datanet)}/display", {"display": display})

    def versions(self, datanet: str) -> list[dict[str, Any]]:
        """The published versions with their roots, oldest first."""
        return read_as(values.read_list, self._transport.get_json(f"{_path(datanet)}/versions"))

    def version(self, datanet: str, number: int) -> dict[str, Any]:
        """One of them, with the `terms`, `statistics` and `row_schema` that it was published with."""
        return read_as(values.read_object, self._transport.get_json(f"{_path(datanet)}/versions/{number}"))

    def version_rows(self, datanet: str, number: int) -> Iterator[dict[str, Any]]:
        """All of its rows, by id: `row_id`, `place` in the order of credit, and of a removed one the `tombstone`. The
        RFC 9162 root over the ids is its `row_root`, that over them by place its `credit_root`."""
        after = ""
        while True:
            path = f"{_path(datanet)}/versions/{number}/rows?after={segment(after)}&limit={_PAGE_ROWS}"
            told = read_as(values.read_object, self._transport.get_json(path))
            rows = read_as(values.read_list, told)
            yield from rows
            if not told.get("has_more") or not rows:
                return
            after = rows[-1]["row_id"]

    def permissions(self, datanet: str) -> list[dict[str, Any]]:
        """All of them for the owner, its own for another account."""
        return read_as(values.read_list, self._transport.get_json(f"{_path(datanet)}/permissions"))

    def request_permission(self, datanet: str, key: SigningKey | None = None) -> dict[str, Any]:
        """To contribute with `key`, or without one to train, as the API key's account."""
        signed: dict[str, str] = {}
        if key is not None:
            signed = {"public_key": key.public_key, "signature": sign_request(key, datanet)}
        body = {"action": "train" if key is None else "contribute", **signed}
        return self._told(f"{_path(datanet)}/permissions/requests", body)

    def approve(self, datanet: str, party: str, action: str, expires_ms: int = 0) -> dict[str, Any]:
        """`party` is a contributor's id for `contribute`, an account for `train`; also of who never asked."""
        body = {"party": party, "action": action, "expires_ms": expires_ms}
        return self._told(f"{_path(datanet)}/permissions/approvals", body)

    def revoke(self, datanet: str, party: str, action: str) -> dict[str, Any]:
        return self._told(f"{_path(datanet)}/permissions/revocations", {"party": party, "action": action})

    def leaderboard(self, datanet: str, *, after: str = "", limit: int = 100) -> dict[str, Any]:
        """Who contributes, how fast, whether they come back (`cohorts`), and what it earned. A page of at most 100:
        while it `has_more`, the next begins `after` the last one's `contributor_id`."""
        path = f"{_path(datanet)}/leaderboard?after={segment(after)}&limit={limit}"
        return read_as(values.read_object, self._transport.get_json(path))

    def review_queue(self, datanet: str, limit: int = 20) -> list[dict[str, Any]]:
        """Rows that this account, the owner's or a reviewer's, has yet to look at."""
        return read_as(values.read_list, self._transport.get_json(f"{_path(datanet)}/reviews?limit={limit}"))

    def review(self, datanet: str, row_id: str, *, accept: bool) -> dict[str, Any]:
        """Safe to send again."""
        return self._told(f"{_path(datanet)}/reviews", {"row_id": row_id, "accept": accept})

    def panels(self, datanet: str) -> dict[str, Any]:
        """`reviewer`, which is this account, and its `seats` on panels: `row_id`, `digest`, `state` (committing,
        revealing, done), `is_revealed`, `reveal_by_ms`."""
        return read_as(values.read_object, self._transport.get_json(f"{_path(datanet)}/reviews/panels"))

    def commit_review(self, datanet: str, row_id: str, digest: str) -> dict[str, Any]:
        """Where the Datanet has panels: commit to a verdict (`core.paneling.panel_digest`). Safe to send again."""
        return self._told(f"{_path(datanet)}/reviews/commitments", {"row_id": row_id, "digest": digest})

    def reveal_review(self, datanet: str, row_id: str, nonce: str, *, accept: bool) -> dict[str, Any]:
        """The verdict behind a commitment, once its panel is full. Safe to send again."""
        body = {"row_id": row_id, "accept": accept, "nonce": nonce}
        return self._told(f"{_path(datanet)}/reviews/reveals", body)

    def add_known_answer(self, datanet: str, draft: RowDraft, *, accept: bool) -> dict[str, Any]:
        """An item among the rows in review that measures who reviews them. With the owner's API key."""
        return self._told(f"{_path(datanet)}/known-answers", {**asdict(draft), "accept": accept})

    def reviewer_records(self, datanet: str) -> list[dict[str, Any]]:
        """How much each reviewer looked at, and how well. With the owner's API key."""
        return read_as(values.read_list, self._transport.get_json(f"{_path(datanet)}/reviewers/records"))

    def give_feedback(
        self, answer_id: str, kind: str, contribution: Contribution, *, salt: str, consent: bool
    ) -> ContributionReceipt:
        """A `correction` or an `edge_case` of an answer, as rows whose source is `core.rating.feedback_source` with the
        `salt` of `core.rating.feedback_salt`.

        They are credited to who signed them. With the API key of the account that paid for the answer, whose `consent`
        it needs: rows hold what was asked. Safe to send again."""
        signed = asdict(contribution)
        body = {
            "kind": kind,
            "salt": salt,
            "consent": consent,
            "datanet": signed.pop("datanet"),
            "contribution": signed,
        }
        told = self._transport.post_json(f"/v1/answers/{segment(answer_id)}/feedback", body)
        return read_as(values.read_contribution, told)

    def rate(self, key: SigningKey, answer_id: str, rating: int) -> dict[str, Any]:
        """1 (bad) to 5 (good), credited to `key`. Safe to send again; another rating is refused."""
        signature = sign_rating(key, answer_id, rating)
        body = {"rating": rating, "public_key": key.public_key, "signature": signature}
        return self._told(f"/v1/answers/{segment(answer_id)}/rating", body)

    def contributor_keys(self, contributor_id: str) -> dict[str, Any]:
        """At least `public_key` and `recovery_key` as they are now (null where they were never changed), `num_changes`
        and `changes`."""
        return read_as(values.read_object, self._transport.get_json(_keys(contributor_id)))

    def change_keys(self, change: KeyChange) -> dict[str, Any]:
        """Replace a contributor's signing key, or name or replace his recovery key (`core.rekeying.sign_change` makes
        the change). Gives what `contributor_keys` does. Safe to send again."""
        body = change_json(change)
        return self._told(_keys(body.pop("contributor_id")), body)

    def _told(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return read_as(values.read_object, self._transport.post_json(path, dict(body)))


def _keys(contributor_id: str) -> str:
    return f"/v1/contributors/{segment(contributor_id)}/keys"


def _path(datanet: str) -> str:
    return f"/v1/datanets/{segment(datanet)}"
