"""Handing over to another process, and what the command must not import."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from memory_service import wait_until

from openledger.cli.parser import build_parser
from openledger.cli.processes import quickstart_arguments
from openledger.ledger.options import arguments_of

COUNTING = """
import os, pathlib, signal, sys, time
told = pathlib.Path(sys.argv[1])
count = 0
def interrupted(*_):
    global count
    count += 1
    told.with_suffix(".count").write_text(str(count))
signal.signal(signal.SIGINT, interrupted)
told.write_text(str(os.getpid()))
while not count:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(7)
"""


def test_cli_and_client_import_neither_ray_nor_torch_nor_the_platform():
    code = (
        "import sys, openledger.client, openledger.cli.main, openledger.cli.contributing\n"
        "openledger.cli.main.build_parser()\n"
        "heavy = {'ray', 'torch', 'transformers', 'fastapi', 'numpy', 'openledger.platform', 'openledger.api'}\n"
        "sys.exit(repr(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_does_not_load_what_only_commands_need():
    code = (
        "import sys, openledger.cli.main\n"
        "openledger.cli.main.build_parser()\n"
        "sys.exit(repr({'httpx', 'rich', 'cryptography', 'asyncio'} & set(sys.modules) or 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() in ("", "0")


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        ([], ["quickstart"]),
        (["--exit", "--json"], ["quickstart", "--exit", "--json"]),
        (["--workdir", "a b", "--port", "81"], ["quickstart", "--workdir=a b", "--port=81"]),
        (["--base-model", "org/x", "--dry-run"], ["quickstart", "--base-model=org/x", "--dry-run"]),
    ],
)
def test_quickstart_passes_on_what_was_given_and_nothing_else(words: list[str], passed: list[str]):
    assert quickstart_arguments(build_parser().parse_args(["quickstart", *words])) == passed


def test_ledger_passes_names_that_look_like_options_safely():
    options = build_parser().parse_args(["ledger", "verify", "--key=name+1+x", "--json", "--", "-proof.json"])
    assert arguments_of(options) == ["verify", "--key=name+1+x", "--json", "--", "-proof.json"]


class TestBecoming:
    @pytest.fixture
    def running(self, tmp_path: Path) -> tuple[subprocess.Popen[bytes], Path]:
        """The command line, become a module that counts its interrupts and exits with 7."""
        (tmp_path / "counting_child.py").write_text(COUNTING)
        told = tmp_path / "told"
        code = f"from openledger.cli.processes import become; become('counting_child', [{str(told)!r}])"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
        assert wait_until(lambda: told.exists() and told.read_text(), 30)
        return process, told

    def test_delivers_a_ctrl_c_once_and_returns_the_exit_code(self, running: tuple[subprocess.Popen[bytes], Path]):
        process, told = running
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        assert process.wait(30) == 7
        assert told.with_suffix(".count").read_text() == "1"

    def test_leaves_no_second_process(self, running: tuple[subprocess.Popen[bytes], Path]):
        process, told = running
        assert int(told.read_text()) == process.pid
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 7


def test_ledger_verify_hands_over_with_the_exit_code_of_the_error(tmp_path: Path):
    proof = tmp_path / "p.json"
    proof.write_text("{}")
    words = ["ledger", "verify", str(proof), "--key", "name+00000000+AAAA"]
    done = subprocess.run([sys.executable, "-m", "openledger.cli", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode not in (0, 1)
    assert "Traceback" not in done.stderr
