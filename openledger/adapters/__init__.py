"""Adapters: a PEFT folder with its lineage card, the base model it belongs to, and the registry of both."""
