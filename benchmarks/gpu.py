"""OpenLoRA and attribution on a GPU: whether what is computed is right, then how fast.

    python -m benchmarks.gpu FOLDER
    python -m benchmarks.gpu FOLDER --part kernels greedy decode --base small --dtype bfloat16

FOLDER keeps models and adapters, made from one seed (100 MB for `small`, 3.5 GB for `1b`, 18 GB for `8b`). Parts, each
of which prints a table and joins it to --out (JSON), so that parts run apart stand together there:

    kernels   attention and LoRA products against float64, the error's norm over the result's, at the base's sizes
    greedy    fp32: a mixed batch of the engine against PEFT, one request at a time, token by token
    decode    closed loops at 1, 8, 32 and 128 requests in flight (64 tokens read, 64 made): no adapter, one for all, 32
              distinct. Ours and PEFT's mixed batch (`adapter_names`). Of a decode step, how long it takes and how long
              of it the GPU computes, and the part of the bandwidth limit that either reaches: bytes of weights,
              adapters, keys and values over the bandwidth of a copy measured in the same run
    steps     where the GPU's time goes in a decode step, by kernel (torch's profiler), in microseconds
    training, index, replay, bank
              of attribution, on the GPU and by the same code on the CPU of the same machine: throughput, and how far
              the results are apart (benchmarks/gpu_attribution.py)

`small` is the Llama of benchmarks/openlora_world.py; `1b` and `8b` have the shapes of Llama 3.2 1B and 3.1 8B, with
random weights, and adapters of rank 16 on all linear layers. vLLM is no peer here: it could not be installed where the
published figures were taken (docs/decisions/0015-engine-on-a-gpu.md).
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks import gpu_attribution, openlora_world
from benchmarks.openlora_world import SEED, World
from openledger.adapters.base_model import EMBEDDED, find_base_model, load_tokenizer_from
from openledger.adapters.card import adapter_digest
from openledger.adapters.checks import read_shapes
from openledger.core.values import GenerationRequest, SamplingParameters
from openledger.openlora.attention import attend_piece
from openledger.openlora.native import Rows, Weighing
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

PROMPT, NEW, PEFT_NEW = 64, 64, 16
IN_FLIGHT = (1, 8, 32, 128)
MIXES = ("none", "one", "distinct")
ADAPTERS, RANK = 32, 16
STEPS = 32  # of decoding, timed one by one
_LLAMA = {"max_position_embeddings": 8192, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        **_LLAMA, "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "8b": {
        **_LLAMA, "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Table = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    made: World
    name: str
    dtype: str
    rounds: int
    bandwidth: float  # bytes a second
    with_peft: bool


def main() -> int:
    arguments = parse_arguments()
    torch.manual_seed(SEED)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    bandwidth = copy_bandwidth()
    machine = {
        "GPU": torch.cuda.get_device_name(), "CPU cores": str(os.cpu_count()), "torch": torch.__version__,
        "copy": f"{bandwidth / 1e12:.2f} TB/s", "bf16 product": f"{product_speed() / 1e12:.0f} TFLOP/s",
        "seed": str(SEED),
    }  # fmt: skip
    results["machine"] = {"": machine}
    print(machine, flush=True)
    made = make_world(arguments.folder / arguments.base, arguments.base)
    setting = Setting(
        made=made, name=arguments.base, dtype=arguments.dtype, rounds=arguments.rounds, bandwidth=bandwidth,
        with_peft=not arguments.without_peft,
    )  # fmt: skip
    for part in arguments.part:
        begin_s = time.perf_counter()
        title = f"{part}, {setting.name}" + (f", {setting.dtype}" if part in ("kernels", "decode", "steps") else "")
        results[title] = PARTS[part](setting)
        arguments.out.write_text(json.dumps(results, indent=1))
        print(printed(title, results[title]) + f"\n({time.perf_counter() - begin_s:.0f} s)", flush=True)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--base", choices=["small", *SHAPES], default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-peft", action="store_true", help="in `decode` ours alone")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    return parser.parse_args()


# The machine


def copy_bandwidth() -> float:
    """Bytes read and written a second, by the best of several copies far larger than the cache."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_gpu_s(lambda: target.copy_(source)) for _ in range(5))


