"""What OpenLoRA's engine does in a second, beside PEFT and transformers on the same model, adapters and prompts.

    python -m benchmarks.openlora FOLDER
    python -m benchmarks.openlora FOLDER --part closed --rounds 5 --adapter-dtype bfloat16
    python -m benchmarks.openlora FOLDER --part score slora steps
    python -m benchmarks.openlora FOLDER --part closed --vllm ENV/bin/python

FOLDER keeps model and adapters (benchmarks/openlora_world.py makes them, 130 MB). Parts:

    closed   closed loops at 1, 8 and 32 requests in flight: no adapter, one for all, a different one for each. Peers:
             PEFT's mixed batch (`adapter_names`), transformers' static batch without adapters, and with `--vllm` vLLM
             with and without LoRA, each in a process of its own, in the environment of
             benchmarks/vllm_requirements.txt
    score    64 adapters on a 128-token answer against 64 plain prefills of the same tokens
    people   time to the first token of people who come while scoring goes on all the time, and without
    slora    S-LoRA's open loop: power law over the adapters, Gamma arrivals
    merged   closed loops under one adapter, merged and not, on one engine in turn
    steps    where the time goes in a decode step, and which dtype the start-up probe takes

Everything but vLLM runs in one process, everything on one thread. What is compared runs in turn, round after round; a
cell is the median over the rounds, a ratio the median of the rounds' ratios with their range. Both wall time and CPU
time (time.process_time) are taken: on a loaded machine a ratio of CPU times is the steadier. Beside each closed loop
stands the part of the physical limit that was reached: bytes and operations of a step over the bandwidth and the speed
that were measured at the start, in CPU time too.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import torch

from benchmarks import openlora_world as world
from benchmarks.openlora_world import HEADS, HIDDEN, KV_HEADS, LAYERS, RANKS, VOCABULARY, World
from openledger.core.values import GenerationRequest, SamplingParameters
from openledger.openlora.step_thread import StepThread
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

PROMPT, NEW = 64, 64
IN_FLIGHT = (1, 8, 32)
MIXES = ("none", "one", "distinct")
SCORED_PROMPT, SCORED = 64, 128
SCORED_ADAPTERS = 64

Table = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    wall_s: float
    cpu_s: float
    tokens: int

    @property
    def tokens_s(self) -> float:
        return self.tokens / self.wall_s

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu_s / self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Measured at the start, on one thread: bytes and operations a second."""

    bandwidth: float
    speed: float


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    made = world.make_world(arguments.folder, SCORED_ADAPTERS)
    machine = measure_machine()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, one thread, seed {world.SEED}")
    print(f"bandwidth {machine.bandwidth / 1e9:.1f} GB/s, speed {machine.speed / 1e9:.0f} GFLOP/s (fp32)\n")
    results: dict[str, Table] = {}
    for part in arguments.part:
        results[part] = PARTS[part](made, machine, arguments)
        show(part, results[part])
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))
    return 0


def closed(made: World, machine: Machine, arguments: argparse.Namespace) -> Table:
    ours = _engine(made, 32, adapter_dtype=arguments.adapter_dtype, dtype=arguments.dtype)
    print("ours:", ours.describe()["lora_path"], ours.describe()["dtype"], "adapters", ours.describe()["adapter_dtype"])
    peft, plain = _peft(made, 32), _plain(made)
    runs: dict[str, Callable[[int], Spent]] = {}
    for mix in MIXES:
        for count in IN_FLIGHT:
            runs[f"ours {mix} {count}"] = lambda turn, m=mix, c=count: _ours_closed(ours, made, m, c, turn)
            runs[f"peft {mix} {count}"] = lambda turn, m=mix, c=count: _peft_closed(peft, m, c, turn)
    for count in IN_FLIGHT:
        runs[f"transformers none {count}"] = lambda turn, c=count: _static(plain, c, turn)
    _warm(ours, made, peft, plain)
    with _vllm(arguments, made) as peers:
        for who, peer in peers.items():
            for mix in MIXES if who == "vllm" else MIXES[:1]:
                for count in IN_FLIGHT:
                    runs[f"{who} {mix} {count}"] = lambda turn, p=peer, m=mix, c=count: p.closed(m, c, turn)
        rounds = _in_turn(runs, arguments.rounds, arguments.only)
    return _closed_table(rounds, machine, 2 if arguments.adapter_dtype == "bfloat16" else 4)


