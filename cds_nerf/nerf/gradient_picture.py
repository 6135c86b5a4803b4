"""Where the guidance pulls at a view, as a picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.utils.colormaps import apply_float_colormap
from torch import Tensor


@dataclass(frozen=True)
class PulledView:
    """A view of the edit, and the guidance's gradient in its latents."""

    image: Float[Tensor, "3 height width"]
    gradient: Float[Tensor, "draws channels h w"]

    def picture(self) -> Float[Tensor, "3 height width2"]:
        """The view, and beside it the root mean square of the gradient over draws and channels, as `heat`."""
        strength = self.gradient.float().square().mean(dim=(0, 1)).sqrt()
        image = self.image.detach().float().cpu().clamp(0, 1)
        return torch.cat([image, heat(strength, image.shape[1:])], dim=2)


def heat(strength: Float[Tensor, "h w"], size: tuple[int, ...]) -> Float[Tensor, "3 height width"]:
    """What is strong and what is weak, relative to the strongest, in the colours of heat.

    Args:
        strength: at least 0, for each latent.
        size: height and width in pixels.
    """
    strength = strength / strength.max().clamp_min(torch.finfo(strength.dtype).tiny)
    pixels = F.interpolate(strength[None, None], size)[0].permute(1, 2, 0)
    return apply_float_colormap(pixels.cpu()).permute(2, 0, 1)
