"""The source's views, rendered before the first step of an edit and kept in its run folder.

A resumed edit needs them: by then the field has moved on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor
from torchvision.utils import save_image
from tqdm import tqdm

from cds_nerf.guidance.relevance import relevance_map
from cds_nerf.nerf.seeding import seed_for

if TYPE_CHECKING:
    from cds_nerf.nerf.pipeline import CDSPipeline


@dataclass(frozen=True)
class SourceViews:
    """The unedited views of the training cameras, and what of them the prompts want to change."""

    folder: Path
    """Where their pictures are: `views/`, `relevance/` and `orbit/`."""
    latents: list[Float[Tensor, "1 channels h w"]]
    """The views' latents."""

    def image(self, index: int) -> Float[Tensor, "3 height width"]:
        """A view, in 0..1."""
        return read_picture(self.folder / "views" / f"{index:05d}.png")

    def relevance(self, index: int) -> Float[Tensor, "1 height width"]:
        """Where in a view the edit may act: see `relevance_map`."""
        return read_picture(self.folder / "relevance" / f"{index:05d}.png")

    def orbit(self) -> Iterator[Float[Tensor, "3 height width"]]:
        """The frames of the orbit."""
        for picture in sorted((self.folder / "orbit").glob("*.png")):
            yield read_picture(picture)


def has_source_views(directory: Path) -> bool:
    """Whether the source's views of a run folder are there, as a whole."""
    return (directory / "source").exists()


def read_picture(path: Path) -> Float[Tensor, "channels height width"]:
    """A picture, in 0..1."""
    with Image.open(path) as picture:
        return to_tensor(picture)


def load_source_views(directory: Path, pipeline: CDSPipeline) -> SourceViews:
    """The source's views; rendered and written first if they are not there.

    `directory/source` gets the latents (`latents.safetensors`), and pictures of the views, of their relevance (unless
    `w_keep` is 0) and of the orbit. It is written under another name and renamed, so that it is whole where it exists.

    Args:
        directory: the run folder.
        pipeline: of an edit that has done no step yet, if the folder has no `source`.
    """
    folder = directory / "source"
    if not has_source_views(directory):
        _write(directory / "source.partial", pipeline)
        (directory / "source.partial").rename(folder)
    latents = load_file(folder / "latents.safetensors")
    return SourceViews(folder, [latents[name] for name in sorted(latents)])


@torch.no_grad()
def _write(folder: Path, pipeline: CDSPipeline) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("views", "relevance", "orbit"):
        (folder / name).mkdir(parents=True)
    diffusion = pipeline.guidance.diffusion
    latents = {}
    for index in tqdm(range(len(pipeline.views)), desc="Source views", unit="view"):
        image = pipeline.render_still(index)
        latents[f"{index:05d}"] = diffusion.encode(image[None]).cpu()
        save_image(image, folder / "views" / f"{index:05d}.png")
        if pipeline.config.w_keep:
            relevance = relevance_map(
                diffusion,
                latents[f"{index:05d}"],
                pipeline.source_text,
                pipeline.target_text,
                torch.Generator().manual_seed(seed_for(pipeline.seed, "relevance", index)),
            )
            to_pil_image(F.interpolate(relevance, image.shape[1:], mode="bilinear")[0].cpu()).save(
                folder / "relevance" / f"{index:05d}.png"
            )
    for index, image in enumerate(tqdm(pipeline.render_orbit(), "Source orbit", len(pipeline.orbit), unit="frame")):
        save_image(image, folder / "orbit" / f"{index:05d}.png")
    save_file(latents, folder / "latents.safetensors")
