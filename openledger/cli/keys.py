"""A contributor's keys: made, found again, replaced, and recovered.

A file of a key that replaced another names its contributor behind the seed. It is written before the change is sent:
who is cut off runs the same command again.
"""

import os
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openledger.cli import output
from openledger.core.errors import Conflict, Forbidden, InvalidInput, NotFound

if TYPE_CHECKING:
    from openledger.client import OpenLedger
    from openledger.core.rekeying import Keys
    from openledger.core.signing import SigningKey


def new(options: Namespace) -> None:
    path = Path(options.out)
    if path.exists():
        raise Conflict(
            f"{path} exists and is not overwritten",
            code="key_exists",
            param="out",
            fix="choose another file with --out, or keep using this one",
        )
    _print_key(path, _made(path), as_json=options.json)


def show(options: Namespace) -> None:
    """What the server has of the key's contributor."""
    key = load_key(options.key)
    with _connected(options) as client:
        told = client.contributor_keys(key.contributor_id)
    keys = _keys(told, key)
    found = {
        "key_file": options.key,
        "contributor_id": key.contributor_id,
        "public_key": key.public_key,
        "signs": "yes" if keys.public_key == key.public_key else "no: it was replaced",
        "recovery_key": keys.recovery_key or None,
        "num_changes": keys.number,
    }
    output.print_pairs({**found, "changes": told["changes"]} if options.json else found, as_json=options.json)


def name_recovery(options: Namespace) -> None:
    """With --recovery-key, which is replaced then."""
    key, former = load_key(options.key), _optional(options.recovery_key)
    output.print_pairs(_changed(options, key, former or key, role="recovery_key"), as_json=options.json)


def name_first_recovery(options: Namespace, key: "SigningKey", path: str) -> dict[str, Any]:
    """For a contributor who has sent something and has none; the same again tells the same."""
    wanted = Namespace(**{**vars(options), "out": path, "dry_run": False})
    return _changed(wanted, key, key, role="recovery_key")


def is_first_recovery(options: Namespace, key: "SigningKey", name: str) -> bool:
    """Whether `name_first_recovery` has anything to do; asked before a row is sent, for what would be refused then.
    Raises Conflict, Forbidden and InvalidInput."""
    path = Path(name)
    _check_recovery_file(path, key)
    with _connected(options) as client:
        before = _keys(client.contributor_keys(key.contributor_id), key)
    if not before.recovery_key:
        _check_may(before, key)
        return True
    if _is_done(path, before.recovery_key):
        output.print_note(f"the key in {path} is your recovery key already")
    else:
        output.print_note(f"you have named a recovery key before, and it isn't in {path}: nothing is written there")
    return False


def rotate(options: Namespace) -> None:
    key = load_key(options.key)
    found = _changed(options, key, _optional(options.recovery_key) or key, role="public_key")
    output.print_pairs(found, as_json=options.json)


def recover(options: Namespace) -> None:
    """The recovery key's file names the contributor."""
    recovery = load_key(options.recovery_key)
    output.print_pairs(_changed(options, recovery, recovery, role="public_key"), as_json=options.json)


def load_key(name: str) -> "SigningKey":
    """Raises NotFound where there is no file: loading would make a key, and a mistyped name become an identity."""
    from openledger.core.signing import SigningKey

    path = Path(name)
    if not path.is_file():
        raise NotFound(
            f"there is no key file {name}", code="unknown_file", param="key", fix="make one with 'openledger keys new'"
        )
    return SigningKey.load_or_create(path)


def own_key(options: Namespace) -> "SigningKey | None":
    """The key of --key, for the contributor's own account; without it the API key says whose account it is."""
    return load_key(options.key) if options.key else None


