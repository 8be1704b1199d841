"""Proof of Attribution: which rows, and so which contributors, made an answer what it is."""
