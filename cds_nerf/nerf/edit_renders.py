"""What an edit leaves beside its checkpoint: strips of the way there, the edited views, a before/after video."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from threading import Lock

import av
import torch
from jaxtyping import Float
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackLocation
from nerfstudio.utils import writer
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import save_image

from cds_nerf.errors import UserError
from cds_nerf.files import whole_file
from cds_nerf.guidance import CDSGuidance
from cds_nerf.nerf.gradient_picture import heat
from cds_nerf.nerf.loss_curves import draw_curves
from cds_nerf.nerf.loss_record import LossRecord
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.progress import progress_bar
from cds_nerf.seeding import seed_for

FRAMES_PER_SECOND = 20
"""Of the before/after video."""


class EditRenders:
    """Writes pictures of an edit into its run folder.

    Args:
        pipeline: of the edit, which has begun.
        directory: the run folder.
        train_lock: of the trainer, without which the viewer may render and switch the model to evaluation meanwhile.
        losses: of the edit.
    """

    def __init__(self, pipeline: CDSPipeline, directory: Path, train_lock: Lock, losses: LossRecord) -> None:
        self.pipeline = pipeline
        self.directory = directory
        self.train_lock = train_lock
        self.losses = losses

    def callbacks(self) -> list[TrainingCallback]:
        """For nerfstudio's trainer: a strip every so many steps, the result at the end."""
        return [
            TrainingCallback(
                [TrainingCallbackLocation.AFTER_TRAIN_ITERATION],
                self.write_strip,
                update_every_num_iters=self.pipeline.config.steps_per_strip,
            ),
            TrainingCallback([TrainingCallbackLocation.AFTER_TRAIN], self.finish),
        ]

    @torch.no_grad()
    def write_strip(self, step: int) -> None:
        """Source, edit and |gradient| of the first view side by side, as `strips/STEP.png` and in the event writer.

        The gradient is the score's at one fixed timestep and noise, scaled to its own maximum: it shows where the edit
        still wants to change something.
        """
        pipeline = self.pipeline
        diffusion = pipeline.guidance.diffusion
        source = pipeline.source.image(0)
        edit = pipeline.render_training_view(0)
        latents = diffusion.encode(edit[None])
        guidance = CDSGuidance(replace(pipeline.guidance.config, w_cut=0.0, relative_w_cut=None), diffusion)
        try:
            gradient = guidance(
                pipeline.source.latents(0),
                latents,
                pipeline.source_text,
                pipeline.target_text,
                timestep=torch.tensor([len(diffusion.alphas_cumprod) // 2]),
                generator=torch.Generator().manual_seed(seed_for(pipeline.seed, "strip", 0)),
            ).gradient
        except FloatingPointError:  # a step may be left out for that, and a picture has none to show
            gradient = torch.zeros_like(latents)
        heat_map = heat(gradient[0].float().norm(dim=0), edit.shape[1:])
        strip = torch.cat([source, edit.cpu(), heat_map], dim=2)
        with whole_file(self.directory / "strips" / f"{step:06d}.png") as file:
            save_image(strip, file)
        pipeline.live_edit.picture_3_strip.show(to_pil_image(strip))
        writer.put_image(name="source | edit | gradient", image=strip.permute(1, 2, 0), step=step)
        self._write_what_the_viewer_shows(step)

    def _write_what_the_viewer_shows(self, step: int) -> None:
        """The last view with its gradient, as `gradients/STEP.png`, and the curves of the losses."""
        if self.pipeline.pulled_view is not None:
            with whole_file(self.directory / "gradients" / f"{step:06d}.png") as file:
                save_image(self.pipeline.pulled_view.picture(), file)
        if losses := self.losses.values():
            with whole_file(self.directory / "losses.png") as file:
                draw_curves(losses).save(file)

    def finish(self, step: int) -> None:
        """The last strip, the edited training views, the before/after video, and a line on how to open the result."""
        with self.train_lock:
            self.write_strip(step)
            writer.write_out_storage()
            self.write_result()
        CONSOLE.print(f"Open the edited field with: ns-viewer --load-config {self.directory / 'config.yml'}")

    @torch.no_grad()
    def write_result(self) -> None:
        """The edited training views and the before/after video."""
        for index in progress_bar(range(len(self.pipeline.views)), "Edited views", unit="view"):
            with whole_file(self.directory / "edited_views" / f"{index:05d}.png") as file:
                save_image(self.pipeline.render_training_view(index), file)
        if self.pipeline.orbit:
            self._write_orbit(self.directory / "before_after.mp4")

    def write_video_of(self, step: int) -> Path:
        """The before/after video of the field as it is after a step, beside all others; its path.

        Raises:
            UserError: if it cannot be written, or the edit has no orbit.
        """
        if not self.pipeline.orbit:
            raise UserError("--pipeline.orbit-frames is 0, so that there is no way for a video's camera")
        first = self.directory / f"before_after_{step:06d}.mp4"
        names = (first.with_stem(f"{first.stem}_{number}") for number in count(2))
        path = next(path for path in chain([first], names) if not path.exists())
        self._write_orbit(path)
        return path

    @torch.no_grad()
    def _write_orbit(self, path: Path) -> None:
        pairs = (
            torch.cat([self.pipeline.source.frame(index), self.pipeline.render_frame(index).cpu()], dim=2)
            for index in progress_bar(range(len(self.pipeline.orbit)), "Edited orbit", unit="frame")
        )
        write_video(pairs, path)


def write_video(frames: Iterable[Float[Tensor, "3 height width"]], path: Path) -> None:
    """Write an H.264 video; odd sides lose one pixel.

    Args:
        frames: in 0..1.
        path: ends in .mp4.
    """
    with whole_file(path) as file, av.open(str(file), "w") as container:
        stream = None
        for frame in frames:
            height, width = (side - side % 2 for side in frame.shape[1:])
            if stream is None:
                stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options={"crf": "18"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            pixels = (frame[:, :height, :width].clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels.contiguous().numpy(), format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
