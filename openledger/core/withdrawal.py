"""What a contributor signs to take rows back: known to who signs it, who obeys it, and who audits it."""

from openledger.core.hashing import canonical_json

FORMAT = "openledger/withdrawal/1"


def withdrawal_bytes(datanet: str, contributor_id: str, rows_root: str, num_rows: int, nonce: str) -> bytes:
    """`rows_root` is the RFC 9162 root (hex) over the sorted row ids."""
    return canonical_json(
        {
            "format": FORMAT,
            "datanet": datanet,
            "contributor_id": contributor_id,
            "rows_root": rows_root,
            "num_rows": num_rows,
            "nonce": nonce,
        }
    )
