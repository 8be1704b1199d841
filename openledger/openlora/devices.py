"""Where an engine computes, and with which kernels: C++ on a CPU, Triton on a GPU, torch alone where there are none."""

import importlib.util
from collections.abc import Sequence

import torch

from openledger.core.errors import InvalidInput
from openledger.openlora import native
from openledger.openlora.lora import Products
from openledger.openlora.native import Paged

DEVICES = ("auto", "cpu", "cuda")


def find_device(wanted: str, kernels: str = "auto") -> torch.device:
    """`auto`: the GPU where there is one, unless the kernels named are a processor's. Raises InvalidInput
    (`no_device`)."""
    if wanted not in DEVICES:
        raise InvalidInput(
            f"device is one of {', '.join(DEVICES)}, not {wanted!r}", code="no_device", param="device", fix="auto"
        )
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(
            "there is no GPU that torch can use here",
            code="no_device",
            param="device",
            fix="device: cpu (of replicas: no gpus_per_replica), or a torch built for CUDA on a machine with a GPU",
        )
    for_either = kernels in ("auto", "torch", "triton")
    on_gpu = wanted == "cuda" or (wanted == "auto" and for_either and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def find_kernels(device: torch.device, choice: str = "auto") -> Paged | None:
    """The kernels for `device`: `auto` the best there are, `torch` none, or those of one name. None where torch
    computes. Raises InvalidInput (`unknown_kernels`)."""
    if device.type == "cpu" and choice != "triton":
        return native.load(choice)
    if choice == "torch" or (choice == "auto" and importlib.util.find_spec("triton") is None):
        return None
    if choice not in ("auto", "triton") or importlib.util.find_spec("triton") is None:
        raise _no_kernels(choice, device)
    from openledger.openlora.triton_kernels import TritonKernels

    kernels = TritonKernels()
    if device.type == "cpu" and not kernels.interpreted:
        raise _no_kernels(choice, device)
    return kernels


def triton_products(kernels: Paged, modules: Sequence[str], dtype: torch.dtype, device: torch.device) -> Products:
    """The LoRA products of kernels that `find_kernels` gave for a GPU."""
    from openledger.openlora.lora_triton import TritonProducts
    from openledger.openlora.triton_kernels import TritonKernels

    assert isinstance(kernels, TritonKernels)
    return TritonProducts(kernels, modules, dtype, device)


def _no_kernels(choice: str, device: torch.device) -> InvalidInput:
    return InvalidInput(
        f"there are no kernels {choice!r} for {device.type} here",
        code="unknown_kernels",
        param="kernels",
        fix="auto or torch; triton needs its package and a GPU",
    )
