"""The source's views as they lie in a run's folder, where the relevance may be painted over with any program."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cds_nerf.errors import UserError
from cds_nerf.nerf.view_store import ViewStore

RELEVANCE = torch.zeros(1, 1, 4, 6)
RELEVANCE[..., 1:3, 2:5] = 1


@pytest.fixture
def store(tmp_path: Path) -> ViewStore:
    return ViewStore(
        tmp_path,
        render_view=lambda index: torch.full((3, 16, 24), 0.5),
        render_frame=lambda index: torch.zeros(3, 16, 24),
        encode=lambda images: torch.zeros(1, 4, 4, 6),
        measure_relevance=lambda latents, index: RELEVANCE,
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "ones", "erased"])
def test_painted_relevance_acts_whatever_the_program_saved(store: ViewStore, tmp_path: Path, mode: str) -> None:
    assert store.relevance(0).max() == 1
    painted = np.zeros((16, 24), dtype=np.uint8)
    painted[:, :9] = 255
    picture = Image.fromarray(painted)
    if mode == "I;16":
        picture = Image.fromarray(painted.astype(np.uint16) * 257)
    elif mode == "ones":
        picture = Image.fromarray(painted // 255)
    elif mode == "erased":  # its black
        picture = Image.merge("LA", (picture, picture))
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / "relevance" / "00000.png")
    relevance = store.relevance(0)
    assert relevance.shape == (1, 16, 24)
    assert torch.equal(relevance, torch.from_numpy(painted / 255).float()[None])


def test_relevance_of_another_size_is_told_with_both_sizes_and_both_names(store: ViewStore, tmp_path: Path) -> None:
    store.relevance(0)
    Image.new("RGB", (48, 32)).save(tmp_path / "relevance" / "00000.png")
    with pytest.raises(
        UserError, match=r"relevance/00000\.png is 48x32 pixels; it must be 24x16 as .*views/00000\.png"
    ):
        store.relevance(0)


def test_relevance_that_is_next_to_nothing_stays_so(store: ViewStore) -> None:
    faint = ViewStore(
        store.folder, store.render_view, store.render_frame, store.encode, lambda latents, index: RELEVANCE * 1.5 / 255
    )
    assert not faint.relevance(0).any()
