"""What must be finite in a step of an edit, read from the device once, when the step is done."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool
from torch import Tensor


class StepChecks:
    """Conditions of a step that are computed on a device, and why the step cannot be if one is not met.

    To read one makes the host wait for the device: all are read together.
    """

    def __init__(self) -> None:
        self._checks: list[tuple[Bool[Tensor, ""], Callable[[], str]]] = []

    def clear(self) -> None:
        """Begin a step."""
        self._checks = []

    def add(self, is_met: Bool[Tensor, ""], reason: Callable[[], str]) -> None:
        """Take a condition, without waiting for it.

        Args:
            is_met: whether it is.
            reason: says why it is not; called if it is not.
        """
        self._checks.append((is_met, reason))

    def read(self) -> None:
        """Wait for the conditions.

        Raises:
            FloatingPointError: if one is not met, with the reason of the first one that is not.
        """
        if not self._checks:
            return
        device = self._checks[-1][0].device
        if not torch.stack([is_met.to(device) for is_met, _ in self._checks]).all():
            raise FloatingPointError(next(reason() for is_met, reason in self._checks if not is_met))
