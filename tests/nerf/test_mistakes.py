"""What a user's mistake prints before anything slow starts: one line that names it and the way out, status 1."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.models.nerfacto import NerfactoModel
from safetensors import SafetensorError
from small_edit import SOURCE_PROMPT, TARGET_PROMPT, run, write_capture

from cds_nerf.errors import Interrupted, UserError
from cds_nerf.nerf.pipeline import CDSPipeline
from cds_nerf.nerf.view_store import ViewStore


@pytest.fixture
def run_copy(source_run, tmp_path) -> Path:
    """The source run, for a test to break."""
    return Path(shutil.copytree(source_run, tmp_path / "copy" / "cds-source" / "time"))


def message_of(config) -> str:
    with pytest.raises(UserError) as ending:
        run(config)
    assert "\n" not in str(ending.value)
    return str(ending.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ({"load_dir": None}, r"--load-dir is missing.*nerfstudio_models"),
        ({"load_dir": Path("/nowhere")}, r"--load-dir /nowhere does not exist"),
        ({"load_step": 77}, r"no checkpoint of step 77 in .*it has 4"),
        ({"pipeline__source_prompt": ""}, r"--pipeline\.source-prompt is missing"),
        ({"prompt": None}, r"--prompt is missing"),
        ({"prompt": "  "}, r"--prompt is missing"),
        ({"prompt": SOURCE_PROMPT}, rf"--pipeline\.source-prompt and --prompt are both '{SOURCE_PROMPT}'"),
        ({"pipeline__target_prompt": "a cat"}, rf"--prompt is '{TARGET_PROMPT}' and .*target-prompt is 'a cat'"),
        ({"data": Path("/nodata")}, r"the data /nodata .* is not there: give --data"),
        ({"machine__num_devices": 0}, r"--machine\.num-devices is 0; it must be at least 1"),
        ({"machine__num_machines": 2}, r"--machine\.num-machines is 2; cds edits on one machine"),
        ({"pipeline__guidance_device": "cuda:7"}, r"--pipeline\.guidance-device is cuda:7"),
        ({"pipeline__guidance_device": "gpu"}, r"--pipeline\.guidance-device is gpu"),
        ({"pipeline__guidance_resolution": 18}, r"--pipeline\.guidance-resolution is 18.*multiples of 4.*such as 16"),
        ({"pipeline__guidance_resolution": 0}, r"--pipeline\.guidance-resolution is 0"),
        ({"pipeline__views_per_step": 0}, r"--pipeline\.views-per-step is 0; it must be at least 1"),
        ({"pipeline__rays_per_chunk": 0}, r"--pipeline\.rays-per-chunk is 0"),
        ({"pipeline__w_keep": -1.0}, r"--pipeline\.w-keep is -1"),
        ({"max_num_iterations": 0}, r"--max-num-iterations is 0"),
        ({"pipeline__diffusion": "/no/such/model"}, r"/no/such/model"),
        ({"pipeline__diffusion": "no such model"}, r"no such model"),
        ({"pipeline__guidance__patch_sizes": (1, 50)}, r"patch_sizes has 50"),
        ({"pipeline__model__hidden_dim": 32}, r"does not fit.*hidden_dim|does not fit: _model\.field\..* is \[.*\]"),
        ({"pipeline__resume_from": Path("/norun")}, r"--pipeline\.resume-from /norun does not exist"),
        (
            {"pipeline__resume_from": Path("/norun"), "load_dir": Path("/run")},
            r"--load-dir .* --pipeline\.resume-from .*one of them",
        ),
    ],
)
def test_mistake_is_named(edit_config, typed, message):
    assert re.search(message, message_of(edit_config(**typed)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU is there")
def test_missing_gpu_is_named(edit_config):
    assert "--machine.device-type is cuda" in message_of(edit_config(machine__device_type="cuda"))


def test_model_that_is_not_on_this_machine_is_named_when_offline(edit_config, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = message_of(edit_config(pipeline__diffusion="somebody/some-model"))
    assert "somebody/some-model" in message and "hf download" in message


def test_empty_checkpoint_folder_is_named(edit_config, run_copy):
    for checkpoint in (run_copy / "nerfstudio_models").iterdir():
        checkpoint.unlink()
    for load_dir in (run_copy, run_copy / "nerfstudio_models"):
        message = message_of(edit_config(load_dir=load_dir))
        assert re.search(r"no checkpoint \(step-\*\.ckpt\) in .*nerfstudio_models", message)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "too little memory.*--pipeline.guidance-resolution"),
        (FloatingPointError("not finite in torch.float16"), "not finite.*resume-from .* --pipeline.guidance-dtype"),
    ],
)
def test_limits_of_the_machine_are_explained(edit_config, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("cds_nerf.nerf.pipeline.CDSPipeline.get_train_loss_dict", fail)
    assert re.search(message, message_of(edit_config()))


def test_step_beside_a_checkpoint_file_is_named(edit_config, source_run):
    (checkpoint,) = (source_run / "nerfstudio_models").iterdir()
    assert "--load-step is 4" in message_of(edit_config(load_dir=checkpoint, load_step=4))


def test_missing_config_is_named(edit_config, run_copy):
    (run_copy / "config.yml").unlink()
    assert "config.yml is missing" in message_of(edit_config(load_dir=run_copy / "nerfstudio_models"))


def test_config_of_a_plugin_that_is_not_here_is_named(edit_config, run_copy):
    (run_copy / "config.yml").write_text("!!python/object:no_such_plugin.Config {}\n")
    assert re.search(r"config\.yml cannot be read .*no_such_plugin", message_of(edit_config(load_dir=run_copy)))


def test_truncated_checkpoint_is_named(edit_config, run_copy):
    (checkpoint,) = (run_copy / "nerfstudio_models").iterdir()
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert re.search(r"checkpoint .*\.ckpt cannot be read", message_of(edit_config(load_dir=run_copy)))


def test_checkpoint_that_does_not_fit_is_refused_with_its_first_keys(edit_config, run_copy):
    (path,) = (run_copy / "nerfstudio_models").iterdir()
    checkpoint = torch.load(path, weights_only=True)
    weight = checkpoint["pipeline"].pop("_model.field.mlp_head.layers.0.weight")
    checkpoint["pipeline"]["_model.field.another.weight"] = weight
    torch.save(checkpoint, path)
    message = message_of(edit_config(load_dir=run_copy))
    assert "does not fit" in message
    assert "_model.field.mlp_head.layers.0.weight is missing" in message
    assert "_model.field.another.weight is not the model's" in message


def test_tiny_cuda_nn_checkpoint_without_tiny_cuda_nn_is_explained(edit_config, run_copy):
    (path,) = (run_copy / "nerfstudio_models").iterdir()
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["pipeline"]["_model.field.mlp_head.tcnn_encoding.params"] = torch.zeros(8)
    torch.save(checkpoint, path)
    assert "tiny-cuda-nn, which is not installed here" in message_of(edit_config(load_dir=run_copy))


def test_other_pose_normalisation_is_refused(edit_config, tmp_path):
    other = write_capture(tmp_path / "other")
    transforms = json.loads((other / "transforms.json").read_text())
    transforms["frames"][0]["transform_matrix"][0][3] += 3
    (other / "transforms.json").write_text(json.dumps(transforms))
    assert "the poses are normalised otherwise than in" in message_of(edit_config(data=other))


def test_what_the_guidance_cannot_take_is_told_before_the_source_is_rendered(edit_config, monkeypatch):
    monkeypatch.setattr(ViewStore, "latents", lambda *_: pytest.fail("a view was rendered"))
    assert "patch_sizes has 50" in message_of(edit_config(pipeline__guidance__patch_sizes=(1, 50)))


@pytest.mark.parametrize("content", [None, "{}", "no json"])
def test_data_that_cannot_be_read_is_named(edit_config, tmp_path, content):
    data = tmp_path / "scene"
    data.mkdir()
    if content is not None:
        (data / "transforms.json").write_text(content)
    message = message_of(edit_config(data=data))
    assert re.search(rf"NerfstudioDataParser cannot read the data {data} \(.+\): give the --data of the sou", message)


def test_data_given_to_the_dataparser_is_what_is_read(edit_config):
    message = message_of(edit_config(pipeline__datamanager__dataparser__data=Path("/nodata")))
    assert "the data /nodata of the source run is not there" in message


def test_unwritable_output_is_named(edit_config, tmp_path):
    (tmp_path / "file").write_text("")
    message = message_of(edit_config(output_dir=tmp_path / "file"))
    assert re.search(r"cannot write .*/file/.*config\.yml: Not a directory.*--output-dir", message)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError(
            "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/2: file"
        ),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_told_with_the_way_on(edit_config, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("nerfstudio.engine.trainer.Trainer.save_checkpoint", fail)
    assert re.search(r"(No space left|disk is full).*goes on from .*--pipeline\.resume-from", message_of(edit_config()))


def test_other_failures_are_not_taken_for_a_full_disk(edit_config, monkeypatch):
    def fail(*_, **__):
        raise FileNotFoundError(errno.ENOENT, "a bug")

    monkeypatch.setattr("nerfstudio.engine.trainer.Trainer.save_checkpoint", fail)
    with pytest.raises(FileNotFoundError, match="a bug"):
        run(edit_config())


def test_file_that_is_no_nerfstudio_checkpoint_is_named(edit_config, run_copy):
    (checkpoint,) = (run_copy / "nerfstudio_models").iterdir()
    torch.save({"state_dict": {}}, checkpoint)
    assert "is no checkpoint of a nerfstudio run" in message_of(edit_config(load_dir=checkpoint))
    checkpoint.write_bytes(b"")
    assert re.search(r"checkpoint .*\.ckpt cannot be read", message_of(edit_config(load_dir=checkpoint)))


def test_model_without_rgb_is_named(edit_config, monkeypatch):
    monkeypatch.setattr(NerfactoModel, "get_outputs", lambda *_: {"rgb_coarse": torch.zeros(1), "rgb_fine": None})
    message = message_of(edit_config())
    assert "the source's NerfactoModel renders rgb_coarse, rgb_fine but no rgb" in message


def build_without_its_pipeline(*_: object) -> None:
    raise KeyError("image_encoder")


@pytest.mark.parametrize(
    ("part", "breaks", "message"),
    [
        (
            "populate_modules",
            build_without_its_pipeline,
            r"NerfactoModelConfig cannot be rendered here .*image_encoder",
        ),
        (
            "get_outputs",
            lambda *_: torch.ones(2) @ torch.ones(3),
            r"NerfactoModelConfig cannot be rendered here .*size",
        ),
        ("get_outputs", lambda *_: {"depth": torch.zeros(1)}, r"renders depth but no rgb"),
    ],
)
def test_field_that_cannot_be_edited_is_refused_before_anything_is_made(
    edit_config, monkeypatch, part, breaks, message
):
    monkeypatch.setattr(NerfactoModel, part, breaks)
    config = edit_config(pipeline__diffusion="no/such/model")
    assert re.search(message, message_of(config))
    assert not config.output_dir.exists()


def test_wrong_weights_and_poses_are_told_before_anything_is_made(edit_config, capture, tmp_path):
    config = edit_config(pipeline__model__hidden_dim=32, pipeline__diffusion="no/such/model")
    assert "does not fit" in message_of(config)
    transforms = json.loads((capture / "transforms.json").read_text())
    transforms["frames"] = transforms["frames"][:4]
    (tmp_path / "transforms.json").write_text(json.dumps(transforms))
    config = edit_config(data=tmp_path / "transforms.json", pipeline__diffusion="no/such/model")
    message_of(config)
    assert not config.output_dir.exists()


def test_resumed_edit_whose_source_is_gone_before_its_first_checkpoint_says_so(edit_config, run_copy, monkeypatch):
    config = edit_config(load_dir=run_copy)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(CDSPipeline, "get_train_loss_dict", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        run(config)
    shutil.rmtree(run_copy)
    message = message_of(edit_config(pipeline__resume_from=config.get_base_dir()))
    assert re.search(r"the checkpoint .*\.ckpt is not there", message)


@pytest.mark.parametrize("cut_short", [False, True])
def test_unknown_pose_normalisation_is_warned_of(edit_config, run_copy, capsys, cut_short):
    if cut_short:  # by a kill
        (run_copy / "dataparser_transforms.json").write_text("")
    else:
        (run_copy / "dataparser_transforms.json").unlink()
    run(edit_config(load_dir=run_copy))
    assert "has no dataparser_transforms.json" in " ".join(capsys.readouterr().out.split())


def test_setting_that_the_source_model_does_not_have_is_named(edit_config, run_copy):
    config = yaml.load((run_copy / "config.yml").read_text(), Loader=yaml.Loader)
    config.pipeline.model = method_configs["vanilla-nerf"].pipeline.model
    (run_copy / "config.yml").write_text(yaml.dump(config))
    message = message_of(edit_config(load_dir=run_copy, pipeline__model__hidden_dim=32))
    assert "--pipeline.model.hidden-dim is not a setting of the source's VanillaModelConfig" in message


def test_existing_run_is_not_overwritten(edit_config):
    run(edit_config(timestamp="once"))
    assert "holds a run already" in message_of(edit_config(timestamp="once"))


def test_run_that_is_no_edit_cannot_be_resumed(edit_config, source_run):
    message = message_of(edit_config(pipeline__resume_from=source_run))
    assert "is a cds-source run, not an edit" in message


def test_resumed_edit_keeps_its_settings(edit_config):
    config = edit_config()
    run(config)
    changed = edit_config(pipeline__resume_from=config.get_base_dir(), pipeline__guidance__w_cut=1.0)
    message = message_of(changed)
    assert "--pipeline.guidance.w-cut is 1.0, but the run that is resumed has 3.0" in message


def test_resumed_edit_whose_data_is_gone_says_so(edit_config, tmp_path, capture):
    moving = Path(shutil.copytree(capture, tmp_path / "scene"))
    config = edit_config(data=moving)
    run(config)
    moving.rename(tmp_path / "moved")
    resume = {"pipeline__resume_from": config.get_base_dir()}
    assert "is not there: give --data" in message_of(edit_config(**resume))
    run(edit_config(**resume, data=tmp_path / "moved"))
