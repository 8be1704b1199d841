"""What the bodies of chat and text completions share: how to choose tokens, in OpenAI's and vLLM's words.

Parameters that would change the answer and that we can't honour are refused by name; those that change nothing are
accepted and ignored; null means absent, as it does for OpenAI.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from openledger.core.errors import InvalidInput
from openledger.core.values import Grammar, SamplingParameters
from openledger.platform.ensembles import MAX_ADAPTERS

_DEFAULT = SamplingParameters()
MAX_ANSWERS = 64
MAX_LOGPROBS = 20
_MAX_GRAMMAR_CHARACTERS = 65_536
_MAX_WEIGHT = 16.0
_WITHOUT_EFFECT = {
    "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user", "parallel_tool_calls",
}  # fmt: skip
_ONLY_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
    "suffix": ("",),
    "best_of": (1,),
}

StopText = Annotated[str, Field(min_length=1, max_length=256)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


class Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Body):
    """OpenAI's wrapper around a JSON Schema. It is always followed exactly, whatever `strict` says."""

    name: str = ""
    description: str = ""
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool = True


class ResponseFormat(Body):
    """`regex` and `lark` are ours: what OpenAI has no word for."""

    type: Literal["text", "json_object", "json_schema", "regex", "lark"]
    json_schema: JsonSchema | None = None
    pattern: Annotated[str, Field(max_length=_MAX_GRAMMAR_CHARACTERS)] | None = None
    grammar: Annotated[str, Field(max_length=_MAX_GRAMMAR_CHARACTERS)] | None = None

    def plain(self) -> Grammar | None:
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar(kind="json_object")
        if self.type == "json_schema":
            return Grammar(kind="json_schema", text=self._schema())
        text = self.pattern if self.type == "regex" else self.grammar
        if not text:
            raise self._missing("pattern" if self.type == "regex" else "grammar")
        return Grammar(kind=self.type, text=text)

    def _schema(self) -> str:
        if self.json_schema is None:
            raise self._missing("json_schema")
        text = json.dumps(self.json_schema.schema_)
        if len(text) > _MAX_GRAMMAR_CHARACTERS:
            raise InvalidInput(
                f"the schema has {len(text)} characters, the limit is {_MAX_GRAMMAR_CHARACTERS}",
                code="invalid_field",
                param="response_format",
            )
        return text

    def _missing(self, name: str) -> InvalidInput:
        return InvalidInput(f"{self.type} needs {name}", code="invalid_field", param=f"response_format.{name}")


class WeightedAdapter(Body):
    model: Annotated[str, Field(min_length=1, max_length=256)]
    weight: Annotated[float, Field(gt=0, le=_MAX_WEIGHT, allow_inf_nan=False)]


class SamplingBody(Body):
    """`adapters` is ours: where it names some, all of them answer together, and `model` is the base that they are
    of."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    adapters: Annotated[list[WeightedAdapter], Field(max_length=MAX_ADAPTERS)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] = 1
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = _DEFAULT.temperature
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = _DEFAULT.top_p
    top_k: Annotated[int, Field(ge=-1, le=2**31)] = _DEFAULT.top_k
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = _DEFAULT.min_p
    presence_penalty: Penalty = _DEFAULT.presence_penalty
    frequency_penalty: Penalty = _DEFAULT.frequency_penalty
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = _DEFAULT.repetition_penalty
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[StopText], Field(max_length=4)] = []
    ignore_eos: bool = _DEFAULT.ignore_end
    response_format: ResponseFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        body = without_nulls(value)
        for name in body.keys() & _ONLY_NEUTRAL.keys():
            _check_neutral(name, body.pop(name))
        if isinstance(body.get("stop"), str):
            body["stop"] = [body["stop"]]
        return {name: item for name, item in body.items() if name not in _WITHOUT_EFFECT}

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "SamplingBody":
        if self.stream_options is not None and not self.stream:
            raise InvalidInput(
                "stream_options only goes with stream", code="invalid_field", param="stream_options", fix="set stream"
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def weighted(self) -> list[tuple[str, float]]:
        return [(adapter.model, adapter.weight) for adapter in self.adapters]

    def sampled(self, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None = None) -> SamplingParameters:
        return SamplingParameters(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            num_answers=self.n,
            ignore_end=self.ignore_eos,
            grammar=None if self.response_format is None else self.response_format.plain(),
        )


def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if item is not None}


def _check_neutral(name: str, value: Any) -> None:
    neutral = _ONLY_NEUTRAL[name]
    if value not in neutral:
        raise InvalidInput(
            f"{name} is not supported here",
            code="unsupported_parameter",
            param=name,
            fix=f"leave {name} out" + (f" or send {neutral[0]!r}" if neutral else ""),
        )
