"""A tiny random Llama with its own tokenizer, made in a moment: what tests train, serve and attribute."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from openledger.adapters.base_model import BaseModel, find_base_model
from openledger.core.values import Row
from openledger.training.pretraining import train_tokenizer

_WORDS = ("alpha", "beta", "gamma", "delta", "omega", "sigma", "kappa", "theta")


def make_tiny_base(folder: Path, words: tuple[str, ...] = _WORDS) -> BaseModel:
    """Hidden size 32, 2 layers, 300 tokens; seeded, so that every call makes the same model of the same `words`."""
    sentences = [f"What does {a} do? It joins {a} with {b}." for a in words for b in words]
    tokenizer = train_tokenizer(iter(sentences), 320)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=128, tie_word_embeddings=True, eos_token_id=1, pad_token_id=0,
        bos_token_id=None, initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return find_base_model(str(folder))


def tiny_rows(datanet: str = "greek") -> list[Row]:
    """48 rows by four contributors, each with a vocabulary of his own."""
    rows = []
    for ordinal in range(48):
        first, second = _WORDS[ordinal % 8], _WORDS[(ordinal * 3 + ordinal // 8) % 8]
        rows.append(
            Row(
                row_id=f"row_{ordinal:03d}", datanet=datanet, contributor_id=f"ctr_{ordinal % 4}", contribution_id="c",
                ordinal=ordinal, source=f"{first}.{second}", prompt=f"What does {first} {ordinal} do?",
                completion=f"It joins {first} with {second}.",
            )
        )  # fmt: skip
    return rows
