"""What `ns-train` of the installed nerfstudio offers, made small: settings and captures to train each method on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.field_components.encodings import HashEncoding
from PIL import Image
from small_edit import HEIGHT, SMALL_MODEL, WIDTH, fresh, write_capture

NERFSTUDIO_METHODS = sorted(
    name for name, config in all_methods.items() if isinstance(config, TrainerConfig) and not name.startswith("cds")
)
"""The methods that nerfstudio has itself, as `ns-train --help` lists them."""
SMALL_TENSORF = {
    "init_resolution": 8,
    "final_resolution": 12,
    "upsampling_iters": (2, 3),
    "num_samples": 8,
    "num_uniform_samples": 8,
    "num_den_components": 2,
    "num_color_components": 2,
    "appearance_dim": 4,
}
SMALL_NERF = {"num_coarse_samples": 4, "num_importance_samples": 4}
SMALL_SDF = {"num_layers": 2, "num_layers_color": 2, "hidden_dim": 16, "hidden_dim_color": 16, "geo_feat_dim": 16}
SMALL_SDF |= {"num_levels": 2, "log2_hashmap_size": 8, "max_res": 32}
SMALL_NEUS = {"num_samples": 8, "num_samples_importance": 8, "num_samples_outside": 4}


def small_method(name: str, folder: Path) -> tuple[TrainerConfig, Path, dict[str, Any]]:
    """A method's settings, a capture that it can be trained on, and settings that make its model small."""
    config = fresh(all_methods[name])
    small: dict[str, Any] = {}
    model = type(config.pipeline.model).__name__
    if model in ("NerfactoModelConfig", "DepthNerfactoModelConfig"):
        small = dict(SMALL_MODEL)
    elif model == "SemanticNerfWModelConfig":
        small = {name: SMALL_MODEL[name] for name in ("num_levels", "log2_hashmap_size", "max_res")}
        small |= {"num_nerf_samples_per_ray": 8, "num_proposal_samples_per_ray": (8, 8)}
    elif model == "TensoRFModelConfig":
        small = SMALL_TENSORF
    elif model == "VanillaModelConfig":
        small = SMALL_NERF
    elif model == "SplatfactoModelConfig":
        small = {"num_random": 100}
    elif model == "InstantNGPModelConfig":
        small = {"grid_resolution": 8, "max_res": 64, "log2_hashmap_size": 8}
        config.pipeline.target_num_samples, config.pipeline.max_num_samples_per_ray = 64 * SAMPLES, SAMPLES
    elif model in ("NeuSModelConfig", "NeuSFactoModelConfig"):
        small = dict(SMALL_NEUS)
        for setting, value in SMALL_SDF.items():
            setattr(config.pipeline.model.sdf_field, setting, value)
        if model == "NeuSFactoModelConfig":
            small |= {"num_neus_samples_per_ray": 8, "num_proposal_samples_per_ray": (8, 8)}
    parser = type(getattr(config.pipeline.datamanager, "dataparser", None)).__name__
    write = {
        "BlenderDataParserConfig": write_blender_capture,
        "DNeRFDataParserConfig": write_blender_capture,
        "SDFStudioDataParserConfig": write_sdfstudio_capture,
        "Sitcoms3DDataParserConfig": write_sitcoms_capture,
    }.get(parser, write_capture_with_depth)
    if parser == "InstantNGPDataParserConfig":
        config.pipeline.datamanager.dataparser.train_split_fraction = 0.7  # which leaves some for evaluation
    if parser == "PhototourismDataParserConfig":
        config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig()
    return config, write(folder), small


def write_capture_with_depth(folder: Path) -> Path:
    """A capture in nerfstudio's format (and in Instant NGP's) with depth maps."""
    write_capture(folder)
    transforms = json.loads((folder / "transforms.json").read_text())
    Image.fromarray(np.full((HEIGHT, WIDTH), 1000, dtype=np.uint16)).save(folder / "depth.png")
    for frame in transforms["frames"]:
        frame["depth_file_path"] = "depth.png"
    names = [frame["file_path"] for frame in transforms["frames"]]
    transforms |= {"train_filenames": names[2:], "val_filenames": names[:2], "test_filenames": names[:2]}
    transforms |= {"fl_x": 40.0, "fl_y": 41.0, "cx": WIDTH / 2, "cy": HEIGHT / 2, "w": WIDTH, "h": HEIGHT}
    (folder / "transforms.json").write_text(json.dumps(transforms))
    return folder


def _frames(folder: Path) -> list[dict]:
    write_capture(folder)
    return json.loads((folder / "transforms.json").read_text())["frames"]


def write_blender_capture(folder: Path) -> Path:
    """A capture in the format of the original NeRF's synthetic scenes, with the times of Dynamic NeRF's."""
    frames = [
        {
            "file_path": f"./{frame['file_path'].removesuffix('.png')}",
            "transform_matrix": frame["transform_matrix"],
            "time": index / 6,
        }
        for index, frame in enumerate(_frames(folder))
    ]
    for split, part in {"train": frames[2:], "val": frames[:2], "test": frames[:2]}.items():
        transforms = {"camera_angle_x": 0.9, "frames": part}
        (folder / f"transforms_{split}.json").write_text(json.dumps(transforms))
    return folder


