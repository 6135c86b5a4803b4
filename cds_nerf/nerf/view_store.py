"""The source's views: what an edit compares with and what its pictures show, kept in its run folder.

Each is made from the unedited field the first time that it is asked for, and read from the disk by a resumed edit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from cds_nerf.errors import UserError
from cds_nerf.files import whole_file
from cds_nerf.finite import are_finite
from cds_nerf.pictures import read_image

MADE_ANEW = "move this file away, and it is made anew from the source"


@dataclass
class ViewStore:
    """Pictures of the unedited training views, their latents, what was measured of them, and the orbit.

    Views in use stay in memory.

    Args:
        folder: where they are: `views/`, `latents/`, `measured/` and `orbit/`, each with a file for each view.
        render_view: renders a training view [3,H,W] of the unedited field, in 0..1.
        render_frame: renders a frame [3,H,W] of the orbit of the unedited field, in 0..1.
        encode: the latents [1,C,h,w] of images [1,3,H,W].
        views_in_memory: how many views stay there, at the most.
    """

    folder: Path
    render_view: Callable[[int], Float[Tensor, "3 height width"]]
    render_frame: Callable[[int], Float[Tensor, "3 height width"]]
    encode: Callable[[Float[Tensor, "1 3 height width"]], Float[Tensor, "1 channels h w"]]
    views_in_memory: int
    _pictures: dict[int, UInt8[Tensor, "3 height width"]] = field(default_factory=dict)
    _latents: dict[int, Float[Tensor, "1 channels h w"]] = field(default_factory=dict)

    def image(self, index: int, size: tuple[int, ...] | None = None) -> Float[Tensor, "3 height width"]:
        """A view, in 0..1.

        Args:
            index: of the view.
            size: the height and width that it must have, if given.

        Raises:
            UserError: if its picture cannot be read, or has another size.
            FloatingPointError: if it has to be made, and is not finite.
        """
        if index not in self._pictures:
            path = self._path("views", index)
            if not path.exists():
                self._make_view(index)
            self._remember(self._pictures, index, pil_to_tensor(read_image(path)))
        image = self._pictures[index] / 255
        if size is not None and image.shape[1:] != size:
            raise UserError(
                f"{self._path('views', index)} is {image.shape[2]}x{image.shape[1]} pixels, the view is "
                f"{size[1]}x{size[0]}: {MADE_ANEW}"
            )
        return image

    def made_image(self, index: int) -> Float[Tensor, "3 height width"] | None:
        """A view, in 0..1; None if it has not been made.

        Raises:
            UserError: if its picture cannot be read.
        """
        return self.image(index) if self._path("views", index).exists() else None

    def latents(self, index: int, shape: tuple[int, ...] | None = None) -> Float[Tensor, "1 channels h w"]:
        """The latents of a view.

        Args:
            index: of the view.
            shape: [C,h,w] that they must have, if given.

        Raises:
            UserError: if their file cannot be read, or holds others.
            FloatingPointError: if they have to be made, and are not finite.
        """
        if index not in self._latents:
            path = self._path("latents", index)
            if not path.exists():
                self._make_view(index)
            self._remember(self._latents, index, _load(path, "latents"))
        latents = self._latents[index]
        if shape is not None and latents.shape != (1, *shape):
            raise UserError(
                f"{self._path('latents', index)} holds latents {list(latents.shape)}, the view's are "
                f"{[1, *shape]}: {MADE_ANEW}"
            )
        return latents

    def measured(self, index: int, kind: str, measure: Callable[[], Float[Tensor, "h w"]]) -> Float[Tensor, "h w"]:
        """Something that is measured of a view once.

        Args:
            index: of the view.
            kind: what it is called.
            measure: measures it, where that has not been done.

        Raises:
            UserError: if the file cannot be read that holds it.
        """
        path = self.folder / "measured" / kind / f"{index:05d}.safetensors"
        if not path.exists():
            with torch.no_grad(), whole_file(path) as file:
                save_file({kind: measure().cpu().contiguous()}, file)
        return _load(path, kind)

    def frame(self, index: int) -> Float[Tensor, "3 height width"]:
        """A frame of the orbit, in 0..1.

        Raises:
            UserError: if its picture cannot be read.
        """
        path = self._path("orbit", index)
        if not path.exists():
            with torch.no_grad():
                _save_picture(self.render_frame(index), path)
        return pil_to_tensor(read_image(path)) / 255

    def complete(self, views: int, frames: int) -> bool:
        """Whether the unedited field is needed no more for so many views and frames of the orbit."""
        wanted = {"views": views, "latents": views, "orbit": frames}
        return all(self._path(kind, index).exists() for kind, count in wanted.items() for index in range(count))

    @torch.no_grad()
    def _make_view(self, index: int) -> None:
        image = self.render_view(index)
        latents = self.encode(image[None]).cpu().contiguous()
        for what, values in (("colours", image), ("latents", latents)):
            if not are_finite([values]):
                raise FloatingPointError(f"the {what} of the source's view {index} are not finite")
        # The latents last: each drawn view asks for them, and a view that was cut short between the two is made again.
        _save_picture(image, self._path("views", index))
        with whole_file(self._path("latents", index)) as file:
            save_file({"latents": latents}, file)

    def _path(self, kind: str, index: int) -> Path:
        return self.folder / kind / f"{index:05d}.{'safetensors' if kind == 'latents' else 'png'}"

    def _remember(self, views: dict[int, Tensor], index: int, value: Tensor) -> None:
        while len(views) >= self.views_in_memory:
            del views[next(iter(views))]
        views[index] = value


def _load(path: Path, name: str) -> Tensor:
    try:
        return load_file(path)[name]
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): {MADE_ANEW}") from error


def _save_picture(image: Float[Tensor, "3 height width"], path: Path) -> None:
    with whole_file(path) as file:
        to_pil_image((image.clamp(0, 1) * 255).round().byte().cpu()).save(file)
