"""LoRA (Hu et al., 2021) through PEFT, with an initial A that is a public constant; B starts at zero."""

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from openledger.training.recipe import Recipe, generator


def attach_lora(model: Any, recipe: Recipe, constant: str) -> Any:
    """A PEFT model around `model` whose trainable parameters are LoRA's alone."""
    modules = recipe.target_modules if isinstance(recipe.target_modules, str) else list(recipe.target_modules)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=modules,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    lora_model = get_peft_model(model, config)
    reset_lora(lora_model, constant)
    return lora_model.train()


def reset_lora(lora_model: Any, constant: str) -> None:
    """A to uniform(-1/sqrt(in), 1/sqrt(in)) (PEFT's own law) from `constant` and the module's name, B to zero."""
    for name, parameter in lora_parameters(lora_model).items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(parameter.shape[1])
            values = generator(constant, f"A-{name}").random(tuple(parameter.shape)) * 2 * bound - bound
            parameter.data.copy_(torch.from_numpy(values))
        else:
            parameter.data.zero_()


def lora_parameters(lora_model: Any) -> dict[str, torch.nn.Parameter]:
    """LoRA's parameters by name, sorted: the one order used by optimizer, index and digests."""
    found = {name: p for name, p in lora_model.named_parameters() if ".lora_A." in name or ".lora_B." in name}
    return dict(sorted(found.items()))


def load_lora(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder`, its parameters requiring gradients (attribution needs them)."""
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True).eval()
