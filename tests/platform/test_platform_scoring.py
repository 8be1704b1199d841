"""A bank's answers scored by the engine that serves, or by the bank's own code: the same numbers, and who told them."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.serve.exceptions import DeploymentUnavailableError
from tiny_model import make_tiny_base, tiny_rows
from trained_world import World, rows_of

from openledger.adapters.registry import AdapterRegistry
from openledger.attribution.bank_folder import find_bank, member_adapters
from openledger.attribution.recompute import agreement
from openledger.core.errors import Corrupt, NotFound, Unavailable
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine
from openledger.platform import pipeline, scoring
from openledger.platform.scoring import TOLERANCE_NATS, EngineScorer

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def trained(here, tmp_path_factory):
    world = World(make_tiny_base(tmp_path_factory.mktemp("base")), tmp_path_factory.mktemp("world"))
    world.bank(world.train("one", rows_of("ctr_0", "ctr_1"))[0])
    return world


class Served:
    """A replica's handle: an `AdapterServer` on a loop of its own. `spoil(number, told)` sees each call's scores."""

    def __init__(self, base, adapters, options, slots=4):
        self.calls, self.spoil = 0, lambda number, told: told
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        engine = TorchEngine(base, EngineOptions(max_batch=2, **options))
        self.server = self._run(self._make(engine, AdapterRegistry(adapters), slots)).result()

    async def _make(self, engine, registry, slots):
        return AdapterServer(engine, registry, ServingOptions(max_resident=slots))

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @property
    def score(self):
        return SimpleNamespace(remote=self._score)

    @property
    def describe(self):
        return SimpleNamespace(remote=lambda: Response(self._run(self._describe()), lambda told: told))

    async def _describe(self):
        return await self.server.describe()

    def _score(self, *arguments):
        self.calls += 1
        number = self.calls
        return Response(self._run(self.server.score(*arguments)), lambda told: self.spoil(number, told))

    def close(self):
        self.server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Response:
    def __init__(self, future, seen):
        self._future, self._seen = future, seen

    def result(self, timeout_s=None):
        return self._seen(self._future.result(timeout_s))


@pytest.fixture
def serve(world):
    """An engine with these options, as what settlements score by."""
    started = []

    def start(slots=4, **options):
        started.append(Served(world.base, world.adapters, options, slots))
        return EngineScorer({world.base.digest: started[-1], "": started[-1]}, world.registry, pause_s=0), started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def pool(world, market):
    return market.sell(world.registry.get("one").terms, rows_of("ctr_0", "ctr_1")[::3] + tiny_rows()[2::12])


def attributed(world, pool, score):
    return pipeline.attribute(pool, lambda _: world.host, score, world.registry, world.indexes)


def outcomes(found):
    return found.parts[0].measured.bank.outcomes_MQ


def test_the_engine_that_serves_gives_the_numbers_of_the_banks_own_code(world, pool, serve):
    packed, (score, replica) = attributed(world, pool, world.score), serve()
    found = attributed(world, pool, score)
    assert packed.scores.quality["scored_by"] == "packed float32"
    assert found.scores.quality["scored_by"] == found.scores.quality["gains_by"] == "openlora float32"
    assert "gains_by" not in packed.scores.quality
    assert float(found.scores.quality["scorer_difference"]) < 2e-5 < TOLERANCE_NATS
    assert outcomes(found).shape == outcomes(packed).shape
    assert 0 < np.abs(outcomes(found) - outcomes(packed)).max() < 2e-5
    assert agreement(found.scores, packed.scores, 100, 500).agrees  # a hundredth of a dispute's tolerance
    assert agreement(found.improvement, packed.improvement, 100, 500).agrees
    assert found.improvement.quality["scored_by"] == "openlora float32"
    assert len(set(replica.server.resident())) == 4


def test_a_member_is_scored_and_no_customer_can_name_it(world, pool, serve):
    score, replica = serve(slots=8)
    attributed(world, pool, score)
    adapter = world.registry.get("one")
    members = member_adapters(Path(adapter.folder), find_bank(Path(adapter.folder), adapter.digest))
    digests = {digest for digest, _ in members}
    assert len(digests) == 6
    assert digests & set(replica.server.resident())
    assert [each.digest for each in world.registry.list()] == [adapter.digest]
    for digest in digests:
        for ask in (world.registry.get, world.registry.find_digest):
            with pytest.raises(NotFound):
                ask(digest)


def test_an_engine_in_lower_precision_says_gains_and_no_bank(world, pool, serve):
    exact, (score, _) = attributed(world, pool, world.score), serve(dtype="bfloat16")
    found = attributed(world, pool, score)
    quality = found.scores.quality
    assert quality["scored_by"] == "packed float32"
    assert quality["scored_because"] == "served by openlora bfloat16"
    assert quality["gains_by"] == "openlora bfloat16"
    assert np.array_equal(outcomes(found), outcomes(exact))
    assert found.scores.gain_nano != exact.scores.gain_nano
    assert agreement(exact.scores, found.scores, 10_000, 500).agrees  # what a second scorer in float32 would say


@pytest.mark.parametrize("options", [{"adapter_dtype": "bfloat16"}, {"weights": "int8"}])
def test_rounded_adapters_or_weights_say_no_bank_either(world, pool, serve, options):
    found = attributed(world, pool, serve(**options)[0]).scores.quality
    assert (found["scored_by"], found["scored_because"]) == (
        "packed float32",
        f"served by openlora float32 {next(iter(options.values()))}",
    )


class Unlike:
    """Two replicas behind one handle: `first` describes itself, and `other` takes the calls from number `after` on."""

    def __init__(self, first, other, after):
        self.describe, self.calls, self._first, self._other, self._after = first.describe, 0, first, other, after

    @property
    def score(self):
        return SimpleNamespace(remote=self._score)

    def _score(self, *arguments):
        self.calls += 1
        return (self._first if self.calls < self._after else self._other)._score(*arguments)


@pytest.mark.parametrize("after", [2, 10])
def test_a_bank_is_scored_in_one_precision_though_another_replica_computes_in_less(world, pool, serve, after):
    (_, exact), (_, rough), adapter = serve(), serve(dtype="bfloat16"), world.registry.get("one")
    bank = find_bank(Path(adapter.folder), adapter.digest)
    score = EngineScorer({"": Unlike(exact, rough, after)}, pause_s=0)
    found = scoring.bank_outcomes(score, world.host, adapter, bank, pool.answers)
    assert found.stated == {
        "scored_by": "packed float32",
        "scored_because": "other_precision: this replica computes in openlora bfloat16, not in openlora float32",
    }
    assert np.array_equal(found.outcomes_MQ, world.host.bank_outcomes.remote(adapter.folder, bank, pool.answers))


def test_a_member_of_every_part_of_the_bank_that_is_asked_at_once_is_checked(world, pool, serve):
    score, replica = serve()  # two members at a time
    last = 2 * len(pool.answers)
    replica.spoil = lambda number, told: told + 0.01 * (number > last)
    adapter = world.registry.get("one")
    bank = find_bank(Path(adapter.folder), adapter.digest)
    found = scoring.bank_outcomes(score, world.host, adapter, bank, pool.answers)
    assert found.stated["scored_because"] == "the engine differs by 0.01 nats a token"


def test_members_come_into_the_slots_that_are_not_pinned(world, pool, serve):
    score, replica = serve()
    adapter = world.registry.get("one")
    bank = find_bank(Path(adapter.folder), adapter.digest)
    for digest, folder in member_adapters(Path(adapter.folder), bank)[:3]:
        replica._run(replica.server.pin(digest, str(folder))).result()
    assert score.num_members_at_once("") == 1  # of four slots
    found = scoring.bank_outcomes(score, world.host, adapter, bank, pool.answers[:2])
    assert found.stated["scored_by"] == "openlora float32"


class Failing:
    """A replica's handle, every one of whose calls fails."""

    def __init__(self, error):
        self.calls, self.cancelled = 0, 0
        self.score = self.describe = SimpleNamespace(remote=lambda *_: self._called())
        self._error = error

    def _called(self):
        self.calls += 1
        return self

    def result(self, timeout_s=None):
        raise self._error

    def cancel(self):
        self.cancelled += 1


