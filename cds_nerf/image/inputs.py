"""Which image files are edited."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from glob import glob
from pathlib import Path

from cds_nerf.errors import UserError
from cds_nerf.image.places import ENDINGS
from cds_nerf.image.record import EditRecord
from cds_nerf.image_files import is_image_name


def find_images(arguments: Iterable[str], output: Path, remark: Callable[[str], object]) -> list[Path]:
    """The image files that files, folders and glob patterns stand for, each once, sorted within an argument.

    A file that is named itself is taken as it is, whether it exists or not. Of folders and patterns all is taken that
    is an image by its name, whether it can be read or not; but no hidden file and nothing that this command has
    written: in the output folder its edits, and anywhere the pictures beside them.

    Args:
        arguments: of the command line.
        output: the folder for the edits.
        remark: is called with what a folder has besides, in words.

    Raises:
        UserError: if an argument is empty, or a folder or pattern has no images, or there are no arguments.
    """
    found: list[Path] = []
    for argument in arguments:
        if not argument.strip():
            raise UserError("the name of an image is empty: is a variable not set?")
        path = Path(argument).expanduser()
        try:
            if path.is_dir():
                found += _images_among(argument, list(path.iterdir()), output, remark)
            elif any(letter in argument for letter in "*?[") and not path.exists():
                found += _images_among(argument, [Path(match) for match in glob(str(path), recursive=True)], output)
            else:
                found.append(path)
        except PermissionError as error:
            raise UserError(f"{argument} cannot be looked into: {error.strerror}") from error
        except OSError as error:  # a name that no file can have: a prompt in an image's place, most often
            raise UserError(f"there is no image {argument[:80]}...: {error.strerror}") from error
    if not found:
        raise UserError("there are no images to edit: name files, folders or glob patterns")
    return list(dict.fromkeys(found))


def _images_among(
    argument: str, paths: list[Path], output: Path, remark: Callable[[str], object] | None = None
) -> list[Path]:
    """The images among what a folder or pattern has.

    Raises:
        UserError: if there are none.
    """
    shown = sorted(path for path in paths if not path.name.startswith("."))
    folders = [path for path in shown if path.is_dir()]
    named = [path for path in shown if is_image_name(path) and (path.is_file() or path.is_symlink())]
    images = [path for path in named if not _is_ours(path, output)]
    inner = [folder for folder in folders if not (output.exists() and folder.samefile(output))]
    if images:
        if inner and remark is not None:
            everything = f'"{Path(argument) / "**" / "*"}"'
            remark(f"{argument} has folders in it, such as {inner[0].name}, which are left out: {everything} takes all")
        return images
    besides = {
        "folders": len(inner),
        "files that are no images by their names": len(shown) - len(folders) - len(named),
        "edits of this command, which another --output edits": len(named),
    }
    told = ", ".join(f"{number} {what}" for what, number in besides.items() if number)
    raise UserError(f"{argument} has no images{f', only {told}' if told else ''}")


def _is_ours(path: Path, output: Path) -> bool:
    """Whether this command has written a file that is not to be edited."""
    if path.suffix.lower() != ".png" or EditRecord.read(path) is None:
        return False
    beside = [ending for ending in ENDINGS.values() if ending.count(".") > 1]
    return path.name.endswith(tuple(beside)) or (output.exists() and path.parent.samefile(output))
