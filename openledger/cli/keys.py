"""A contributor's key: made, and found again."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from openledger.cli import output
from openledger.core.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    from openledger.core.signing import SigningKey


def new(options: Namespace) -> None:
    from openledger.core.signing import SigningKey, contributor_id

    path = Path(options.out)
    if path.exists():
        raise Conflict(
            f"{path} exists and is not overwritten",
            code="key_exists",
            param="out",
            fix="choose another file with --out, or keep using this one",
        )
    try:
        key = SigningKey.load_or_create(path)
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}", code="unwritable", param="out") from error
    made = {"key_file": str(path), "public_key": key.public_key, "contributor_id": contributor_id(key.public_key)}
    output.print_pairs(made, as_json=options.json)


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
