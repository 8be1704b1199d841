"""Who comes first on the engine's thread: people, then scoring; and that scoring isn't starved."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from openlora_models import Served, prompt_of, request, run, tokens_of

from openledger.core.errors import Conflict
from openledger.core.values import TokenEvent
from openledger.openlora.step_thread import StepThread
from openledger.openlora.torch_engine import TorchEngine


class Reader:
    """Collects one request's events; `ended` is set with the last."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self.ended = threading.Event()
        self.ended_at = 0.0

    def __call__(self, event: TokenEvent) -> None:
        self.events.append(event)
        if event.is_last:
            self.ended_at = time.monotonic()
            self.ended.set()


class Busy:
    """An engine whose people's steps take 4 ms each of a clock that only moves when told. `wait` says whether there
    are any people; `background_s` is what `part` took."""

    def __init__(self, engine: TorchEngine, patch: pytest.MonkeyPatch, background_share: float) -> None:
        self.engine, self.now_s, self.background_s, self.wait = engine, 0.0, 0.0, True
        patch.setattr(engine, "has_work", lambda: self.wait)
        patch.setattr(engine, "step", self._step)
        self.thread = StepThread(engine, background_share, clock=lambda: self.now_s)

    def part(self, part_s: float) -> None:
        self.now_s += part_s
        self.background_s += part_s
        self.engine._give_way()

    def share_of(self, background_s: float, part_s: float) -> float:
        """Of the time that passes until the background has done so much."""
        begin_s, self.background_s = self.now_s, 0.0
        while self.background_s < background_s:
            self.part(part_s)
        return self.background_s / (self.now_s - begin_s)

    def _step(self) -> list[TokenEvent]:
        self.now_s += 0.004
        return []


@pytest.fixture
def thread(engine: TorchEngine) -> Iterator[StepThread]:
    thread = StepThread(engine)
    yield thread
    thread.stop()


