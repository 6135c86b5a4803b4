"""Captures as people have them after they trained: photographs and masks gone, lists for some of the splits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import viser
from nerfstudio.data.dataparsers.colmap_dataparser import ColmapDataParserConfig
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.render import DatasetRender
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image
from small_edit import VIEWS, fresh, load_checkpoint, run, train_source, train_splat_source, write_capture

from cds_nerf.errors import UserAdvice, UserError
from cds_nerf.nerf.datamanager import CDSDataManagerConfig, downscale_factor
from cds_nerf.nerf.held_out import render_held_out
from cds_nerf.nerf.method import cds_source


def rewrite_transforms(capture: Path, change) -> None:
    path = capture / "transforms.json"
    transforms = json.loads(path.read_text())
    change(transforms)
    path.write_text(json.dumps(transforms))


def list_views(**splits: slice):
    """Makes transforms.json name the views of the splits."""

    def change(transforms: dict) -> None:
        names = [frame["file_path"] for frame in transforms["frames"]]
        transforms |= {f"{split}_filenames": names[which] for split, which in splits.items()}

    return change


@pytest.fixture
def own_capture(tmp_path) -> Path:
    capture = write_capture(tmp_path / "scene", masks=True)
    rewrite_transforms(capture, list_views(train=slice(2, None), val=slice(2), test=slice(2)))
    return capture


@pytest.fixture
def edit_of(edit_config, tmp_path):
    """The folder of an edit of a field that was trained on a capture."""

    def edit(capture: Path, before_edit=lambda: None, **typed) -> Path:
        source = train_source(fresh(cds_source.config), capture, tmp_path / "source")
        before_edit()
        config = edit_config(load_dir=source, **typed)
        run(config)
        return config.get_base_dir()

    return edit


def evaluate(folder: Path) -> dict:
    output = folder / "metrics.json"
    ComputePSNR(load_config=folder / "config.yml", output_path=output).main()
    return json.loads(output.read_text())["results"]


def render(folder: Path, split: str = "test") -> list[Path]:
    """What `ns-render dataset` writes: the field's views and the photographs."""
    output = folder / "renders" / split
    DatasetRender(
        load_config=folder / "config.yml",
        output_path=output,
        split=split,
        rendered_output_names=["rgb", "gt-rgb"],
        image_format="png",
    ).main()
    return sorted(output.rglob("*.png"))


@pytest.mark.parametrize(
    "lists",
    [
        {"train": slice(2, None), "val": slice(2)},
        {"train": slice(2, None), "val": slice(2), "test": slice(0)},
        {"train": slice(2, None), "test": slice(2)},
    ],
)
def test_validation_and_test_views_stand_for_each_other(edit_of, own_capture, lists):
    rewrite_transforms(
        own_capture, lambda transforms: transforms.pop("val_filenames") and transforms.pop("test_filenames")
    )
    rewrite_transforms(own_capture, list_views(**lists))
    folder = edit_of(own_capture)
    assert len(list((folder / "edited_views").iterdir())) == VIEWS - 2
    assert evaluate(folder)["psnr"] > 0
    assert len(render(folder)) == len(render(folder, "val")) == 4
    render_held_out(folder, folder / "held_out")
    assert sorted(path.name for path in (folder / "held_out").iterdir()) == ["000.png", "001.png"]


def test_lists_of_both_are_kept_apart(own_capture):
    rewrite_transforms(own_capture, list_views(train=slice(3, None), val=slice(2), test=slice(2, 3)))
    for mode, views in (("val", 2), ("inference", 1)):
        assert len(CDSDataManagerConfig(data=own_capture).setup(test_mode=mode).eval_dataset) == views


@pytest.fixture
def lose_photographs(own_capture):
    """Moves photographs and masks away, to be put back."""

    def lose() -> None:
        for name in ("images", "mask.png"):
            (own_capture / name).rename(own_capture / f"away {name}")

    return lose


def test_edit_needs_neither_photographs_nor_masks(edit_of, own_capture, lose_photographs, capsys):
    with pytest.warns(UserAdvice, match=r"masks 1 are not there, such as .*mask\.png: the edit acts without them"):
        folder = edit_of(own_capture, before_edit=lose_photographs)
    assert len(list((folder / "edited_views").iterdir())) == VIEWS - 2
    render_held_out(folder, folder / "held_out")
    pictures = render(folder)
    assert len(pictures) == 4
    assert all((np.asarray(Image.open(path)) == 128).all() for path in pictures if "gt-rgb" in path.parts)
    assert "Grey stands for photographs that cannot be read" in " ".join(capsys.readouterr().out.split())
    _, pipeline, _, _ = eval_setup(folder / "config.yml")  # as ns-export does, which has no use for their colours
    rays, _ = pipeline.datamanager.next_train(0)
    assert len(rays) > 0


