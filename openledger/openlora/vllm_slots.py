"""The adapters that vLLM holds: what we have checked and loaded, and nothing else.

vLLM reads less of an adapter than we do: it ignores ranks and alphas by module, and reads a folder again whenever its
own cache has dropped what was in it. So an adapter is read and checked here, written as the plainest folder that means
the same (scale folded into B, alpha equal to r), given to vLLM once under a number that is never used again, pinned in
its slot, and the folder is deleted. vLLM's caches are as large as our slots, and drop nothing.

Several weighted adapters of one request are to vLLM one more adapter. The sum of w_i B_i A_i is B A with the A_i one
upon the other and the w_i B_i side by side (PEFT's `cat`), of the sum of their ranks. Such an ensemble is made when it
is first asked for, from copies of its members that stay in memory, and leaves its slot to another when nobody uses it.

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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from openledger.adapters.checks import CONFIG_FILE, WEIGHTS_FILE, AdapterLimits, BaseShapes, read_adapter
from openledger.core.errors import Corrupt, InvalidInput, TooLarge, TooManyRequests
from openledger.openlora.ensembles import Members

Factors = Mapping[str, tuple[torch.Tensor, torch.Tensor, float]]
_MEMORY = Path("/dev/shm")
_PREFIX = "openlora-vllm-"
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM's slots may have
MAX_RANK = _RANKS[-1]


class VllmSlots:
    """`vllm` is the running `LLMEngine`, made with `max_loras` of `num_slots` and `num_ensembles`, and one more where
    `spare` is set. All but `load` and `resident` run on the thread that steps it."""

    def __init__(
        self,
        vllm: Any,
        shapes: BaseShapes,
        limits: AdapterLimits,
        num_slots: int,
        num_ensembles: int = 0,
        *,
        spare: bool,
    ):
        self._vllm, self._shapes, self._limits, self._num_slots = vllm, shapes, limits, num_slots
        self._num_ensembles = num_ensembles
        self._ensembles: dict[str, tuple[Any, Members]] = {}  # what vLLM has of them; the longest unused first
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
            self._hand_over(request)
            if not self._num_ensembles:
                shutil.rmtree(request.lora_path, ignore_errors=True)
            self._given.add(digest)
        return request

    def give_together(self, identity: str, members: Members, used: Mapping[str, int]) -> Any:
        """The ensemble of this `identity` as vLLM's requests name it; its members are loaded. Those of the `used` keep
        their slots. Raises InvalidInput (`ensemble_too_wide`, `adapter_not_for_vllm`), TooManyRequests
        (`ensemble_slots_full`)."""
        if identity not in self._ensembles:
            factors = self._stacked(members)
            self._free_ensemble(used)
            request = self._written(identity, factors)
            try:
                self._hand_over(request)
            finally:
                shutil.rmtree(request.lora_path, ignore_errors=True)
        else:
            request, _ = self._ensembles.pop(identity)
        self._ensembles[identity] = (request, members)
        return request

    def remove(self, digest: str) -> None:
        with self._lock:
            request = self._requests.pop(digest, None)
        if request is None:
            return
        for identity in [each for each, (_, members) in self._ensembles.items() if digest in dict(members)]:
            self._vllm.remove_lora(self._ensembles.pop(identity)[0].lora_int_id)
        if digest in self._given:
            self._given.remove(digest)
            self._vllm.remove_lora(request.lora_int_id)
        shutil.rmtree(request.lora_path, ignore_errors=True)

    def resident(self) -> tuple[str, ...]:
        return tuple(self._requests)

    def _hand_over(self, request: Any) -> None:
        try:
            self._vllm.add_lora(request)
            self._vllm.pin_lora(request.lora_int_id)
        except Exception as error:  # whatever vLLM raises is about this adapter alone
            raise InvalidInput(
                f"vLLM does not take the adapter {request.lora_name}: {error}",
                code="adapter_not_for_vllm",
                param="adapter_digest",
                fix="serve it with the torch engine, or train it on modules that vLLM adapts in this model",
            ) from error

    def _free_ensemble(self, used: Mapping[str, int]) -> None:
        if len(self._ensembles) < self._num_ensembles:
            return
        idle = next((identity for identity in self._ensembles if not used.get(identity)), None)
        if idle is None:
            raise TooManyRequests(
                f"{self._num_ensembles} ensembles are being answered, there is room for no more",
                code="ensemble_slots_full",
                fix="try again in a few seconds; the operator may set more ensemble_slots",
                retry_after_s=2,
            )
        self._vllm.remove_lora(self._ensembles.pop(idle)[0].lora_int_id)

    def _stacked(self, members: Members) -> Factors:
        parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for digest, weight in members:
            for module, (a_RI, b_OR) in _read_plain(Path(self._requests[digest].lora_path)).items():
                parts.setdefault(module, []).append((a_RI, b_OR.float() * weight))
        factors = {module: _stacked_factors(pairs) for module, pairs in parts.items()}
        rank, most = max(a_RI.shape[0] for a_RI, _, _ in factors.values()), rank_of_slots(self._limits.max_rank)
        if rank > most:
            raise InvalidInput(
                f"these adapters have a rank of {rank} together, vLLM's slots have {most}",
                code="ensemble_too_wide",
                param="ensemble",
                fix="name fewer adapters, or ask a model of the torch engine; the operator may raise max_rank",
            )
        return factors

    def _fill_last_slot(self) -> None:
        """Slots are given out from the first: fill all with zeros, then free all but the last."""
        module, (features_in, features_out) = next(iter(self._shapes.modules.items()))
        zeros = {module: (torch.zeros(1, features_in), torch.zeros(features_out, 1), 1.0)}
        num_places = self._num_slots + self._num_ensembles
        requests = [self._written("zeros", zeros) for _ in range(num_places + 1)]
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


def rank_of_slots(max_rank: int) -> int:
    """The smallest that vLLM's slots may have for adapters of this rank."""
    return next((rank for rank in _RANKS if rank >= max_rank), max_rank)


def _stacked_factors(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor, float]:
    return torch.cat([a_RI.float() for a_RI, _ in pairs]), torch.cat([b_OR for _, b_OR in pairs], dim=1), 1.0


def _read_plain(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What `_write_plain` wrote: the scale is in B."""
    from safetensors.torch import load_file

    tensors = load_file(folder / WEIGHTS_FILE)
    modules = {name.removeprefix("base_model.model.").rsplit(".", 2)[0] for name in tensors}
    prefix = "base_model.model."
    return {
        module: (tensors[f"{prefix}{module}.lora_A.weight"], tensors[f"{prefix}{module}.lora_B.weight"])
        for module in modules
    }


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
