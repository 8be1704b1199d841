"""Seals over HTTP, and what the SDK makes of them."""

from dataclasses import asdict

import pytest
from memory_service import MemoryService
from served_app import served
from starlette.testclient import TestClient

from openledger.api import create_app
from openledger.client import OpenLedger
from openledger.core.errors import NotFound
from openledger.core.sealing import Seal, sign_seal
from openledger.core.signing import SigningKey

SEAL = sign_seal(SigningKey(b"a" * 32), "os-docs", "ab" * 32)


def body(seal: Seal = SEAL) -> dict[str, str]:
    return {name: value for name, value in asdict(seal).items() if name != "datanet"}


@pytest.fixture
def service() -> MemoryService:
    return MemoryService()


def test_a_seal_needs_no_key_and_is_told_with_its_expiry(service: MemoryService):
    told = TestClient(create_app(service)).post("/v1/datanets/os-docs/seals", json=body()).json()
    assert service.sealed == {(SEAL.contributor_id, SEAL.digest): SEAL}
    assert told == {
        "object": "seal", "datanet": "os-docs", "contributor_id": SEAL.contributor_id, "digest": "ab" * 32,
        "sealed_ms": 1_700_000_000_000, "expires_ms": 1_700_604_800_000, "state": "waiting", "contribution_id": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"digest": "AB"}, 400, "invalid_field"),
        ({"signature": "00" * 64}, 400, "invalid_signature"),
        ({"rows": []}, 400, "unknown_field"),
    ],
)
def test_a_seal_that_can_not_be_is_refused(service: MemoryService, change, status, code):
    refused = TestClient(create_app(service)).post("/v1/datanets/os-docs/seals", json={**body(), **change})
    assert (refused.status_code, refused.json()["error"]["code"], service.sealed) == (status, code, {})


def test_the_sdk_seals_and_finds(service: MemoryService):
    with served(create_app(service)) as url, OpenLedger(url) as client:
        with pytest.raises(NotFound) as caught:
            client.find_seal(SEAL)
        assert caught.value.code == "unknown_seal"
        assert client.seal(SEAL) == client.find_seal(SEAL)
