"""Rays of other views, which each step of an edit holds to the source outside of the region.

All points of a ray field share its networks: what a step changes for one view it changes for others, and a loss in the
drawn view does not see that. Rehearsing what was learned before is the remedy of continual learning (Robins,
"Catastrophic Forgetting, Rehearsal and Pseudorehearsal", Connection Science 7, 1995).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Generator, Tensor

from cds_nerf.fields.field import Field
from cds_nerf.seeding import seed_for

VIEWS = 8
"""Over which a step's rays are spread; each has a graph of its own, so that few are alive at once."""


def held_errors(
    field: Field,
    cameras: Sequence[Cameras],
    known: Sequence[int],
    region: Callable[[int], Float[Tensor, "1 height width"]],
    source: Callable[[int], Float[Tensor, "3 height width"]],
    rays: int,
    seed: int,
    draws: Sequence[int] = range(VIEWS),
) -> Iterator[Float[Tensor, ""]]:
    """The squared error outside of the region, per pixel of a view; estimates of its mean over the views add up to it.

    With the pixels p of a view of h × w, the region r, the render x and the source's render x₀:
    Σ_p (1 − r_p) ‖x_p − x₀_p‖² / (h w), of which each estimate takes pixels that are drawn with the weights 1 − r.

    Args:
        field: is edited.
        cameras: of all training views, each as a batch [1], where the field is.
        known: the views that may be drawn.
        region: of a view, in 0..1.
        source: the unedited field's render of a view, in 0..1.
        rays: how many, of all views together.
        seed: of views, pixels and the rendering.
        draws: which of the `VIEWS` to draw: several devices share them.

    Yields:
        One estimate for each draw of a view that has something outside, divided by `VIEWS`; none if the field renders
        no single pixels.
    """
    for draw in draws:
        generator = Generator().manual_seed(seed_for(seed, "held view", draw))
        index = known[int(torch.randint(len(known), (), generator=generator))]
        outside = 1 - region(index)[0].cpu()
        if not outside.any():
            continue
        pixels = torch.multinomial(outside.flatten(), -(-rays // VIEWS), replacement=True, generator=generator)
        colors = field.render_pixels(cameras[index], index, pixels, seed_for(seed, "held pixels", draw))
        if colors is None:
            return
        difference = colors - source(index).flatten(1)[:, pixels].to(colors.device)
        yield outside.mean().item() * difference.square().sum(dim=0).mean() / VIEWS