def product_speed() -> float:
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return float(2 * 8192**3 / min(_gpu_s(lambda: square @ square) for _ in range(5)))


def _gpu_s(work: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


# Models and adapters


def make_world(folder: Path, name: str) -> World:
    if name == "small":
        return openlora_world.make_world(folder, ADAPTERS)
    base = folder / "base"
    if not (base / "model.safetensors").exists() and not list(base.glob("model-*.safetensors")):
        _make_base(base, SHAPES[name])
    found = find_base_model(str(base))
    shapes = read_shapes(found).modules
    folders = tuple(folder / "adapters" / f"{number:04d}" for number in range(ADAPTERS))
    for number, each in enumerate(folders):
        if not (each / "adapter_config.json").exists():
            _make_adapter(shapes, each, number)
    return World(base=found, folders=folders, digests=tuple(adapter_digest(each) for each in folders))


def _make_base(folder: Path, shape: dict[str, Any]) -> None:
    torch.manual_seed(SEED)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    model.lm_head.weight.data[len(load_tokenizer_from(EMBEDDED)) :] = 0  # answers are of tokens that have a text
    model.save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copy(EMBEDDED / name, folder / name)


def _make_adapter(shapes: Any, folder: Path, number: int) -> None:
    generator = torch.Generator("cuda").manual_seed(SEED + number)
    like: dict[str, Any] = {"generator": generator, "device": "cuda"}
    tensors = {}
    for module, (size_in, size_out) in shapes.items():
        a_RI, b_OR = torch.randn(RANK, size_in, **like) / size_in**0.5, torch.randn(size_out, RANK, **like) * 0.02
        tensors[f"base_model.model.{module}.lora_A.weight"] = a_RI.bfloat16().cpu()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b_OR.bfloat16().cpu()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({module.rpartition(".")[2] for module in shapes})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def engine_of(setting: Setting, **options: Any) -> TorchEngine:
    limits = {"max_batch": max(IN_FLIGHT), "max_context": 1024, "kv_bytes": 8 << 30, "step_tokens": 4096}
    engine = TorchEngine(setting.made.base, EngineOptions(device="cuda", **{**limits, **options}))
    for digest, folder in zip(setting.made.digests, setting.made.folders, strict=True):
        engine.load(digest, folder)
    return engine


def peft_of(setting: Setting, dtype: torch.dtype) -> Any:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(setting.made.base.path, dtype=dtype).to("cuda").eval()
    options: dict[str, Any] = {"low_cpu_mem_usage": True, "autocast_adapter_dtype": False}
    found = PeftModel.from_pretrained(model, setting.made.folders[0], adapter_name="0", **options)
    for number in range(1, ADAPTERS):
        found.load_adapter(setting.made.folders[number], adapter_name=str(number), **options)
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to("cuda", dtype)
    return found.eval()


# Whether it is right


def kernels(setting: Setting) -> Table:
    from openledger.openlora.triton_kernels import TritonKernels

    ours, dtype = TritonKernels(), getattr(torch, setting.dtype)
    return {
        **{f"attention, {rows} rows": _attention_error(ours, rows, dtype) for rows in (1, 32, 128)},
        **{f"LoRA, {rows} rows, 32 adapters": _lora_error(ours, rows, dtype) for rows in (32, 128, 1024)},
    }


def _attention_error(ours: Any, rows: int, dtype: torch.dtype) -> dict[str, str]:
    heads, kv_heads, size, longest = 32, 8, 64, 1024
    lengths = torch.randint(1, longest + 1, (rows,))
    num_blocks = longest // 16
    tables = torch.randperm(rows * num_blocks).view(rows, -1).to("cuda", torch.int32)
    keys = torch.randn(rows * num_blocks, kv_heads, size, 16, device="cuda", dtype=dtype)
    values = torch.randn(rows * num_blocks, kv_heads, 16, size, device="cuda", dtype=dtype)
    query_HTd = torch.randn(rows, heads, size, device="cuda", dtype=dtype).transpose(0, 1)
    out_THd = torch.full((rows, heads, size), float("nan"), device="cuda", dtype=dtype)
    told = Rows(
        tables=tables,
        row_tables=torch.arange(rows, device="cuda", dtype=torch.int32),
        lengths=lengths.to("cuda", torch.int32),
    )
    weighing = Weighing(scale=size**-0.5)
    ours.attend(query_HTd, keys, values, told, out_THd, weighing)
    expected = torch.stack([
        attend_piece(
            query_HTd[None, :, row : row + 1].double(),
            keys[tables[row].long()].permute(1, 0, 3, 2).flatten(1, 2)[None, :, : lengths[row]].double(),
            values[tables[row].long()].permute(1, 0, 2, 3).flatten(1, 2)[None, :, : lengths[row]].double(),
            int(lengths[row]) - 1, weighing,
        )[0]
        for row in range(rows)
    ])  # fmt: skip
    return {"error": f"{float((out_THd.double() - expected).norm() / expected.norm()):.1e}"}


def _lora_error(ours: Any, rows: int, dtype: torch.dtype) -> dict[str, str]:
    from openledger.adapters.checks import AdapterDescription, AdapterWeights
    from openledger.openlora.lora import Run
    from openledger.openlora.lora_triton import TritonProducts

    size_in, size_out, each = 2048, 8192, rows // 32
    products = TritonProducts(ours, ["m"], dtype, torch.device("cuda"))
    description = AdapterDescription(folder="", digest="", ranks={}, num_parameters=0, card=None)
    x_TI, y_TO = (torch.randn(rows, size, device="cuda", dtype=dtype) for size in (size_in, size_out))
    expected, runs = y_TO.double(), []
    for number in range(32):
        rank = 1 + 2 * number
        a_RI, b_OR = torch.randn(rank, size_in) / size_in**0.5, torch.randn(size_out, rank)
        products.install(str(number), AdapterWeights(description=description, factors={"m": (a_RI, b_OR, 1.0)}))
        runs.append(Run(number * each, (number + 1) * each, str(number)))
        own = slice(runs[-1].begin, runs[-1].end)
        a_RI, b_OR = (factor.to("cuda", dtype).double() for factor in (a_RI, b_OR))
        expected[own] += x_TI[own].double() @ a_RI.t() @ b_OR.t()
    products.plan(runs).add("m", x_TI, y_TO)
    return {"error": f"{float((y_TO.double() - expected).norm() / expected.norm()):.1e}"}


def greedy(setting: Setting) -> Table:
    """Where the two best logits are closer than 1e-4 either choice is right, and the comparison of that answer ends."""
    engine, peft = engine_of(setting, dtype="float32"), peft_of(setting, torch.float32)
    names = [None, *range(7)] * 2
    asked = [
        _request(str(number), _prompt(10 + 11 * number, number), "" if own is None else setting.made.digests[own], 48)
        for number, own in enumerate(names)
    ]
    told = engine.describe()
    answers = _answers(engine, asked)
    equal = compared = 0
    for number, own in enumerate(names):
        tokens, gaps = _peft_alone(peft, asked[number].prompt_ids, own, 48)
        close = next((place for place, gap in enumerate(gaps) if gap < 1e-4), len(tokens))
        equal += sum(a == b for a, b in zip(answers[str(number)][:close], tokens[:close], strict=True))
        compared += close
    paths = ", ".join(str(told[name]) for name in ("attention_path", "decode_path"))
    return {f"{len(names)} answers of 48 tokens, 7 adapters and none": {"equal": f"{equal} of {compared}", "by": paths}}


def _answers(engine: TorchEngine, asked: Sequence[GenerationRequest]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {each.request_id: [] for each in asked}
    for each in asked:
        engine.add(each)
    while engine.has_work():
        for event in engine.step():
            if event.error:
                raise SystemExit(str(event.error))
            found[event.request_id] += event.token_ids
    return found


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _peft_alone(model: Any, prompt: Sequence[int], own: int | None, count: int) -> tuple[list[int], list[float]]:
    ids = torch.tensor([prompt], device="cuda")
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
        do_sample=False, return_dict_in_generate=True, output_logits=True,
        adapter_names=["__base__" if own is None else str(own)],
    )  # fmt: skip
    best = [logits[0].topk(2).values for logits in output.logits]
    return output.sequences[0, len(prompt) :].tolist(), [float(pair[0] - pair[1]) for pair in best]


# How fast


def decode(setting: Setting) -> Table:
    table: Table = {}
    engine = engine_of(setting, dtype=setting.dtype)
    print({name: engine.describe()[name] for name in ("lora_path", "decode_path", "dtype", "adapter_dtype")})
    base_bytes = _base_bytes(engine)
    for mix in MIXES:
        for count in IN_FLIGHT:
            _closed(engine, setting, mix, count, "warm")
            speeds = [_closed(engine, setting, mix, count, str(turn)) for turn in range(setting.rounds)]
            step_s, gpu_s = _step_s(engine, setting, mix, count)
            read = base_bytes + _read_bytes(engine, setting, mix, count)
            limit_s = read / setting.bandwidth
            table[f"{mix}, {count} in flight"] = {
                "tokens/s": f"{median(speeds):,.0f}",
                "to none": _ratio(table, mix, count, median(speeds)),
                "decode step (ms)": f"{1e3 * step_s:.2f}",
                "of it the GPU": f"{1e3 * gpu_s:.2f}",
                "read (GB)": f"{read / 1e9:.2f}",
                "of the limit, GPU": f"{limit_s / gpu_s:.0%}",
                "of the limit, step": f"{limit_s / step_s:.0%}",
            }
            print(mix, count, table[f"{mix}, {count} in flight"], flush=True)
    del engine
    torch.cuda.empty_cache()
    if setting.with_peft:
        _add_peft(table, setting)
    return table


def _ratio(table: Table, mix: str, count: int, speed: float) -> str:
    if mix == "none":
        return "1.00"
    return f"{speed / float(table[f'none, {count} in flight']['tokens/s'].replace(',', '')):.2f}"


def _add_peft(table: Table, setting: Setting) -> None:
    peft = peft_of(setting, getattr(torch, setting.dtype))
    _peft_speed(peft, "one", 1)
    for mix in MIXES:
        for count in IN_FLIGHT:
            figures, speed = table[f"{mix}, {count} in flight"], _peft_speed(peft, mix, count)
            figures["PEFT, tokens/s"] = f"{speed:,.0f}"
            figures["to PEFT"] = f"{float(figures['tokens/s'].replace(',', '')) / speed:.1f}"
            print("peft", mix, count, figures["PEFT, tokens/s"], flush=True)


def _peft_speed(model: Any, mix: str, count: int) -> float:
    """The prompt counts as it does for ours: of `NEW` tokens, as many steps as `PEFT_NEW` took are counted up."""
    ids = torch.tensor([_prompt(PROMPT, number) for number in range(count)], device="cuda")
    names = {
        "none": ["__base__"] * count,
        "one": ["1"] * count,
        "distinct": [str(number % ADAPTERS) for number in range(count)],
    }[mix]
    first_s = _peft_s(model, ids, names, 1)
    some_s = _peft_s(model, ids, names, PEFT_NEW)
    return count * NEW / (first_s + (some_s - first_s) / (PEFT_NEW - 1) * (NEW - 1))


@torch.inference_mode()  # type: ignore[untyped-decorator]
def _peft_s(model: Any, ids: torch.Tensor, names: list[str], count: int) -> float:
    torch.cuda.synchronize()
    begin_s = time.perf_counter()
    model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
        do_sample=False, adapter_names=names,
    )  # fmt: skip
    torch.cuda.synchronize()
    return time.perf_counter() - begin_s


