"""What stands around OpenLoRA's engine, measured: registry, slots, tiers, routing, and the way over HTTP and Ray Serve.

    python -m benchmarks.openlora_serve FOLDER
    python -m benchmarks.openlora_serve FOLDER --part slots disk --rounds 5

FOLDER keeps models and adapters, which are made from one seed. Parts:

    registry   10,000 adapters: what registering one and reading a page takes, at the beginning and at the end
    routing    what choosing a replica takes, with 100, 1,000 and 10,000 adapters
    slots      2,000 adapters, 64 slots, against room for all: closed loop of 32, power law over the adapters
    disk       time to the first token of an adapter on disk and of one in a slot, 8 others in flight
    bytes      what an adapter takes in slots and in the shared memory tier, against its file
    gateway    tokens a second at 32 in flight over HTTP, gateway and Ray Serve, streamed and not, against the bare
               engine in a process of its own: a burst of 64 requests, which begin and end together, and 256, over
               which they drift apart; CPU for each token by process; the time between two tokens of a stream, and
               from its last token to its end, at 1 and 8 in flight
    each       4 adapters on one engine, against an engine of its own for each: memory, tokens a second, CPU

What is compared runs in turn, round after round; a cell is the median over the rounds, a ratio the median of the
rounds' ratios with their range. The time is that of a wall clock: on a loaded machine read the ratios.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import openlora_world as world
from openledger.adapters.base_model import BaseModel, find_base_model
from openledger.adapters.card import adapter_digest
from openledger.adapters.checks import read_shapes
from openledger.adapters.registry import AdapterRegistry
from openledger.adapters.sources import SourceRules
from openledger.core.values import AdapterTerms, GenerationRequest, SamplingParameters
from openledger.openlora.routing import Homes
from openledger.openlora.server import AdapterServer, ServingOptions
from openledger.openlora.tiers import AdapterTiers, TierOptions
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

SEED = 20261125
IN_FLIGHT, PROMPT, NEW = 32, 48, 24
MANY, SLOTS, ALPHA = 2000, 64, 0.3
Row = dict[str, str]
_EACH = 4
_LONGER = 8  # times as many requests as are in flight
_PROCESSES = {
    "openledger:OpenLoRA": "engine",
    "openledger:Gateway": "gateway",
    "ProxyActor": "Serve's proxy",
    "Economy": "economy",
    "Ledger": "ledger",
}
_TOKENS = 1000  # the world's model has more tokens than its tokenizer, which the API doesn't take


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    for name in arguments.part:
        row = PARTS[name](arguments.folder, arguments.rounds)
        print(f"## {name}\n" + "\n".join(f"- {key}: {value}" for key, value in row.items()) + "\n", flush=True)
    return 0


def registry(folder: Path, rounds: int) -> Row:
    """Durable writes, so that a registration costs what the disk's sync costs."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        adapters = AdapterRegistry(Path(name))
        (Path(name) / "a").mkdir()
        took_s = []
        for number in range(10_000):
            begin = time.perf_counter()
            adapters.register(f"m{number:05d}", Path(name) / "a", f"{number:064x}", _terms(f"m{number:05d}", number))
            took_s.append(time.perf_counter() - begin)
        pages = [_timed(partial(adapters.page, after=after, limit=1000)) for after in ("", "m05000")]
        finds = [_timed(partial(adapters.get, f"m{number:05d}")) for number in range(0, 10_000, 10)]
        whole_s = _timed(adapters.list)
    return {
        "register, first 500 (median)": f"{1e3 * median(took_s[:500]):.2f} ms",
        "register, last 500 (median)": f"{1e3 * median(took_s[-500:]):.2f} ms",
        "a page of 1,000, first and in the middle": ", ".join(f"{1e3 * each:.1f} ms" for each in pages),
        "find one by name (median)": f"{1e6 * median(finds):.0f} µs",
        "list all 10,000": f"{whole_s:.2f} s",
    }


def routing(folder: Path, rounds: int) -> Row:
    loads = {f"replica-{number}": float(number) for number in range(8)}
    told = {}
    for number in (100, 1_000, 10_000):
        homes, digests = Homes(time.monotonic), [f"{n:064x}" for n in range(number)]
        for digest in digests:
            homes.count(digest)
        chosen = [digests[int(n)] for n in np.random.default_rng(SEED).integers(0, number, 2000)]
        took_s = median(_timed(partial(homes.rank, digest, loads)) for digest in chosen)
        told[f"choose among 8 replicas, {number:,} adapters"] = f"{1e6 * took_s:.0f} µs"
    return told


