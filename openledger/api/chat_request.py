"""The body of /v1/chat/completions, in OpenAI's words, and its translation into ours."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from openledger.api.sampling_body import MAX_LOGPROBS, Body, SamplingBody, without_nulls
from openledger.core.errors import InvalidInput
from openledger.core.values import SamplingParameters

_DEFAULT_TOKENS = SamplingParameters().max_tokens


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @model_validator(mode="before")
    @classmethod
    def _only_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        message = without_nulls(value)
        if isinstance(message.get("content"), list):
            message["content"] = "".join(_text_of(part) for part in message["content"])
        return message

    def plain(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class ChatRequest(SamplingBody):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] = 0

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise InvalidInput(
                "top_logprobs only goes with logprobs", code="invalid_field", param="top_logprobs", fix="set logprobs"
            )
        return self

    def sampling(self) -> SamplingParameters:
        max_tokens = self.max_completion_tokens or self.max_tokens or _DEFAULT_TOKENS
        return self.sampled(max_tokens, self.top_logprobs if self.logprobs else None)


def _text_of(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        text: str = part["text"]
        return text
    raise InvalidInput(
        "only text parts can be read", code="unsupported_content", param="messages", fix="send content as a string"
    )
