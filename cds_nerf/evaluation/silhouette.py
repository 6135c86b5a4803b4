"""Where in a picture the object is, told from the scene without it; for edits of its shape."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

DEEPEST_SHADOW = 0.25
"""The share of its brightness that the surroundings keep at the least where an object's shadow falls."""
NOTICEABLE = 0.25
"""Share of a pixel's brightness by which it must differ from the surroundings to be the object's."""
DARKEST = 0.25
"""Brightness, as the norm of the colour, below which a share of it would say nothing."""
LEAST_FOUND = 0.8
"""Share of the true object that must stand out from its surroundings, or else its silhouette says nothing."""


def silhouette(
    views: Float[Tensor, "views 3 height width"], empty: Float[Tensor, "views 3 height width"]
) -> Bool[Tensor, "views 1 height width"]:
    """The pixels in which something else is seen than the surroundings, be they in shadow or not.

    A pixel v of a view belongs to the surroundings, whose pixel is e, if |v - s e| is at most `NOTICEABLE` |v| for an s
    from `DEEPEST_SHADOW` to 1: a shadow darkens, and changes no colour. A |v| below `DARKEST` counts as that.

    Args:
        views: in 0..1.
        empty: the same views without the object, in 0..1.
    """
    brightness = (views * empty).sum(dim=1, keepdim=True) / empty.square().sum(dim=1, keepdim=True).clamp(min=1e-6)
    nearest = brightness.clamp(DEEPEST_SHADOW, 1) * empty
    difference = (views - nearest).norm(dim=1, keepdim=True)
    return difference > NOTICEABLE * views.norm(dim=1, keepdim=True).clamp(min=DARKEST)


def silhouette_overlap(
    views: Float[Tensor, "views 3 height width"],
    truth: Float[Tensor, "views 3 height width"],
    empty: Float[Tensor, "views 3 height width"],
    masks: Float[Tensor, "views 1 height width"],
) -> Float[Tensor, " views"]:
    """Intersection over union of each view's silhouette with the true edit's.

    Args:
        views: what is judged, in 0..1.
        truth: the same views of the true edit, in 0..1.
        empty: the same views without the object, in 0..1.
        masks: the share of each pixel that the true edit's object covers, in 0..1.

    Returns:
        One value in 0..1 for each view; NaN where the true object hardly stands out, as a gray one on a gray floor.
    """
    found, true = silhouette(views, empty), silhouette(truth, empty)
    overlap = (found & true).sum(dim=(1, 2, 3)) / (found | true).sum(dim=(1, 2, 3)).clamp(min=1)
    inside = masks == 1
    stands_out = (true & inside).sum(dim=(1, 2, 3)) >= LEAST_FOUND * inside.sum(dim=(1, 2, 3))
    return overlap.where(stands_out & inside.any(dim=3).any(dim=2)[:, 0], float("nan"))
