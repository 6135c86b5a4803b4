"""How much of an object's pattern an edit keeps, its colour and lighting divided out."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_BRIGHTNESS = 0.02
"""Of the plain object: darker pixels say nothing of a pattern."""


def detail_kept(
    views: Float[Tensor, "views 3 height width"],
    truth: Float[Tensor, "views 3 height width"],
    plain: Float[Tensor, "views 3 height width"],
    masks: Float[Tensor, "views 1 height width"],
) -> Float[Tensor, " views"]:
    """The correlation of each view's shading pattern with that of the true edit, within the object.

    With the grey values v of the view, t of the true edit and p of the true edit on an object without a pattern, it is
    the correlation of v / p and t / p over the pixels that are all object. Neither the lighting, which p has, nor the
    colour counts, since a correlation does not see a factor: 1 for the truth, 0 for a plain object and for noise,
    negative where light and dark have changed places.

    Args:
        views: what is judged, in 0..1.
        truth: the same views of the true edit, in 0..1.
        plain: the same of the true edit without the pattern, in 0..1.
        masks: the share of each pixel that the true edit's object covers, in 0..1.

    Returns:
        One value in -1..1 for each view; NaN where the truth shows no pattern.
    """
    lit = plain.mean(dim=1)
    inside = (masks[:, 0] == 1) & (lit > LEAST_BRIGHTNESS)
    kept = []
    for view, true, base, where in zip(views.mean(dim=1), truth.mean(dim=1), lit, inside, strict=True):
        pattern, true_pattern = (
            centred / centred.norm().clamp(min=1e-6)
            for centred in (ratio - ratio.mean() for ratio in (image[where] / base[where] for image in (view, true)))
        )
        has_pattern = (true[where] / base[where]).std() > 1e-3 if where.sum() > 1 else False
        kept.append((pattern * true_pattern).sum() if has_pattern else view.new_tensor(torch.nan))
    return torch.stack(kept)