def slots(folder: Path, rounds: int) -> Row:
    """A small base and small adapters, so that all 2,000 fit into this machine's memory."""
    base, folders = small_world(folder / "small", MANY)
    digests = [adapter_digest(each) for each in folders]
    order = (np.random.default_rng(SEED).power(ALPHA, 4000) * MANY).astype(int)
    asked = [(digests[number], str(folders[number])) for number in order]

    async def run(max_resident: int) -> float:
        async with serving(base, folder, max_resident=max_resident) as server:
            if max_resident >= MANY:
                for digest, each in zip(digests, folders, strict=True):
                    await server.load(digest, str(each))
            await closed_loop(server, asked[:64])
            return await closed_loop(server, asked[64:704])

    pairs = [(asyncio.run(run(SLOTS)), asyncio.run(run(MANY))) for _ in range(rounds)]
    share = np.sort(np.bincount(order, minlength=MANY))[::-1]
    return {
        f"{SLOTS} slots for {MANY:,} adapters": f"{median(few for few, _ in pairs):.0f} tokens/s",
        "all resident": f"{median(every for _, every in pairs):.0f} tokens/s",
        "ratio": _ratio([few / every for few, every in pairs]),
        "traffic": f"alpha {ALPHA}, {share[: MANY // 10].sum() / share.sum():.0%} to the top 10 %, "
        f"{share[:SLOTS].sum() / share.sum():.0%} to the top {SLOTS}",
    }


def disk(folder: Path, rounds: int) -> Row:
    """The operating system may still have the files in its memory: what is measured is our way, not the device."""
    made = world.make_world(folder / "world", 40)
    asked = list(zip(made.digests, map(str, made.folders), strict=True))

    async def run() -> tuple[list[float], list[float]]:
        resident, on_disk = [], []
        async with serving(made.base, folder, max_resident=16, host=False) as server:
            await server.pin(*asked[0])
            busy = [asyncio.create_task(_keep_asking(server, asked[1])) for _ in range(8)]
            await asyncio.sleep(1.0)
            for number in range(30):
                resident.append(await _first_token_s(server, *asked[0]))
                on_disk.append(await _first_token_s(server, *asked[2 + number]))
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
        return resident, on_disk

    told = [asyncio.run(run()) for _ in range(rounds)]
    p95 = [(quantiles(resident, n=20)[-1], quantiles(on_disk, n=20)[-1]) for resident, on_disk in told]
    size = Path(asked[0][1], "adapter_model.safetensors").stat().st_size
    return {
        "p95, resident": f"{1e3 * median(one for one, _ in p95):.0f} ms",
        "p95, on disk": f"{1e3 * median(two for _, two in p95):.0f} ms",
        "median, resident and on disk": f"{1e3 * median(median(one) for one, _ in told):.0f}, "
        f"{1e3 * median(median(two) for _, two in told):.0f} ms",
        "p95 of on disk above resident": f"{1e3 * median(two - one for one, two in p95):.0f} ms",
        "adapter": f"{size / 1e6:.1f} MB (rank 8) and twice that (rank 16)",
    }


def bytes_of(folder: Path, rounds: int) -> Row:
    made = world.make_world(folder / "world", 40)
    files = sum(path.stat().st_size for each in made.folders[:16] for path in each.glob("*.safetensors"))

    async def run() -> tuple[int, int]:
        async with serving(made.base, folder, max_resident=16) as server:
            before = (await server.describe())["adapter_bytes"]
            for digest, each in zip(made.digests[:16], made.folders, strict=False):
                await server.load(digest, str(each))
                await server.unload(digest)  # the second time it comes to memory
                await server.load(digest, str(each))
            return (await server.describe())["adapter_bytes"] - before, server._loader._tiers.describe()["host_bytes"]

    in_slots, in_host = asyncio.run(run())
    return {
        "in slots, of its file": f"{in_slots / files:.3f}",
        "in the memory tier, of its file": f"{in_host / files:.3f}",
    }


