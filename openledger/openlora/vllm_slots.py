"""The adapters that vLLM holds: what we have checked and loaded, and nothing else.

vLLM reads less of an adapter than we do: it ignores ranks and alphas by module, and reads a folder again whenever its
own cache has dropped what was in it. So an adapter is read and checked here, written as the plainest folder that means
the same (scale folded into B, alpha equal to r), given to vLLM once under a number that is never used again, pinned in
its slot, and the folder is deleted. vLLM's caches are as large as our slots, and drop nothing.

On a CPU vLLM gives rows of the base the last slot's adapter. There one slot more is made, the last, which holds an
adapter of zeros for ever.
"""

import fcntl
import itertools
import json
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from openledger.adapters.checks import CONFIG_FILE, WEIGHTS_FILE, AdapterLimits, BaseShapes, read_adapter
from openledger.core.errors import Corrupt, InvalidInput, TooLarge

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
_MEMORY = Path("/dev/shm")
_PREFIX = "openlora-vllm-"


class VllmSlots:
    """`vllm` is the running `LLMEngine`, made with `max_loras` of `num_slots`, or one more where `spare` is set. All
    but `load` and `resident` run on the thread that steps it."""

    def __init__(self, vllm: Any, shapes: BaseShapes, limits: AdapterLimits, num_slots: int, *, spare: bool):
        self._vllm, self._shapes, self._limits, self._num_slots = vllm, shapes, limits, num_slots
        self._folder = OwnFolder(_MEMORY if _MEMORY.is_dir() else Path(tempfile.gettempdir()))
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._requests: dict[str, Any] = {}
        self._given: set[str] = set()
        if spare:
            self._fill_last_slot()

    def load(self, digest: str, folder: Path) -> None:
        """Read, check and write out. Raises what `read_adapter` raises, Corrupt (`adapter_digest_mismatch`), TooLarge
        (`vllm_slots_full`)."""
        if digest in self._requests:
            return
        weights = read_adapter(folder, self._shapes, self._limits)
        if weights.description.digest != digest:
            raise Corrupt(
                f"{folder} holds the adapter {weights.description.digest}, not {digest}",
                code="adapter_digest_mismatch",
                param=str(folder),
            )
        request = self._written(digest, weights.factors)
        with self._lock:
            kept = len(self._requests) < self._num_slots or digest in self._requests
            if kept and self._requests.setdefault(digest, request) is request:
                return
        shutil.rmtree(request.lora_path, ignore_errors=True)
        if not kept:
            raise TooLarge(
                f"all {self._num_slots} slots of vLLM hold adapters",
                code="vllm_slots_full",
                param="digest",
                fix="unload one, or start the engine with more slots",
            )

    def give(self, digest: str) -> Any:
        """The adapter as vLLM's requests name it, None for the base. The first time it goes to the device. Raises
        InvalidInput (`adapter_not_for_vllm`) where vLLM doesn't take it."""
        if not digest:
            return None
        request = self._requests[digest]
        if digest not in self._given:
            try:
                self._vllm.add_lora(request)
                self._vllm.pin_lora(request.lora_int_id)
            except Exception as error:  # whatever vLLM raises is about this adapter alone
                raise InvalidInput(
                    f"vLLM does not take the adapter {digest}: {error}",
                    code="adapter_not_for_vllm",
                    param="adapter_digest",
                    fix="serve it with the torch engine, or train it on modules that vLLM adapts in this model",
                ) from error
            shutil.rmtree(request.lora_path, ignore_errors=True)
            self._given.add(digest)
        return request

    def remove(self, digest: str) -> None:
        with self._lock:
            request = self._requests.pop(digest, None)
        if request is None:
            return
        if digest in self._given:
            self._given.remove(digest)
            self._vllm.remove_lora(request.lora_int_id)
        shutil.rmtree(request.lora_path, ignore_errors=True)

    def resident(self) -> tuple[str, ...]:
        return tuple(self._requests)

    def _fill_last_slot(self) -> None:
        """Slots are given out from the first: fill all with zeros, then free all but the last."""
        module, (features_in, features_out) = next(iter(self._shapes.modules.items()))
        zeros = {module: (torch.zeros(1, features_in), torch.zeros(features_out, 1), 1.0)}
        requests = [self._written("zeros", zeros) for _ in range(self._num_slots + 1)]
        for request in requests:
            self._vllm.add_lora(request)
            shutil.rmtree(request.lora_path)
        for request in requests[:-1]:
            self._vllm.remove_lora(request.lora_int_id)
        self._vllm.pin_lora(requests[-1].lora_int_id)

    def _written(self, digest: str, factors: Factors) -> Any:
        from vllm.lora.request import LoRARequest

        number = next(self._numbers)
        folder = self._folder.path / str(number)
        folder.mkdir()
        _write_plain(folder, factors)
        return LoRARequest(lora_name=digest, lora_int_id=number, lora_path=os.fspath(folder))


class OwnFolder:
    """A folder in `parent` that goes with its owner. One whose owner was killed stays, with the memory it takes, until
    the next is made. Owners hold a lock, which the system drops when they end, however they end: unlike process ids
    these are never given out again, and mean the same to containers that share a memory."""

    def __init__(self, parent: Path):
        for left in parent.glob(f"{_PREFIX}*"):
            _remove_unless_held(left)
        lock = None
        while lock is None:  # another one that starts may just take it for one that was left
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            lock = _lock_of(self.path)
        weakref.finalize(self, _remove, self.path, lock)


def _lock_of(folder: Path) -> int | None:
    """The lock of a folder, as a descriptor; None where it is another's, or the folder is gone."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.is_dir():
            return lock
    os.close(lock)
    return None


def _remove_unless_held(folder: Path) -> None:
    with suppress(OSError):  # it has just gone, or is another user's
        lock = _lock_of(folder)
        if lock is not None:
            _remove(folder, lock)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _write_plain(folder: Path, factors: Factors) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for module, (a_RI, b_OR, scale) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a_RI.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = (b_OR * scale).contiguous()
    save_file(tensors, folder / WEIGHTS_FILE)
    rank = max(a_RI.shape[0] for a_RI, _, _ in factors.values())
    targets = sorted({module.rsplit(".", 1)[-1] for module in factors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none"}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
