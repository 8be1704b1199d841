"""Where adapters live: stable homes, bounded load, and a cost that no number of adapters changes."""

import asyncio
import hashlib
from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from openledger.openlora.deployment import AdapterRouter, ScalingOptions, build_openlora
from openledger.openlora.labels import AdapterLabels
from openledger.openlora.routing import Homes, ReplicaState, RoutingOptions, replica_state, routing_stats, tag
from openledger.openlora.scaling import TokenPressure, wanted_replicas


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@pytest.fixture
def homes() -> Homes:
    return Homes(lambda: 0.0)


IDLE = {f"r{number}": 0.0 for number in range(8)}


class TestRendezvous:
    def test_an_adapter_goes_to_the_same_home_each_time(self, homes: Homes) -> None:
        assert len({homes.rank(digest(1), IDLE)[0][0] for _ in range(20)}) == 1

    def test_two_routers_agree(self) -> None:
        first, second = Homes(lambda: 0.0), Homes(lambda: 99.0)
        assert [first.rank(digest(n), IDLE) for n in range(50)] == [second.rank(digest(n), IDLE) for n in range(50)]

    def test_adapters_spread_over_all_replicas(self, homes: Homes) -> None:
        placed = Counter(homes.rank(digest(number), IDLE)[0][0] for number in range(4000))
        assert set(placed) == set(IDLE)
        assert max(placed.values()) < 1.3 * 4000 / len(IDLE)

    def test_only_the_adapters_of_a_replica_that_left_move(self, homes: Homes) -> None:
        without = {name: load for name, load in IDLE.items() if name != "r3"}
        for number in range(1000):
            before, after = homes.rank(digest(number), IDLE)[0][0], homes.rank(digest(number), without)[0][0]
            assert before == after or before == "r3"

    def test_a_new_replica_takes_its_part_and_no_more(self, homes: Homes) -> None:
        more = {**IDLE, "new": 0.0}
        moved = [n for n in range(4000) if homes.rank(digest(n), IDLE)[0][0] != homes.rank(digest(n), more)[0][0]]
        assert all(homes.rank(digest(number), more)[0][0] == "new" for number in moved)
        assert len(moved) < 1.3 * 4000 / 9


class TestHeat:
    def test_most_have_one_home(self, homes: Homes) -> None:
        for number in range(100):
            homes.count(digest(number))
        assert homes.num_homes(digest(1), 8, mean_load=5.0) == 1

    def test_a_hot_one_has_homes_for_its_part_of_the_traffic(self, homes: Homes) -> None:
        for number in range(100):
            homes.count(digest(0) if number % 2 else digest(number + 1))
        assert homes.num_homes(digest(0), 8, mean_load=5.0) == 4
        assert len(homes.rank(digest(0), dict.fromkeys(IDLE, 5.0))[0]) == 4

    def test_one_home_does_while_replicas_have_little_to_do(self, homes: Homes) -> None:
        homes.count(digest(0))
        assert homes.num_homes(digest(0), 8, mean_load=0.5) == 1

    def test_never_more_than_allowed(self) -> None:
        homes = Homes(lambda: 0.0, RoutingOptions(max_homes=2))
        homes.count(digest(0))
        assert homes.num_homes(digest(0), 8, mean_load=5.0) == 2

    def test_cools_down(self) -> None:
        now = [0.0]
        homes = Homes(lambda: now[0])
        for _ in range(50):
            homes.count(digest(0))
        now[0] = 3600.0
        for number in range(1, 51):
            homes.count(digest(number))
        assert homes.num_homes(digest(0), 8, mean_load=5.0) == 1

    def test_state_is_bounded_however_many_adapters_come(self, homes: Homes) -> None:
        for number in range(10_000):
            homes.count(digest(number))
        assert len(homes._heat._counts) <= 2048