def gateway(folder: Path, rounds: int) -> Row:
    """The bare engine runs in a process of its own, as the replica does; while one is asked the other is idle."""
    made = world.make_world(folder / "world", 40)
    rates: list[dict[str, Measured]] = []
    gaps: dict[int, list[tuple[Measured, Measured]]] = {1: [], 8: []}
    with bare_engine(made) as bare, deployed(folder, made) as url:
        for num_requests in (IN_FLIGHT, 2 * IN_FLIGHT):  # every adapter is loaded then, and every prompt is known
            bare(IN_FLIGHT, num_requests, False)
            _over_http(url, IN_FLIGHT, num_requests)
        for number_of_round in range(rounds):
            rates.append(
                {
                    "streamed": _over_http(url, IN_FLIGHT, 2 * IN_FLIGHT),
                    "whole": _over_http(url, IN_FLIGHT, 2 * IN_FLIGHT, stream=False),
                    "streamed for longer": _over_http(url, IN_FLIGHT, _LONGER * IN_FLIGHT),
                    "bare": bare(IN_FLIGHT, 2 * IN_FLIGHT, False),
                }
            )
            told_rates = ", ".join(f"{name} {each.tokens_per_s:.0f} tokens/s" for name, each in rates[-1].items())
            print(f"round {number_of_round + 1} of {rounds}: {told_rates}", file=sys.stderr, flush=True)
            for number, told in gaps.items():
                told.append((_over_http(url, number, 4 * number, scored=True), bare(number, 4 * number, True)))
    return {**_rate_rows(rates), **_gap_rows(gaps)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`gaps_s` between two tokens of an answer, `ends_s` from its last token to its end; `cpu_us` for each token, by
    process."""

    tokens_per_s: float
    gaps_s: list[float]
    ends_s: list[float] = field(default_factory=list)
    cpu_us: dict[str, float]


def _rate_rows(rates: Sequence[dict[str, Measured]]) -> Row:
    row = {}
    ours = [name for name in rates[0] if name != "bare"]
    for name in (*ours, "bare"):
        row[f"{name}, {IN_FLIGHT} in flight"] = f"{median(each[name].tokens_per_s for each in rates):.0f} tokens/s"
        row[f"{name}, CPU for each token"] = _cpu([each[name].cpu_us for each in rates])
    for name in ours:
        row[f"{name}, of the bare engine's tokens/s"] = _ratio(
            [each[name].tokens_per_s / each["bare"].tokens_per_s for each in rates]
        )
        row[f"{name}, limit by CPU on {os.cpu_count()} cores"] = _ratio(
            [_limit(each[name], each["bare"]) for each in rates]
        )
    return row


def _limit(ours: Measured, bare: Measured) -> float:
    """Of the bare engine's throughput, were nothing else to run here: the engine has one thread, and no more can be
    done than the cores have time for."""
    bare_us, engine_us = bare.cpu_us["bare engine"], ours.cpu_us["engine"]
    return bare_us / max(engine_us, sum(ours.cpu_us.values()) / (os.cpu_count() or 1))


def _gap_rows(gaps: dict[int, list[tuple[Measured, Measured]]]) -> Row:
    row = {}
    for number, told in gaps.items():
        for name, of in (("p95", lambda times: quantiles(times, n=20)[-1]), ("median", median)):
            pairs = [(1e3 * of(ours.gaps_s), 1e3 * of(bare.gaps_s)) for ours, bare in told]
            added = [ours - bare for ours, bare in pairs]
            row[f"between two tokens, {number} in flight, {name}"] = (
                f"HTTP {median(ours for ours, _ in pairs):.1f} ms, bare {median(bare for _, bare in pairs):.1f} ms; "
                f"added {median(added):.1f} ms ({min(added):.1f} to {max(added):.1f})"
            )
        ends_ms = [1e3 * end_s for ours, _ in told for end_s in ours.ends_s]
        row[f"from the last token to the paid end, {number} in flight"] = f"median {median(ends_ms):.1f} ms"
    return row


def each(folder: Path, rounds: int) -> Row:
    """What people do without multiplexing: the base again for each adapter. Memory is what is a process's own (USS):
    pages of the base's file that processes share are counted for neither."""
    made = world.make_world(folder / "world", 40)
    shared, alone = [], []
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(bare_engine(made, range(_EACH)))
        many = [stack.enter_context(bare_engine(made, [number])) for number in range(_EACH)]
        for ask in (one, *many):
            ask(IN_FLIGHT // _EACH, IN_FLIGHT, False)
        for _ in range(rounds):
            shared.append(one(IN_FLIGHT, 2 * IN_FLIGHT, False))
            begin_s = time.perf_counter()
            with ThreadPoolExecutor(_EACH) as pool:
                told = list(pool.map(lambda ask: ask(IN_FLIGHT // _EACH, 2 * IN_FLIGHT // _EACH, False), many))
            took_s = time.perf_counter() - begin_s
            alone.append((2 * IN_FLIGHT * NEW / took_s, sum(each.cpu_us["bare engine"] for each in told) / _EACH))
        bytes_one, bytes_many = one.memory_bytes(), [ask.memory_bytes() for ask in many]
    adapter_bytes = sum(path.stat().st_size for f in made.folders[:_EACH] for path in f.glob("*.safetensors")) / _EACH
    rates = [ours.tokens_per_s / theirs for ours, (theirs, _) in zip(shared, alone, strict=True)]
    cpu = [ours.cpu_us["bare engine"] / theirs for ours, (_, theirs) in zip(shared, alone, strict=True)]
    return {
        f"own memory of one engine with {_EACH} adapters": f"{bytes_one / 2**20:.0f} MiB",
        f"of {_EACH} engines with one each": f"{sum(bytes_many) / 2**20:.0f} MiB",
        "adapters in a further GiB (by their files); engines": f"{2**30 / adapter_bytes:.0f}; "
        f"{2**30 / median(bytes_many):.1f}",
        "tokens/s, of an engine each": _ratio(rates),
        "CPU s per million tokens": f"{median(ours.cpu_us['bare engine'] for ours in shared):.0f}; "
        f"{median(theirs for _, theirs in alone):.0f}; ratio {_ratio(cpu)}",
    }


@contextlib.asynccontextmanager
async def serving(base: BaseModel, folder: Path, max_resident: int, host: bool = True) -> AsyncIterator[AdapterServer]:
    root = Path(tempfile.mkdtemp(dir=folder))
    tiers = TierOptions(disk_folder=str(root / "disk"), host_folder=str(root / "host") if host else "")
    server = AdapterServer(
        TorchEngine(base, EngineOptions(max_batch=IN_FLIGHT)),
        AdapterRegistry(root / "registry"),
        ServingOptions(max_resident=max_resident),
        AdapterTiers(tiers, SourceRules()),
    )
    await server.start()
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(root, ignore_errors=True)


async def closed_loop(server: AdapterServer, asked: Sequence[tuple[str, str]]) -> float:
    """Tokens a second with `IN_FLIGHT` requests in flight, until all have been answered."""
    waiting, tokens = list(enumerate(asked))[::-1], 0

    async def worker() -> None:
        nonlocal tokens
        while waiting:
            number, (digest, place) = waiting.pop()
            async for event in server.generate(_request(number, digest), place):
                assert event.error is None, event.error
                tokens += len(event.token_ids)

    begin = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return tokens / (time.perf_counter() - begin)


class BareEngine:
    """An engine in a process of its own."""

    def __init__(self, process: Any, pipe: Any):
        self._process, self._pipe = process, pipe

    def __call__(self, in_flight: int, num_requests: int, scored: bool) -> Measured:
        before_s = _cpu_s(self._process.pid)
        self._pipe.send((in_flight, num_requests, scored))
        rate, gaps = self._pipe.recv()
        cpu_us = 1e6 * (_cpu_s(self._process.pid) - before_s) / (num_requests * NEW)
        return Measured(tokens_per_s=rate, gaps_s=gaps, cpu_us={"bare engine": cpu_us})

    def memory_bytes(self) -> int:
        return int(psutil.Process(self._process.pid).memory_full_info().uss)


@contextlib.contextmanager
def bare_engine(made: world.World, adapters: Sequence[int] = range(IN_FLIGHT)) -> Iterator[BareEngine]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_bare, args=(theirs, made, tuple(adapters)), daemon=True)
    process.start()
    yield BareEngine(process, ours)
    ours.send(None)
    process.join(30)


def _run_bare(pipe: Any, made: world.World, adapters: Sequence[int]) -> None:
    torch.set_num_threads(1)
    engine = TorchEngine(made.base, EngineOptions(max_batch=IN_FLIGHT))
    digests = [made.digests[number] for number in adapters]
    for number, digest in zip(adapters, digests, strict=True):
        engine.load(digest, made.folders[number])
    while asked := pipe.recv():
        pipe.send(_bare_loop(engine, digests, *asked))


def _bare_loop(
    engine: TorchEngine, digests: Sequence[str], in_flight: int, num_requests: int, scored: bool
) -> tuple[float, list[float]]:
    """The end of each request lets the next in."""
    waiting = [_request(n, digests[n % len(digests)], scored) for n in range(num_requests)]
    last_s: dict[str, float] = {}
    gaps, tokens, begin = [], 0, time.perf_counter()
    for _ in range(in_flight):
        engine.add(waiting.pop())
    while engine.has_work():
        for event in engine.step():
            now_s, tokens = time.perf_counter(), tokens + len(event.token_ids)
            if event.request_id in last_s:
                gaps.append(now_s - last_s[event.request_id])
            last_s[event.request_id] = now_s
            if event.is_last and waiting:
                engine.add(waiting.pop())
    return tokens / (time.perf_counter() - begin), gaps


@contextlib.contextmanager
def deployed(folder: Path, made: world.World) -> Iterator[str]:
    """The whole application on a cluster of its own: the URL."""
    from openledger.platform.actors import economy_actor
    from openledger.platform.cluster import connected, free_port
    from openledger.platform.serving import start_serving
    from openledger.platform.workdir import Workdir

    workdir = Workdir(Path(tempfile.mkdtemp(dir=folder)))
    adapters = AdapterRegistry(workdir.adapters)
    for number, (digest, each) in enumerate(zip(made.digests[:IN_FLIGHT], made.folders, strict=False)):
        adapters.register(f"m{number}", None, digest, _terms(f"m{number}", digest), source=str(each.resolve()))
    with connected(workdir, num_cpus=4):
        import ray
        from ray import serve

        economy = economy_actor(workdir)
        ray.get(economy.grant.remote("user:bench", 10**15, "bench"))
        url = f"http://127.0.0.1:{free_port()}"
        os.environ["BENCH_KEY"] = ray.get(economy.create_key.remote("user:bench"))
        start_serving(workdir, str(Path(made.base.path).resolve()), url)
        yield url
        serve.shutdown()
    shutil.rmtree(workdir.root, ignore_errors=True)


def _over_http(url: str, in_flight: int, num_requests: int, *, stream: bool = True, scored: bool = False) -> Measured:
    """Log-probabilities are asked for where single tokens are to be told apart in what is streamed."""
    before = _cpu_by_process()
    rate, gaps, ends = asyncio.run(_http_loop(url, in_flight, num_requests, stream, scored))
    spent = {name: told_s - before.get(name, 0.0) for name, told_s in _cpu_by_process().items()}
    cpu_us = {name: 1e6 * spent_s / (num_requests * NEW) for name, spent_s in spent.items()}
    return Measured(tokens_per_s=rate, gaps_s=gaps, ends_s=ends, cpu_us=cpu_us)


async def _http_loop(
    url: str, in_flight: int, num_requests: int, stream: bool, scored: bool
) -> tuple[float, list[float], list[float]]:
    waiting, gaps, ends, tokens = list(range(num_requests)), list[float](), list[float](), 0
    headers = {"Authorization": f"Bearer {os.environ['BENCH_KEY']}"}

    async def worker(client: httpx.AsyncClient) -> None:
        nonlocal tokens
        while waiting:
            body = _body(waiting.pop(), stream, scored)
            told = await (_streamed(client, url, body, gaps, ends) if stream else _whole(client, url, body))
            tokens += told  # not in one line with the above, which would read the sum before the wait

    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(timeout=600, limits=limits, headers=headers) as client:
        begin = time.perf_counter()
        await asyncio.gather(*(worker(client) for _ in range(in_flight)))
        return tokens / (time.perf_counter() - begin), gaps, ends


def _body(number: int, stream: bool, scored: bool) -> dict[str, Any]:
    return {
        "model": f"m{number % IN_FLIGHT}",
        "prompt": [token % _TOKENS for token in world.prompt(PROMPT, number)],
        "max_tokens": NEW,
        "ignore_eos": True,
        "stream": stream,
        "stream_options": {"include_usage": True} if stream else None,
        "logprobs": 0 if scored else None,
    }


async def _whole(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> int:
    response = await client.post(f"{url}/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["completion_tokens"])


async def _streamed(
    client: httpx.AsyncClient, url: str, body: dict[str, Any], gaps: list[float], ends: list[float]
) -> int:
    """The tokens of the answer. `gaps` gets the times between its events, over the tokens in them; `ends` the time
    from the last token to what says that it was."""
    last_s, told = None, 0
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            if event.get("usage"):
                told = event["usage"]["completion_tokens"]
            elif scores := event["choices"][0]["logprobs"]:
                now_s, number_told = time.perf_counter(), len(scores["tokens"])
                if last_s is not None:
                    gaps.extend([(now_s - last_s) / number_told] * number_told)
                last_s = now_s
            elif event["choices"][0]["finish_reason"] and last_s is not None:
                ends.append(time.perf_counter() - last_s)
    return int(told)


def _cpu_by_process() -> dict[str, float]:
    """CPU seconds of this process (the client) and of Ray's below it, by what they are."""
    spent: dict[str, float] = {"client": _cpu_s(os.getpid())}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            name = next((name for part, name in _PROCESSES.items() if part in line), "rest of Ray")
            if "multiprocessing" not in line:
                spent[name] = spent.get(name, 0.0) + _cpu_s(process.pid)
    return spent


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _cpu(told: Sequence[dict[str, float]]) -> str:
    parts = {name: median(each.get(name, 0.0) for each in told) for name in told[0]}
    return ", ".join(f"{name} {us:.0f}" for name, us in sorted(parts.items(), key=lambda part: -part[1])) + " µs"


async def _first_token_s(server: AdapterServer, digest: str, place: str) -> float:
    begin = time.perf_counter()
    request = replace(_request(0, digest), sampling=SamplingParameters(max_tokens=2, ignore_end=True))
    async for event in server.generate(request, place):
        assert event.error is None, event.error
        return time.perf_counter() - begin
    raise AssertionError("no token came")


async def _keep_asking(server: AdapterServer, asked: tuple[str, str]) -> None:
    while True:
        async for _ in server.generate(_request(1, asked[0]), asked[1]):
            pass


def small_world(folder: Path, num_adapters: int) -> tuple[BaseModel, list[Path]]:
    """A Llama of hidden size 256 with 4 layers; adapters of rank 4 on query and value projections."""
    if not (folder / "base" / "config.json").exists():
        torch.manual_seed(SEED)
        config = LlamaConfig(
            vocab_size=world.VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
            eos_token_id=1, pad_token_id=0, bos_token_id=None,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / "base")
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(world.EMBEDDED / name, folder / "base" / name)
    base = find_base_model(str(folder / "base"))
    modules = {name: shape for name, shape in read_shapes(base).modules.items() if name.endswith(("q_proj", "v_proj"))}
    folders = [folder / "adapters" / f"{number:04d}" for number in range(num_adapters)]
    for number, each in enumerate(folders):
        if not (each / "adapter_config.json").exists():
            _small_adapter(each, modules, number)
    return base, folders


def _small_adapter(folder: Path, modules: dict[str, tuple[int, int]], number: int) -> None:
    generator = torch.Generator().manual_seed(SEED + number)
    tensors = {}
    for module, (size_in, size_out) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(4, size_in, generator=generator) / 16
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(size_out, 4, generator=generator) * 0.02
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _request(number: int, digest: str, scored: bool = False) -> GenerationRequest:
    return GenerationRequest(
        request_id=f"{number}-{time.monotonic_ns()}",
        prompt_ids=tuple(token % _TOKENS for token in world.prompt(PROMPT, number)),
        adapter_digest=digest,
        sampling=SamplingParameters(max_tokens=NEW, ignore_end=True, logprobs=0 if scored else None),
    )


def _terms(name: str, digest: str | int) -> AdapterTerms:
    digest = digest if isinstance(digest, str) else f"{digest:064x}"
    return AdapterTerms(
        adapter=name, adapter_digest=digest, datanet="bench", datanet_version=1, row_root="00",
        owner_account="user:owner", prompt_price_nano=1, completion_price_nano=1,
    )  # fmt: skip


def _timed(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def _ratio(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} rounds)"


PARTS: dict[str, Callable[[Path, int], Row]] = {
    "registry": registry, "routing": routing, "bytes": bytes_of, "disk": disk, "slots": slots, "gateway": gateway,
    "each": each,
}  # fmt: skip


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="keeps models and adapters, about 350 MB")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
