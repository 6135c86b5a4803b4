"""The pictures of where an edit may act are painted over with any program: what it saves is read as it was meant."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cds_nerf.errors import UserError
from cds_nerf.nerf.region import Region, RegionConfig
from cds_nerf.nerf.view_store import ViewStore

PAINTED = np.zeros((16, 24), dtype=np.uint8)
PAINTED[:, :9] = 255


@pytest.fixture
def region(tmp_path: Path) -> Region:
    """Anywhere, in a view of 24x16 pixels."""
    store = ViewStore(
        tmp_path,
        render_view=lambda index: torch.full((3, 16, 24), 0.5),
        render_frame=lambda index: torch.zeros(3, 16, 24),
        encode=lambda images: torch.zeros(1, 4, 4, 6),
        views_in_memory=1,
    )
    camera = Cameras(torch.eye(4)[None, :3], fx=20.0, fy=20.0, cx=12.0, cy=8.0, width=24, height=16)
    return Region(
        RegionConfig(kind="none"),
        store,
        [camera],
        order=[0],
        latent_pixels=4,
        nearest=0.1,
        distance=lambda camera: None,
        measure=lambda latents, kind, index: torch.ones(1, 1, 4, 6),
        masks=None,
        names=[Path("0.png")],
    )


def saved_by_a_program(kind: str) -> Image.Image:
    grey = Image.fromarray(PAINTED)
    if kind == "16 bits":
        return Image.fromarray(PAINTED.astype(np.uint16) * 257)
    if kind == "ones":
        return Image.fromarray(PAINTED // 255)
    if kind == "its black erased":
        return Image.merge("LA", (grey, grey))
    return grey.convert(kind)


@pytest.mark.parametrize("kind", ["1", "L", "LA", "P", "RGB", "RGBA", "16 bits", "ones", "its black erased"])
def test_a_painted_picture_acts_whatever_the_program_saved(region: Region, tmp_path: Path, kind: str) -> None:
    assert region.of_view(0, step=0).min() == 1
    info = PngInfo()
    info.add_text("Comment", "x" * 2_000_000, zip=True)  # more than Pillow takes
    saved_by_a_program(kind).save(tmp_path / "relevance" / "00000.png", pnginfo=info)
    assert torch.equal(region.of_view(0, step=0), torch.from_numpy(PAINTED / 255).float()[None])


def test_a_painted_picture_of_another_size_is_told_with_both_sizes(region: Region, tmp_path: Path) -> None:
    region.of_view(0, step=0)
    Image.new("RGB", (48, 32)).save(tmp_path / "relevance" / "00000.png")
    with pytest.raises(UserError, match=r"relevance/00000\.png is 48x32 pixels; it must be 24x16"):
        region.of_view(0, step=0)