class TestLoad:
    def test_a_home_over_the_bound_is_passed_by(self, homes: Homes) -> None:
        home = homes.rank(digest(1), IDLE)[0][0]
        chosen = homes.rank(digest(1), {**IDLE, home: 50.0})[0][0]
        assert chosen == homes.homes(digest(1), list(IDLE))[1]

    def test_a_home_a_little_over_the_mean_is_not(self, homes: Homes) -> None:
        home = homes.rank(digest(1), IDLE)[0][0]
        assert homes.rank(digest(1), {name: 10.0 + (name == home) for name in IDLE})[0][0] == home

    def test_every_replica_is_tried_in_the_end_and_once(self, homes: Homes) -> None:
        ranks = homes.rank(digest(1), {**IDLE, "r1": 50.0})
        told = [name for rank in ranks for name in rank]
        assert sorted(told) == sorted(IDLE)

    def test_no_replica_gets_far_more_than_its_part(self, homes: Homes) -> None:
        """One adapter that is asked all the time, and many that are asked once."""
        loads = dict.fromkeys(IDLE, 0.0)
        for number in range(800):
            each = digest(0) if number % 3 == 0 else digest(number)
            homes.count(each)
            loads[homes.rank(each, loads)[0][0]] += 1
        assert max(loads.values()) <= 1.25 * 800 / len(loads) + 3

    def test_tokens_that_wait_there_count(self, homes: Homes) -> None:
        home = homes.rank(digest(1), IDLE)[0][0]
        homes.update({home: ReplicaState(queued_tokens=100_000.0)})
        assert homes.rank(digest(1), IDLE)[0][0] != home

    def test_the_base_goes_where_there_is_least(self, homes: Homes) -> None:
        assert homes.rank("", {**dict.fromkeys(IDLE, 5.0), "r6": 1.0})[0][0] == "r6"


class TestResidency:
    def test_of_its_homes_the_one_that_holds_it_goes_first(self) -> None:
        homes = Homes(lambda: 0.0)
        homes.count(digest(1))  # all traffic: every replica is a home
        busy = dict.fromkeys(IDLE, 5.0)
        last = homes.rank(digest(1), busy)[0][-1]
        homes.update({last: ReplicaState(resident=frozenset([tag(digest(1))]))})
        assert homes.rank(digest(1), busy)[0] == [last]

    def test_where_the_home_is_full_another_that_holds_it_goes_next(self, homes: Homes) -> None:
        order = homes.homes(digest(1), list(IDLE))
        homes.update({order[5]: ReplicaState(resident=frozenset([tag(digest(1))]))})
        assert homes.rank(digest(1), {**IDLE, order[0]: 50.0})[0] == [order[5]]

    def test_stats_cross_as_plain_values(self) -> None:
        told = routing_stats([digest(1), "odd"], {"queued_tokens": 7.0})
        state = replica_state(told)
        assert (tag(digest(1)) in state.resident, state.queued_tokens) == (True, 7.0)
        assert replica_state({}) == ReplicaState()


class TestMerged:
    """A replica that has an adapter merged answers under that one; the others do where they can."""

    @pytest.fixture
    def merged(self, homes: Homes) -> Homes:
        homes.update({"r3": ReplicaState(resident=frozenset([tag(digest(0))]), merged=tag(digest(0)))})
        return homes

    def test_goes_first_for_its_adapter(self, merged: Homes) -> None:
        assert merged.rank(digest(0), IDLE)[0] == ["r3"]

    def test_goes_last_for_all_others_and_the_base(self, merged: Homes) -> None:
        ranks = [merged.rank(each, IDLE) for each in ("", *(digest(number) for number in range(1, 200)))]
        assert {[name for rank in each for name in rank][-1] for each in ranks} == {"r3"}

    def test_only_the_adapters_that_were_at_home_there_move(self, merged: Homes) -> None:
        before = Homes(lambda: 0.0)
        for number in range(1, 1000):
            old, new = before.rank(digest(number), IDLE)[0][0], merged.rank(digest(number), IDLE)[0][0]
            assert old == new or old == "r3"

    def test_is_home_to_others_again_while_it_has_far_less_to_do(self, merged: Homes) -> None:
        """Its own adapter keeps it merged with a quarter of a batch: the others must not wait beside that."""
        number = next(n for n in range(1, 99) if merged.homes(digest(n), list(IDLE))[0] == "r3")
        busy = dict.fromkeys(IDLE, 40.0)
        assert merged.rank(digest(number), {**busy, "r3": 10.0})[0][0] == "r3"
        assert merged.rank(digest(number), {**busy, "r3": 30.0})[0][0] != "r3"

    def test_is_passed_by_where_it_is_full(self, merged: Homes) -> None:
        assert merged.rank(digest(0), {**IDLE, "r3": 50.0})[0] != ["r3"]

    def test_where_all_have_another_merged_one_is_for_all_others(self, homes: Homes) -> None:
        homes.update({name: ReplicaState(merged=tag(digest(99))) for name in IDLE})
        busy = dict.fromkeys(IDLE, 20.0)
        firsts = {tuple(homes.rank(digest(number), busy)[0]) for number in range(50)}
        assert len(firsts) == 1
        assert len(*firsts) == 1
        own = {each for _ in range(20) for each in homes.rank(digest(99), busy)[0]}
        assert own == set(IDLE)

    def test_crosses_with_the_stats(self) -> None:
        assert replica_state(routing_stats([], {}, digest(7))).merged == tag(digest(7))
        assert replica_state(routing_stats([], {})).merged == 0


