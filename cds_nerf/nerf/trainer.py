"""The loop of an edit: nerfstudio's trainer, started from a source run or from where an edit was interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import torch
import yaml
from nerfstudio.utils.rich_utils import CONSOLE
from safetensors import SafetensorError

from cds_nerf.errors import Interrupted, UserError
from cds_nerf.files import whole_file, write_failure
from cds_nerf.nerf.configuration import EditConfig
from cds_nerf.nerf.edit_renders import EditRenders
from cds_nerf.nerf.gradient_record import load_strengths, save_strengths
from cds_nerf.nerf.new_edit import settle_new_edit
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.progress import ProgressTrainer
from cds_nerf.nerf.resumed_edit import settle_resumed_edit
from cds_nerf.nerf.source_run import check_pose_normalisation, read_checkpoint
from cds_nerf.nerf.typed_settings import settle_typed
from cds_nerf.seeding import repeatable_on_cpu


class CDSTrainer(ProgressTrainer):
    """Edits a field: starts at step 0 from a source run's weights, or goes on from the run's own checkpoint.

    What the user can mend, such as a limit of the machine's, is a UserError; Ctrl-C ends with Interrupted.
    """

    config: EditConfig
    pipeline: CDSPipeline
    activity = "Editing"

    @contextmanager
    def _way_on(self) -> Iterator[None]:
        """Say of what ends the edit how it goes on."""
        resume = f"the edit goes on from its last checkpoint with: ns-train cds --pipeline.resume-from {self.base_dir}"
        try:
            yield
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted; {resume}") from error
        except FloatingPointError as error:
            raise UserError(f"{error}; {resume} --pipeline.guidance-dtype bfloat16") from error
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"{self.device} has too little memory: start with a smaller --pipeline.guidance-resolution or "
                "--pipeline.guidance-device cpu (or cuda:1), or, if the edit was under way, fewer "
                f"--pipeline.rays-per-chunk; {resume}"
            ) from error
        except (OSError, RuntimeError, SafetensorError) as error:
            if (failure := write_failure(error)) is None:
                raise
            raise UserError(f"{failure}; with room on the disk, {resume}") from error

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build everything, load the weights, check that the poses are the source's, and prepare the guidance."""
        with self._way_on():
            super().setup(test_mode)
            self._check_poses()
            steps = self.config.max_num_iterations
            assert steps is not None
            with self.train_lock:  # the viewer is there already, and would switch the model to evaluation
                self.pipeline.begin_edit(self.base_dir, self.config.machine.seed, steps)
            load_strengths(self.pipeline.guidance, self.base_dir, self._start_step - 1)
            self.callbacks += EditRenders(self.pipeline, self.base_dir, self.train_lock).callbacks()

    def _check_poses(self) -> None:
        assert self.config.pipeline.source_checkpoint is not None
        source_run = self.config.pipeline.source_checkpoint.parent.parent
        outputs = self.pipeline.datamanager.train_dataparser_outputs
        if not any([check_pose_normalisation(run, outputs) for run in (source_run, self.base_dir)]):
            CONSOLE.print(
                f"[yellow]{source_run} has no dataparser_transforms.json: whether these poses are normalised as its "
                "own cannot be checked. Look at the first strip: a source that looks wrong means that they are not."
            )

    def _load_checkpoint(self) -> None:
        """Load the run's own checkpoint whole where there is one, else the source's weights alone."""
        own = sorted(self.checkpoint_dir.glob("step-*.ckpt"))
        if not own:
            self.pipeline.load_source()
            self.optimizers = self.setup_optimizers()  # splats and TensoRF have other parameters than before loading
            return
        checkpoint = read_checkpoint(own[-1])
        self.pipeline.prepare_to_load(checkpoint["pipeline"], checkpoint["step"])
        self.optimizers = self.setup_optimizers()
        self.config.load_checkpoint = own[-1]
        super()._load_checkpoint()
        self.config.load_checkpoint = None

    def train(self) -> None:
        """Edit until `max_num_iterations` steps are done, counted from the edit's own start."""
        total = self.config.max_num_iterations
        assert total is not None
        if self._start_step >= total:
            CONSOLE.print(f"This edit has its {total} steps; a greater --max-num-iterations takes it further.")
        elif self._start_step:
            CONSOLE.print(f"Going on at step {self._start_step} of {total}.")
        self.step = self._start_step - 1
        self.config.max_num_iterations = max(total - self._start_step, 0)  # nerfstudio counts from the start step
        try:
            with self._way_on(), repeatable_on_cpu(self.device):
                super().train()
        finally:
            self.config.max_num_iterations = total

    def save_checkpoint(self, step: int) -> None:
        """Write the checkpoint into a folder beside the checkpoints and move it there, so that each is whole.

        Where only the latest is kept, the others are deleted after that.
        """
        save_strengths(self.pipeline.guidance, self.base_dir, step)
        final = self.checkpoint_dir
        partial = final.with_name(f"{final.name}.partial")
        if partial.exists():  # of a run that was killed while it wrote
            shutil.rmtree(partial)
        self.checkpoint_dir = partial
        try:
            super().save_checkpoint(step)
        finally:
            self.checkpoint_dir = final
        final.mkdir(parents=True, exist_ok=True)
        (written,) = partial.iterdir()
        saved = written.replace(final / written.name)
        partial.rmdir()
        if self.config.save_only_latest_checkpoint:
            for checkpoint in final.glob("*.ckpt"):
                if checkpoint != saved:
                    checkpoint.unlink()

    def _train_complete_viewer(self) -> None:
        with suppress(KeyboardInterrupt):  # which is how the user is told to quit it
            super()._train_complete_viewer()


@dataclass
class CDSTrainerConfig(EditConfig):
    """The configuration of an edit, which is settled when ns-train names the run."""

    _target: type = field(default_factory=lambda: CDSTrainer)

    def set_timestamp(self) -> None:
        """Settle the configuration and name the run; ns-train calls this first of all.

        Raises:
            UserError: if a setting is missing, contradicts another, or names something that is not there; or if the
                configuration is that of a run, which `--load-config` gave.
        """
        if self.pipeline.source_checkpoint is not None:
            raise UserError(
                f"--load-config gives the settings of the edit in {self.get_base_dir()}, whose source is another run: "
                f"let it go on with ns-train cds --pipeline.resume-from {self.get_base_dir()}, or edit its field with "
                f"ns-train cds --load-dir {self.get_base_dir()}"
            )
        settle_typed(self)
        if self.pipeline.resume_from is not None:
            settle_resumed_edit(self)
        else:
            settle_new_edit(self)
        super().set_timestamp()

    def save_config(self) -> None:
        """Write `config.yml`, whole at any moment.

        Raises:
            UserError: if it cannot be written.
        """
        path = self.get_base_dir() / "config.yml"
        try:
            with whole_file(path) as file:
                file.write_text(yaml.dump(self), "utf8")
        except UserError as error:
            raise UserError(f"{error}: choose another --output-dir, or make room") from error
        CONSOLE.log(f"Saved config to: {path}")