def _closed(engine: TorchEngine, setting: Setting, mix: str, count: int, turn: str) -> float:
    """Tokens a second of `count` requests at once. Each loop has tenants of its own, and finds nothing in the cache."""
    asked = [
        _request(f"{turn}-{mix}-{count}-{number}", _prompt(PROMPT, number), _digest(setting.made, mix, number), NEW)
        for number in range(count)
    ]
    begin_s = time.perf_counter()
    answers = _answers(engine, asked)
    taken_s = time.perf_counter() - begin_s
    assert all(len(tokens) == NEW for tokens in answers.values())
    return count * NEW / taken_s


def steps(setting: Setting) -> Table:
    engine, table = engine_of(setting, dtype=setting.dtype), {}
    for mix, count in (("none", 1), ("distinct", 1), ("none", 32), ("distinct", 32)):
        _begin(engine, setting, mix, count)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(STEPS):
                engine.step()
        _end(engine, mix, count)
        spent = sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)[:14]
        table[f"{mix}, {count} in flight"] = {
            each.key[:40]: f"{each.self_device_time_total / STEPS:.0f} in {each.count / STEPS:.0f}" for each in spent
        }
    return table


def _begin(engine: TorchEngine, setting: Setting, mix: str, count: int) -> None:
    """Read `count` prompts, and take the steps in which graphs are captured."""
    for number in range(count):
        engine.add(
            _request(f"s-{mix}-{count}-{number}", _prompt(PROMPT, number), _digest(setting.made, mix, number), NEW)
        )
    while len(engine.step()) < count:
        pass
    for _ in range(4):
        engine.step()


