"""One error shape for everything that can go wrong, with its status."""

import asyncio
import json
import tracemalloc
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from memory_service import API_KEY, MemoryService
from starlette.testclient import TestClient
from starlette.types import Message

from openledger.api import create_app
from openledger.api.limits import MAX_BODY_BYTES, SMALL_BYTES, STEP_BYTES, BodyLimit
from openledger.core import errors
from openledger.core.errors import OpenLedgerError

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, OpenLedgerError)]
KEYS = ["type", "code", "message", "param", "fix"]


@pytest.fixture
def app() -> FastAPI:
    return create_app(MemoryService())


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        yield client


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_class_keeps_its_status_and_the_one_shape(cls: type[OpenLedgerError]):
    class Refusing(MemoryService):
        async def datanets(self):
            raise cls("what happened", code="a_code", param="a_param", fix="do this")

    response = TestClient(create_app(Refusing())).get("/v1/datanets")
    assert response.status_code == cls.http_status
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "error": {
            "type": cls.default_code,
            "code": "a_code",
            "message": "what happened",
            "param": "a_param",
            "fix": "do this",
        }
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "unknown_route"),
        ("GET", "/v1/models/no-such", 404, "unknown_model"),
        ("GET", "/v1/datanets/no-such", 404, "unknown_datanet"),
        ("GET", "/v1/datanets/UPPER", 400, "invalid_name"),
        ("GET", "/v1/ledger/proofs/no-such", 404, "unknown_transfer"),
        ("GET", "/v1/answers/no-such/attribution", 404, "unknown_answer"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_what_is_not_there_is_told_in_the_one_shape(client: TestClient, method: str, path: str, status: int, code: str):
    response = client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert list(response.json()["error"]) == KEYS


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_unreadable_bodies_are_the_callers_error(client: TestClient, body: bytes):
    response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert list(response.json()["error"]) == KEYS


@pytest.mark.parametrize("path", ["model", "messages", "\ud800"])
def test_unpaired_surrogates_are_the_callers_error(client: TestClient, path: str):
    body = {"model": "os-docs", "messages": [{"role": "user", "content": "x"}], path: "\ud800"}
    response = client.post(
        "/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400


def test_an_unexpected_exception_tells_nothing_of_itself(caplog: pytest.LogCaptureFixture):
    class Broken(MemoryService):
        async def datanets(self):
            raise RuntimeError("password is hunter2")

    client = TestClient(create_app(Broken()), raise_server_exceptions=False)
    response = client.get("/v1/datanets", headers={"X-Request-Id": "req-7"})
    assert response.status_code == 500
    assert list(response.json()["error"]) == KEYS
    assert "hunter2" not in response.text
    assert response.headers["X-Request-Id"] == "req-7"


class TestAuthentication:
    @pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer  ", "Basic YTpi", API_KEY])
    def test_a_missing_key_is_told_how_to_send(self, app: FastAPI, header: str | None):
        headers = {} if header is None else {"Authorization": header}
        response = TestClient(app).get("/v1/balance", headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "missing_api_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"

    def test_an_unknown_key_is_refused(self, app: FastAPI):
        response = TestClient(app).get("/v1/balance", headers={"Authorization": "Bearer wrong"})
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")

    def test_goes_before_the_checks_of_the_body(self, app: FastAPI):
        assert TestClient(app).post("/v1/chat/completions", json={}).status_code == 401

    @pytest.mark.parametrize(
        "path",
        ["/v1/models", "/v1/payouts", "/v1/report", "/v1/ledger/audit", "/v1/answers/ans_1/attribution"],
    )
    def test_is_asked_for_by_what_is_private_or_costly(self, app: FastAPI, path: str):
        assert TestClient(app).get(path).status_code == 401

    @pytest.mark.parametrize(
        "path", ["/healthz", "/v1/datanets", "/v1/datanets/os-docs", "/v1/ledger/checkpoint", "/v1/ledger/proofs/trf_1"]
    )
    def test_is_not_asked_for_by_what_a_stranger_checks(self, app: FastAPI, path: str):
        assert TestClient(app).get(path).status_code == 200


class TestBodyLimit:
    def test_refuses_by_the_announced_length(self, client: TestClient):
        response = client.post("/v1/chat/completions", content=b"x" * (MAX_BODY_BYTES + 1))
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert "X-Request-Id" in response.headers

    async def test_reads_nothing_of_what_announces_itself_as_too_long(self):
        reached = []

        async def behind(scope, receive, send):
            reached.append("the app")

        async def receive():
            reached.append("the body")

        async def send(message):
            reached.append(message.get("status"))

        scope = {"type": "http", "headers": [(b"content-length", b"11")]}
        await BodyLimit(behind, max_bytes=10)(scope, receive, send)
        assert reached == [413, None]

    def test_refuses_an_unannounced_stream_when_it_grows_too_long(self, client: TestClient):
        pieces = (b"x" * 1_000_000 for _ in range(MAX_BODY_BYTES // 1_000_000 + 2))
        response = client.post("/v1/chat/completions", content=pieces)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")

    def test_leaves_a_body_at_the_limit_to_the_checks_behind_it(self, client: TestClient):
        response = client.post("/v1/chat/completions", content=b" " * MAX_BODY_BYTES)
        assert response.status_code == 400


class Behind:
    """An application that is at each request until a test lets it go."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Semaphore(0), asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        body = await receive()
        self.begun.release()
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % len(body["body"])})


class Clock:
    """The event loop's, which a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s


class TestLargeBodiesTogether:
    """Room for two of 100 kB."""

    @pytest.fixture
    def behind(self) -> Behind:
        return Behind()

    @pytest.fixture
    def limit(self, behind: Behind) -> BodyLimit:
        return BodyLimit(behind, max_bytes=150_000, max_bytes_together=200_000)

    @pytest.fixture
    async def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", clock.time)
        return clock

    @pytest.fixture
    async def sending(self, limit: BodyLimit):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(limit), base_url="http://house") as client:
            yield client

    async def test_beyond_their_bytes_are_told_to_come_again_and_small_ones_are_not(
        self, sending: httpx.AsyncClient, behind: Behind
    ):
        large = [asyncio.ensure_future(sending.post("/", content=b"x" * 100_000)) for _ in range(2)]
        for _ in large:
            await behind.begun.acquire()
        refused = await sending.post("/", content=b"x" * 100_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "large_requests_full")
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.headers["Connection"] == "close"
        small = asyncio.ensure_future(sending.post("/", content=b"x" * SMALL_BYTES))
        await behind.begun.acquire()
        behind.go.set()
        assert [(await one).status_code for one in (*large, small)] == [200] * 3
        assert (await sending.post("/", content=b"x" * 100_000)).status_code == 200

    async def test_give_their_part_back_when_they_are_refused(self, sending: httpx.AsyncClient, behind: Behind):
        behind.go.set()

        async def growing():
            for _ in range(16):
                yield b"x" * 10_000

        for _ in range(5):
            assert (await sending.post("/", content=growing())).status_code == 413
        assert (await sending.post("/", content=b"x" * 150_000)).status_code == 200

    async def test_that_are_announced_and_do_not_come_give_their_part_back(
        self, sending: httpx.AsyncClient, behind: Behind, limit: BodyLimit
    ):
        behind.go.set()

        async def never():
            yield b"x"
            await asyncio.Event().wait()

        limit._body_s = 0.01
        late = await sending.post("/", content=never(), headers={"Content-Length": "150000"})
        limit._body_s = 60
        assert (late.status_code, late.json()["error"]["code"]) == (408, "body_timeout")
        assert (await sending.post("/", content=b"x" * 150_000)).status_code == 200

    async def test_take_nothing_by_announcing_themselves(self, sending: httpx.AsyncClient, behind: Behind):
        behind.go.set()
        begun, end = list[str](), asyncio.Event()

        async def nothing():
            begun.append("a body")
            await end.wait()
            yield b"x"

        announced = {"Content-Length": "150000"}
        idle = [asyncio.ensure_future(sending.post("/", content=nothing(), headers=announced)) for _ in range(16)]
        for _ in range(100):  # turns of the loop: enough for all to begin
            await asyncio.sleep(0)
        assert (await sending.post("/", content=b"x" * 150_000)).status_code == 200
        assert len(begun) == 16
        end.set()
        assert [(await one).status_code for one in idle] == [200] * 16

    @pytest.mark.parametrize("rest", [b"", b"x"])
    async def test_that_come_to_a_halt_give_their_part_back(
        self, sending: httpx.AsyncClient, behind: Behind, clock: Clock, rest: bytes
    ):
        behind.go.set()

        async def halting():
            yield b"x" * 140_000
            while True:  # a byte now and then is none of a large body's progress
                clock.now_s += 4
                yield rest
                await asyncio.sleep(0)

        late = await sending.post("/", content=halting())
        assert (late.status_code, late.json()["error"]["code"]) == (408, "body_timeout")
        assert clock.now_s < 20
        assert (await sending.post("/", content=b"x" * 150_000)).status_code == 200

    @pytest.mark.parametrize(("first", "rest"), [(1, (1,)), (70_000, (STEP_BYTES, 1))])
    async def test_that_come_slowly_have_their_time(
        self, sending: httpx.AsyncClient, behind: Behind, clock: Clock, first: int, rest: tuple[int, ...]
    ):
        behind.go.set()

        async def slow():
            yield b"x" * first
            for size in rest:
                clock.now_s += 9
                await asyncio.sleep(0)
                yield b"x" * size

        assert (await sending.post("/", content=slow())).status_code == 200

    async def test_that_are_small_and_dribble_are_ended_as_well(
        self, sending: httpx.AsyncClient, behind: Behind, clock: Clock
    ):
        behind.go.set()
        late = await sending.post("/", content=dribbling(clock))
        assert (late.status_code, late.json()["error"]["code"]) == (408, "body_timeout")
        assert clock.now_s < 20

    async def test_are_handed_on_in_one_piece_however_they_came(self, behind: Behind, limit: BodyLimit):
        left, answers = iter([b"x"] * SMALL_BYTES), list[Message]()

        async def byte_by_byte() -> Message:
            return {"type": "http.request", "body": next(left, b""), "more_body": left.__length_hint__() > 0}

        async def send(message: Message) -> None:
            answers.append(message)

        tracemalloc.start()
        try:
            asking = asyncio.ensure_future(limit({"type": "http", "headers": []}, byte_by_byte, send))
            await behind.begun.acquire()
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held_bytes < 2 * SMALL_BYTES
        behind.go.set()
        await asking
        assert answers[-1]["body"] == b"%d" % SMALL_BYTES

    async def test_whose_sender_goes_are_not_taken_for_whole(self):
        came = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])
        seen = list[Message]()

        async def behind(scope, receive, send) -> None:
            seen.append(await receive())

        async def receive() -> Message:
            return next(came)

        async def send(message: Message) -> None:
            raise AssertionError(message)

        await BodyLimit(behind)({"type": "http", "headers": []}, receive, send)
        assert seen == [{"type": "http.disconnect"}]


class TestPlacesOfThoseThatArrive:
    """Two."""

    @pytest.fixture
    def behind(self) -> Behind:
        behind = Behind()
        behind.go.set()
        return behind

    @pytest.fixture
    async def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", clock.time)
        return clock

    @pytest.fixture
    def limit(self, behind: Behind) -> BodyLimit:
        return BodyLimit(behind, max_bytes=150_000, max_bytes_together=200_000, max_arriving=2)

    @pytest.fixture
    async def sending(self, limit: BodyLimit):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(limit), base_url="http://house") as client:
            yield client

    async def test_the_slowest_makes_way_for_a_newcomer(self, sending: httpx.AsyncClient, clock: Clock):
        first, second = Held(), Held()
        slowest = await first.begin(sending)
        clock.now_s = 3
        slow = await second.begin(sending)
        clock.now_s = 5
        assert (await sending.post("/", content=b"x")).status_code == 200
        ended = await slowest
        assert (ended.status_code, ended.json()["error"]["code"]) == (408, "body_timeout")
        assert "slowest of all" in ended.json()["error"]["message"]
        second.end.set()
        assert (await slow).status_code == 200

    async def test_what_brings_its_bytes_is_not_the_slowest(self, sending: httpx.AsyncClient, clock: Clock):
        fast, idle = Held(), Held()
        bringing = await fast.begin(sending)
        waiting = await idle.begin(sending)
        clock.now_s = 5
        fast.more.set()
        for _ in range(20):  # turns of the loop, until the bytes have come
            await asyncio.sleep(0)
        clock.now_s = 7
        assert (await sending.post("/", content=b"x")).status_code == 200
        assert (await waiting).status_code == 408
        fast.end.set()
        assert (await bringing).status_code == 200

    async def test_nobody_makes_way_who_came_just_now(self, sending: httpx.AsyncClient, clock: Clock):
        held = [Held(), Held()]
        begun = [await one.begin(sending) for one in held]
        clock.now_s = 0.5
        refused = await sending.post("/", content=b"x")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_full")
        assert int(refused.headers["Retry-After"]) > 0
        for one in held:
            one.end.set()
        assert [(await one).status_code for one in begun] == [200, 200]
        assert (await sending.post("/", content=b"x")).status_code == 200

    async def test_a_large_one_that_halts_gives_its_bytes_to_who_comes_next(
        self, sending: httpx.AsyncClient, clock: Clock
    ):
        held = Held(140_000)
        halting = await held.begin(sending)
        clock.now_s = 5
        refused = await sending.post("/", content=b"x" * 150_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "large_requests_full")
        assert (await halting).status_code == 408
        assert (await sending.post("/", content=b"x" * 150_000)).status_code == 200

    async def test_bytes_are_given_by_who_has_them_and_not_by_who_waits_longest(
        self, limit: BodyLimit, sending: httpx.AsyncClient, clock: Clock
    ):
        limit._max_arriving = 3
        decoy, holder = Held(), Held(140_000)
        idle = await decoy.begin(sending)
        clock.now_s = 2
        holding = await holder.begin(sending)
        clock.now_s = 5
        assert (await grown(sending, 150_000)).status_code == 503
        holder.end.set()
        assert (await holding).status_code == 408
        decoy.end.set()
        assert (await idle).status_code == 200
        assert (await grown(sending, 150_000)).status_code == 200

    async def test_who_is_refused_for_want_of_bytes_is_not_his_own_victim(
        self, sending: httpx.AsyncClient, clock: Clock
    ):
        own, other = Held(70_000), Held(120_000)
        growing = await own.begin(sending)
        clock.now_s = 2
        holding = await other.begin(sending)
        clock.now_s = 5
        own.more.set()
        own.end.set()
        assert (await growing).status_code == 503
        other.end.set()
        assert (await holding).status_code == 408

    async def test_who_had_to_make_way_is_not_saved_by_bytes_that_come_behind(
        self, limit: BodyLimit, sending: httpx.AsyncClient, clock: Clock
    ):
        """In the same turn of the loop, before the end that is set for him."""
        came, answers = asyncio.Queue[Message](), list[Message]()

        async def send(message: Message) -> None:
            answers.append(message)

        came.put_nowait({"type": "http.request", "body": b"x", "more_body": True})
        slowest = asyncio.ensure_future(limit({"type": "http", "headers": []}, came.get, send))
        for _ in range(20):  # turns of the loop, until it has its place
            await asyncio.sleep(0)
        clock.now_s = 2
        other = Held()
        held = await other.begin(sending)
        clock.now_s = 5
        assert limit._end_slowest(limit._arriving)
        came.put_nowait({"type": "http.request", "body": b"x" * STEP_BYTES, "more_body": True})
        for _ in range(20):  # turns of the loop, until it is ended
            await asyncio.sleep(0)
        came.put_nowait({"type": "http.request", "body": b"", "more_body": False})
        await slowest
        assert answers[0]["status"] == 408
        other.end.set()
        assert (await held).status_code == 200

    async def test_what_came_whole_needs_no_place(self, behind: Behind, limit: BodyLimit, sending: httpx.AsyncClient):
        """Nor does a request without a body: its first message is its last."""
        held = [Held(), Held()]
        begun = [await one.begin(sending) for one in held]
        answers = list[Message]()

        async def at_once() -> Message:
            return {"type": "http.request", "body": b"x" * 7, "more_body": False}

        async def send(message: Message) -> None:
            answers.append(message)

        await limit({"type": "http", "headers": []}, at_once, send)
        assert (answers[0]["status"], answers[1]["body"]) == (200, b"7")
        for one in held:
            one.end.set()
        assert [(await one).status_code for one in begun] == [200, 200]


async def grown(client: httpx.AsyncClient, size: int) -> httpx.Response:
    """The answer to a body that comes in pieces: it is on its way when the bytes are found to be taken."""

    async def pieces():
        yield b"x"
        await asyncio.sleep(0)
        yield b"x" * (size - 1)

    return await client.post("/", content=pieces())


class Held:
    """A body that begins, brings STEP_BYTES more when it is told to, and ends when it is told to."""

    def __init__(self, first: int = 1) -> None:
        self._first = first
        self.begun, self.more, self.end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def begin(self, client: httpx.AsyncClient) -> asyncio.Future[httpx.Response]:
        """Its answer, which is yet to come; its first bytes have."""
        answer = asyncio.ensure_future(client.post("/", content=self._pieces()))
        await self.begun.wait()
        return answer

    async def _pieces(self):
        yield b"x" * self._first
        self.begun.set()
        waiting = [asyncio.ensure_future(self.more.wait()), asyncio.ensure_future(self.end.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if self.more.is_set():
                yield b"x" * STEP_BYTES
            await self.end.wait()
        finally:
            for one in waiting:
                one.cancel()


async def dribbling(clock: Clock):
    """A byte every four seconds."""
    while True:
        clock.now_s += 4
        yield b"x"
        await asyncio.sleep(0)


class TestRequestId:
    def test_is_the_callers_own(self, client: TestClient):
        assert client.get("/healthz", headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"

    def test_is_fresh_where_none_or_no_printable_one_was_sent(self, client: TestClient):
        sent = ({}, {"X-Request-Id": "a b"})
        ids = [client.get("/healthz", headers=headers).headers["X-Request-Id"] for headers in sent]
        assert all(value.startswith("req_") for value in ids)
        assert len(set(ids)) == 2
