"""On Ray Serve: the same answers through a handle, streamed."""

import asyncio
import os
import signal
import time
from contextlib import aclosing
from functools import reduce
from typing import Any

import pytest
from openlora_models import Served, make_served, prompt_of, request, run
from ray.util import get_node_ip_address

from openledger.adapters.registry import AdapterRegistry
from openledger.core.errors import NotFound, Unavailable
from openledger.core.values import TokenEvent
from openledger.openlora.deployment import ReplicaOptions, ScalingOptions, build_openlora
from openledger.openlora.inbox import EventInbox
from openledger.openlora.server import ServingOptions
from openledger.openlora.streams import join
from openledger.openlora.torch_engine import EngineOptions, TorchEngine
from openledger.platform.asking import EngineCalls

pytestmark = pytest.mark.cluster
NUM_REPLICAS = 2
NUM_LONG = 4000  # tokens of an answer that is not over before it is killed or left: 110 were, on a fast machine


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make_served(tmp_path_factory.mktemp("served"), max_position_embeddings=NUM_LONG + 96)


@pytest.fixture(scope="module")
def handle(cluster: Any, served: Served) -> Any:
    """Two replicas, each with room for two of the three adapters."""
    from ray import serve

    root = served.folders["one"].parent
    registry = AdapterRegistry(root)
    for name, folder in served.folders.items():
        registry.register(name, folder, served.digests[name])
    replica = ReplicaOptions(engine=EngineOptions(max_batch=4), serving=ServingOptions(max_resident=2))
    scaling = ScalingOptions(num_replicas=NUM_REPLICAS, num_cpus=0.5, drain_s=5)
    application = build_openlora(served.base.path, str(root), replica=replica, scaling=scaling)
    serve.start(proxy_location="Disabled")  # nothing here goes by HTTP
    yield serve.run(application, name="openlora-test", route_prefix=None)
    serve.delete("openlora-test")


def ask(handle: Any, each: Any) -> TokenEvent:
    """Its events as one."""
    return reduce(join, handle.options(stream=True).generate.remote(each))


def told(handle: Any) -> list[dict[str, Any]]:
    """What each replica tells of itself. Asked many at a time: a lone call always goes to the less busy one."""
    found: dict[str, dict[str, Any]] = {}
    for _ in range(20):
        asked = [handle.describe.remote() for _ in range(16)]
        found |= {str(each["replica"]): each for each in (response.result(timeout_s=60) for response in asked)}
        if len(found) == NUM_REPLICAS:
            break
    return list(found.values())


class TestDeployment:
    def test_streams_what_the_engine_gives(self, handle: Any, served: Served, engine: TorchEngine) -> None:
        each = request("r", prompt_of(9), served.digests["one"])
        got, expected = ask(handle, each), reduce(join, run(engine, each)["r"])
        assert (got.token_ids, got.text, got.finish_reason) == (
            expected.token_ids,
            expected.text,
            expected.finish_reason,
        )

    def test_a_bad_request_is_an_error_event(self, handle: Any) -> None:
        events = list(handle.options(stream=True).generate.remote(request("bad", [])))
        assert [event.error["code"] for event in events] == ["empty_prompt"]

    def test_scores(self, handle: Any, served: Served) -> None:
        scores = handle.score.remote(prompt_of(4), prompt_of(5), ["", served.digests["three"]]).result(timeout_s=60)
        assert scores.shape == (2, 5)

    def test_errors_keep_their_kind(self, handle: Any) -> None:
        with pytest.raises(NotFound) as caught:
            handle.score.remote([5], [6], ["0" * 64]).result(timeout_s=60)
        assert caught.value.code == "unknown_adapter"

    def test_describes_itself(self, handle: Any, served: Served) -> None:
        description = handle.describe.remote().result(timeout_s=60)
        assert (description["base_digest"], description["engine"]) == (served.base.digest, "torch")


