"""The calls of a Datanet's people beside contributing: terms and permissions."""

from collections.abc import Mapping
from typing import Any

from openledger.client import values
from openledger.client.transport import Transport
from openledger.client.values import read_as, segment
from openledger.core.permitting import sign_request
from openledger.core.signing import SigningKey


class Communities:
    """What `OpenLedger` inherits. Owners' calls need the API key of the Datanet's owner."""

    _transport: Transport

    def create_datanet(
        self,
        name: str,
        summary: str,
        *,
        row_schema: Mapping[str, Any] | None = None,
        terms: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """A Datanet of this API key's account. The same again changes nothing."""
        body = {"name": name, "summary": summary, "row_schema": dict(row_schema or {}), "terms": dict(terms or {})}
        return self._told("/v1/datanets", body)

    def terms(self, datanet: str) -> dict[str, Any]:
        return read_as(values.read_object, self._transport.get_json(f"{_path(datanet)}/terms"))

    def set_terms(self, datanet: str, **changes: Any) -> dict[str, Any]:
        """What isn't named stays as it is."""
        return self._told(f"{_path(datanet)}/terms", changes)

    def set_display(self, datanet: str, display: str) -> dict[str, Any]:
        """What a customer may see of rows: `none`, `reference` or `text`."""
        return self._told(f"{_path(datanet)}/display", {"display": display})

    def permissions(self, datanet: str) -> list[dict[str, Any]]:
        """All of them for the owner, its own for another account."""
        return read_as(values.read_list, self._transport.get_json(f"{_path(datanet)}/permissions"))

    def request_permission(self, datanet: str, key: SigningKey | None = None) -> dict[str, Any]:
        """To contribute with `key`, or without one to train, as the API key's account."""
        signed: dict[str, str] = {}
        if key is not None:
            signed = {"public_key": key.public_key, "signature": sign_request(key, datanet)}
        body = {"action": "train" if key is None else "contribute", **signed}
        return self._told(f"{_path(datanet)}/permissions/requests", body)

    def approve(self, datanet: str, party: str, action: str, expires_ms: int = 0) -> dict[str, Any]:
        """`party` is a contributor's id for `contribute`, an account for `train`; also of who never asked."""
        body = {"party": party, "action": action, "expires_ms": expires_ms}
        return self._told(f"{_path(datanet)}/permissions/approvals", body)

    def revoke(self, datanet: str, party: str, action: str) -> dict[str, Any]:
        return self._told(f"{_path(datanet)}/permissions/revocations", {"party": party, "action": action})

    def _told(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return read_as(values.read_object, self._transport.post_json(path, dict(body)))


def _path(datanet: str) -> str:
    return f"/v1/datanets/{segment(datanet)}"
