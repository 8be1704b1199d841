"""One Ray cluster for the whole session, and the check that nothing is left running when it ends."""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports ray or torch: workers inherit all of it, and the user's own Ray token is left alone.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["OPENLEDGER_TEST_RUN"] = secrets.token_hex(8)
# Job entry points are resolved on the PATH of the cluster's head.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

import pytest
from hypothesis import HealthCheck, settings
from processes import MARK, describe, wait_until_gone

if TYPE_CHECKING:
    from postgres_server import PostgresServer

# How fast examples are drawn says something about the machine, and nothing about the code.
_UNTIMED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("reduced", max_examples=50, **_UNTIMED)
settings.register_profile("full", max_examples=2000, **_UNTIMED)
settings.load_profile("reduced")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Fails the session's last test if a process that any test started is still there, and ends that process."""
    yield
    left = wait_until_gone(os.environ[MARK])
    descriptions = [describe(process) for process in left]
    for process in left:
        process.kill()
    assert not left, "processes left running by the tests:\n" + "\n".join(descriptions)


@pytest.fixture(scope="session")
def cluster(nothing_left_running: None) -> Iterator[Any]:
    """The session's Ray cluster, started when the first test asks for it: ray's context, with `dashboard_url`."""
    import ray

    from openledger.platform.cluster import free_port

    # AF_UNIX paths end at 107 bytes, and Ray adds most of them: the folder's name must be short.
    folder = tempfile.mkdtemp(prefix="ol", dir="/tmp")
    context = ray.init(
        num_cpus=4,
        num_gpus=0,
        object_store_memory=150 * 2**20,
        include_dashboard=True,  # without it Ray Train's PlacementGroupCleaner warns twice a second
        dashboard_port=free_port(),
        _temp_dir=folder,
        log_to_driver=False,
        logging_level="ERROR",
        namespace="openledger",
    )
    try:
        yield context
    finally:
        _stop(folder)


@pytest.fixture(scope="session")
def postgres_server(nothing_left_running: None) -> Iterator["PostgresServer"]:
    """The session's PostgreSQL, started when the first test asks for it; without one the test is skipped."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'openledger[postgres]')")
    from postgres_server import start_server

    from openledger.platform.cluster import free_port

    server = start_server(free_port())
    if isinstance(server, str):
        pytest.skip(server)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


def _stop(folder: str) -> None:
    import ray

    if "ray.serve" in sys.modules and ray.is_initialized():
        sys.modules["ray.serve"].shutdown()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
