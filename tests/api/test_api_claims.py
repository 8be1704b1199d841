"""Disputes, appeals and retention over HTTP, through economy, ledger and Datanets, and by the SDK."""

from dataclasses import asdict
from typing import Any

import pytest
from economy_values import scores
from house import ADA, ADA_ID, AUDITOR, BOB, DEPOSIT, NOISE, OWNER, POOL, ROWS, House
from served_app import served
from starlette.testclient import TestClient

from openledger.api import create_app
from openledger.client import OpenLedger
from openledger.core.appealing import Appeal, sign_decision
from openledger.core.claiming import sign_claim
from openledger.core.errors import Conflict
from openledger.core.signed import contribution_id
from openledger.datanets.appeals import appeal_of
from openledger.economy.disputes import recomputed
from openledger.economy.spot_checks import SpotCheckBook
from openledger.ledger.disputes import Basis, recomputation_json, sign_recomputation
from openledger.ledger.signers import sign_signer

BASIS = Basis(num_answers=1, answers_nano=155)
ADA_KEY = {"Authorization": f"Bearer olk_contributor:{ADA_ID}"}
OWNER_KEY, ALICE_KEY = {"Authorization": "Bearer olk_user:owner"}, {"Authorization": "Bearer olk_user:alice"}
CLAIM = {"adapter": "py", "period": "p0001", "claimed_nano": 100, "reason": "mine are missing"}


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def found(share: int = 60) -> dict[str, Any]:
    more = scores(scores_nano={"ctr_a": 80, ADA_ID: 2 * share}, errors_nano={"ctr_a": 15, ADA_ID: 5})
    return recomputation_json(recomputed(AUDITOR, "user:auditor", BASIS, more))


