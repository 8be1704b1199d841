"""Word shingles, and a compact filter that remembers which ones a corpus holds.

The filter is a Bloom filter (Bloom, 1970): it never forgets a shingle, and claims one it has not seen with a known,
small probability. It ships beside the base model, so that anyone can check without the pretraining text that the
model has not seen a row.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHINGLE_WORDS = 5
_WORD = re.compile(r"\w+")
_HASHES = 7


def normalized_words(text: str) -> list[str]:
    """Lower-case words of `text` after Unicode compatibility normalisation (NFKC)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def shingles(text: str) -> set[int]:
    """64-bit hashes of every run of five words; a shorter text is one shingle, an empty one none."""
    words = normalized_words(text)
    if not words:
        return set()
    size = min(SHINGLE_WORDS, len(words))
    return {_hash(" ".join(words[start : start + size])) for start in range(len(words) - size + 1)}


class ShingleFilter:
    """A set of shingles in about ten bits for each, with one false positive in a hundred."""

    def __init__(self, bits: npt.NDArray[np.uint8]):
        self._bits = bits

    @classmethod
    def build(cls, values: Iterable[int], bits_per_value: int = 10) -> "ShingleFilter":
        keys = np.unique(np.fromiter(values, dtype=np.uint64))
        num_bytes = max(64, math.ceil(len(keys) * bits_per_value / 8))
        bits = np.zeros(num_bytes, dtype=np.uint8)
        for positions in _positions(keys, num_bytes * 8):
            np.bitwise_or.at(bits, positions >> 3, (1 << (positions & 7)).astype(np.uint8))
        return cls(bits)

    @classmethod
    def load(cls, path: Path) -> "ShingleFilter":
        return cls(np.fromfile(path, dtype=np.uint8))

    def save(self, path: Path) -> None:
        self._bits.tofile(path)

    def containment(self, text: str) -> float:
        """The fraction of the text's shingles that the filter holds, 0 to 1; 0 for a text without words."""
        keys = np.fromiter(shingles(text), dtype=np.uint64)
        if not len(keys):
            return 0.0
        held = np.ones(len(keys), dtype=bool)
        for positions in _positions(keys, len(self._bits) * 8):
            held &= (self._bits[positions >> 3] >> (positions & 7)) & 1 == 1
        return float(held.mean())


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _positions(keys: npt.NDArray[np.uint64], num_bits: int) -> Iterable[npt.NDArray[np.int64]]:
    """Kirsch and Mitzenmacher's double hashing: h1 + i h2."""
    high, low = keys >> np.uint64(32), (keys & np.uint64(0xFFFFFFFF)) | np.uint64(1)
    for step in range(_HASHES):
        yield ((high + np.uint64(step) * low) % np.uint64(num_bits)).astype(np.int64)
