"""The body of /v1/completions: text or token ids, one prompt or several, echoed where asked."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from openledger.api.sampling_body import MAX_ANSWERS, MAX_LOGPROBS, SamplingBody
from openledger.core.errors import InvalidInput
from openledger.core.values import SamplingParameters

_DEFAULT_TOKENS = 16  # OpenAI's for this resource
_MAX_PROMPT_TOKENS = 1_000_000

TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=_MAX_PROMPT_TOKENS)]
Prompts = (
    Annotated[list[str], Field(min_length=1, max_length=MAX_ANSWERS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_ANSWERS)]
)


class CompletionRequest(SamplingBody):
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = _DEFAULT_TOKENS
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_prompt_is_a_list_of_one(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        prompt = value.get("prompt")
        single = isinstance(prompt, str) or (isinstance(prompt, list) and prompt and type(prompt[0]) is int)
        return {**value, "prompt": [prompt]} if single else value

    @model_validator(mode="after")
    def _bounded(self) -> "CompletionRequest":
        if len(self.prompt) * self.n > MAX_ANSWERS:
            raise InvalidInput(
                f"{len(self.prompt)} prompts with n={self.n} are over {MAX_ANSWERS} answers",
                code="invalid_field",
                param="n",
                fix="send them in several requests",
            )
        if self.stream and self.echo:
            raise InvalidInput(
                "echo is not streamed", code="unsupported_parameter", param="echo", fix="leave stream or echo out"
            )
        return self

    def prompts(self) -> Sequence[str | Sequence[int]]:
        return self.prompt

    def sampling(self) -> SamplingParameters:
        return self.sampled(self.max_tokens, self.logprobs, self.logprobs if self.echo else None)
