"""Edited pictures from files: two pictures, or two folders of pictures of the same names."""

from __future__ import annotations

from pathlib import Path

from torchvision.transforms.functional import to_tensor

from cds_nerf.errors import UserError
from cds_nerf.evaluation.edit_metrics import EditedViews
from cds_nerf.image_files import is_image_name
from cds_nerf.pictures import read_image, read_mask


def read_edited_pictures(
    before: Path,
    after: Path,
    mask: Path | None = None,
    source_prompt: str | None = None,
    target_prompt: str | None = None,
) -> EditedViews:
    """The pictures before and after an edit.

    Args:
        before: a picture, or a folder of them.
        after: likewise; in a folder, pictures are found by their names in `before`, whatever their endings.
        mask: where the edit may act: a picture for all of them, or a folder of one for each.
        source_prompt: describes the pictures before.
        target_prompt: describes what they should become.

    Raises:
        UserError: if there are none, one is missing in the other folder, or one cannot be read.
    """
    if before.is_dir() != after.is_dir():
        raise UserError(f"{before} and {after}: give two pictures or two folders")
    if before.is_dir():
        names = _by_stem(before)
        others = _by_stem(after)
        if not names:
            raise UserError(f"{before} has no pictures")
        if missing := [name for name in names if name not in others]:
            raise UserError(
                f"{after} lacks {missing[0]}, which {before} has ({len(missing)} of {len(names)} are missing): "
                "the pictures of both folders must have the same names"
            )
    else:
        names, others = {before.stem: before}, {before.stem: after}
    masks = None if mask is None else {name: mask for name in names}
    if mask is not None and mask.is_dir():
        masks = _by_stem(mask)
        if missing := [name for name in names if name not in masks]:
            raise UserError(f"the mask folder {mask} lacks {missing[0]}")
    pictures = {name: read_image(path) for name, path in names.items()}
    return EditedViews(
        name=after.name if after.is_dir() else after.stem,
        view_names=list(names),
        before=[to_tensor(picture) for picture in pictures.values()],
        after=[to_tensor(read_image(others[name])) for name in names],
        relevant=None
        if masks is None
        else [
            to_tensor(read_mask(masks[name], size=picture.size, image=names[name])) > 0.5
            for name, picture in pictures.items()
        ],
        source_prompt=source_prompt,
        target_prompt=target_prompt,
    )


def _by_stem(folder: Path) -> dict[str, Path]:
    paths = sorted(path for path in folder.iterdir() if is_image_name(path))
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise UserError(f"{folder} has {found[path.stem].name} and {path.name}: they would be taken for one")
        found[path.stem] = path
    return found
