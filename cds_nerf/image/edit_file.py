"""One edit of one image file, with all that is written of it."""

from __future__ import annotations

import json
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
from cds_nerf.image.loss_plot import write_loss_plot
from cds_nerf.image.mask import blend_within
from cds_nerf.image.settings import ImageEditSettings
from cds_nerf.image.sizing import edit_size, resize
from cds_nerf.image.strip import side_by_side, strip_steps
from cds_nerf.pictures import write_png


def edit_file(
    settings: ImageEditSettings,
    path: Path,
    image: Image.Image,
    mask: Image.Image | None,
    source_prompt: str,
    target_prompt: str,
    files: dict[str, Path],
    diffusion: LatentDiffusion,
) -> ImageEdit:
    """Edit one image with one target prompt, and write the result.

    Args:
        settings: of the edit.
        path: the image's file, for the record.
        image: what is in it, 8-bit RGB.
        mask: 8-bit grey, of the image's size.
        source_prompt: what the image shows.
        target_prompt: what it is to show.
        files: what to write: "image" and any of "pair", "strip", "plot" and "latents".
        diffusion: the model.

    Raises:
        UserError: if the settings do not suit the image, memory is too small, or a file cannot be written.
        FloatingPointError: if the model overflows in half precision.
    """
    resolution = diffusion.native_size if settings.resolution is None else settings.resolution
    size = edit_size(*image.size, resolution, diffusion.image_multiple, settings.square)
    way: list[Tensor] = []

    def keep(step: DescentStep) -> None:
        if "strip" in files and step.step in strip_steps(settings.steps):
            way.append(step.latents.clone())

    try:
        source = to_tensor(resize(image, size))
        region = None if mask is None else _region(resize(mask, size))
        edit = edit_image(
            source,
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
        assert isinstance(edit.image, Tensor)  # as the source is
        result = as_pil(edit.image)
        pictures = [as_pil(decode_within(diffusion, latents, source[None], region)[0]) for latents in way]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{diffusion.device} has too little memory for an edit of {size[0]}x{size[1]} pixels: "
            "give a smaller --resolution, or see what saves memory in --help"
        ) from error

    before, after = as_pil(source), result
    if settings.keep_size:
        before, after = image, _at_own_size(image, mask, result, diffusion.image_multiple)
    record = settings.record(path, source_prompt, target_prompt) | {"steps_done": edit.steps}
    profile = image.info.get("icc_profile")
    if "pair" in files:
        write_png(files["pair"], side_by_side([before, after]), record, profile)
    if "strip" in files:
        write_png(files["strip"], side_by_side([as_pil(source), *pictures, result]), record, profile)
    if "plot" in files:
        write_loss_plot(files["plot"], edit.losses, f"{path.name}: {target_prompt}")
    if "latents" in files:
        latents = {"source": edit.source_latents.cpu(), "result": edit.latents.cpu()}
        with whole_file(files["latents"]) as file:
            file.write_bytes(save(latents, {"cds-nerf": json.dumps(record)}))
    write_png(files["image"], after, record, profile)  # the last: where it is, all is
    return edit


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
