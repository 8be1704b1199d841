"""The base, the adapters and the traffic that benchmarks/openlora.py measures with: all made from one seed.

A Llama of hidden size 512 with 8 layers, 8 query and 4 key/value heads and 8,192 tokens; adapters of rank 8 and 16 in
turn on all seven linear layers. Weights are random: speed doesn't depend on them. Traffic is S-LoRA's (Sheng et al.,
2023): which adapter is asked follows a power law, when follows a Gamma process, how much is uniform.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from openledger.adapters.base_model import EMBEDDED, BaseModel, find_base_model, load_tokenizer_from
from openledger.adapters.card import adapter_digest
from openledger.adapters.checks import read_shapes

SEED = 20261125
VOCABULARY, LAYERS, HIDDEN, INNER, HEADS, KV_HEADS = 8192, 8, 512, 1408, 8, 4
RANKS = (8, 16)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """`digests` in the order of `folders`; the i-th adapter has rank `RANKS[i % 2]`."""

    base: BaseModel
    folders: tuple[Path, ...]
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    at_s: float
    adapter: int
    prompt_ids: tuple[int, ...]
    new_tokens: int


def make_world(folder: Path, num_adapters: int) -> World:
    """Made once; what is there is taken as it is."""
    base = _make_base(folder / "base")
    folders = tuple(folder / "adapters" / f"{number:04d}" for number in range(num_adapters))
    for number, each in enumerate(folders):
        if not (each / "adapter_config.json").exists():
            _make_adapter(base, each, number)
    return World(base=base, folders=folders, digests=tuple(adapter_digest(each) for each in folders))


def prompt(length: int, number: int) -> tuple[int, ...]:
    generator = np.random.default_rng((SEED, number))
    return tuple(int(token) for token in generator.integers(5, VOCABULARY, length))


def arrivals(
    num_adapters: int, *, alpha: float, cv: float, rate: float, duration_s: float, lengths: tuple[int, int]
) -> list[Arrival]:
    generator = np.random.default_rng(SEED)
    count = int(rate * duration_s)
    adapters = (generator.power(alpha, count) * num_adapters).astype(int)
    at_s = generator.gamma(1 / cv**2, cv**2 / rate, count).cumsum()
    sizes = generator.integers(*lengths, (count, 2))
    return [
        Arrival(at_s=float(at), adapter=int(adapter), prompt_ids=prompt(int(size[0]), number), new_tokens=int(size[1]))
        for number, (at, adapter, size) in enumerate(zip(at_s, adapters, sizes, strict=True))
    ]


def top_share(requests: Sequence[Arrival], num_adapters: int) -> float:
    """The part of the requests that ask for the tenth of the adapters asked most."""
    counts = np.sort(np.bincount([each.adapter for each in requests], minlength=num_adapters))[::-1]
    return float(counts[: max(1, num_adapters // 10)].sum() / counts.sum())


def _make_base(folder: Path) -> BaseModel:
    if not (folder / "config.json").exists():
        torch.manual_seed(SEED)
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=4096,
            tie_word_embeddings=False, eos_token_id=1, pad_token_id=0, bos_token_id=None,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        model.lm_head.weight.data[len(load_tokenizer_from(EMBEDDED)) :] = 0  # answers are of tokens that have a text
        model.save_pretrained(folder)
        for name in _TOKENIZER:
            shutil.copy(EMBEDDED / name, folder / name)
    return find_base_model(str(folder))


def _make_adapter(base: BaseModel, folder: Path, number: int) -> None:
    rank = RANKS[number % len(RANKS)]
    generator = torch.Generator().manual_seed(SEED + number)
    tensors = {}
    for module, (size_in, size_out) in read_shapes(base).modules.items():
        a_RI = torch.randn(rank, size_in, generator=generator) / size_in**0.5
        b_OR = torch.randn(size_out, rank, generator=generator) * 0.02
        tensors[f"base_model.model.{module}.lora_A.weight"] = a_RI
        tensors[f"base_model.model.{module}.lora_B.weight"] = b_OR
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
