"""The calls beside answers and data: stake, proposals, withdrawals, and where a payout comes from."""

import time
from collections.abc import Mapping
from typing import Any

from openledger.client import values
from openledger.client.transport import Transport
from openledger.client.values import idempotency, read_as, segment
from openledger.core.drawing import sign_drawing, sign_reading
from openledger.core.money import OPEN, Unit
from openledger.core.signing import SigningKey


class Offices:
    """What `OpenLedger` inherits. Money is integers of nano-OPEN; `idempotency_key` makes a retry safe."""

    _transport: Transport

    def stakes(self) -> dict[str, Any]:
        """At least `staked_nano` (by object), `cooling`, `slashed`, `delegate` and `power_nano`."""
        return self._read("/v1/stakes")

    def stake(self, of: str, amount_nano: int, *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Put OPEN behind `adapter:NAME` or `datanet:NAME`."""
        return self._send("/v1/stakes", {"object": of, "amount_nano": amount_nano}, idempotency_key)

    def unstake(self, of: str, amount_nano: int, *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Begin the cool-down; at `ends_ms` it comes back by itself."""
        return self._send("/v1/stakes/removals", {"object": of, "amount_nano": amount_nano}, idempotency_key)

    def delegate(self, delegate: str) -> dict[str, Any]:
        """Let another account vote with your stake; your own takes it back."""
        return self._send("/v1/stakes/delegate", {"delegate": delegate}, None)

    def unit(self) -> Unit:
        """In which this server's amounts are: integers of its smallest part."""
        return Unit(name=self.parameters().get("unit", {}).get("name", OPEN.name))

    def parameters(self) -> dict[str, Any]:
        """At least `values`, `next_values`, `bounds` and the versions `in_force` and `adopted`."""
        return self._read("/v1/parameters")

    def simulate(self, changes: Mapping[str, Any], period: str = "") -> dict[str, Any]:
        """What `changes` would have done to a settled period, by default the last one; nothing is written."""
        return self._send("/v1/parameters/simulations", {"changes": dict(changes), "period": period}, None)

    def vesting(self) -> dict[str, Any]:
        return self._read("/v1/vesting")

    def proposals(self) -> list[dict[str, Any]]:
        return read_as(values.read_list, self._transport.get_json("/v1/proposals"))

    def proposal(self, proposal: str) -> dict[str, Any]:
        return self._read(f"/v1/proposals/{segment(proposal)}")

    def propose(
        self, title: str, action: Mapping[str, Any], text: str = "", *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        return self._send("/v1/proposals", {"title": title, "text": text, "action": dict(action)}, idempotency_key)

    def vote(self, proposal: str, support: str) -> dict[str, Any]:
        """`support` is for, against or abstain. Gives the power that was counted as `power_nano`."""
        return self._send(f"/v1/proposals/{segment(proposal)}/votes", {"support": support}, None)

    def cancel_proposal(self, proposal: str) -> dict[str, Any]:
        return self._send(f"/v1/proposals/{segment(proposal)}/cancel", {}, None)

    def balance(self, key: SigningKey | None = None) -> dict[str, Any]:
        """At least `account`, `available_nano`, `held_nano`: of the API key's account, or of `key`'s contributor. Until
        something is paid to it, it isn't `is_open`."""
        return read_as(values.read_object, self._transport.get_json("/v1/balance", _signed(key)))

    def payouts(self, key: SigningKey | None = None) -> list[dict[str, Any]]:
        """What was paid to the account of `balance`, newest first."""
        return read_as(values.read_list, self._transport.get_json("/v1/payouts", _signed(key)))

    def withdraw(
        self,
        amount_nano: int,
        address: str,
        *,
        key: SigningKey | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """From the account of `balance`. The same `idempotency_key` gives the first withdrawal, and takes no more."""
        headers = idempotency(idempotency_key)
        body: dict[str, Any] = {"amount_nano": amount_nano, "address": address}
        if key is not None:
            signature = sign_drawing(key, amount_nano, address, headers["Idempotency-Key"])
            body |= {"public_key": key.public_key, "signature": signature}
        return read_as(values.read_object, self._transport.post_json("/v1/withdrawals", body, headers))

    def claims(self, number: int) -> list[tuple[str, int]]:
        """(address, nano-OPEN) of one round of withdrawals."""
        found = read_as(values.read_list, self._transport.get_json(f"/v1/claims/{number}"))
        return read_as(lambda items: [(item["address"], item["amount_nano"]) for item in items], found)

    def payouts_csv(self, key: SigningKey | None = None) -> bytes:
        return self._transport.get_bytes("/v1/payouts/csv", _signed(key))

    def explain(self, transfer_id: str) -> list[str]:
        """Where a transfer comes from, line by line."""
        found = self._read(f"/v1/payouts/{segment(transfer_id)}/explanation")
        return read_as(lambda value: [str(line) for line in value["lines"]], found)

    def _read(self, path: str) -> dict[str, Any]:
        return read_as(values.read_object, self._transport.get_json(path))

    def _send(self, path: str, body: dict[str, Any], key: str | None) -> dict[str, Any]:
        return read_as(values.read_object, self._transport.post_json(path, body, idempotency(key)))


def _signed(key: SigningKey | None) -> dict[str, str] | None:
    """Headers with which a contributor reads his own account."""
    return None if key is None else {"Authorization": sign_reading(key, time.time_ns() // 10**6)}
