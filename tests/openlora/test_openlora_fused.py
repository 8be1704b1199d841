"""Decode steps in one call give what transformers' modules give, or aren't taken."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from openlora_models import FAMILIES, Served, make_base, make_served, prompt_of, request, run, tokens_of

from openledger.core.errors import InvalidInput
from openledger.openlora import fused_step, native, packed_model
from openledger.openlora.fused_step import MAX_ROWS, FusedStep, quantise, rounded
from openledger.openlora.packed_model import PackedModel
from openledger.openlora.torch_engine import EngineOptions, TorchEngine

pytestmark = pytest.mark.skipif(not native.available(), reason="no kernels and no compiler")
LIKE_LLAMA = ("llama", "mistral", "qwen2", "qwen3")
ODD = {"hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 14, "intermediate_size": 53}


@pytest.fixture(params=list(native.available()) or ["none"])
def kernels(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _engine(served: Served, **options: Any) -> TorchEngine:
    engine = TorchEngine(served.base, EngineOptions(max_batch=8, **options))
    for name, folder in served.folders.items():
        engine.load(served.digests[name], folder)
    return engine


def _logits_by_step(
    engine: TorchEngine, served: Served, fuse: bool, lengths: Sequence[int] = range(20, 28)
) -> Iterator[torch.Tensor]:
    """Of prompts of these lengths, under all adapters and none."""
    model, kept = engine._model, []
    plain = model.logits

    def kept_logits(*arguments: Any) -> torch.Tensor:
        fused, model._fused = model._fused, model._fused if fuse else None
        kept.append(plain(*arguments).clone())
        model._fused = fused
        return kept[-1]

    model.logits = kept_logits  # type: ignore[method-assign]
    names = ("", *served.digests.values())
    asked = [request(str(n), prompt_of(n), names[n % 4], max_tokens=6, ignore_end=True) for n in lengths]
    run(engine, *asked)
    yield from kept


class TestSteps:
    @pytest.mark.parametrize("family", LIKE_LLAMA)
    def test_equal_those_of_the_modules(self, tmp_path: Path, family: str, kernels: str) -> None:
        served = make_served(tmp_path, family)
        engines = [_engine(served, kernels=kernels) for _ in range(2)]
        assert engines[0].describe()["decode_path"] == "one call"
        pairs = zip(_logits_by_step(engines[0], served, True), _logits_by_step(engines[1], served, False), strict=True)
        for fused, plain in pairs:
            torch.testing.assert_close(fused, plain, rtol=2e-5, atol=2e-4)

    def test_prompts_are_computed_too(self, served: Served, kernels: str) -> None:
        """Three together, of which two are long where more rows are computed."""
        engines = [_engine(served, kernels=kernels) for _ in range(2)]
        both = (_logits_by_step(e, served, f, (5, 30, 40)) for e, f in zip(engines, (True, False), strict=True))
        torch.testing.assert_close(*(next(each) for each in both), rtol=2e-5, atol=2e-4)

    def test_of_sizes_that_fill_no_register(
        self, tmp_path: Path, kernels: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(FAMILIES, "llama", {**FAMILIES["llama"], **ODD})
        served = make_served(tmp_path)
        engines = [_engine(served, kernels=kernels) for _ in range(2)]
        assert engines[0].describe()["decode_path"] == "one call"
        pairs = zip(_logits_by_step(engines[0], served, True), _logits_by_step(engines[1], served, False), strict=True)
        for fused, plain in pairs:
            torch.testing.assert_close(fused, plain, rtol=2e-5, atol=2e-4)

    def test_in_bfloat16_are_close(self, served: Served, kernels: str) -> None:
        engines = [_engine(served, kernels=kernels, dtype="bfloat16") for _ in range(2)]
        assert engines[0].describe()["decode_path"] == "one call"
        fused, plain = (
            next(_decoded(_logits_by_step(e, served, f))) for e, f in zip(engines, (True, False), strict=True)
        )
        assert (fused - plain).abs().max() < 0.05 * plain.abs().max()

    @pytest.mark.parametrize("sizes", [{}, ODD])
    @pytest.mark.parametrize("narrow", [{"dtype": "bfloat16"}, {"weights": "int8"}], ids=["bfloat16", "int8"])
    def test_many_rows_give_what_few_give(
        self, tmp_path: Path, kernels: str, sizes: dict[str, int], narrow: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """Narrow weights become floats once for many rows, and each time they are used for few: to the same sums."""
        monkeypatch.setitem(FAMILIES, "llama", {**FAMILIES["llama"], **sizes})
        served = make_served(tmp_path)
        engine = _engine(served, kernels=kernels, **narrow)
        assert engine.describe()["decode_path"] == "one call"
        adapters = ("", *served.digests.values())
        asked = [
            request(str(number), prompt_of(5 + number), adapter, max_tokens=3, ignore_end=True, logprobs=2)
            for number, adapter in enumerate(adapters)
        ]
        together = run(engine, *(replace(each, tenant="together") for each in asked))
        for each in asked:
            alone = run(engine, each)[each.request_id]
            assert [event.logprobs for event in together[each.request_id]] == [event.logprobs for event in alone]

    def test_the_call_is_what_computes_them(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        calls, plain = [], FusedStep.logits

        def counted(self: FusedStep, step: Any, *arguments: Any) -> torch.Tensor:
            calls.append(step.num_rows)
            return plain(self, step, *arguments)

        engine = _engine(served)
        monkeypatch.setattr(FusedStep, "logits", counted)
        run(
            engine,
            *(request(str(n), prompt_of(30, n), served.digests["one"], max_tokens=4, ignore_end=True) for n in (0, 1)),
        )
        assert calls == [60, 2, 2, 2]


def _decoded(logits: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    next(logits)  # the prompts, by the modules in either way
    return logits


class TestAdmission:
    @pytest.mark.parametrize("family", ["gemma", "phi3", "granite", "smollm3", "gpt2", "qwen3_moe"])
    def test_other_families_go_module_by_module(self, tmp_path: Path, family: str) -> None:
        assert not PackedModel(make_base(tmp_path, family), native.load()).num_fused_rows

    def test_what_computes_something_else_is_not_used(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = FusedStep.logits
        monkeypatch.setattr(FusedStep, "logits", lambda self, *arguments: 1.01 * plain(self, *arguments))
        engine = _engine(served)
        assert engine.describe()["decode_path"] == "module by module"
        assert len(tokens_of(run(engine, request("r", prompt_of(9), ignore_end=True))["r"])) == 12

    def test_a_family_that_only_looks_like_one_is_found_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Granite has Llama's parts, and multiplies between them."""
        monkeypatch.setattr(fused_step, "_LAYERS", ("GraniteDecoderLayer",))
        monkeypatch.setitem(FAMILIES, "granite", {**FAMILIES["granite"], "residual_multiplier": 0.9})
        assert not PackedModel(make_base(tmp_path, "granite"), native.load()).num_fused_rows

    def test_angles_that_depend_on_the_batch_are_left_to_the_modules(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rotation = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
        monkeypatch.setitem(FAMILIES, "llama", {**FAMILIES["llama"], "rope_parameters": rotation})
        assert not PackedModel(make_base(tmp_path), native.load()).num_fused_rows

    @pytest.mark.parametrize("rope_type", ["linear", "llama3", "yarn"])
    def test_scaled_rotation_is_computed(self, tmp_path: Path, rope_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
        rotation = {
            "rope_type": rope_type, "factor": 4.0, "rope_theta": 10000.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
        }  # fmt: skip
        monkeypatch.setitem(FAMILIES, "llama", {**FAMILIES["llama"], "rope_parameters": rotation})
        assert PackedModel(make_base(tmp_path), native.load()).num_fused_rows

    def test_rows_are_as_many_as_the_second_cache_holds(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(FAMILIES, "llama", {**FAMILIES["llama"], "intermediate_size": 8192})
        assert PackedModel(make_base(tmp_path), native.load()).num_fused_rows == 32

    def test_without_kernels_there_is_no_call(self, served: Served) -> None:
        assert not PackedModel(served.base, None).num_fused_rows


class TestThreads:
    """The call has one, whatever the modules have."""

    @pytest.fixture(autouse=True)
    def one_thread_for_others(self) -> Iterator[None]:
        yield
        torch.set_num_threads(1)

    @pytest.mark.parametrize(
        ("speeds", "rows"),
        [((5, 9), 0), ((9, 5, 5, 9), 1), ((9, 5, 9, 5, 5, 9), 8), ((9, 5, 9, 5, 9, 5, 9, 5), MAX_ROWS)],
    )
    def test_it_takes_as_many_rows_as_it_is_faster_for(
        self, served: Served, speeds: tuple[float, ...], rows: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Measured in turn: the call, the modules."""
        told, asked = iter(speeds), []

        def steps_hz(_: Any, rows: int) -> float:
            asked.append(rows)
            return next(told)

        monkeypatch.setattr(packed_model, "_steps_hz", steps_hz)
        engine = _engine(served, num_threads=2)
        assert asked == [1, 1, 8, 8, 32, 32, MAX_ROWS, MAX_ROWS][: len(speeds)]
        assert (next(told, None), engine._model.num_fused_rows) == (None, rows)
        assert engine.describe()["decode_path"] == ("one call" if rows else "module by module")
        asked_for = request("r", prompt_of(9), served.digests["one"])
        assert tokens_of(run(engine, asked_for)["r"]) == tokens_of(run(_engine(served), asked_for)["r"])

    def test_both_ways_are_measured(self, served: Served) -> None:
        model = PackedModel(served.base, native.load(), num_threads=2)
        assert min(model.speeds["call_steps_1"], model.speeds["module_steps_1"]) > 0
        assert not PackedModel(served.base, native.load()).speeds

    def test_int8_must_be_faster_than_the_modules_too(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        speeds = iter([100.0, 200.0, 300.0, 100.0, 300.0])  # the call, in int8, the modules; then as above
        monkeypatch.setattr(packed_model, "_steps_hz", lambda *_: next(speeds))
        described = _engine(served, weights="auto", num_threads=2).describe()
        assert (described["weights"], described["decode_path"]) == ("exact", "module by module")


class TestLongSteps:
    def test_more_rows_than_the_call_takes(self, served: Served) -> None:
        """Short prompts of many requests at once: modules for the first step, the call for the others."""
        count = MAX_ROWS // 12 + 1
        engines = [TorchEngine(served.base, EngineOptions(max_batch=batch)) for batch in (count, 1)]
        asked = [request(str(n), prompt_of(12, n), max_tokens=5) for n in range(count)]
        together, alone = (run(engine, *asked) for engine in engines)
        assert {name: tokens_of(each) for name, each in together.items()} == {
            name: tokens_of(each) for name, each in alone.items()
        }


class TestInt8:
    @pytest.mark.parametrize("size_in", [64, 100, 37])
    def test_weights_are_within_half_a_step(self, size_in: int) -> None:
        torch.manual_seed(0)
        weight_OI = torch.randn(9, size_in)
        error_OI = (rounded(weight_OI) - weight_OI).abs()
        assert (error_OI <= weight_OI.abs().amax(1, keepdim=True) / 254 + 1e-7).all()
        bytes_OI, scales_O = quantise(weight_OI)
        assert (bytes_OI.dtype, bytes_OI.shape[1] % 64, scales_O.shape) == (torch.int8, 0, (9,))

    def test_a_row_of_zeros_stays_one(self) -> None:
        assert torch.equal(rounded(torch.zeros(2, 8)), torch.zeros(2, 8))

    @pytest.mark.parametrize("sizes", [{}, ODD])
    def test_steps_equal_those_of_the_modules_on_rounded_weights(
        self, tmp_path: Path, kernels: str, sizes: dict[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(FAMILIES, "llama", {**FAMILIES["llama"], **sizes})
        served = make_served(tmp_path)
        engines = [_engine(served, kernels=kernels, weights="int8") for _ in range(2)]
        assert engines[0].describe()["weights"] == "int8"
        pairs = zip(_logits_by_step(engines[0], served, True), _logits_by_step(engines[1], served, False), strict=True)
        for fused, plain in pairs:
            torch.testing.assert_close(fused, plain, rtol=2e-5, atol=2e-4)

    def test_they_are_not_the_exact_ones(self, served: Served) -> None:
        exact, int8 = (next(_logits_by_step(_engine(served, weights=w), served, True)) for w in ("exact", "int8"))
        assert 1e-3 < (exact - int8).abs().max() < 0.1 * exact.abs().max()

    def test_auto_takes_the_faster(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        for exact, int8, taken in ((100.0, 200.0, "int8"), (100.0, 110.0, "exact")):
            speeds = iter([exact, int8])
            monkeypatch.setattr(packed_model, "_steps_hz", lambda _, speeds=speeds: next(speeds))
            assert _engine(served, weights="auto").describe()["weights"] == taken

    def test_a_model_that_cannot_is_told(self, tmp_path: Path) -> None:
        base = make_base(tmp_path, "gpt2")
        with pytest.raises(InvalidInput) as caught:
            TorchEngine(base, EngineOptions(weights="int8"))
        assert (caught.value.code, caught.value.param) == ("no_int8", "weights")
        assert TorchEngine(base, EngineOptions(weights="auto")).describe()["weights"] == "exact"

    def test_others_are_unknown(self, served: Served) -> None:
        with pytest.raises(InvalidInput, match="exact, int8, auto"):
            TorchEngine(served.base, EngineOptions(weights="int4"))
