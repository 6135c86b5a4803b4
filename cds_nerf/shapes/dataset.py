"""A scene as a capture that nerfstudio reads, and the ground truth of its edits: the same views of the edited scene."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cds_nerf.errors import UserError
from cds_nerf.files import whole_folder
from cds_nerf.progress import progress_bar
from cds_nerf.shapes.render import focal_length, look_at_pose, render, seen_points
from cds_nerf.shapes.scene import Detail, Scene, parse_caption, vary

ELEVATIONS = (math.radians(10), math.radians(50))
"""Of the cameras above the floor, from to, in radians."""
HELD_OUT_EVERY = 4
"""One view in so many is not trained on."""
LEAST_VIEWS, LEAST_SIZE = HELD_OUT_EVERY, 16
"""A capture has at least so many views, of so many pixels a side."""
POINTS = 4000
"""Rays of all views together that look for points of the surfaces."""
POINTS_FILE = "sparse_pc.ply"
"""Where a capture's points are, as ns-process-data calls it."""
SETTINGS_FILE = "scene.json"
"""Where a capture's settings are written down."""


@dataclass(frozen=True)
class Capture:
    """What fixes a capture: the same settings give the same files, byte for byte."""

    caption: str
    """What there is to see, in the words of `Scene.caption`."""
    views: int
    """How many cameras; a quarter of them is held out."""
    size: int
    """Side of the square images, in pixels."""
    seed: int
    """Of all that the caption does not say, and of the cameras."""
    detail: bool = False
    """Whether the object bears a pattern and stones lie on the floor, of which captions say nothing either."""

    @classmethod
    def of(cls, caption: str, views: int = 48, size: int = 64, seed: int = 0, detail: bool = False) -> Capture:
        """A capture, checked.

        Raises:
            UserError: if the caption is not of the world of shapes, or there are too few views or pixels.
        """
        for name, value, least in (("views", views, LEAST_VIEWS), ("size", size, LEAST_SIZE)):
            if value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")
        return cls(parse_caption(caption).caption, views, size, seed, detail)

    def scene(self) -> Scene:
        """The scene, with what its caption does not say drawn by the seed."""
        scene = vary(parse_caption(self.caption), random.Random(self.seed))
        return replace(scene, detail=Detail.draw(random.Random(f"{self.seed}/detail"))) if self.detail else scene

    def poses(self) -> Float[Tensor, "views 3 4"]:
        """Camera-to-world poses once around the scene in even steps; their elevations fill `ELEVATIONS` evenly."""
        draw = random.Random(f"{self.seed}/cameras")
        turn, rise = draw.random(), draw.random()
        low, high = ELEVATIONS
        golden = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, fill 0..1 evenly
        return torch.stack(
            [
                look_at_pose(
                    2 * math.pi * (index + turn) / self.views, low + (high - low) * ((rise + golden * index) % 1)
                )
                for index in range(self.views)
            ]
        )


def edit_name(target: str) -> str:
    """The folder name of an edit's ground truth, such as "a-blue-cube-on-a-wooden-floor".

    Raises:
        UserError: if the target is not a caption of the world of shapes.
    """
    return parse_caption(target).caption.removeprefix("a photo of ").replace(" ", "-")


def write_capture(capture: Capture, folder: Path) -> bool:
    """Write a capture: `transforms.json`, `images/`, the object's masks in `masks/`, and its settings in `scene.json`.

    `transforms.json` does not name the masks: nerfstudio would train on the object's pixels alone. It names a sparse
    coloured point cloud, from which splats begin, as that of a capture does whose poses were found in photographs.

    Args:
        capture: what to write.
        folder: is new, or empty, or has been written with the same settings.

    Returns:
        Whether it was written; False if it was there.

    Raises:
        UserError: if the folder holds anything else.
    """
    settings = asdict(capture)
    if folder.is_dir() and any(folder.iterdir()):
        _check_same(folder, settings)
        return False
    with whole_folder(folder) as partial:
        _write_views(capture, capture.scene(), partial, "Views")
        (partial / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf8")
    return True


def write_ground_truth(capture: Capture, target: str, folder: Path) -> bool:
    """Write the same views of the scene with the target's words: a capture of its own, in `edited/` of the capture's.

    Args:
        capture: of the scene as it is.
        target: caption of what it becomes.
        folder: of the capture, which has been written.

    Returns:
        Whether it was written; False if it was there.

    Raises:
        UserError: if the target is not a caption of the world of shapes.
    """
    edited = folder / "edited" / edit_name(target)
    if edited.exists():
        return False
    with whole_folder(edited) as partial:
        _write_views(capture, capture.scene().edited(parse_caption(target)), partial, "Ground truth")
    return True


def _check_same(folder: Path, settings: dict[str, object]) -> None:
    path = folder / SETTINGS_FILE
    try:
        written = json.loads(path.read_text("utf8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} exists and is no scene (it has no {SETTINGS_FILE}): choose another folder"
        ) from error
    for name, value in settings.items():
        if (there := written.get(name, getattr(Capture, name, None))) != value:
            raise UserError(f"{folder} holds a scene whose {name} is {there!r}, not {value!r}: choose another folder")


def _write_views(capture: Capture, scene: Scene, folder: Path, what: str) -> None:
    """All views of one scene as a nerfstudio dataset; one view at a time, so that memory does not grow with them."""
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    frames = []
    for index, pose in enumerate(progress_bar(capture.poses(), what, unit="view")):
        image, mask = render(scene, pose[None], capture.size)
        _save(image[0].permute(1, 2, 0), folder / "images" / f"{index:04d}.png")
        _save(mask[0, 0], folder / "masks" / f"{index:04d}.png")
        matrix = [*pose.tolist(), [0.0, 0.0, 0.0, 1.0]]
        frames.append({"file_path": f"images/{index:04d}.png", "transform_matrix": matrix})
    # From the middle of each four, so that no held-out view is at an end.
    held_out = [frame["file_path"] for frame in frames[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]]
    _write_points(capture, scene, folder / POINTS_FILE)
    focal = focal_length(capture.size)
    transforms = {
        "camera_model": "OPENCV",
        "fl_x": focal,
        "fl_y": focal,
        "cx": capture.size / 2,
        "cy": capture.size / 2,
        "w": capture.size,
        "h": capture.size,
        "train_filenames": [frame["file_path"] for frame in frames if frame["file_path"] not in held_out],
        "val_filenames": held_out,
        "test_filenames": held_out,
        "ply_file_path": POINTS_FILE,
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(transforms, indent=2) + "\n", "utf8")


def _write_points(capture: Capture, scene: Scene, path: Path) -> None:
    """Points of the surfaces, as PLY in text."""
    generator = torch.Generator().manual_seed(capture.seed)
    points, colors = seen_points(scene, capture.poses(), math.ceil(POINTS / capture.views), generator)
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"]
    header += [f"property uint8 {color}" for color in ("red", "green", "blue")]
    rows = zip(points.tolist(), (colors * 255).round().int().tolist(), strict=True)
    lines = [*header, "end_header", *(f"{x:.5f} {y:.5f} {z:.5f} {r} {g} {b}" for (x, y, z), (r, g, b) in rows)]
    path.write_text("\n".join(lines) + "\n", "utf8")


def _save(pixels: Tensor, path: Path) -> None:
    Image.fromarray((pixels * 255).round().byte().numpy()).save(path)
