"""The training of a source, which never takes the place of another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT, TrainerConfig

from cds_nerf.errors import UserError
from cds_nerf.nerf.checkpoints import checkpoint_files
from cds_nerf.nerf.safe_trainer import SafeTrainer


@dataclass
class SourceTrainerConfig(TrainerConfig):
    """nerfstudio's settings of a training; it starts in a folder of its own, or goes on from its own checkpoint."""

    def set_timestamp(self) -> None:
        """Name the run; ns-train calls this first of all, also of settings that `--load-config` gave.

        Raises:
            UserError: if the run's folder has checkpoints, which would be written over, and it does not go on from one.
        """
        super().set_timestamp()
        folder = self.get_checkpoint_dir()
        start = self.load_checkpoint or self.load_dir
        goes_on = start is not None and folder.resolve() in (start.resolve(), *start.resolve().parents)
        if checkpoint_files(folder) and not goes_on:
            raise UserError(
                f"{self.get_base_dir()} holds a run already: choose another --timestamp, or go on with it by "
                f"--timestamp {self.timestamp} --load-dir {folder}"
            )


class SplatSourceTrainer(SafeTrainer):
    """Trains splats; the bar says how many there are, in place of lines between."""

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Set up, with a strategy that adds and removes Gaussians without a word."""
        super().setup(test_mode)
        self.pipeline.model.strategy.verbose = False  # type: ignore[union-attr]

    def _load_checkpoint(self) -> None:
        """Load the checkpoint to go on from, if there is one, and make optimizers of what has come from it.

        splatfacto replaces its parameters when it loads, and nerfstudio's optimizers would move those from before.
        """
        super()._load_checkpoint()
        loaded, self.optimizers = self.optimizers, self.setup_optimizers()
        for mine, theirs in (
            (self.optimizers.optimizers, loaded.optimizers),
            (self.optimizers.schedulers, loaded.schedulers),
        ):
            for name, part in mine.items():
                part.load_state_dict(theirs[name].state_dict())

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step."""
        self.progress_notes["Gaussians"] = str(self.pipeline.model.num_points)
        return super().train_iteration(step)


def check_no_training_anew(config: SourceTrainerConfig) -> None:
    """Refuse `--load-config` with the file of a source's run: nerfstudio would train it anew, in its folder.

    Those of other runs are asked themselves when they are to be named.

    Raises:
        UserError: if it is one.
    """
    if config.load_config is None:
        return
    run = config.load_config.parent
    if run.resolve().parent.name == config.method_name and checkpoint_files(run / config.relative_model_dir):
        raise UserError(
            f"--load-config {config.load_config} would train the run in {run} anew, over its checkpoint: go on with it "
            f"by --load-dir {run / config.relative_model_dir}"
        )
