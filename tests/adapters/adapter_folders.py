"""Adapter folders written tensor by tensor, as PEFT would, for a base of two small modules."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from openledger.adapters.card import AdapterCard, adapter_digest, save_card
from openledger.adapters.checks import BaseShapes

BASE = BaseShapes(digest="base", modules={"model.layers.0.q_proj": (8, 12), "model.layers.0.up_proj": (8, 20)})
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "bias": "none"}


def tensors(rank: int = 2, **changed: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A and B for every module of BASE; `changed` replaces (or with None removes) by `q_proj_A` and the like."""
    generator = torch.Generator().manual_seed(1)
    made = {}
    for module, (features_in, features_out) in BASE.modules.items():
        for side, shape in (("A", (rank, features_in)), ("B", (features_out, rank))):
            short = f"{module.split('.')[-1]}_{side}"
            value = changed.get(short, torch.randn(shape, generator=generator))
            if value is not None:
                made[f"base_model.model.{module}.lora_{side}.weight"] = value
    return made


def write_adapter(
    folder: Path, weights: dict[str, torch.Tensor] | None = None, card: bool = False, **settings: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors() if weights is None else weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **settings}))
    if card:
        save_card(folder, card_of(folder))
    return folder


def card_of(folder: Path, base_digest: str = "base") -> AdapterCard:
    return AdapterCard(
        name="a", digest=adapter_digest(folder), base_model="b", base_digest=base_digest, datanet="d",
        datanet_version=1, row_root="00", rows_trained=("row_1",), contributors={"ctr_1": 1}, recipe={},
        environment={}, code_version="0", initial_a="", final_loss=1.0,
    )  # fmt: skip
