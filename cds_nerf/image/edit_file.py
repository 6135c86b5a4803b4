"""One edit of one image file, with all that is written of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from safetensors.torch import save
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from cds_nerf.diffusion import LatentDiffusion
from cds_nerf.diffusion.memory import is_out_of_memory
from cds_nerf.errors import UserError
from cds_nerf.files import whole_file
from cds_nerf.image.edit import ImageEdit, as_pil, decode_within, edit_image
from cds_nerf.image.latent_descent import DescentStep
from cds_nerf.image.loss_plot import plot_losses
from cds_nerf.image.mask import blend_within
from cds_nerf.image.record import EditRecord
from cds_nerf.image.settings import ImageEditSettings
from cds_nerf.image.sizing import edit_size, resize
from cds_nerf.image.source_image import SourceImage
from cds_nerf.image.strip import side_by_side, strip_steps
from cds_nerf.pictures import CONTENT_KEY, SETTINGS_KEY, as_json, write_png


@dataclass(frozen=True)
class EditedFile:
    """An edit, and the pictures that can be written of it."""

    source: SourceImage
    edit: ImageEdit
    before: Image.Image
    """The image at the result's size."""
    after: Image.Image
    """The result."""
    way: list[Image.Image]
    """From the image to the result, at the edit's size; those two alone unless more was asked for."""

    def write(self, files: Mapping[str, Path], record: EditRecord) -> None:
        """Write some of "image", "pair", "strip", "plot" and "latents", the image first.

        Args:
            files: by what they hold.
            record: of the edit.

        Raises:
            UserError: if a file cannot be written.
        """
        profile = self.source.image.info.get("icc_profile")
        pictures = {
            "image": lambda: self.after,
            "pair": lambda: side_by_side([self.before, self.after]),
            "strip": lambda: side_by_side(self.way),
            "plot": lambda: plot_losses(
                self.edit.losses, f"{self.source.path.name}: {record.settings['target_prompt']}"
            ),
        }
        for kind, picture in pictures.items():
            if kind in files:
                icc_profile = None if kind == "plot" else profile
                write_png(files[kind], picture(), record.settings, icc_profile, record.content)
        if "latents" in files:
            latents = {"source": self.edit.source_latents.cpu(), "result": self.edit.latents.cpu()}
            texts = {SETTINGS_KEY: as_json(record.settings), CONTENT_KEY: as_json(record.content)}
            with whole_file(files["latents"]) as file:
                file.write_bytes(save(latents, texts))


def edit_file(
    source: SourceImage,
    source_prompt: str,
    target_prompt: str,
    settings: ImageEditSettings,
    diffusion: LatentDiffusion,
    with_way: bool = False,
) -> EditedFile:
    """Edit one image with one target prompt.

    Args:
        source: the image.
        source_prompt: what it shows.
        target_prompt: what it is to show.
        settings: of the edit.
        diffusion: the model.
        with_way: whether pictures between the image and the result are kept.

    Raises:
        UserError: if the settings do not suit the image, or memory is too small.
        FloatingPointError: if the model overflows in half precision.
    """
    image, mask = source.image, source.mask
    resolution = diffusion.native_size if settings.resolution is None else settings.resolution
    size = edit_size(*image.size, resolution, diffusion.image_multiple, settings.square)
    kept: list[Tensor] = []

    def keep(step: DescentStep) -> None:
        if with_way and step.step in strip_steps(settings.steps):
            kept.append(step.latents.clone())

    try:
        pixels = to_tensor(resize(image, size))
        region = None if mask is None else _region(resize(mask, size))
        edit = edit_image(
            pixels,
            source_prompt,
            target_prompt,
            diffusion,
            settings.guidance,
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            mask=region,
            callback=keep,
        )
        assert isinstance(edit.image, Tensor)  # as the pixels are
        between = [as_pil(decode_within(diffusion, latents, pixels[None], region)[0]) for latents in kept]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{diffusion.device} has too little memory for an edit of {size[0]}x{size[1]} pixels: "
            "give a smaller --resolution, or see what saves memory in --help"
        ) from error

    before, after = as_pil(pixels), as_pil(edit.image)
    way = [before, *between, after]
    if settings.keep_size:
        before, after = image, _at_own_size(image, mask, after, diffusion.image_multiple)
    return EditedFile(source, edit, before, after, way)


def _region(mask: Image.Image) -> Tensor:
    return to_tensor(mask)[None] > 0.5


def _at_own_size(image: Image.Image, mask: Image.Image | None, result: Image.Image, feather: int) -> Image.Image:
    """The result at the image's size; outside the mask, the image's own pixels."""
    enlarged = resize(result, image.size)
    if mask is None:
        return enlarged
    scale = max(image.width / result.width, image.height / result.height)
    pixels = blend_within(_region(mask), to_tensor(image)[None], to_tensor(enlarged)[None], max(feather * scale, 1))
    return as_pil(pixels[0])
