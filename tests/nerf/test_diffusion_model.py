"""The diffusion model of a scene's edit: each option that images have acts in scenes, too."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from single_file_checkpoint import write_single_file
from small_edit import load_checkpoint, run
from test_edit import assert_equal_states
from tiny_stable_diffusion import make_pipeline
from torch import Tensor

from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.errors import UserError
from cds_nerf.nerf.pipeline import CDSPipeline


@pytest.fixture
def lora(tmp_path) -> Path:
    unet = make_pipeline().unet
    torch.manual_seed(1)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    weights = {f"unet.{name}": value for name, value in get_peft_model_state_dict(unet).items()}
    save_file(weights, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


@pytest.fixture
def toy(tmp_path) -> Path:
    save_file(
        {"<toy>": 3 * torch.randn(2, 32, generator=torch.Generator().manual_seed(3))}, tmp_path / "toy.safetensors"
    )
    return tmp_path / "toy.safetensors"


@pytest.fixture
def edited(edit_config) -> Any:
    """The field and the pipeline that an edit with some options comes to."""
    count = iter(range(9))

    def edit(**options: Any) -> tuple[dict[str, Tensor], CDSPipeline]:
        typed = {
            name if "__" in name or name == "prompt" else f"pipeline__diffusion_model__{name}": value
            for name, value in options.items()
        }
        config = edit_config(timestamp=f"run{next(count)}", pipeline__orbit_frames=0, **typed)
        pipeline = run(config).pipeline
        return load_checkpoint(config.get_base_dir())["pipeline"], pipeline

    return edit


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-5) for name in one)


def test_lora_acts(edited, lora):
    plain, styled = edited()[0], edited(lora=(f"{lora}:0.5",))[0]
    assert not same(plain, styled)


def test_learned_word_acts(edited, toy):
    options = {"prompt": "a photo of a <toy>", "textual_inversion": (str(toy),)}
    other = options | {"textual_inversion": (f"{toy}=<other>",)}
    assert not same(edited(**options)[0], edited(**other)[0])


def test_what_saves_memory_gives_the_same_edit(edited):
    plain, _ = edited()
    checkpointed, pipeline = edited(gradient_checkpointing=True)
    assert pipeline.guidance.diffusion.unet.is_gradient_checkpointing
    assert same(plain, checkpointed)
    offloaded, pipeline = edited(cpu_offload=True)
    assert pipeline.guidance.diffusion.vae._hf_hook.execution_device == torch.device("cpu")
    assert same(plain, offloaded)


def test_tiles_are_used_for_large_views(edited, monkeypatch):
    plain, _ = edited(pipeline__guidance_resolution=64)
    tiled, pipeline = edited(pipeline__guidance_resolution=64, vae_tiling=True)
    assert pipeline.guidance.diffusion.vae.use_tiling
    assert not same(plain, tiled)


def test_precision_and_device_act(edited):
    _, pipeline = edited(dtype="bfloat16", device="cpu")
    assert pipeline.guidance.diffusion.dtype == torch.bfloat16
    assert pipeline.guidance.diffusion.device.type == "cpu"


def test_single_file_takes_its_configuration_from_a_folder(edited, diffusion_folder, tmp_path):
    write_single_file(make_pipeline(), tmp_path / "model.safetensors")
    _, pipeline = edited(
        pipeline__diffusion=None, model=str(tmp_path / "model.safetensors"), model_config=str(diffusion_folder)
    )
    unet = pipeline.guidance.diffusion.unet
    assert_equal_states(dict(unet.state_dict()), dict(make_pipeline().unet.state_dict()))


def test_bundled_model_is_taken_by_its_name(edit_config):
    config = edit_config(
        pipeline__diffusion="shapes",
        pipeline__source_prompt="a photo of a red cube on a gray floor",
        prompt="a photo of a blue cube on a gray floor",
        pipeline__guidance_resolution=32,
        max_num_iterations=1,
    )
    config.set_timestamp()
    assert config.pipeline.diffusion_model.model == "shapes"
    trainer = config.setup()
    trainer.setup()
    assert trainer.pipeline.guidance.diffusion.native_size == 64


def test_what_does_nothing_in_a_scene_is_refused(edit_config):
    with pytest.raises(UserError, match=r"--pipeline\.diffusion-model\.vae-slicing does nothing in an edit"):
        edit_config(pipeline__diffusion_model__vae_slicing=True).set_timestamp()


@pytest.mark.parametrize(
    ("short", "full", "value"),
    [("diffusion", "model", None), ("guidance_device", "device", "cpu"), ("guidance_dtype", "dtype", "bfloat16")],
)
def test_short_forms_mean_the_same(edit_config, diffusion_folder, short, full, value):
    value = value or str(diffusion_folder)
    config = edit_config(**{f"pipeline__{short}": value})
    config.set_timestamp()
    assert getattr(config.pipeline.diffusion_model, full) == value and getattr(config.pipeline, short) is None
    both = {f"pipeline__{short}": value, f"pipeline__diffusion_model__{full}": value}
    edit_config(**both).set_timestamp()
    message = (
        rf"--pipeline\.{short.replace('_', '-')} is '{value}' and --pipeline\.diffusion-model.* they mean the same"
    )
    with pytest.raises(UserError, match=message):
        edit_config(**(both | {f"pipeline__diffusion_model__{full}": "cuda"})).set_timestamp()


@pytest.fixture
def carrying(diffusion_folder, tmp_path) -> Any:
    """A model's folder that carries settings."""

    def make(**content: Any) -> str:
        folder = shutil.copytree(diffusion_folder, tmp_path / "carrying", dirs_exist_ok=True)
        (folder / "cds_nerf.json").write_text(json.dumps(content))
        return str(folder)

    return make


