"""Which keys speak for a contributor, and how they are changed: what is signed, by whom, and the one rule.

A contributor is named after the first key he signed with, and keeps that name. Two keys belong to him: one that signs,
and, once he has named it, a recovery key that signs nothing but changes of keys.

    The rule   Once a recovery key is named, it alone changes keys: whoever has stolen the signing key can't rotate it,
               and who has lost it gets another one by the recovery key alone. Without one, the signing key changes
               keys itself, and so does its thief. A recovery key can be replaced, by itself, and not be dropped.

Every key that comes new signs the change as well, so nobody names a key that he hasn't got. A change says which one it
is (`number`, from 1) and which key it replaces, so it counts once, in its place. A key serves once: one that anybody
has, or had, is taken.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from openledger.core.errors import Conflict, Forbidden, InvalidInput
from openledger.core.hashing import canonical_json
from openledger.core.signing import SigningKey, check_public_key, contributor_id, verify

FORMAT = "openledger.contributor-key/1"
CHANGED = ("contributor_id", "number", "replaces", "public_key", "recovery_key", "by")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """A contributor's keys after `number` changes. An empty `recovery_key`: none is named."""

    contributor_id: str
    public_key: str
    recovery_key: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """The `number`th change: what the keys are from now on. `replaces` is the signing key before it, or the same one;
    `by` the key that may change keys. `signatures` are by public key: that one's, and each new key's."""

    contributor_id: str
    number: int
    replaces: str
    public_key: str
    recovery_key: str
    by: str
    signatures: Mapping[str, str]

    def keys(self) -> Keys:
        """As they are after it."""
        own = self.contributor_id, self.public_key, self.recovery_key, self.number
        return Keys(contributor_id=own[0], public_key=own[1], recovery_key=own[2], number=own[3])


def first_keys(public_key: str) -> Keys:
    """Of whoever never changed any."""
    return Keys(contributor_id=contributor_id(public_key), public_key=public_key)


def sign_change(
    before: Keys, signers: Sequence[SigningKey], *, public_key: str = "", recovery_key: str = ""
) -> KeyChange:
    """The change after `before`; what isn't given stays. Raises what `check_change` does."""
    unsigned = KeyChange(
        contributor_id=before.contributor_id,
        number=before.number + 1,
        replaces=before.public_key,
        public_key=public_key or before.public_key,
        recovery_key=recovery_key or before.recovery_key,
        by=before.recovery_key or before.public_key,
        signatures={},
    )
    message = _bytes(unsigned)
    change = replace(unsigned, signatures={key.public_key: key.sign(message) for key in signers})
    check_change(before, change)
    return change


def keys_before(change: KeyChange, known: Keys | None, holder: str) -> Keys:
    """What `change` starts from: `known`, or the first keys. `holder` is the contributor for whom the key that it
    replaces signs, or signed: a key that came to somebody by a change gives its own name to nobody.

    Raises InvalidInput (`invalid_key`), Conflict (`key_in_use`; `stale_key_change` where it is neither the next one nor
    of the key in force).
    """
    before = known or Keys(contributor_id=change.contributor_id, public_key=change.replaces)
    if known is None and contributor_id(change.replaces) != change.contributor_id:
        raise InvalidInput(
            f"{change.contributor_id} isn't named after the key {change.replaces}", code="invalid_key", param="replaces"
        )
    if known is None and holder != change.contributor_id:
        raise Conflict(
            f"the key {change.replaces} serves {holder}, or has served it",
            code="key_in_use",
            param="replaces",
            fix="change the keys of that contributor",
        )
    if (change.number, change.replaces) != (before.number + 1, before.public_key):
        raise Conflict(
            f"the keys of {change.contributor_id} stand at change {before.number}: this one isn't the next",
            code="stale_key_change",
            param="number",
            fix="show the keys as they are ('openledger keys show'), and sign the change anew",
        )
    return before


