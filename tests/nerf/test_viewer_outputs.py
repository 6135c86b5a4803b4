"""What the viewer's output choice offers of an edit: made when it is chosen, and not before."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.viewer.render_state_machine import RenderStateMachine
from nerfstudio.viewer.utils import CameraState
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from small_edit import edit_config_for, load_checkpoint, run
from test_edit import assert_equal_states

from cds_nerf.errors import UserError
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.trainer import CDSTrainer

ASPECT = 1.5
OWN = {"relevance", "difference", "source"}


class Browser:
    """A client of the viewer, in place of a browser: what is sent to it, it keeps."""

    def __init__(self, trainer: CDSTrainer) -> None:
        self.trainer, self.viewer = trainer, trainer.viewer_state
        self.pictures: list[np.ndarray] = []
        scene = SimpleNamespace(set_background_image=lambda picture, **_: self.pictures.append(picture))
        client = SimpleNamespace(camera=SimpleNamespace(aspect=ASPECT), scene=scene)
        self.machine = RenderStateMachine(self.viewer, VISER_NERFSTUDIO_SCALE_RATIO, client)
        self.pose = trainer.pipeline.datamanager.train_dataset.cameras[0].camera_to_worlds

    def see(self, chosen: str = "rgb", split: str | None = None, max_res: int = 64) -> dict[str, torch.Tensor]:
        """What is rendered where that is chosen, and sent."""
        panel = self.viewer.control_panel
        panel._max_res.value = max_res
        panel._split.value = split is not None
        for choice, name in ((panel._output_render, chosen), (panel._split_output_render, split or chosen)):
            if name not in choice.gui_handle.options:
                choice.set_options([name])
            choice.value = name
        self.viewer._output_type_change(None)
        self.viewer._output_split_type_change(None)
        self.machine.state = "high"
        state = CameraState(fov=0.8, aspect=ASPECT, c2w=self.pose, camera_type=CameraType.PERSPECTIVE)
        outputs = self.machine._render_img(state)
        self.machine._send_output_to_viewer(outputs)
        return outputs


def watched_edit(source: Any, diffusion: Any, output: Any, **typed: Any) -> CDSTrainer:
    typed = {"vis": "viewer", "viewer__quit_on_train_completion": True, "max_num_iterations": 2} | typed
    return run(edit_config_for(source, diffusion, output, **typed))


@pytest.fixture(scope="module", params=["rays", "splats"])
def browser(request, source_run, diffusion_folder, tmp_path_factory) -> Iterator[Browser]:
    source = source_run if request.param == "rays" else request.getfixturevalue("splat_run")
    trainer = watched_edit(source, diffusion_folder, tmp_path_factory.mktemp("watched"))
    yield Browser(trainer)
    trainer.viewer_state.viser_server.stop()


def test_source_and_difference_are_of_the_same_camera(browser, source_run):
    outputs = browser.see("difference", split="source")
    edit, source = outputs["rgb"], outputs["source"]
    assert edit.shape == source.shape and not torch.equal(edit, source)
    torch.testing.assert_close(outputs["difference"], (edit - source).abs().mean(dim=-1, keepdim=True))
    with browser.trainer.pipeline.source_weights():
        torch.testing.assert_close(browser.see("rgb")["rgb"], source)
    assert torch.equal(browser.see("rgb")["rgb"], edit)


def test_viewer_sends_each_of_them_and_two_on_a_split_screen(browser):
    names = {"rgb", "source", "difference", "relevance"}
    pictures = {}
    for name in sorted(names):
        outputs = browser.see(name)
        assert names <= outputs.keys()
        pictures[name] = browser.pictures[-1]
    assert {tuple(picture.shape) for picture in pictures.values()} == {(42, 64, 3)}
    browser.see("rgb", split="source")
    half = pictures["rgb"].shape[1] // 2
    assert np.array_equal(browser.pictures[-1][:, :half], pictures["rgb"][:, :half])
    assert np.array_equal(browser.pictures[-1][:, half + 1 :], pictures["source"][:, half + 1 :])


def test_relevance_is_the_regions_of_that_camera(browser):
    relevance = browser.see("relevance")["relevance"]
    assert relevance.shape == (42, 64, 1) and 0 <= relevance.min() <= relevance.max() <= 1


def test_source_is_not_rendered_where_it_is_not_chosen(browser, monkeypatch):
    model, rendered = browser.trainer.pipeline.unedited.model, []
    render = type(model).get_outputs_for_camera

    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        rendered.append(self)
        return render(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "get_outputs_for_camera", note)
    browser.see("rgb")
    assert model not in rendered
    browser.see("rgb", split="source")
    assert rendered.count(model) == 1


@pytest.mark.parametrize(
    "error", [UserError("the checkpoint is not there"), torch.cuda.OutOfMemoryError("CUDA out of memory\nTried 1 GiB")]
)
def test_source_that_cannot_be_had_is_told_in_the_panel(browser, monkeypatch, error):
    def cannot(self: CDSPipeline) -> None:
        raise error

    monkeypatch.setattr(CDSPipeline, "unedited", property(cannot))
    outputs = browser.see("source")
    assert torch.equal(outputs["source"], outputs["rgb"])
    assert browser.trainer.pipeline.live_edit.field_message.text == f"**Not shown:** {str(error).splitlines()[0]}"


def test_crop_and_background_are_the_same_in_the_source(browser):
    panel = browser.viewer.control_panel
    panel._crop_viewport.value, panel.background_color = True, (255, 0, 0)
    panel._crop_center.value = (100.0, 100.0, 100.0)  # where there is nothing
    try:
        outputs = browser.see("source")
        assert torch.equal(outputs["source"], outputs["rgb"])
        assert outputs["rgb"].reshape(-1, 3).float().std(dim=0).max() < 1e-3
    finally:
        panel._crop_viewport.value, panel.background_color = False, (38, 42, 55)


def test_relevance_is_offered_only_where_a_region_can_give_it(source_run, diffusion_folder, tmp_path):
    trainer = watched_edit(source_run, diffusion_folder, tmp_path, pipeline__w_keep=0.0, max_num_iterations=1)
    outputs = Browser(trainer).see("rgb")
    assert OWN - outputs.keys() == {"relevance"}
    trainer.viewer_state.viser_server.stop()


def test_regions_are_to_be_seen_before_the_first_step(edit_config):
    config = edit_config(vis="viewer", pipeline__region__kind="box")
    config.pipeline.region.box_scale = (0.3, 0.3, 0.3)
    config.set_timestamp()
    config.save_config()
    trainer = config.setup()
    trainer.setup()
    relevance = Browser(trainer).see("relevance")["relevance"]
    assert relevance.unique().tolist() == [0, 1]
    trainer.viewer_state.viser_server.stop()


@pytest.mark.parametrize("kind", ["rays", "splats"])
def test_watched_edit_equals_one_that_nobody_watches(
    kind, source_run, splat_run, diffusion_folder, tmp_path, monkeypatch
):
    source = source_run if kind == "rays" else splat_run
    alone = watched_edit(source, diffusion_folder, tmp_path, timestamp="alone", vis="tensorboard")
    setup, train_iteration, browsers, seen = CDSTrainer.setup, CDSTrainer.train_iteration, [], []

    def setup_and_watch(trainer: CDSTrainer) -> None:
        setup(trainer)
        browsers.append(Browser(trainer))
        trainer.viewer_state.control_panel.background_color = (255, 0, 255)

    def step_after_a_look(trainer: CDSTrainer, step: int) -> Any:
        trainer.train_lock.release()
        seen.append(browsers[0].see("difference", split="relevance"))
        trainer.train_lock.acquire()
        return train_iteration(trainer, step)

    monkeypatch.setattr(CDSTrainer, "setup", setup_and_watch)
    monkeypatch.setattr(CDSTrainer, "train_iteration", step_after_a_look)
    trainer = watched_edit(source, diffusion_folder, tmp_path, timestamp="watched")
    trainer.viewer_state.viser_server.stop()
    assert len(seen) == 2
    assert_equal_states(load_checkpoint(trainer.base_dir), load_checkpoint(alone.base_dir))
