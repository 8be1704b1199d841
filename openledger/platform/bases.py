"""The base models behind one gateway: which engine computes with each, how text becomes its tokens, and what it is
sold for by itself.

An adapter names its base by digest. One that doesn't is of the first base, the only one where there is one.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from openledger.adapters.base_model import BaseModel, encode_messages, load_tokenizer
from openledger.adapters.registry import AdapterRegistry, RegisteredAdapter
from openledger.core.errors import InvalidInput, NotFound, TooLarge, Unavailable
from openledger.core.values import AdapterTerms
from openledger.openlora.inbox import EventInbox
from openledger.openlora.text import decoder
from openledger.platform.asking import EngineCalls

MAX_EMBEDDED_TOKENS = 65_536
_MAX_EMBEDDED_CHARACTERS = 16 * MAX_EMBEDDED_TOKENS  # no prose has so many to a token: not worth the tokenizer's time


class ServedBase:
    """`engine` is the handle of the base's OpenLoRA deployment."""

    def __init__(self, base: BaseModel, engine: Any, inbox: EventInbox | None = None):
        self.base = base
        self.calls = EngineCalls(engine, inbox)
        self.tokenizer = load_tokenizer(base)
        self.decode = decoder(self.tokenizer)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Raises InvalidInput (`empty_prompt`, `context_length_exceeded`)."""
        return self._fitting(encode_messages(self.tokenizer, list(messages)), "messages")

    def encode_plain(
        self, prompt: str | Sequence[int], *, echo: bool, param: str = "prompt"
    ) -> tuple[list[int], str | None]:
        """Token ids, and the text to tell with the answer. What ids are of this vocabulary is the engine's to say."""
        is_text = isinstance(prompt, str)
        prompt_ids = list(self.tokenizer(prompt)["input_ids"] if is_text else prompt)
        if not prompt_ids:
            raise InvalidInput("the prompt is empty", code="empty_prompt", param=param, fix="send some text")
        if not all(0 <= token < self._num_known for token in prompt_ids):
            raise InvalidInput(
                f"token ids must be 0 to {self._num_known - 1}",
                code="invalid_token",
                param=param,
                fix="encode the prompt with this base model's tokenizer, or send text",
            )
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt_ids) if echo else ""
        return self._fitting(prompt_ids, param), text if echo else None

    def encode_inputs(self, inputs: Sequence[str | Sequence[int]]) -> tuple[tuple[int, ...], ...]:
        """What is to be embedded, as token ids. Raises TooLarge (`too_many_tokens`)."""
        _check_embedded(sum(len(each) for each in inputs if isinstance(each, str)), _MAX_EMBEDDED_CHARACTERS)
        _check_embedded(sum(len(each) for each in inputs if not isinstance(each, str)), MAX_EMBEDDED_TOKENS)
        ids: list[tuple[int, ...]] = []
        num_tokens = 0
        for each in inputs:
            ids.append(tuple(self.encode_plain(each, echo=False, param="input")[0]))
            num_tokens += len(ids[-1])
            _check_embedded(num_tokens, MAX_EMBEDDED_TOKENS)
        return tuple(ids)

    @cached_property
    def _num_known(self) -> int:
        return len(self.tokenizer)  # it counts each time

    def _fitting(self, prompt_ids: list[int], param: str) -> list[int]:
        if len(prompt_ids) >= self.base.max_positions:
            raise InvalidInput(
                f"the prompt has {len(prompt_ids)} tokens; the context holds {self.base.max_positions}",
                code="context_length_exceeded",
                param=param,
                fix="shorten the conversation",
            )
        return prompt_ids


class Bases:
    """`engines` has the handle of each base's deployment; the first base is the one of adapters that name none.
    Raises InvalidInput (`base_named_twice`)."""

    def __init__(self, engines: Mapping[BaseModel, Any], inbox: EventInbox | None = None):
        self._by_digest = {base.digest: ServedBase(base, engine, inbox) for base, engine in engines.items()}
        if len(self._by_digest) < len(engines):
            raise twice(", ".join(base.name for base in engines))

    def __iter__(self) -> Iterator[ServedBase]:
        return iter(self._by_digest.values())

    def of(self, adapter: RegisteredAdapter) -> ServedBase:
        """Raises Unavailable (`base_not_served`)."""
        if not adapter.base_digest:
            return next(iter(self))
        found = self._by_digest.get(adapter.base_digest)
        if found is None:
            raise Unavailable(
                f"{adapter.name!r} is of the base model {adapter.base_digest[:12]}, which isn't served here",
                code="base_not_served",
                param="model",
                fix="ask a model of another base; the operator adds this one to base_models and deploys again",
            )
        return found

    def named(self, name: str) -> ServedBase:
        """Raises InvalidInput (`invalid_ensemble`)."""
        found = next((each for each in self if each.base.name == name), None)
        if found is None:
            raise InvalidInput(
                f"{name!r} is no base model that is served here",
                code="invalid_ensemble",
                param="model",
                fix="with adapters, model names the base that they are of; the list of models says it of each",
            )
        return found

    def name_of(self, adapter: RegisteredAdapter) -> str:
        """What the adapter's base is called; the beginning of its digest where it isn't served."""
        is_known = not adapter.base_digest or adapter.base_digest in self._by_digest
        return self.of(adapter).base.name if is_known else adapter.base_digest[:12]


def offer_base(registry: AdapterRegistry, base: BaseModel, owner: str, prices: tuple[int, int]) -> None:
    """Sell the base by itself, under its name, at `prices` (nano-OPEN for each prompt and completion token); without an
    `owner`, no more. Raises Conflict (`adapter_exists`) where an adapter has its name."""
    sold = _sold_base(registry, base.name)
    if not owner:
        if sold is not None:
            registry.retire(base.name)
        return
    terms = AdapterTerms(
        adapter=base.name,
        adapter_digest=base.digest,
        datanet="",
        datanet_version=0,
        row_root="",
        owner_account=owner,
        prompt_price_nano=prices[0],
        completion_price_nano=prices[1],
    )
    enter = registry.register if sold is None or sold.digest == base.digest else registry.switch
    enter(base.name, None, base.digest, terms, source=base.path, base_digest=base.digest)


def _sold_base(registry: AdapterRegistry, name: str) -> RegisteredAdapter | None:
    """The base that is sold as `name` now."""
    try:
        found = registry.get(name)
    except NotFound:
        return None
    return found if found.is_base else None


def twice(names: str) -> InvalidInput:
    return InvalidInput(
        f"the base models {names} are not all different",
        code="base_named_twice",
        param="base_models",
        fix="name each base model once, in folders of different names",
    )


def _check_embedded(size: int, limit: int) -> None:
    if size > limit:
        raise TooLarge(
            f"a request embeds at most {MAX_EMBEDDED_TOKENS} tokens in all its inputs",
            code="too_many_tokens",
            param="input",
            fix="send the inputs in several requests",
        )
