"""Training with a progress bar that shows the losses and the time left, in place of nerfstudio's table of steps."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import torch
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer
from torch import Tensor

from cds_nerf.nerf import compatibility
from cds_nerf.progress import progress_bar

SECONDS_BETWEEN_LOOKS = 0.5
"""How long the losses stay on the device, at least, before they are read again: whoever reads them waits for it."""


class ProgressTrainer(Trainer):
    """nerfstudio's trainer with a progress bar; its local writer, which prints the table, is to be off."""

    activity = "Training"
    """What the bar says is being done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.progress_notes: dict[str, str] = {}
        """What the bar says besides the losses."""

        self._losses: dict[str, Tensor] = {}
        self._next_look = 0.0

    def train(self) -> None:
        """Train for `max_num_iterations` steps from where the checkpoint was, if there was one."""
        start = self._start_step
        total = start + self.config.max_num_iterations
        with ExitStack() as self._in_training:
            self.progress = self._in_training.enter_context(
                progress_bar(description=self.activity, total=total, initial=start)
            )
            self._in_training.enter_context(compatibility.events_written_every(SECONDS_BETWEEN_LOOKS))
            super().train()

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step, on the progress bar; its losses are read from the device when they are due to be shown."""
        loss, losses, metrics = super().train_iteration(step)
        self._losses = {name: value.detach() for name, value in losses.items()}
        if time.monotonic() >= self._next_look:
            self._show_losses()
            self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        self.progress.update()
        return loss.detach(), self._losses, metrics

    def _show_losses(self) -> None:
        names = [name.removesuffix("_loss") for name in self._losses]
        values = torch.stack([value.float() for value in self._losses.values()]).tolist() if names else []
        shown = {name: f"{value:.3g}" for name, value in zip(names, values, strict=True)}
        self.progress.set_postfix({**shown, **self.progress_notes}, refresh=False)

    def _after_train(self) -> None:
        self._show_losses()
        self._in_training.close()
        super()._after_train()
