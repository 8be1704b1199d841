"""vLLM as the peer of benchmarks/openlora.py: a process in an environment of its own (benchmarks/vllm_requirements.txt)
that runs the closed loops it is told, one at a time. Imports nothing of OpenLedger.

    ENV/bin/python benchmarks/openlora_vllm.py float32 BASE ADAPTERS        with LoRA, 32 slots of rank 16
    ENV/bin/python benchmarks/openlora_vllm.py float32 BASE                 without

A line of standard input is a loop: {"prompts": [[ids], ...], "adapters": [number or null, ...], "new_tokens": 64}; the
line of standard output that answers it has its wall and CPU seconds. The first line that is written says it is ready,
and which version it is. One thread, vLLM's own defaults otherwise (compiled, prefix cache on). It runs in this
one process, so that its CPU time is this process's.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

SLOTS, RANK, IN_FLIGHT, CONTEXT, KV_BYTES = 32, 16, 32, 512, 1 << 28
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    dtype, base, *rest = sys.argv[1:]
    adapters = sorted(Path(rest[0]).iterdir()) if rest else []
    begun = time.perf_counter()
    engine, requests = start(dtype, base, adapters)
    import vllm

    tell(answers, {"version": vllm.__version__, "start_s": time.perf_counter() - begun})
    for line in sys.stdin:
        asked = json.loads(line)
        wall, cpu = time.perf_counter(), time.process_time()
        run(engine, requests, asked)
        tell(answers, {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu})
    return 0


def start(dtype: str, base: str, adapters: list[Path]) -> tuple[Any, list[Any]]:
    """The engine, and the first adapters, loaded."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.llm_engine import LLMEngine

    torch.set_num_threads(1)
    lora = {"enable_lora": True, "max_loras": SLOTS, "max_cpu_loras": SLOTS, "max_lora_rank": RANK} if adapters else {}
    arguments = EngineArgs(
        model=base,
        dtype=dtype,
        max_model_len=CONTEXT,
        max_num_seqs=IN_FLIGHT,
        kv_cache_memory_bytes=KV_BYTES,
        distributed_executor_backend="uni",
        generation_config="vllm",
        **lora,
    )
    engine = LLMEngine.from_engine_args(arguments)
    requests = [LoRARequest(path.name, number, str(path)) for number, path in enumerate(adapters[:SLOTS], start=1)]
    for request in requests:
        engine.add_lora(request)
    return engine, requests


def run(engine: Any, requests: list[Any], asked: dict[str, Any]) -> None:
    """All at once, to the last token."""
    from vllm import SamplingParams

    wanted = asked["new_tokens"]
    for number, (ids, adapter) in enumerate(zip(asked["prompts"], asked["adapters"], strict=True)):
        sampling = SamplingParams(temperature=0.0, max_tokens=wanted, ignore_eos=True, detokenize=False)
        lora = None if adapter is None else requests[adapter]
        engine.add_request(str(number), {"prompt_token_ids": ids}, sampling, lora_request=lora)
    made = 0
    while engine.has_unfinished_requests():
        made += sum(len(output.outputs[0].token_ids) for output in engine.step() if output.finished)
    if made != wanted * len(asked["prompts"]):
        raise RuntimeError(f"vLLM made {made} tokens")


def tell(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
