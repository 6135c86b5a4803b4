"""Checks of an edit's settings that need neither the image nor the model."""

from __future__ import annotations

from cds_nerf.errors import UserError


def check_prompts(source_prompt: str, target_prompt: str) -> None:
    """Raise a UserError where a prompt is empty or both are the same."""
    if not source_prompt.strip():
        raise UserError(f"source_prompt is {source_prompt!r}; it must say what the image shows")
    if not target_prompt.strip():
        raise UserError(f"target_prompt is {target_prompt!r}; it must say what the image is to show")
    if source_prompt.strip() == target_prompt.strip():
        raise UserError(f"source_prompt and target_prompt are both {source_prompt!r}: there is nothing to edit")


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
