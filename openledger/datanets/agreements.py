"""Datanets without their rows: whose each is and on what terms it is open, who may do what with it, with which key a
contributor signs, and which places are kept for rows that are yet to come.

Owns the rules of these agreements. They need the registry alone; what needs a stored row is in `datanets`.
"""

from collections.abc import Sequence
from dataclasses import replace

from openledger.core.clock import Clock
from openledger.core.errors import Conflict, Forbidden, InvalidInput, TooLarge
from openledger.core.ids import check_name
from openledger.core.rekeying import KeyChange
from openledger.core.sealing import Seal, SealReceipt, check_seal
from openledger.core.signing import check_public_key
from openledger.datanets.holders import HeldChange
from openledger.datanets.registry import DEFAULT_DISPLAY, Contributor, Datanet, Display, Registry, check_display
from openledger.datanets.reservations import Reservations
from openledger.datanets.row_schema import PLAIN, RowSchema
from openledger.datanets.seals import UnloggedSeal
from openledger.datanets.terms import (
    Action,
    Permission,
    Terms,
    check_action,
    check_licence,
    check_not_withdrawn,
    check_permitted,
)

_MAX_SUMMARY_CHARS = 1_000
_MAX_NAME_CHARS = 128
_MAX_OWNED = 100  # names are everybody's


