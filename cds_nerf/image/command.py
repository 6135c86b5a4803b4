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
from cds_nerf.errors import UserError, in_one_line
from cds_nerf.image.inputs import find_images
from cds_nerf.image.naming import edit_name
from cds_nerf.image.places import Place, is_single_file, place_at, place_in_folder
from cds_nerf.image.record import EditRecord
from cds_nerf.image.settings import ImageEditSettings
from cds_nerf.image.source_image import SourceImage
from cds_nerf.pictures import read_mask

if TYPE_CHECKING:
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
    """PNG, JPEG, WebP, AVIF, TIFF and other files, folders of them, or quoted glob patterns. Transparency is composited
    over white."""
    source_prompt: str
    """What the images show."""
    target_prompt: tuple[str, ...]
    """What they are to show; each prompt gives an edit of its own."""
    output: Path = Path("edited")
    """Folder for the edits, or the PNG file of a single one."""
    overwrite: bool = False
    """Make edits anew that are there already: of the same image, mask, prompts and settings. Nothing else is replaced,
    ever: another edit of the same name gets a number."""
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
        output = self.output.expanduser()
        folder = output.parent if is_single_file(output) else output
        images = find_images(self.images, folder, _tell)
        if is_single_file(output) and len(images) * len(prompts) != 1:
            raise UserError(
                f"output is the file {output}, but there are {len(images) * len(prompts)} edits: name a folder"
            )
        mask = None if self.settings.mask is None else read_mask(self.settings.mask)
        _check_writable(folder)

        diffusion: LatentDiffusion | None = None
        is_suited = False
        status = 0
        for path in images:
            try:
                source = SourceImage.read(path, mask, self.settings)
            except Exception as error:  # of whatever kind: the other images are edited
                status = _failed(path, error)
                continue
            if not is_suited:
                self._suit_to_model()
                is_suited = True
            try:
                wanted = [prompt for prompt in prompts if not self._is_kept(source, prompt)]
            except Exception as error:
                status = _failed(path, error)
                continue
            if wanted and diffusion is None:
                diffusion = self._load()
                for prompt in prompts:
                    diffusion.check_prompts(self.source_prompt, prompt)
            for prompt in wanted:
                assert diffusion is not None
                try:
                    interrupted = self._edit(source, prompt, diffusion)
                except Exception as error:
                    status = _failed(path, error)
                    continue
                if interrupted:
                    return INTERRUPTED
        return status

    def _place(self, source: SourceImage, prompt: str) -> Place:
        """Where an edit goes.

        Raises:
            UserError: if its file is another's.
        """
        record = EditRecord.of(source, self.source_prompt, prompt, self.settings)
        wanted = ["image", *(kind for kind in ("pair", "strip", "plot", "latents") if getattr(self, kind))]
        output = self.output.expanduser()
        if is_single_file(output):
            return place_at(output, wanted, record, self.overwrite)
        return place_in_folder(output, edit_name(source.path, prompt), wanted, record, self.overwrite)

    def _is_kept(self, source: SourceImage, prompt: str) -> bool:
        """Whether an edit is there already, which is told, as is a name that it cannot have."""
        place = self._place(source, prompt)
        if place.occupied:
            print(f"{place.occupied}: the edit of {source.path} becomes {place.output}")
        if not place.files:
            _tell(f"kept {place.output}, which is this edit of {source.path}: --overwrite makes it anew")
        return not place.files

    def _edit(self, source: SourceImage, prompt: str, diffusion: LatentDiffusion) -> bool:
        """Make an edit and write what is wanted of it.

        Returns:
            Whether it was interrupted.
        """
        from cds_nerf.image.edit_file import edit_file

        edited = edit_file(source, self.source_prompt, prompt, self.settings, diffusion, with_way=self.strip)
        record = EditRecord.of(source, self.source_prompt, prompt, self.settings)
        files = self._place(source, prompt).files  # anew: another process may have taken the name
        edited.write(files, record.after(edited.edit.steps))
        for file in [files["image"]] if "image" in files else files.values():
            print(f"wrote {file}")
        return edited.edit.interrupted

    def _suit_to_model(self) -> None:
        """Take the settings that the model carries where nothing was typed, and say so."""
        if self.typed is None:
            return
        typed = {path.removeprefix("settings.") for path in self.typed}
        self.settings, taken = self.settings.suited_to(self.settings.diffusion.settings(), typed)
        told = [path.removeprefix("guidance.") for path in typed if path.startswith("guidance.")]
        self.settings.guidance.check_told(told)
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


def _tell(line: str) -> None:
    print(f"cds-nerf: {line}", file=sys.stderr)


def _failed(path: Path, error: Exception) -> int:
    """Tell what is wrong with one image; the exit status that follows from it."""
    line = in_one_line(error)
    _tell(line if str(path) in line else f"{path}: {line}")
    return 1