def test_a_call_that_takes_too_long_is_cancelled_and_said_to_be_too_slow():
    replica = Failing(TimeoutError())
    with pytest.raises(Unavailable) as caught:
        EngineScorer({"": replica}, pause_s=0)((1,), (2,), ("",))
    assert (caught.value.code, replica.calls, replica.cancelled) == ("scorer_too_slow", 1, 1)


@pytest.mark.parametrize("error", [ray.exceptions.ActorDiedError(), DeploymentUnavailableError("OpenLoRA")])
def test_an_engine_that_does_not_describe_itself_is_asked_again_and_then_unknown(error):
    replica = Failing(error)
    assert scoring.gains_stated(EngineScorer({"": replica}, pause_s=0), "") == {"gains_by": "unknown"}
    assert replica.calls == 3


def test_what_is_wrong_with_a_call_is_no_lost_engine():
    replica = Failing(ray.exceptions.RayTaskError("score", "", TypeError("an unknown argument")))
    with pytest.raises(TypeError, match="an unknown argument"):
        EngineScorer({"": replica}, pause_s=0)((1,), (2,), ("",))
    assert replica.calls == 1


def lost_at(*numbers):
    def spoil(number, told):
        if number in numbers:
            raise Unavailable("the replica died", code="engine_stopped")
        return told

    return spoil


