"""Generators derived from names, so that a draw depends on what it is for and on nothing else.

``generator(seed, "recipe", key)`` gives the same numbers on every machine, in any process, whatever
was drawn before; two different names give independent streams. Cost: one BLAKE2 hash.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derived_seed(seed: int, *names: str | int) -> int:
    """Give the 64-bit integer that belongs to ``seed`` and ``names`` (order matters).

    Names are joined with their type and length, so ``("a", "bc")`` and ``("ab", "c")`` differ.
    """
    text = "".join(f"{type(name).__name__}{len(str(name))}:{name}" for name in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Give a NumPy generator (PCG64) for the thing called ``names`` under ``seed``."""
    return np.random.Generator(np.random.PCG64(derived_seed(seed, *names)))