def test_settings_of_the_model_are_taken_where_nothing_was_typed_and_told(edit_config, carrying, capsys):
    model = carrying(
        guidance={"cds": {"guidance_scale": 3, "w_cut": 15.0}, "dds": {"guidance_scale": 5.0}},
        scene={
            "pipeline.w-keep": 2.5,
            "pipeline.guidance-resolution": 32,
            "max-num-iterations": 40,
            "optimizers.fields.optimizer.lr": 0.01,
            "optimizers.means.optimizer.lr": 0.3,
        },
    )
    typed = {"pipeline__diffusion": model, "max_num_iterations": None, "pipeline__guidance__w_cut": 3.0}
    config = edit_config(**typed)
    config.set_timestamp()
    pipeline = config.pipeline
    assert (pipeline.guidance.guidance_scale, pipeline.guidance.w_cut, pipeline.w_keep) == (3, 3.0, 2.5)
    assert pipeline.guidance_resolution == 16 and config.max_num_iterations == 40
    assert config.optimizers["fields"]["optimizer"].lr == 0.01 and "means" not in config.optimizers
    assert config.optimizers["fields"]["scheduler"].max_steps == 40
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "settings of the model: pipeline.guidance.guidance-scale 3, pipeline.w-keep 2.5, max-num-iterations 40" in told
    )
    other = edit_config(**typed, pipeline__guidance__score="dds")
    other.set_timestamp()
    assert other.pipeline.guidance.guidance_scale == 5
    relative = edit_config(**typed | {"pipeline__guidance__w_cut": None, "pipeline__guidance__relative_w_cut": 0.3})
    relative.set_timestamp()
    assert (relative.pipeline.guidance.w_cut, relative.pipeline.guidance.relative_w_cut) == (0, 0.3)


def test_resumed_edit_asks_no_model_for_settings(edit_config, carrying):
    config = edit_config(pipeline__diffusion=carrying())
    run(config)
    carrying(scene={"pipeline.w-keep": 2.5})
    resumed = edit_config(pipeline__resume_from=config.get_base_dir())
    resumed.set_timestamp()
    assert resumed.pipeline.w_keep == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"scene": {"output-dir": "x"}}, r"have output-dir: of a scene a model can set max-num-iterations, "),
        ({"scene": {"pipeline.diffusion-model.model": "x"}}, r"have pipeline\.diffusion-model\.model: of a scene"),
        ({"scene": {"pipeline.w-keep": "a lot"}}, r"have pipeline\.w-keep 'a lot': it must be like 1\.0"),
        ({"scene": {"pipeline.w-keep": -1}}, r"cds_nerf\.json: --pipeline\.w-keep is -1"),
        ({"guidance": {"cds": {"w_cat": 1}}}, r"have pipeline\.guidance\.w-cat, which is no setting"),
    ],
)
def test_settings_of_the_model_that_cannot_be_are_named(edit_config, carrying, content, message):
    with pytest.raises(UserError, match=rf"the model's settings .*{message}"):
        edit_config(pipeline__diffusion=carrying(**content)).set_timestamp()


def test_resumed_edit_finds_what_it_was_made_with_from_another_folder(
    edit_config, diffusion_folder, lora, tmp_path, monkeypatch
):
    monkeypatch.chdir(diffusion_folder.parent)
    config = edit_config(
        pipeline__diffusion=diffusion_folder.name,
        pipeline__diffusion_model__lora=(f"{os.path.relpath(lora)}:0.5",),
        max_num_iterations=1,
    )
    run(config)
    monkeypatch.chdir(tmp_path)
    run(edit_config(pipeline__resume_from=config.get_base_dir(), max_num_iterations=2))
    assert load_checkpoint(config.get_base_dir())["step"] == 1
    options = DiffusionOptions(model="shapes", lora=("owner/name:2",), textual_inversion=("owner/toy=<a>",))
    (tmp_path / "shapes").mkdir()
    assert options.anchored() == options


def test_options_of_the_model_may_change_on_resume_where_the_edit_stays_the_same(edit_config, lora):
    config = edit_config(max_num_iterations=2)
    run(config)
    resume = {"pipeline__resume_from": config.get_base_dir()}
    more = {"pipeline__diffusion_model__cpu_offload": True, "pipeline__guidance_dtype": "bfloat16"}
    resumed = edit_config(**resume, **more)
    resumed.set_timestamp()
    assert resumed.pipeline.diffusion_model.cpu_offload and resumed.pipeline.diffusion_model.dtype == "bfloat16"
    assert resumed.pipeline.diffusion_model.model == config.pipeline.diffusion_model.model
    with pytest.raises(UserError, match=r"--pipeline\.diffusion-model\.lora is .* has \(\), which stays"):
        edit_config(**resume, pipeline__diffusion_model__lora=(str(lora),)).set_timestamp()
    with pytest.raises(UserError, match=r"--pipeline\.diffusion is 'shapes', but .* which stays"):
        edit_config(**resume, pipeline__diffusion="shapes").set_timestamp()
