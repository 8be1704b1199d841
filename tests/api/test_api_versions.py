"""/v1/datanets/NAME/versions over HTTP and by the SDK: what a stranger needs to recompute a version's roots."""

from typing import Any

import pytest
from house import ADA, ROWS, House
from served_app import served
from starlette.testclient import TestClient

from openledger.api import create_app
from openledger.client import OpenLedger
from openledger.core.errors import NotFound
from openledger.datanets.contribution import sign_contribution
from openledger.datanets.removal import sign_withdrawal
from openledger.datanets.versions import credit_root, row_root

BASE = "/v1/datanets/docs/versions"


@pytest.fixture
def published(house: House) -> House:
    house.rows.set_terms("docs", house.rows.terms("docs"), "user:owner")
    house.rows.contribute(sign_contribution(ADA, "docs", ROWS, "0"))
    house.rows.publish("docs")
    return house


def test_versions_are_listed_and_say_what_they_were_published_with(client: TestClient, published: House) -> None:
    (listed,) = client.get(BASE).json()["data"]
    told: dict[str, Any] = client.get(f"{BASE}/1").json()
    assert (listed["object"], listed["number"], listed["num_rows"]) == ("version", 1, 3)
    assert {name: told[name] for name in listed} == listed
    assert told["terms"]["licence"] == "LicenseRef-openledger-training"
    assert [(one["accepted"], one["rejected"]) for one in told["statistics"]] == [(3, 0)]
    assert told["row_schema"] == {"kind": "instruction", "columns": []}


def test_its_rows_come_page_by_page_and_lead_to_both_roots(client: TestClient, published: House) -> None:
    rows: list[dict[str, Any]] = []
    while True:
        told = client.get(f"{BASE}/1/rows", params={"after": rows[-1]["row_id"] if rows else "", "limit": 2}).json()
        rows += told["data"]
        if not told["has_more"]:
            break
    version = published.rows.version("docs", 1)
    assert row_root([row["row_id"] for row in rows]) == version.row_root
    assert credit_root([row["row_id"] for row in sorted(rows, key=lambda row: row["place"])]) == version.credit_root
    assert {frozenset(row) for row in rows} == {frozenset({"row_id", "place", "tombstone"})}


def test_a_removed_row_stays_as_a_tombstone_without_its_salt(client: TestClient, published: House) -> None:
    row_id = published.rows.credit("docs", 1)[0]
    published.rows.withdraw(sign_withdrawal(ADA, "docs", [row_id], "1"))
    told = {row["row_id"]: row["tombstone"] for row in client.get(f"{BASE}/1/rows").json()["data"]}
    (stone,) = published.rows.tombstones("docs", 1)
    assert {row: digest for row, digest in told.items() if digest} == {row_id: stone.digest}
    assert len(told) == 3


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/datanets/docs/versions/2", 404, "unknown_version"),
        ("/v1/datanets/docs/versions/2/rows", 404, "unknown_version"),
        ("/v1/datanets/nowhere/versions", 404, "unknown_datanet"),
        ("/v1/datanets/docs/versions/0", 400, "invalid_field"),
        ("/v1/datanets/docs/versions/1/rows?limit=10001", 400, "invalid_field"),
    ],
)
def test_what_there_is_not_is_told(client: TestClient, published: House, path: str, status: int, code: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_the_sdk_reads_all_of_it(published: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openledger.client.communities._PAGE_ROWS", 2)
    with served(create_app(published)) as url, OpenLedger(url) as client:
        (listed,) = client.versions("docs")
        rows = list(client.version_rows("docs", 1))
        assert client.version("docs", 1)["row_root"] == listed["row_root"] == row_root([row["row_id"] for row in rows])
        with pytest.raises(NotFound):
            list(client.version_rows("docs", 2))
