"""Requests to one server, and errors rebuilt from its envelope. Knows HTTP, no resource."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from openledger import __version__
from openledger.core import errors
from openledger.core.errors import Corrupt, InvalidInput, OpenLedgerError, Unavailable

_CLASSES: dict[str, type[OpenLedgerError]] = {
    cls.default_code: cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, OpenLedgerError)
}


class Transport:
    """Raises the server's own errors; Unavailable where it can't be reached, Corrupt where it isn't one of ours."""

    def __init__(
        self, base_url: str, api_key: str | None, timeout_s: float, transport: httpx.BaseTransport | None = None
    ):
        headers = {"User-Agent": f"openledger/{__version__}"}
        if api_key:
            headers["Authorization"] = f"Bearer {_printable(api_key)}"
        self.base_url = _checked_url(base_url)
        self._http = httpx.Client(base_url=self.base_url, headers=headers, timeout=timeout_s, transport=transport)

    def close(self) -> None:
        self._http.close()

    def get_json(self, path: str, headers: dict[str, str] | None = None) -> Any:
        return _json(self._send("GET", path, headers=headers))

    def get_bytes(self, path: str, headers: dict[str, str] | None = None) -> bytes:
        return self._send("GET", path, headers=headers).content

    def post_json(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
        return _json(self._send("POST", path, json=body, headers=headers))

    def delete_json(self, path: str) -> Any:
        return _json(self._send("DELETE", path))

    def post_events(self, path: str, body: Any, headers: dict[str, str]) -> Iterator[Any]:
        """The JSON of each server-sent event up to [DONE]. Raises Unavailable where the stream ends before it."""
        with self._told(), self._http.stream("POST", path, json=body, headers=headers) as response:
            if response.status_code >= 400:
                response.read()
            _raise_for(response)
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield _event(line.removeprefix("data: "))
        raise Unavailable("the answer broke off before its end", code="answer_incomplete")

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._told():
            response = self._http.request(method, path, **options)
        _raise_for(response)
        return response

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Failures of the connection in our words."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise Unavailable(f"{self.base_url} didn't answer in time", code="timed_out", fix="try again") from error
        except httpx.TransportError as error:
            raise Unavailable(
                f"{self.base_url} can't be reached: {error}",
                code="unreachable",
                param="url",
                fix="start a server with 'openledger quickstart', or name another with --url or OPENLEDGER_URL",
            ) from error


def error_from(envelope: Any) -> OpenLedgerError | None:
    """The error that `{"error": {...}}` tells of, in its own class; None where it isn't that shape."""
    told = envelope.get("error") if isinstance(envelope, dict) else None
    if not isinstance(told, dict) or not isinstance(told.get("message"), str):
        return None
    cls = _CLASSES.get(str(told.get("type")), OpenLedgerError)
    code, param, fix = (_text(told.get(name)) for name in ("code", "param", "fix"))
    return cls(told["message"], code=code, param=param, fix=fix)


def _raise_for(response: httpx.Response) -> None:
    if response.status_code < 300:
        return
    try:
        told = error_from(response.json())
    except ValueError:
        told = None
    raise told or _foreign(response.status_code)


def _foreign(status: int) -> OpenLedgerError:
    """A proxy, or something that is no OpenLedger server, has answered."""
    message = f"status {status} without an error that we know"
    if status >= 500:
        return Unavailable(message, code="unexpected_answer", fix="try again in a moment")
    return Corrupt(message, code="unexpected_answer", param="url", fix="check the URL")


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise Corrupt("the server's answer is not JSON", code="unexpected_answer", fix="check the URL") from error


def _event(data: str) -> Any:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Corrupt("an event of the stream is not JSON", code="unexpected_answer") from error
    if (told := error_from(value)) is not None:
        raise told
    return value


def _checked_url(base_url: str) -> str:
    if not _is_url(base_url):
        raise InvalidInput(
            f"{base_url!r} is no server's URL", code="invalid_url", param="url", fix="write http://HOST:PORT"
        )
    return base_url.rstrip("/").removesuffix("/v1")


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _printable(api_key: str) -> str:
    if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise InvalidInput("the API key holds characters that no key has", code="invalid_api_key", param="api_key")
    return api_key


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
