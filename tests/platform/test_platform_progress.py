"""A training's epochs, told from the checkpoints that come while it runs."""

import time

from openledger.platform.progress import told_epochs


def test_epochs_are_told_as_their_checkpoints_come(tmp_path):
    folder, lines = tmp_path / "checkpoints", []
    folder.mkdir()
    with told_epochs(tmp_path, 3, lines.append, interval_s=0.01):
        (folder / "epoch-1.safetensors").touch()
        deadline = time.monotonic() + 10
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lines == ["epoch 1 of 3 done"]
        (folder / "epoch-2.safetensors").touch()
        (folder / "epoch-3.safetensors").touch()
    assert lines == [f"epoch {number} of 3 done" for number in (1, 2, 3)]


def test_an_interrupted_run_is_said_to_go_on(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch-2.safetensors").touch()
    lines = []
    with told_epochs(tmp_path, 3, lines.append):
        pass
    assert lines == ["going on after epoch 2 of 3"]