class TestRouting:
    """Before `told` is called often: what a router remembers of many calls at once counts as load for seconds."""

    def test_an_adapter_is_loaded_on_one_replica_however_often_it_is_asked(self, handle: Any, served: Served) -> None:
        for number in range(12):
            ask(handle, request(f"home-{number}", prompt_of(4), served.digests["two"], max_tokens=2))
        holders = [each for each in told(handle) if served.digests["two"] in each["resident"]]
        assert len(holders) == 1

    def test_a_crowd_for_one_adapter_is_answered_by_both(self, handle: Any, served: Served) -> None:
        """At the latest when it has come again: Serve passes by a replica that doesn't tell its queue within 0.1 s."""
        for crowd in range(5):
            told(handle)  # so that Serve knows both queues
            asked = [
                handle.options(stream=True).generate.remote(
                    request(
                        f"crowd-{crowd}-{number}", prompt_of(20), served.digests["three"], max_tokens=300,
                        ignore_end=True,
                    )
                )
                for number in range(24)
            ]  # fmt: skip
            assert all(list(events)[-1].error is None for events in asked)
            holders = [each for each in told(handle) if served.digests["three"] in each["resident"]]
            if len(holders) == NUM_REPLICAS:
                break
        assert len(holders) == NUM_REPLICAS


class TestLine:
    """As a gateway asks: Serve routes the call, the events come by a line."""

    def test_brings_what_the_engine_gives(self, handle: Any, served: Served, engine: TorchEngine) -> None:
        each = request("line", prompt_of(9), served.digests["one"])
        told = asyncio.run(over_a_line(handle, each))
        got, expected = reduce(join, told), reduce(join, run(engine, each)["line"])
        assert (got.token_ids, got.text, got.finish_reason) == (
            expected.token_ids,
            expected.text,
            expected.finish_reason,
        )

    def test_many_at_once_come_whole_and_unmixed(self, handle: Any, served: Served) -> None:
        async def ask_all() -> list[list[TokenEvent]]:
            inbox = EventInbox(get_node_ip_address())
            asked = [
                request(f"many-{number}", prompt_of(5), served.digests["one"], max_tokens=9 + number, ignore_end=True)
                for number in range(16)
            ]
            return await asyncio.gather(*(over_a_line(handle, each, inbox) for each in asked))

        answers = [reduce(join, events) for events in asyncio.run(ask_all())]
        assert [len(answer.token_ids) for answer in answers] == [9 + number for number in range(16)]

    def test_one_that_is_left_ends_at_its_replica(self, handle: Any, served: Served) -> None:
        async def leave() -> tuple[int, ...]:
            long = request("left", prompt_of(4), served.digests["one"], max_tokens=NUM_LONG, ignore_end=True)
            asking = EngineCalls(handle, EventInbox(get_node_ip_address())).asking(long, "")
            async with aclosing(asking.events()) as events:
                await anext(events)
            return (await asking.leave()).token_ids

        assert len(asyncio.run(leave())) < NUM_LONG
        assert not any("left" in each["in_flight"] for each in told(handle))


async def over_a_line(handle: Any, each: Any, inbox: EventInbox | None = None) -> list[TokenEvent]:
    calls = EngineCalls(handle, inbox or EventInbox(get_node_ip_address()))
    return [event async for event in calls.asking(each, "").events()]


class TestFaults:
    def test_a_replica_killed_in_mid_stream_is_an_error_and_the_other_answers(
        self, handle: Any, served: Served
    ) -> None:
        """And the adapter's requests find their new home at once."""
        long = request("long", prompt_of(4), served.digests["one"], max_tokens=NUM_LONG, ignore_end=True)
        events = iter(handle.options(stream=True).generate.remote(long))
        next(events)
        (home,) = [each for each in told(handle) if "long" in each["in_flight"]]
        os.kill(home["pid"], signal.SIGKILL)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - Ray has several kinds
            list(events)
        assert "Actor" in type(caught.value).__name__
        answer = ask(handle, request("after", prompt_of(4), served.digests["one"]))
        assert answer.error is None
        _wait_for_replicas(handle)

    def test_so_it_is_over_a_line(self, handle: Any, served: Served) -> None:
        pids = [each["pid"] for each in told(handle)]

        async def ask_and_kill() -> None:
            long = request("line-long", prompt_of(4), served.digests["one"], max_tokens=NUM_LONG, ignore_end=True)
            asking = EngineCalls(handle, EventInbox(get_node_ip_address())).asking(long, "")
            async with aclosing(asking.events()) as events:
                await anext(events)
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                async for _ in events:
                    pass

        with pytest.raises(Unavailable) as caught:
            asyncio.run(ask_and_kill())
        assert caught.value.code == "engine_lost"


def _wait_for_replicas(handle: Any) -> None:
    """Until Serve has started another in its place."""
    from ray import serve

    for _ in range(600):
        if serve.status().applications["openlora-test"].deployments["OpenLoRA"].status.name == "HEALTHY":
            return
        time.sleep(0.1)
    raise AssertionError("no replica came")
