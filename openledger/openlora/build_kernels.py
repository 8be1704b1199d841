"""Compile `kernels.cpp`: at wheel build for every instruction set, at first use for those of this machine.

Owns compiler, flags and where the result lies. Standard library only: the package's build runs this file before
anything of the package can be imported. What fails here costs speed and nothing else: the pure torch path remains.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
LIBRARY = "_kernels.so"  # beside this file in a wheel
TIMEOUT_S = 180

_COMMON = ("-std=c++17", "-O3", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fvisibility=hidden", "-Wno-psabi",
           "-ffp-contract=fast")  # fmt: skip
_AVX512 = ("-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
_X86: dict[str, tuple[str, ...]] = {
    "baseline": (), "avx2": ("-mavx2", "-mfma"), "avx512": _AVX512,
}  # fmt: skip


class BuildFailed(Exception):
    """There is no compiler, or it failed; the message says how."""


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Name -> compiler flags, the plainest first."""
    return _X86 if platform.machine() in ("x86_64", "AMD64") else {"baseline": ()}


def find_compiler() -> str:
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if not compiler:
        raise BuildFailed("no C++ compiler: install g++ or clang++, or set CXX")
    return compiler


def build(target: Path, isas: Sequence[str] | None = None) -> None:
    """Write the shared object `target` with these instruction sets (all of them). Another process may do the same at
    the same time. Raises BuildFailed."""
    compiler, flags = find_compiler(), instruction_sets()
    isas = tuple(flags) if isas is None else isas
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = {isa: Path(folder, f"{isa}.o") for isa in isas}
        chooser, whole = Path(folder, "chooser.o"), Path(folder, "whole.so")
        compile_ = [compiler, *_COMMON, "-c", str(SOURCE), "-o"]
        commands = [[*compile_, str(path), f"-DOPENLORA_ISA={isa}", *flags[isa]] for isa, path in objects.items()]
        commands.append([*compile_, str(chooser), *(f"-DOPENLORA_WITH_{isa}" for isa in isas)])
        with ThreadPoolExecutor(max_workers=len(commands)) as pool:
            list(pool.map(_run, commands))
        _run([compiler, "-shared", "-o", str(whole), *map(str, objects.values()), str(chooser), "-lm"])
        os.replace(whole, target)


def cached_path(isas: Sequence[str]) -> Path:
    """Where the library built at first use lies: its name is the source's, the compiler's and the flags' digest."""
    compiler = find_compiler()
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=TIMEOUT_S, check=False).stdout
    parts = (SOURCE.read_bytes(), version, repr((_COMMON, instruction_sets(), tuple(isas))).encode())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return cache_folder() / f"kernels-{digest[:32]}.so"


def cache_folder() -> Path:
    """Ours alone: what lies there is executed. Raises BuildFailed where it belongs to, or is open to, somebody else."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openledger"
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = root.stat()
    except OSError as error:
        raise BuildFailed(f"no cache folder: {error}") from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise BuildFailed(f"{root} can be written by others")
    return root


def _run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildFailed(f"{command[0]}: {error}") from error
    if done.returncode:
        raise BuildFailed(f"{command[0]} failed: {done.stderr.strip()[:2000]}")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
