import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapter_folders import BASE, card_of, tensors, write_adapter
from safetensors.torch import save_file

from openledger.adapters import checks
from openledger.adapters.card import save_card
from openledger.adapters.checks import AdapterLimits, BaseShapes, check_adapter, read_adapter
from openledger.core.errors import OpenLedgerError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


class TestAccepted:
    def test_a_plain_adapter_is_described(self, tmp_path: Path) -> None:
        description = check_adapter(write_adapter(tmp_path / "a", card=True), BASE)
        assert description.ranks == {"model.layers.0.q_proj": 2, "model.layers.0.up_proj": 2}
        assert description.num_parameters == 2 * (8 + 12) + 2 * (8 + 20)
        assert description.card is not None
        assert description.digest == description.card.digest

    def test_scale_is_alpha_over_rank(self, tmp_path: Path) -> None:
        weights = read_adapter(write_adapter(tmp_path / "a"), BASE)
        assert weights.factors["model.layers.0.q_proj"][2] == 2.0

    def test_rslora_scale_is_alpha_over_root_of_rank(self, tmp_path: Path) -> None:
        weights = read_adapter(write_adapter(tmp_path / "a", use_rslora=True), BASE)
        assert weights.factors["model.layers.0.q_proj"][2] == pytest.approx(4 / 2**0.5)

    def test_patterns_name_single_modules(self, tmp_path: Path) -> None:
        changed = tensors(q_proj_A=torch.ones(3, 8), q_proj_B=torch.ones(12, 3))
        folder = write_adapter(
            tmp_path / "a", changed, rank_pattern={"q_proj": 3}, alpha_pattern={"layers.0.q_proj": 6}
        )
        assert {m: s for m, (_, _, s) in read_adapter(folder, BASE).factors.items()} == {
            "model.layers.0.q_proj": 2.0,
            "model.layers.0.up_proj": 2.0,
        }

    def test_half_precision_is_widened(self, tmp_path: Path) -> None:
        folder = write_adapter(tmp_path / "a", {name: x.bfloat16() for name, x in tensors().items()})
        assert read_adapter(folder, BASE).factors["model.layers.0.q_proj"][0].dtype == torch.float32

    def test_some_of_the_modules_are_enough(self, tmp_path: Path) -> None:
        folder = write_adapter(tmp_path / "a", tensors(up_proj_A=None, up_proj_B=None))
        assert list(check_adapter(folder, BASE).ranks) == ["model.layers.0.q_proj"]

    @pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
    def test_starts_that_leave_the_base_alone(self, tmp_path: Path, init: object) -> None:
        assert check_adapter(write_adapter(tmp_path / "a", init_lora_weights=init), BASE)


class TestMemory:
    def test_a_load_holds_the_file_and_its_tensors_and_little_else(self, tmp_path: Path) -> None:
        base = BaseShapes(digest="base", modules={"q_proj": (1 << 18, 1 << 16)})
        weights = {"lora_A": torch.ones(32, 1 << 18), "lora_B": torch.ones(1 << 16, 32)}
        named = {f"base_model.model.q_proj.{side}.weight": factor for side, factor in weights.items()}
        folder = write_adapter(tmp_path / "a", named, r=32)
        size = (folder / WEIGHTS).stat().st_size
        tracemalloc.start()
        try:
            read_adapter(folder, base)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert size == pytest.approx(40 << 20, rel=0.01)
        assert 2 * size <= peak < 2.2 * size

    def test_the_bytes_of_the_file_are_let_go_before_half_precision_is_widened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = BaseShapes(digest="base", modules={"q_proj": (1 << 16, 8)})
        weights = {"lora_A": torch.ones(32, 1 << 16), "lora_B": torch.ones(8, 32)}
        named = {f"base_model.model.q_proj.{side}.weight": factor.half() for side, factor in weights.items()}
        folder = write_adapter(tmp_path / "a", named, r=32)
        held: list[int] = []
        scale = checks._scale
        monkeypatch.setattr(
            checks, "_scale", lambda *asked: held.append(tracemalloc.get_traced_memory()[0]) or scale(*asked)
        )
        tracemalloc.start()
        try:
            read_adapter(folder, base)
        finally:
            tracemalloc.stop()
        assert held[0] < 1.2 * (folder / WEIGHTS).stat().st_size

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("place", [0, 5, 6, -1])
    def test_each_part_of_a_file_is_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, place: int
    ) -> None:
        """One value that isn't finite, at the seams of parts of six values and at the end."""
        monkeypatch.setattr(checks, "_SCANNED_AT_ONCE", 6)
        names = list(tensors())
        for name in names:
            weights = {each: factor.to(dtype) for each, factor in tensors().items()}
            weights[name].view(-1)[place] = float("inf")
            with pytest.raises(OpenLedgerError) as caught:
                check_adapter(write_adapter(tmp_path / name, weights), BASE)
            assert caught.value.code == "non_finite_adapter"


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _link(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return change


def _pickle_only(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(tensors(), folder / "adapter_model.bin")


def _cut(size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / WEIGHTS, size)


def _bytes(data: bytes, name: str = WEIGHTS) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def _settings(**settings: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **settings}))

    return change


