"""Bytes that a computation on fake tensors would hold, and the floating-point operations that it would make."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made within that are alive: exact but for what operators hold only while they run."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count what it makes; a flag that nobody knows is taken to be set: all is finite."""
        try:
            results = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            return True
        known = {leaf.untyped_storage()._cdata for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)}
        for result in tree_flatten(results)[0]:
            if isinstance(result, Tensor) and (storage := result.untyped_storage())._cdata not in known:
                known.add(storage._cdata)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        self.peak = max(self.peak, self.held)
        return results

    def _release(self, size: int) -> None:
        self.held -= size

    def peak_of(self, step: Callable[[], Any]) -> tuple[int, Any]:
        """The most bytes that are alive within a step, and what it returns."""
        self.peak = self.held
        result = step()
        return self.peak, result


def flops(step: Callable[[], Any]) -> tuple[int, Any]:
    """The operations of a step in its convolutions, matrix products and attention, and what it returns."""
    attention: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
            query, key, value
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        result = step()
    return counter.get_total_flops(), result
