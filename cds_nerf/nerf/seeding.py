"""Seeds that follow from the run's seed and the step alone, so that no random state has to be saved to resume."""

import hashlib


def seed_for(seed: int, purpose: str, step: int) -> int:
    """A 63-bit seed; the same for the same arguments, unrelated for others."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
