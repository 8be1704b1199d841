"""fp32 and bfloat16, of the base and of the adapters kept beside it."""

from typing import Any

import numpy as np
import pytest
import torch
from openlora_models import Served, peft_model, prompt_of, request, run, tokens_of

from openledger.core.errors import InvalidInput
from openledger.openlora import packed_model
from openledger.openlora.torch_engine import EngineOptions, TorchEngine


def _engine(served: Served, **options: Any) -> TorchEngine:
    engine = TorchEngine(served.base, EngineOptions(**options))
    for name, folder in served.folders.items():
        engine.load(served.digests[name], folder)
    return engine


class TestBfloat16:
    @pytest.mark.parametrize("kernels", ["auto", "torch"])
    def test_scores_are_near_those_in_fp32(self, served: Served, engine: TorchEngine, kernels: str) -> None:
        digests = ["", *served.digests.values()]
        half = _engine(served, dtype="bfloat16", kernels=kernels)
        got, expected = (each.score(prompt_of(9), prompt_of(12), digests) for each in (half, engine))
        assert 0 < np.abs(got - expected).mean() < 0.3
        assert half.describe()["dtype"] == half.describe()["adapter_dtype"] == "bfloat16"

    def test_answers_are_those_of_the_rounded_model(self, served: Served) -> None:
        """PEFT in bfloat16 rounds after every product, we once: compared by how likely each finds the other's."""
        half = _engine(served, dtype="bfloat16")
        tokens = tokens_of(run(half, request("r", prompt_of(9), served.digests["one"]))["r"])
        model = peft_model(served, "one").to(torch.bfloat16)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt_of(9) + tokens])).logits[0, 8:-1].float()
        gaps = logits.max(-1).values - logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert float(gaps.max()) < 0.05 * float(logits.abs().max())

    def test_keys_and_values_take_half(self, served: Served, engine: TorchEngine) -> None:
        half = _engine(served, dtype="bfloat16", max_batch=8)
        assert 2 * half.describe()["kv_bytes"] == engine.describe()["kv_bytes"]


class TestAdapterDtype:
    @pytest.mark.parametrize("kernels", ["auto", "torch"])
    def test_kept_in_bfloat16_they_take_half_and_change_little(
        self, served: Served, engine: TorchEngine, kernels: str
    ) -> None:
        half, digests = _engine(served, adapter_dtype="bfloat16", kernels=kernels), list(served.digests.values())
        got, expected = (each.score(prompt_of(9), prompt_of(12), digests) for each in (half, engine))
        assert 0 < np.abs(got - expected).max() < 0.2
        assert half.describe()["dtype"] == "float32"
        assert half.describe()["adapter_bytes"] < 0.75 * engine.describe()["adapter_bytes"]

    def test_the_base_is_untouched_by_it(self, served: Served, engine: TorchEngine) -> None:
        half = _engine(served, adapter_dtype="bfloat16")
        assert np.array_equal(half.score([5], prompt_of(9), [""]), engine.score([5], prompt_of(9), [""]))


class TestChoice:
    @pytest.mark.parametrize(("ratio", "dtype"), [(0.5, "float32"), (1.1, "float32"), (2.0, "bfloat16")])
    def test_the_probe_takes_bfloat16_only_where_it_pays(
        self, served: Served, monkeypatch: pytest.MonkeyPatch, ratio: float, dtype: str
    ) -> None:
        speeds = {"float32": 100.0, "bfloat16": 100.0 * ratio}
        monkeypatch.setattr(packed_model, "measure_dtypes", lambda model: speeds)
        description = TorchEngine(served.base, EngineOptions(dtype="auto")).describe()
        assert (description["dtype"], description["dtype_speeds_hz"]) == (dtype, speeds)

    def test_the_probe_measures_both(self, served: Served) -> None:
        speeds = TorchEngine(served.base, EngineOptions(dtype="auto")).describe()["dtype_speeds_hz"]
        assert speeds.keys() == {"float32", "bfloat16"}
        assert min(speeds.values()) > 0

    @pytest.mark.parametrize("name", ["dtype", "adapter_dtype"])
    def test_another_word_is_refused(self, served: Served, name: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            TorchEngine(served.base, EngineOptions(**{name: "float8"}))
        assert (caught.value.code, caught.value.param) == ("unknown_dtype", name)
