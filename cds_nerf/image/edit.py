"""Text-guided editing of images: their latents are optimised with the Contrastive Denoising Score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Generator, Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from cds_nerf.diffusion import LatentDiffusion
from cds_nerf.diffusion.prompts import check_prompts
from cds_nerf.errors import UserError
from cds_nerf.guidance import CDSGuidance, CDSGuidanceConfig
from cds_nerf.image.latent_descent import DescentStep, descend_latents
from cds_nerf.image.mask import blend_within, latent_mask
from cds_nerf.image.settings import ImageEditSettings
from cds_nerf.image.settings_check import check_seed
from cds_nerf.image.sizing import edit_size, resize
from cds_nerf.image_files import upright, white_level
from cds_nerf.masks import as_mask
from cds_nerf.pictures import as_upright_rgb
from cds_nerf.progress import progress_bar


@dataclass(frozen=True)
class ImageEdit:
    """An edited image, or a batch of them."""

    image: Image.Image | Float[Tensor, "*batch 3 height width"]
    """A PIL image where one was given, else a tensor in 0..1 of the given rank."""
    latents: Float[Tensor, "batch channels h w"]
    """The optimised latents, scaled."""
    source_latents: Float[Tensor, "batch channels h w"]
    """The latents of the unedited image, scaled."""
    losses: dict[str, list[float]]
    """The terms of the guidance's loss by name ("dds_loss" and "cut_loss" of Contrastive Denoising Score) at each step,
    unweighted and summed over the batch."""
    interrupted: bool
    """Whether Ctrl-C ended the edit before its last step."""

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return max(map(len, self.losses.values()), default=0)


def edit_image(
    image: Image.Image | Float[Tensor, "*batch 3 height width"],
    source_prompt: str | Sequence[str],
    target_prompt: str | Sequence[str],
    diffusion: LatentDiffusion,
    config: CDSGuidanceConfig | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    mask: Image.Image | Float[Tensor, "*batch height width"] | None = None,
    timesteps: Int[Tensor, " steps"] | Int[Tensor, "steps batch"] | None = None,
    noise: Float[Tensor, "steps batch channels h w"] | None = None,
    callback: Callable[[DescentStep], None] | None = None,
    progress: bool = True,
) -> ImageEdit:
    """Edit an image, or a batch of images, from what one prompt says to what another says.

    Every image of a batch gets the timesteps, noise and patches that it would get alone. Ctrl-C ends the edit early:
    the result is then what there is.

    Args:
        image: a tensor [3,H,W] or [B,3,H,W] in 0..1, edited at its size; or a PIL image, turned upright as its EXIF
            data say and brought to the model's size first (see `edit_size`).
        source_prompt: describes the image; one for all, or one for each of the batch.
        target_prompt: describes the wanted image, likewise.
        diffusion: the model.
        config: settings of the guidance, by default the model's own where it carries some, else the reference
            implementation's.
        steps: how many times the latents are moved; by default likewise, else 200.
        learning_rate: of the gradient descent; by default likewise, else 0.1.
        seed: of the timesteps, noise and patches; on one device the same seed gives the same result.
        mask: where the edit may act, of the image's height and width: a picture of any mode, by the rule of `as_mask`,
            or a tensor in 0..1 or on a scale to 255 or 65535; above the middle counts. Outside, the result's pixels are
            the image's; inside, the edit fades in from the seam.
        timesteps: of each step, in place of drawn ones.
        noise: of each step, in place of drawn one.
        callback: called after each step.
        progress: whether to show a progress bar.

    Raises:
        UserError: if an argument cannot be used; the message says which and why.
        FloatingPointError: if the model overflows in half precision.
    """
    suited, _ = ImageEditSettings().suited_to(diffusion.settings)
    guidance = CDSGuidance(config or suited.guidance, diffusion)
    steps = suited.steps if steps is None else steps
    learning_rate = suited.learning_rate if learning_rate is None else learning_rate
    images = _as_batch(image, diffusion)
    batch = len(images)
    source_prompts = _prompts("source_prompt", source_prompt, batch)
    target_prompts = _prompts("target_prompt", target_prompt, batch)
    for source, target in zip(source_prompts, target_prompts, strict=True):
        check_prompts(source, target)
        diffusion.check_prompts(source, target)
    check_seed(seed)
    masks = None if mask is None else _as_mask_batch(mask, image, images)
    with torch.no_grad():
        source_latents = diffusion.encode(images)

    descent = descend_latents(
        guidance,
        source_latents,
        diffusion.encode_prompt(source_prompts),
        diffusion.encode_prompt(target_prompts),
        steps=steps,
        learning_rate=learning_rate,
        mask=None if masks is None else latent_mask(masks, diffusion.image_multiple).to(source_latents),
        timesteps=timesteps,
        noise=noise,
        generator=[Generator().manual_seed(seed) for _ in range(batch)],
    )
    latents = source_latents.clone()
    losses: dict[str, list[float]] = {}
    interrupted = False
    with progress_bar(description=target_prompts[0], total=steps, shown=progress) as bar:
        try:
            for step in descent:
                latents = step.latents.clone()  # Ctrl-C may come in the middle of the next step
                for name, loss in step.losses.items():
                    losses.setdefault(name, []).append(loss)
                bar.set_postfix(
                    {name.removesuffix("_loss"): f"{loss:.4g}" for name, loss in step.losses.items()}, refresh=False
                )
                bar.update()
                if callback is not None:
                    callback(step)
        except KeyboardInterrupt:
            interrupted = True

    edited = decode_within(diffusion, latents, images, masks)
    if isinstance(image, Image.Image):
        return ImageEdit(as_pil(edited[0]), latents, source_latents, losses, interrupted)
    return ImageEdit(edited.reshape(image.shape), latents, source_latents, losses, interrupted)


@torch.no_grad()
def decode_within(
    diffusion: LatentDiffusion,
    latents: Float[Tensor, "batch channels h w"],
    images: Float[Tensor, "batch 3 height width"],
    masks: Bool[Tensor, "batch 1 height width"] | None,
) -> Float[Tensor, "batch 3 height width"]:
    """The images of latents, where there are masks only within them; outside, the given images."""
    edited = diffusion.decode(latents).to(images)
    return edited if masks is None else blend_within(masks, images, edited, feather=diffusion.image_multiple)


def as_pil(image: Float[Tensor, "3 height width"]) -> Image.Image:
    """A tensor in 0..1 as an 8-bit PIL image, each value rounded to the nearest."""
    return to_pil_image((image * 255).round().byte().cpu())


def _prompts(name: str, prompt: str | Sequence[str], batch: int) -> list[str]:
    prompts = [prompt] * batch if isinstance(prompt, str) else list(prompt)
    if len(prompts) != batch:
        raise UserError(f"{name} has {len(prompts)} prompts for {batch} images: give one, or one for each image")
    return prompts


def _as_batch(image: Image.Image | Tensor, diffusion: LatentDiffusion) -> Float[Tensor, "batch 3 height width"]:
    if isinstance(image, Image.Image):
        picture = as_upright_rgb(image)
        size = edit_size(*picture.size, diffusion.native_size, diffusion.image_multiple)
        return to_tensor(resize(picture, size))[None]
    if not isinstance(image, Tensor) or image.ndim not in (3, 4) or image.shape[-3] != 3 or not len(image):
        got = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise UserError(f"image is {got}; it must be a PIL image or a tensor [3,H,W] or [B,3,H,W]")
    if not (image.is_floating_point() and image.min() >= 0 and image.max() <= 1):
        raise UserError(f"image has {image.dtype} values from {image.min()} to {image.max()}; they must be in 0..1")
    return image.reshape(-1, *image.shape[-3:])


def _as_mask_batch(
    mask: Image.Image | Tensor, image: Image.Image | Tensor, images: Float[Tensor, "batch 3 height width"]
) -> Bool[Tensor, "batch 1 height width"]:
    """The mask of an image as it was given, for the images that it has become."""
    height, width = images.shape[-2:]
    if isinstance(mask, Image.Image):
        mask = as_mask(mask)
        size = upright(image).size if isinstance(image, Image.Image) else (width, height)
        if mask.size != size:
            raise UserError(
                f"mask is {mask.width}x{mask.height} pixels and the image {size[0]}x{size[1]}: they must be of one size"
            )
        values = to_tensor(resize(mask, (width, height)))
    elif isinstance(mask, Tensor):
        values = mask.detach().float()
        if values.shape[-2:] != images.shape[-2:] or values.numel() not in (height * width, images[:, 0].numel()):
            raise UserError(
                f"mask has shape {list(values.shape)}; it must be [{height},{width}], one or one for each image"
            )
        if not values.isfinite().all():
            raise UserError("mask has values that are no numbers; they must be in 0..1")
        values = values / white_level(values.max().item())
    else:
        raise UserError(f"mask is {type(mask).__name__}; it must be a PIL image or a tensor [H,W]")
    masks = (values.reshape(-1, 1, height, width) > 0.5).expand(len(images), -1, -1, -1).to(images.device)
    if not masks.flatten(1).any(dim=1).all():
        raise UserError(f"mask is empty at the edit's {width}x{height} pixels: make white what may change")
    return masks
