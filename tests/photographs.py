"""A capture as a camera makes it: upright JPEG photographs through a lens, here of the world of shapes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from cds_nerf.shapes.dataset import Capture
from cds_nerf.shapes.render import focal_length, render

WIDTH, HEIGHT = 72, 128
LENS = {"k1": 0.01, "k2": -0.005, "p1": 0.0005, "p2": -0.0002}
"""Weak enough to be true of pictures that are rendered without it, within a tenth of a pixel."""


def write_photographs(folder: Path, views: int = 30) -> Path:
    """Write them with their `transforms.json`, which names no splits."""
    (folder / "images").mkdir(parents=True)
    capture = Capture.of("a red cube on a wooden floor", views=views, size=HEIGHT)
    left = 26  # of the strip that is cut from the square pictures, not quite in their middle
    frames = []
    for index, pose in enumerate(capture.poses()):
        image, _ = render(capture.scene(), pose[None], HEIGHT)
        pixels = (image[0, :, :, left : left + WIDTH].permute(1, 2, 0) * 255).round().byte()
        Image.fromarray(pixels.numpy()).save(folder / "images" / f"{index + 1:04d}.jpg", quality=95)
        matrix = torch.cat([pose, torch.tensor([[0.0, 0.0, 0.0, 1.0]])]).tolist()
        frames.append({"file_path": f"images/{index + 1:04d}.jpg", "transform_matrix": matrix})
    focal = focal_length(HEIGHT)
    intrinsics = {"fl_x": focal, "fl_y": focal, "cx": HEIGHT / 2 - left, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
    (folder / "transforms.json").write_text(json.dumps(intrinsics | LENS | {"frames": frames}))
    return folder
