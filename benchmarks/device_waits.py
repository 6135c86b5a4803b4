"""Where the host would wait for a GPU, counted on a CPU.

The weights are taken to be on a device, and so is all that is computed from them or sent to it; what is drawn, read or
counted elsewhere is taken to be on the host. Two kinds of calls wait:

- reads, which need a result: `item()`, `bool()`, `float()`, `int()`, `tolist()`, `cpu()` and `numpy()` of a tensor on
  the device, and what has a shape that only the values say: `nonzero()`, indexing by a mask, `masked_select`, `unique`;
- sends, which block: `to(device)` and `torch.tensor(..., device=...)` without `non_blocking`, of a tensor on the host
  that meets one on the device later on.

Not seen is what a gradient scaler reads under mixed precision, which is off on a CPU, and what waits in an operator.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

aten = torch.ops.aten
READING = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.nonzero.default,
}
"""Operators that wait for the values of what they get."""
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""Operators that wait where they get a mask."""
DEVICE = frozenset({-1})
"""Where a tensor is that is on the device."""
MANY = 20000
"""Places of tensors that are remembered before those that are gone are forgotten."""


class DeviceWaits(TorchDispatchMode):
    """Counts waits within `with waits:`.

    Args:
        seen: is called at each wait with its kind, "reads" or "sends".
        packages: a wait's place is the innermost line of one of these.
    """

    def __init__(self, seen: Callable[[str], None], packages: tuple[str, ...] = ("cds_nerf", "nerfstudio")) -> None:
        super().__init__()
        self.places: Counter[tuple[str, str]] = Counter()
        """How often it waited, by the kind and `module:line`."""
        self._seen = seen
        self._packages = packages
        self._origins: dict[int, tuple[StorageWeakRef, frozenset[int]]] = {}
        self._sends: list[str | None] = []
        self._patches = ExitStack()

    def __enter__(self) -> DeviceWaits:
        for name in ("cpu", "numpy", "tolist"):
            self._patches.enter_context(patch.object(Tensor, name, self._reading(getattr(Tensor, name))))
        for name in ("to", "cuda"):
            self._patches.enter_context(patch.object(Tensor, name, self._moving(getattr(Tensor, name))))
        for name in ("tensor", "as_tensor"):
            self._patches.enter_context(patch.object(torch, name, self._making(getattr(torch, name))))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def place(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors to be on the device."""
        for tensor in tensors:
            self._put(tensor, DEVICE)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator; its results are where its tensors are."""
        inputs = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        origins = frozenset().union(*map(self._origin, inputs))
        is_masked = func in INDEXING and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in inputs[1:])
        if origins & DEVICE:
            self._confirm(origins)
            origins = DEVICE
            if func in READING or is_masked:
                self._note("reads", self._place())
        results = func(*args, **(kwargs or {}))
        if origins:
            for result in tree_flatten(results)[0]:
                if isinstance(result, Tensor):
                    self._put(result, origins)
        return results

    def _reading(self, method: Any) -> Any:
        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            result = method(tensor, *args, **kwargs)
            if self._origin(tensor) & DEVICE:
                self._note("reads", self._place())
            if isinstance(result, Tensor) and self._origin(tensor):
                result = result.clone()  # as from a device: what comes is another tensor
                self._put(result, frozenset())
            return result

        return read

    def _moving(self, method: Any) -> Any:
        def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result = method(tensor, *args, **kwargs)
            others = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            device, _, non_blocking, *_ = torch._C._nn._parse_to(*args, **kwargs)
            there = frozenset().union(*map(self._origin, others))
            if device is None or self._origin(tensor) or (others and not there):
                return result
            if result.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                result = result.clone()  # as to a device
            self._send(result, there, non_blocking)
            return result

        return to

    def _making(self, function: Any) -> Any:
        def make(*args: Any, **kwargs: Any) -> Tensor:
            result = function(*args, **kwargs)
            if kwargs.get("device") is not None:
                self._send(result, frozenset(), non_blocking=False)
            return result

        return make

    def _send(self, tensor: Tensor, there: frozenset[int], non_blocking: bool) -> None:
        """Note that a tensor has been sent; whether to the device may turn out later."""
        if non_blocking:
            there = DEVICE  # where else
        else:
            self._sends.append(self._place())
            there = there | {len(self._sends) - 1}
        self._confirm(there)
        self._put(tensor, DEVICE if there & DEVICE else there)

    def _confirm(self, origins: frozenset[int]) -> None:
        """Count what was sent to the device, each once."""
        if origins & DEVICE:
            for send in origins - DEVICE:
                if (place := self._sends[send]) is not None:
                    self._note("sends", place)
                    self._sends[send] = None

    def _origin(self, tensor: Tensor) -> frozenset[int]:
        """`DEVICE`, or the sends that a tensor comes from; none if it was made on the host."""
        known = self._origins.get(tensor.untyped_storage()._cdata)
        return frozenset() if known is None else known[1]

    def _put(self, tensor: Tensor, origins: frozenset[int]) -> None:
        storage = tensor.untyped_storage()
        # The weak reference keeps the storage's number from being given to another one.
        self._origins[storage._cdata] = StorageWeakRef(storage), origins
        if len(self._origins) > MANY:
            self._origins = {key: value for key, value in self._origins.items() if not value[0].expired()}

    def _note(self, kind: str, place: str) -> None:
        self.places[kind, place] += 1
        self._seen(kind)

    def _place(self) -> str:
        frame: Any = sys._getframe(1)
        while frame is not None:
            if (module := frame.f_globals.get("__name__", "")).startswith(self._packages):
                return f"{module}:{frame.f_lineno}"
            frame = frame.f_back
        return "elsewhere"
