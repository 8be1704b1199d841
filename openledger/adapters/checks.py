"""The gate for adapters: a PEFT folder is read here and nowhere else before it may touch a model.

Owns what counts as a plain LoRA adapter that fits a base: which files, which tensors, which configuration. Refuses by
name (`code`, with `param` naming the folder, tensor or setting at fault) and changes nothing. Pickle is never opened.
Does not know who asks or where adapters are kept.

Shapes: r rank, in/out the features of the adapted module; lora_A `[r, in]`, lora_B `[out, r]` in the file.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openledger.adapters.base_model import BaseModel
from openledger.adapters.card import AdapterCard, identity_of, load_card
from openledger.core.errors import Corrupt, InvalidInput, OpenLedgerError, TooLarge
from openledger.core.hashing import digest_bytes

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "adapter_model.safetensors", "adapter_config.json", "card.json"
_TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])\.weight")
_PATTERN_KEY = re.compile(r"[A-Za-z0-9_.]+")
_MAX_JSON_BYTES = 1 << 20
_SCANNED_AT_ONCE = 1 << 20  # values: the scan's own arrays stay at 5 MiB beside a file of any size
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EXPONENTS = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}  # all ones: not finite
# Settings that leave the product B A x as it is: notes of training, and how the factors began.
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip
_UNDERSTOOD = {"peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern"}
_KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShapes:
    """What an adapter must fit: each module that can carry LoRA, as (features in, features out)."""

    digest: str
    modules: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLimits:
    max_rank: int = 64
    max_bytes: int = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDescription:
    """A checked adapter. `ranks` by module; `card` is None for an adapter that was not made here."""

    folder: str
    digest: str
    ranks: Mapping[str, int]
    num_parameters: int
    card: AdapterCard | None


@dataclass(frozen=True, slots=True)
class StoredFactor:
    """A matrix as its file has it: `data` are its values, row by row, `dtype` by its name there (F32, F16, BF16)."""

    data: bytearray
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, matrix: torch.Tensor) -> "StoredFactor":
        name = next(name for name, dtype in _DTYPES.items() if dtype is matrix.dtype)
        return cls(bytearray(matrix.contiguous().view(torch.uint8).numpy()), name, tuple(matrix.shape))

    def tensor(self) -> torch.Tensor:
        """Over the same memory."""
        return torch.frombuffer(self.data, dtype=_DTYPES[self.dtype]).reshape(self.shape)


Stored = Mapping[str, tuple[StoredFactor, StoredFactor, float]]


class StoredFactors(Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]):
    """`stored` as tensors in fp32, made anew each time that one is asked for. Who copies the bytes into a layout of his
    own needs none: torch takes longer to make them than all checks of a small adapter."""

    def __init__(self, stored: Stored):
        self.stored = stored

    def __getitem__(self, module: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        a_RI, b_OR, scale = self.stored[module]
        return a_RI.tensor().float(), b_OR.tensor().float(), scale

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """The tensors of a checked adapter by module: A `[r, in]`, B `[out, r]` (fp32) and the factor of their product."""

    description: AdapterDescription
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]

    def stored(self) -> Stored:
        """The factors as bytes."""
        if isinstance(self.factors, StoredFactors):
            return self.factors.stored
        return {m: (StoredFactor.of(a), StoredFactor.of(b), scale) for m, (a, b, scale) in self.factors.items()}


def check_adapter(folder: Path, base: BaseShapes, limits: AdapterLimits | None = None) -> AdapterDescription:
    """Raises Corrupt for bytes that are not what they claim, InvalidInput for what we don't serve, TooLarge else."""
    return read_adapter(folder, base, limits).description


