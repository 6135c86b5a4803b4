"""Randomness that follows from the run's seed and the step alone, so that no random state has to be saved to resume."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_for(seed: int, purpose: str, step: int) -> int:
    """A 63-bit seed; the same for the same arguments, unrelated for others."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def repeatable_on_cpu(device: str) -> Iterator[None]:
    """On a CPU, sums over a hash table's entries are taken in one order, whatever its threads do.

    On a GPU they are not: many of a field's operations have no such form there.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