class TestDisputes:
    @pytest.fixture(autouse=True)
    def settled(self, house: House) -> None:
        house.settled()

    def opened(self, client: TestClient, **more: Any) -> dict[str, Any]:
        response = client.post("/v1/disputes", json={**CLAIM, **more}, headers=ADA_KEY)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def test_are_opened_with_the_api_key_of_the_account_that_was_paid(self, client: TestClient, house: House):
        told = self.opened(client)
        assert (told["object"], told["state"], told["contributor"]) == ("dispute", "open", ADA_ID)
        assert house.economy.balance("escrow:py:p0001").posted_nano >= DEPOSIT
        listed = client.get("/v1/disputes", params={"adapter": "py", "period": "p0001"}).json()
        assert listed == {"object": "list", "data": [told], "has_more": False}
        assert client.get(f"/v1/disputes/{told['dispute_id']}").json() == told

    def test_are_opened_with_the_contributors_own_signature(self, client: TestClient):
        signed = {"public_key": ADA.public_key, "signature": sign_claim(ADA, *POOL, 100, "mine are missing")}
        told = client.post("/v1/disputes", json={**CLAIM, **signed}).json()
        assert (told["contributor"], told["account"]) == (ADA_ID, f"contributor:{ADA_ID}")

    @pytest.mark.parametrize(
        ("headers", "more", "status", "expected"),
        [
            ({}, {}, 401, "missing_api_key"),
            (ALICE_KEY, {}, 403, "not_the_contributor"),
            (ALICE_KEY, {"contributor_id": ADA_ID}, 403, "not_the_contributor"),
            (ADA_KEY, {"claimed_nano": 10**9}, 400, "invalid_claim"),
            (ADA_KEY, {"claimed_nano": -1}, 400, "invalid_field"),
            (ADA_KEY, {"claimed_nano": 1.5}, 400, "invalid_field"),
            (ADA_KEY, {"period": "p0009"}, 404, "not_settled"),
            (ADA_KEY, {"account": "user:alice"}, 400, "unknown_field"),
            ({}, {"public_key": ADA.public_key}, 400, "missing_field"),
            ({}, {"public_key": ADA.public_key, "signature": sign_claim(ADA, *POOL, 99, "")}, 400, "invalid_signature"),
            ({}, {"public_key": BOB.public_key, "signature": sign_claim(BOB, *POOL, 100, "mine are missing")}, 403,
             "not_in_settlement"),
            ({}, {"public_key": BOB.public_key, "signature": sign_claim(BOB, *POOL, 100, "mine are missing"),
                  "contributor_id": ADA_ID}, 403, "not_the_contributor"),
        ],
    )  # fmt: skip
    def test_that_can_not_be_are_refused_and_change_nothing(
        self, client: TestClient, house: House, headers: Any, more: Any, status: int, expected: str
    ):
        before = house.ledger.checkpoint()
        assert code(client.post("/v1/disputes", json={**CLAIM, **more}, headers=headers)) == (status, expected)
        assert house.ledger.checkpoint() == before

    def test_again_are_the_same_and_a_key_stands_for_one_claim(self, client: TestClient):
        key = {"Idempotency-Key": "k1"}
        first = client.post("/v1/disputes", json=CLAIM, headers=ADA_KEY | key).json()
        assert client.post("/v1/disputes", json=CLAIM, headers=ADA_KEY | key).json() == first
        other = client.post("/v1/disputes", json={**CLAIM, "claimed_nano": 90}, headers=ADA_KEY | key)
        assert code(other) == (409, "idempotency_conflict")
        unkeyed = client.post("/v1/disputes", json={**CLAIM, "claimed_nano": 90}, headers=ADA_KEY)
        assert code(unkeyed) == (409, "dispute_exists")
        unfit = client.post("/v1/disputes", json=CLAIM, headers=ADA_KEY | {"Idempotency-Key": "a b"})
        assert code(unfit) == (400, "invalid_idempotency_key")

    def test_are_decided_by_signed_scores_of_a_registered_scorer(self, client: TestClient, house: House):
        path = f"/v1/disputes/{self.opened(client)['dispute_id']}/recomputation"
        assert code(client.post(path, json=found())) == (403, "not_a_signer")
        house.name_scorer()
        assert code(client.post(path, json={**found(), "num_answers": 2})) == (400, "invalid_signature")
        decided = client.post(path, json=found()).json()
        assert (decided["state"], decided["verdict"]["public_key"]) == ("upheld", AUDITOR.public_key)
        assert client.post(path, json=found()).json() == decided
        assert code(client.post(path, json=found(50))) == (409, "dispute_closed")

    def test_are_not_decided_by_scores_of_another_pool(self, client: TestClient, house: House):
        house.name_scorer()
        path = f"/v1/disputes/{self.opened(client)['dispute_id']}/recomputation"
        other = recomputation_json(sign_recomputation(AUDITOR, "py", "p0002", "user:auditor", BASIS, {}))
        assert code(client.post(path, json=other)) == (400, "invalid_scores")

    def test_of_an_unknown_id_are_not_found(self, client: TestClient):
        assert code(client.get("/v1/disputes/dsp_none")) == (404, "dispute_not_found")
        assert code(client.get("/v1/disputes", params={"adapter": "py"})) == (400, "missing_field")

    def test_by_the_sdk(self, house: House):
        house.name_scorer()
        with served(create_app(house)) as url, OpenLedger(url) as client:
            opened = client.open_dispute(*POOL, 100, "mine", key=ADA, idempotency_key="k")
            assert client.disputes(*POOL) == [opened] == [client.dispute(opened["dispute_id"])]
            with pytest.raises(Conflict) as caught:
                client.open_dispute(*POOL, 90, "mine", key=ADA, idempotency_key="k")
            assert caught.value.code == "idempotency_conflict"
            assert client.resolve_dispute(opened["dispute_id"], found())["state"] == "upheld"