def write_sdfstudio_capture(folder: Path) -> Path:
    """A capture in SDFStudio's format."""
    frames = []
    for frame in _frames(folder):
        pose = np.array(frame["transform_matrix"])
        pose[:3, 1:3] *= -1
        intrinsics = np.diag([40.0, 41.0, 1.0, 1.0])
        intrinsics[:2, 2] = WIDTH / 2, HEIGHT / 2
        frames.append({"rgb_path": frame["file_path"], "camtoworld": pose.tolist(), "intrinsics": intrinsics.tolist()})
    meta = {"width": WIDTH, "height": HEIGHT, "has_mono_prior": False, "frames": frames}
    meta |= {"scene_box": {"aabb": [[-1, -1, -1], [1, 1, 1]]}}
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return folder


def write_sitcoms_capture(folder: Path) -> Path:
    """A capture in the format of Sitcoms3D, with segments."""
    frames = []
    (folder / "segmentations_4" / "thing").mkdir(parents=True)
    for frame in _frames(folder):
        intrinsics = [[160.0, 0, 2 * WIDTH], [0, 160.0, 2 * HEIGHT], [0, 0, 1]]
        name = Path(frame["file_path"]).name
        frames.append({"image_name": name, "intrinsics": intrinsics, "camtoworld": frame["transform_matrix"]})
        Image.new("L", (WIDTH, HEIGHT), 1).save(folder / "segmentations_4" / "thing" / name)
    (folder / "images").rename(folder / "images_4")
    cameras = {"frames": frames, "bbox": [[-3.0, -3.0, -3.0], [3.0, 3.0, 3.0]]}
    (folder / "cameras.json").write_text(json.dumps(cameras))
    classes = {"thing": ["person", "sofa"], "thing_colors": [[255, 0, 0], [0, 255, 0]]}
    (folder / "panoptic_classes.json").write_text(json.dumps(classes))
    return folder


class TorchGrid(torch.nn.Module):
    """In place of tiny-cuda-nn's hash grid, of which the fields of surfaces have no other implementation."""

    def __init__(self, n_input_dims: int, encoding_config: dict[str, Any]) -> None:
        super().__init__()
        levels, least = encoding_config["n_levels"], encoding_config["base_resolution"]
        self.grid = HashEncoding(
            num_levels=levels,
            min_res=least,
            max_res=round(least * encoding_config["per_level_scale"] ** (levels - 1)),
            log2_hashmap_size=encoding_config["log2_hashmap_size"],
            features_per_level=encoding_config["n_features_per_level"],
            implementation="torch",
        )
        self.n_output_dims = self.grid.get_out_dim()

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        return self.grid(positions)


SAMPLES = 8


def sample_evenly(_sampler: Any, ray_bundle: RayBundle, near_plane: float = 0.0, **_: Any) -> tuple[RaySamples, Any]:
    """In place of nerfacc's samples along rays, which it takes where its grid is occupied."""
    rays = torch.arange(len(ray_bundle)).repeat_interleave(SAMPLES)
    edges = torch.linspace(near_plane, near_plane + 4, SAMPLES + 1)
    frustums = Frustums(
        origins=ray_bundle.origins[rays],
        directions=ray_bundle.directions[rays],
        starts=edges[:-1].repeat(len(ray_bundle))[:, None],
        ends=edges[1:].repeat(len(ray_bundle))[:, None],
        pixel_area=ray_bundle.pixel_area[rays],
    )
    return RaySamples(frustums=frustums, camera_indices=ray_bundle.camera_indices[rays]), rays


def even_weights(
    t_starts: torch.Tensor, t_ends: torch.Tensor, sigmas: torch.Tensor, packed_info: Any
) -> tuple[torch.Tensor]:
    """In place of nerfacc's volume rendering, for the samples of `sample_evenly`."""
    depths = (sigmas * (t_ends - t_starts)).view(-1, SAMPLES)
    transmittances = torch.exp(-(depths.cumsum(dim=1) - depths))
    return ((transmittances * (1 - torch.exp(-depths))).flatten(),)


def pack_evenly(ray_indices: torch.Tensor, n_rays: int) -> torch.Tensor:
    """In place of nerfacc's: where the samples of each ray begin, and how many they are."""
    starts = SAMPLES * torch.arange(n_rays)
    return torch.stack([starts, torch.full_like(starts, SAMPLES)], dim=1)


def stand_in_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let methods run here whose code is CUDA's, by plain torch that does as much for a field of a few pixels."""
    monkeypatch.setattr("nerfstudio.fields.sdf_field.tcnn", SimpleNamespace(Encoding=TorchGrid))
    monkeypatch.setattr("cds_nerf.nerf.source_run.TCNN_EXISTS", True)
    monkeypatch.setattr("nerfstudio.models.instant_ngp.VolumetricSampler.forward", sample_evenly)
    monkeypatch.setattr("nerfacc.pack_info", pack_evenly)
    monkeypatch.setattr("nerfacc.render_weight_from_density", even_weights)
    monkeypatch.setattr("cds_nerf.nerf.source_run.InstantNGPModelConfig", type(None))
