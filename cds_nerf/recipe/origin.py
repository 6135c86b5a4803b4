"""What a run was made from, and whether it is the same still, wherever it is by now."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cds_nerf.errors import UserError


@dataclass(frozen=True)
class Origin:
    """A checkpoint, or a capture, that a run was made from."""

    path: str
    """Where it was then."""
    sha256: str | None = None
    """Of the checkpoint, or of the files that hold a capture's cameras; None where these are not known."""

    @classmethod
    def of_checkpoint(cls, path: Path) -> Origin:
        """A checkpoint, by its content.

        Raises:
            UserError: if it cannot be read.
        """
        return cls(str(path.resolve()), _digest([path]))

    @classmethod
    def of_capture(cls, path: Path) -> Origin:
        """A capture, by its cameras, which an edit sees alone; its photographs may be gone.

        Raises:
            UserError: if it cannot be read.
        """
        return cls(str(path.resolve()), _digest(_camera_files(path)))

    def is_same(self, other: Origin) -> bool:
        """Whether both have the same content, or, where that is not known, stand at the same place."""
        if self.sha256 is None or other.sha256 is None:
            return self.path == other.path
        return self.sha256 == other.sha256


def _camera_files(capture: Path) -> list[Path]:
    """The files of a capture that hold its cameras, as nerfstudio and COLMAP name them."""
    if capture.is_file():
        return [capture]
    patterns = ("transforms*.json", *(f"{folder}/images.*" for folder in ("colmap/sparse/0", "sparse/0", "sparse")))
    return next((files for pattern in patterns if (files := sorted(capture.glob(pattern)))), [])


def _digest(files: list[Path]) -> str | None:
    if not files:
        return None
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()
