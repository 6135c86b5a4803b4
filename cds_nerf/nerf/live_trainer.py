"""What the viewer's controls let an edit do between two steps, or while it is paused."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.trainer import TRAIN_INTERATION_OUTPUT
from nerfstudio.viewer.viewer import Viewer
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from viser.transforms import SO3

from cds_nerf.diffusion.memory import is_out_of_memory
from cds_nerf.errors import UserError, first_line
from cds_nerf.files import write_failure
from cds_nerf.nerf.edit_renders import EditRenders
from cds_nerf.nerf.finite_steps import FiniteStepsTrainer
from cds_nerf.nerf.loss_curves import draw_curves
from cds_nerf.nerf.loss_record import LossRecord
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.viewer_buttons import Request
from cds_nerf.nerf.viewer_outputs import with_edit_outputs

State = Literal["training", "paused", "completed"]


class LiveTrainer(FiniteStepsTrainer):
    """A trainer of an edit that listens to the viewer's controls.

    They call back in threads of their own: what they ask for is done in the main one, where nothing is half done.
    """

    pipeline: CDSPipeline
    renders: EditRenders | None = None
    """What writes the edit's pictures; None until it has begun."""
    losses: LossRecord
    """Of the steps that were made."""
    _state: State = "training"
    _returned = False
    """Whether the edit has gone back to its source since the last step."""
    _next_pictures = 0.0
    """When the viewer is to have new ones, by the monotonic clock."""

    @property
    def training_state(self) -> State:  # type: ignore[override]
        """As nerfstudio has it. While it is paused, its loop does nothing but ask for this: requests are met then."""
        if self._state == "paused" and self.renders and threading.current_thread() is threading.main_thread():
            step = self.pipeline.next_step
            self.completed = step - 1
            if self.pipeline.live_edit.requests:
                with self.train_lock:
                    self._meet_requests(step)
        return self._state

    @training_state.setter
    def training_state(self, state: State) -> None:
        self._state = state

    def change_live(self, values: Mapping[str, str | Sequence[float]]) -> str:
        """Change settings from the next step on; what to say of it."""
        pipeline = self.pipeline
        changed = pipeline.change_live(values)
        pipeline.live_edit.show(pipeline.live.at(pipeline.next_step))
        if not changed:
            return "Nothing is changed."
        return f"Changed from step {pipeline.next_step} on: {', '.join(changed)}."

    def viewer_outputs(
        self, outputs: dict[str, Tensor], camera: Cameras, box: OrientedBox | None, chosen: Collection[str]
    ) -> dict[str, Tensor]:
        """What the viewer's user can choose to see; see `with_edit_outputs`. The viewer calls this under its lock."""
        if self.renders is None:
            return outputs
        try:
            return with_edit_outputs(outputs, self.pipeline, camera, box, chosen)
        except Exception as error:
            self.pipeline.live_edit.field_message.say(f"**Not shown:** {_told(error)}")
            return with_edit_outputs(outputs, self.pipeline, camera, box, chosen=())

    def train_iteration(self, step: int) -> TRAIN_INTERATION_OUTPUT:
        """One step, after what is asked for before it.

        Raises:
            UserError: if the edit goes back to its source, and that cannot be read any more; or if another device's
                process has ended.
        """
        if self.devices.is_first:
            self.pipeline.live_edit.follow(self.pipeline.live.at(step))
            if self.pipeline.live.returns_at(step):
                self._return_to_source()
            self._meet_requests(step)
        with self.between_steps(step):
            returned = self.devices.from_first(self._returned)
        if returned and not self.devices.is_first:
            self._return_to_source()
        self._returned = False
        outputs = super().train_iteration(step)
        self.losses.add(step, outputs[1])
        self._show_pictures()
        return outputs

    def _show_pictures(self) -> None:
        """Show how it goes, where somebody watches: at most twice a second, and in a twentieth of the time."""
        begun = time.monotonic()
        if begun < self._next_pictures or not isinstance(self.viewer_state, Viewer):
            return
        if not self.viewer_state.viser_server.get_clients():
            return
        panel, view = self.pipeline.live_edit, self.pipeline.pulled_view
        if losses := self.losses.values():
            panel.picture_1_losses.show(draw_curves(losses))
        if view is not None:
            panel.picture_2_gradient.show(to_pil_image(view.picture()))
        took = time.monotonic() - begun
        self._next_pictures = begun + max(0.5, 20 * took)

    def _meet_requests(self, step: int) -> None:
        """Do what the buttons have asked for before a step, and show what became of it."""
        panel = self.pipeline.live_edit
        while panel.requests:
            request = panel.requests.popleft()
            try:
                said = self._meet(request, step)
            except Exception as error:
                said = f"**Not done:** {_told(error)}"
            panel.field_message.say(said)

    def _meet(self, request: Request, step: int) -> str:
        if request is Request.RETURN:
            self._return_to_source()
            self.pipeline.live.note_return(step)
            if isinstance(self.viewer_state, Viewer):
                self.viewer_state._trigger_rerender()
            return f"Step {step} begins with the source's field."
        if request is Request.CROP:
            return self._edit_within_crop()
        if not step:
            return "Nothing to write: the edit has made no step yet."
        assert self.renders is not None
        with self.between_steps(step):
            if request is Request.VIDEO:
                return f"The video is written: {self.renders.write_video_of(step - 1)}"
            if self.skipped_in_a_row:
                return f"**Not saved:** {self.skipped_last} was left out; the last checkpoint is of the time before it."
            self.save_checkpoint(step - 1)
            return f"Step {step - 1} is saved."

    def _edit_within_crop(self) -> str:
        """Let the box that the viewer crops to be the region; what to say of it."""
        assert isinstance(self.viewer_state, Viewer)
        panel = self.viewer_state.control_panel
        if not panel.crop_viewport:
            return "**Not changed:** check Crop Viewport in the Render Options, and draw its box around what is edited."
        box = panel.crop_obb
        angles = SO3.from_matrix(box.R.numpy()).as_rpy_radians()
        return self.change_live(
            {
                "region.kind": "box",
                "region.box_center": box.T.tolist(),
                "region.box_rotation": [float(angles.roll), float(angles.pitch), float(angles.yaw)],
                "region.box_scale": box.S.tolist(),
            }
        )

    def _return_to_source(self) -> None:
        """Let the field be the source's, and what optimizers and guidance remember be as before the first step.

        The learning rates go on as they do with the steps.
        """
        self.completed = None  # until it is done
        self._returned = True
        self.pipeline.load_source()
        groups = self.pipeline.get_param_groups()
        for name, optimizer in self.optimizers.optimizers.items():
            optimizer.state.clear()
            (part,) = optimizer.param_groups
            part["params"] = groups[name]  # splats are others where their number was another
        self.optimizers.parameters |= groups
        self.pipeline.guidance.strengths.clear()

    def _after_train(self) -> None:
        if self.renders:
            self.pipeline.live_edit.close("The edit is done: its checkpoint, views and video are in its folder.")
        super()._after_train()


def _told(error: Exception) -> str:
    """What the panel says of a mistake, a limit of the machine's, or what is not finite.

    Raises:
        Exception: the error, if it is none of these.
    """
    if isinstance(error, UserError | FloatingPointError):
        return str(error)
    if (failure := write_failure(error)) is None and not is_out_of_memory(error):
        raise error
    return failure or first_line(error)
