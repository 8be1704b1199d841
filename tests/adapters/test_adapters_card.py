"""The lineage card, and the check that weights are the ones it names."""

import json

import pytest
import torch
from safetensors.torch import save_file

from openledger.adapters.card import AdapterCard, adapter_digest, checked_card, load_card, save_card
from openledger.core.errors import Corrupt


@pytest.fixture
def folder(tmp_path):
    save_file({"a.lora_A.weight": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4, "target_modules": ["b", "a"]}')
    card = AdapterCard(
        name="d", digest=adapter_digest(tmp_path), base_model="b", base_digest="x", datanet="d", datanet_version=1,
        row_root="r", rows_trained=("row_1", "row_2"), contributors={"ctr_1": 2}, recipe={"rank": 2}, environment={},
        code_version="0", initial_a="c", final_loss=1.5,
    )  # fmt: skip
    save_card(tmp_path, card)
    return tmp_path


def test_a_card_comes_back_as_it_was_saved(folder):
    card = load_card(folder)
    save_card(folder, card.with_evaluation({"rouge": 0.5}))
    assert load_card(folder).evaluation == {"rouge": 0.5}
    assert checked_card(folder).rows_trained == ("row_1", "row_2")


def test_a_card_from_before_there_were_nonces_says_row_root(folder):
    path = folder / "card.json"
    values = json.loads(path.read_text())
    del values["initial_from"]
    path.write_text(json.dumps(values))
    assert load_card(folder).initial_from == "row_root"


def test_the_digest_ignores_the_order_of_modules_and_settings_that_change_nothing(folder):
    before = adapter_digest(folder)
    (folder / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4, "target_modules": ["a", "b"], "x": 1}')
    assert adapter_digest(folder) == before
    (folder / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8, "target_modules": ["a", "b"]}')
    assert adapter_digest(folder) != before


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "card.json"])
def test_a_damaged_file_is_refused_with_a_way_out(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-3] + b"\x00\x00")
    with pytest.raises(Corrupt) as caught:
        checked_card(folder)
    assert caught.value.code == "corrupt_adapter"
    assert "remove the folder" in caught.value.fix


def test_a_missing_file_is_refused(folder):
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(Corrupt):
        checked_card(folder)
