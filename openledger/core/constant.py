"""The constants that a training's initial matrices and the order of its rows are derived from."""

from collections.abc import Sequence

from openledger.core.errors import InvalidInput
from openledger.core.hashing import digest_json


def public_constant(base_digest: str, datanet: str, version: int, nonces: Sequence[str]) -> str:
    """The constant that initial A and row order are derived from, of the nonces of a version's owner and witnesses
    (in the order of their ids; economy/nonces.py): unknown to each of them until contributions are closed.

    Raises InvalidInput for fewer than two nonces.
    """
    if isinstance(nonces, str) or len(nonces) < 2 or not all(nonces):
        raise InvalidInput("a constant takes the nonces of an owner and a witness", code="no_nonces", param="nonces")
    return digest_json(["openledger.initial/2", base_digest, datanet, version, list(nonces)])


def row_root_constant(base_digest: str, datanet: str, version: int, row_root: str) -> str:
    """The constant where nobody gave nonces: public and fixed, but whoever contributes last can try out rows by what
    comes of it."""
    return digest_json(["openledger.initial/1", base_digest, datanet, version, row_root])