class Agreements:
    """What `Datanets` builds on."""

    def __init__(self, registry: Registry, clock: Clock):
        self._registry = registry
        self._clock = clock
        self._reservations = Reservations()

    def create(
        self,
        name: str,
        summary: str,
        owner: str,
        row_schema: RowSchema = PLAIN,
        display: Display = DEFAULT_DISPLAY,
    ) -> Datanet:
        """Idempotent; one that exists keeps its display policy. Raises Conflict when `name` exists with other content,
        InvalidInput."""
        check_display(display)
        datanet = replace(_described(name, summary, owner, row_schema), display=display)
        self._registry.add_datanet(datanet, self._clock.now_ms())
        return datanet

    def reserve(self, name: str, summary: str, owner: str, row_schema: RowSchema) -> None:
        """Keep the name of a new Datanet for `owner`, for a minute, or until `release`. Raises as `check_new`."""
        self.check_new(name, summary, owner, row_schema)
        self._reservations.take(name, owner, self._clock.now_ms())

    def release(self, name: str, owner: str) -> None:
        """Of a name that `owner` reserved and doesn't take."""
        self._reservations.release(name, owner)

    def check_new(self, name: str, summary: str, owner: str, row_schema: RowSchema) -> None:
        """Raises what `open_datanet` does: InvalidInput, Conflict (`datanet_exists`, `datanet_reserved`), TooLarge."""
        wanted = _described(name, summary, owner, row_schema)
        reserved = self._reservations.owners(self._clock.now_ms())
        owned = {known for known in self.names() if self._registry.datanet(known).owner == owner}
        owned |= {known for known, holder in reserved.items() if holder == owner and known != name}
        if name in self.names():
            self._registry.add_datanet(wanted, self._clock.now_ms())
        elif reserved.get(name, owner) != owner:
            raise Conflict(
                f"somebody else is creating the Datanet {name!r}",
                code="datanet_reserved",
                param="name",
                fix="choose another name, or ask again in a minute",
            )
        elif len(owned) >= _MAX_OWNED:
            raise TooLarge(
                f"{owner} owns {len(owned)} Datanets; at most {_MAX_OWNED} are allowed",
                code="too_many_datanets",
                param="name",
                fix="ask the operator, who sets up more",
            )

    def set_display(self, name: str, display: Display) -> Datanet:
        """Say what a customer may see of the Datanet's rows: `none`, `reference` (the default) or `text`.

        Idempotent. Raises NotFound, and InvalidInput for another policy.
        """
        return self._registry.set_display(name, display)

    def displays(self) -> dict[str, Display]:
        """Every Datanet's display policy."""
        return {name: self._registry.datanet(name).display for name in self._registry.names()}

    def terms(self, name: str) -> Terms:
        return self._registry.terms.terms(self._registry.datanet(name).name)

    def request(self, name: str, party: str, action: Action) -> Permission:
        """Ask to contribute or to train. What was approved stays so; what was revoked has to be approved anew."""
        check_action(action)
        _check_text(party, "party", _MAX_NAME_CHARS)
        known = self._registry.terms.permission(self._registry.datanet(name).name, party, action)
        if known is not None and known.state != "requested" and known.allows(self._clock.now_ms()):
            return known
        if known is not None and known.state == "revoked":
            return known
        self._registry.terms.check_request(name, party, action)
        return self._permit(name, Permission(party=party, action=action, state="requested", expires_ms=0))

    def approve(self, name: str, party: str, action: Action, by: str, expires_ms: int = 0) -> Permission:
        """By the owner, also without a request (an invitation); until `expires_ms`, 0 for ever."""
        check_action(action)
        _check_text(party, "party", _MAX_NAME_CHARS)
        self._check_owner(name, by)
        if expires_ms and expires_ms <= self._clock.now_ms():
            raise InvalidInput(
                "the permission would have expired already",
                code="invalid_expiry",
                param="expires_ms",
                fix="send a time in milliseconds since 1970 that is yet to come, or 0 for ever",
            )
        return self._permit(name, Permission(party=party, action=action, state="approved", expires_ms=expires_ms))

    def revoke(self, name: str, party: str, action: Action, by: str) -> Permission:
        """By the owner. Rows that were contributed and adapters that were trained until now stay."""
        check_action(action)
        self._check_owner(name, by)
        return self._permit(name, Permission(party=party, action=action, state="revoked", expires_ms=0))

    def permissions(self, name: str) -> list[Permission]:
        return self._registry.terms.permissions(self._registry.datanet(name).name)

    def check_training(self, name: str, party: str) -> None:
        """Raises Forbidden where the terms or the licence don't let `party` train on the rows (`not_permitted`,
        `licence_withdrawn`, `licence_forbids`)."""
        check_licence(self.terms(name))
        self._check_permitted(name, party, "train")

    def check_export(self, name: str, party: str) -> None:
        """Raises Forbidden where the terms don't let `party` have the rows (`not_permitted`, `licence_withdrawn`). What
        may be made of them is for the licence to say, which goes along."""
        check_not_withdrawn(self.terms(name))
        self._check_permitted(name, party, "train")

    def register_contributor(self, public_key: str, name: str) -> Contributor:
        """Idempotent. Raises Conflict when the key is registered under another name, Forbidden (`key_replaced`)."""
        check_public_key(public_key)
        _check_text(name, "name", _MAX_NAME_CHARS)
        self._registry.holders.check(public_key)
        return self._register(self._registry.holders.held_by(public_key), public_key, name)

    def has_signed(self, contributor: str) -> bool:
        """Whether anything came in under this name."""
        return self._registry.knows_contributor(contributor) or self._registry.seals.has_any(contributor)

    def adopt_keys(self, change: KeyChange) -> None:
        """The log has the change. May be repeated."""
        self._registry.holders.adopt(change)

    def restore_keys(self, changes: Sequence[tuple[int, KeyChange]]) -> int:
        """Adopt what the log has and this registry lacks, as one that was restored from a backup; how many. They are
        told with their entries, and in the log's order, none left out behind `keys_told`."""
        return self._registry.holders.restore(changes)

    def keys_told(self) -> tuple[int, KeyChange] | None:
        """The last change, and its entry, that `restore_keys` was told of."""
        return self._registry.holders.told()

    def forget_keys_told(self) -> None:
        """The log isn't the one that it was: it is to be told from its beginning."""
        self._registry.holders.forget_told()

    def untold_keys(self) -> list[KeyChange]:
        """The changes of keys that were adopted and `restore_keys` wasn't told of, each contributor's in their order.
        The log has them, or had them."""
        return self._registry.holders.untold()

    def unlog_keys(self, changes: Sequence[KeyChange]) -> None:
        """The log lacks these after all, as one that was restored from a backup: they are held, and nothing more."""
        self._registry.holders.unlog(changes, self._clock.now_ms())

    def drop_keys(self, change: KeyChange, min_age_ms: int = 0) -> None:
        """The log hasn't got a change that was held; one that was held (again) since then stays."""
        self._registry.holders.drop(change, self._clock.now_ms() - min_age_ms)

    def held_keys(self) -> list[HeldChange]:
        """Changes of keys that were held and neither adopted nor dropped."""
        return self._registry.holders.held(self._clock.now_ms())

    def check_key(self, contributor: str, public_key: str) -> None:
        """Raises InvalidInput (`invalid_signature`) where the key never was the contributor's, Forbidden
        (`key_awaited`) where its change isn't in the log yet."""
        self._registry.holders.check_awaited(public_key)
        if self._registry.holders.held_by(public_key) != contributor:
            raise InvalidInput(
                f"{public_key} is no key of {contributor}",
                code="invalid_signature",
                param="contributor_id",
                fix="sign with the contributor's own key",
            )

    def seal(self, seal: Seal) -> SealReceipt:
        """Keep a place in the order of credit for rows that are yet to come; durable when it returns, and counts from
        when it is in the log. The same seal again gives the first.

        Raises InvalidInput (`invalid_seal`, `invalid_signature`), NotFound for an unknown Datanet, Conflict
        (`too_many_seals`) where many of the contributor's seals never got their rows.
        """
        check_public_key(seal.public_key)
        check_seal(seal, self._registry.holders.held_by)
        self._registry.datanet(seal.datanet)
        if self._registry.seals.find(seal.contributor_id, seal.digest, self._clock.now_ms()) is None:
            self._registry.holders.check(seal.public_key)
        return self._registry.seals.add(seal, self._clock.now_ms(), self.terms(seal.datanet).licence)

    def find_seal(self, name: str, contributor: str, digest: str) -> SealReceipt:
        """Raises NotFound (`unknown_seal`)."""
        return self._registry.seals.get(self._registry.datanet(name).name, contributor, digest, self._clock.now_ms())

    def unlogged_seals(self) -> list[UnloggedSeal]:
        """Seals and openings that the log lacks; whoever has put one there says so by `mark_seal_logged`."""
        return self._registry.seals.unlogged()

    def mark_seal_logged(self, contributor: str, digest: str, *, opened: bool) -> None:
        self._registry.seals.mark_logged(contributor, digest, opened=opened)

    def names(self) -> list[str]:
        return self._registry.names()

    def datanet(self, name: str) -> Datanet:
        return self._registry.datanet(name)

    def contributors(self) -> list[Contributor]:
        return self._registry.contributors()

    def _register(self, identifier: str, public_key: str, name: str) -> Contributor:
        """With the key that signs for him now."""
        present = self._registry.holders.keys(identifier, public_key).public_key
        contributor = Contributor(contributor_id=identifier, public_key=present, name=name)
        self._registry.add_contributor(contributor, self._clock.now_ms())
        return contributor

    def _check_permitted(self, name: str, party: str, action: Action) -> None:
        if party != self._registry.datanet(name).owner:
            permission = self._registry.terms.permission(name, party, action)
            check_permitted(self._registry.terms.terms(name), permission, action, party, self._clock.now_ms())

    def _permit(self, name: str, permission: Permission) -> Permission:
        self._registry.terms.set_permission(name, permission, self._clock.now_ms())
        return permission

    def _check_owner(self, name: str, by: str) -> None:
        if by != self._registry.datanet(name).owner:
            raise Forbidden(f"{by} doesn't own the Datanet {name!r}", code="not_the_owner", param="by")


def _described(name: str, summary: str, owner: str, row_schema: RowSchema) -> Datanet:
    _check_text(summary, "summary", _MAX_SUMMARY_CHARS)
    _check_text(owner, "owner", _MAX_NAME_CHARS)
    return Datanet(name=check_name(name, "name"), summary=summary, owner=owner, row_schema=row_schema)


def _check_text(text: str, param: str, max_chars: int) -> None:
    if not 1 <= len(text) <= max_chars or not text.isprintable() or not text.strip():
        raise InvalidInput(
            f"{param} must be 1 to {max_chars} printable characters on one line", code="invalid_text", param=param
        )
