from typing import Any

import pytest
import torch
from openlora_models import Served, prompt_of, request, run, tokens_of

from openledger.core.values import SamplingParameters, TokenEvent
from openledger.openlora.sampling import TokenChooser, choose_tokens
from openledger.openlora.torch_engine import EngineOptions, TorchEngine


def _draw(logits: list[float], count: int = 400, **sampling: float) -> list[int]:
    chooser = TokenChooser(SamplingParameters(**{"temperature": 1.0, "seed": 3, **sampling}))  # type: ignore[arg-type]
    return [chooser.choose(torch.tensor(logits)) for _ in range(count)]


class TestChooser:
    def test_follows_the_probabilities(self) -> None:
        """ln 3 apart: three to one."""
        assert 0.70 < _draw([1.0986, 0.0], 2000).count(0) / 2000 < 0.80

    def test_temperature_flattens(self) -> None:
        assert _draw([2.0, 0.0], temperature=10.0).count(1) > _draw([2.0, 0.0], temperature=0.5).count(1) + 50

    def test_top_p_keeps_the_smallest_set_that_reaches_it(self) -> None:
        """Probabilities 0.5, 0.3, 0.2."""
        logits = torch.tensor([0.5, 0.3, 0.2]).log().tolist()
        assert set(_draw(logits, top_p=0.49)) == {0}
        assert set(_draw(logits, top_p=0.6)) == {0, 1}
        assert set(_draw(logits, top_p=0.81)) == {0, 1, 2}

    def test_a_vanishing_temperature_is_greedy(self) -> None:
        assert set(_draw([1.0, 2.0, 1.5], temperature=1e-6)) == {1}

    def test_top_k_keeps_so_many(self) -> None:
        assert set(_draw([1.0, 0.9, 0.8, 0.7], top_k=2)) == {0, 1}
        assert set(_draw([1.0, 0.9, 0.8, 0.7], top_k=99)) == {0, 1, 2, 3}

    def test_min_p_is_relative_to_the_likeliest(self) -> None:
        """Probabilities 0.5, 0.3, 0.2: 0.2 is 0.4 of the first."""
        logits = torch.tensor([0.5, 0.3, 0.2]).log().tolist()
        assert set(_draw(logits, min_p=0.41)) == {0, 1}
        assert set(_draw(logits, min_p=0.39)) == {0, 1, 2}

    def test_a_large_vocabulary_is_drawn_from_alike(self) -> None:
        """With top-p not all tokens are sorted; the choice is the same as when they were."""
        logits = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 4
        whole = TokenChooser(SamplingParameters(temperature=1.0, seed=5, top_p=0.9, top_k=5000))
        short = TokenChooser(SamplingParameters(temperature=1.0, seed=5, top_p=0.9))
        flat = TokenChooser(SamplingParameters(temperature=50.0, seed=5, top_p=0.9))
        assert [whole.choose(logits) for _ in range(50)] == [short.choose(logits) for _ in range(50)]
        assert len({flat.choose(logits) for _ in range(300)}) > 200

    def test_rows_that_are_not_finite_give_none(self) -> None:
        logits = torch.tensor([[0.0, 1.0], [0.0, float("nan")], [float("inf"), 0.0], [1.0, 0.0]])
        greedy = TokenChooser(SamplingParameters())
        assert choose_tokens(logits, [greedy] * 4) == [1, None, None, 0]


