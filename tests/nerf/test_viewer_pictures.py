"""The losses' curves, the gradient and the strip: in the viewer while somebody watches, and in the run folder."""

from __future__ import annotations

import base64
import json
import re
import time
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_edit import run
from test_edit import interrupt_at
from torchvision.transforms.functional import pil_to_tensor

from cds_nerf.errors import Interrupted, UserError
from cds_nerf.nerf.gradient_picture import PulledView
from cds_nerf.nerf.loss_curves import FOOT, HEIGHT, draw_curves
from cds_nerf.nerf.loss_record import RECORD, LossRecord
from cds_nerf.nerf.viewer_pictures import Picture


def test_losses_are_taken_without_waiting_for_the_device(tmp_path):
    record = LossRecord(tmp_path / RECORD, start=0)
    record.add(0, {"dds_loss": torch.zeros((), device="meta")})  # from which nothing can be read


def test_losses_have_gaps_where_a_step_had_none(tmp_path):
    record = LossRecord(tmp_path / RECORD, start=0)
    record.add(0, {"dds_loss": torch.tensor(1.0, requires_grad=True)})
    record.add(1, {})  # it was left out
    record.add(2, {"dds_loss": torch.tensor(2.0), "keep_loss": torch.tensor(0.5)})
    assert record.values() == {"dds_loss": [1, None, 2], "keep_loss": [None, None, 0.5]}
    record.save()
    resumed = LossRecord(tmp_path / RECORD, start=2)
    resumed.add(2, {"keep_loss": torch.tensor(0.25)})
    assert resumed.values() == {"dds_loss": [1, None], "keep_loss": [None, None, 0.25]}


@pytest.mark.parametrize("text", ["{", "[1]", '{"dds_loss": 1}', '{"dds_loss": ["x"]}'])
def test_record_that_cannot_be_read_is_told_and_left(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match="cannot be read: bring it back, or move it away, and the curves"):
        LossRecord(tmp_path / RECORD, start=3)
    assert (tmp_path / RECORD).read_text() == text


def test_curve_rises_as_the_loss_does_and_has_its_gap():
    values = [None if 40 <= step < 60 else float(step) for step in range(100)]
    picture = np.asarray(draw_curves({"dds_loss": values, "keep_loss": [1.0]})).astype(int)
    assert picture.shape[0] == 2 * HEIGHT + FOOT
    curve = picture[:HEIGHT, :, 2] - picture[:HEIGHT, :, 0] > 60  # it is blue
    columns = np.flatnonzero(curve.any(axis=0))
    heights = [np.flatnonzero(curve[:, column]).mean() for column in columns]
    assert np.all(np.diff(heights) <= 0.5) and heights[0] - heights[-1] > HEIGHT / 2
    gap = np.diff(columns).max()
    assert gap == pytest.approx(20 / 99 * (columns[-1] - columns[0]), abs=6)


def test_gradient_is_the_root_mean_square_over_draws_and_channels():
    gradient = torch.zeros(2, 4, 2, 2)
    gradient[0, 1, 0, 1], gradient[:, :, 1, 0] = 3.0, 2.0  # 1.06 and 2
    picture = PulledView(torch.full((3, 8, 8), 0.5), gradient).picture()
    assert picture.shape == (3, 8, 16) and torch.equal(picture[:, :, :8], torch.full((3, 8, 8), 0.5))
    first, second, third, nothing = (picture[:, y, 8 + x] for y, x in ((7, 0), (0, 7), (7, 7), (0, 0)))
    assert torch.equal(third, nothing) and len({tuple(color.tolist()) for color in (first, second, nothing)}) == 3


def test_run_folder_has_what_the_viewer_shows(edit_config):
    config = edit_config(pipeline__steps_per_strip=2)
    run(config)
    folder = config.get_base_dir()
    assert sorted(path.name for path in (folder / "gradients").iterdir()) == ["000000.png", "000002.png"]
    size = Image.open(folder / "source" / "views" / "00000.png").size
    assert Image.open(folder / "gradients" / "000002.png").size == (2 * size[0], size[1])
    losses = json.loads((folder / RECORD).read_text())
    assert {"dds_loss", "cut_loss", "keep_loss"} <= losses.keys()
    assert {len(values) for values in losses.values()} == {3}
    assert Image.open(folder / "losses.png").height == HEIGHT * len(losses) + FOOT


def test_curves_of_a_resumed_edit_go_on(edit_config, monkeypatch):
    whole, broken = edit_config(timestamp="whole"), edit_config(timestamp="broken", steps_per_save=1)
    run(whole)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 2)
        run(broken)
    run(edit_config(pipeline__resume_from=broken.get_base_dir()))
    for name in (RECORD, "losses.png"):
        assert (whole.get_base_dir() / name).read_bytes() == (broken.get_base_dir() / name).read_bytes()


@pytest.mark.parametrize("watched", [True, False])
def test_viewer_has_pictures_while_somebody_watches_at_most_twice_a_second(edit_config, monkeypatch, recwarn, watched):
    shown: dict[str, list[float]] = {}
    show = Picture.show

    def note(self: Picture, picture: Image.Image) -> None:
        shown.setdefault(self.name, []).append(time.monotonic())
        show(self, picture)

    monkeypatch.setattr(Picture, "show", note)
    config = edit_config(vis="viewer", viewer__quit_on_train_completion=True, max_num_iterations=30 if watched else 3)
    config.set_timestamp()
    config.save_config()
    trainer = config.setup()
    trainer.setup()
    monkeypatch.setattr(trainer.viewer_state.viser_server, "get_clients", lambda: {0: None} if watched else {})
    trainer.train()
    trainer.viewer_state.viser_server.stop()
    assert not [str(warning.message) for warning in recwarn if "image" in str(warning.message)]
    strips = shown.pop("Source, edit and gradient of the first view")
    assert len(strips) == 2
    if not watched:
        assert not shown
        return
    assert set(shown) == {"Losses", "The last view, and where the guidance pulls at it"}
    for times in shown.values():
        assert len(times) > 1 and np.diff(times).min() > 0.45
    text = trainer.pipeline.live_edit.picture_1_losses._markdown.content
    picture = Image.open(BytesIO(base64.b64decode(re.search(r"base64,([^)]*)\)", text)[1])))
    assert pil_to_tensor(picture).float().std() > 0


def test_picture_is_made_smaller_before_it_is_sent():
    sent: list[Any] = []

    class Text:
        content = property(fset=lambda self, text: sent.append(text))

    picture = Picture("A", width=100)
    picture._markdown = Text()
    picture.show(Image.new("RGB", (400, 200)))
    data = re.fullmatch(r"\*\*A\*\*\n\n!\[A\]\(data:image/png;base64,(.*)\)", sent[0])[1]
    assert Image.open(BytesIO(base64.b64decode(data))).size == (100, 50)
