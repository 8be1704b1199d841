"""A real PostgreSQL for a test session: from the installed binaries, on a free port of this machine, in a folder that
goes with it. Each test gets a schema of its own."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

BINARIES = (Path("/usr/lib/postgresql"), Path("/opt/homebrew/opt"), Path("/usr/local/opt"))


def find_binaries() -> Path | None:
    """The newest installed server's folder of programs."""
    on_path = shutil.which("initdb")
    found = sorted((path.parent for top in BINARIES for path in top.glob("*/bin/initdb")), reverse=True)
    found += [Path(on_path).resolve().parent] if on_path else []
    return next((folder for folder in found if (folder / "postgres").exists()), None)


@dataclass(slots=True)
class PostgresServer:
    """`new_database` gives a URL; `kill` as a crash would, `start` again."""

    binaries: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    count: int = field(default=0)

    def initialize(self) -> None:
        user = _user()
        if user is not None:
            shutil.chown(self.folder, user)
        self._run("initdb", "-D", self.data, "-U", "ledger", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C")
        settings = [
            "listen_addresses = '127.0.0.1'",
            f"unix_socket_directories = '{self.folder}'",
            "max_connections = 40",
            "shared_buffers = 64MB",
            "max_wal_size = 1GB",
        ]
        with Path(self.data, "postgresql.conf").open("a") as stream:
            stream.write("\n".join(settings) + "\n")

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:  # again, while a killed one's memory is in use
                self._launch()
            with contextlib.suppress(psycopg.OperationalError):
                self._execute("SELECT 1")
                return
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL didn't start:\n{(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL; its sessions' processes end when they see it gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        Path(self.data, "postmaster.pid").unlink(missing_ok=True)

    def restart_after_kill(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()

    def new_database(self) -> str:
        """The URL of an empty place: a schema of its own, in a hundredth of the time that a database takes."""
        self.count += 1
        self._execute(f"CREATE SCHEMA ledger{self.count}")
        return f"postgresql://ledger@127.0.0.1:{self.port}/postgres?options=-csearch_path%3Dledger{self.count}"

    def _execute(self, query: str) -> None:
        url = f"postgresql://ledger@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(query)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user(), str(self.binaries / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, done.stderr

    def _as_user(self) -> list[str]:
        user = _user()
        return [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]

    def _launch(self) -> None:
        command = [*self._as_user(), str(self.binaries / "postgres"), "-D", self.data, "-p", str(self.port)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")


def _user() -> str | None:
    """Whom to run as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("no user to run PostgreSQL as")


def start_server(port: int) -> PostgresServer | str:
    """The running server, or why there is none."""
    binaries = find_binaries()
    if binaries is None:
        return "no PostgreSQL server is installed (Debian: apt-get install postgresql)"
    folder = Path(tempfile.mkdtemp(prefix="olpg", dir="/tmp"))
    folder.chmod(0o755)
    server = PostgresServer(binaries, folder, port)
    server.initialize()
    server.start()
    return server
