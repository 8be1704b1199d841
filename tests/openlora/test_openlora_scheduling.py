"""Requests join and leave between steps; memory is bounded; what leaves gives everything back."""

import pytest
from openlora_models import Served, prompt_of, request, run, text_of, tokens_of

from openledger.openlora.torch_engine import EngineOptions, TorchEngine


def _counts(engine: TorchEngine) -> tuple[int, int, int]:
    description = engine.describe()
    return description["running"], description["waiting"], description["free_slots"]


class TestAdmission:
    def test_without_room_requests_wait_and_all_finish(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=2))
        requests = [request(str(number), prompt_of(5 + number)) for number in range(7)]
        for each in requests:
            engine.add(each)
        engine.step()
        assert _counts(engine) == (2, 5, 0)
        events = run(engine)
        assert _counts(engine) == (0, 0, 2)
        roomy = run(TorchEngine(served.base, EngineOptions(max_batch=8)), *requests)
        assert all(
            tokens_of(roomy[each.request_id])[1:] == tokens_of(events[each.request_id])[-11:] for each in requests[:2]
        )
        assert all(tokens_of(roomy[each.request_id]) == tokens_of(events[each.request_id]) for each in requests[2:])

    def test_the_memory_limit_sets_the_number_of_blocks(self, served: Served) -> None:
        """A block takes 16 positions of 384 bytes."""
        engine = TorchEngine(served.base, EngineOptions(max_batch=8, kv_bytes=19 * 16 * 384 + 1))
        assert engine.describe()["free_blocks"] == 19
        assert engine.describe()["kv_bytes"] == 19 * 16 * 384

    def test_a_request_joins_a_running_batch_at_once(self, engine: TorchEngine) -> None:
        engine.add(request("first", prompt_of(5)))
        engine.step()
        engine.add(request("second", prompt_of(9)))
        assert {event.request_id for event in engine.step()} == {"first", "second"}

    def test_a_long_prompt_does_not_stop_the_others(self, served: Served) -> None:
        """Eight tokens a step: while 100 are read, the running request gets its token in every step."""
        engine = TorchEngine(served.base, EngineOptions(step_tokens=8))
        engine.add(request("short", prompt_of(4), max_tokens=30))
        engine.step()
        engine.add(request("long", prompt_of(100)))
        for _ in range(10):
            assert [event.request_id for event in engine.step()] == ["short"]


class TestPreemption:
    """Keys and values for 9 blocks, where four answers of 76 tokens would take 20."""

    def _engine(self, served: Served, **options: int) -> TorchEngine:
        engine = TorchEngine(served.base, EngineOptions(max_batch=8, kv_bytes=9 * 16 * 384, **options))
        engine.load(served.digests["one"], served.folders["one"])
        return engine

    @pytest.mark.parametrize("step_tokens", [512, 20])
    def test_answers_are_the_same_and_all_end(self, served: Served, engine: TorchEngine, step_tokens: int) -> None:
        requests = [
            request(str(number), prompt_of(26, number), served.digests["one"], max_tokens=50, ignore_end=True)
            for number in range(4)
        ]
        crowded = self._engine(served, step_tokens=step_tokens)
        events, expected = run(crowded, *requests), run(engine, *requests)
        assert crowded.describe()["preempted"] > 0
        for each in requests:
            assert tokens_of(events[each.request_id]) == tokens_of(expected[each.request_id])
            assert text_of(events[each.request_id]) == text_of(expected[each.request_id])
        assert crowded.describe()["free_blocks"] == 9

    def test_sampling_goes_on_where_it_was(self, served: Served, engine: TorchEngine) -> None:
        requests = [
            request(str(number), prompt_of(26, number), max_tokens=50, temperature=1.0, seed=number, ignore_end=True)
            for number in range(4)
        ]
        events, expected = run(self._engine(served), *requests), run(engine, *requests)
        assert {name: tokens_of(each) for name, each in events.items()} == {
            name: tokens_of(each) for name, each in expected.items()
        }

    def test_the_oldest_is_never_interrupted(self, served: Served) -> None:
        crowded = self._engine(served)
        for number in range(4):
            crowded.add(request(str(number), prompt_of(26, number), max_tokens=50, ignore_end=True))
        for _ in range(50):
            assert "0" in {event.request_id for event in crowded.step()}
        assert crowded.describe()["preempted"] > 0
        run(crowded)

    def test_one_that_fills_all_ends(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=4, kv_bytes=8 * 16 * 384))
        requests = [request(str(number), prompt_of(100, number), max_tokens=60, ignore_end=True) for number in range(3)]
        assert {len(tokens_of(events)) for events in run(engine, *requests).values()} == {28}


class TestCancel:
    def test_frees_the_slot_and_tells(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=1))
        engine.add(request("first", prompt_of(5), max_tokens=100))
        engine.add(request("second", prompt_of(9)))
        engine.step()
        engine.cancel("first")
        events = run(engine)
        assert [event.finish_reason for event in events["first"]] == ["cancelled"]
        assert events["second"][-1].finish_reason in ("stop", "length")
        assert _counts(engine) == (0, 0, 1)

    def test_while_waiting(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=1))
        for name in ("first", "second", "third"):
            engine.add(request(name, prompt_of(5)))
        engine.step()
        engine.cancel("second")
        events = run(engine)
        assert [event.finish_reason for event in events["second"]] == ["cancelled"]
        assert len(tokens_of(events["third"])) > 0

    def test_of_unknown_ids_is_ignored(self, engine: TorchEngine) -> None:
        engine.cancel("nobody")
        assert not engine.has_work()

    def test_others_are_not_disturbed(self, served: Served, engine: TorchEngine) -> None:
        requests = [request(name, prompt_of(6), digest) for name, digest in served.digests.items()]
        expected = run(engine, *requests)
        engine.add(request("leaves", prompt_of(20), served.digests["one"], max_tokens=50))
        for each in requests:
            engine.add(each)
        first = engine.step()
        engine.cancel("leaves")
        rest = run(engine)
        for each in requests:
            got = [event for event in first if event.request_id == each.request_id] + rest[each.request_id]
            assert tokens_of(got) == tokens_of(expected[each.request_id])
