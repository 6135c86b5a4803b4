"""How near pictures are to what they should be."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(
    images: Float[Tensor, "views 3 height width"],
    truth: Float[Tensor, "views 3 height width"],
    where: Bool[Tensor, "views 1 height width"] | None = None,
) -> Float[Tensor, " views"]:
    """Peak signal-to-noise ratio of each view, in dB; infinite where a view is exact.

    Args:
        images: in 0..1.
        truth: in 0..1.
        where: the pixels that count, all of them by default. A view without any is NaN.
    """
    errors = (images - truth).square().mean(dim=1, keepdim=True)
    weights = errors.new_ones(errors.shape) if where is None else where.to(errors)
    return -10 * ((errors * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))).log10()


def ssim(
    images: Float[Tensor, "views 3 height width"],
    truth: Float[Tensor, "views 3 height width"],
    where: Bool[Tensor, "views 1 height width"] | None = None,
) -> Float[Tensor, " views"]:
    """Structural similarity of each view (Wang et al. 2004), with Gaussian windows of 11 pixels.

    Args:
        images: in 0..1.
        truth: in 0..1.
        where: the windows that count, by their centres; all of them by default. A view without any is NaN.
    """
    _, similarity = structural_similarity_index_measure(
        images, truth, data_range=1.0, reduction="none", return_full_image=True
    )
    similarity = similarity.mean(dim=1, keepdim=True)
    weights = similarity.new_ones(similarity.shape) if where is None else where.to(similarity)
    return (similarity * weights).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))


def outside(*masks: Float[Tensor, "views 1 height width"]) -> Bool[Tensor, "views 1 height width"]:
    """The pixels that none of the masks touches.

    Args:
        masks: the share of each pixel that an object covers, in 0..1, such as before and after an edit.
    """
    covered = masks[0] > 0
    for mask in masks[1:]:
        covered = covered | (mask > 0)
    return ~covered
