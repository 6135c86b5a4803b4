"""`ns-train splatfacto`, its evaluation and its renders where there is no CUDA."""

from __future__ import annotations

import struct
import sys

import pytest
import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models import splatfacto
from nerfstudio.models.splatfacto import SplatfactoModelConfig
from nerfstudio.utils.eval_utils import eval_setup
from small_edit import load_checkpoint

from cds_nerf.errors import UserError
from cds_nerf.fields.splat_rasterization import rasterization
from cds_nerf.nerf import compatibility

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="gsplat draws here")


def test_splatfacto_trains_and_densifies(splat_run):
    state = load_checkpoint(splat_run)["pipeline"]
    assert len(state["_model.gauss_params.means"]) != 150  # what it began with
    assert all(value.isfinite().all() for value in state.values())


def test_splatfacto_is_evaluated_and_rendered(splat_run):
    _, pipeline, _, _ = eval_setup(splat_run / "config.yml", test_mode="test")
    pipeline.eval()
    camera, batch = pipeline.datamanager.next_train(0)
    outputs = pipeline.model.get_outputs_for_camera(camera)
    assert outputs["rgb"].shape == batch["image"].shape
    assert outputs["depth"].shape == outputs["accumulation"].shape == (*batch["image"].shape[:2], 1)
    metrics, _ = pipeline.model.get_image_metrics_and_images(outputs, batch)
    assert 0 < metrics["psnr"] < 60


def test_photographs_are_kept_in_memory_that_nothing_pins(splat_run):
    def keep_on_cpu(config):
        config.pipeline.datamanager.cache_images = "cpu"
        return config

    _, pipeline, _, _ = eval_setup(splat_run / "config.yml", test_mode="val", update_config_callback=keep_on_cpu)
    _, batch = pipeline.datamanager.next_train(0)
    assert batch["image"].device.type == "cpu" and batch["image"].float().std() > 0


def test_splatfacto_starts_from_a_coloured_point_cloud():
    points, colors = torch.rand(20, 3), torch.randint(0, 255, (20, 3), dtype=torch.uint8)
    scene_box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    model = SplatfactoModelConfig().setup(scene_box=scene_box, num_train_data=1, seed_points=(points, colors))
    assert torch.equal(model.means, points)
    torch.testing.assert_close(model.colors, colors / 255)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_points_are_read_where_open3d_is_not(form, tmp_path, monkeypatch):
    """As open3d reads them, in the scene's coordinates."""
    monkeypatch.setitem(sys.modules, "open3d", None)
    places, colors = [(0.0, 1.0, 2.0), (0.5, -1.0, 4.0)], [(255, 0, 7), (1, 2, 3)]
    header = [f"format {form} 1.0", "element vertex 2", *(f"property float {axis}" for axis in "xyz")]
    header += [f"property uint8 {color}" for color in ("red", "green", "blue")]
    rows = [struct.pack("<fffBBB", *place, *color) for place, color in zip(places, colors, strict=True)]
    if form == "ascii":
        rows = [
            f"{' '.join(map(str, (*place, *color)))}\n".encode() for place, color in zip(places, colors, strict=True)
        ]
    path = tmp_path / "points.ply"
    path.write_bytes("\n".join(["ply", *header, "end_header", ""]).encode() + b"".join(rows))
    parser = NerfstudioDataParserConfig(data=tmp_path).setup()
    transform = torch.tensor([[0.0, -1, 0, 3], [1, 0, 0, 0], [0, 0, 1, 0]])
    found = parser._load_3D_points(path, transform, 0.5)
    assert found["points3D_xyz"].tolist() == [[1.0, 0.0, 1.0], [2.0, 0.25, 2.0]]
    assert found["points3D_rgb"].tolist() == [list(color) for color in colors]
    with pytest.raises(UserError, match=r"the points .*none\.ply are not there, which transforms\.json names"):
        parser._load_3D_points(tmp_path / "none.ply", transform, 1.0)


def test_cuda_still_means_cuda_elsewhere(splat_run):
    eval_setup(splat_run / "config.yml", test_mode="inference")
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1).cuda()


def test_with_cuda_splatfacto_is_left_alone(monkeypatch):
    """gsplat's own rasterization stays where gsplat can draw."""
    monkeypatch.setattr(splatfacto, "rasterization", splatfacto.rasterization)  # put back at the end
    theirs = object()
    splatfacto.rasterization = theirs
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    compatibility.apply()
    assert splatfacto.rasterization is theirs
    assert rasterization is not theirs
