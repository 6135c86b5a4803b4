"""Training whose run may be ended at any moment, and goes on from there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT
from nerfstudio.utils.comms import is_main_process
from nerfstudio.utils.decorators import check_main_thread

from cds_nerf.errors import Interrupted, Terminated
from cds_nerf.files import PARTIAL, remove_partial
from cds_nerf.finite import are_finite
from cds_nerf.locking import RUN_LOCK, hold, let_go
from cds_nerf.nerf import compatibility
from cds_nerf.nerf.checkpoints import delete_superseded, newest_checkpoint
from cds_nerf.nerf.progress import ProgressTrainer
from cds_nerf.termination import on_sigterm


class SafeTrainer(ProgressTrainer):
    """A trainer that is alone in its run's folder, writes whole checkpoints of finite fields, and saves on SIGTERM."""

    completed: int | None = None
    """The step of which the field and the optimizers are the result; None from its end until its callbacks are done."""
    _stepping = False
    _terminated = False

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Set up, where no other process is at work in the run's folder.

        Raises:
            UserError: if one is.
        """
        if is_main_process():  # which is at work for all processes of a training on several devices
            hold_run(self.base_dir)
            remove_partial(self.base_dir)
        with self.saying_how_it_goes_on():
            super().setup(test_mode)
        compatibility.keep_constants_of_encodings_on_device(self.pipeline.model)

    def train(self) -> None:
        """Train; after SIGTERM until the step that is under way is done.

        Raises:
            Interrupted: after Ctrl-C.
            Terminated: after SIGTERM, with the last step in a checkpoint.
        """
        with self.saying_how_it_goes_on(), on_sigterm(self.terminate):
            try:
                super().train()
            except BaseException as error:
                if self.stays_whole(error):
                    self.save_completed()
                raise
            finally:
                let_go(self.base_dir / RUN_LOCK)

    @contextmanager
    def saying_how_it_goes_on(self) -> Iterator[None]:
        """Say of Ctrl-C and SIGTERM how what they end goes on."""
        try:
            yield
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted; {self.way_on}") from error
        except Terminated as error:
            if error.args:  # it has been said
                raise
            raise Terminated(f"terminated; {self.way_on}") from error

    @property
    def way_on(self) -> str:
        """How the training goes on when it has been ended, as a clause."""
        if newest_checkpoint(self.checkpoint_dir)[0] is None:
            return "it has no checkpoint yet, and begins anew"
        return (
            "the training goes on from its last checkpoint by the same command with "
            f"--timestamp {self.config.timestamp} --load-dir {self.checkpoint_dir}"
        )

    def stays_whole(self, error: BaseException) -> bool:
        """Whether what ended the training left the last step as it was."""
        return isinstance(error, Terminated)

    def terminate(self) -> None:
        """End as soon as nothing is left half done.

        Raises:
            Terminated: if that is now.
        """
        if not self._stepping:
            raise Terminated
        self._terminated = True
        self.training_state = "training"  # if it is paused, it would not look

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step, if it is not to end before it.

        Raises:
            Terminated: if it is.
        """
        self.completed = step - 1
        if self._terminated:
            raise Terminated
        self._stepping = True
        outputs = super().train_iteration(step)
        self.completed = None
        return outputs

    @contextmanager
    def between_steps(self, step: int) -> Iterator[None]:
        """Within, before a step, nothing is half done: SIGTERM ends at once what may take long, and the last is saved.

        Args:
            step: the one that comes next.
        """
        stepping = self._stepping
        self.completed, self._stepping = step - 1, False
        try:
            yield
        finally:
            self._stepping = stepping

    def _after_train(self) -> None:
        self.completed = self.step
        self._stepping = False
        if self._terminated:
            raise Terminated
        super()._after_train()

    def save_completed(self) -> None:
        """Write a checkpoint of the last step, if the field is its result and it has been made since the start."""
        if self.completed is not None and self.completed >= self._start_step:
            self.save_checkpoint(self.completed)

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint beside the folder of the checkpoints and move it there, so that each of them is whole.

        Where only the latest is kept, those that it supersedes are deleted after that.

        Raises:
            FloatingPointError: if the field is not finite; nothing is written.
        """
        if not are_finite(self.pipeline.parameters()):
            raise FloatingPointError(f"the field is not finite after step {step}, and was not saved")
        final = self.checkpoint_dir
        with TemporaryDirectory(prefix=PARTIAL, dir=self.base_dir) as folder:
            self.checkpoint_dir = Path(folder)
            try:
                super().save_checkpoint(step)
            finally:
                self.checkpoint_dir = final
            (written,) = Path(folder).iterdir()
            with written.open("rb") as file:
                os.fsync(file.fileno())  # before the older one goes
            final.mkdir(parents=True, exist_ok=True)
            saved = written.replace(final / written.name)
        if self.config.save_only_latest_checkpoint:
            delete_superseded(saved)


def hold_run(folder: Path) -> None:
    """Be the only process at work in a run's folder, until the trainer is done.

    Raises:
        UserError: if another one is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder / RUN_LOCK, f"{folder} is being made")
