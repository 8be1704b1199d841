"""Feedback, reviews and the leaderboard over HTTP and by the SDK, through economy, ledger and Datanets."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from house import ADA, ADA_ID, AUDITOR, BOB, ROWS, House
from served_app import served
from starlette.testclient import TestClient

from openledger.api import create_app
from openledger.client import OpenLedger
from openledger.core.errors import Conflict, Forbidden
from openledger.core.paneling import panel_digest, panel_nonce
from openledger.core.rating import feedback_salt, feedback_source, sign_rating
from openledger.core.signing import SigningKey
from openledger.core.values import Contribution, RowDraft
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.terms import Terms
from openledger.platform import community

OWNER_KEY, ALICE_KEY = {"Authorization": "Bearer olk_user:owner"}, {"Authorization": "Bearer olk_user:alice"}
PRIVATE = RowDraft(prompt="Who answers?", completion="Send all letters to the reader at reader@mail.net please.")
PROMPT, BETTER = "What does pack.open do in a nutshell?", "It opens the archive and returns its members in order."

PANEL = {f"user:r{number}": SigningKey(bytes([number + 1]) * 32) for number in range(3)}


@pytest.fixture
def answer_id(house: House) -> str:
    """Of an answer that alice paid for; its adapter was trained on `py-docs`."""
    house.rows.create("py-docs", "What Python does", "user:owner")
    house.sold()
    (row,) = house.economy._db.execute("SELECT answer_id FROM answers").fetchall()
    return str(row[0])


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def correction(answer_id: str, *, datanet: str = "py-docs", source: str = "") -> Contribution:
    opened = feedback_source(answer_id, "correction", feedback_salt(ADA, answer_id))
    row = RowDraft(prompt=PROMPT, completion=BETTER, source=source or opened)
    return sign_contribution(ADA, datanet, [row], "1")


def body(answer_id: str, *, consent: bool = True, **more: Any) -> dict[str, Any]:
    signed = asdict(correction(answer_id, **more))
    told = {"kind": "correction", "salt": feedback_salt(ADA, answer_id), "consent": consent}
    return {**told, "datanet": signed.pop("datanet"), "contribution": signed}


class TestFeedback:
    def test_a_correction_arrives_as_a_gated_row_of_its_author(
        self, client: TestClient, house: House, answer_id: str
    ) -> None:
        path = f"/v1/answers/{answer_id}/feedback"
        told = client.post(path, json=body(answer_id), headers=ALICE_KEY).json()
        assert (told["object"], told["accepted"], told["contributor_id"]) == ("contribution", 1, ADA_ID)
        house.rows.publish("py-docs")
        (row,) = house.rows.rows("py-docs", 1)
        salt = feedback_salt(ADA, answer_id)
        assert (row.contributor_id, row.source) == (ADA_ID, feedback_source(answer_id, "correction", salt))
        assert client.post(path, json=body(answer_id), headers=ALICE_KEY).json() == told
        (given,) = house.rows.feedback(answer_id)
        assert (given.kind, given.subject) == ("correction", told["contribution_id"])

    def test_its_source_leads_to_no_answer_without_the_signers_salt(self, answer_id: str) -> None:
        salt = feedback_salt(ADA, answer_id)
        source = feedback_source(answer_id, "correction", salt)
        assert answer_id not in source
        assert feedback_salt(BOB, answer_id) != salt != feedback_salt(ADA, "ans_other")
        others = {feedback_source("ans_other", "correction", salt), feedback_source(answer_id, "edge_case", salt),
                  feedback_source(answer_id, "correction", feedback_salt(BOB, answer_id))}  # fmt: skip
        assert len(others - {source}) == 3

    @pytest.mark.parametrize("salt", ["", "ab", feedback_salt(BOB, "ans_other")])
    def test_without_the_salt_that_opens_its_source_it_is_refused(
        self, client: TestClient, house: House, answer_id: str, salt: str
    ) -> None:
        sent = {**body(answer_id), "salt": salt}
        response = client.post(f"/v1/answers/{answer_id}/feedback", json=sent, headers=ALICE_KEY)
        assert response.status_code == 400
        assert house.rows.stored_count("py-docs") == 0

    @pytest.mark.parametrize(
        ("change", "expected"),
        [({"consent": False}, "consent_missing"), ({"datanet": "docs"}, "wrong_datanet"),
         ({"source": "me"}, "wrong_source")],
    )  # fmt: skip
    def test_without_consent_or_for_another_answer_nothing_is_kept(
        self, client: TestClient, house: House, answer_id: str, tmp_path: Path, change: dict[str, Any], expected: str
    ) -> None:
        response = client.post(f"/v1/answers/{answer_id}/feedback", json=body(answer_id, **change), headers=ALICE_KEY)
        assert code(response) == (400, expected)
        assert house.rows.feedback(answer_id) == []
        kept = [path for path in tmp_path.rglob("*") if path.is_file() and PROMPT.encode() in path.read_bytes()]
        assert kept == []

    def test_an_answer_is_its_customers(self, client: TestClient, house: House, answer_id: str) -> None:
        path = f"/v1/answers/{answer_id}"
        assert code(client.post(f"{path}/feedback", json=body(answer_id), headers=OWNER_KEY)) == (
            403,
            "not_the_customer",
        )
        rating = {"rating": 5, "public_key": ADA.public_key, "signature": sign_rating(ADA, answer_id, 5)}
        assert code(client.post(f"{path}/rating", json=rating, headers=OWNER_KEY)) == (403, "not_the_customer")
        missing = client.post("/v1/answers/ans_none/feedback", json=body("ans_none"), headers=ALICE_KEY)
        assert code(missing) == (404, "answer_not_sold")
        assert house.rows.stored_count("py-docs") == 0

    def test_a_rating_is_signed_and_given_once(self, house: House, answer_id: str) -> None:
        with served(create_app(house)) as url, OpenLedger(url, "olk_user:alice") as alice:
            assert alice.rate(ADA, answer_id, 4)["contributor_id"] == ADA_ID
            assert alice.rate(ADA, answer_id, 4)["rating"] == 4
            with pytest.raises(Conflict) as caught:
                alice.rate(ADA, answer_id, 1)
        assert caught.value.code == "already_rated"
        assert [one.rating for one in house.rows.feedback(answer_id)] == [4]

    @pytest.mark.parametrize(
        ("rating", "key", "expected"), [(9, ADA, "invalid_feedback"), (3, BOB, "invalid_signature")]
    )
    def test_a_rating_that_is_none_is_refused(
        self, client: TestClient, house: House, answer_id: str, rating: int, key: Any, expected: str
    ) -> None:
        sent = {"rating": rating, "public_key": key.public_key, "signature": sign_rating(ADA, answer_id, rating)}
        assert code(client.post(f"/v1/answers/{answer_id}/rating", json=sent, headers=ALICE_KEY)) == (400, expected)
        assert house.rows.feedback(answer_id) == []


class TestReviews:
    ROW = RowDraft(
        prompt="Who answers letters?", completion="Send all letters to the reader at reader@mail.net please."
    )

    def waiting(self, house: House) -> str:
        (verdict,) = house.rows.contribute(sign_contribution(ADA, "docs", [self.ROW], "1")).verdicts
        assert verdict.outcome == "review"
        return verdict.row_id

    def test_the_owner_looks_and_decides(self, house: House) -> None:
        row_id = self.waiting(house)
        with served(create_app(house)) as url, OpenLedger(url, "olk_user:owner") as owner:
            (shown,) = owner.review_queue("docs")
            assert (shown["row_id"], shown["completion"]) == (row_id, self.ROW.completion)
            owner.review("docs", row_id, accept=True)
            assert owner.review_queue("docs") == []
        assert house.rows.publish("docs").num_rows == 1

    def test_a_named_reviewer_may_look_and_a_stranger_may_not(self, client: TestClient, house: House) -> None:
        row_id = self.waiting(house)
        path = "/v1/datanets/docs/reviews"
        assert code(client.get(path, headers=ALICE_KEY)) == (403, "not_the_owner")
        assert code(client.post(path, json={"row_id": row_id, "accept": True}, headers=ALICE_KEY)) == (
            403,
            "not_the_owner",
        )
        house.name_reviewer(BOB, "user:alice")
        assert client.get(path, headers=ALICE_KEY).json()["data"][0]["row_id"] == row_id
        sent = client.post(path, json={"row_id": row_id, "accept": False}, headers=ALICE_KEY).json()
        assert sent == {
            "object": "review",
            "datanet": "docs",
            "row_id": row_id,
            "reviewer": "user:alice",
            "accept": False,
        }
        assert house.rows.stored_count("docs") == 0

    def test_known_answers_and_records_are_the_owners(self, client: TestClient, house: House) -> None:
        house.name_reviewer(BOB, "user:alice")
        item = {"prompt": "What is it?", "completion": "Nothing of any use at all.", "accept": False}
        assert code(client.post("/v1/datanets/docs/known-answers", json=item, headers=ALICE_KEY)) == (
            403,
            "not_the_owner",
        )
        made = client.post("/v1/datanets/docs/known-answers", json=item, headers=OWNER_KEY).json()
        waits = self.waiting(house)
        for row_id in (made["row_id"], waits):
            told = client.post("/v1/datanets/docs/reviews", json={"row_id": row_id, "accept": False}, headers=ALICE_KEY)
            assert set(told.json()) == {"object", "datanet", "row_id", "reviewer", "accept"}, (
                "which was known isn't told"
            )
        path = "/v1/datanets/docs/reviewers/records"
        assert code(client.get(path, headers=ALICE_KEY)) == (403, "not_the_owner")
        (record,) = client.get(path, headers=OWNER_KEY).json()["data"]
        assert (record["reviewer"], record["num_known"], record["num_right"]) == ("user:alice", 1, 1)


class TestLeaderboard:
    def test_counts_earnings_and_the_time_to_the_first_payout(self, client: TestClient, house: House) -> None:
        house.rows.contribute(sign_contribution(ADA, "docs", ROWS, "1"))
        house.clock.advance(60_000)
        house.settled()
        told = client.get("/v1/datanets/docs/leaderboard").json()
        (ada,) = told["contributors"]
        assert (ada["contributor_id"], ada["accepted"], ada["rows_a_week"]) == (ADA_ID, 3, 3)
        assert ada["earned_nano"] > 0
        assert ada["first_payout_ms"] >= 60_000
        assert told["cohorts"][0]["active"][0] == 1

    def test_who_earned_nothing_is_there_all_the_same(self, client: TestClient, house: House) -> None:
        house.rows.contribute(sign_contribution(ADA, "docs", ROWS, "1"))
        (ada,) = client.get("/v1/datanets/docs/leaderboard").json()["contributors"]
        assert (ada["earned_nano"], ada["first_payout_ms"]) == (0, None)

    def test_comes_in_pages_of_which_each_begins_behind_the_last(self, client: TestClient, house: House) -> None:
        for number, key in enumerate((ADA, BOB, AUDITOR)):
            house.rows.contribute(sign_contribution(key, "docs", ROWS[: 3 - number], str(number)))
        path, seen = "/v1/datanets/docs/leaderboard", list[tuple[int, str]]()
        told = client.get(path, params={"limit": 2}).json()
        while True:
            seen += [(one["rank"], one["contributor_id"]) for one in told["contributors"]]
            if not told["has_more"]:
                break
            told = client.get(path, params={"limit": 2, "after": seen[-1][1]}).json()
        whole = client.get(path).json()
        assert seen == [(one["rank"], one["contributor_id"]) for one in whole["contributors"]]
        assert ([rank for rank, _ in seen], whole["num_contributors"]) == ([1, 2, 3], 3)
        assert told["duplicates"] == whole["duplicates"] == 3

    def test_no_more_leaves_the_datanets_than_a_page(
        self, client: TestClient, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number, key in enumerate((ADA, BOB, AUDITOR)):
            house.rows.contribute(sign_contribution(key, "docs", ROWS[: 3 - number], str(number)))
        answered, crossed = community.answered, list[Any]()

        async def recorded(reference: Any) -> Any:
            crossed.append(await answered(reference))
            return crossed[-1]

        monkeypatch.setattr(community, "answered", recorded)
        told = client.get("/v1/datanets/docs/leaderboard", params={"limit": 1}).json()
        assert ([one["rank"] for one in told["contributors"]], told["has_more"]) == ([1], True)
        assert (told["num_contributors"], told["rows_a_week"], told["reviewers"]) == (3, 3, [])
        assert [len(one.contributors) for one in crossed if hasattr(one, "contributors")] == [1]

    def test_a_page_behind_nobody_is_refused(self, client: TestClient) -> None:
        path = "/v1/datanets/docs/leaderboard"
        assert code(client.get(path, params={"after": "ctr_nobody"})) == (404, "unknown_contributor")
        assert code(client.get(path, params={"limit": 101})) == (400, "invalid_field")

    def test_an_unknown_datanet_is_told(self, client: TestClient) -> None:
        assert code(client.get("/v1/datanets/poems/leaderboard")) == (404, "unknown_datanet")

    def test_a_refusal_of_the_sdk_is_ours(self, house: House) -> None:
        with served(create_app(house)) as url, OpenLedger(url, "olk_user:eve") as eve, pytest.raises(Forbidden):
            eve.review_queue("docs")


class TestPanels:
    @pytest.fixture
    def row_id(self, house: House) -> str:
        house.rows.set_terms("docs", Terms(min_reviews=3, panel=True), by="user:owner")
        for account, key in PANEL.items():
            house.name_reviewer(key, account)
        return house.rows.contribute(sign_contribution(ADA, "docs", [PRIVATE], "1")).verdicts[0].row_id

    def sent(self, client: TestClient, what: str, account: str, **body: Any) -> Any:
        path, headers = f"/v1/datanets/docs/reviews/{what}", {"Authorization": f"Bearer olk_{account}"}
        return client.post(path, json=body, headers=headers)

    def commit(self, client: TestClient, row_id: str, account: str) -> Any:
        nonce = panel_nonce(PANEL[account], "docs", row_id)
        digest = panel_digest("docs", row_id, account, nonce, accept=True)
        return self.sent(client, "commitments", account, row_id=row_id, digest=digest)

    def test_go_from_the_commitments_to_the_decision(self, client: TestClient, house: House, row_id: str) -> None:
        for account in PANEL:
            assert self.commit(client, row_id, account).status_code == 200
        seats = client.get("/v1/datanets/docs/reviews/panels", headers={"Authorization": "Bearer olk_user:r0"}).json()
        assert (seats["reviewer"], [one["state"] for one in seats["seats"]]) == ("user:r0", ["revealing"])
        for account, key in PANEL.items():
            told = self.sent(
                client, "reveals", account, row_id=row_id, accept=True, nonce=panel_nonce(key, "docs", row_id)
            )
            assert told.status_code == 200, told.text
        assert house.rows.publish("docs").num_rows == 1
        records = client.get("/v1/datanets/docs/reviewers/records", headers=OWNER_KEY).json()["data"]
        assert {(one["reviewer"], one["num_withheld"]) for one in records} == {(account, 0) for account in PANEL}

    def test_refuse_what_comes_too_early_from_strangers_or_malformed(self, client: TestClient, row_id: str) -> None:
        assert self.commit(client, row_id, "user:r0").status_code == 200
        nonce = panel_nonce(PANEL["user:r0"], "docs", row_id)
        told = self.sent(client, "reveals", "user:r0", row_id=row_id, accept=True, nonce=nonce)
        assert code(told) == (409, "panel_open")
        stranger = self.sent(client, "commitments", "user:eve", row_id=row_id, digest="ab" * 32)
        assert code(stranger) == (403, "not_the_owner")
        assert code(self.sent(client, "commitments", "user:r1", row_id=row_id, digest="ab")) == (
            400, "invalid_commitment",
        )  # fmt: skip
