"""The application's own door, opened and closed with it."""

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import replace

import httpx
import pytest
from memory_service import API_KEY, MemoryService

from openledger.api import create_app
from openledger.api.door import Door, open_door
from openledger.api.limits import BodyLimit
from openledger.core.errors import Unavailable
from openledger.platform.desk import Desk

HEADERS = {"Authorization": f"Bearer {API_KEY}"}
BODY = {"model": "os-docs", "messages": [{"role": "user", "content": "What does alpha do?"}]}


@pytest.fixture
def door() -> Door:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Door(host="127.0.0.1", port=probe.getsockname()[1], drain_s=5)


def url(door: Door, path: str) -> str:
    return f"http://{door.host}:{door.port}{path}"


async def test_it_is_open_while_the_application_is_up(door: Door) -> None:
    app = create_app(MemoryService(), door=door)
    async with app.router.lifespan_context(app), httpx.AsyncClient(headers=HEADERS) as client:
        assert (await client.get(url(door, "/healthz"))).status_code == 200
        assert (await client.post(url(door, "/v1/chat/completions"), json=BODY)).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url(door, "/healthz"))


async def test_it_stays_closed_while_keys_are_not_restored(door: Door) -> None:
    going_on, asked = asyncio.Event(), asyncio.Event()

    async def restore() -> None:
        asked.set()
        await going_on.wait()

    service = MemoryService()
    service.desk = Desk(service.desk._ask, restore=restore)
    app = create_app(service, door=door)
    async with AsyncExitStack() as stack:
        opening = asyncio.create_task(stack.enter_async_context(app.router.lifespan_context(app)))
        await asyncio.wait_for(asked.wait(), 30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(url(door, "/healthz"))
        going_on.set()
        await opening
        async with httpx.AsyncClient() as client:
            assert (await client.get(url(door, "/healthz"))).status_code == 200


async def test_two_gateways_of_a_node_share_a_port(door: Door) -> None:
    """A new one takes over from the old without a gap."""
    app = create_app(MemoryService())
    async with open_door(app, door):
        async with open_door(app, door), httpx.AsyncClient() as client:
            assert (await client.get(url(door, "/healthz"))).status_code == 200
        async with httpx.AsyncClient() as client:
            assert (await client.get(url(door, "/healthz"))).status_code == 200


async def test_a_taken_port_is_an_error_by_name(door: Door) -> None:
    with socket.socket() as other:
        other.bind((door.host, door.port))
        other.listen()
        with pytest.raises(Unavailable) as caught:
            async with open_door(create_app(MemoryService()), door):
                pass
    assert (caught.value.code, caught.value.param) == ("port_taken", "http_port")


async def test_another_installation_is_kept_from_a_port_that_is_in_use(door: Door) -> None:
    """The kernel would let them share it."""
    app, other = create_app(MemoryService()), replace(door, installation="/srv/two")
    async with open_door(app, replace(door, installation="/srv/one")):
        with pytest.raises(Unavailable) as caught:
            async with open_door(app, other):
                pass
        assert (caught.value.code, caught.value.param) == ("port_taken", "http_port")
        assert str(door.port) in caught.value.message
        assert "/srv/one" in caught.value.message
        async with open_door(app, replace(door, installation="/srv/one")):
            pass  # its own may
    async with open_door(app, other), httpx.AsyncClient() as client:
        assert (await client.get(url(door, "/healthz"))).status_code == 200


async def test_of_two_that_come_at_once_one_gets_the_port(door: Door) -> None:
    app = create_app(MemoryService())

    async def come(installation: str) -> str:
        try:
            async with open_door(app, replace(door, installation=installation)):
                await asyncio.sleep(0.1)
                return installation
        except Unavailable as error:
            return error.code

    told = await asyncio.gather(*(come(f"/srv/{number}") for number in range(4)))
    assert sorted(told)[1:] == ["port_taken"] * 3


async def test_an_answer_under_way_ends_before_the_door_is_closed(door: Door) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(scope, receive, send):
        begun.set()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})

    async with httpx.AsyncClient() as client:
        async with open_door(slow, door):
            asking = asyncio.ensure_future(client.get(url(door, "/")))
            await begun.wait()
            asyncio.get_running_loop().call_later(0.3, go.set)
        assert (await asking).text == "whole"


async def test_more_requests_at_once_than_it_holds_are_told_to_come_again(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openledger.api.door.MAX_REQUESTS", 2, raising=False)
    begun, go = asyncio.Semaphore(0), asyncio.Event()

    async def slow(scope, receive, send):
        begun.release()
        await go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})

    async with open_door(slow, door), httpx.AsyncClient(timeout=30) as client:
        asking = [asyncio.ensure_future(client.get(url(door, "/"))) for _ in range(2)]
        for _ in asking:
            await begun.acquire()
        asyncio.get_running_loop().call_later(15, go.set)  # lest it hangs where none is refused
        refused = await client.get(url(door, "/"))
        go.set()
        assert [(await one).text for one in asking] == ["whole", "whole"]
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_full")
        assert int(refused.headers["Retry-After"]) > 0
        assert (await client.get(url(door, "/"))).text == "whole"


async def test_questions_without_a_body_are_answered_while_all_places_of_bodies_are_taken(door: Door) -> None:
    app = BodyLimit(create_app(MemoryService()), max_arriving=1)
    head = f"POST /v1/datanets HTTP/1.1\r\nHost: house\r\nAuthorization: Bearer {API_KEY}\r\n"
    async with open_door(app, door):
        _, writing = await asyncio.open_connection(door.host, door.port)
        writing.write(f"{head}Content-Length: 100\r\n\r\n".encode())
        while not app._arriving:
            await asyncio.sleep(0.01)
        async with httpx.AsyncClient(timeout=30) as client:
            found = await client.get(url(door, "/healthz"))
        assert found.status_code == 200
        whole_reading, whole_writing = await asyncio.open_connection(door.host, door.port)
        whole_writing.write(f"{head}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
        assert b" 400 " in await whole_reading.readline()
        assert len(app._arriving) == 1
        for one in (writing, whole_writing):
            one.close()


async def test_one_that_is_cut_off_ends_before_the_door_is_closed(door: Door) -> None:
    """When the time to drain is over: what was said of it is paid for by then."""
    log = []

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            log.append("paid")

    async with httpx.AsyncClient() as client, AsyncExitStack() as streams:
        async with open_door(endless, replace(door, drain_s=1)):
            await streams.enter_async_context(client.stream("GET", url(door, "/")))
        assert log == ["paid"]


async def test_once_it_is_closed_the_service_pays_what_is_open(door: Door) -> None:
    service = MemoryService()
    app = create_app(service, door=door)
    async with app.router.lifespan_context(app):
        assert not service.is_closed
    assert service.is_closed