def read_adapter(folder: Path, base: BaseShapes, limits: AdapterLimits | None = None) -> AdapterWeights:
    """As `check_adapter`, and hands back the tensors that were checked."""
    limits = limits or AdapterLimits()
    _check_files(folder, limits)
    config = _read_config(folder)
    _check_settings(folder, config)
    data = (folder / WEIGHTS_FILE).read_bytes()
    pairs = _pair_factors(folder, _read_factors(folder, data))
    for module, (a_RI, b_OR) in pairs.items():
        _check_pair(module, a_RI, b_OR, base, limits)
        _check_rank(module, a_RI.shape[0], config)
    _check_finite(data, pairs)
    digest = identity_of(config, digest_bytes(data))
    del data  # the factors are copies: from here on the file's bytes would only be held twice
    card = _check_card(folder, digest, base)
    description = AdapterDescription(
        folder=str(folder),
        digest=digest,
        ranks={module: a_RI.shape[0] for module, (a_RI, _) in pairs.items()},
        num_parameters=sum(math.prod(factor.shape) for pair in pairs.values() for factor in pair),
        card=card,
    )
    stored = {module: (a, b, _scale(module, a.shape[0], config)) for module, (a, b) in sorted(pairs.items())}
    return AdapterWeights(description=description, factors=StoredFactors(stored))


