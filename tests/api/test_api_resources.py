"""Models, accounts, Datanets, ledger and report over HTTP."""

from collections.abc import Iterator
from dataclasses import asdict

import pytest
from memory_service import API_KEY, CHECKPOINT, PROOF, RECEIPT, MemoryService
from starlette.testclient import TestClient

from openledger.api import create_app
from openledger.core.values import Contribution, RowDraft, Withdrawal

CONTRIBUTION = Contribution(
    datanet="os-docs",
    contributor_id="ctr_1",
    public_key="ab" * 32,
    nonce="0",
    drafts=(RowDraft(prompt="p", completion="c", source="s"), RowDraft(prompt="q", completion="d")),
    content_root="cd" * 32,
    signature="ef" * 64,
)


@pytest.fixture
def service() -> MemoryService:
    return MemoryService()


@pytest.fixture
def client(service: MemoryService) -> Iterator[TestClient]:
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        yield client


def test_models_have_openais_shape(client: TestClient):
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    model = listed["data"][0]
    assert {key: model[key] for key in ("id", "object", "created", "owned_by")} == {
        "id": "os-docs", "object": "model", "created": 1_700_000_000, "owned_by": "user:owner",
    }  # fmt: skip
    assert model["openledger"]["completion_price_nano"] == 40


def test_one_model_is_the_listed_one(client: TestClient):
    assert client.get("/v1/models/os-docs").json() == client.get("/v1/models").json()["data"][0]


def test_balance_is_the_callers(client: TestClient):
    told = client.get("/v1/balance").json()
    assert told == {"object": "balance", "account": "user:alice", "available_nano": 2_500_000_000, "held_nano": 1000}


def test_a_verdict_is_the_callers_on_that_answer(client: TestClient, service: MemoryService):
    told = client.post("/v1/answers/ans_1/verdict", json={"verdict": "wrong"}).json()
    assert service.marked == [("user:alice", "ans_1")]
    assert told == {
        "object": "verdict", "answer_id": "ans_1", "verdict": "wrong", "transfer_id": "ans_1.verdict",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("ans_1", {"verdict": "right"}, 400, "invalid_verdict"),
        ("ans_1", {"verdict": 1}, 400, "invalid_field"),
        ("ans_1", {"verdict": "wrong", "account": "user:bob"}, 400, "unknown_field"),
        ("ans_9", {"verdict": "wrong"}, 404, "answer_not_sold"),
    ],
)
def test_a_verdict_that_can_not_be_is_refused(client: TestClient, service: MemoryService, path, body, status, code):
    refused = client.post(f"/v1/answers/{path}/verdict", json=body)
    assert (refused.status_code, refused.json()["error"]["code"], service.marked) == (status, code, [])


def test_a_verdict_needs_a_key(service: MemoryService):
    refused = TestClient(create_app(service)).post("/v1/answers/ans_1/verdict", json={"verdict": "wrong"})
    assert (refused.status_code, service.marked) == (401, [])


def test_payouts_are_the_callers_alone(client: TestClient):
    assert [payout["transfer_id"] for payout in client.get("/v1/payouts").json()["data"]] == ["trf_2"]


