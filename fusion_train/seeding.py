"""Derive every random choice from (seed, purpose, numbers) as a pure function; no global state decides a sample."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """Return a 63-bit seed, the same on every machine and in every process."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return a new NumPy generator for one random choice."""
    return np.random.Generator(np.random.Philox(key=derive(seed, purpose, *numbers)))