class TestPriority:
    def test_who_comes_while_scoring_goes_on_is_answered_before_it_ends(
        self, served: Served, engine: TorchEngine, thread: StepThread
    ) -> None:
        """120 passes of scoring in one call; the answers come out of its middle, and neither changes the other."""
        digests = [*served.digests.values(), ""] * 30
        asked = request("person", prompt_of(9), served.digests["two"])
        expected = tokens_of(run(engine, asked)["person"])
        plain = engine.score(prompt_of(90), prompt_of(30), digests[:4])
        began, order = threading.Event(), []

        def score() -> np.ndarray:
            began.set()
            scores = engine.score(prompt_of(90), prompt_of(30), digests)
            order.append("scored")
            return scores

        scoring = thread.call(score, background=True)
        began.wait(10)
        reader = Reader()
        thread.submit(asked, reader)
        assert reader.ended.wait(30)
        order.append("answered")
        scores = scoring.result(60)
        assert order == ["answered", "scored"]
        assert tokens_of(reader.events) == expected
        np.testing.assert_allclose(scores, np.tile(plain, (30, 1)), atol=1e-5)

    def test_background_gets_a_share_where_people_never_leave_a_gap(self, engine: TorchEngine) -> None:
        thread, readers = StepThread(engine, background_share=0.3), list[Reader]()

        def ask_again(event: TokenEvent | None = None) -> None:
            if event is None or (event.is_last and not scoring.done()):
                number = len(readers)
                readers.append(Reader())
                thread.submit(request(str(number), prompt_of(5), max_tokens=50, ignore_end=True), ask_again)

        scoring = thread.call(lambda: engine.score(prompt_of(9), prompt_of(9), [""]), background=True)
        ask_again()
        assert scoring.result(60).shape == (1, 9)
        thread.stop()

    @pytest.mark.parametrize("part_s", [0.0002, 0.002, 0.02])
    def test_the_share_is_met_however_long_the_parts_between_giving_way_are(
        self, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch, part_s: float
    ) -> None:
        busy = Busy(engine, monkeypatch, background_share=0.03)
        share = busy.thread.call(lambda: busy.share_of(1.0, part_s), background=True).result(60)
        busy.thread.stop()
        assert share == pytest.approx(0.03, rel=0.03)

    def test_many_short_calls_share_as_one_long_one(self, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        busy = Busy(engine, monkeypatch, background_share=0.03)

        def part() -> float:
            busy.now_s += 0.001
            return busy.now_s

        def ask() -> list["Future[float]"]:
            return [busy.thread.call(part, background=True) for _ in range(500)]

        first_s, *_, last_s = [call.result(60) for call in busy.thread.call(ask).result(60)]
        busy.thread.stop()
        assert 0.5 / (last_s - first_s) == pytest.approx(0.03, rel=0.03)

    def test_time_used_while_nobody_waits_is_no_debt(
        self, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        busy = Busy(engine, monkeypatch, background_share=0.03)

        def score() -> tuple[float, float]:
            busy.wait = False
            alone = busy.share_of(100.0, 0.002)
            busy.wait = True
            return alone, busy.share_of(1.0, 0.002)

        alone, beside = busy.thread.call(score, background=True).result(60)
        busy.thread.stop()
        assert alone > 0.9999
        assert beside == pytest.approx(0.03, rel=0.03)

    def test_time_that_nobody_wanted_is_not_saved_up(
        self, engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A minute of people's time without scoring: what scores then is lent 5 ms, as after a sixth of a second."""
        busy = Busy(engine, monkeypatch, background_share=0.03)
        while busy.now_s < 60:
            time.sleep(0.001)
        share = busy.thread.call(lambda: busy.share_of(0.1, 0.001), background=True).result(60)
        busy.thread.stop()
        assert share == pytest.approx(0.03, rel=0.1)

    def test_an_adapter_that_is_scored_under_stays(
        self, served: Served, engine: TorchEngine, thread: StepThread
    ) -> None:
        digest = served.digests["one"]
        began = threading.Event()

        def score() -> np.ndarray:
            began.set()
            return engine.score(prompt_of(90), prompt_of(30), [digest] * 60)

        scoring = thread.call(score, background=True)
        began.wait(10)
        with pytest.raises(Conflict):
            thread.call(lambda: engine.unload(digest)).result(30)
        assert not scoring.done()
        scoring.result(60)
        thread.call(lambda: engine.unload(digest)).result(30)

    def test_all_that_a_step_said_is_told_at_once(self, engine: TorchEngine) -> None:
        """Eight answers begun together: their reader is woken once for each step, after the last of its events."""
        events: list[TokenEvent] = []
        seen: list[int] = []
        thread = StepThread(engine, told=lambda: seen.append(len(events)))
        asked = [request(str(number), prompt_of(5), max_tokens=4, ignore_end=True) for number in range(8)]
        thread.call(lambda: [thread._add(each, events.append) for each in asked]).result(10)
        while sum(event.is_last for event in events) < 8:
            time.sleep(0.001)
        thread.stop()
        assert seen[:4] == [8, 16, 24, 32]

    def test_several_answers_reach_one_reader(self, thread: StepThread) -> None:
        reader = Reader()
        thread.submit(request("r", prompt_of(5), num_answers=3, temperature=1.0, seed=1), reader)
        assert reader.ended.wait(30)
        assert sum(event.finish_reason is not None for event in reader.events) == 3

    def test_a_step_that_fails_in_the_middle_of_scoring_fails_the_engine(
        self, engine: TorchEngine, thread: StepThread, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(engine, "_compute", broken)
        began = threading.Event()

        def score() -> np.ndarray:
            began.set()
            return engine.score(prompt_of(90), prompt_of(30), [""] * 300)

        scoring = thread.call(score, background=True)
        began.wait(10)
        reader = Reader()
        thread.submit(request("r", prompt_of(5)), reader)
        assert reader.ended.wait(30)
        assert (reader.events[-1].error or {})["code"] == "engine_stopped"
        assert isinstance(thread.failure, RuntimeError)
        with pytest.raises(RuntimeError, match="a bug"):
            scoring.result(10)
