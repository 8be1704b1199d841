"""The economy of OPEN: fees, holds, pools and payouts over the ledger. Plain Python; `actor` alone knows Ray."""

from openledger.economy.economy import Economy, Payout
from openledger.economy.parameters import Parameters
from openledger.economy.port import LedgerPort

__all__ = ["Economy", "LedgerPort", "Parameters", "Payout"]
