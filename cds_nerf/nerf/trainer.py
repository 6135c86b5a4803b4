"""The loop of an edit: nerfstudio's trainer, started from a source run or from where an edit was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

import yaml
from nerfstudio.engine.callbacks import TrainingCallbackLocation
from nerfstudio.utils.decorators import check_main_thread
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer import Viewer
from safetensors import SafetensorError

from cds_nerf.diffusion.memory import is_out_of_memory
from cds_nerf.errors import UserError
from cds_nerf.files import whole_file, write_failure
from cds_nerf.finite import are_finite
from cds_nerf.locking import RUN_LOCK, BusyError, let_go
from cds_nerf.nerf.checkpoints import newest_checkpoint
from cds_nerf.nerf.configuration import EditConfig
from cds_nerf.nerf.edit_renders import EditRenders
from cds_nerf.nerf.gradient_record import load_strengths, save_strengths
from cds_nerf.nerf.live_trainer import LiveTrainer
from cds_nerf.nerf.loss_record import RECORD, LossRecord
from cds_nerf.nerf.memory_advice import where_memory_ran_out
from cds_nerf.nerf.new_edit import settle_new_edit
from cds_nerf.nerf.resumed_edit import settle_resumed_edit
from cds_nerf.nerf.safe_trainer import hold_run
from cds_nerf.nerf.several_devices import DeviceError, Devices
from cds_nerf.nerf.source_run import check_pose_normalisation, read_checkpoint
from cds_nerf.nerf.typed_settings import settle_typed
from cds_nerf.progress import progress_bar
from cds_nerf.seeding import repeatable_on_cpu
from cds_nerf.termination import on_sigterm


class CDSTrainer(LiveTrainer):
    """Edits a field: starts at step 0 from a source run's weights, or goes on from the run's own checkpoint.

    What the user can mend, such as a limit of the machine's, is a UserError; Ctrl-C ends with Interrupted, SIGTERM with
    Terminated.
    """

    config: EditConfig
    activity = "Editing"

    @property
    def way_on(self) -> str:
        """How the edit goes on when it has been ended, as a clause."""
        return f"the edit goes on from its last checkpoint with: ns-train cds --pipeline.resume-from {self.base_dir}"

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Answer what ends the edit by how it goes on."""
        goes_on = self.way_on
        try:
            with self.saying_how_it_goes_on(), on_sigterm(self.terminate):
                yield
        except DeviceError as error:
            raise UserError(f"{error}; {goes_on}") from error
        except UserError as error:
            if error.__cause__ is None or write_failure(error.__cause__) is None:
                raise
            raise UserError(f"{error}; with room on the disk, {goes_on}") from error
        except FloatingPointError as error:
            raise UserError(
                f"{error}; {goes_on} --pipeline.guidance-dtype float32, if it was another; a new edit can have a "
                "smaller --optimizers.fields.optimizer.lr or another --pipeline.guidance-resolution"
            ) from error
        except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
            if is_out_of_memory(error):
                steps = newest_checkpoint(self.checkpoint_dir)[1]
                raise UserError(where_memory_ran_out(self.config, self.base_dir, steps)) from error
            if (failure := write_failure(error)) is None:
                raise
            raise UserError(f"{failure}; with room on the disk, {goes_on}") from error

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Build everything, load the weights, check that the poses are the source's, and prepare the guidance."""
        with ExitStack() as on_failure:
            on_failure.callback(let_go, self.base_dir / RUN_LOCK)
            with self._answering():
                if self.devices.is_first and self.config.machine.num_devices > 1:
                    self.devices = Devices.start(self.config)
                    on_failure.callback(self.devices.close)
                self.devices.join(self.config.machine.device_type)
                super().setup(test_mode)
                self.pipeline.devices = self.devices
                self._check_poses()
                steps = self.config.max_num_iterations
                assert steps is not None
                with self.train_lock:  # the viewer is there already, and would switch the model to evaluation
                    self.pipeline.begin_edit(self.base_dir, self.config.machine.seed, steps, self._start_step)
                self.pipeline.live_edit.connect(self.change_live, self.pipeline.live.at(self._start_step))
                load_strengths(self.pipeline.guidance, self.base_dir, self._start_step - 1)
                self.losses = LossRecord(self.base_dir / RECORD, self._start_step)
                if self.devices.is_first:
                    self.renders = EditRenders(self.pipeline, self.base_dir, self.train_lock, self.losses)
                    self.callbacks += self.renders.callbacks()
            on_failure.pop_all()
        if isinstance(self.viewer_state, Viewer):
            port = self.viewer_state.viser_server.get_port()
            CONSOLE.print(
                f"To see the viewer of a server: ssh -L {port}:localhost:{port} SERVER where you sit, and open "
                f"http://localhost:{port} there",
                soft_wrap=True,
            )

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
        """Load the run's own checkpoint whole where there is one, else the source's weights alone.

        Raises:
            UserError: if it cannot be read; or the source's weights do not fit the model, or are not finite.
        """
        own, _ = newest_checkpoint(self.checkpoint_dir)
        if own is None:
            self.pipeline.load_source()
            if not are_finite(self.pipeline.parameters()):
                raise UserError(
                    f"the checkpoint {self.config.pipeline.source_checkpoint} holds numbers that are not finite: the "
                    "training of the source went wrong before it; choose an earlier one with --load-step"
                )
            self.optimizers = self.setup_optimizers()  # splats and TensoRF have other parameters than before loading
            return
        checkpoint = read_checkpoint(own)
        self.pipeline.prepare_to_load(checkpoint["pipeline"], checkpoint["step"])
        self.optimizers = self.setup_optimizers()
        self.config.load_checkpoint = own
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
            with self._answering(), repeatable_on_cpu(self.device):
                super().train()
        finally:
            self.devices.close()
            self.config.max_num_iterations = total

    def follow(self) -> None:
        """Make the steps of `train` beside the first device's process, which shows and saves what all make."""
        total = self.config.max_num_iterations
        assert total is not None
        self.progress = progress_bar(total=total, shown=False)
        with repeatable_on_cpu(self.device):
            for step in range(self._start_step, total):
                self.pipeline.train()
                self.train_iteration(step)
                for callback in self.callbacks:
                    callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
        self.devices.exchange(None)

    def _after_train(self) -> None:
        with self.between_steps(self.step + 1):
            self.devices.exchange(None)  # so that none has ended while another still sums with it
        super()._after_train()

    def undo(self) -> Callable[[], None]:
        """What lets the guidance forget the next step."""
        guidance, strengths = self.pipeline.guidance, copy(self.pipeline.guidance.strengths)
        return lambda: setattr(guidance, "strengths", strengths)

    @check_main_thread
    def save_checkpoint(self, step: int) -> None:
        """Write a checkpoint, and beside it what the guidance remembers and the losses."""
        save_strengths(self.pipeline.guidance, self.base_dir, step)
        self.losses.save()
        super().save_checkpoint(step)

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
            UserError: if it cannot be written, or another process is at work in the run's folder.
        """
        path = self.get_base_dir() / "config.yml"
        try:
            with whole_file(path) as file:
                hold_run(path.parent)
                file.write_text(yaml.dump(self), "utf8")
        except BusyError:
            raise
        except UserError as error:
            raise UserError(f"{error}: choose another --output-dir, or make room") from error
        CONSOLE.log(f"Saved config to: {path}")