class TestPenalties:
    def _tokens(self, logits: list[float], count: int, prompt: tuple[int, ...] = (), **sampling: Any) -> list[int]:
        chooser = TokenChooser(SamplingParameters(**sampling), prompt)
        tokens = []
        for _ in range(count):
            tokens.append(chooser.choose(torch.tensor(logits)))
            chooser.accept(tokens[-1])
        return tokens

    def test_presence_counts_once(self) -> None:
        assert self._tokens([1.0, 0.6, 0.0], 4, presence_penalty=0.5) == [0, 1, 0, 0]

    def test_frequency_counts_each_time(self) -> None:
        assert self._tokens([1.0, 0.6, 0.0], 5, frequency_penalty=0.3) == [0, 0, 1, 0, 1]

    def test_repetition_divides_what_is_positive_and_multiplies_the_rest_prompt_included(self) -> None:
        assert self._tokens([1.0, 0.6, 0.4], 2, prompt=(0,), repetition_penalty=2.0) == [1, 0]
        assert self._tokens([-0.5, -0.6, -2.0], 3, repetition_penalty=1.5) == [0, 1, 0]

    def test_a_negative_one_favours_what_was_said(self) -> None:
        assert self._tokens([1.0, 0.9], 3, prompt=(1,), presence_penalty=-1.0) == [0, 0, 0]

    def test_they_change_an_answer_and_no_other(self, engine: TorchEngine) -> None:
        plain = request("plain", prompt_of(9), max_tokens=30, ignore_end=True)
        varied = request("varied", prompt_of(9), max_tokens=30, ignore_end=True, frequency_penalty=2.0)
        expected = run(engine, plain)["plain"]
        events = run(engine, plain, varied)
        assert tokens_of(events["plain"]) == tokens_of(expected)
        assert len(set(tokens_of(events["varied"]))) > len(set(tokens_of(expected)))


class TestLogprobs:
    def test_equal_a_plain_forward(self, served: Served, engine: TorchEngine) -> None:
        asked = request("r", prompt_of(9), served.digests["one"], max_tokens=8, logprobs=3, ignore_end=True)
        events = run(engine, asked)["r"]
        tokens = tokens_of(events)
        scores = engine.score(prompt_of(9), tokens, [served.digests["one"]])[0]
        for event, token, expected in zip(events, tokens, scores, strict=True):
            [logprob] = event.logprobs
            assert logprob.token_id == token
            assert abs(logprob.logprob - expected) < 1e-4
            assert len(logprob.top) == 3
            assert logprob.top[0] == (token, logprob.logprob)  # greedy
            assert [value for _, value in logprob.top] == sorted((v for _, v in logprob.top), reverse=True)

    def test_are_of_the_model_whatever_is_sampled(self, engine: TorchEngine) -> None:
        asked = request("r", prompt_of(9), temperature=3.0, seed=1, frequency_penalty=1.0, logprobs=0)
        events = run(engine, asked)["r"]
        scores = engine.score(prompt_of(9), tokens_of(events), [""])[0]
        assert max(abs(e.logprobs[0].logprob - s) for e, s in zip(events, scores, strict=True)) < 1e-4
        assert events[0].logprobs[0].top == ()

    def test_are_absent_unless_asked_for(self, engine: TorchEngine) -> None:
        assert {event.logprobs for event in run(engine, request("r", prompt_of(9)))["r"]} == {()}

    @pytest.mark.parametrize("step_tokens", [512, 7])
    def test_of_the_prompt_equal_a_plain_forward(self, served: Served, step_tokens: int) -> None:
        """In one piece and in many; asked again, when the prompt is known, they are there as well."""
        engine = TorchEngine(served.base, EngineOptions(step_tokens=step_tokens))
        prompt = prompt_of(40)
        scores = engine.score(prompt[:1], prompt[1:], [""])[0]
        for name in ("first", "again"):
            events = run(engine, request(name, prompt, prompt_logprobs=2, max_tokens=3))[name]
            got = events[0].prompt_logprobs
            assert (len(got), got[0]) == (40, None)
            assert [each.token_id for each in got[1:] if each] == prompt[1:]
            assert max(abs(each.logprob - s) for each, s in zip(got[1:], scores, strict=True) if each) < 1e-4
            assert {event.prompt_logprobs for event in events[1:]} <= {()}

    def test_of_the_prompt_with_one_token_wanted(self, engine: TorchEngine) -> None:
        """What lm-eval asks: everything comes with the one event."""
        [event] = run(engine, request("r", prompt_of(20), prompt_logprobs=1, logprobs=1, max_tokens=1))["r"]
        assert (len(event.prompt_logprobs), len(event.logprobs), event.is_last) == (20, 1, True)


