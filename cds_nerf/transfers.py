"""Tensors on their way to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device, without waiting for what the device still has to compute.

    Args:
        tensor: on any device; it is not to be written to afterwards.
        device: where it goes.
        dtype: what it becomes there; by default what it is.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # from other memory the driver may wait before it copies
    # To the host a copy has to be waited for, and torch's to Apple's GPUs may read what is there no more.
    sent = tensor.to(
        device, non_blocking=device.type != "mps" and (device.type != "cpu" or tensor.device.type == "cpu")
    )
    return sent if dtype is None else sent.to(dtype)