def _weights(rank: int = 2, **changed: torch.Tensor | None) -> Callable[[Path], None]:
    return lambda folder: save_file(tensors(rank, **changed), folder / WEIGHTS)


def _all_of(dtype: torch.dtype, **changed: torch.Tensor) -> Callable[[Path], None]:
    return lambda folder: save_file({n: x.to(dtype) for n, x in tensors(**changed).items()}, folder / WEIGHTS)


def _renamed(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        save_file({**tensors(), name: torch.ones(2, 8)}, folder / WEIGHTS)

    return change


def _other_base(folder: Path) -> None:
    save_card(folder, card_of(folder, base_digest="another"))


def _changed_after_card(folder: Path) -> None:
    save_card(folder, card_of(folder))
    save_file(tensors(q_proj_A=torch.ones(2, 8)), folder / WEIGHTS)


_HUGE_HEADER = (10**18).to_bytes(8, "little") + b"{}"
_A, _B = torch.ones(2, 8), torch.ones(12, 2)
REFUSED = {
    "no weights": (_remove(WEIGHTS), "incomplete_adapter"),
    "no config": (_remove(CONFIG), "incomplete_adapter"),
    "pickle only": (_pickle_only, "pickled_adapter"),
    "weights are a link": (_link(WEIGHTS), "linked_adapter"),
    "config is a link": (_link(CONFIG), "linked_adapter"),
    "truncated": (_cut(400), "corrupt_adapter"),
    "cut to the header's length": (_cut(4), "corrupt_adapter"),
    "empty": (_cut(0), "corrupt_adapter"),
    "pickle under the right name": (_bytes(b"\x80\x04K\x01."), "corrupt_adapter"),
    "giant header": (_bytes(_HUGE_HEADER), "corrupt_adapter"),
    "config no JSON": (_bytes(b"{", CONFIG), "corrupt_adapter"),
    "config no object": (_bytes(b"[]", CONFIG), "corrupt_adapter"),
    "config nested too deep": (_bytes(b"[" * 200_000, CONFIG), "corrupt_adapter"),
    "config too large": (_bytes(b" " * (2 << 20), CONFIG), "adapter_too_large"),
    "card no JSON": (_bytes(b"{", "card.json"), "corrupt_adapter"),
    "wrong width": (_weights(q_proj_A=torch.ones(2, 9)), "wrong_adapter_shape"),
    "wrong output": (_weights(q_proj_B=torch.ones(13, 2)), "wrong_adapter_shape"),
    "A and B of two ranks": (_weights(q_proj_B=torch.ones(12, 3)), "wrong_adapter_shape"),
    "one dimension": (_weights(q_proj_A=torch.ones(16)), "wrong_adapter_shape"),
    "rank over the limit": (_weights(rank=9), "adapter_rank"),
    "rank not as configured": (_weights(rank=3), "wrong_adapter_rank"),
    "A alone": (_weights(q_proj_B=None), "unpaired_adapter_tensor"),
    "NaN": (_weights(q_proj_A=_A.clone().fill_(float("nan"))), "non_finite_adapter"),
    "infinity": (_weights(q_proj_B=_B.clone().fill_(float("inf"))), "non_finite_adapter"),
    "NaN in bfloat16": (_all_of(torch.bfloat16, q_proj_B=_B.clone().fill_(float("nan"))), "non_finite_adapter"),
    "infinity in float16": (_all_of(torch.float16, up_proj_A=_A.clone().fill_(-1e6)), "non_finite_adapter"),
    "NaN beside another dtype": (
        _weights(q_proj_A=_A.half(), up_proj_A=_A.clone().fill_(float("nan"))),
        "non_finite_adapter",
    ),
    "integers": (_weights(q_proj_A=_A.int()), "adapter_dtype"),
    "double precision": (_weights(q_proj_A=_A.double()), "adapter_dtype"),
    "no tensors": (lambda folder: save_file({}, folder / WEIGHTS), "corrupt_adapter"),
    "unknown module": (
        lambda folder: save_file(
            {f"base_model.model.lm_head.lora_{side}.weight": x for side, x in (("A", _A), ("B", _B))}, folder / WEIGHTS
        ),
        "unknown_adapter_module",
    ),
    "DoRA's magnitude": (
        _renamed("base_model.model.model.layers.0.q_proj.lora_magnitude_vector.weight"),
        "unknown_adapter_tensor",
    ),
    "embedding": (_renamed("base_model.model.model.embed_tokens.lora_embedding_A"), "unknown_adapter_tensor"),
    "whole layer": (_renamed("base_model.model.model.layers.0.q_proj.weight"), "unknown_adapter_tensor"),
    "wrong base": (_other_base, "wrong_base"),
    "changed after its card": (_changed_after_card, "adapter_digest_mismatch"),
    "pattern is an expression": (_settings(alpha_pattern={"(a+)+$": 3}), "unsupported_adapter_setting"),
    "alpha no number": (_settings(lora_alpha="4"), "invalid_adapter_config"),
    "alpha not finite": (_settings(lora_alpha=float("inf")), "invalid_adapter_config"),
    "rank no number": (_settings(r=None), "invalid_adapter_config"),
    "pattern no object": (_settings(rank_pattern=[1]), "invalid_adapter_config"),
}
MATHEMATICS: dict[str, object] = {
    "peft_type": "IA3", "use_dora": True, "lora_bias": True, "bias": "all", "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1], "alora_invocation_tokens": [3], "layer_replication": [[0, 1]],
    "target_parameters": ["experts"], "use_qalora": True, "megatron_config": {"a": 1}, "never_heard_of": 1,
}  # fmt: skip


class TestRefused:
    @pytest.mark.parametrize("case", REFUSED)
    def test_by_name(self, tmp_path: Path, case: str) -> None:
        change, code = REFUSED[case]
        folder = write_adapter(tmp_path / "a")
        change(folder)
        with pytest.raises(OpenLedgerError) as caught:
            check_adapter(folder, BASE, AdapterLimits(max_rank=8))
        assert caught.value.code == code
        assert caught.value.param

    @pytest.mark.parametrize("name", MATHEMATICS)
    def test_settings_that_change_the_mathematics(self, tmp_path: Path, name: str) -> None:
        folder = write_adapter(tmp_path / "a", **{name: MATHEMATICS[name]})
        with pytest.raises(OpenLedgerError) as caught:
            check_adapter(folder, BASE)
        assert (caught.value.code, caught.value.param) == ("unsupported_adapter_setting", name)

    @pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "unheard"])
    def test_starts_that_change_the_base(self, tmp_path: Path, init: str) -> None:
        with pytest.raises(OpenLedgerError) as caught:
            check_adapter(write_adapter(tmp_path / "a", init_lora_weights=init), BASE)
        assert (caught.value.code, caught.value.param) == ("unsupported_adapter_setting", "init_lora_weights")

    def test_over_the_size_limit(self, tmp_path: Path) -> None:
        with pytest.raises(OpenLedgerError) as caught:
            check_adapter(write_adapter(tmp_path / "a"), BASE, AdapterLimits(max_bytes=100))
        assert caught.value.code == "adapter_too_large"

    def test_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OpenLedgerError) as caught:
            check_adapter(tmp_path / "none", BASE)
        assert caught.value.code == "missing_adapter"

    def test_pickle_is_never_opened(self, tmp_path: Path) -> None:
        """The file would create a marker if it were unpickled."""
        folder, marker = write_adapter(tmp_path / "a"), tmp_path / "opened"
        (folder / WEIGHTS).unlink()
        (folder / "adapter_model.bin").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
        with pytest.raises(OpenLedgerError):
            check_adapter(folder, BASE)
        assert not marker.exists()