class TestManyAnswers:
    def _by_index(self, events: list[TokenEvent]) -> dict[int, list[int]]:
        return {index: tokens_of([e for e in events if e.index == index]) for index in {e.index for e in events}}

    def test_each_is_what_its_own_seed_gives(self, engine: TorchEngine) -> None:
        events = run(engine, request("r", prompt_of(20), temperature=1.0, seed=5, num_answers=3))["r"]
        for index, tokens in self._by_index(events).items():
            alone = run(engine, request("alone", prompt_of(20), temperature=1.0, seed=5 + index))["alone"]
            assert tokens == tokens_of(alone)
        assert len(self._by_index(events)) == 3

    def test_one_event_is_the_last(self, engine: TorchEngine) -> None:
        events = run(engine, request("r", prompt_of(20), temperature=1.0, seed=5, num_answers=4))["r"]
        assert [event.is_last for event in events] == [False] * (len(events) - 1) + [True]
        assert sum(event.finish_reason is not None for event in events) == 4
        assert not engine.has_work()

    def test_the_prompt_is_computed_once(self, engine: TorchEngine) -> None:
        events = run(engine, request("r", prompt_of(50), temperature=1.0, seed=5, num_answers=3))["r"]
        ends = {event.index: event.usage for event in events if event.finish_reason}
        assert [ends[index].cached_tokens for index in range(3) if ends[index]] == [0, 48, 48]

    def test_more_than_places_wait_for_their_turn(self, served: Served) -> None:
        engine = TorchEngine(served.base, EngineOptions(max_batch=2))
        events = run(engine, request("r", prompt_of(20), temperature=1.0, seed=5, num_answers=5))["r"]
        assert set(self._by_index(events)) == set(range(5))

    def test_even_where_one_token_is_wanted(self, engine: TorchEngine) -> None:
        events = run(engine, request("r", prompt_of(20), max_tokens=1, num_answers=3))["r"]
        assert [(event.index, event.num_open) for event in events] == [(0, 2), (1, 1), (2, 0)]

    def test_cancelling_ends_all(self, engine: TorchEngine) -> None:
        engine.add(request("r", prompt_of(20), max_tokens=50, num_answers=3, ignore_end=True))
        engine.step()
        engine.step()
        engine.cancel("r")
        events = engine.step()
        assert [event.finish_reason for event in events] == ["cancelled"] * 3
        assert [event.is_last for event in events] == [False, False, True]
        assert not engine.has_work()


class TestSeeds:
    def test_the_same_seed_gives_the_same_answer_in_any_batch(self, served: Served) -> None:
        mine = request("r", prompt_of(9), temperature=1.0, top_p=0.9, seed=11)
        others = [request(str(number), prompt_of(4), temperature=1.0, seed=number) for number in range(3)]
        alone = run(TorchEngine(served.base, EngineOptions(max_batch=1)), mine)["r"]
        assert tokens_of(run(TorchEngine(served.base), *others, mine)["r"]) == tokens_of(alone)

    def test_seeds_differ(self, engine: TorchEngine) -> None:
        requests = [request(str(seed), prompt_of(9), temperature=2.0, seed=seed) for seed in range(4)]
        assert len({tuple(tokens_of(events)) for events in run(engine, *requests).values()}) == 4

    def test_any_integer_is_a_seed(self, engine: TorchEngine) -> None:
        requests = [request(str(seed), prompt_of(3), temperature=1.0, seed=seed) for seed in (-1, 1 << 80)]
        assert all(events[-1].finish_reason in ("stop", "length") for events in run(engine, *requests).values())
