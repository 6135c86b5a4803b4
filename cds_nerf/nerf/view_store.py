"""The source's views: what an edit compares with and what its pictures show, kept in its run folder.

Each is made from the unedited field the first time it is asked for. A resumed edit, whose field has moved on, reads
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from cds_nerf.errors import UserError
from cds_nerf.files import whole_file
from cds_nerf.pictures import read_image, read_mask


@dataclass(frozen=True)
class ViewStore:
    """Pictures of the unedited training views, their latents, and where in them the edit may act; and the orbit.

    Args:
        folder: where they are: `views/`, `latents/`, `relevance/` and `orbit/`, each with a file for each view.
        render_view: renders a training view [3,H,W] of the unedited field, in 0..1.
        render_frame: renders a frame [3,H,W] of the orbit of the unedited field, in 0..1.
        encode: the latents [1,C,h,w] of images [1,3,H,W].
        relevance: of a view's latents and index, where the edit may act [1,1,h,w], in 0..1.
    """

    folder: Path
    render_view: Callable[[int], Float[Tensor, "3 height width"]]
    render_frame: Callable[[int], Float[Tensor, "3 height width"]]
    encode: Callable[[Float[Tensor, "1 3 height width"]], Float[Tensor, "1 channels h w"]]
    measure_relevance: Callable[[Float[Tensor, "1 channels h w"], int], Float[Tensor, "1 1 h w"]]

    def missing(self, views: int, frames: int, with_relevance: bool) -> list[Callable[[], object]]:
        """What makes each view, relevance and frame of the orbit that is not there.

        Args:
            views: how many training views there are.
            frames: how many frames the orbit has.
            with_relevance: whether the edit asks for it.
        """
        wanted = {"views": views, "latents": views, "relevance": views if with_relevance else 0, "orbit": frames}
        make = {"views": self.image, "latents": self.latents, "relevance": self.relevance, "orbit": self.frame}
        return [
            partial(make[kind], index)
            for kind, count in wanted.items()
            for index in range(count)
            if not self._path(kind, index).exists()
        ]

    def image(self, index: int) -> Float[Tensor, "3 height width"]:
        """A view, in 0..1.

        Raises:
            UserError: if its picture cannot be read.
        """
        path = self._path("views", index)
        if not path.exists():
            self._make_view(index)
        return to_tensor(read_image(path))

    def made_image(self, index: int) -> Float[Tensor, "3 height width"] | None:
        """A view, in 0..1; None if it has not been made.

        Raises:
            UserError: if its picture cannot be read.
        """
        return self.image(index) if self._path("views", index).exists() else None

    def latents(self, index: int) -> Float[Tensor, "1 channels h w"]:
        """The latents of a view.

        Raises:
            UserError: if their file cannot be read.
        """
        path = self._path("latents", index)
        if not path.exists():
            self._make_view(index)
        try:
            return load_file(path)["latents"]
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(
                f"the latents {path} cannot be read ({error}): delete this file, and it is made anew from the source"
            ) from error

    def relevance(self, index: int) -> Float[Tensor, "1 height width"]:
        """Where in a view the edit may act, in 0..1: see `relevance_map`. The picture may have been painted over.

        Raises:
            UserError: if its picture cannot be read, or has another size than the view.
        """
        path = self._path("relevance", index)
        size = self.image(index).shape[1:]
        if not path.exists():
            map = self.measure_relevance(self.latents(index), index)
            map = map.where(map >= 2 / 255, 0)  # a picture with no values but 0 and 1 would count as black and white
            with whole_file(path) as file:
                to_pil_image(F.interpolate(map, size, mode="bilinear")[0].cpu()).save(file)
        return to_tensor(read_mask(path, size=(size[1], size[0]), image=self._path("views", index)))

    def frame(self, index: int) -> Float[Tensor, "3 height width"]:
        """A frame of the orbit, in 0..1.

        Raises:
            UserError: if its picture cannot be read.
        """
        path = self._path("orbit", index)
        if not path.exists():
            with torch.no_grad():
                self._save_picture(self.render_frame(index), path)
        return to_tensor(read_image(path))

    @torch.no_grad()
    def _make_view(self, index: int) -> None:
        image = self.render_view(index)
        with whole_file(self._path("latents", index)) as file:
            save_file({"latents": self.encode(image[None]).cpu().contiguous()}, file)
        self._save_picture(image, self._path("views", index))

    def _path(self, kind: str, index: int) -> Path:
        return self.folder / kind / f"{index:05d}.{'safetensors' if kind == 'latents' else 'png'}"

    @staticmethod
    def _save_picture(image: Float[Tensor, "3 height width"], path: Path) -> None:
        with whole_file(path) as file:
            to_pil_image((image.clamp(0, 1) * 255).round().byte().cpu()).save(file)