def _changed(options: Namespace, own: "SigningKey", by: "SigningKey", *, role: str) -> dict[str, Any]:
    """Let a new key, in the file of --out, take the place of the signing key or of the recovery key (`role`); what
    there is to tell of it."""
    from openledger.core.rekeying import sign_change

    path = Path(options.out)
    with _connected(options) as client:
        told = client.contributor_keys(own.contributor_id)
        before = _keys(told, own)
        if not _is_done(path, getattr(before, role)):
            _check_may(before, by)
            if options.dry_run:
                return _planned(before, path, role)
            made = _made(path, own.contributor_id)
            if made.contributor_id != own.contributor_id or made.public_key in (own.public_key, by.public_key):
                raise Conflict(
                    f"{path} holds another key", code="key_exists", param="out", fix="choose another file with --out"
                )
            told = client.change_keys(sign_change(before, [by, made], **{role: made.public_key}))
    after = _keys(told, own)
    return {
        "contributor_id": after.contributor_id,
        "public_key": after.public_key,
        "recovery_key": after.recovery_key or None,
        "transfer_id": told["changes"][-1]["transfer_id"],
        "written": str(path),
    }


def _is_done(path: Path, present: str) -> bool:
    """Whether the file's key has its role by now: an earlier run of the same command was answered, unheard."""
    return path.is_file() and load_key(str(path)).public_key == present


def _check_recovery_file(path: Path, key: "SigningKey") -> None:
    """That a recovery key can be written there, or that one is there."""
    folder = path.parent
    if path.is_dir() or not (path.exists() or (folder.is_dir() and os.access(folder, os.W_OK))):
        raise InvalidInput(
            f"{path} can't be written as a key file",
            code="unwritable",
            param="recovery",
            fix="name a file in a folder that is there",
        )
    if not path.exists():
        return
    found = load_key(str(path))
    if found.public_key == key.public_key or found.contributor_id != key.contributor_id:
        whose = "the key that signs" if found.public_key == key.public_key else "a key that isn't yours to recover with"
        raise Conflict(
            f"{path} holds {whose}", code="key_exists", param="recovery", fix="name another file with --recovery"
        )


def _check_may(before: "Keys", by: "SigningKey") -> None:
    """Before a file is written; the server asks for the same."""
    if before.recovery_key and by.public_key != before.recovery_key:
        raise Forbidden(
            f"the keys of {before.contributor_id} are changed by the key {before.recovery_key} alone",
            code="recovery_key_needed",
            param="recovery_key",
            fix="give its file with --recovery-key",
        )
    if not before.recovery_key and by.public_key != before.public_key:
        raise Forbidden(
            f"{by.public_key} doesn't sign for {before.contributor_id}, which has named no recovery key",
            code="recovery_key_needed",
            param="key",
            fix="give the newest key file as --key; 'openledger keys show --key FILE' says whether a file's key signs",
        )


def _planned(before: "Keys", path: Path, role: str) -> dict[str, Any]:
    return {
        "contributor_id": before.contributor_id,
        "replaces": getattr(before, role) or None,
        "signed_by": before.recovery_key or before.public_key,
        "would_write": str(path),
        "sent": "nothing: this is a dry run",
    }


def _keys(told: dict[str, Any], own: "SigningKey") -> "Keys":
    from openledger.core.rekeying import Keys

    return Keys(
        contributor_id=own.contributor_id,
        public_key=told["public_key"] or own.public_key,
        recovery_key=told["recovery_key"] or "",
        number=told["num_changes"],
    )


def _optional(name: str | None) -> "SigningKey | None":
    return load_key(name) if name else None


def _made(path: Path, contributor: str = "") -> "SigningKey":
    from openledger.core.signing import SigningKey

    try:
        return SigningKey.load_or_create(path, contributor)
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}", code="unwritable", param="out") from error


def _print_key(path: Path, key: "SigningKey", *, as_json: bool) -> None:
    made = {"key_file": str(path), "public_key": key.public_key, "contributor_id": key.contributor_id}
    output.print_pairs(made, as_json=as_json)


def _connected(options: Namespace) -> "OpenLedger":
    from openledger.client import OpenLedger

    return OpenLedger(options.url, options.api_key)
