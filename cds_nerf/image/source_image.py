"""An image file that is to be edited, with its mask, after the checks that need no model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from cds_nerf.errors import UserError
from cds_nerf.image.settings import ImageEditSettings
from cds_nerf.image.sizing import check_proportions
from cds_nerf.pictures import read_image


@dataclass(frozen=True)
class SourceImage:
    """An image and where in it the edit may act."""

    path: Path
    image: Image.Image
    """8-bit RGB, with its colour profile in `info` if there is one."""
    mask: Image.Image | None
    """8-bit grey, of the image's size."""

    @classmethod
    def read(cls, path: Path, mask: Image.Image | None, settings: ImageEditSettings) -> SourceImage:
        """Read an image file.

        Args:
            path: the file.
            mask: 8-bit grey, what is in the settings' mask.
            settings: of the edit.

        Raises:
            UserError: if it cannot be read, is too long, or does not go with the mask; the message names the file.
        """
        image = read_image(path)
        if not settings.square:
            try:
                check_proportions(*image.size)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
        if mask is not None and mask.size != image.size:
            raise UserError(
                f"mask {settings.mask} is {mask.width}x{mask.height} pixels and {path} is "
                f"{image.width}x{image.height}: they must be of one size"
            )
        if mask is not None and not np.asarray(mask).max() > 127:
            raise UserError(f"{path}: mask is empty: make white in {settings.mask} what may change")
        return cls(path, image, mask)

    @cached_property
    def content(self) -> dict[str, str]:
        """Hashes of what is to be seen, by what it is; the same whatever file it is in."""
        hashes = {"image": _hash(self.image)}
        return hashes if self.mask is None else hashes | {"mask": _hash(self.mask)}


def _hash(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.info.get("icc_profile", b""))
    digest.update(image.tobytes())
    return digest.hexdigest()