def check_change(before: Keys, change: KeyChange, taken: Collection[str] = ()) -> None:
    """Whether `change` may follow `before`; `taken` are keys that serve, or served, somebody. See the rule above.

    Raises InvalidInput (`invalid_key`, `unchanged_keys`, `invalid_signature`), Conflict (`key_in_use`), Forbidden
    (`recovery_key_needed`).
    """
    new = _new_keys(before, change)
    if change.public_key == change.recovery_key:
        raise InvalidInput(
            "a recovery key is another one than the key it recovers", code="invalid_key", param="recovery_key",
            fix="keep them in two places: who steals one shouldn't have both",
        )  # fmt: skip
    for key in sorted(new):
        check_public_key(key)
        if key in taken:
            raise Conflict(
                f"the key {key} serves a contributor, or has served one",
                code="key_in_use",
                param="public_key",
                fix="make a new one with 'openledger keys new'",
            )
    by = before.recovery_key or before.public_key
    if change.by != by or (before.recovery_key and by not in change.signatures):
        raise Forbidden(
            f"the keys of {change.contributor_id} are changed by the key {by} alone",
            code="recovery_key_needed",
            param="signatures",
            fix="sign the change with that key: 'openledger keys recover --recovery-key FILE'",
        )
    if set(change.signatures) != new | {by}:
        raise _unsigned(f"the change is signed by other keys than the {len(new) + 1} that have to")
    message = _bytes(change)
    if not all(verify(key, signature, message) for key, signature in change.signatures.items()):
        raise _unsigned("a signature isn't by its key over this change")


def change_of(values: Mapping[str, Any]) -> KeyChange:
    """From JSON values. Raises InvalidInput (`invalid_key_change`) for others."""
    texts = [values.get(name) for name in CHANGED if name != "number"]
    signatures = values.get("signatures")
    if not all(isinstance(text, str) for text in texts) or type(values.get("number")) is not int:
        raise InvalidInput(
            "not the fields of a change of keys", code="invalid_key_change", param="number",
            fix="send what `core.rekeying.change_json` gives",
        )  # fmt: skip
    if not isinstance(signatures, Mapping) or not all(
        isinstance(part, str) for item in signatures.items() for part in item
    ):
        raise InvalidInput("signatures are hex, by public key", code="invalid_key_change", param="signatures")
    return KeyChange(**{name: values[name] for name in CHANGED}, signatures=dict(signatures))


def change_json(change: KeyChange) -> dict[str, Any]:
    return {**asdict(change), "signatures": dict(change.signatures)}


def replaced(public_key: str, contributor: str) -> Forbidden:
    """The error for whatever a key signs after it was replaced."""
    return Forbidden(
        f"the key {public_key} was replaced: it signs nothing more for {contributor}",
        code="key_replaced",
        param="public_key",
        fix="sign with the contributor's present key; what this one signed before stays valid",
    )


def _new_keys(before: Keys, change: KeyChange) -> set[str]:
    new = {change.public_key, change.recovery_key} - {before.public_key, before.recovery_key, ""}
    if before.recovery_key and not change.recovery_key:
        raise InvalidInput("a recovery key can't be dropped", code="invalid_key", param="recovery_key", fix="name it")
    if not new or before.public_key == change.recovery_key or before.recovery_key == change.public_key:
        raise InvalidInput(
            "the change names no new key, or swaps the two", code="unchanged_keys", param="public_key",
            fix="make one with 'openledger keys new'",
        )  # fmt: skip
    return new


def _bytes(change: KeyChange) -> bytes:
    return canonical_json({"format": FORMAT, **{name: getattr(change, name) for name in CHANGED}})


def _unsigned(problem: str) -> InvalidInput:
    return InvalidInput(
        problem,
        code="invalid_signature",
        param="signatures",
        fix="sign with each new key, and with the recovery key, or the present one where there is none",
    )
