"""Where an edit is written: a name of its own, unless it is there already."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from cds_nerf.errors import UserError
from cds_nerf.image.record import EditRecord
from cds_nerf.image_files import is_image_name

ENDINGS = {
    "image": ".png",
    "pair": ".pair.png",
    "strip": ".strip.png",
    "plot": ".losses.png",
    "latents": ".safetensors",
}
"""How the names of an edit's files end, by what they hold."""


@dataclass(frozen=True)
class Place:
    """The files of an edit."""

    output: Path
    """The edited image's."""
    files: dict[str, Path]
    """Those that are to be written, by what they hold; none where the edit is there already."""
    occupied: str | None = None
    """Why it has not the name that it would have had: which file has it, and what that is."""


def is_single_file(output: Path) -> bool:
    """Whether an output is the file of an edit, and not a folder.

    Raises:
        UserError: if it is, but of another format than PNG.
    """
    if not is_image_name(output) or output.is_dir():
        return False
    if output.suffix.lower() != ".png":
        raise UserError(f"output is {output}, but edits are written as PNG: call it {output.with_suffix('.png')}")
    return True


def place_in_folder(
    folder: Path, name: str, wanted: Collection[str], record: EditRecord, overwrite: bool = False
) -> Place:
    """Where an edit goes in a folder: `NAME.png`, or `NAME-2.png` and so on where something else has that name.

    An edit that is there keeps its name, and what is wanted of it and missing is to be written.

    Args:
        folder: which may not exist.
        name: the edit's, of its first choice.
        wanted: keys of `ENDINGS`.
        record: of the edit: what is there with the same record is this edit.
        overwrite: write the files of this edit that exist anew, interrupted ones as well; no other edit's.
    """
    endings = {ENDINGS[kind]: kind for kind in wanted}
    pattern = re.compile(f"{re.escape(name.casefold())}(?:-([0-9]+))?({'|'.join(map(re.escape, endings))})")
    taken: dict[int, dict[str, Path]] = {}
    for file in os.listdir(folder) if folder.is_dir() else ():
        if match := pattern.fullmatch(file.casefold()):  # where case does not count, it is the same name
            taken.setdefault(int(match[1] or 1), {})[endings[match[2]]] = folder / file
    others = {number: _other(taken[number].values(), record, overwrite) for number in sorted(taken)}
    same = next((number for number, other in others.items() if other is None), None)
    number = same or next(number for number in count(1) if number not in taken)
    stem = name if number == 1 else f"{name}-{number}"
    files = {kind: folder / f"{stem}{ENDINGS[kind]}" for kind in wanted} | (taken[number] if same else {})
    return Place(files["image"], _to_write(files, overwrite), None if same else others.get(1))


def place_at(output: Path, wanted: Collection[str], record: EditRecord, overwrite: bool = False) -> Place:
    """An edit's own file, with those beside it; the arguments are those of `place_in_folder`.

    Raises:
        UserError: if there is something else.
    """
    files = {kind: output if kind == "image" else output.with_suffix(ENDINGS[kind]) for kind in wanted}
    if other := _other([file for file in files.values() if file.exists()], record, overwrite):
        raise UserError(f"{other}: name another output")
    return Place(output, _to_write(files, overwrite))


def _other(files: Iterable[Path], record: EditRecord, interrupted_counts: bool) -> str | None:
    """What files are that are not all of an edit with this record, in words."""
    for file in sorted(files, key=lambda file: len(file.name)):  # the image first
        found = EditRecord.read(file)
        if found is None:
            return f"{file} was not made by this command"
        if difference := record.difference(found):
            return f"{file} is another edit, {difference}"
        if not (found.is_finished or interrupted_counts):
            done, steps = (found.settings.get(name) for name in ("steps_done", "steps"))
            return f"{file} was interrupted after {done} of {steps} steps"
    return None


def _to_write(files: dict[str, Path], overwrite: bool) -> dict[str, Path]:
    return {kind: file for kind, file in files.items() if overwrite or not file.exists()}
