"""What vLLM's adapters lie in until it has them: a folder in memory that doesn't outlive its process for long."""

import subprocess
import sys
from pathlib import Path

from openledger.openlora.vllm_slots import OwnFolder

_OWNER = """
import sys
from pathlib import Path
from openledger.openlora.vllm_slots import OwnFolder
folder = OwnFolder(Path(sys.argv[1]))
(folder.path / "1").mkdir()
(folder.path / "1" / "adapter_model.safetensors").write_bytes(bytes(1000))
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_when_the_next_starts(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        left = Path(owner.stdout.readline().strip())
        assert left.parent == tmp_path
        beside = OwnFolder(tmp_path)
        assert (left / "1").is_dir()  # its owner lives
        owner.kill()
        owner.wait()
    assert left.is_dir()
    after = OwnFolder(tmp_path)
    assert set(tmp_path.iterdir()) == {beside.path, after.path}


def test_it_goes_with_its_owner(tmp_path: Path) -> None:
    folder = OwnFolder(tmp_path)
    (folder.path / "1").mkdir()
    del folder
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_its_kind_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "kept").mkdir(parents=True)
    (tmp_path / "openlora-vllm-link").symlink_to(elsewhere)
    (tmp_path / "openlora-vllm-file").touch()
    (tmp_path / "psm_other").mkdir()
    names = {each.name for each in tmp_path.iterdir()}
    folder = OwnFolder(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {*names, folder.path.name}
    assert (elsewhere / "kept").is_dir()