def test_a_contribution_arrives_as_it_was_signed(client: TestClient, service: MemoryService):
    body = asdict(CONTRIBUTION)
    del body["datanet"]
    told = client.post("/v1/datanets/os-docs/contributions", json=body).json()
    assert service.contributed == [CONTRIBUTION]
    assert (told["accepted"], told["rejected"], told["review"]) == (1, 1, 0)
    assert told["verdicts"][0] == {
        "row_id": "row_0", "ordinal": 0, "outcome": "reject", "reasons": ["noise"], "duplicate_of": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"drafts": []}, "drafts"),
        ({"drafts": [{"prompt": "p"}]}, "drafts.0.completion"),
        ({"drafts": [{"prompt": "p", "completion": 3}]}, "drafts.0.completion"),
        ({"signature": "not hex"}, "signature"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_malformed_contribution_is_refused_by_field(client: TestClient, service: MemoryService, change, param):
    body = {**asdict(CONTRIBUTION), **change}
    del body["datanet"]
    response = client.post("/v1/datanets/os-docs/contributions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert service.contributed == []


WITHDRAWAL = Withdrawal(
    datanet="os-docs", contributor_id="ctr_1", public_key="ab", row_ids=("row_a", "row_b"), nonce="1", signature="cd",
)  # fmt: skip


def test_a_withdrawal_arrives_as_it_was_signed(client: TestClient, service: MemoryService):
    body = asdict(WITHDRAWAL)
    del body["datanet"]
    told = client.post("/v1/datanets/os-docs/withdrawals", json=body, headers={"Authorization": ""}).json()
    assert service.withdrawn == [WITHDRAWAL]
    assert (told["object"], told["num_rows"], told["adapters"][0]["served"]) == ("removal", 2, True)


@pytest.mark.parametrize(("change", "param"), [({"row_ids": []}, "row_ids"), ({"row_ids": [3]}, "row_ids.0")])
def test_a_malformed_withdrawal_is_refused_by_field(client: TestClient, service: MemoryService, change, param):
    body = {**asdict(WITHDRAWAL), **change}
    del body["datanet"]
    response = client.post("/v1/datanets/os-docs/withdrawals", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert service.withdrawn == []


def test_an_owner_removes_rows_with_the_api_key(client: TestClient, service: MemoryService):
    body = {"row_ids": ["row_a"], "reason": "court_order"}
    told = client.post("/v1/datanets/os-docs/removals", json=body).json()
    assert service.removed == [("user:alice", "os-docs", ("row_a",), "court_order")]
    assert told["transfer_id"] == "rmv_1"
    refused = client.post("/v1/datanets/os-docs/removals", json=body, headers={"Authorization": ""})
    assert refused.status_code == 401


def test_datanets_are_listed(client: TestClient):
    listed = client.get("/v1/datanets").json()["data"]
    assert [datanet["name"] for datanet in listed] == ["os-docs", "numpy-docs", "pyarrow-docs", "torch-docs"]
    assert "contributors" not in listed[0]


def test_one_datanet_comes_with_its_contributors(client: TestClient, service: MemoryService):
    told = client.get("/v1/datanets/os-docs").json()
    assert told == {"object": "datanet", **service.told["datanets"][0]}


def test_the_checkpoint_keeps_its_bytes(client: TestClient):
    assert client.get("/v1/ledger/checkpoint").content == CHECKPOINT.encode()


def test_a_proof_keeps_its_bytes_and_is_a_download(client: TestClient):
    response = client.get("/v1/ledger/proofs/trf_1")
    assert response.content == PROOF
    assert response.headers["Content-Disposition"] == 'attachment; filename="trf_1.proof.json"'


def test_a_receipt_keeps_its_bytes_and_is_a_download(client: TestClient):
    response = client.get("/v1/receipts/ans_1")
    assert response.content == RECEIPT
    assert response.headers["Content-Disposition"] == 'attachment; filename="ans_1.receipt.json"'
    assert client.get("/v1/receipts/ans_2").json()["error"]["code"] == "answer_not_sold"
    assert client.get("/v1/receipts/ans_1", headers={"Authorization": ""}).status_code == 401


def test_a_report_with_a_loss_that_is_not_a_number_is_still_json(client: TestClient, service: MemoryService):
    service.told["datanets"][0]["adapter"]["final_loss"] = float("nan")
    told = client.get("/v1/report").json()
    assert told["datanets"][0]["adapter"]["final_loss"] is None
    assert told["datanets"][1]["adapter"]["final_loss"] == service.told["datanets"][1]["adapter"]["final_loss"]


def test_attribution_is_the_answers_entry(client: TestClient, service: MemoryService):
    assert client.get("/v1/answers/ans_2/attribution").json() == service.told["answers"][1]


def test_row_scores_are_of_one_pool_and_may_be_one_contributors(client: TestClient, service: MemoryService):
    asked = "/v1/row_scores?adapter=os-docs&period=p1"
    told = client.get(asked).json()
    assert (told["adapter"], told["period"], told["rows"]) == ("os-docs", "p1", service.told["row_scores"]["rows"])
    assert service.rows_asked_by == "user:alice"
    own = client.get(f"{asked}&contributor=ctr_os&limit=1").json()
    assert ([row["row_id"] for row in own["rows"]], own["has_more"]) == (["row_1"], False)
    first = client.get(f"{asked}&limit=1").json()
    rest = client.get(f"{asked}&limit=1&after={first['next']}").json()
    assert [row["row_id"] for row in (*first["rows"], *rest["rows"])] == ["row_1", "row_2"]
    assert (first["has_more"], rest["has_more"], rest["next"]) == (True, False, "")
    assert client.get(asked, headers={"Authorization": ""}).status_code == 401
    assert client.get(f"{asked}&limit=0").status_code == 400
    assert client.get("/v1/row_scores?adapter=../x&period=p1").json()["error"]["code"] == "invalid_name"


def test_the_list_of_routes_names_every_resource(client: TestClient):
    paths = client.get("/v1/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/models", "/v1/balance", "/v1/datanets", "/v1/report"} <= set(paths)
