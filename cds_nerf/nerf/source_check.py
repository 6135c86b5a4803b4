"""Whether a source's field can be edited, found out before anything is made or downloaded."""

from __future__ import annotations

from copy import deepcopy

import torch

from cds_nerf.errors import UserError, first_line
from cds_nerf.fields.ray_rendering import rescale_camera
from cds_nerf.nerf.configuration import EditConfig
from cds_nerf.nerf.source_run import ELSEWHERE, SourceRun, check_pose_normalisation


def check_renders(config: EditConfig, source: SourceRun) -> None:
    """Build the field as the edit will, give it the source's weights, and render a few pixels of the first view.

    Args:
        config: of the edit, complete.
        source: the run that it starts from.

    Raises:
        UserError: if the data, the weights or the method do not let an edit start.
    """
    device = config.machine.device_type
    try:
        settings = deepcopy(config.pipeline)  # models write into theirs
        pipeline = settings.setup(device=device, test_mode="val")
        pipeline.load_source()
        check_pose_normalisation(source.directory, pipeline.datamanager.train_dataparser_outputs)
        camera = pipeline.field.cameras(pipeline.datamanager.train_dataset.cameras[:1])
        pipeline.field.render_view(rescale_camera(camera, shorter_side=2, multiple=2), index=0, seed=0)
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the code of a method, which may be anybody's, meets where it is a stranger
        raise UserError(
            f"{source.directory} is a {source.config.method_name} run, whose {type(config.pipeline.model).__name__} "
            f"cannot be rendered here ({type(error).__name__}: {first_line(error)}): {ELSEWHERE}"
        ) from error
    finally:
        pipeline = None  # makes room
        if device == "cuda":
            torch.cuda.empty_cache()
