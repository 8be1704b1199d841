"""An adapter named by its Hugging Face id comes from the hub: the real client, against a hub on this machine."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openlora_models import Served

ID = "org/name"
_CLIENT = """
import json, sys
from openledger.adapters.sources import SourceRules
from openledger.core.errors import OpenLedgerError
from openledger.openlora.tiers import AdapterTiers, TierOptions

disk, digest, *sources = sys.argv[1:]
tiers = AdapterTiers(TierOptions(disk_folder=disk), SourceRules())
for source in sources:
    try:
        print(json.dumps({"folder": str(tiers.fetch(digest, source))}))
    except OpenLedgerError as error:
        print(json.dumps({"code": error.code, "message": str(error)}))
"""


class Hub(ThreadingHTTPServer):
    """Answers as the hub does of one repository, which is published after `looks_before` questions whether it is there;
    `bytes_sent` counts what was fetched of its files."""

    def __init__(self, folder: Path, looks_before: int):
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.looks_before, self.bytes_sent = folder, looks_before, 0


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/{ID}/tree/"):
            files = sorted(self.server.folder.iterdir())
            self._send([{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0"} for file in files])
        elif path.startswith(f"/api/models/{ID}") and self.server.looks_before > 0:
            self.server.looks_before -= 1
            self._send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith(f"/api/models/{ID}"):
            self._send({"id": ID, "sha": "0" * 40, "siblings": []})
        elif path.startswith(f"/{ID}/resolve/"):
            self._send_part(self.server.folder / path.rsplit("/", 1)[1])
        else:
            self._send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _send_part(self, file: Path) -> None:
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        data = file.read_bytes()[int(first) : int(last) + 1]
        self.server.bytes_sent += len(data)
        self._send(data, 206)

    def _send(self, told: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(served: Served) -> Iterator[Hub]:
    hub = Hub(served.folders["one"], looks_before=0)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


def fetched(hub: Hub, disk: Path, digest: str, *sources: str) -> list[dict[str, str]]:
    """In a process of its own, since the client reads the hub's address when it is imported."""
    here = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", _CLIENT, str(disk), digest, *sources]
    done = subprocess.run(command, env={**os.environ, **here}, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_its_files_are_brought_to_this_node_once(served: Served, hub: Hub, tmp_path: Path) -> None:
    digest = served.digests["one"]
    assert fetched(hub, tmp_path, digest, ID, f"hf://{ID}@main") == [{"folder": str(tmp_path / digest)}] * 2
    kept = {file.name: file.read_bytes() for file in (tmp_path / digest).iterdir()}
    assert kept == {name: (served.folders["one"] / name).read_bytes() for name in kept}
    assert kept.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert hub.bytes_sent == sum(map(len, kept.values()))


def test_one_that_is_published_after_the_first_look_is_found(served: Served, hub: Hub, tmp_path: Path) -> None:
    """The client remembers what it has not found; a replica lives for weeks."""
    hub.looks_before = 1
    first, second = fetched(hub, tmp_path, served.digests["one"], ID, ID)
    assert first["code"] == "missing_adapter"
    assert second == {"folder": str(tmp_path / served.digests["one"])}


def test_another_content_than_was_registered_is_refused(served: Served, hub: Hub, tmp_path: Path) -> None:
    assert [told["code"] for told in fetched(hub, tmp_path, "f" * 64, ID)] == ["adapter_digest_mismatch"]
    assert not (tmp_path / ("f" * 64)).exists()
