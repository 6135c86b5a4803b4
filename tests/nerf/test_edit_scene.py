"""Edits of scenes from Python: those of ns-train, and errors that can be caught."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from small_edit import SOURCE_PROMPT, TARGET_PROMPT, load_checkpoint, run
from test_edit import assert_equal_states, interrupt_at

from cds_nerf import edit_scene
from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.errors import UserError
from cds_nerf.nerf.edit import SceneEdit
from cds_nerf.nerf.trainer import CDSTrainerConfig


@pytest.fixture
def edit(source_run, diffusion_folder, tmp_path) -> Any:
    """Edits the small source."""

    def make(target_prompt: str = TARGET_PROMPT, **options: Any) -> Any:
        small = {"pipeline.guidance_resolution": 16, "pipeline.orbit_frames": 2, "machine.device_type": "cpu"}
        arguments = {"diffusion": diffusion_folder, "output": tmp_path / "outputs", "steps": 3, **small, **options}
        return edit_scene(source_run, SOURCE_PROMPT, target_prompt, **arguments)

    return make


def test_edit_from_python_is_that_of_the_command_line(edit, edit_config):
    made = edit(seed=7, timestamp="python")
    config = edit_config(timestamp="typed", machine__seed=7)
    run(config)
    assert_equal_states(load_checkpoint(made.directory)["pipeline"], load_checkpoint(config.get_base_dir())["pipeline"])
    assert made.directory.name == "python" and made.checkpoint.parent.parent == made.directory
    assert len(made.views) == len(list((config.get_base_dir() / "edited_views").iterdir()))
    assert made.video == made.directory / "before_after.mp4"


def settings(made: SceneEdit) -> CDSTrainerConfig:
    return yaml.load((made.directory / "config.yml").read_text(), Loader=yaml.Loader)


def test_options_act_by_their_dotted_names(edit, diffusion_folder):
    made = edit(
        "-- a wolf",
        diffusion=DiffusionOptions(str(diffusion_folder), dtype="bfloat16", gradient_checkpointing=True),
        steps=1,
        steps_per_save=50,
        **{
            "pipeline.guidance.patch-sizes": (1,),
            "pipeline.guidance.w_cut": 2,
            "pipeline.model.far_plane": 77.0,
            "pipeline.datamanager.dataparser": "nerfstudio-data",
            "pipeline.datamanager.dataparser.depth_unit_scale_factor": 0.5,
            "pipeline.orbit_frames": 0,
        },
    )
    config = settings(made)
    assert config.pipeline.target_prompt == "-- a wolf" and config.steps_per_save == 50
    assert (config.pipeline.guidance.patch_sizes, config.pipeline.guidance.w_cut) == ((1,), 2.0)
    assert config.pipeline.model.far_plane == 77 and config.pipeline.model.num_levels == 4
    assert config.pipeline.datamanager.dataparser.depth_unit_scale_factor == 0.5
    model = config.pipeline.diffusion_model
    assert (model.model, model.dtype, model.gradient_checkpointing) == (str(diffusion_folder), "bfloat16", True)
    assert made.video is None


def test_edit_goes_on_from_python(edit, monkeypatch):
    whole = edit(timestamp="whole", steps_per_save=1)
    with (
        monkeypatch.context() as patch,
        pytest.raises(KeyboardInterrupt, match=r"interrupted; .*--pipeline\.resume-from"),
    ):
        interrupt_at(patch, 2)
        edit(timestamp="broken", steps_per_save=1)
    resumed = edit_scene(resume_from=whole.directory.with_name("broken"))
    assert_equal_states(load_checkpoint(resumed.directory)["pipeline"], load_checkpoint(whole.directory)["pipeline"])
    longer = edit_scene(resume_from=resumed.directory, steps=4)
    assert longer.checkpoint.name == "step-000000003.ckpt" and settings(longer).steps_per_save == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_prompt": ""}, r"--prompt is missing"),
        ({"diffusion": "/no/such/model"}, r"/no/such/model"),
        (
            {"pipeline.guidance.w_cat": 3},
            r"pipeline\.guidance\.w-cat is no option of ns-train cds: did you mean .*w-cut",
        ),
        ({"pipeline.guidance.w_cut": "much"}, r"does not take the options: .*much"),
        ({"pipeline.guidance.w_cut": -1}, r"w_cut is -1"),
        ({"output_dir": "x"}, r"output-dir is given twice"),
        ({"resume_from": "/norun"}, r"--load-dir starts a new edit"),
        ({"load_config": "x.yml"}, r"--load-config x\.yml"),
        ({"vis": "paper"}, r"vis is 'paper'"),
    ],
)
def test_mistakes_are_raised(edit, options, message):
    with pytest.raises(UserError, match=message):
        edit(**options)
