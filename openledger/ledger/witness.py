"""A witness: sees to it that a log only grows, and says so with its own key. Knows checkpoints, not what is in them.

`add-checkpoint` of c2sp.org/tlog-witness: for each log, the newest checkpoint it cosigned is kept on disk, and another
is cosigned only with a proof that it continues that one. So no operator can get two logs of one name cosigned, not by
running the witness again either. Small enough to be run by anybody: `openledger ledger witness`.
"""

import base64
import binascii
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from openledger.core import merkle
from openledger.core.clock import Clock, SystemClock
from openledger.core.database import open_database, storage_errors, writing
from openledger.core.errors import Corrupt, OpenLedgerError, Unavailable
from openledger.core.signing import SigningKey
from openledger.ledger.checkpoints import (
    Note,
    check_log_name,
    cosign,
    cosigned_at,
    open_checkpoint,
    parse_note,
    parse_verification_key,
    witness_key,
)

FORMAT = "openledger.witness/1"
_SCHEMA = "CREATE TABLE IF NOT EXISTS logs(origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL) STRICT;"
_MAX_BYTES = 64 * 1024
_MAX_PROOF = 63
_TEXT, _SIZE = "text/plain; charset=utf-8", "text/x.tlog.size"
_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP status, and what is said with it."""

    status: int
    body: str
    content_type: str = _TEXT


class Witness:
    """What it saw of each log in `logs` (verification keys, or key rings) stands in the file `path`."""

    def __init__(self, path: Path, name: str, signing_key: SigningKey, logs: list[str], clock: Clock | None = None):
        self.name = check_log_name(name)
        self._key, self._clock = signing_key, clock or SystemClock()
        self._logs = {parse_verification_key(log.strip().partition("\n")[0])[0]: log for log in logs}
        self._path, self._lock = path, threading.Lock()
        self._db = open_database(path, _SCHEMA, FORMAT)

    def verification_key(self) -> str:
        return witness_key(self.name, self._key.public_key)

    def add_checkpoint(self, body: bytes) -> Answer:
        """The cosignature line with status 200, or the status that the protocol has for the refusal."""
        try:
            old_size, proof, text = _parse_request(body)
            note = parse_note(text)
        except (Corrupt, ValueError, UnicodeDecodeError) as error:
            return Answer(status=400, body=f"{error}\n")
        log = self._logs.get(note.checkpoint.origin)
        if log is None:
            return Answer(status=404, body="this witness doesn't know that log\n")
        try:
            open_checkpoint(_without_others(note), log)
        except Corrupt as error:
            return Answer(status=403, body=f"{error}\n")
        if old_size > note.checkpoint.size:
            return Answer(status=400, body="the old size is larger than the checkpoint's\n")
        with self._lock, storage_errors(self._path), writing(self._db):
            return self._grown(note, old_size, proof)

    def close(self) -> None:
        self._db.close()

    def _grown(self, note: Note, old_size: int, proof: list[bytes]) -> Answer:
        """Inside a transaction that is durable before the answer is given."""
        point = note.checkpoint
        row = self._db.execute("SELECT size, root FROM logs WHERE origin = ?", (point.origin,)).fetchone()
        size, root = (int(row[0]), bytes(row[1])) if row else (0, merkle.EMPTY_ROOT)
        new_root = bytes.fromhex(point.root)
        if old_size != size:
            return Answer(status=409, body=f"{size}\n", content_type=_SIZE)
        if size == point.size and new_root != root:
            return Answer(status=409, body=f"{size}\n", content_type=_SIZE)
        if size == 0 or size == point.size:
            consistent = not proof
        else:
            consistent = merkle.verify_consistency(size, point.size, root, new_root, proof)
        if not consistent:
            return Answer(status=422, body="the proof doesn't show that the log only grew\n")
        self._db.execute("INSERT OR REPLACE INTO logs VALUES (?, ?, ?)", (point.origin, point.size, new_root))
        return Answer(status=200, body=cosign(note, self.name, self._key, self._clock.now_ms() // 1000))


def serve_witness(witness: Witness, host: str, port: int) -> ThreadingHTTPServer:
    """An HTTP server for `witness`, bound and not yet serving."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = _TIMEOUT_S

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if self.path != "/add-checkpoint" or not length.isdecimal() or int(length) > _MAX_BYTES:
                self.close_connection = True
                self._say(Answer(status=404 if self.path != "/add-checkpoint" else 400, body="not for a witness\n"))
                return
            self._say(_answer(witness, self.rfile.read(int(length))))

        def _say(self, answer: Answer) -> None:
            data = answer.body.encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Quiet: requests carry nothing that the answers don't tell."""

    return ThreadingHTTPServer((host, port), Handler)


def ask_witness(url: str, key: str, note: str, proof_from: Callable[[int], list[str]]) -> str:
    """The cosignature line of the witness at `url` over `note`; `proof_from(size)` proves (hex) how the log grew since.

    Raises Unavailable where it isn't reached or refuses, Corrupt where its line isn't by `key`.
    """
    answer = _post(url, _request(0, [], note))
    if answer.status == 409 and answer.content_type.startswith(_SIZE):
        size = int(answer.body)
        proof = proof_from(size) if 0 < size < parse_note(note).checkpoint.size else []
        answer = _post(url, _request(size, proof, note))
    if answer.status != 200:
        raise Unavailable(
            f"the witness at {url} refused ({answer.status}): {answer.body.strip()}",
            code="witness_refused",
            param="witness",
        )
    for line in answer.body.splitlines(keepends=True):
        if cosigned_at(parse_note(note + line), key):
            return line
    raise Corrupt(f"the witness at {url} doesn't sign with the key given", code="wrong_witness", param="witness")


def _answer(witness: Witness, body: bytes) -> Answer:
    try:
        return witness.add_checkpoint(body)
    except OpenLedgerError as error:
        return Answer(status=503, body=f"{error}\n")


def _post(url: str, body: bytes) -> Answer:
    request = urllib.request.Request(f"{url.rstrip('/')}/add-checkpoint", data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            return Answer(status=response.status, body=response.read(_MAX_BYTES).decode())
    except urllib.error.HTTPError as error:
        with error:
            kind = error.headers.get("Content-Type", "")
            return Answer(status=error.code, body=error.read(_MAX_BYTES).decode(), content_type=kind)
    except (OSError, UnicodeDecodeError) as error:
        raise Unavailable(f"no witness at {url}: {error}", code="no_witness", param="witness") from error


def _request(old_size: int, proof: list[str], note: str) -> bytes:
    lines = [base64.b64encode(bytes.fromhex(item)).decode() + "\n" for item in proof]
    return f"old {old_size}\n{''.join(lines)}\n{note}".encode()


def _parse_request(body: bytes) -> tuple[int, list[bytes], str]:
    head, separator, note = body.decode().partition("\n\n")
    old, *proof = head.split("\n")
    word, _, size = old.partition(" ")
    if not separator or word != "old" or not size.isdecimal() or str(int(size)) != size or len(proof) > _MAX_PROOF:
        raise ValueError("not a request to add a checkpoint")
    try:
        hashes = [base64.b64decode(line, validate=True) for line in proof]
    except binascii.Error as error:
        raise ValueError("a hash of the proof is no base64") from error
    return int(size), hashes, note


def _without_others(note: Note) -> str:
    """The note with the log's own first signature: what others added is not the witness's matter."""
    own = [item for item in note.signatures if item[0] == note.checkpoint.origin][:1]
    lines = "".join(f"— {name} {base64.b64encode(signature).decode()}\n" for name, signature in own)
    return f"{note.text}\n{lines}"
