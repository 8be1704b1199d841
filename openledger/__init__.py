"""OpenLedger: pay the people whose data made the answer. See docs/structure.md for the house."""

__version__ = "0.1.0"