class TestAppeals:
    @pytest.fixture
    def appeal(self, house: House) -> Appeal:
        made = appeal_of(ADA, house.judged(), 3, "it is a checksum")
        house.name_reviewer()
        return made

    def body(self, appeal: Appeal, **change: Any) -> dict[str, Any]:
        values = {name: value for name, value in asdict(appeal).items() if name != "datanet"}
        return {**values, "path": list(appeal.path), **change}

    def decision(self, appeal: Appeal, overturned: bool = True, **change: Any) -> dict[str, Any]:
        made = sign_decision(OWNER, "docs", appeal.row_id, "user:owner", overturned=overturned, note="seen")
        return {name: value for name, value in asdict(made).items() if name not in ("datanet", "row_id")} | change

    def test_go_from_the_row_to_the_decision(self, client: TestClient, house: House, appeal: Appeal):
        opened = client.post("/v1/datanets/docs/appeals", json=self.body(appeal)).json()
        assert (opened["object"], opened["state"], opened["reasons"]) == ("appeal", "open", ["noise"])
        own = f"/v1/datanets/docs/appeals/{appeal.row_id}"
        assert client.get(own).json() == opened
        assert NOISE.completion not in client.get(own).text + client.get("/v1/datanets/docs/appeals").text
        assert client.get(f"{own}/row", headers=OWNER_KEY).json()["completion"] == NOISE.completion
        assert code(client.get(f"{own}/row", headers=ADA_KEY)) == (403, "not_the_owner")
        assert code(client.get(f"{own}/row")) == (401, "missing_api_key")
        decided = client.post(f"{own}/decision", json=self.decision(appeal)).json()
        assert (decided["state"], decided["decision"]["note"]) == ("overturned", "seen")
        assert client.post(f"{own}/decision", json=self.decision(appeal)).json() == decided
        assert client.post("/v1/datanets/docs/appeals", json=self.body(appeal)).json() == decided
        assert code(client.get(f"{own}/row", headers=OWNER_KEY)) == (404, "row_not_kept")
        assert house.rows.receipt("docs", contribution_id(house.judged())).verdicts[3].outcome == "accept"

    @pytest.mark.parametrize(
        ("change", "status", "expected"),
        [
            ({"reason": "another"}, 400, "invalid_signature"),
            ({"draft": {"prompt": "p", "completion": "c"}}, 400, "wrong_row"),
            ({"path": ["zz"]}, 400, "invalid_field"),
            ({"path": []}, 400, "wrong_row"),
            ({"ordinal": -1}, 400, "invalid_field"),
            ({"deposit": 1}, 400, "unknown_field"),
        ],
    )
    def test_that_can_not_be_are_refused_and_keep_nothing(
        self, client: TestClient, house: House, appeal: Appeal, change: Any, status: int, expected: str
    ):
        response = client.post("/v1/datanets/docs/appeals", json=self.body(appeal, **change))
        assert (code(response), house.rows.held_appeals()) == ((status, expected), {})

    def test_are_not_decided_by_what_nobody_signed(self, client: TestClient, appeal: Appeal):
        client.post("/v1/datanets/docs/appeals", json=self.body(appeal))
        path = f"/v1/datanets/docs/appeals/{appeal.row_id}/decision"
        assert code(client.post(path, json=self.decision(appeal, note="else"))) == (400, "invalid_signature")
        assert code(client.post(path, json=self.decision(appeal, overturned="yes"))) == (400, "invalid_field")
        other = sign_decision(OWNER, "docs", "row_9", "user:owner", overturned=True)
        body = {name: value for name, value in asdict(other).items() if name not in ("datanet", "row_id")}
        missing = client.post("/v1/datanets/docs/appeals/row_9/decision", json=body)
        assert code(missing) == (404, "appeal_not_found")

    def test_have_reviewers_whom_the_owner_names_and_takes_back(self, client: TestClient, house: House):
        signed = sign_signer(BOB, "reviewer", "user:bob", "docs")["signature"]
        body = {"account": "user:bob", "public_key": BOB.public_key, "signature": signed}
        assert code(client.post("/v1/datanets/docs/reviewers", json=body, headers=ALICE_KEY)) == (403, "not_the_owner")
        forged = {**body, "account": "user:eve"}
        assert code(client.post("/v1/datanets/docs/reviewers", json=forged, headers=OWNER_KEY)) == (
            400, "invalid_signature",
        )  # fmt: skip
        added = client.post("/v1/datanets/docs/reviewers", json=body, headers=OWNER_KEY).json()
        assert (added["object"], added["account"]) == ("reviewer", "user:bob")
        path = f"/v1/datanets/docs/reviewers/user:bob/{BOB.public_key}"
        assert code(client.delete(path, headers=ALICE_KEY)) == (403, "not_the_owner")
        assert client.delete(path, headers=OWNER_KEY).status_code == 200
        assert house.economy.signers_of("user:bob") == []

    def test_by_the_sdk(self, house: House, appeal: Appeal):
        with served(create_app(house)) as url, OpenLedger(url, "olk_user:owner") as client:
            opened = client.appeal(appeal, idempotency_key="k")
            assert client.appeals("docs") == [opened] == [client.find_appeal("docs", appeal.row_id)]
            assert client.appealed_row("docs", appeal.row_id)["prompt"] == NOISE.prompt
            decision = sign_decision(OWNER, "docs", appeal.row_id, "user:owner", overturned=False)
            assert client.decide(decision)["state"] == "upheld"
            signed = sign_signer(BOB, "reviewer", "user:bob", "docs")["signature"]
            added = client.add_reviewer("docs", "user:bob", BOB.public_key, signed)
            assert client.end_reviewer("docs", "user:bob", BOB.public_key)["account"] == added["account"]


