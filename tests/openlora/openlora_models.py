"""Tiny random bases of several families, PEFT adapters for them, and what PEFT itself generates: the reference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from openledger.adapters.base_model import BaseModel, find_base_model, load_model
from openledger.adapters.card import adapter_digest
from openledger.core.values import GenerationRequest, SamplingParameters, TokenEvent
from openledger.openlora.engine import Engine
from openledger.training.pretraining import train_tokenizer

END = 1
_COMMON = {"max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": END, "pad_token_id": 0}
_SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": True, **_COMMON,
}  # fmt: skip
_WINDOW = {"sliding_window": 7}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **_COMMON}
_GEMMA = {**_SMALL, "head_dim": 8, "query_pre_attn_scalar": 8, **_WINDOW}
_EXPERTS = {**_SMALL, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SMALL,
    "mistral": {**_SMALL, **_WINDOW},
    "qwen2": {**_SMALL, **_WINDOW, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {**_SMALL, "head_dim": 8},
    "gemma": {**_SMALL, "head_dim": 8},
    "gemma2": _GEMMA,
    "gemma3_text": {**_GEMMA, **_LAYERS},
    "phi": _SMALL,
    "phi3": _SMALL,
    "olmo2": _SMALL,
    "gpt_neox": _SMALL,
    "gpt2": _GPT2,
    "gpt_bigcode": _GPT2,
    "opt": {**_SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "starcoder2": _SMALL,
    "cohere2": {**_SMALL, **_WINDOW, **_LAYERS},
    "granite": _SMALL,
    "smollm3": _SMALL,
    "gpt_oss": {**_SMALL, **_WINDOW, **_LAYERS, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": _EXPERTS,
    "mixtral": {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2},
}
OTHERS: dict[str, dict[str, Any]] = {  # accept the attention function and compute something else, or can't take it
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "eos_token_id": END, "pad_token_id": 0},
    "falcon": {**_COMMON, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "eos_token_id": END, "pad_token_id": 0},
    "gptj": {**_GPT2, "rotary_dim": 4},
}
LINEAR = {"gpt2": ["c_attn", "c_proj", "c_fc"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A base with adapters `one`, `two`, `three` of different ranks and targets, as folders and digests by name."""

    base: BaseModel
    folders: dict[str, Path]
    digests: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Greedy tokens, and at each the distance between the best and the second logit."""

    tokens: list[int]
    gaps: list[float]


def make_base(folder: Path, family: str = "llama", **changes: Any) -> BaseModel:
    sentences = ["What does alpha do? It joins beta.", "naïve café 猫は座る 🎉🎊", "unter über ober"] * 3
    tokenizer = train_tokenizer(iter(sentences), 330)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    settings = {**FAMILIES, **OTHERS}[family] | changes
    config = AutoConfig.for_model(family, **settings, vocab_size=len(tokenizer))
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.2)  # logits far apart, so that greedy choice isn't rounding
    model.save_pretrained(folder)
    return find_base_model(str(folder))


def make_served(folder: Path, family: str = "llama", **changes: Any) -> Served:
    """`changes` are of the base's configuration."""
    base = make_base(folder / "base", family, **changes)
    every = LINEAR.get(family, "all-linear")
    some = {"gpt2": ["c_attn"], "phi3": ["qkv_proj"], "gpt_neox": ["query_key_value"]}.get(family, ["q_proj", "v_proj"])
    flat = {"init_lora_weights": False, "fan_in_fan_out": family == "gpt2"}
    configs = {
        "one": LoraConfig(r=4, lora_alpha=8, target_modules=every, **flat),
        "two": LoraConfig(r=8, lora_alpha=4, use_rslora=True, target_modules=some, **flat),
        "three": LoraConfig(r=6, lora_alpha=6, rank_pattern={some[0]: 3}, target_modules=some, **flat),
    }
    model = get_peft_model(load_model(base), configs["one"], adapter_name="one")
    for name in ("two", "three"):
        model.add_adapter(name, configs[name])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.15)
    model.save_pretrained(folder / "adapters")
    folders = {name: folder / "adapters" / name for name in configs}
    return Served(base=base, folders=folders, digests={name: adapter_digest(path) for name, path in folders.items()})


def peft_model(served: Served, name: str | None) -> Any:
    model = load_model(served.base)
    return model if name is None else PeftModel.from_pretrained(model, served.folders[name]).eval()


def generate_alone(model: Any, prompt: list[int], max_tokens: int) -> Reference:
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False, return_dict_in_generate=True,
            output_logits=True,
        )  # fmt: skip
    best = [logits[0].topk(2).values for logits in output.logits]
    return Reference(
        tokens=output.sequences[0, len(prompt) :].tolist(), gaps=[float(pair[0] - pair[1]) for pair in best]
    )


def assert_same_greedy(tokens: list[int], reference: Reference) -> None:
    """Equal up to the first place where the two best logits are closer than rounding."""
    close = next((place for place, gap in enumerate(reference.gaps) if gap < 1e-4), None)
    if close is None:
        assert tokens == reference.tokens
    else:
        assert tokens[:close] == reference.tokens[:close]


def request(request_id: str, prompt: list[int], adapter: str = "", **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt_ids=tuple(prompt),
        adapter_digest=adapter,
        sampling=SamplingParameters(**{"max_tokens": 12, **sampling}),
    )


def run(engine: Engine, *requests: GenerationRequest) -> dict[str, list[TokenEvent]]:
    """Add all, then step to the end: the events of each request."""
    for each in requests:
        engine.add(each)
    events: dict[str, list[TokenEvent]] = {}
    while engine.has_work():
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    return events


def tokens_of(events: list[TokenEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


def text_of(events: list[TokenEvent]) -> str:
    return "".join(event.text for event in events)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(1000 * length + seed)
    return torch.randint(5, 300, (length,), generator=generator).tolist()
