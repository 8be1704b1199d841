"""The body of /v1/chat/completions, in OpenAI's words, and its translation into ours.

Parameters that would change the answer and that we can't honour are refused by name; those that change nothing are
accepted and ignored; null means absent, as it does for OpenAI.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from openledger.core.errors import InvalidInput
from openledger.core.values import SamplingParameters

_DEFAULT = SamplingParameters()
_WITHOUT_EFFECT = {
    "metadata", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user", "parallel_tool_calls",
}  # fmt: skip
_ONLY_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
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
}

StopText = Annotated[str, Field(min_length=1, max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        message = _without_nulls(value)
        if isinstance(message.get("content"), list):
            message["content"] = "".join(_text_of(part) for part in message["content"])
        return message

    def plain(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatRequest(_Body):
    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = _DEFAULT.temperature
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = _DEFAULT.top_p
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[list[StopText], Field(max_length=4)] = []

    @model_validator(mode="before")
    @classmethod
    def _refuse_by_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        body = _without_nulls(value)
        for name in body.keys() & _ONLY_NEUTRAL.keys():
            _check_neutral(name, body.pop(name))
        if isinstance(body.get("stop"), str):
            body["stop"] = [body["stop"]]
        return {name: item for name, item in body.items() if name not in _WITHOUT_EFFECT}

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "ChatRequest":
        if self.stream_options is not None and not self.stream:
            raise InvalidInput(
                "stream_options only goes with stream", code="invalid_field", param="stream_options", fix="set stream"
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> SamplingParameters:
        return SamplingParameters(
            max_tokens=self.max_completion_tokens or self.max_tokens or _DEFAULT.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=tuple(self.stop),
        )


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
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


def _text_of(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    raise InvalidInput(
        "only text parts can be read", code="unsupported_content", param="messages", fix="send content as a string"
    )
