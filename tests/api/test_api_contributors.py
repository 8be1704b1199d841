"""A contributor's keys over HTTP: changed by signatures alone, and what the replaced key can't do any more."""

from typing import Any

import pytest
from house import ADA, ADA_ID, POOL, House
from starlette.testclient import TestClient

from openledger.core.claiming import sign_claim
from openledger.core.drawing import sign_drawing, sign_reading
from openledger.core.permitting import sign_request
from openledger.core.rekeying import change_json, first_keys, sign_change
from openledger.core.signing import SigningKey
from openledger.datanets.holders import MAX_CHANGES_A_DAY

NEW, RECOVERY = (SigningKey(name * 32, ADA_ID) for name in (b"n", b"r"))
NAMED = sign_change(first_keys(ADA.public_key), [ADA, RECOVERY], recovery_key=RECOVERY.public_key)
ROTATED = sign_change(NAMED.keys(), [RECOVERY, NEW], public_key=NEW.public_key)
PATH = f"/v1/contributors/{ADA_ID}/keys"


def body(change: Any) -> dict[str, Any]:
    return {name: value for name, value in change_json(change).items() if name != "contributor_id"}


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture
def rotated(client: TestClient) -> TestClient:
    for change in (NAMED, ROTATED):
        assert client.post(PATH, json=body(change)).status_code == 200
    return client


def test_are_told_with_the_entry_of_each_change(rotated: TestClient, house: House):
    told = rotated.get(PATH).json()
    assert (told["object"], told["public_key"], told["recovery_key"]) == (
        "contributor_keys", NEW.public_key, RECOVERY.public_key,
    )  # fmt: skip
    assert [one["number"] for one in told["changes"]] == [1, 2]
    assert house.ledger.find(told["changes"][1]["transfer_id"]) is not None


def test_the_same_change_again_is_told_as_it_stands(rotated: TestClient):
    assert rotated.post(PATH, json=body(ROTATED)).json() == rotated.get(PATH).json()


def test_the_replaced_key_reads_draws_claims_and_asks_no_more(rotated: TestClient, house: House):
    house.economy.grant(f"contributor:{ADA_ID}", 1000, "start")
    claim = {"adapter": POOL[0], "period": POOL[1], "claimed_nano": 100, "reason": ""}
    requests = {
        "/v1/disputes": {**claim, "signature": sign_claim(ADA, *POOL, 100, "")},
        "/v1/withdrawals": {"amount_nano": 5, "address": "0x" + "a" * 40,
                            "signature": sign_drawing(ADA, 5, "0x" + "a" * 40, "k")},
        "/v1/datanets/docs/permissions/requests": {"action": "contribute", "signature": sign_request(ADA, "docs")},
    }  # fmt: skip
    for path, sent in requests.items():
        response = rotated.post(path, json={"public_key": ADA.public_key, **sent}, headers={"Idempotency-Key": "k"})
        assert code(response) == (403, "key_replaced"), path
    reading = {"Authorization": sign_reading(ADA, house.clock.now_ms())}
    assert code(rotated.get("/v1/balance", headers=reading)) == (403, "key_replaced")


def test_the_new_key_asks_in_the_contributors_name(rotated: TestClient):
    sent = {"action": "contribute", "public_key": NEW.public_key, "signature": sign_request(NEW, "docs")}
    assert rotated.post("/v1/datanets/docs/permissions/requests", json=sent).json()["party"] == ADA_ID


@pytest.mark.parametrize(
    ("more", "status", "expected"),
    [
        ({"number": 0}, 400, "invalid_field"),
        ({"number": 7}, 409, "stale_key_change"),
        ({"public_key": "zz"}, 400, "invalid_field"),
        ({"public_key": "ab"}, 400, "invalid_key"),
        ({"signatures": {}}, 400, "invalid_field"),
        ({"signatures": {"ab": "cd"}}, 403, "recovery_key_needed"),
        ({"color": "red"}, 400, "unknown_field"),
    ],
)
def test_bad_input_is_refused_by_name_and_changes_nothing(
    client: TestClient, more: dict[str, Any], status: int, expected: str
):
    client.post(PATH, json=body(NAMED))
    assert code(client.post(PATH, json={**body(ROTATED), **more})) == (status, expected)
    assert client.get(PATH).json()["num_changes"] == 1


def test_more_changes_than_a_day_has_are_refused_with_the_time_to_wait(client: TestClient):
    before, key = first_keys(ADA.public_key), ADA
    for number in range(MAX_CHANGES_A_DAY + 1):
        made = SigningKey(bytes([100 + number]) * 32)
        change = sign_change(before, [key, made], public_key=made.public_key)
        response, before, key = client.post(PATH, json=body(change)), change.keys(), made
    assert code(response) == (429, "too_many_key_changes")
    assert response.headers["Retry-After"] == str(24 * 60 * 60)
    assert client.get(PATH).json()["num_changes"] == MAX_CHANGES_A_DAY
