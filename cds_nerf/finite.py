"""Whether numbers are finite."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Bool
from torch import Tensor


def are_finite(tensors: Iterable[Tensor]) -> Bool[Tensor, ""]:
    """Whether all elements of all tensors are finite; on their device, so that nothing waits for it.

    Args:
        tensors: of any shapes, on one device.
    """
    largest = [torch.linalg.vector_norm(tensor.detach(), torch.inf) for tensor in tensors if tensor.numel()]
    return torch.stack(largest).isfinite().all() if largest else torch.tensor(True)
