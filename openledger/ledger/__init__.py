"""The ledger: accounts, transfers, a verifiable log, proofs and audit. Plain Python; `actor` alone knows Ray."""

from openledger.ledger.accounts import Account, Balance, pool_account
from openledger.ledger.audit import AuditReport, audit_file
from openledger.ledger.ledger import Ledger
from openledger.ledger.proofs import VerifiedProof, encode_proof, verify_proof, verify_proof_file
from openledger.ledger.transfers import Batch, Entry, Transfer

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
