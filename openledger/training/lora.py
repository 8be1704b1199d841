"""LoRA (Hu et al., 2021) through PEFT, with an initial A that is a public constant; B starts at zero."""

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict

from openledger.training.recipe import Recipe, generator
from openledger.training.task import trainable_parameters


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
    """Put every LoRA matrix where a run under `constant` begins."""
    for name, parameter in trainable_parameters(lora_model).items():
        parameter.data.copy_(initial_matrix(name, tuple(parameter.shape), constant))


def initial_matrix(name: str, shape: tuple[int, ...], constant: str) -> torch.Tensor:
    """A: uniform(-1/sqrt(in), 1/sqrt(in)) (PEFT's own law) from `constant` and the parameter's name; B: zero. fp32."""
    if ".lora_A." not in name:
        return torch.zeros(shape)
    bound = 1 / math.sqrt(shape[1])
    return torch.from_numpy(generator(constant, f"A-{name}").random(shape) * 2 * bound - bound).float()


def load_lora(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder`, its parameters requiring gradients (attribution needs them)."""
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True).eval()


def switch_lora(lora_model: Any, folder: Path) -> None:
    """Put the matrices of another adapter of the same shape, in `folder`, in the place of `lora_model`'s."""
    set_peft_model_state_dict(lora_model, load_peft_weights(str(folder)))
