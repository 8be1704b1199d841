"""The base model: any Hugging Face causal language model by path or id, and how conversations become tokens.

The same functions encode for training, serving and attribution: one chat template, the tokenizer's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openledger.core.errors import InvalidInput, NotFound
from openledger.core.hashing import digest_tree

EMBEDDED = Path(__file__).parent.parent / "base_model"
_IDENTITY_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """`digest` covers weights, configuration, tokenizer and chat template: two bases with one digest are the same."""

    name: str
    path: str
    digest: str
    max_positions: int


def find_base_model(name_or_path: str | None = None) -> BaseModel:
    """The base model called by a folder, a hub id that is in the local cache or can be fetched, or (None) the
    embedded one. Raises NotFound where there is none, InvalidInput where it is no causal language model."""
    folder = EMBEDDED if name_or_path is None else _folder(name_or_path)
    config = _config(folder)
    names = tuple(name for name in _IDENTITY_FILES if (folder / name).exists())
    shards = tuple(path.name for path in folder.glob("model-*.safetensors"))
    return BaseModel(
        name=base_name(name_or_path),
        path=str(folder),
        digest=digest_tree(folder, names + shards),
        max_positions=int(getattr(config, "max_position_embeddings", 2048)),
    )


def base_name(name_or_path: str | None = None) -> str:
    """What `find_base_model` calls it."""
    return "openledger-base" if name_or_path is None else Path(name_or_path).name.lower()


def load_tokenizer(base: BaseModel) -> Any:
    return load_tokenizer_from(Path(base.path))


def load_tokenizer_from(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def load_model(base: BaseModel, attention: str = "eager") -> Any:
    """The model in fp32 and evaluation mode, its parameters frozen.

    `eager` is mathematical attention: exact for the replay, and the fastest on a CPU at short lengths.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32, attn_implementation=attention)
    return model.eval().requires_grad_(False)


def encode_messages(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of a conversation, ready for the assistant's turn: by the tokenizer's chat template, or where it has
    none as lines `role: content` with `assistant:` at the end. Raises InvalidInput for an empty prompt."""
    if not any(message.get("content", "").strip() for message in messages):
        raise InvalidInput("the prompt is empty", code="empty_prompt", param="messages", fix="send some text")
    if tokenizer.chat_template is None:
        lines = [*(f"{message['role']}: {message['content'].strip()}" for message in messages), "assistant:"]
        return list(tokenizer("\n".join(lines), add_special_tokens=False)["input_ids"])
    return list(
        tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=True, return_dict=False)
    )


def encode_prompt(tokenizer: Any, prompt: str) -> list[int]:
    return encode_messages(tokenizer, [{"role": "user", "content": prompt}])


def encode_completion(tokenizer: Any, completion: str) -> list[int]:
    """Token ids of an assistant's turn with the end token that stops generation."""
    return [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def _folder(name_or_path: str) -> Path:
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path.resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
    except (HFValidationError, OSError, ValueError, RuntimeError) as error:
        raise NotFound(
            f"no base model {name_or_path!r}: it is no folder, and the hub didn't give it",
            code="unknown_model",
            param="base_model",
            fix="name a folder with config.json, model.safetensors and a tokenizer, or a hub id you can reach",
        ) from error


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(
            f"{folder} holds no model that transformers can read: {error}", code="unreadable_model", param="base_model"
        ) from error
    if not any(name.endswith("ForCausalLM") or name.endswith("LMHeadModel") for name in config.architectures or ()):
        raise InvalidInput(
            f"{folder} is no causal language model but {config.architectures}",
            code="unsupported_model",
            param="base_model",
        )
    return config
