"""Datanets: signed contributions, the gate, shards and versions."""
