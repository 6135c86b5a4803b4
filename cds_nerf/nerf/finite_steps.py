"""Optimisation that leaves out a step whose losses, gradient or result are not finite, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy

import torch
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.cuda.amp.grad_scaler import GradScaler
from torch.nn import Parameter

from cds_nerf.diffusion.memory import is_out_of_memory
from cds_nerf.errors import Terminated
from cds_nerf.finite import are_finite
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.safe_trainer import SafeTrainer
from cds_nerf.nerf.several_devices import DeviceError, Devices
from cds_nerf.nerf.step_checks import StepChecks

SKIPPED_IN_A_ROW = 20
"""So many steps left out one after the other end the training. A gradient scaler needs up to 16 to find its scale."""


class FiniteOptimizers(Optimizers):
    """nerfstudio's optimizers of all parameter groups, whose step is made whole or not at all, by all devices alike."""

    devices = Devices()
    """Those of which each has a part of the gradients."""
    checks = StepChecks()
    """What else must be finite, for a step to be made."""

    def optimizer_scaler_step_some(self, grad_scaler: GradScaler, param_groups: list[str]) -> None:
        """One step of each group; where it fails, all parameters and states are as before.

        Raises:
            FloatingPointError: if a parameter, a state, or what the checks are about would not be finite.
            UserError: if another device's process has ended.
        """
        optimizers = [self.optimizers[group] for group in param_groups]
        parameters = [
            parameter for optimizer in optimizers for part in optimizer.param_groups for parameter in part["params"]
        ]
        self.devices.sum_gradients(parameters)
        values = [parameter.detach().clone() for parameter in parameters]
        states = [deepcopy(optimizer.state_dict()) for optimizer in optimizers]
        try:
            super().optimizer_scaler_step_some(grad_scaler, param_groups)
            self.checks.add(are_finite([*parameters, *_averages(optimizers)]), lambda: _why_not_finite(parameters))
            try:
                self.checks.read()
            except FloatingPointError:
                if grad_scaler.is_enabled():
                    grad_scaler.update()  # which has to follow each of its steps
                raise
        except BaseException:
            with torch.no_grad():
                for parameter, value in zip(parameters, values, strict=True):
                    parameter.copy_(value)
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(state)
            raise


def _why_not_finite(parameters: Iterable[Parameter]) -> str:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    cause = "the optimiser's step" if are_finite(gradients) else "the gradient of the field"
    return f"{cause} is not finite"


def _averages(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[Tensor]:
    """What the optimizers keep for each parameter, but for their numbers of steps."""
    for optimizer in optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor) and value.dim())


class FiniteStepsTrainer(SafeTrainer):
    """A trainer that leaves out steps that are not finite, and ends after many in a row.

    The last checkpoint is of the time before these.
    """

    pipeline: CDSPipeline
    devices = Devices()
    """Those that make the steps together."""
    skipped = 0
    """Steps that were left out since the start."""
    skipped_in_a_row = 0
    """Those of them that came last, with none between that was made."""
    skipped_last = ""
    """The last of them, and why."""

    def setup_optimizers(self) -> FiniteOptimizers:
        """Optimizers whose step is made whole or not at all."""
        optimizers = FiniteOptimizers(self.config.optimizers.copy(), self.pipeline.get_param_groups())
        optimizers.devices, optimizers.checks = self.devices, self.pipeline.checks
        return optimizers

    def stays_whole(self, error: BaseException) -> bool:
        """Whether what ended the training left the last step as it was, as the optimizers do whatever happens."""
        return isinstance(error, Terminated | KeyboardInterrupt | DeviceError) or is_out_of_memory(error)

    def undo(self) -> Callable[[], None]:
        """What takes back all that the next step changes beside the field and its optimizers."""
        return lambda: None

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step; if it is not finite, the field and the optimizers stay as they are.

        Raises:
            FloatingPointError: if too many in a row were not, or none of all.
        """
        undo, scale = self.undo(), self.grad_scaler.get_scale()
        self.devices.begin_step()
        try:
            outputs = super().train_iteration(step)
        except BaseException as error:
            undo()
            if not isinstance(error, FloatingPointError):
                raise
            self.devices.leave_out(error)
            self.optimizers.zero_grad_all()
            self.progress.update()
            self._note_skipped(step, str(error))
            return torch.tensor(torch.nan), {}, {}
        if self.grad_scaler.get_scale() < scale:
            self._note_skipped(step, "the scaled gradient is not finite")  # and the scaler has left it out
        else:
            self.skipped_in_a_row = 0
        return outputs

    def _note_skipped(self, step: int, reason: str) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        self.skipped_last = f"step {step}, as {reason}"
        self.progress_notes["skipped"] = str(self.skipped)
        none_was_made = self.skipped == self._start_step + self.config.max_num_iterations
        if none_was_made or self.skipped_in_a_row == SKIPPED_IN_A_ROW:
            raise FloatingPointError(f"{self.skipped_in_a_row} steps in a row were left out, the last as {reason}")

    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint, but not while steps are left out: the field may have gone wrong before it was noticed."""
        if not self.skipped_in_a_row or self.training_state == "completed":
            super().save_checkpoint(step)

    def _after_train(self) -> None:
        super()._after_train()
        if self.skipped:
            CONSOLE.print(f"Steps that were left out: {self.skipped}; the last, {self.skipped_last}")
