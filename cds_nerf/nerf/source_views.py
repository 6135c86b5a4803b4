"""The source's views, rendered before the first step of an edit and kept in its run folder.

A resumed edit needs them: by then the field has moved on.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

if TYPE_CHECKING:
    from cds_nerf.nerf.pipeline import CDSPipeline


def has_source_views(directory: Path) -> bool:
    """Whether the source's views of a run folder are there, as a whole."""
    return (directory / "source").exists()


def load_source_latents(directory: Path, pipeline: CDSPipeline) -> list[Float[Tensor, "1 channels h w"]]:
    """The latents of the source's training views, one entry a view; rendered and written first if they are not there.

    `directory/source` gets them (`latents.safetensors`), the views and the orbit as pictures. It is written under
    another name and renamed, so that it is whole where it exists.

    Args:
        directory: the run folder.
        pipeline: of an edit that has done no step yet, if the folder has no `source`.
    """
    folder = directory / "source"
    if not has_source_views(directory):
        _write(directory / "source.partial", pipeline)
        (directory / "source.partial").rename(folder)
    latents = load_file(folder / "latents.safetensors")
    return [latents[name] for name in sorted(latents)]


@torch.no_grad()
def _write(folder: Path, pipeline: CDSPipeline) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "views").mkdir(parents=True)
    (folder / "orbit").mkdir()
    latents = {}
    for index in tqdm(range(len(pipeline.views)), desc="Source views", unit="view"):
        image = pipeline.render_still(index)
        latents[f"{index:05d}"] = pipeline.guidance.diffusion.encode(image[None]).cpu()
        save_image(image, folder / "views" / f"{index:05d}.png")
    for index, image in enumerate(tqdm(pipeline.render_orbit(), "Source orbit", len(pipeline.orbit), unit="frame")):
        save_image(image, folder / "orbit" / f"{index:05d}.png")
    save_file(latents, folder / "latents.safetensors")