def test_a_replica_that_is_lost_is_asked_again(world, pool, serve):
    score, replica = serve()
    replica.spoil = lost_at(2, 3, 10, 30, 31)
    found = attributed(world, pool, score)
    assert (found.scores.quality["scored_by"], replica.calls > 31) == ("openlora float32", True)
    assert agreement(found.scores, attributed(world, pool, world.score).scores, 100, 500).agrees


def test_an_engine_that_is_lost_for_good_leaves_the_whole_bank_to_its_own_code(world, pool, serve):
    score, replica = serve()
    replica.spoil, adapter = lost_at(*range(9, 10_000)), world.registry.get("one")
    bank = find_bank(Path(adapter.folder), adapter.digest)
    found = scoring.bank_outcomes(score, world.host, adapter, bank, pool.answers)
    assert replica.calls >= 9 + 2
    assert found.stated == {"scored_by": "packed float32", "scored_because": "engine_stopped: the replica died"}
    assert np.array_equal(found.outcomes_MQ, world.host.bank_outcomes.remote(adapter.folder, bank, pool.answers))


def test_gains_that_no_engine_tells_leave_the_pool_waiting(world, pool, serve):
    score, replica = serve()
    replica.spoil = lost_at(*range(5, 10_000))
    with pytest.raises(Unavailable, match="the replica died"):
        attributed(world, pool, score)
    assert replica.calls == 7  # three times the fifth


def test_what_the_engine_says_of_a_member_is_not_asked_twice(world, pool, serve):
    score, replica = serve()

    def spoil(number, told):
        raise Corrupt("it overflows", code="non_finite_logits")

    replica.spoil, adapter = spoil, world.registry.get("one")
    bank = find_bank(Path(adapter.folder), adapter.digest)
    found = scoring.bank_outcomes(score, world.host, adapter, bank, pool.answers[:1])
    assert (found.stated["scored_by"], replica.calls) == ("packed float32", 1)
    assert found.stated["scored_because"] == "non_finite_logits: it overflows"


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_an_engine_that_says_something_else_is_not_believed(world, pool, serve, wrong):
    score, replica = serve()
    replica.spoil = lambda number, told: told if len(told) == 2 and not told[1].mean() else told + wrong
    adapter = world.registry.get("one")
    bank = find_bank(Path(adapter.folder), adapter.digest)
    found = scoring.bank_outcomes(score, world.host, adapter, bank, pool.answers)
    assert found.stated["scored_by"] == "packed float32"
    assert found.stated["scored_because"].startswith(f"the engine differs by {wrong:.2g} nats")


def test_a_members_folder_that_was_spoilt_is_written_anew(world):
    adapter = world.registry.get("one")
    folder, bank = Path(adapter.folder), find_bank(Path(adapter.folder), adapter.digest)
    first = member_adapters(folder, bank)
    spoilt, same = first[0][1], first[1][1]
    weights = spoilt / "adapter_model.safetensors"
    weights.write_bytes((same / "adapter_model.safetensors").read_bytes())  # whole, and another member's
    before = (same / "adapter_model.safetensors").stat().st_mtime_ns
    assert member_adapters(folder, bank) == first
    weights.write_bytes(b"torn")
    assert member_adapters(folder, bank) == first
    assert (same / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_bank_of_equal_members_keeps_each_one(world, pool, serve):
    score, _ = serve()
    adapter = world.registry.get("one")
    bank = find_bank(Path(adapter.folder), adapter.digest)
    twice = replace(bank, coalitions=(bank.coalitions[0], *bank.coalitions[:5]))
    found = scoring.bank_outcomes(score, world.host, adapter, twice, pool.answers[:2]).outcomes_MQ
    assert found.shape == (6, 2)
    assert np.allclose(found[0], found[1], atol=1e-6)
