"""LoRA (Hu et al., 2021) through PEFT, beginning at a public constant or at another adapter.

Under a constant A is drawn from it and B is zero. A run that goes on from another adapter (`recipe.from_adapter`)
begins with that adapter's A and B, read from a folder `start` that holds it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import adapter_digest
from openledger.core.errors import Corrupt, InvalidInput
from openledger.core.files import write_durably
from openledger.training.recipe import Recipe, generator, parent_digest
from openledger.training.task import trainable_parameters


def attach_lora(model: Any, recipe: Recipe, initial: str, start: Path | None = None) -> Any:
    """A PEFT model around `model` whose trainable parameters are LoRA's alone, where a run under `initial` begins."""
    lora_model = get_peft_model(model, _config(recipe))
    reset_lora(lora_model, initial, start)
    return lora_model.train()


def reset_lora(lora_model: Any, initial: str, start: Path | None = None) -> None:
    """Put every LoRA matrix where a run under `initial` begins."""
    parameters = trainable_parameters(lora_model)
    begin = initial_matrices({name: tuple(p.shape) for name, p in parameters.items()}, initial, start)
    for name, parameter in parameters.items():
        parameter.data.copy_(begin[name])


def initial_matrices(
    shapes: Mapping[str, Sequence[int]], initial: str, start: Path | None = None
) -> dict[str, torch.Tensor]:
    """The matrices of `shapes` (by PEFT's names) where a run under `initial` begins, fp32; `start` is the folder of the
    adapter that `initial` names, where it names one.

    Raises Corrupt (`corrupt_start`) where that adapter isn't there, InvalidInput (`parent_shape`) for other shapes.
    """
    if digest := parent_digest(initial):
        return _matrices_of(shapes, start, digest)
    return {name: initial_matrix(name, tuple(shape), initial) for name, shape in shapes.items()}


def initial_matrix(name: str, shape: tuple[int, ...], constant: str) -> torch.Tensor:
    """A: uniform(-1/sqrt(in), 1/sqrt(in)) (PEFT's own law) from `constant` and the parameter's name; B: zero. fp32."""
    if ".lora_A." not in name:
        return torch.zeros(shape)
    bound = 1 / math.sqrt(shape[1])
    return torch.from_numpy(generator(constant, f"A-{name}").random(shape) * 2 * bound - bound).float()


def lora_shapes(base: BaseModel, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The matrices that `recipe` trains over `base`, by PEFT's names: from its configuration, no weight is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path))
        lora_model = get_peft_model(model, _config(recipe))
    return {name: tuple(parameter.shape) for name, parameter in trainable_parameters(lora_model).items()}


def load_lora(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder`, its parameters requiring gradients (attribution needs them)."""
    return PeftModel.from_pretrained(model, str(folder), is_trainable=True).eval()


def switch_lora(lora_model: Any, folder: Path) -> None:
    """Put the matrices of another adapter of the same shape, in `folder`, in the place of `lora_model`'s."""
    set_peft_model_state_dict(lora_model, load_peft_weights(str(folder)))


def save_lora(out: Path, like: Path, matrices: Mapping[str, torch.Tensor]) -> None:
    """Write `matrices` (by PEFT's names) as a PEFT folder with the configuration of the adapter in `like`."""
    stored = {name.replace(".default.", "."): tensor.contiguous() for name, tensor in matrices.items()}
    write_durably(out / "adapter_config.json", (like / "adapter_config.json").read_bytes())
    write_durably(out / "adapter_model.safetensors", save(stored, metadata={"format": "pt"}))


def holds_lora(folder: Path, like: Path, matrices: Mapping[str, torch.Tensor]) -> bool:
    """Whether `folder` is what `save_lora` writes of these matrices."""
    try:
        stored = load_file(folder / "adapter_model.safetensors")
        same = (folder / "adapter_config.json").read_bytes() == (like / "adapter_config.json").read_bytes()
    except (OSError, SafetensorError):
        return False
    wanted = {name.replace(".default.", "."): tensor for name, tensor in matrices.items()}
    return same and stored.keys() == wanted.keys() and all(torch.equal(stored[name], wanted[name]) for name in wanted)


def with_smaller_b(matrices: Mapping[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """About where the training of an adapter came by."""
    return {name: tensor * factor if ".lora_B." in name else tensor for name, tensor in matrices.items()}


def _config(recipe: Recipe) -> LoraConfig:
    modules = recipe.target_modules if isinstance(recipe.target_modules, str) else list(recipe.target_modules)
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=modules,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def _matrices_of(shapes: Mapping[str, Sequence[int]], start: Path | None, digest: str) -> dict[str, torch.Tensor]:
    try:
        if start is None or adapter_digest(start) != digest:
            raise ValueError("no folder was named" if start is None else "it holds another adapter")
        stored = load_peft_weights(str(start), device="cpu")
    except (OSError, ValueError) as error:
        raise Corrupt(
            f"the run began from the adapter {digest}, which isn't at {start}: {error}",
            code="corrupt_start",
            param=str(start),
            fix="copy the parent's adapter_config.json and adapter_model.safetensors there",
        ) from error
    found = {name: stored.get(name.replace(".default.", ".")) for name in shapes}
    if len(stored) != len(shapes) or any(
        tensor is None or tuple(tensor.shape) != tuple(shapes[name]) for name, tensor in found.items()
    ):
        raise InvalidInput(f"the adapter at {start} has other matrices than the recipe's", code="parent_shape")
    return {name: tensor.float() for name, tensor in found.items()}


def save_adapter(module: Any, folder: Path) -> None:
    """As PEFT does, but for its README.md: an empty template that names this machine's path of the base. What an
    adapter is says its card."""
    module.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