class TestSpotChecks:
    PATH = "/v1/datanets/docs/spot-checks"

    @pytest.fixture(autouse=True)
    def drawn(self, house: House) -> None:
        house.economy._spot_checks = SpotCheckBook(house.economy._db, lambda _: 0)
        house.economy.draw_spot_checks(ADA_ID, "docs", "ctb_1", ["row_1", "row_2"])

    def test_are_the_owners_and_the_reviewers_to_see_and_to_close(self, client: TestClient, house: House):
        house.name_reviewer(BOB, "user:bob")
        listed = client.get(self.PATH, headers=OWNER_KEY).json()["data"]
        assert [(one["row_id"], one["contributor"]) for one in listed] == [("row_1", ADA_ID), ("row_2", ADA_ID)]
        body, bob = {"finding": "spam"}, {"Authorization": "Bearer olk_user:bob"}
        assert client.post(f"{self.PATH}/row_1", json=body, headers=bob).json()["finding"] == "spam"
        assert [one["row_id"] for one in client.get(self.PATH, headers=bob).json()["data"]] == ["row_2"]
        assert house.economy.reputation(ADA_ID, "docs")["ppm"] == 95_000

    def test_come_with_what_the_rows_say_while_they_stand(self, client: TestClient, house: House):
        sent = house.judged()
        receipt = house.rows.contribute(sent)
        own = [verdict.row_id for verdict in receipt.verdicts if verdict.outcome == "accept"]
        house.economy.draw_spot_checks(ADA_ID, "docs", receipt.contribution_id, own)
        house.rows.remove("docs", own[:1], "user:owner", "personal_data")
        listed = {one["row_id"]: one for one in client.get(self.PATH, headers=OWNER_KEY).json()["data"]}
        assert [listed[row_id]["completion"] for row_id in own] == [None, *(row.completion for row in ROWS[1:])]
        assert [listed[row_id]["prompt"] for row_id in own[1:]] == [row.prompt for row in ROWS[1:]]
        assert listed["row_1"]["completion"] is None

    def test_are_nobody_elses(self, client: TestClient):
        assert code(client.get(self.PATH, headers=ALICE_KEY)) == (403, "not_the_owner")
        refused = client.post(f"{self.PATH}/row_1", json={"finding": "spam"}, headers=ADA_KEY)
        assert code(refused) == (403, "not_the_owner")
        assert code(client.get(self.PATH)) == (401, "missing_api_key")

    @pytest.mark.parametrize(
        ("row", "body", "expected"),
        [
            ("row_1", {"finding": "fine"}, (400, "invalid_finding")),
            ("row_1", {}, (400, "missing_field")),
            ("row_9", {"finding": "good"}, (404, "spot_check_not_found")),
        ],
    )
    def test_that_can_not_be_change_nothing(self, client: TestClient, row: str, body: Any, expected: Any):
        assert code(client.post(f"{self.PATH}/{row}", json=body, headers=OWNER_KEY)) == expected
        assert len(client.get(self.PATH, headers=OWNER_KEY).json()["data"]) == 2


