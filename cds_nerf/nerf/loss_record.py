"""The losses of an edit's steps, kept in its run folder, so that the curves of a resumed edit go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from cds_nerf.errors import UserError
from cds_nerf.files import whole_file

RECORD = "losses.json"
"""In the run folder: by the name of each loss, its values from the first step on; null where a step has none."""

Losses = dict[str, list[float | None]]


class LossRecord:
    """Takes the losses of each step, and reads them from the device when they are asked for.

    Args:
        path: of the file, which need not be there yet.
        start: the step that comes first; what the file knows of later ones is forgotten.

    Raises:
        UserError: if there is a file that cannot be read.
    """

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self._values = {name: values[:start] for name, values in _read(path).items()}
        self._unread: list[tuple[int, dict[str, Float[Tensor, ""]]]] = []

    def add(self, step: int, losses: Mapping[str, Float[Tensor, ""]]) -> None:
        """Take a step's losses, without waiting for the device that computes them."""
        if losses:
            self._unread.append((step, {name: loss.detach() for name, loss in losses.items()}))

    def values(self) -> Losses:
        """All losses up to the last step; those that are still on the device are waited for, all at once."""
        if self._unread:
            scalars = [loss.float() for _, losses in self._unread for loss in losses.values()]
            read = iter(torch.stack(scalars).tolist())
            for step, losses in self._unread:
                for name in losses:
                    values = self._values.setdefault(name, [])
                    values += [None] * (step - len(values)) + [next(read)]
            self._unread.clear()
        return self._values

    def save(self) -> None:
        """Write them, whole at any moment.

        Raises:
            UserError: if the file cannot be written.
        """
        if values := self.values():
            with whole_file(self.path) as file:
                file.write_text(json.dumps(values), "utf8")


def _read(path: Path) -> Losses:
    wrong = f"{path} cannot be read: bring it back, or move it away, and the curves of the losses begin anew"
    try:
        record = json.loads(path.read_text("utf8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(wrong) from error
    if not isinstance(record, dict) or not all(
        isinstance(values, list) and all(value is None or isinstance(value, float | int) for value in values)
        for values in record.values()
    ):
        raise UserError(wrong)
    return record