def shapes_of(model: Any, digest: str) -> BaseShapes:
    """The modules of a loaded model that can carry LoRA: linear layers, except embeddings and the output head."""
    from transformers.pytorch_utils import Conv1D

    kept_out = {id(model.get_output_embeddings()), id(model.get_input_embeddings())}
    modules = {
        name: (module.weight.shape[0], module.weight.shape[1])
        if isinstance(module, Conv1D)
        else (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and id(module) not in kept_out
    }
    return BaseShapes(digest=digest, modules=modules)


def read_shapes(base: BaseModel) -> BaseShapes:
    """`shapes_of` the model in `base`'s folder, from its configuration alone: no weight is read."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path))
    return shapes_of(model, base.digest)


def _check_files(folder: Path, limits: AdapterLimits) -> None:
    if not folder.is_dir():
        raise Corrupt(f"there is no adapter folder {folder}", code="missing_adapter", param=str(folder))
    found = {name: _status(folder, name) for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)}
    if linked := [name for name, status in found.items() if status is not None and stat.S_ISLNK(status.st_mode)]:
        raise InvalidInput(
            f"{folder / linked[0]} is a link", code="linked_adapter", param=linked[0], fix="copy the file itself"
        )
    config, weights = _if_file(found[CONFIG_FILE]), _if_file(found[WEIGHTS_FILE])
    if weights is None and any(folder.glob("adapter_model.[bp]*")):
        raise InvalidInput(
            f"{folder} holds pickled weights only",
            code="pickled_adapter",
            param=WEIGHTS_FILE,
            fix="save it again with safe_serialization=True",
        )
    if config is None or weights is None:
        name = CONFIG_FILE if config is None else WEIGHTS_FILE
        raise Corrupt(f"{folder} lacks {name}", code="incomplete_adapter", param=name)
    if weights.st_size > limits.max_bytes:
        raise TooLarge(
            f"{folder / WEIGHTS_FILE} has {weights.st_size} bytes, the limit is {limits.max_bytes}",
            code="adapter_too_large",
            param=WEIGHTS_FILE,
        )
    if config.st_size > _MAX_JSON_BYTES:
        raise TooLarge(f"{folder / CONFIG_FILE} is over 1 MiB", code="adapter_too_large", param=CONFIG_FILE)


def _status(folder: Path, name: str) -> os.stat_result | None:
    try:
        return os.lstat(os.path.join(folder, name))
    except FileNotFoundError:
        return None


def _if_file(status: os.stat_result | None) -> os.stat_result | None:
    return status if status is not None and stat.S_ISREG(status.st_mode) else None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise Corrupt(
            f"{folder / CONFIG_FILE} is no JSON: {error}", code="corrupt_adapter", param=CONFIG_FILE
        ) from error
    if not isinstance(config, dict):
        raise Corrupt(f"{folder / CONFIG_FILE} is no JSON object", code="corrupt_adapter", param=CONFIG_FILE)
    return config


def _check_settings(folder: Path, config: dict[str, Any]) -> None:
    """Only settings known to leave the mathematics alone pass; one we have never heard of must be unset."""
    if config.get("peft_type") != "LORA":
        raise _unsupported(folder, "peft_type", config.get("peft_type"))
    if config.get("bias", "none") != "none":
        raise _unsupported(folder, "bias", config["bias"])
    if config.get("init_lora_weights", True) not in _KEEPS_BASE:
        raise _unsupported(folder, "init_lora_weights", config["init_lora_weights"])
    for name in sorted(set(config) - _HARMLESS - _UNDERSTOOD - {"bias", "init_lora_weights"}):
        if config[name]:
            raise _unsupported(folder, name, config[name])
    _check_numbers(config)


def _check_numbers(config: dict[str, Any]) -> None:
    values = {"r": config.get("r"), "lora_alpha": config.get("lora_alpha")}
    for setting in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(setting) or {}
        if not isinstance(pattern, dict):
            raise InvalidInput(f"{setting} is no object", code="invalid_adapter_config", param=setting)
        values |= {f"{setting}.{key}": value for key, value in pattern.items()}
        if odd := [key for key in pattern if not _PATTERN_KEY.fullmatch(key)]:
            raise InvalidInput(
                f"{setting} has the key {odd[0]!r}: only plain module names are read",
                code="unsupported_adapter_setting",
                param=setting,
            )
    for name, value in values.items():
        usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
        if not usable:
            raise InvalidInput(
                f"{name} must be a positive number, not {value!r}", code="invalid_adapter_config", param=name
            )


def _read_factors(folder: Path, data: bytes) -> dict[str, StoredFactor]:
    from safetensors import SafetensorError, deserialize

    if int.from_bytes(data[:8], "little") > _MAX_JSON_BYTES:
        raise Corrupt(
            f"{folder / WEIGHTS_FILE} is no safetensors file, or its header is over 1 MiB",
            code="corrupt_adapter",
            param=WEIGHTS_FILE,
        )
    try:
        found = deserialize(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Corrupt(
            f"{folder / WEIGHTS_FILE} can't be read: {error}", code="corrupt_adapter", param=WEIGHTS_FILE
        ) from error
    return {name: StoredFactor(each["data"], each["dtype"], tuple(each["shape"])) for name, each in found}


def _pair_factors(folder: Path, factors: dict[str, StoredFactor]) -> dict[str, tuple[StoredFactor, StoredFactor]]:
    sides: dict[str, dict[str, StoredFactor]] = {}
    for name, factor in factors.items():
        if not (match := _TENSOR_NAME.fullmatch(name)):
            raise InvalidInput(f"{name} is no tensor of a plain LoRA layer", code="unknown_adapter_tensor", param=name)
        sides.setdefault(match["module"], {})[match["side"]] = factor
    if not sides:
        raise Corrupt(f"{folder / WEIGHTS_FILE} holds no tensors", code="corrupt_adapter", param=WEIGHTS_FILE)
    for module, pair in sides.items():
        if len(pair) != 2:
            raise Corrupt(f"{module} has lora_{min(pair)} alone", code="unpaired_adapter_tensor", param=module)
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _check_pair(module: str, a_RI: StoredFactor, b_OR: StoredFactor, base: BaseShapes, limits: AdapterLimits) -> None:
    if module not in base.modules:
        raise InvalidInput(
            f"the base has no module {module!r} that can carry LoRA",
            code="unknown_adapter_module",
            param=module,
            fix="train on linear layers of this base, not on embeddings or the output head",
        )
    features_in, features_out = base.modules[module]
    rank = a_RI.shape[0] if a_RI.shape else 0
    if a_RI.shape != (rank, features_in) or b_OR.shape != (features_out, rank):
        raise InvalidInput(
            f"{module}: lora_A {a_RI.shape} and lora_B {b_OR.shape} don't fit "
            f"a base layer of {features_in} in, {features_out} out",
            code="wrong_adapter_shape",
            param=module,
        )
    if not 0 < rank <= limits.max_rank:
        raise TooLarge(f"{module} has rank {rank}, the limit is {limits.max_rank}", code="adapter_rank", param=module)
    if a_RI.dtype not in _EXPONENTS or b_OR.dtype not in _EXPONENTS:
        raise InvalidInput(f"{module} holds {a_RI.dtype}, {b_OR.dtype}", code="adapter_dtype", param=module)


def _check_finite(data: bytes, pairs: Mapping[str, tuple[StoredFactor, StoredFactor]]) -> None:
    """All values of the file at once where they are of one dtype: looking at each factor by itself would take longer
    than all other checks of a small adapter."""
    dtypes = {factor.dtype for pair in pairs.values() for factor in pair}
    if len(dtypes) == 1 and _all_finite(data, dtypes.pop()):
        return
    for module, pair in pairs.items():
        if not all(torch.isfinite(factor.tensor()).all() for factor in pair):
            raise Corrupt(f"{module} holds values that are not finite", code="non_finite_adapter", param=module)


def _all_finite(data: bytes, dtype: str) -> bool:
    """Of a safetensors file: eight bytes of length, a header that long, values."""
    exponent, begin = _EXPONENTS[dtype], 8 + int.from_bytes(data[:8], "little")
    unsigned: type[np.uint32 | np.uint16] = np.uint32 if dtype == "F32" else np.uint16
    values: npt.NDArray[np.unsignedinteger[Any]] = np.frombuffer(data, unsigned, offset=begin)
    parts = (values[first : first + _SCANNED_AT_ONCE] for first in range(0, len(values), _SCANNED_AT_ONCE))
    return not any(np.any(np.bitwise_and(part, unsigned(exponent)) == exponent) for part in parts)


def _check_rank(module: str, rank: int, config: dict[str, Any]) -> None:
    stated = _setting(module, config.get("rank_pattern"), config["r"])
    if stated != rank:
        raise Corrupt(
            f"{module} has rank {rank}, its configuration says {stated}", code="wrong_adapter_rank", param=module
        )


def _scale(module: str, rank: int, config: dict[str, Any]) -> float:
    """alpha / r (LoRA, Hu et al., 2021) or alpha / sqrt(r) (rsLoRA, Kalajdzievski, 2023)."""
    alpha = float(_setting(module, config.get("alpha_pattern"), config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _setting(module: str, pattern: dict[str, Any] | None, default: Any) -> Any:
    """PEFT's rule for plain names: the first key that is the module's name or its last parts."""
    keys = (key for key in pattern or {} if module == key or module.endswith("." + key))
    return next(((pattern or {})[key] for key in keys), default)


def _check_card(folder: Path, digest: str, base: BaseShapes) -> AdapterCard | None:
    if not (folder / CARD_FILE).exists():
        return None
    card = load_card(folder)
    if card.digest != digest:
        raise Corrupt(
            f"{folder} has the digest {digest}, its card says {card.digest}",
            code="adapter_digest_mismatch",
            param=str(folder),
            fix="the files were changed after training: take the original ones",
        )
    if card.base_digest != base.digest:
        raise InvalidInput(
            f"{folder} was trained on base {card.base_digest}, this one is {base.digest}",
            code="wrong_base",
            param="base_digest",
        )
    return card


def _unsupported(folder: Path, name: str, value: Any) -> OpenLedgerError:
    return InvalidInput(
        f"{folder}: {name}={value!r} is not served: it changes what the adapter computes",
        code="unsupported_adapter_setting",
        param=name,
        fix="train a plain LoRA adapter (LoRA or rsLoRA on linear layers, no bias)",
    )
