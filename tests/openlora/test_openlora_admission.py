"""Fair queues: who is next, by how much, and who is told to come back later."""

from collections import Counter
from pathlib import Path

import pytest

from openledger.core.errors import TooManyRequests
from openledger.openlora.admission import AdmissionLimits, FairQueue, Waiting
from openledger.openlora.step_cost import StepCost, measure_step_cost


def waiting(tenant: str, adapter: str = "a", num_tokens: int = 10) -> Waiting:
    return Waiting(tenant=tenant, adapter=adapter, num_tokens=num_tokens, since_s=0.0)


def any_adapter(_: str) -> bool:
    return True


def fill(queue: FairQueue, tenant: str, count: int, adapter: str = "a", num_tokens: int = 10) -> None:
    for _ in range(count):
        queue.put(waiting(tenant, adapter, num_tokens))


def served(queue: FairQueue, count: int, can_run=any_adapter) -> list[Waiting]:  # type: ignore[no-untyped-def]
    return [one for one in (queue.pop(can_run) for _ in range(count)) if one is not None]


class TestFairness:
    def test_one_who_sends_a_crowd_does_not_hold_up_another(self) -> None:
        queue = FairQueue(AdmissionLimits())
        fill(queue, "crowd", 100)
        fill(queue, "one", 5)
        assert Counter(one.tenant for one in served(queue, 10)) == {"crowd": 5, "one": 5}

    def test_long_prompts_count_for_what_they_are(self) -> None:
        queue = FairQueue(AdmissionLimits())
        fill(queue, "long", 20, num_tokens=90)
        fill(queue, "short", 60, num_tokens=30)
        tokens: Counter[str] = Counter()
        for one in served(queue, 40):
            tokens[one.tenant] += one.num_tokens
        assert abs(tokens["long"] - tokens["short"]) <= 90

    def test_what_was_generated_is_charged_too(self) -> None:
        queue = FairQueue(AdmissionLimits())
        fill(queue, "talker", 10)
        fill(queue, "brief", 10)
        queue.charge("talker", "a", 55)
        assert [one.tenant for one in served(queue, 5)] == ["brief"] * 5

    def test_weights_divide_the_service(self) -> None:
        queue = FairQueue(AdmissionLimits(weights={"double": 2.0}))
        fill(queue, "double", 60)
        fill(queue, "single", 60)
        assert Counter(one.tenant for one in served(queue, 30)) == {"double": 20, "single": 10}

    def test_weights_of_adapters_divide_their_tenants_service(self) -> None:
        queue = FairQueue(AdmissionLimits(adapter_weights={"double": 2.0}))
        fill(queue, "one", 60, adapter="double")
        fill(queue, "one", 60, adapter="single")
        assert Counter(one.adapter for one in served(queue, 30)) == {"double": 20, "single": 10}

    def test_who_was_away_saved_nothing_up(self) -> None:
        queue = FairQueue(AdmissionLimits())
        fill(queue, "steady", 250)
        served(queue, 100)
        fill(queue, "back", 50)
        assert Counter(one.tenant for one in served(queue, 20))["back"] <= 11

    def test_a_tenants_adapters_take_turns(self) -> None:
        queue = FairQueue(AdmissionLimits())
        fill(queue, "t", 50, adapter="busy")
        fill(queue, "t", 3, adapter="rare")
        assert [one.adapter for one in served(queue, 6)].count("rare") == 3

    def test_in_order_of_arrival_for_one_adapter(self) -> None:
        queue = FairQueue(AdmissionLimits())
        first, second = waiting("t"), waiting("t")
        queue.put(first)
        queue.put(second)
        assert served(queue, 2) == [first, second]

    def test_one_whose_adapter_can_not_run_is_passed_and_comes_first_once_it_can(self) -> None:
        queue = FairQueue(AdmissionLimits())
        fill(queue, "cold", 2, adapter="cold")
        fill(queue, "warm", 10, adapter="warm")
        assert {one.tenant for one in served(queue, 3, lambda adapter: adapter == "warm")} == {"warm"}
        assert [one.tenant for one in served(queue, 2)] == ["cold", "cold"]


class TestBounds:
    def test_a_tenant_has_a_part_of_the_queue(self) -> None:
        queue = FairQueue(AdmissionLimits(max_waiting=10, max_waiting_per_tenant=3))
        fill(queue, "t", 3)
        with pytest.raises(TooManyRequests) as caught:
            queue.put(waiting("t"), retry_after_s=lambda: 7)
        assert (caught.value.code, caught.value.retry_after_s) == ("tenant_queue_full", 7)
        queue.put(waiting("other"))

    def test_all_together_have_the_whole(self) -> None:
        queue = FairQueue(AdmissionLimits(max_waiting=3, max_waiting_per_tenant=3))
        for tenant in "abc":
            fill(queue, tenant, 1)
        with pytest.raises(TooManyRequests) as caught:
            queue.put(waiting("d"))
        assert caught.value.code == "queue_full"

    def test_counters_of_those_who_left_are_forgotten(self) -> None:
        queue = FairQueue(AdmissionLimits())
        for number in range(20_000):
            fill(queue, f"t{number}", 1, adapter=f"a{number}")
            served(queue, 1)
        assert len(queue._service) < 5000
        assert len(queue._adapter_service) < 5000

    def test_tokens_that_wait_are_counted(self) -> None:
        queue = FairQueue(AdmissionLimits())
        fill(queue, "t", 3, num_tokens=7)
        one = served(queue, 1)[0]
        assert (len(queue), queue.num_tokens, queue.remove(one)) == (2, 14, False)
        queue.remove_adapter("a")
        assert (len(queue), queue.num_tokens) == (0, 0)


class TestStepCost:
    COST = StepCost(base_bytes=100e6, base_flops_per_row=50e6, bytes_per_s=10e9, flops_per_s=30e9)

    def test_a_memory_bound_step_has_room_for_what_it_reads(self) -> None:
        assert self.COST.base_s(1) == pytest.approx(0.01)
        assert self.COST.max_distinct(4, 4e6, share=0.1) == 2

    def test_a_compute_bound_step_has_room_for_more(self) -> None:
        assert self.COST.base_s(32) == pytest.approx(32 * 50e6 / 30e9)
        assert self.COST.max_distinct(32, 4e6, share=0.1) == 13

    def test_never_more_than_rows_nor_less_than_one(self) -> None:
        assert self.COST.max_distinct(4, 4e6, share=10.0) == 4
        assert self.COST.max_distinct(4, 4e6, share=1e-9) == 1

    def test_is_measured_for_a_base(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(bytes(1000))
        cost = measure_step_cost(tmp_path)
        assert (cost.base_bytes, cost.base_flops_per_row) == (1000, 500)
        assert cost.bytes_per_s > 1e8
        assert cost.flops_per_s > 1e8
