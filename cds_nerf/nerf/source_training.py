"""The training of a source, which never takes the place of another one."""

from __future__ import annotations

from dataclasses import dataclass

from nerfstudio.engine.trainer import TrainerConfig

from cds_nerf.errors import UserError
from cds_nerf.nerf.checkpoints import checkpoint_files


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