def _end(engine: TorchEngine, mix: str, count: int) -> None:
    for number in range(count):
        engine.cancel(f"s-{mix}-{count}-{number}")
    engine.step()


def _step_s(engine: TorchEngine, setting: Setting, mix: str, count: int) -> tuple[float, float]:
    """Of a decode step, the wall time and the GPU's, medians over `STEPS`."""
    model, spans = engine._model, []
    plain = model.logits

    def clocked(*arguments: Any) -> torch.Tensor:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        logits = plain(*arguments)
        end.record()
        spans.append((begin, end))
        return logits

    _begin(engine, setting, mix, count)
    walls, model.logits = [], clocked  # type: ignore[method-assign]
    for _ in range(STEPS):
        begin_s = time.perf_counter()
        engine.step()
        walls.append(time.perf_counter() - begin_s)
    model.logits = plain  # type: ignore[method-assign]
    _end(engine, mix, count)
    return median(walls), median(begin.elapsed_time(end) / 1e3 for begin, end in spans)


def _base_bytes(engine: TorchEngine) -> int:
    """Weights that a step reads: all but the embedding, of which it reads a few rows, unless it is the head too."""
    model = engine._model.model
    embedding = model.get_input_embeddings().weight
    read = {id(parameter): parameter.nbytes for parameter in model.parameters()}
    return sum(read.values()) - (0 if model.lm_head.weight is embedding else embedding.nbytes)