TARGETS = {"target_queued_tokens": 1000.0, "target_busy": 0.8}


class TestScaling:
    def test_up_at_once_to_what_waits(self) -> None:
        assert wanted_replicas(2, [{"queued_tokens": 4500.0}, {"queued_tokens": 500.0}], **TARGETS) == 5

    def test_up_where_replicas_are_full(self) -> None:
        assert wanted_replicas(2, [{"busy": 1.0}, {"busy": 1.0}], **TARGETS) == 3

    def test_memory_for_keys_and_values_counts_as_much(self) -> None:
        assert wanted_replicas(1, [{"busy": 0.1, "kv": 0.95}], **TARGETS) == 2

    def test_stays_where_it_fits(self) -> None:
        assert wanted_replicas(3, [{"busy": 0.6}] * 3, **TARGETS) == 3

    def test_down_by_one_where_a_quarter_less_would_do(self) -> None:
        assert wanted_replicas(4, [{"busy": 0.1}] * 4, **TARGETS) == 3

    def test_does_not_swing_between_two_numbers(self) -> None:
        """What one more replica makes of the load must not send it away again."""
        seen, current = set(), 1
        for _ in range(20):
            current = wanted_replicas(current, [{"busy": 1.7 / current}] * current, **TARGETS)
            seen.add(current)
        assert seen == {3}

    def test_the_policy_keeps_within_serves_limits(self) -> None:
        context = SimpleNamespace(
            aggregated_metrics={"queued_tokens": {"a": 9e9}, "busy": {"a": 1.0}}, target_num_replicas=1,
            capacity_adjusted_min_replicas=1, capacity_adjusted_max_replicas=4,
        )  # fmt: skip
        assert TokenPressure()(context) == (4, {})


class TestLabels:
    def test_a_few_are_named_and_the_rest_is_one(self) -> None:
        labels = AdapterLabels(max_labels=2, min_uses=3)
        told = {labels.of(digest(number)) for number in range(10_000)}
        assert told == {"other"}
        for number in range(5):
            last = [labels.of(digest(number)) for _ in range(3)][-1]
            assert last == (digest(number)[:12] if number < 2 else "other")
        assert labels.of("") == "base"


class TestDeployment:
    """Made without a cluster: Serve checks what it is given when the deployment is described."""

    def test_of_a_fixed_number_of_replicas(self) -> None:
        application = build_openlora(None, "adapters", scaling=ScalingOptions(num_replicas=3))
        assert application._bound_deployment.num_replicas == 3

    def test_of_a_number_that_follows_the_load(self) -> None:
        application = build_openlora(None, "adapters", scaling=ScalingOptions(num_replicas=1, max_replicas=4))
        config = application._bound_deployment._deployment_config.autoscaling_config
        assert (config.min_replicas, config.max_replicas) == (1, 4)
        assert config.policy.policy_function == "openledger.openlora.scaling:TokenPressure"

    def test_of_several_bases_side_by_side(self) -> None:
        names = {build_openlora(None, "adapters", name=name)._bound_deployment.name for name in ("small", "large")}
        assert names == {"small", "large"}


class OnlyReplica:
    """What a router asks of a replica."""

    replica_id = ReplicaID("r1", deployment_id=DeploymentID(name="OpenLoRA", app_name="openledger"))
    max_ongoing_requests = 1024
    node_id, availability_zone, actor_id = "n", None, None
    routing_stats: ClassVar[dict[str, Any]] = {}
    multiplexed_model_ids: ClassVar[set[str]] = set()

    def update_replica_info(self, *_: Any) -> None: ...
    def push_proxy_handle(self, *_: Any) -> None: ...
    async def get_queue_len(self, *, deadline_s: float) -> int:
        return 0


@pytest.mark.parametrize("ids", [["a", "b"], ["a", "a"], ["a", "a", "a", "b"]])
async def test_all_calls_of_one_http_request_are_routed(ids: list[str]) -> None:
    """Serve gives the calls that are made for one request the same id."""
    place = OnlyReplica.replica_id.deployment_id
    router = AdapterRouter(place, DeploymentHandleSource.REPLICA, "me", None, use_replica_queue_len_cache=True)
    router.initialize_state()
    router.update_replicas([OnlyReplica()])
    calls = [
        PendingRequest(
            args=[SimpleNamespace(adapter_digest=digest(number))],
            kwargs={},
            metadata=RequestMetadata(request_id=name, internal_request_id=name, call_method="send"),
        )
        for number, name in enumerate(ids)
    ]
    routed = await asyncio.wait_for(asyncio.gather(*map(router._choose_replica_for_request, calls)), timeout=30)
    assert [one.replica_id for one in routed] == [OnlyReplica.replica_id] * len(ids)