class TestVouches:
    PATH = "/v1/datanets/docs"

    def test_flow_from_whom_the_owner_trusts(self, client: TestClient, house: House):
        trusted = client.post(f"{self.PATH}/seeds/{ADA_ID}", json={"trusted": True}, headers=OWNER_KEY).json()
        assert (trusted["contributor"], trusted["quota_rows"]) == (ADA_ID, 20_000)
        told = client.post(f"{self.PATH}/vouches/ctr_new", json={"vouches": True}, headers=ADA_KEY).json()
        assert (told["contributor"], told["vouched_rows"]) == ("ctr_new", 6666)
        with served(create_app(house)) as url, OpenLedger(url, f"olk_contributor:{ADA_ID}") as sdk:
            assert sdk.vouch("docs", "ctr_new", False)["vouched_rows"] == 0
        with served(create_app(house)) as url, OpenLedger(url, "olk_user:owner") as sdk:
            assert sdk.seed_trust("docs", ADA_ID, False)["vouched_rows"] == 0

    def test_that_can_not_be_are_refused(self, client: TestClient):
        seed, vouch, yes = f"{self.PATH}/seeds/ctr_a", f"{self.PATH}/vouches/{ADA_ID}", {"vouches": True}
        assert code(client.post(seed, json={"trusted": True}, headers=ALICE_KEY)) == (403, "not_the_owner")
        assert code(client.post(vouch, json=yes, headers=ALICE_KEY)) == (403, "not_a_contributor")
        assert code(client.post(vouch, json=yes, headers=ADA_KEY)) == (400, "invalid_trust")
        assert code(client.post(vouch, json={}, headers=ADA_KEY)) == (400, "missing_field")
        unknown = client.post("/v1/datanets/none/vouches/ctr_a", json=yes, headers=ADA_KEY)
        assert code(unknown) == (404, "unknown_datanet")


class TestRetention:
    def test_is_the_callers_own(self, client: TestClient, house: House):
        house.sold()
        told = {"object": "retention", "account": "user:alice", "keep": True, "num_kept": 1, "has_key": True}
        assert client.get("/v1/retention", headers=ALICE_KEY).json() == told
        assert client.get("/v1/retention", headers=OWNER_KEY).json()["num_kept"] == 0
        changed = client.post("/v1/retention", json={"keep": False}, headers=ALICE_KEY).json()
        assert changed == {**told, "keep": False}
        gone = client.delete("/v1/retention/content", headers=ALICE_KEY).json()
        assert gone == {**told, "keep": False, "num_kept": 0, "has_key": False, "num_erased": 1}

    @pytest.mark.parametrize(("body", "expected"), [({"keep": "no"}, "invalid_field"), ({}, "missing_field")])
    def test_is_not_changed_by_what_can_not_be_read(self, client: TestClient, body: Any, expected: str):
        assert code(client.post("/v1/retention", json=body, headers=ALICE_KEY)) == (400, expected)

    @pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", ""), ("DELETE", "/content")])
    def test_needs_a_key(self, client: TestClient, method: str, path: str):
        refused = client.request(method, f"/v1/retention{path}", json={"keep": False} if method == "POST" else None)
        assert code(refused) == (401, "missing_api_key")

    def test_by_the_sdk(self, house: House):
        house.sold()
        with served(create_app(house)) as url, OpenLedger(url, "olk_user:alice") as client:
            assert client.set_retention(False)["keep"] is False
            assert client.forget_content()["num_erased"] == 1
            assert client.retention()["num_kept"] == 0


def test_every_route_stands_in_the_list_of_routes(client: TestClient):
    paths = client.get("/v1/openapi.json").json()["paths"]
    assert {
        "/v1/disputes", "/v1/disputes/{dispute_id}", "/v1/disputes/{dispute_id}/recomputation", "/v1/retention",
        "/v1/retention/content", "/v1/datanets/{name}/appeals", "/v1/datanets/{name}/appeals/{row_id}",
        "/v1/datanets/{name}/appeals/{row_id}/decision", "/v1/datanets/{name}/reviewers", "/v1/datanets/{name}/seals",
        "/v1/datanets/{name}/spot-checks", "/v1/datanets/{name}/spot-checks/{row_id}",
    } <= set(paths)  # fmt: skip
