"""`cds-nerf image`: edit image files; imports torch only when it runs."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import tyro

from cds_nerf.diffusion.prompts import check_prompts
from cds_nerf.errors import UserError
from cds_nerf.image.naming import find_images, output_files
from cds_nerf.image.settings import ImageEditSettings
from cds_nerf.image.sizing import check_proportions
from cds_nerf.pictures import read_image, read_mask

if TYPE_CHECKING:
    from PIL import Image

    from cds_nerf.diffusion import LatentDiffusion

INTERRUPTED = 130
"""The exit status after Ctrl-C, as of a shell's."""


@dataclass
class EditImages:
    """Edit images from what one prompt says to what another says.

    Each edit becomes IMAGE-PROMPT.png in the output folder, with its settings in the text chunk "cds-nerf".
    """

    EXAMPLES: ClassVar[str] = """For example:
  cds-nerf image cat.png --source-prompt "a cat" --target-prompt "a pig" "a dog"
  cds-nerf image photos/ --source-prompt "a cat" --target-prompt "a pig" --output edited/
  cds-nerf image "trip/**/*.jpg" --source-prompt "a road" --target-prompt "a snowy road" --keep-size
  cds-nerf image room.png --source-prompt "a red chair" --target-prompt "a blue chair" --mask chair.png --pair
  cds-nerf image cat.png --source-prompt "a cat" --target-prompt "a pig" --w-cut 0.3 --n-patches 128 --strip --plot"""

    images: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint=""),
    ]
    """PNG, JPEG or WebP files, folders of them, or quoted glob patterns. Transparency is composited over white."""
    source_prompt: str
    """What the images show."""
    target_prompt: tuple[str, ...]
    """What they are to show; each prompt gives an edit of its own."""
    output: Path = Path("edited")
    """Folder for the edits, or the PNG file of a single one."""
    overwrite: bool = False
    """Replace files that exist; they are kept otherwise."""
    pair: bool = False
    """Also write IMAGE-PROMPT.pair.png: before and after, side by side."""
    strip: bool = False
    """Also write IMAGE-PROMPT.strip.png: pictures on the way from the image to the result."""
    plot: bool = False
    """Also write IMAGE-PROMPT.losses.png: each term of the loss over the steps."""
    latents: bool = False
    """Also write IMAGE-PROMPT.safetensors: the source's and the result's latents."""
    settings: Annotated[ImageEditSettings, tyro.conf.arg(name="")] = field(default_factory=ImageEditSettings)
    """How they are edited."""
    typed: tyro.conf.Suppress[frozenset[str] | None] = None
    """The options that were typed on a command line, by their paths in this class: the model may set the others."""

    def run(self) -> int:
        """Make all edits; what is wrong with one of them is reported, and the others are made.

        Returns:
            The exit status: 1 if an image could not be edited, 130 after Ctrl-C (what there is has been saved), else 0.

        Raises:
            UserError: if a setting cannot be used; nothing has been edited then.
        """
        prompts = list(dict.fromkeys(self.target_prompt))
        if not prompts:
            raise UserError("target_prompt is empty; it must say what the image is to show")
        for prompt in prompts:
            check_prompts(self.source_prompt, prompt)
        self.settings.check()
        images = find_images(self.images)
        outputs = output_files(images, prompts, self.output.expanduser())
        mask = None if self.settings.mask is None else read_mask(self.settings.mask)
        _check_writable(next(iter(outputs.values())).parent)

        diffusion: LatentDiffusion | None = None
        status = 0
        for path in images:
            wanted = {prompt: outputs[path, prompt] for prompt in prompts if not self._kept(outputs[path, prompt])}
            if not wanted:
                continue
            try:
                image = self._read(path, mask)
            except UserError as error:
                status = _report(error)
                continue
            if diffusion is None:
                from cds_nerf.image.edit_file import edit_file

                self._suit_to_model()
                diffusion = self._load()
                for prompt in prompts:
                    diffusion.check_prompts(self.source_prompt, prompt)
            for prompt, output in wanted.items():
                try:
                    edit = edit_file(
                        self.settings, path, image, mask, self.source_prompt, prompt, self._files(output), diffusion
                    )
                except (UserError, FloatingPointError) as error:
                    status = _report(f"{path}: {error}")
                    continue
                print(f"wrote {output}")
                if edit.interrupted:
                    return INTERRUPTED
        return status

    def _read(self, path: Path, mask: Image.Image | None) -> Image.Image:
        """An image, after the checks that need no model."""
        image = read_image(path)
        if not self.settings.square:
            try:
                check_proportions(*image.size)
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
        if mask is not None and mask.size != image.size:
            raise UserError(
                f"mask {self.settings.mask} is {mask.width}x{mask.height} pixels and {path} is "
                f"{image.width}x{image.height}: they must be of one size"
            )
        return image

    def _files(self, output: Path) -> dict[str, Path]:
        """What is written for an edit, by the field that asks for it."""
        files = {
            "pair": output.with_suffix(".pair.png"),
            "strip": output.with_suffix(".strip.png"),
            "plot": output.with_suffix(".losses.png"),
            "latents": output.with_suffix(".safetensors"),
        }
        return {"image": output} | {name: file for name, file in files.items() if getattr(self, name)}

    def _kept(self, output: Path) -> bool:
        """Whether an edit is left out because a file of it exists, which is reported."""
        existing = [file for file in self._files(output).values() if file.exists()]
        if self.overwrite or not existing:
            return False
        print(f"cds-nerf: kept {existing[0]}, which exists: --overwrite makes it anew", file=sys.stderr)
        return True

    def _suit_to_model(self) -> None:
        """Take the settings that the model carries where nothing was typed, and say so."""
        if self.typed is None:
            return
        typed = {path.removeprefix("settings.") for path in self.typed}
        self.settings, taken = self.settings.suited_to(self.settings.diffusion.settings(), typed)
        if taken:
            print(f"settings of the model: {', '.join(f'{name} {value}' for name, value in taken.items())}")

    def _load(self) -> LatentDiffusion:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be deterministic
        import torch

        torch.use_deterministic_algorithms(True, warn_only=True)
        return self.settings.diffusion.load()


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"the output folder {folder} cannot be written: {error.strerror}") from error


def _report(error: object) -> int:
    """Print what is wrong with one image; the exit status that follows from it."""
    print(f"cds-nerf: {error}", file=sys.stderr)
    return 1