def score(made: World, _: Machine, arguments: argparse.Namespace) -> Table:
    engine = _engine(made, SCORED_ADAPTERS, adapter_dtype=arguments.adapter_dtype)
    asked, answered = world.prompt(SCORED_PROMPT, 1), world.prompt(SCORED, 2)

    def scoring(_: int) -> Spent:
        return _spent(lambda: engine.score(asked, answered, made.digests), SCORED_ADAPTERS * (SCORED_PROMPT + SCORED))

    def prefills(turn: int) -> Spent:
        requests = [
            _request(f"{turn}-{number}", world.prompt(SCORED_PROMPT + SCORED, 10_000 * (turn + 1) + number), "", 1)
            for number in range(SCORED_ADAPTERS)
        ]
        return _spent(lambda: _drain(engine, requests), SCORED_ADAPTERS * (SCORED_PROMPT + SCORED))

    rounds = _in_turn({"score": scoring, "prefill": prefills}, arguments.rounds, None)
    return {
        "64 adapters, 64 + 128 tokens": {
            "scoring (s)": f"{median(each.wall_s for each in rounds['score']):.2f}",
            "64 plain prefills (s)": f"{median(each.wall_s for each in rounds['prefill']):.2f}",
            "ratio, wall": _ratio([a.wall_s / b.wall_s for a, b in _pairs(rounds, "score", "prefill")]),
            "ratio, CPU": _ratio([a.cpu_s / b.cpu_s for a, b in _pairs(rounds, "score", "prefill")]),
        }
    }


def people(made: World, _: Machine, arguments: argparse.Namespace) -> Table:
    """One person after the other, 64-token prompts under adapters; scoring without end, or not."""
    engine = _engine(made, SCORED_ADAPTERS, max_batch=8)
    thread = StepThread(engine)
    asked, answered = world.prompt(SCORED_PROMPT, 1), world.prompt(SCORED, 2)
    firsts: dict[str, list[float]] = {"alone": [], "beside scoring": []}
    scored = 0
    try:
        for turn in range(arguments.rounds):
            for name, waits in firsts.items():
                scoring = name != "alone"
                for number in range(24):
                    if scoring:
                        calls = [
                            thread.call(lambda: engine.score(asked, answered, made.digests[:2]), background=True)
                            for _ in range(3)
                        ]
                        time.sleep(0.002 * (number % 7))
                    seed = 1000 * turn + 100 * number + scoring
                    waits.append(_first_token_s(thread, made.digests[number % 64], seed))
                    if scoring:
                        scored += sum(call.done() for call in calls)
                        for call in calls:
                            call.result()
    finally:
        thread.stop()
    ratio = _p95(firsts["beside scoring"]) / _p95(firsts["alone"])
    return {
        name: {
            "p50 (ms)": f"{1000 * median(waits):.1f}",
            "p95 (ms)": f"{1000 * _p95(waits):.1f}",
            "p95 to alone": f"{ratio if name != 'alone' else 1:.2f}",
        }
        for name, waits in firsts.items()
    }


def slora(made: World, _: Machine, arguments: argparse.Namespace) -> Table:
    engine = _engine(made, 64, adapter_dtype=arguments.adapter_dtype)
    table: Table = {}
    for alpha in (1.0, 0.3, 0.1):
        traffic = world.arrivals(
            64, alpha=alpha, cv=1.0, rate=arguments.rate, duration_s=arguments.duration, lengths=(8, 128)
        )
        table[f"alpha {alpha}, top tenth {world.top_share(traffic, 64):.0%}"] = _open_loop(engine, made, traffic)
    return table


