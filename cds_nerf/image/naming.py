"""Which image files are edited, and what their edits are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from glob import glob
from pathlib import Path

from cds_nerf.errors import UserError
from cds_nerf.image_files import is_image_name

SLUG_LENGTH = 60
"""Letters of a prompt that go into a file's name, at most."""
STEM_BYTES = 200
"""Bytes that an image's and a prompt's part of a file's name have together, at most: file systems take 255, and a
number, an ending and the temporary name of `whole_file` come to these."""


def find_images(arguments: Iterable[str]) -> list[Path]:
    """The image files that files, folders and glob patterns stand for, each once, sorted within an argument.

    A file that is named itself is taken as it is, whether it exists or not.

    Raises:
        UserError: if a folder or pattern has no images, or there are no arguments.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument).expanduser()
        try:
            is_folder = path.is_dir()
        except OSError as error:  # a name that no file can have: a prompt in an image's place, most often
            raise UserError(f"there is no image {argument[:80]}...: {error.strerror}") from error
        if is_folder:
            images = _images_among(path.iterdir())
        elif any(letter in argument for letter in "*?[") and not path.exists():
            images = _images_among(map(Path, glob(str(path), recursive=True)))
        else:
            images = [path]
        if not images:
            raise UserError(f"{argument} has no images")
        found += images
    if not found:
        raise UserError("there are no images to edit: name files, folders or glob patterns")
    return list(dict.fromkeys(found))


def output_files(images: Sequence[Path], prompts: Sequence[str], output: Path) -> dict[tuple[Path, str], Path]:
    """A PNG file for each image and prompt, no two the same, even where case does not count.

    Args:
        images: the images' files.
        prompts: the target prompts.
        output: a folder, in which an edit is called `IMAGE-PROMPT.png`; or, for a single edit, the PNG file itself.

    Raises:
        UserError: if the output is a file for several edits, or of another format than PNG.
    """
    if is_image_name(output) and not output.is_dir():
        if output.suffix.lower() != ".png":
            raise UserError(f"output is {output}, but edits are written as PNG: call it {output.with_suffix('.png')}")
        if len(images) * len(prompts) != 1:
            raise UserError(
                f"output is the file {output}, but there are {len(images) * len(prompts)} edits: name a folder"
            )
        return {(images[0], prompts[0]): output}
    files: dict[tuple[Path, str], Path] = {}
    taken: set[str] = set()
    for image in images:
        for prompt in prompts:
            part = _shortened(slug(prompt), STEM_BYTES // 2)
            name = first = f"{_shortened(image.stem, STEM_BYTES - len(part.encode()))}-{part}"
            count = 1
            while name.casefold() in taken:
                count += 1
                name = f"{first}-{count}"
            taken.add(name.casefold())
            files[image, prompt] = output / f"{name}.png"
    return files


def _images_among(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if is_image_name(path) and path.is_file() and not path.name.startswith("."))


def _shortened(name: str, length: int) -> str:
    """As much of a name as fits into so many bytes."""
    return name.encode(errors="surrogateescape")[:length].decode(errors="ignore")


def slug(prompt: str) -> str:
    """A prompt as a part of a file's name."""
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:SLUG_LENGTH].rstrip("-") or "edit"
