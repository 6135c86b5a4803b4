"""Checks of an edit's settings that need neither the image nor the model."""

from __future__ import annotations

from cds_nerf.errors import UserError


def check_descent(steps: int, learning_rate: float) -> None:
    """Raise a UserError where the gradient descent would not move."""
    if steps < 1:
        raise UserError(f"steps is {steps}; it must be at least 1")
    if not 0 < learning_rate < float("inf"):
        raise UserError(f"learning_rate is {learning_rate}; it must be greater than 0")


def check_seed(seed: int) -> None:
    """Raise a UserError where torch would not take the seed."""
    if not 0 <= seed < 2**63:
        raise UserError(f"seed is {seed}; it must be at least 0 and less than 2^63")
