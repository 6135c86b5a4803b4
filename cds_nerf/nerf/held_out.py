"""Pictures of a run's held-out views, without the programs that ns-render asks for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchvision.utils import save_image

from cds_nerf.files import whole_folder
from cds_nerf.nerf.datamanager import CDSDataManagerConfig, leave_points_out
from cds_nerf.nerf.pipeline import CDSPipeline, CDSPipelineConfig
from cds_nerf.nerf.source_run import SourceRun, read_checkpoint
from cds_nerf.progress import progress_bar


def open_run(run: Path, data: Path | None = None) -> CDSPipeline:
    """The pipeline of an edit, or of a run as an edit would see it, in evaluation mode.

    Neither the photographs nor the folder in which the run was made need be there.

    Args:
        run: the run folder, whose newest checkpoint is taken, or one of its checkpoints.
        data: where its data are by now, if not where they were.

    Raises:
        UserError: if the run, its checkpoint or its data cannot be read.
    """
    found = SourceRun.find(run)
    found.check_kind()
    config: Any = found.config.pipeline
    if not isinstance(config, CDSPipelineConfig):
        leave_points_out(config.datamanager.dataparser)
        datamanager = CDSDataManagerConfig(
            dataparser=config.datamanager.dataparser,
            camera_res_scale_factor=config.datamanager.camera_res_scale_factor,
        )
        config = CDSPipelineConfig(datamanager=datamanager, model=found.model())
    config.datamanager.data = data or found.data()
    pipeline = config.setup(device="cuda" if torch.cuda.is_available() else "cpu", test_mode="inference")
    checkpoint = read_checkpoint(found.checkpoint)
    pipeline.load_pipeline(checkpoint["pipeline"], checkpoint["step"])
    return pipeline.eval()


@torch.no_grad()
def render_held_out(run: Path, folder: Path, data: Path | None = None) -> None:
    """Render the views that a run was not trained on, at their own size, in evaluation mode, as PNG files.

    They are called as their photographs are (see `picture_names`).

    Args:
        run: the run folder, whose newest checkpoint is taken, or one of its checkpoints.
        folder: for the pictures, which must not exist or be empty; it is whole where it exists.
        data: where the run's data are by now, if not where they were.

    Raises:
        UserError: if the run cannot be opened, or the pictures cannot be written.
    """
    pipeline = open_run(run, data)
    dataset = pipeline.datamanager.eval_dataset
    with whole_folder(folder) as partial:
        names = picture_names(dataset.image_filenames)
        cameras = pipeline.field.cameras(dataset.cameras)
        for index, name in enumerate(progress_bar(names, "Held-out views", unit="view")):
            image = pipeline.field.render_frame(cameras[index : index + 1])
            save_image(image.clamp(0, 1), partial / name)


def picture_names(photographs: Sequence[Path]) -> list[str]:
    """Names of PNG files for pictures of the same views: the photographs' own, as far as that tells them apart.

    Those whose names are the same have their folders in front (`cam0_0001.png`, `cam1_0001.png`), and their numbers
    behind if that is not enough. Names that differ in upper and lower case alone count as the same, as some disks have
    it.
    """
    common = Counter(photograph.stem.casefold() for photograph in photographs)
    taken = {stem for stem, count in common.items() if count == 1}
    root = os.path.commonpath([photograph.parent for photograph in photographs]) if photographs else ""
    names = []
    for index, photograph in enumerate(photographs):
        name = photograph.stem
        if common[name.casefold()] > 1:
            name = "_".join(photograph.relative_to(root).with_suffix("").parts)
            while name.casefold() in taken:
                name += f"_{index}"
            taken.add(name.casefold())
        names.append(f"{name}.png")
    return names
