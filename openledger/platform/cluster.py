"""Connecting to Ray: a cluster of our own on this machine, or the one that RAY_ADDRESS names."""

import fcntl
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from openledger.core.errors import Conflict, Unavailable
from openledger.platform.environment import prepare_environment
from openledger.platform.stages import timed
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
    """A connection to Ray for as long as the block runs. A cluster started here ends with it, without a trace; it has
    the folder to itself, since a second one would take ledger and Datanets away from it.

    It tells what it waits for. Raises Unavailable where Ray doesn't start or can't be reached, Conflict
    (`workdir_in_use`).
    """
    token = prepare_environment(workdir)
    with ExitStack() as leaving:
        leaving.callback(ray.shutdown)
        if os.environ.get("RAY_ADDRESS"):
            with timed(f"connecting to Ray at {os.environ['RAY_ADDRESS']}"):
                context = _init(address=os.environ["RAY_ADDRESS"], namespace=NAMESPACE, log_to_driver=False)
            yield Cluster(dashboard=_dashboard_url(context), token=token, own=False)
            return
        leaving.enter_context(only_one(workdir))
        folder = tempfile.mkdtemp(
            prefix="ol-", dir="/tmp" if os.path.isdir("/tmp") else None
        )  # AF_UNIX paths are short
        leaving.callback(shutil.rmtree, folder, ignore_errors=True)
        leaving.callback(ray.shutdown)  # before the folder goes
        with timed("starting Ray"):
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


@contextmanager
def only_one(workdir: Workdir) -> Iterator[None]:
    """Raises Conflict (`workdir_in_use`) where another process has a cluster of its own on this folder."""
    with (workdir.root / "running").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(
                f"another OpenLedger is running in {workdir.root}",
                code="workdir_in_use",
                param="workdir",
                fix="stop it with Ctrl-C, choose another folder with --workdir, or set RAY_ADDRESS to join its cluster",
            ) from error
        yield


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(host: str, port: int) -> None:
    """Raises Unavailable (code `port_taken`) when another program listens on `port` of `host`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Unavailable(
                f"port {port} is taken by another program",
                code="port_taken",
                param="port",
                fix=f"choose another with --port, for example --port {port + 1}, or 0 for any free one",
            ) from error


def _init(**arguments: Any) -> Any:
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        return ray.init(configure_logging=True, logging_level="ERROR", **arguments)
    except (RuntimeError, ConnectionError, TimeoutError, OSError, ValueError) as error:
        raise Unavailable(
            f"Ray didn't start: {error}",
            code="ray_unavailable",
            fix="look at memory and disk space; unset RAY_ADDRESS to start a cluster here",
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # ray.init puts its own there, which ends without a word


def _dashboard_url(context: Any) -> str:
    url = getattr(context, "dashboard_url", "") or ""
    return f"http://{url}" if url else ""
