"""The Python SDK: OpenLedger's calls over HTTP, typed. Imports neither ray nor torch."""

from openledger.client.sdk import OpenLedger
from openledger.client.values import Answer, Model, Piece, Receipt

__all__ = ["Answer", "Model", "OpenLedger", "Piece", "Receipt"]
