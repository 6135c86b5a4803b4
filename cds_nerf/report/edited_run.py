"""The views of an edited field and of the field that it was made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from nerfstudio.cameras.camera_paths import get_path_from_json
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from cds_nerf.errors import UserError
from cds_nerf.evaluation.consistency import PosedView
from cds_nerf.evaluation.edit_metrics import EditedViews
from cds_nerf.fields.orbit import orbit_cameras
from cds_nerf.fields.ray_rendering import rescale_camera
from cds_nerf.nerf.held_out import open_run
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.pictures import read_mask
from cds_nerf.progress import progress_bar
from cds_nerf.report.true_edit import against_true_edit

RELEVANCE_VIEWS = 8
"""How many of the nearest training views say where in a view the edit may act."""


def render_edited_run(run: Path, orbit: int = 0, camera_path: Path | None = None) -> EditedViews:
    """Render a run's views before and after its edit: the held-out ones, or those of an orbit or a camera path.

    Lenses are taken to be free of distortion, so that a point can be carried from view to view.

    Args:
        run: the folder of an edit.
        orbit: frames of an orbit around what the training cameras look at, in place of the held-out views.
        camera_path: a path saved from nerfstudio's viewer, likewise.

    Raises:
        UserError: if the run is no edit, its source is not there any more, or the camera path cannot be read.
    """
    pipeline = open_run(run)
    if pipeline.config.source_checkpoint is None:
        raise UserError(f"{run} is a run of another method: give the folder of an edit (outputs/SCENE/cds/TIME)")
    cameras, names = _cameras(pipeline, orbit, camera_path)
    after = [_posed(pipeline, camera) for camera in progress_bar(cameras, f"{run.name}, edit", unit="view")]
    with pipeline.source_weights():
        before = [_posed(pipeline, camera) for camera in progress_bar(cameras, f"{run.name}, source", unit="view")]
        relevant = _relevant(pipeline, before, run / "source" / "relevance")
    return EditedViews(
        name=f"{run.parent.parent.name}/{run.name}",
        view_names=names,
        before=[view.image for view in before],
        after=[view.image for view in after],
        relevant=relevant,
        source_prompt=pipeline.config.source_prompt,
        target_prompt=pipeline.config.target_prompt,
        posed_before=before,
        posed_after=after,
        against_truth={} if orbit or camera_path else _against_truth(pipeline, after),
    )


def _against_truth(pipeline: CDSPipeline, after: Sequence[PosedView]) -> dict[str, list[float]]:
    photographs = pipeline.datamanager.eval_dataset.image_filenames
    return against_true_edit([view.image for view in after], photographs, pipeline.config.target_prompt)


def _cameras(pipeline: CDSPipeline, orbit: int, camera_path: Path | None) -> tuple[list[Cameras], list[str]]:
    training = pipeline.datamanager.train_dataset.cameras
    if camera_path is not None:
        try:
            path = get_path_from_json(json.loads(camera_path.read_text("utf8")))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"the camera path {camera_path} cannot be read ({error}): save one from nerfstudio's viewer"
            ) from error
        if int(path.camera_type[0]) != CameraType.PERSPECTIVE.value:
            raise UserError(f"the camera path {camera_path} is of no perspective camera, which metrics need")
        return [path[index : index + 1] for index in range(len(path))], [f"{index:05d}" for index in range(len(path))]
    if orbit:
        frames = orbit_cameras(training, training[:1], orbit)
        return frames, [f"{index:05d}" for index in range(orbit)]
    dataset = pipeline.datamanager.eval_dataset
    if dataset is None or not len(dataset):
        raise UserError("the capture has no held-out views: give --orbit 60")
    cameras = [_without_distortion(dataset.cameras[index : index + 1]) for index in range(len(dataset))]
    return cameras, [f"{index:05d}" for index in range(len(dataset))]


def _without_distortion(camera: Cameras) -> Cameras:
    camera = camera[:]  # a new object: the caller's stays as it is
    camera.distortion_params = None
    camera.camera_type = torch.full_like(camera.camera_type, CameraType.PERSPECTIVE.value)
    return camera


@torch.no_grad()
def _posed(pipeline: CDSPipeline, camera: Cameras) -> PosedView:
    distance = pipeline.field.render_distance(camera)
    return PosedView(
        image=pipeline.field.render_frame(camera).clamp(0, 1).cpu(),
        distance=torch.full((int(camera.height), int(camera.width)), torch.nan) if distance is None else distance,
        camera_to_world=camera.camera_to_worlds[0].cpu(),
        focal=(float(camera.fx), float(camera.fy)),
        centre=(float(camera.cx), float(camera.cy)),
    )


def _relevant(
    pipeline: CDSPipeline, views: Sequence[PosedView], folder: Path
) -> list[Bool[Tensor, "1 height width"]] | None:
    """Where in views the edit may act: where the nearest training views that see a point say so on the average."""
    cameras = pipeline.datamanager.train_dataset.cameras
    pictures = {int(path.stem): path for path in sorted(folder.glob("*.png"))}
    if not pictures:
        return None
    training: dict[int, tuple[PosedView, Tensor]] = {}

    def training_view(index: int) -> tuple[PosedView, Tensor]:
        if index not in training:
            relevance = to_tensor(read_mask(pictures[index]))
            camera = rescale_camera(cameras[index : index + 1], min(relevance.shape[1:]), 1)
            training[index] = _posed(pipeline, _without_distortion(camera)), relevance
        return training[index]

    known = list(pictures)
    positions = cameras.camera_to_worlds[known, :3, 3]
    relevant = []
    for view in progress_bar(views, "Relevance", unit="view"):
        nearest = (positions - view.camera_to_world[:, 3]).norm(dim=1).argsort()[:RELEVANCE_VIEWS].tolist()
        relevant.append(_gathered(view, [training_view(known[number]) for number in nearest]) > 0.5)
    return relevant


def _gathered(
    view: PosedView, training: Sequence[tuple[PosedView, Float[Tensor, "1 h w"]]]
) -> Float[Tensor, "1 height width"]:
    """The mean relevance of each pixel's point over the training views that see it; 0 where none does."""
    points = view.points()
    total, count = torch.zeros(points.shape[:2]), torch.zeros(points.shape[:2])
    for other, relevance in training:
        visible, grid = other.visible(points)
        sampled = F.grid_sample(relevance[None], grid[None], mode="bilinear", align_corners=False)[0, 0]
        total += torch.where(visible, sampled, 0)
        count += visible
    return (total / count.clamp(min=1))[None]