def steps(made: World, _: Machine, arguments: argparse.Namespace) -> Table:
    """Decode steps of 1 and 32 requests, in one call and module by module: time in the kernels, in the base's products,
    and in the rest; and with the base's weights in int8."""
    table: Table = {}
    for mix, count, way in [(m, c, w) for m in MIXES for c in (1, 32) for w in ("exact", "modules", "int8")]:
        if mix == "distinct" and count == 1:
            continue
        engine = _engine(made, 32, adapter_dtype=arguments.adapter_dtype, weights="int8" if way == "int8" else "exact")
        engine._model._fused = None if way == "modules" else engine._model._fused
        for number in range(count):
            engine.add(_request(str(number), world.prompt(PROMPT, number), _digest(made, mix, number), 4 * NEW))
        while engine.describe()["waiting"] or any(g.num_missing > 1 for g in engine._scheduler._running):
            engine.step()
        for _ in range(8):
            engine.step()
        with _clocked(engine) as spent:
            taken = _spent(lambda e=engine: [e.step() for _ in range(32)], 32)
        rest = taken.cpu_s - sum(spent.values())
        table[f"{mix}, {count} in flight, {way}"] = {
            "step (CPU ms)": f"{1000 * taken.cpu_s / 32:.1f}",
            **{name: f"{seconds / taken.cpu_s:.0%}" for name, seconds in (*spent.items(), ("rest", rest))},
        }
    probed = _engine(made, 0, dtype="auto").describe()
    table["start-up probe"] = {
        "step (CPU ms)": probed["dtype"],
        **{name: f"{hz:.0f} products/s" for name, hz in probed["dtype_speeds_hz"].items()},
    }
    return table


def merged(made: World, _: Machine, arguments: argparse.Namespace) -> Table:
    engine = _engine(made, 2, adapter_dtype=arguments.adapter_dtype)

    def run(way: str, count: int, turn: int) -> Spent:
        if way == "merged":
            engine.merge(made.digests[1])
        spent = _ours_closed(engine, made, "one", count, turn, way)
        engine.unmerge()
        return spent

    ways = ("apart", "merged")
    runs = {f"{way} {c}": lambda turn, w=way, c=c: run(w, c, turn) for c in IN_FLIGHT for way in ways}
    run("merged", 8, 99)
    rounds = _in_turn(runs, arguments.rounds, None)
    taken = _spent(lambda: engine.merge(made.digests[1]), 1)
    table = {
        f"{count} in flight": {
            **{f"{way} (CPU ms a token)": f"{median(s.cpu_ms for s in rounds[f'{way} {count}']):.2f}" for way in ways},
            "merged as fast, CPU": _faster(rounds, f"merged {count}", f"apart {count}", "cpu_ms"),
            "merged as fast, wall": _faster(rounds, f"merged {count}", f"apart {count}", "tokens_s"),
        }
        for count in IN_FLIGHT
    }
    table["to merge"] = {"merged (CPU ms a token)": f"{1000 * taken.cpu_s:.0f} ms, {_merged_mb(engine)} MB"}
    return table


def _merged_mb(engine: TorchEngine) -> str:
    return f"{engine.describe()['merged_bytes'] / 1e6:.0f}"


PARTS: dict[str, Callable[[World, Machine, argparse.Namespace], Table]] = {
    "closed": closed,
    "score": score,
    "people": people,
    "slora": slora,
    "merged": merged,
    "steps": steps,
}


def measure_machine() -> Machine:
    block = torch.ones(64 << 20)
    square = torch.randn(1024, 1024)
    read_s = min(_spent(block.sum, 1).cpu_s for _ in range(7))
    product_s = min(_spent(lambda: square @ square, 1).cpu_s for _ in range(7))
    return Machine(bandwidth=block.nbytes / read_s, speed=2 * 1024**3 / product_s)


