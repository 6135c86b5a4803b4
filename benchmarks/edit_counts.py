"""What an edit does, counted and timed while it runs: before its first step, in each step and after the last."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from device_waits import DeviceWaits
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.models import splatfacto
from nerfstudio.models.base_model import Model

from cds_nerf import CDSGuidance, LatentDiffusion
from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.nerf import compatibility
from cds_nerf.nerf.edit_renders import EditRenders
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.region import Region
from cds_nerf.nerf.trainer import CDSTrainer
from cds_nerf.nerf.view_store import ViewStore

PHASES = {
    "load": [(DiffusionOptions, "load")],
    "render": [(CDSPipeline, "render_view")],
    "encode": [(LatentDiffusion, "encode")],
    "score": [(CDSGuidance, "__call__")],
    "backward": [(torch.Tensor, "backward")],
    "optimiser": [(Optimizers, "optimizer_scaler_step_some")],
    "source view": [(ViewStore, "latents"), (ViewStore, "image")],
    "region": [(Region, "of_view")],
    "strip": [(EditRenders, "write_strip")],
    "checkpoint": [(CDSTrainer, "save_checkpoint")],
    "result": [(EditRenders, "write_result")],
}
"""Parts of an edit, and what does them; what one does within another is the other's."""
OTHER = "other"
"""The part that is none of these."""
UNET, ENCODE, ENCODE_AGAIN, DECODE = "UNet samples", "VAE encodings", "encodings again", "VAE decodings"
RAYS, RAYS_AGAIN, GAUSSIANS = "rays", "rays again", "Gaussians x pixels"
READS, SENDS, FILES, BYTES = "reads", "sends", "files", "bytes"
COUNTS = {
    UNET: "images that go through the UNet, one for each prompt",
    ENCODE: "images that go through the VAE's encoder",
    ENCODE_AGAIN: "of them those that a backward pass takes through it once more, for the sake of memory",
    DECODE: "images that go through its decoder",
    RAYS: "rays that go through a field",
    RAYS_AGAIN: "of them those that a backward pass takes through it once more",
    GAUSSIANS: "the number of Gaussians times that of pixels, for each drawing of splats",
    READS: "waits for a value that is on the device (see device_waits.py)",
    SENDS: "waits for something to be sent to the device",
    FILES: "files that are opened to be read, but for Python's own modules and the diffusion model's",
    BYTES: "how large they are",
}
"""What is counted."""


