"""The SDK against the real API, and against servers that are none."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import httpx
import pytest
from memory_service import API_KEY, CHECKPOINT, POOR_KEY, PROOF, RECEIPT, MemoryService, wait_until
from served_app import served

from openledger.api import create_app
from openledger.client import OpenLedger
from openledger.client.transport import error_from
from openledger.core import errors
from openledger.core.errors import (
    Corrupt,
    InsufficientFunds,
    InvalidInput,
    NotFound,
    OpenLedgerError,
    Unauthenticated,
    Unavailable,
)
from openledger.core.values import Contribution, Grammar, RowDraft, SamplingParameters, Withdrawal
from openledger.platform.service import AdapterReceipt

ASKED = [{"role": "user", "content": "What does os.path.join do?"}]
TEXT = "Join one or more path segments."
CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, OpenLedgerError)]


@pytest.fixture(scope="module")
def service() -> MemoryService:
    return MemoryService()


@pytest.fixture(scope="module")
def url(service: MemoryService) -> Iterator[str]:
    with served(create_app(service)) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[OpenLedger]:
    with OpenLedger(url, API_KEY) as client:
        yield client


class TestCalls:
    def test_models_are_typed(self, client: OpenLedger):
        model = client.models()[0]
        assert (model.id, model.datanet_version, model.completion_price_nano) == ("os-docs", 1, 40)

    def test_balance(self, client: OpenLedger):
        assert client.balance()["available_nano"] == 2_500_000_000

    def test_an_answer_comes_with_its_receipt(self, client: OpenLedger):
        answer = client.ask("os-docs", "What does os.path.join do?")
        assert (answer.text, answer.finish_reason) == (TEXT, "stop")
        assert sum(answer.receipt.parts.values()) == answer.receipt.fee_nano == 310

    def test_a_stream_says_the_same(self, client: OpenLedger):
        pieces = list(client.chat_stream("os-docs", ASKED))
        assert "".join(piece.text for piece in pieces) == TEXT
        assert pieces[-1].receipt is not None
        assert [piece.receipt for piece in pieces[:-1]] == [None] * (len(pieces) - 1)

    @pytest.mark.parametrize(
        "sampling",
        [
            SamplingParameters(top_k=5, min_p=0.1, presence_penalty=0.5, repetition_penalty=1.2, ignore_end=True),
            SamplingParameters(logprobs=3),
            SamplingParameters(grammar=Grammar(kind="json_object")),
            SamplingParameters(grammar=Grammar(kind="json_schema", text='{"type": "object"}')),
            SamplingParameters(grammar=Grammar(kind="regex", text="a+")),
            SamplingParameters(grammar=Grammar(kind="lark", text='start: "a"')),
        ],
        ids=["numbers", "logprobs", "json", "schema", "regex", "lark"],
    )
    def test_sampling_of_every_kind_arrives(
        self, client: OpenLedger, service: MemoryService, sampling: SamplingParameters
    ):
        client.chat("os-docs", ASKED, sampling=sampling)
        assert service.asked[-1]["sampling"] == sampling

    def test_adapters_and_weights_arrive(self, client: OpenLedger, service: MemoryService):
        asked = (client.chat, lambda *given, **named: list(client.chat_stream(*given, **named)))
        for ask in asked:
            ask("os-docs", ASKED, adapters={"tables": 0.7, "strings": 1})
            assert service.asked[-1]["adapters"] == [("tables", 0.7), ("strings", 1.0)]
        client.ask("os-docs", "What?", adapters={"tables": 0.5})
        assert service.asked[-1]["adapters"] == [("tables", 0.5)]
        client.ask("os-docs", "What?")
        assert service.asked[-1]["adapters"] == []

    def test_an_empty_choice_of_adapters_is_refused_before_it_is_sent(self, client: OpenLedger, service: MemoryService):
        before = len(service.asked)
        with pytest.raises(InvalidInput) as caught:
            client.ask("os-docs", "What?", adapters={})
        assert caught.value.code == "invalid_ensemble"
        assert len(service.asked) == before

    def test_several_adapters_receipts_are_told_apart(self, client: OpenLedger, service: MemoryService):
        each = AdapterReceipt(
            answer_id="ans_1", adapter="tables", weight=0.7, fee_nano=310, parts={"a": 310}, signed={}
        )
        service.adapter_receipts = (each,)
        try:
            receipt = client.ask("os-docs", "What?", adapters={"tables": 0.7}).receipt
        finally:
            service.adapter_receipts = ()
        assert [asdict(one) for one in receipt.adapters] == [asdict(each)]

    def test_what_was_cached_is_told(self, client: OpenLedger):
        assert client.ask("os-docs", "What?").receipt.cached_tokens == 3

    def test_several_answers_are_refused_here(self, client: OpenLedger):
        with pytest.raises(InvalidInput):
            client.chat("os-docs", ASKED, sampling=SamplingParameters(num_answers=2))

    def test_models_of_all_pages_are_listed(self, client: OpenLedger, service: MemoryService):
        one = service.adapters["os-docs"]
        service.adapters = {f"m{n:04d}": replace(one, id=f"m{n:04d}") for n in range(2100)}
        assert [model.id for model in client.models()] == list(service.adapters)

    def test_sampling_and_key_arrive(self, client: OpenLedger, service: MemoryService):
        sampling = SamplingParameters(max_tokens=5, temperature=0.5, top_p=0.9, seed=7, stop=("end",))
        client.chat("os-docs", ASKED, sampling=sampling, idempotency_key="k9")
        assert (service.asked[-1]["sampling"], service.asked[-1]["key"]) == (sampling, "k9")

    def test_a_contribution_arrives_as_it_was_signed(self, client: OpenLedger, service: MemoryService):
        contribution = Contribution(
            datanet="os-docs", contributor_id="ctr_1", public_key="ab", nonce="0",
            drafts=(RowDraft(prompt="p", completion="ünï\n"),), content_root="cd", signature="ef",
        )  # fmt: skip
        receipt = client.contribute(contribution)
        assert service.contributed[-1] == contribution
        assert (receipt.verdicts[0].outcome, receipt.verdicts[0].reasons) == ("reject", ("noise",))

    def test_rows_are_taken_back(self, client: OpenLedger, service: MemoryService):
        withdrawal = Withdrawal(
            datanet="os-docs", contributor_id="ctr_1", public_key="ab", row_ids=("row_a",), nonce="1", signature="cd",
        )  # fmt: skip
        assert client.withdraw_rows(withdrawal)["transfer_id"] == "rmv_1"
        assert service.withdrawn == [withdrawal]
        assert client.remove_rows("os-docs", ["row_a"], "court_order")["num_rows"] == 1
        assert service.removed == [("user:alice", "os-docs", ("row_a",), "court_order")]

    def test_a_verdict(self, client: OpenLedger, service: MemoryService):
        assert client.mark("ans_1")["transfer_id"] == "ans_1.verdict"
        assert service.marked == [("user:alice", "ans_1")]
        with pytest.raises(NotFound):
            client.mark("ans 9/..")

    def test_datanets(self, client: OpenLedger):
        assert client.datanets()[0]["name"] == client.datanet("os-docs")["name"] == "os-docs"

    def test_report_audit_and_attribution(self, client: OpenLedger, service: MemoryService):
        assert client.report() == service.told
        assert client.audit()["entries"] == 321
        assert client.row_scores("os-docs", "p1", contributor="ctr_os")["rows"][0]["row_id"] == "row_1"
        (last,) = client.row_scores("os-docs", "p1", limit=1, after="row_1")["rows"]
        assert last["row_id"] == "row_2"
        assert client.attribution("ans_1")["fee_nano"] == 1000

    def test_checkpoint_proof_and_receipt_keep_their_bytes(self, client: OpenLedger):
        assert client.checkpoint() == CHECKPOINT
        assert client.proof("trf_1") == PROOF
        assert client.receipt("ans_1") == RECEIPT

    def test_payouts(self, client: OpenLedger):
        assert [payout["amount_nano"] for payout in client.payouts()] == [1500]

    def test_a_base_url_as_openais_client_takes_it_works_too(self, url: str):
        with OpenLedger(f"{url}/v1/", API_KEY) as client:
            assert client.health()["status"] == "ok"


class TestRefusals:
    def test_come_back_as_the_error_the_server_raised(self, client: OpenLedger):
        with pytest.raises(NotFound) as caught:
            client.ask("no-such", "x")
        assert (caught.value.code, caught.value.param) == ("unknown_model", "model")

    @pytest.mark.parametrize("key", [None, "wrong"])
    def test_of_a_key(self, url: str, key: str | None):
        with OpenLedger(url, key) as client, pytest.raises(Unauthenticated):
            client.balance()

    def test_of_a_stream_come_before_its_first_piece(self, url: str):
        with OpenLedger(url, POOR_KEY) as client, pytest.raises(InsufficientFunds) as caught:
            list(client.chat_stream("os-docs", ASKED))
        assert caught.value.fix == "top the account up"

    def test_within_a_stream_come_after_its_pieces(self):
        failing = MemoryService(failure=Unavailable("the engine is restarting", code="engine_gone"))
        with served(create_app(failing)) as url, OpenLedger(url, API_KEY) as client:
            pieces = client.chat_stream("os-docs", ASKED)
            told = [next(pieces).text for _ in range(3)]
            with pytest.raises(Unavailable) as caught:
                next(pieces)
        assert "".join(told) == "Join one or more "
        assert caught.value.code == "engine_gone"

    def test_names_with_slashes_stay_one_segment(self, client: OpenLedger):
        with pytest.raises(OpenLedgerError) as caught:
            client.proof("../checkpoint")
        assert caught.value.http_status in (400, 404)

    @pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
    def test_of_every_class_are_rebuilt(self, cls: type[OpenLedgerError]):
        raised = cls("m", code="c", param="p", fix="f")
        rebuilt = error_from({"error": raised.to_dict()})
        assert type(rebuilt) is cls
        assert rebuilt.to_dict() == raised.to_dict()

    @pytest.mark.parametrize("body", [None, [], {}, {"error": "text"}, {"error": {}}, {"error": {"message": 5}}])
    def test_of_another_shape_are_not_ours(self, body: object):
        assert error_from(body) is None


class TestHangingUp:
    def test_on_a_stream_cancels_the_answer(self):
        service = MemoryService(words=("word ",) * 1000, pause_s=0.02)
        with served(create_app(service)) as url, OpenLedger(url, API_KEY) as client:
            pieces = client.chat_stream("os-docs", ASKED)
            next(pieces)
            pieces.close()  # type: ignore[attr-defined]
            assert wait_until(lambda: service.num_closed == 1)
        assert service.num_finished == 0


class TestServersThatAreNone:
    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (lambda request: httpx.Response(200, text="<html>"), Corrupt),
            (lambda request: httpx.Response(200, json=[]), Corrupt),
            (lambda request: httpx.Response(200, json={"data": 5}), Corrupt),
            (lambda request: httpx.Response(200, json={"data": [{"id": "x"}]}), Corrupt),
            (lambda request: httpx.Response(302, headers={"Location": "http://elsewhere"}), Corrupt),
            (lambda request: httpx.Response(404, text="nginx"), Corrupt),
            (lambda request: httpx.Response(502, text="nginx"), Unavailable),
        ],
    )
    def test_are_told_apart_from_refusals(self, answer: Callable[[httpx.Request], httpx.Response], error: type):
        with OpenLedger("http://x", transport=httpx.MockTransport(answer)) as client, pytest.raises(error) as caught:
            client.models()
        assert caught.value.code == "unexpected_answer"

    def test_a_closed_port_is_unreachable(self):
        with OpenLedger("http://127.0.0.1:9") as client, pytest.raises(Unavailable) as caught:
            client.health()
        assert caught.value.code == "unreachable"
        assert "quickstart" in str(caught.value.fix)

    def test_silence_times_out(self):
        def answer(request: httpx.Request) -> httpx.Response:
            raise httpx.ReadTimeout("slow", request=request)

        with OpenLedger("http://x", transport=httpx.MockTransport(answer)) as client, pytest.raises(Unavailable) as c:
            client.health()
        assert c.value.code == "timed_out"

    @pytest.mark.parametrize(
        "stream", ["data: {\n\n", "data: [1]\n\ndata: [DONE]\n\n", 'data: {"choices": []}\n\ndata: [DONE]\n\n']
    )
    def test_a_stream_of_something_else_is_corrupt(self, stream: str):
        transport = httpx.MockTransport(lambda request: httpx.Response(200, text=stream))
        with OpenLedger("http://x", transport=transport) as client, pytest.raises(Corrupt):
            list(client.chat_stream("m", ASKED))

    def test_a_stream_without_its_end_is_incomplete(self):
        transport = httpx.MockTransport(lambda request: httpx.Response(200, text=""))
        with OpenLedger("http://x", transport=transport) as client, pytest.raises(Unavailable) as caught:
            list(client.chat_stream("m", ASKED))
        assert caught.value.code == "answer_incomplete"


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://x", "http://", "http://[", "file:///etc"])
def test_a_url_that_names_no_server_is_refused(url: str):
    with pytest.raises(InvalidInput) as caught:
        OpenLedger(url)
    assert caught.value.code == "invalid_url"


@pytest.mark.parametrize("key", ["ke\ny", "schlüssel", "two words"])
def test_a_key_that_fits_no_header_is_refused(key: str):
    with pytest.raises(InvalidInput):
        OpenLedger("http://x", key)