def _read_bytes(engine: TorchEngine, setting: Setting, mix: str, count: int) -> int:
    """Of adapters, and of keys and values in the middle of the timed steps."""
    adapters = {"none": 0, "one": 1, "distinct": min(count, ADAPTERS)}[mix]
    each = sum(adapter.buffer.nbytes for adapter in engine._lora._products._adapters.values()) // ADAPTERS
    return adapters * each + count * (PROMPT + 6 + STEPS // 2) * engine._model.bytes_per_token


def _prompt(length: int, number: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(SEED + 1000 * length + number)
    return tuple(torch.randint(5, _num_tokens(), (length,), generator=generator).tolist())


@cache
def _num_tokens() -> int:
    return len(load_tokenizer_from(EMBEDDED))


def _digest(made: World, mix: str, number: int) -> str:
    return {"none": "", "one": made.digests[1], "distinct": made.digests[number % ADAPTERS]}[mix]


def _request(name: str, prompt_ids: Sequence[int], digest: str, new_tokens: int) -> GenerationRequest:
    sampling = SamplingParameters(max_tokens=new_tokens, ignore_end=True)
    return GenerationRequest(
        request_id=name, prompt_ids=tuple(prompt_ids), adapter_digest=digest, sampling=sampling, tenant=name
    )


def printed(title: str, table: Table) -> str:
    columns = list(dict.fromkeys(column for figures in table.values() for column in figures))
    lines = [f"\n{title}\n", f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    lines += [f"| {name} | {' | '.join(row.get(column, '') for column in columns)} |" for name, row in table.items()]
    return "\n".join(lines)


PARTS: dict[str, Callable[[Setting], Table]] = {
    "kernels": kernels,
    "greedy": greedy,
    "decode": decode,
    "steps": steps,
    **{
        name: lambda setting, part=part: part(setting.made.base)  # type: ignore[misc]
        for name, part in gpu_attribution.PARTS.items()
    },
}


if __name__ == "__main__":
    sys.exit(main())
