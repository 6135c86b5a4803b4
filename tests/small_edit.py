"""Small captures, fields and edits for the plugin's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from nerfstudio.configs.base_config import LocalWriterConfig, LoggingConfig
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils import writer
from PIL import Image

from cds_nerf.nerf.trainer import CDSTrainerConfig
from cds_nerf.typed_options import set_value_at

VIEWS = 7
WIDTH, HEIGHT = 40, 24
SOURCE_PROMPT, TARGET_PROMPT = "a photo of a fox", "a photo of a wolf"
SMALL_MODEL = {
    "num_levels": 4,
    "log2_hashmap_size": 10,
    "max_res": 64,
    "hidden_dim": 16,
    "hidden_dim_color": 16,
    "num_nerf_samples_per_ray": 8,
    "num_proposal_iterations": 1,
    "num_proposal_samples_per_ray": (16,),
    "proposal_net_args_list": [{"hidden_dim": 16, "log2_hashmap_size": 10, "num_levels": 3, "max_res": 32}],
}


def write_capture(
    folder: Path,
    views: int = VIEWS,
    camera_model: str = "OPENCV",
    mode: str = "RGB",
    masks: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Path:
    """Photographs, by default not square, with lens distortion and intrinsics that differ from frame to frame."""
    width, height = size
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    frames = []
    for index in range(views):
        pixels = random.integers(0, 255, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size).convert(mode).save(folder / "images" / f"{index:03d}.png")
        angle = 2 * np.pi * index / views
        back = np.array([np.cos(angle), np.sin(angle), 0.5])
        back /= np.linalg.norm(back)
        right = np.cross([0, 0, 1], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(back, right), back, 2 * back], axis=1)
        frames.append(
            {
                "file_path": f"images/{index:03d}.png",
                "transform_matrix": pose.tolist(),
                "fl_x": 40.0 + index,
                "fl_y": 41.0 + index,
                "cx": width / 2 + 1,
                "cy": height / 2 - 1,
                "w": width,
                "h": height,
                "k1": 0.05,
                "k2": -0.02,
                "p1": 0.001,
                "p2": -0.002,
            }
        )
        if masks:
            mask = Image.new("L", size, 255)
            mask.paste(0, (0, 0, width // 2, height // 2))
            mask.save(folder / "mask.png")
            frames[-1]["mask_path"] = "mask.png"
    (folder / "transforms.json").write_text(json.dumps({"camera_model": camera_model, "frames": frames}))
    return folder


def write_masks(folder: Path) -> Path:
    """A mask for each view of the capture, white on its left half; the folder."""
    folder.mkdir()
    for index in range(VIEWS):
        mask = Image.new("L", (WIDTH, HEIGHT), 0)
        mask.paste(255, (0, 0, WIDTH // 2, HEIGHT))
        mask.save(folder / f"{index:03d}.png")
    return folder


def train_source(config: TrainerConfig, capture: Path, output: Path, **model: Any) -> Path:
    """Train a small field for a few steps; the run's folder."""
    config.output_dir = output
    config.data = config.pipeline.datamanager.data = capture
    config.max_num_iterations = 5
    config.vis = "tensorboard"
    config.machine.device_type = "cpu"
    config.logging = LoggingConfig(local_writer=LocalWriterConfig(enable=False))
    config.pipeline.datamanager.train_num_rays_per_batch = 64
    for name, value in (SMALL_MODEL | model).items():
        setattr(config.pipeline.model, name, value)
    torch.manual_seed(0)
    run(config)
    return config.get_base_dir()


SMALL_SPLATS = {
    "random_init": True,
    "num_random": 150,
    "random_scale": 1.0,
    "num_downscales": 0,
    "warmup_length": 2,
    "refine_every": 6,
    "cull_alpha_thresh": 0.005,
    "densify_grad_thresh": 1e-5,
    "sh_degree": 2,
}


def train_splat_source(capture: Path, output: Path, method: str = "splatfacto", **model: Any) -> Path:
    """Train a small splatfacto for a few steps, over one densification; the run's folder."""
    config = fresh(method_configs[method])
    config.output_dir = output
    config.data = config.pipeline.datamanager.data = capture
    config.max_num_iterations = 20
    config.vis = "tensorboard"
    config.machine.device_type = "cpu"
    config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.logging = LoggingConfig(local_writer=LocalWriterConfig(enable=False))
    config.pipeline.datamanager.dataparser.load_3D_points = False
    for name, value in (SMALL_SPLATS | model).items():
        *parents, last = name.split("__")
        target: Any = config.pipeline.model
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)
    torch.manual_seed(0)
    run(config)
    return config.get_base_dir()


def fresh(config: Any) -> Any:
    """A copy that shares nothing, as a new process would have it."""
    return yaml.load(yaml.dump(config), Loader=yaml.Loader)


def edit_config_for(source_run: Path, diffusion_folder: Path, output: Path, **typed: Any) -> CDSTrainerConfig:
    """What ns-train makes of a command line, before it settles it.

    Args:
        typed: what was typed, by keywords such as `pipeline__source_prompt`; None for what was not after all. An edit
            that is resumed has nothing else, a new one what every small edit has besides.
    """
    usual: dict[str, Any] = {
        "load_dir": source_run / "nerfstudio_models",
        "prompt": TARGET_PROMPT,
        "pipeline__source_prompt": SOURCE_PROMPT,
        "pipeline__diffusion": str(diffusion_folder),
        "pipeline__guidance_resolution": 16,
        "pipeline__orbit_frames": 2,
        "max_num_iterations": 3,
        "vis": "tensorboard",
        "machine__device_type": "cpu",
        "output_dir": output,
    }
    given = {} if "pipeline__resume_from" in typed else usual
    config = CDSTrainerConfig()
    config.typed = []
    for name, value in (given | typed).items():
        if value is not None:
            path = name.replace("__", ".")
            set_value_at(config, path, value)
            config.typed.append(path)
    return config


def run(config: TrainerConfig) -> Trainer:
    """What ns-train does with a configuration."""
    writer.EVENT_WRITERS.clear()  # of other runs in this process
    writer.EVENT_STORAGE.clear()
    config.set_timestamp()
    config.save_config()
    trainer = config.setup()
    trainer.setup()
    trainer.train()
    return trainer


def load_checkpoint(run_folder: Path) -> dict[str, Any]:
    (path,) = (run_folder / "nerfstudio_models").glob("*.ckpt")
    return torch.load(path, weights_only=True)


def paint_left_half(folder: Path) -> None:
    """Paint the regions' pictures in a folder white on the left and black on the right."""
    for picture in folder.glob("*.png"):
        painted = Image.new("L", Image.open(picture).size, 0)
        painted.paste(255, (0, 0, painted.width // 2, painted.height))
        painted.save(picture)
