"""Stake, proposals, withdrawals and explanations over HTTP, answered by a real economy."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from economy_values import Town, scores
from memory_service import API_KEY, MemoryService
from starlette.testclient import TestClient

from openledger.api import create_app
from openledger.core.clock import ManualClock
from openledger.core.drawing import FRESH_MS, sign_drawing, sign_reading
from openledger.core.money import NANO_PER_OPEN
from openledger.core.signing import SigningKey, contributor_id
from openledger.economy import Parameters

OPEN = NANO_PER_OPEN
P = Parameters()
ADDRESS = "0x" + "ab" * 20
CHANGE = {"kind": "parameters", "changes": {"owner_ppm": 150_000, "treasury_ppm": 150_000}}


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """Alice, who calls, has 1,000 OPEN."""
    town = Town(tmp_path, ManualClock())
    town.economy.grant("user:alice", 1000 * OPEN, "start")
    yield town
    town.close()


@pytest.fixture(scope="module")
def unmoved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """The same, for calls that are refused and change nothing."""
    town = Town(tmp_path_factory.mktemp("unmoved"), ManualClock())
    town.economy.grant("user:alice", 1000 * OPEN, "start")
    yield town
    town.close()


@pytest.fixture
def client(town: Town) -> TestClient:
    return caller(town)


def caller(town: Town) -> TestClient:
    service = MemoryService(desk=town.desk())
    return TestClient(create_app(service), headers={"Authorization": f"Bearer {API_KEY}"})


def test_stake_is_added_shown_and_removed(client: TestClient, town: Town):
    body = {"object": "adapter:py", "amount_nano": 10 * OPEN}
    made = client.post("/v1/stakes", json=body, headers={"Idempotency-Key": "s1"}).json()
    assert (made["object"], made["staked_on"], made["amount_nano"]) == ("stake", "adapter:py", 10 * OPEN)
    assert client.post("/v1/stakes", json=body, headers={"Idempotency-Key": "s1"}).json() == made
    assert client.get("/v1/stakes").json()["staked_nano"] == {"adapter:py": 10 * OPEN}
    removed = client.post("/v1/stakes/removals", json=body).json()
    assert removed["ends_ms"] == town.clock.now_ms() + P.stake_cooldown_ms
    assert client.get("/v1/stakes").json()["cooling"][0]["amount_nano"] == 10 * OPEN


def test_a_proposal_is_made_voted_on_and_executed(client: TestClient, town: Town):
    client.post("/v1/stakes", json={"object": "adapter:py", "amount_nano": 200 * OPEN})
    town.clock.advance(1)
    made = client.post("/v1/proposals", json={"title": "less for owners", "text": "why", "action": CHANGE}).json()
    assert (made["object"], made["state"], made["action"]) == ("proposal", "Pending", CHANGE)
    town.clock.advance(P.vote_delay_ms + 1)
    told = client.post(f"/v1/proposals/{made['proposal']}/votes", json={"support": "for"}).json()
    assert told["power_nano"] == 200 * OPEN
    town.clock.advance(P.vote_period_ms + P.vote_timelock_ms)
    assert client.get(f"/v1/proposals/{made['proposal']}").json()["state"] == "Executed"
    assert client.get("/v1/proposals").json()["data"][0]["proposal"] == made["proposal"]
    assert client.get("/v1/parameters").json()["next_values"]["owner_ppm"] == 150_000


def test_a_delegation_and_a_cancellation_are_the_callers(client: TestClient, town: Town):
    client.post("/v1/stakes", json={"object": "adapter:py", "amount_nano": 200 * OPEN})
    made = client.post("/v1/proposals", json={"title": "t", "action": {"kind": "text"}}).json()
    assert client.post(f"/v1/proposals/{made['proposal']}/cancel").json()["state"] == "Canceled"
    assert client.post("/v1/stakes/delegate", json={"delegate": "user:bob"}).json()["delegate"] == "user:bob"
    assert town.economy.stakes("user:bob")["power_nano"] == 200 * OPEN


def test_a_simulation_says_what_a_change_would_have_paid(client: TestClient, town: Town):
    town.economy.stake("user:alice", "adapter:py", 10 * OPEN, "s1")
    town.sell("k1")
    town.economy.settle(scores(), {})
    changes = {"contributors_ppm": 600_000, "stakers_ppm": 100_000}
    told = client.post("/v1/parameters/simulations", json={"changes": changes}).json()
    (pool,) = told["pools"]
    assert (told["period"], pool["pool_nano"]) == ("p0001", [155, 186])
    assert pool["parts_nano"]["stakers"] == [62, 31]
    assert pool["payouts_nano"]["ctr_a"] == [56, 68]
    assert client.get("/v1/parameters").json()["adopted"] == P.version


def test_a_withdrawal_is_handed_over_in_a_round(client: TestClient, town: Town):
    body = {"amount_nano": 5 * OPEN, "address": ADDRESS}
    assert client.post("/v1/withdrawals", json=body).json() == {
        "object": "withdrawal", "account": "user:alice", "amount_nano": 5 * OPEN, "address": ADDRESS,
    }  # fmt: skip
    town.economy.close_claims()
    assert client.get("/v1/claims/1").json()["data"] == [{"address": ADDRESS, "amount_nano": 5 * OPEN}]
    csv = client.get("/v1/claims/1/csv")
    assert (csv.headers["content-type"], csv.text) == (
        "text/csv; charset=utf-8", f"address,amount_nano,paid_by\r\n{ADDRESS},{5 * OPEN},chain\r\n",
    )  # fmt: skip


KEY = SigningKey(b"c" * 32)
CONTRIBUTOR = contributor_id(KEY.public_key)


class TestAContributorsKey:
    """No API key is sent; the contributor has 9 OPEN."""

    @pytest.fixture
    def anonymous(self, town: Town) -> TestClient:
        town.economy.grant(f"contributor:{CONTRIBUTOR}", 9 * OPEN, "earned")
        town.sell("k1")
        town.economy.settle(scores(scores_nano={CONTRIBUTOR: 95}, errors_nano={CONTRIBUTOR: 5}), {})
        return TestClient(create_app(MemoryService(desk=town.desk()), clock=ManualClock()))

    def drawn(self, amount_nano: int, key: str = "w1", signer: SigningKey = KEY, signed_nano: int | None = None):
        signature = sign_drawing(signer, signed_nano or amount_nano, ADDRESS, key)
        body = {"amount_nano": amount_nano, "address": ADDRESS, "public_key": KEY.public_key, "signature": signature}
        return {"json": body, "headers": {"Idempotency-Key": key}}

    def test_lists_his_payouts_and_no_others(self, anonymous: TestClient):
        signed = {"Authorization": sign_reading(KEY, ManualClock().now_ms())}
        lines = anonymous.get("/v1/payouts/csv", headers=signed).text.splitlines()
        assert [line.split(",")[1] for line in lines[1:]] == [f"contributor:{CONTRIBUTOR}"]
        assert anonymous.get("/v1/payouts", headers=signed).json()["data"] == []  # the memory service's are others'

    def test_takes_money_out_once(self, anonymous: TestClient, town: Town):
        first = anonymous.post("/v1/withdrawals", **self.drawn(5 * OPEN)).json()
        assert (first["account"], first["amount_nano"]) == (f"contributor:{CONTRIBUTOR}", 5 * OPEN)
        before = town.available(f"contributor:{CONTRIBUTOR}")
        assert anonymous.post("/v1/withdrawals", **self.drawn(5 * OPEN)).json() == first
        assert town.available(f"contributor:{CONTRIBUTOR}") == before

    def test_is_needed_where_no_api_key_is(self, anonymous: TestClient):
        body = {"amount_nano": OPEN, "address": ADDRESS}
        assert anonymous.post("/v1/withdrawals", json=body).status_code == 401
        half = anonymous.post("/v1/withdrawals", json={**body, "public_key": KEY.public_key}).json()["error"]
        assert (half["code"], half["param"]) == ("missing_field", "signature")

    def test_signs_for_this_amount_under_this_key(self, anonymous: TestClient, town: Town):
        before = town.available(f"contributor:{CONTRIBUTOR}")
        other = self.drawn(5 * OPEN)
        other["headers"] = {"Idempotency-Key": "w2"}
        tries = [other, self.drawn(5 * OPEN, signed_nano=OPEN), self.drawn(5 * OPEN, signer=SigningKey(b"d" * 32))]
        for given in tries:
            refused = anonymous.post("/v1/withdrawals", **given)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_signature")
        assert town.available(f"contributor:{CONTRIBUTOR}") == before

    @pytest.mark.parametrize(
        ("told", "code"),
        [
            (sign_reading(KEY, ManualClock().now_ms() - FRESH_MS - 1), "stale_reading"),
            (sign_reading(KEY, ManualClock().now_ms()).replace("c", "d", 1), "invalid_reading"),
            ("Signed abc", "invalid_reading"),
            ("", "missing_api_key"),
        ],
    )
    def test_reads_nothing_by_an_old_or_broken_signature(self, anonymous: TestClient, told: str, code: str):
        refused = anonymous.get("/v1/payouts/csv", headers={"Authorization": told})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, code)


def test_an_explanation_leads_from_answers_to_the_transfer(client: TestClient, town: Town):
    sold = town.sell("k1")
    settlement = town.economy.settle(scores(), {"ctr_a": "user:alice"})
    lines = client.get(f"/v1/payouts/{settlement.transfer_ids['user:alice']}/explanation").json()["lines"]
    assert f"answer {sold.answer_id}: 10 + 7 tokens cost 0.00000031 OPEN" in lines[1]
    assert [word for word in ("parameters version 8", "score 136 with error 100", "0.000000056 OPEN") if
            not any(word in line for line in lines)] == []  # fmt: skip
    assert "user:alice,py:p0001,56," in client.get("/v1/payouts/csv").text


def test_what_vesting_released_is_public(town: Town):
    town.economy.found()
    told = TestClient(create_app(MemoryService(desk=town.desk()))).get("/v1/vesting").json()
    assert told["circulating_nano"] == 215_500_000 * OPEN


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("stakes", {"object": "py", "amount_nano": OPEN}, 400, "invalid_object"),
        ("stakes", {"object": "adapter:py", "amount_nano": 1}, 400, "stake_too_small"),
        ("stakes", {"object": "adapter:py", "amount_nano": 1.5}, 400, "invalid_field"),
        ("stakes", {"object": "adapter:py", "amount_nano": 2000 * OPEN}, 402, "insufficient_funds"),
        ("stakes", {"object": "adapter:py", "amount_nano": OPEN, "account": "user:bob"}, 400, "unknown_field"),
        ("stakes/removals", {"object": "adapter:py", "amount_nano": OPEN}, 409, "not_staked"),
        ("stakes/delegate", {"delegate": "treasury"}, 403, "not_a_voter"),
        ("proposals", {"title": "t", "action": CHANGE}, 403, "below_threshold"),
        ("proposals", {"title": "", "action": CHANGE}, 400, "invalid_proposal"),
        ("proposals", {"title": "t", "action": {"kind": ["text"]}}, 403, "below_threshold"),
        ("proposals/prop_000009/votes", {"support": "for"}, 404, "proposal_not_found"),
        ("withdrawals", {"amount_nano": 1, "address": ADDRESS}, 400, "below_minimum"),
        ("withdrawals", {"amount_nano": OPEN, "address": "0x1"}, 400, "invalid_address"),
        ("parameters/simulations", {"changes": {"owner_ppm": 2}}, 400, "invalid_split"),
        ("parameters/simulations", {"changes": {"treasury_ppm": 100_000}}, 404, "not_settled"),
    ],
)
def test_what_can_not_be_is_refused_by_name_and_moves_nothing(unmoved: Town, path, body, status, code):
    before = unmoved.ledger.checkpoint()
    refused = caller(unmoved).post(f"/v1/{path}", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert unmoved.ledger.checkpoint() == before


@pytest.mark.parametrize("path", ["stakes", "stakes/removals", "stakes/delegate", "proposals"])
def test_whatever_moves_something_needs_a_key(unmoved: Town, path: str):
    refused = TestClient(create_app(MemoryService(desk=unmoved.desk()))).post(f"/v1/{path}", json={})
    assert refused.status_code == 401


def test_while_the_api_is_up_what_is_due_happens_by_itself(town: Town):
    town.economy.found()
    town.clock.advance(40 * 24 * 60 * 60_000)

    async def keep_time_briefly() -> None:
        keeping = asyncio.create_task(town.desk().keep_time(0.001))
        await asyncio.sleep(0.05)
        keeping.cancel()

    asyncio.run(keep_time_briefly())
    assert town.available("treasury:ecosystem") == 100_000_000 * OPEN // 48
