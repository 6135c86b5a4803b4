"""The cameras of a capture, whose photographs need not be there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from cds_nerf.errors import first_line

GREY = 0.5
"""What stands for a photograph that is not there."""


class CameraDataset(InputDataset):
    """Cameras with their photographs, or with what is shown in their place.

    It serves what looks at photographs or goes through their pixels without learning from them: the viewer, ns-render
    and ns-export.
    """

    picture: Callable[[int], Float[Tensor, "3 height width"] | None] | None = None
    """Where it is set, no photograph is read: what is shown in place of one, by its index; grey for None."""
    _said = False

    def get_data(self, image_idx: int, image_type: Literal["uint8", "float32"] = "float32") -> dict[str, Any]:
        """A photograph with its mask, or a picture of any size, or grey of the photograph's size.

        Args:
            image_idx: of the camera.
            image_type: "float32" for colours in 0..1, "uint8" for 0..255.
        """
        if self.picture is not None:
            picture = self.picture(image_idx)
            image = torch.full((8, 8, 3), GREY) if picture is None else picture.permute(1, 2, 0)
            return {"image_idx": image_idx, "image": _as_type(image, image_type)}
        try:
            return super().get_data(image_idx, image_type)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise
            if not self._said:
                self._said = True
                CONSOLE.print(f"[yellow]Grey stands for photographs that cannot be read ({first_line(error)}).")
            shape = (int(self.cameras.height[image_idx]), int(self.cameras.width[image_idx]))
            data = {"image_idx": image_idx, "image": _as_type(torch.full((*shape, 3), GREY), image_type)}
            if self._dataparser_outputs.mask_filenames is not None:
                data["mask"] = torch.ones(*shape, 1, dtype=torch.bool)
            return data


def _as_type(image: Float[Tensor, "height width 3"], image_type: str) -> Tensor:
    return image if image_type == "float32" else (image * 255).round().byte()
