"""Pictures of a run's held-out views, without the programs that ns-render asks for."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.pipelines.base_pipeline import Pipeline
from nerfstudio.utils.eval_utils import eval_setup
from torchvision.utils import save_image

from cds_nerf.progress import progress_bar


def open_run(run: Path) -> Pipeline:
    """The pipeline of a run in evaluation mode with its newest checkpoint, wherever the run's folder has moved.

    Args:
        run: the run folder.
    """
    run = run.resolve()

    def where_it_is(config: TrainerConfig) -> TrainerConfig:
        config.output_dir, config.experiment_name = run.parents[2], run.parents[1].name
        config.method_name, config.timestamp = run.parent.name, run.name
        return config

    return eval_setup(run / "config.yml", test_mode="inference", update_config_callback=where_it_is)[1]


@torch.no_grad()
def render_held_out(run: Path, folder: Path) -> None:
    """Render the views that a run was not trained on, at their own size, in evaluation mode, as PNG files.

    They are called as their photographs are. The folder is written under another name and renamed, so that it is whole
    where it exists.

    Args:
        run: the run folder; its newest checkpoint is taken.
        folder: for the pictures; replaced if it exists.
    """
    pipeline = open_run(run)
    dataset = pipeline.datamanager.eval_dataset
    assert dataset is not None
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for index, photograph in enumerate(progress_bar(dataset.image_filenames, "Held-out views", unit="view")):
        camera = dataset.cameras[index : index + 1].to(pipeline.device)
        image = pipeline.model.get_outputs_for_camera(camera)["rgb"]
        save_image(image.permute(2, 0, 1).clamp(0, 1), partial / f"{photograph.stem}.png")
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
