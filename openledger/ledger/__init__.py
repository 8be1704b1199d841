"""The ledger: accounts, transfers, a verifiable log, proofs and audit. Plain Python; `actor` alone knows Ray.

The names come when they are asked for: the command line imports `ledger.options` for its help, and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openledger.ledger.accounts import Account, Balance, pool_account
    from openledger.ledger.audit import AuditReport, audit_file
    from openledger.ledger.ledger import Ledger
    from openledger.ledger.proofs import VerifiedProof, encode_proof, verify_proof, verify_proof_file
    from openledger.ledger.transfers import Batch, Entry, Transfer

_HOMES = {
    "accounts": ("Account", "Balance", "pool_account"),
    "audit": ("AuditReport", "audit_file"),
    "ledger": ("Ledger",),
    "proofs": ("VerifiedProof", "encode_proof", "verify_proof", "verify_proof_file"),
    "transfers": ("Batch", "Entry", "Transfer"),
}
__all__ = [
    "Account",
    "AuditReport",
    "Balance",
    "Batch",
    "Entry",
    "Ledger",
    "Transfer",
    "VerifiedProof",
    "audit_file",
    "encode_proof",
    "pool_account",
    "verify_proof",
    "verify_proof_file",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"openledger.ledger.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
