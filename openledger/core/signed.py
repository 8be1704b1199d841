"""What contributors sign: known to who signs it, who obeys it, and who audits it.

Canonical JSON of everything but the rows themselves, for which a root stands.
"""

from collections.abc import Mapping
from typing import Any

from openledger.core.hashing import canonical_json
from openledger.core.ids import derived_id
from openledger.core.values import Contribution

CONTRIBUTION_FORMAT = "openledger/contribution/1"
WITHDRAWAL_FORMAT = "openledger/withdrawal/1"


def contribution_fields(
    datanet: str, contributor_id: str, content_root: str, num_rows: int, nonce: str
) -> dict[str, Any]:
    """`content_root` is the RFC 9162 root (hex) over the canonical JSON of the drafts, in order."""
    return {
        "format": CONTRIBUTION_FORMAT,
        "datanet": datanet,
        "contributor_id": contributor_id,
        "content_root": content_root,
        "num_rows": num_rows,
        "nonce": nonce,
    }


def contribution_bytes(datanet: str, contributor_id: str, content_root: str, num_rows: int, nonce: str) -> bytes:
    return canonical_json(contribution_fields(datanet, contributor_id, content_root, num_rows, nonce))


def contribution_id(contribution: Contribution) -> str:
    """Derived from what is signed, so that a contribution sent twice is one."""
    one = contribution
    return signed_id(contribution_fields(one.datanet, one.contributor_id, one.content_root, len(one.drafts), one.nonce))


def signed_id(signed: Mapping[str, Any]) -> str:
    """The id of the contribution whose signature covers `signed` (`contribution_fields`)."""
    return derived_id("ctb", canonical_json(dict(signed)).decode())


def withdrawal_bytes(datanet: str, contributor_id: str, rows_root: str, num_rows: int, nonce: str) -> bytes:
    """`rows_root` is the RFC 9162 root (hex) over the sorted row ids."""
    return canonical_json(
        {
            "format": WITHDRAWAL_FORMAT,
            "datanet": datanet,
            "contributor_id": contributor_id,
            "rows_root": rows_root,
            "num_rows": num_rows,
            "nonce": nonce,
        }
    )
