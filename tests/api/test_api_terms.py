"""Creating a Datanet, its terms and permissions over HTTP and by the SDK, through Datanets in this process."""

from typing import Any, ClassVar

import pytest
from house import ADA, ADA_ID, BOB, ROWS, House
from served_app import served
from starlette.testclient import TestClient

from openledger.api import create_app
from openledger.client import OpenLedger
from openledger.core.errors import Conflict, Forbidden, InsufficientFunds, InvalidInput, TooLarge
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.row_schema import RowSchema
from openledger.datanets.terms import Terms

OWNER_KEY, ALICE_KEY = {"Authorization": "Bearer olk_user:owner"}, {"Authorization": "Bearer olk_user:alice"}
LATER_MS = 4_000_000_000_000
SCHEMA = {"kind": "chat", "columns": [{"name": "year", "type": "int64", "required": False}]}


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


class TestCreating:
    BODY: ClassVar = {"name": "bees", "summary": "Who does what in a hive", "row_schema": SCHEMA,
            "terms": {"licence": "CC-BY-4.0", "contribute": "approval", "tags": ["bees"]}}  # fmt: skip

    def test_whoever_creates_it_owns_it_on_the_terms_named(self, client: TestClient, house: House) -> None:
        made = client.post("/v1/datanets", json=self.BODY, headers=ALICE_KEY).json()
        assert (made["object"], made["owner"], made["terms"]["contribute"]) == ("datanet", "user:alice", "approval")
        assert house.rows.datanet("bees").row_schema == RowSchema.from_json(SCHEMA)
        assert house.rows.terms("bees") == Terms(licence="CC-BY-4.0", contribute="approval", tags=("bees",))
        assert client.post("/v1/datanets", json=self.BODY, headers=ALICE_KEY).json() == made

    def test_what_customers_see_is_said_at_once_and_not_reset_by_the_same_again(
        self, client: TestClient, house: House
    ) -> None:
        body = {**self.BODY, "display": "none"}
        assert client.post("/v1/datanets", json=body, headers=ALICE_KEY).json()["display"] == "none"
        assert house.rows.datanet("bees").display == "none"
        client.post("/v1/datanets/bees/display", json={"display": "text"}, headers=ALICE_KEY)
        assert client.post("/v1/datanets", json=body, headers=ALICE_KEY).json()["display"] == "text"
        assert client.post("/v1/datanets", json={**self.BODY, "name": "wasps"}, headers=ALICE_KEY).json()[
            "display"
        ] == ("reference")
        refused = client.post("/v1/datanets", json={**body, "name": "ants", "display": "all"}, headers=ALICE_KEY)
        assert code(refused) == (400, "invalid_field")
        assert "ants" not in house.rows.names()

    def test_a_name_is_taken_once(self, client: TestClient) -> None:
        client.post("/v1/datanets", json=self.BODY, headers=ALICE_KEY)
        assert code(client.post("/v1/datanets", json=self.BODY, headers=OWNER_KEY)) == (409, "datanet_exists")

    @pytest.mark.parametrize(
        ("change", "expected"),
        [({"name": "../x"}, "invalid_name"), ({"summary": ""}, "invalid_text"),
         ({"row_schema": {"kind": "poem"}}, "invalid_schema"),
         ({"terms": {"licence": "Mine"}}, "invalid_terms"), ({"terms": {"price": 3}}, "unknown_field")],
    )  # fmt: skip
    def test_what_cannot_be_is_refused_and_nothing_is_made(
        self, client: TestClient, house: House, change: dict[str, Any], expected: str
    ) -> None:
        response = client.post("/v1/datanets", json={**self.BODY, **change}, headers=ALICE_KEY)
        assert code(response) == (400, expected)
        assert house.rows.names() == ["docs"]

    def test_a_fee_is_taken_once_and_for_nothing_that_is_refused(self, client: TestClient, house: House) -> None:
        charged: list[tuple[str, str]] = []
        house.economy.charge_datanet = lambda account, name: charged.append((account, name)) or ""  # type: ignore
        refused = client.post("/v1/datanets", json={**self.BODY, "summary": ""}, headers=ALICE_KEY)
        taken = client.post("/v1/datanets", json={**self.BODY, "name": "docs"}, headers=ALICE_KEY)
        assert (refused.status_code, taken.status_code, charged) == (400, 409, [])
        client.post("/v1/datanets", json=self.BODY, headers=ALICE_KEY)
        assert charged == [("user:alice", "bees")]

    def test_while_one_pays_nobody_takes_name_or_place(
        self, client: TestClient, house: House, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two that create at once, the second while the first one's fee is taken: it is refused before it pays."""
        monkeypatch.setattr("openledger.datanets.agreements._MAX_OWNED", 1)
        told: list[str] = []

        def charge(account: str, name: str) -> str:
            for other, wanted in (("user:alice", "more"), ("user:bob", "bees")):
                with pytest.raises((Conflict, TooLarge)) as caught:
                    house.rows.reserve(wanted, "Another", other, RowSchema())
                told.append(caught.value.code)
            with pytest.raises(Conflict):
                house.rows.open_datanet("bees", "Another", "user:bob", RowSchema(), Terms())
            return ""

        house.economy.charge_datanet = charge  # type: ignore[method-assign]
        made = client.post("/v1/datanets", json=self.BODY, headers=ALICE_KEY)
        assert (made.status_code, told) == (200, ["too_many_datanets", "datanet_reserved"])

    def test_a_name_that_could_not_be_paid_is_free_at_once(self, client: TestClient, house: House) -> None:
        def poor(account: str, name: str) -> str:
            raise InsufficientFunds("too little")

        charge = house.economy.charge_datanet
        house.economy.charge_datanet = poor  # type: ignore[method-assign]
        assert client.post("/v1/datanets", json=self.BODY, headers=ALICE_KEY).status_code == 402
        house.economy.charge_datanet = charge  # type: ignore[method-assign]
        assert client.post("/v1/datanets", json=self.BODY, headers=OWNER_KEY).status_code == 200

    def test_a_name_is_kept_for_a_minute(self, house: House) -> None:
        house.rows.reserve("bees", "Hives", "user:alice", RowSchema())
        house.rows.release("bees", "user:bob")
        with pytest.raises(Conflict):
            house.rows.check_new("bees", "Hives", "user:bob", RowSchema())
        house.clock.advance(60_000)
        house.rows.check_new("bees", "Hives", "user:bob", RowSchema())

    def test_it_needs_a_key(self, client: TestClient) -> None:
        assert client.post("/v1/datanets", json=self.BODY).status_code == 401

    def test_names_are_not_hoarded(self, client: TestClient, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("openledger.datanets.agreements._MAX_OWNED", 1)
        client.post("/v1/datanets", json=self.BODY, headers=ALICE_KEY)
        response = client.post("/v1/datanets", json={**self.BODY, "name": "more"}, headers=ALICE_KEY)
        assert code(response) == (413, "too_many_datanets")
        assert client.post("/v1/datanets", json=self.BODY, headers=ALICE_KEY).status_code == 200


class TestTerms:
    def test_what_is_not_named_stays(self, client: TestClient) -> None:
        client.post("/v1/datanets/docs/terms", json={"licence": "MIT"}, headers=OWNER_KEY)
        told = client.post("/v1/datanets/docs/terms", json={"train": "request"}, headers=OWNER_KEY).json()
        assert (told["licence"], told["train"], told["contribute"]) == ("MIT", "request", "open")
        assert client.get("/v1/datanets/docs/terms").json() == told

    def test_the_owner_alone_sets_terms_and_display(self, client: TestClient, house: House) -> None:
        for path, body in (("terms", {"train": "private"}), ("display", {"display": "text"})):
            assert code(client.post(f"/v1/datanets/docs/{path}", json=body, headers=ALICE_KEY)) == (
                403,
                "not_the_owner",
            )
        assert (house.rows.terms("docs"), house.rows.datanet("docs").display) == (Terms(), "reference")
        client.post("/v1/datanets/docs/display", json={"display": "text"}, headers=OWNER_KEY)
        assert house.rows.datanet("docs").display == "text"


class TestPermissions:
    def test_from_a_signed_request_to_an_approval_that_expires(self, house: House) -> None:
        with served(create_app(house)) as url, OpenLedger(url, "olk_user:owner") as owner, OpenLedger(url) as ada:
            owner.set_terms("docs", contribute="approval")
            assert ada.request_permission("docs", ADA)["state"] == "requested"
            row = sign_contribution(ADA, "docs", ROWS[:1], "1")
            with pytest.raises(Forbidden):
                ada.contribute(row)
            approved = owner.approve("docs", ADA_ID, "contribute", house.clock.now_ms() + 1_000)
            assert (approved["party"], approved["state"]) == (ADA_ID, "approved")
            assert ada.contribute(row).verdicts[0].outcome == "accept"
            house.clock.advance(1_000)
            with pytest.raises(Forbidden) as caught:
                ada.contribute(sign_contribution(ADA, "docs", ROWS[1:2], "1"))
            assert caught.value.code == "not_permitted"

    def test_an_account_asks_to_train_and_is_revoked(self, client: TestClient, house: House) -> None:
        client.post("/v1/datanets/docs/terms", json={"train": "request"}, headers=OWNER_KEY)
        asked = client.post("/v1/datanets/docs/permissions/requests", json={"action": "train"}, headers=ALICE_KEY)
        assert (asked.json()["party"], asked.json()["state"]) == ("user:alice", "requested")
        body = {"party": "user:alice", "action": "train"}
        client.post("/v1/datanets/docs/permissions/approvals", json=body, headers=OWNER_KEY)
        house.rows.check_training("docs", "user:alice")
        client.post("/v1/datanets/docs/permissions/revocations", json=body, headers=OWNER_KEY)
        with pytest.raises(Forbidden):
            house.rows.check_training("docs", "user:alice")

    def test_the_owner_sees_all_and_others_their_own(self, client: TestClient, house: House) -> None:
        for party in ("user:alice", "user:lab"):
            house.rows.approve("docs", party, "train", by="user:owner")
        path = "/v1/datanets/docs/permissions"
        seen = {key["Authorization"]: [one["party"] for one in client.get(path, headers=key).json()["data"]]
                for key in (OWNER_KEY, ALICE_KEY)}  # fmt: skip
        assert list(seen.values()) == [["user:alice", "user:lab"], ["user:alice"]]
        assert client.get(path).status_code == 401

    @pytest.mark.parametrize("action", ["approvals", "revocations"])
    def test_the_owner_alone_decides(self, client: TestClient, house: House, action: str) -> None:
        body = {"party": "user:alice", "action": "train"}
        response = client.post(f"/v1/datanets/docs/permissions/{action}", json=body, headers=ALICE_KEY)
        assert (code(response), house.rows.permissions("docs")) == ((403, "not_the_owner"), [])

    def test_a_request_signed_by_another_key_or_not_at_all_is_refused(self, client: TestClient, house: House) -> None:
        from openledger.core.permitting import sign_request

        path = "/v1/datanets/docs/permissions/requests"
        forged = {"action": "contribute", "public_key": BOB.public_key, "signature": sign_request(ADA, "docs")}
        assert code(client.post(path, json=forged)) == (400, "invalid_signature")
        elsewhere = {"action": "contribute", "public_key": ADA.public_key, "signature": sign_request(ADA, "other")}
        assert code(client.post(path, json=elsewhere)) == (400, "invalid_signature")
        assert code(client.post(path, json={"action": "contribute"})) == (400, "missing_field")
        assert client.post(path, json={"action": "train"}).status_code == 401
        assert house.rows.permissions("docs") == []

    def test_the_sdk_raises_what_the_server_says(self, house: House) -> None:
        with (
            served(create_app(house)) as url,
            OpenLedger(url, "olk_user:owner") as owner,
            pytest.raises(InvalidInput) as caught,
        ):
            owner.set_terms("docs", licence="Mine")
        assert (caught.value.code, caught.value.param) == ("invalid_terms", "licence")