class Tally:
    """CPU seconds, of all threads, and counts of one stretch of an edit, by its parts."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {}

    def add(self, part: str, what: str, number: int) -> None:
        """Count something in a part."""
        self.counts.setdefault(part, Counter())[what] += number

    def total(self, what: str) -> int:
        """How many of something there were in all parts."""
        return sum(counts[what] for counts in self.counts.values())


class EditCounts:
    """Counts what an edit does within `with counts.watching():`, where one edit is set up and run.

    Args:
        waits: whether waits for the device are counted, which takes time.
    """

    def __init__(self, waits: bool = True) -> None:
        self.before, self.after = Tally(), Tally()
        self.steps: list[Tally] = []
        self.places: Counter[tuple[str, str]] = Counter()
        """Where it waited in the steps, by the kind of wait and the line."""
        self._waits = DeviceWaits(lambda kind: self._count(kind, 1)) if waits else None
        self._now = self.before
        self._part = OTHER
        self._since = time.process_time()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count within."""
        with ExitStack() as stack:
            for part, methods in PHASES.items():
                for owner, name in methods:
                    stack.enter_context(patch.object(owner, name, self._within(part, getattr(owner, name))))
            self._watch(stack, CDSTrainer, "train_iteration", self._begin_step)
            self._watch(stack, CDSTrainer, "_after_train", self._end_steps)
            self._watch(stack, UNet2DConditionModel, "forward", lambda unet, sample, *_: self._count(UNET, len(sample)))
            self._watch(
                stack, Encoder, "forward", lambda encoder, images: self._note(ENCODE, ENCODE_AGAIN, len(images))
            )
            self._watch(stack, Decoder, "forward", lambda decoder, latents, *_: self._count(DECODE, len(latents)))
            self._watch(
                stack, Model, "forward", lambda model, ray_bundle: self._note(RAYS, RAYS_AGAIN, len(ray_bundle))
            )
            self._watch(stack, splatfacto, "rasterization", self._count_gaussians)
            self._watch(stack, safetensors.torch, "safe_open", lambda path, *_, **__: self._count_file(path))
            sys.addaudithook(self._audit)
            if self._waits is not None:
                stack.enter_context(patch.object(CDSPipeline, "_prepare_source", self._watch_waits(stack)))
            self._enter(OTHER)
            stack.callback(self._stop)
            yield

    def _within(self, part: str, method: Callable) -> Callable:
        @wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._part != OTHER:
                return method(*args, **kwargs)
            self._enter(part)
            try:
                return method(*args, **kwargs)
            finally:
                self._enter(OTHER)

        return run

    def _enter(self, part: str) -> None:
        now = time.process_time()
        self._now.seconds[self._part] += now - self._since
        self._part, self._since = part, now

    @staticmethod
    def _watch(stack: ExitStack, owner: Any, name: str, see: Callable[..., None]) -> None:
        function = getattr(owner, name)

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            see(*args, **kwargs)
            return function(*args, **kwargs)

        stack.enter_context(patch.object(owner, name, run))

    def _begin_step(self, *_: Any) -> None:
        self._enter(OTHER)
        self.steps.append(Tally())
        self._now = self.steps[-1]
        if len(self.steps) == 1 and self._waits is not None:
            self._waits.places.clear()

    def _end_steps(self, *_: Any) -> None:
        self._enter(OTHER)
        if self._waits is not None:
            self.places = self._waits.places.copy()
        self._now = self.after

    def _stop(self) -> None:
        self._enter(OTHER)
        self._now = Tally()  # the audit hook cannot be taken away

    def _count(self, what: str, number: int) -> None:
        self._now.add(self._part, what, number)

    def _note(self, what: str, again: str, number: int) -> None:
        self._count(what, number)
        if torch._C._current_graph_task_id() != -1:  # within a backward pass
            self._count(again, number)

    def _count_gaussians(self, means: torch.Tensor, *_: Any, width: int, height: int, **__: Any) -> None:
        self._count(GAUSSIANS, len(means) * width * height)

    def _count_file(self, path: Any) -> None:
        if self._part != "load":  # which has ways to open files that are not seen here
            self._count(FILES, 1)
            self._count(BYTES, Path(path).stat().st_size)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(args[0], str | bytes | os.PathLike):
            return
        path, flags = Path(os.fsdecode(args[0])), args[2]
        if flags & os.O_ACCMODE == os.O_RDONLY and _is_data(path):
            self._count_file(path)

    def _watch_waits(self, stack: ExitStack) -> Callable:
        """Count waits from when the weights of field and prior are there, which are taken to be on the device."""
        prepare_source = CDSPipeline._prepare_source

        def run(pipeline: CDSPipeline, folder: Path) -> None:
            diffusion, waits = pipeline.guidance.diffusion, self._waits
            assert waits is not None
            modules: list[Any] = [pipeline.model, diffusion.unet, diffusion.vae]
            waits.place(tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
            waits.place([diffusion.alphas_cumprod])
            cameras = [value for view in pipeline._views_there for value in vars(view).values()]
            waits.place(value for value in cameras if isinstance(value, torch.Tensor))
            waits.place(compatibility.constants_of_encodings(pipeline.model))
            waits.place(
                text
                for prompt in (pipeline.source_text, pipeline.target_text)
                for text in vars(prompt).values()
                if text is not None
            )
            stack.enter_context(waits)
            prepare_source(pipeline, folder)

        return run


def _is_data(path: Path) -> bool:
    elsewhere = ("/proc", "/sys", "/dev", sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    return path.suffix not in ("", ".py", ".pyc") and not str(path).startswith(elsewhere) and path.is_file()
