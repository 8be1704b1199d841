"""Connecting to Ray: a cluster of our own on this machine, or the one that RAY_ADDRESS names."""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from openledger.core.errors import Unavailable
from openledger.platform.environment import prepare_environment
from openledger.platform.workdir import Workdir

NAMESPACE = "openledger"
_OBJECT_STORE_BYTES = 200 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`dashboard` is empty where none runs."""

    dashboard: str
    token: str
    own: bool


@contextmanager
def connected(workdir: Workdir, *, dashboard: bool = True, num_cpus: int | None = None) -> Iterator[Cluster]:
    """A connection to Ray for as long as the block runs. A cluster started here ends with it, without a trace.

    Raises Unavailable where Ray doesn't start or can't be reached.
    """
    token = prepare_environment(workdir)
    if os.environ.get("RAY_ADDRESS"):
        context = _init(address=os.environ["RAY_ADDRESS"], namespace=NAMESPACE, log_to_driver=False)
        yield Cluster(dashboard=_dashboard_url(context), token=token, own=False)
        ray.shutdown()
        return
    folder = tempfile.mkdtemp(prefix="ol-", dir="/tmp" if os.path.isdir("/tmp") else None)  # AF_UNIX paths are short
    try:
        context = _init(
            address="local",
            num_cpus=num_cpus or max(2, os.cpu_count() or 2),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=dashboard,
            dashboard_port=free_port(),
            namespace=NAMESPACE,
            log_to_driver=False,
            _temp_dir=folder,
        )
        yield Cluster(dashboard=_dashboard_url(context), token=token, own=True)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Raises Unavailable (code `port_taken`) when another program listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Unavailable(
                f"port {port} is taken by another program",
                code="port_taken",
                param="port",
                fix=f"choose another with --port, for example --port {port + 1}, or 0 for any free one",
            ) from error


def _init(**arguments: Any) -> Any:
    try:
        return ray.init(configure_logging=True, logging_level="ERROR", **arguments)
    except (RuntimeError, ConnectionError, TimeoutError, OSError, ValueError) as error:
        raise Unavailable(
            f"Ray didn't start: {error}",
            code="ray_unavailable",
            fix="look at memory and disk space; unset RAY_ADDRESS to start a cluster here",
        ) from error


def _dashboard_url(context: Any) -> str:
    url = getattr(context, "dashboard_url", "") or ""
    return f"http://{url}" if url else ""