def limit_s(machine: Machine, rows: int, adapters: int, adapter_bytes: int) -> float:
    """Seconds that one decode step takes at least: base, adapters and attention run one after another, each bound by
    what it reads or by what it computes."""
    sizes = [(HIDDEN, HIDDEN), (HIDDEN, HIDDEN // 2), (HIDDEN, HIDDEN // 2), (HIDDEN, HIDDEN)]
    sizes += [(HIDDEN, world.INNER)] * 2 + [(world.INNER, HIDDEN)]
    linear = LAYERS * sum(a * b for a, b in sizes) + HIDDEN * VOCABULARY
    site = LAYERS * sum(a + b for a, b in sizes)
    rank, length, head = mean(RANKS), PROMPT + NEW / 2, HIDDEN // HEADS
    groups = (
        (4 * linear, 2 * rows * linear),
        (adapter_bytes * adapters * rank * site, 2 * rows * rank * site if adapters else 0),
        (rows * 2 * length * LAYERS * KV_HEADS * head * 4, 4 * rows * length * LAYERS * HEADS * head),
    )
    return sum(max(size / machine.bandwidth, work / machine.speed) for size, work in groups)


def show(title: str, table: Table) -> None:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    print(f"\n{title}\n\n| | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for name, row in table.items():
        print(f"| {name} | {' | '.join(row.get(column, '') for column in columns)} |")
    sys.stdout.flush()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="cases of `closed`, such as 'ours distinct 32'")
    parser.add_argument("--vllm", type=Path, help="the Python of an environment with vLLM, a peer of `closed`")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--adapter-dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rate", type=float, default=4.0, help="requests a second in `slora`")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of arrivals in `slora`")
    parser.add_argument("--out", type=Path, help="write the tables as JSON")
    return parser.parse_args()


def _engine(made: World, num_adapters: int, **options: Any) -> TorchEngine:
    engine = TorchEngine(made.base, EngineOptions(**{"max_batch": 32, "max_context": 512, **options}))
    for digest, folder in list(zip(made.digests, made.folders, strict=True))[:num_adapters]:
        engine.load(digest, folder)
    return engine


def _plain(made: World) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(made.base.path, dtype=torch.float32).eval()


def _peft(made: World, num_adapters: int) -> Any:
    from peft import PeftModel

    model = PeftModel.from_pretrained(_plain(made), made.folders[0], adapter_name="0")
    for number in range(1, num_adapters):
        model.load_adapter(made.folders[number], adapter_name=str(number))
    return model.eval()


def _request(name: str, prompt_ids: Sequence[int], digest: str, new_tokens: int) -> GenerationRequest:
    sampling = SamplingParameters(max_tokens=new_tokens, ignore_end=True)
    return GenerationRequest(
        request_id=name, prompt_ids=tuple(prompt_ids), adapter_digest=digest, sampling=sampling, tenant=name
    )


def _digest(made: World, mix: str, number: int) -> str:
    return {"none": "", "one": made.digests[1], "distinct": made.digests[number % 32]}[mix]


def _ours_closed(engine: TorchEngine, made: World, mix: str, count: int, turn: int, way: str = "") -> Spent:
    """Each loop has tenants of its own: it finds nothing that another one computed."""
    prompts = [world.prompt(PROMPT, 100 * turn + number) for number in range(count)]
    requests = [
        _request(f"{turn}-{count}-{way}-{number}", prompt, _digest(made, mix, number), NEW)
        for number, prompt in enumerate(prompts)
    ]
    return _spent(lambda: _closed_loop(engine, requests, count), count * NEW)


def _warm(engine: TorchEngine, made: World, peft: Any, plain: Any) -> None:
    """First calls allocate and choose kernels: once unmeasured, at 8 in flight."""
    _ours_closed(engine, made, "distinct", 8, 99)
    _peft_closed(peft, "distinct", 8, 99)
    _static(plain, 8, 99)


def _closed_loop(engine: TorchEngine, requests: list[GenerationRequest], count: int) -> None:
    waiting = list(reversed(requests))
    for _ in range(count):
        engine.add(waiting.pop())
    while engine.has_work():
        for event in engine.step():
            if event.is_last and waiting:
                engine.add(waiting.pop())


def _drain(engine: TorchEngine, requests: list[GenerationRequest]) -> None:
    _closed_loop(engine, requests, len(requests))


def _batch(count: int, turn: int) -> torch.Tensor:
    return torch.tensor([world.prompt(PROMPT, 100 * turn + number) for number in range(count)])


def _generate(model: Any, batch: torch.Tensor, **options: Any) -> None:
    with torch.inference_mode():
        model.generate(
            input_ids=batch, attention_mask=torch.ones_like(batch), max_new_tokens=NEW, min_new_tokens=NEW,
            do_sample=False, **options,
        )  # fmt: skip


def _static(model: Any, count: int, turn: int) -> Spent:
    return _spent(lambda: _generate(model, _batch(count, turn)), count * NEW)


def _peft_closed(model: Any, mix: str, count: int, turn: int) -> Spent:
    names = {"none": ["__base__"] * count, "one": ["1"] * count, "distinct": [str(number) for number in range(count)]}
    return _spent(lambda: _generate(model, _batch(count, turn), adapter_names=names[mix]), count * NEW)


class _VllmPeer:
    """vLLM in a process of its own, which says what each loop took of it. It starts here, which may take minutes."""

    def __init__(self, python: Path, dtype: str, made: World, adapters: Sequence[str]):
        script = Path(__file__).with_name("openlora_vllm.py")
        self._process = subprocess.Popen(
            [python, script, dtype, made.base.path, *adapters], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        told = self._read()
        print(f"vLLM {told['version']} {'with' if adapters else 'without'} LoRA: ready after {told['start_s']:.0f} s")
        self.closed("none", 8, 99)
        if adapters:
            self.closed("distinct", 8, 99)

    def closed(self, mix: str, count: int, turn: int) -> Spent:
        numbers = {"none": [None] * count, "one": [1] * count, "distinct": list(range(count))}[mix]
        asked = {"prompts": _batch(count, turn).tolist(), "adapters": numbers, "new_tokens": NEW}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return Spent(tokens=count * NEW, **self._read())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process with vLLM ended with {self._process.wait()}")
        return json.loads(line)


@contextmanager
def _vllm(arguments: argparse.Namespace, made: World) -> Iterator[dict[str, _VllmPeer]]:
    """With LoRA and without, where an environment is named and one of their cases is wanted."""
    peers: dict[str, _VllmPeer] = {}
    try:
        for who, adapters in (("vllm", [os.fspath(made.folders[0].parent)]), ("vllm-plain", [])):
            if arguments.vllm and any(name.split()[0] == who for name in arguments.only or [who]):
                peers[who] = _VllmPeer(arguments.vllm, arguments.dtype, made, adapters)
        yield peers
    finally:
        for peer in peers.values():
            peer.close()


def _first_token_s(thread: StepThread, digest: str, seed: int) -> float:
    told: list[float] = []
    begin = time.perf_counter()
    request = _request(f"person-{seed}", world.prompt(PROMPT, seed), digest, 4)
    done = []
    thread.submit(request, lambda event: (told.append(time.perf_counter()), done.append(event.is_last)))
    while not any(done):
        time.sleep(0.0005)
    return told[0] - begin


def _open_loop(engine: TorchEngine, made: World, traffic: Sequence[world.Arrival]) -> dict[str, str]:
    begin, cpu = time.perf_counter(), time.process_time()
    came: dict[str, float] = {}
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    coming = list(reversed(traffic))
    while coming or engine.has_work():
        now = time.perf_counter() - begin
        while coming and coming[-1].at_s <= now:
            each = coming.pop()
            name = str(len(came))
            came[name] = each.at_s
            engine.add(_request(name, each.prompt_ids, made.digests[each.adapter], each.new_tokens))
        for event in engine.step():
            first.setdefault(event.request_id, time.perf_counter() - begin)
            last[event.request_id] = time.perf_counter() - begin
        if coming and not engine.has_work():
            time.sleep(max(0.0, min(0.01, coming[-1].at_s - (time.perf_counter() - begin))))
    wall = time.perf_counter() - begin
    tokens = sum(each.new_tokens for each in traffic)
    waits = [1000 * (first[name] - came[name]) for name in came]
    return {
        "requests/s": f"{len(traffic) / wall:.2f}",
        "tokens/s": f"{tokens / wall:.0f}",
        "CPU ms a token": f"{1000 * (time.process_time() - cpu) / tokens:.2f}",
        "first token p50 / p95 (ms)": f"{median(waits):.0f} / {_p95(waits):.0f}",
        "mean latency (s)": f"{mean(last[name] - came[name] for name in came):.2f}",
    }


@contextmanager
def _clocked(engine: TorchEngine) -> Iterator[dict[str, float]]:
    """CPU time inside the kernels, and inside the base's own linear layers, while the block runs. A step that is one
    call shows as that."""
    spent = {"one call": 0.0, "base products": 0.0, "LoRA kernel": 0.0, "attention kernel": 0.0, "store": 0.0}
    restore: list[Callable[[], None]] = []

    def clock(owner: Any, name: str, as_name: str) -> None:
        plain = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.thread_time()
            result = plain(*arguments, **options)
            spent[as_name] += time.thread_time() - begin
            return result

        setattr(owner, name, timed)
        restore.append(lambda: setattr(owner, name, plain))

    for module in engine._model.model.modules():
        if hasattr(module, "_plain"):  # a layer with adapters
            clock(module, "_plain", "base products")
        elif isinstance(module, torch.nn.Linear):
            clock(module, "forward", "base products")
    if engine._kernels is not None:
        clock(engine._kernels, "step", "one call")
        clock(engine._kernels, "add_lora", "LoRA kernel")
        clock(engine._kernels, "attend", "attention kernel")
        clock(engine._kernels, "store", "store")
    try:
        yield spent
    finally:
        for each in restore:
            each()


def _spent(work: Callable[[], Any], tokens: int) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(wall_s=time.perf_counter() - wall, cpu_s=time.process_time() - cpu, tokens=tokens)


def _in_turn(
    runs: dict[str, Callable[[int], Spent]], rounds: int, only: Sequence[str] | None
) -> dict[str, list[Spent]]:
    chosen = {name: run for name, run in runs.items() if only is None or name in only}
    spent: dict[str, list[Spent]] = {name: [] for name in chosen}
    for turn in range(rounds):
        for name, run in chosen.items():
            spent[name].append(run(turn))
            last = spent[name][-1]
            print(f"round {turn + 1}/{rounds} {name}: {last.tokens_s:.0f} tokens/s, {last.cpu_ms:.2f} CPU ms a token",
                  file=sys.stderr, flush=True)  # fmt: skip
    return spent


def _closed_table(rounds: dict[str, list[Spent]], machine: Machine, adapter_bytes: int) -> Table:
    table: Table = {}
    for name, spent in rounds.items():
        who, mix, count = name.split()
        row = {
            "tokens/s": f"{median(each.tokens_s for each in spent):.0f}",
            "CPU ms a token": f"{median(each.cpu_ms for each in spent):.2f}",
        }
        if who == "ours":
            adapters = {"none": 0, "one": 1, "distinct": int(count)}[mix]
            limit = limit_s(machine, int(count), adapters, adapter_bytes)
            row["of the limit"] = f"{median(1000 * limit / (each.cpu_ms * int(count)) for each in spent):.0%}"
            row["to none, CPU"] = _faster(rounds, name, f"ours none {count}", "cpu_ms")
            row["to none, wall"] = _faster(rounds, name, f"ours none {count}", "wall_s")
            row["to PEFT, CPU"] = _faster(rounds, name, f"peft {mix} {count}", "cpu_ms")
            row["to PEFT, wall"] = _faster(rounds, name, f"peft {mix} {count}", "tokens_s")
            row["to vLLM, CPU"] = _faster(rounds, name, f"vllm {mix} {count}", "cpu_ms")
            if mix == "none":
                row["to vLLM without LoRA, CPU"] = _faster(rounds, name, f"vllm-plain none {count}", "cpu_ms")
                row["to transformers, CPU"] = _faster(rounds, name, f"transformers none {count}", "cpu_ms")
        table[f"{who}, {mix}, {count} in flight"] = row
    return table


def _faster(rounds: dict[str, list[Spent]], name: str, other: str, by: str) -> str:
    """How many times as fast `name` is."""
    if other not in rounds or name == other:
        return ""
    pairs = _pairs(rounds, name, other)
    if by == "cpu_ms":
        return _ratio([b.cpu_ms / a.cpu_ms for a, b in pairs])
    return _ratio([a.tokens_s / b.tokens_s for a, b in pairs])


def _pairs(rounds: dict[str, list[Spent]], a: str, b: str) -> list[tuple[Spent, Spent]]:
    return list(zip(rounds[a], rounds[b], strict=True))


def _ratio(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def _p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20)[-1]


if __name__ == "__main__":
    sys.exit(main())
