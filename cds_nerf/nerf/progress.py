"""Training with a progress bar that shows the losses and the time left, in place of nerfstudio's table of steps."""

from __future__ import annotations

from typing import Any

from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, Trainer

from cds_nerf.progress import progress_bar


class ProgressTrainer(Trainer):
    """nerfstudio's trainer with a progress bar; its local writer, which prints the table, is to be off."""

    activity = "Training"
    """What the bar says is being done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.progress_notes: dict[str, str] = {}
        """What the bar says besides the losses."""

    def train(self) -> None:
        """Train for `max_num_iterations` steps from where the checkpoint was, if there was one."""
        start = self._start_step
        total = start + self.config.max_num_iterations
        with progress_bar(description=self.activity, total=total, initial=start) as self.progress:
            super().train()

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step, on the progress bar with its losses."""
        loss, losses, metrics = super().train_iteration(step)
        losses = {name: value.detach() for name, value in losses.items()}
        values = {name.removesuffix("_loss"): f"{value.item():.3g}" for name, value in losses.items()}
        self.progress.set_postfix({**values, **self.progress_notes}, refresh=False)
        self.progress.update()
        return loss.detach(), losses, metrics

    def _after_train(self) -> None:
        self.progress.close()
        super()._after_train()
