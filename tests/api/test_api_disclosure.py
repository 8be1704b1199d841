"""Over HTTP nobody reads which private row a copy repeats, but for those who have a permission on it."""

from dataclasses import asdict

import pytest
from house import ADA, BOB, ROWS, House
from starlette.testclient import TestClient

from openledger.core.signing import contributor_id
from openledger.core.values import PRIVATE_ROW, Contribution
from openledger.datanets.appeals import appeal_of
from openledger.datanets.contribution import sign_contribution

PATH = "/v1/datanets/docs/contributions"


@pytest.fixture
def original(house: House) -> str:
    return house.kept_private()


@pytest.fixture
def copy() -> Contribution:
    return sign_contribution(ADA, "docs", ROWS, "0")


def body(contribution: Contribution) -> dict[str, object]:
    return {name: value for name, value in asdict(contribution).items() if name != "datanet"}


@pytest.mark.parametrize("path", [PATH, "/v1/datanets/docs/previews"])
def test_who_sends_a_copy_is_told_why_and_not_of_which_row(
    client: TestClient, original: str, copy: Contribution, path: str
):
    response = client.post(path, json=body(copy))
    verdict = response.json()["verdicts"][0]
    assert (verdict["reasons"], verdict["duplicate_of"]) == (["exact_duplicate"], PRIVATE_ROW)
    assert (original in response.text, "vault" in response.text) == (False, False)


@pytest.mark.parametrize(
    ("reader", "may"),
    [
        ("", False), ("user:owner", False), ("user:vault", True),
        (f"contributor:{contributor_id(BOB.public_key)}", True),
    ],
)  # fmt: skip
def test_what_is_stored_names_it_to_its_owner_alone(
    client: TestClient, original: str, copy: Contribution, reader: str, may: bool
):
    identifier = client.post(PATH, json=body(copy)).json()["contribution_id"]
    headers = {"Authorization": f"Bearer olk_{reader}"} if reader else {}
    found = client.get(f"{PATH}/{identifier}", headers=headers).json()["verdicts"][0]["duplicate_of"]
    assert found == (original if may else PRIVATE_ROW)


@pytest.mark.parametrize("header", ["Bearer no-such-key", "Bearer", "Basic abc", "Signed nonsense"])
def test_a_key_that_is_not_known_shows_no_more_than_none(
    client: TestClient, original: str, copy: Contribution, header: str
):
    identifier = client.post(PATH, json=body(copy)).json()["contribution_id"]
    response = client.get(f"{PATH}/{identifier}", headers={"Authorization": header})
    assert (response.status_code, response.json()["verdicts"][0]["duplicate_of"]) == (200, PRIVATE_ROW)


def test_an_appeal_does_not_name_it(client: TestClient, house: House, original: str, copy: Contribution):
    copy = house.judged()
    appeal = appeal_of(ADA, copy, 0, "I wrote it")
    sent = {name: value for name, value in asdict(appeal).items() if name != "datanet"}
    opened = client.post("/v1/datanets/docs/appeals", json=sent)
    listed = client.get("/v1/datanets/docs/appeals")
    assert (opened.json()["duplicate_of"], listed.json()["data"][0]["duplicate_of"]) == (PRIVATE_ROW, PRIVATE_ROW)
    proof = client.get(f"/v1/datanets/docs/appeals/{appeal.row_id}")
    for response in (opened, listed, proof):
        assert (original in response.text, contributor_id(BOB.public_key) in response.text) == (False, False)