def test_edit_of_splats_needs_no_photographs_either(edit_config, tmp_path):
    capture = write_capture(tmp_path / "scene")
    rewrite_transforms(capture, list_views(train=slice(2, None), val=slice(2)))
    source = train_splat_source(capture, tmp_path / "source")
    (capture / "images").rename(capture / "away")
    config = edit_config(load_dir=source)
    run(config)
    folder = config.get_base_dir()
    assert len(list((folder / "edited_views").iterdir())) == VIEWS - 2
    assert len(render(folder)) == 4
    with pytest.raises(UserError, match=r"2 files, of which 2 are not there: put them back"):
        evaluate(folder)
    render_held_out(source, folder / "held_out")
    assert len(list((folder / "held_out").iterdir())) == 2


def test_metrics_say_what_is_not_there(edit_of, own_capture, lose_photographs):
    folder = edit_of(own_capture, before_edit=lose_photographs)
    with pytest.raises(UserError, match=r"of which \d+ are not there: put them back, such as .*images/\d+\.png"):
        evaluate(folder)
    (own_capture / "away images").rename(own_capture / "images")
    with pytest.raises(UserError, match=r"such as .*mask\.png"):
        evaluate(folder)
    (own_capture / "away mask.png").rename(own_capture / "mask.png")
    assert evaluate(folder)["psnr"] > 0
    photographs = sorted((own_capture / "images").iterdir())
    for photograph in photographs:
        photograph.write_bytes(b"no picture")
    with pytest.raises(UserError, match="an evaluation photograph cannot be read"):
        evaluate(folder)


def test_viewer_shows_the_field_and_opens_no_photograph(edit_of, own_capture, monkeypatch):
    shown = {}

    class Frustum:
        def on_click(self, *_) -> None:
            pass

    def add_camera_frustum(_, name, image, **__) -> Frustum:
        shown[name] = image
        return Frustum()

    monkeypatch.setattr(viser.SceneApi, "add_camera_frustum", add_camera_frustum)

    def spoil() -> None:
        for photograph in (own_capture / "images").iterdir():
            photograph.write_bytes(b"no picture")

    folder = edit_of(
        own_capture,
        before_edit=spoil,
        vis="viewer+tensorboard",
        viewer__quit_on_train_completion=True,
        viewer__websocket_port=7217,
    )
    assert len(shown) == VIEWS - 2
    view = np.asarray(Image.open(folder / "source" / "views" / "00000.png").resize((8, 8)), dtype=float)
    seen = np.asarray(Image.fromarray(shown["/cameras/camera_00000"]).resize((8, 8)), dtype=float)
    assert np.abs(view - seen).max() < 8


def test_source_is_seen_at_the_size_it_was_trained_with(tmp_path):
    capture = write_capture(tmp_path / "scene")
    rewrite_transforms(capture, lambda transforms: [frame.update(w=4000, h=2400) for frame in transforms["frames"]])
    assert downscale_factor(capture) == 1
    shutil.copytree(capture / "images", capture / "images_2")
    assert downscale_factor(capture) == downscale_factor(capture / "transforms.json") == 2
    shutil.rmtree(capture / "images")
    datamanager = CDSDataManagerConfig(data=capture).setup(test_mode="val")
    assert datamanager.train_dataset.cameras.width[0] == 2000


def test_data_that_cannot_be_read_is_named(edit_config, own_capture, source_run, tmp_path):
    for text in ("", "[]", "{}", '{"frames": []}'):
        (own_capture / "transforms.json").write_text(text)
        with pytest.raises(UserError, match=r"Nerfstudio\w* cannot read the data .*give the --data"):
            run(edit_config(data=own_capture))


def test_edit_starts_the_same_with_or_without_photographs(edit_config, source_run, capture, tmp_path):
    bare = Path(shutil.copytree(capture, tmp_path / "scene", ignore=shutil.ignore_patterns("images")))
    states = []
    for data in (capture, bare):
        config = edit_config(load_dir=source_run, data=data, timestamp=data.parent.name)
        run(config)
        states.append(load_checkpoint(config.get_base_dir())["pipeline"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_metrics_without_held_out_views_say_so(edit_config):
    config = edit_config()
    run(config)
    with pytest.raises(UserError, match="has no evaluation photographs"):
        evaluate(config.get_base_dir())


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("listed", ["val", "validation", "test"])
def test_lists_of_colmap_captures_stand_for_each_other(tmp_path, split, listed):
    (tmp_path / "train_list.txt").write_text("a.png\n")
    (tmp_path / f"{listed}_list.txt").write_text("b.png\n")
    parser = ColmapDataParserConfig(data=tmp_path).setup()
    assert list(parser._get_image_indices([tmp_path / "images" / name for name in ("a.png", "b.png")], split)) == [1]
