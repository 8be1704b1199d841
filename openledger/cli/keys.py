"""Making a contributor's key."""

from argparse import Namespace
from pathlib import Path

from openledger.cli import output
from openledger.core.errors import Conflict, InvalidInput


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
