"""Answers that fit a grammar, and grammars that nobody can serve."""

import json
import re
import time
from typing import Any

import pytest
from jsonschema import validate
from openlora_models import END, prompt_of, request, run, text_of, tokens_of

from openledger.core.values import Grammar, TokenEvent
from openledger.openlora.torch_engine import TorchEngine

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "maximum": 999}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},  # a random model would write spaces till its tokens are used up
}


def _asked(name: str, grammar: Grammar, **sampling: Any) -> Any:
    return request(
        name, prompt_of(9), **{"max_tokens": 100, "temperature": 1.0, "seed": 3, "grammar": grammar, **sampling}
    )


def _code(events: list[TokenEvent]) -> str | None:
    return (events[-1].error or {}).get("code")


class TestAnswers:
    def test_fit_a_schema(self, engine: TorchEngine) -> None:
        grammar = Grammar(kind="json_schema", text=json.dumps(SCHEMA))
        events = run(engine, *(_asked(str(seed), grammar, seed=seed) for seed in range(4)))
        for each in events.values():
            assert each[-1].finish_reason == "stop"
            validate(json.loads(text_of(each)), SCHEMA)

    def test_fit_a_regular_expression_greedily_too(self, engine: TorchEngine) -> None:
        events = run(engine, _asked("r", Grammar(kind="regex", text="[ab]{3}-[0-9]{2}"), temperature=0.0))["r"]
        assert re.fullmatch("[ab]{3}-[0-9]{2}", text_of(events))
        assert events[-1].finish_reason == "stop"

    def test_fit_a_lark_grammar(self, engine: TorchEngine) -> None:
        events = run(engine, _asked("r", Grammar(kind="lark", text='start: "yes" | "no"')))["r"]
        assert text_of(events) in ("yes", "no")

    def test_json_object_begins_as_one(self, engine: TorchEngine) -> None:
        events = run(engine, _asked("r", Grammar(kind="json_object"), max_tokens=30))["r"]
        assert text_of(events).startswith("{")

    def test_end_only_where_the_grammar_may_end(self, engine: TorchEngine) -> None:
        events = run(engine, _asked("r", Grammar(kind="regex", text="a{3,6}"), temperature=5.0))["r"]
        assert END not in tokens_of(events)[:-1]
        assert re.fullmatch("a{3,6}", text_of(events))

    def test_each_of_many_has_its_own_place_in_it(self, engine: TorchEngine) -> None:
        grammar = Grammar(kind="regex", text="[a-z]{4}!")
        events = run(engine, _asked("r", grammar, num_answers=3))["r"]
        texts = [text_of([event for event in events if event.index == index]) for index in range(3)]
        assert all(re.fullmatch("[a-z]{4}!", text) for text in texts)
        assert len(set(texts)) == 3

    def test_others_in_the_batch_are_free(self, engine: TorchEngine) -> None:
        free = request("free", prompt_of(9))
        expected = run(engine, free)["free"]
        events = run(engine, free, _asked("bound", Grammar(kind="regex", text="[01]{9}")))
        assert tokens_of(events["free"]) == tokens_of(expected)


class TestRefused:
    @pytest.mark.parametrize(
        "grammar",
        [
            Grammar(kind="json_schema", text="{"),
            Grammar(kind="json_schema", text='{"type": "nonsense"}'),
            Grammar(kind="json_schema", text='{"$ref": "http://127.0.0.1/schema"}'),
            Grammar(kind="regex", text="(("),
            Grammar(kind="regex", text="(" * 100 + ")" * 100),
            Grammar(kind="lark", text="start: nothing"),
            Grammar(kind="lark", text="x" * 70_000),
            Grammar(kind="json_schema", text="[" * 5000 + "]" * 5000),
            Grammar(kind="regex", text="(((((a{1000}){1000}){1000}){1000}){1000})"),
            Grammar(kind="poem", text="roses"),  # type: ignore[arg-type]
        ],
        ids=range(10),
    )
    def test_by_name_and_nobody_else_notices(self, engine: TorchEngine, grammar: Grammar) -> None:
        good = request("good", prompt_of(9))
        expected = run(engine, good)["good"]
        begin = time.monotonic()
        events = run(engine, _asked("bad", grammar), good)
        assert _code(events["bad"]) == "invalid_grammar"
        assert events["bad"][-1].error is not None
        assert events["bad"][-1].error["param"] == "grammar"
        assert tokens_of(events["good"]) == tokens_of(expected)
        assert time.monotonic() - begin < 30
        assert not engine.has_work()

    def test_one_that_grows_with_every_token_is_bounded(self, engine: TorchEngine) -> None:
        """Ambiguous without end: either it is answered, or the engine gives up on it by name."""
        grammar = Grammar(kind="lark", text='start: s\ns: s s s | s s | "a" | "aa" | ""')
        begin = time.monotonic()
        events = run(engine, _asked("r", grammar, max_tokens=60))["r"]
        assert _code(events) in (None, "invalid_grammar")
        assert time.monotonic() - begin < 30

    def test_one_whose_client_leaves_while_it_compiles(self, engine: TorchEngine) -> None:
        engine.add(_asked("r", Grammar(kind="json_schema", text=json.dumps(SCHEMA))))
        engine.cancel("r")
        assert [event.finish_reason for event in run(engine)["r"]] == ["cancelled"]
