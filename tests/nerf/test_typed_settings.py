"""What was typed of an edit acts or is refused, also where it equals a default; what was not typed is not changed."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
import yaml
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion, method_configs
from nerfstudio.scripts import train
from nerfstudio.utils.eval_utils import eval_setup
from small_edit import SOURCE_PROMPT, TARGET_PROMPT, fresh, load_checkpoint, run, train_source
from test_edit import assert_equal_states, interrupt_at

from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.errors import Interrupted, UserError
from cds_nerf.nerf.method import cds_source
from cds_nerf.nerf.trainer import CDSTrainerConfig
from cds_nerf.typed_options import value_at


@pytest.fixture
def words(source_run, diffusion_folder, tmp_path) -> list[str]:
    """Of a new edit, behind `ns-train cds`."""
    return [
        *("--load-dir", str(source_run), "--pipeline.source-prompt", SOURCE_PROMPT, "--prompt", TARGET_PROMPT),
        *("--pipeline.diffusion", str(diffusion_folder), "--pipeline.guidance-resolution", "16"),
        *("--output-dir", str(tmp_path / "outputs"), "--machine.device-type", "cpu", "--vis", "tensorboard"),
        *("--pipeline.orbit-frames", "0", "--max-num-iterations", "3"),
    ]


def settled(*words: str) -> CDSTrainerConfig:
    """What becomes of a command line of ns-train before anything is made."""
    config: Any = tyro.cli(AnnotatedBaseConfigUnion, args=words)
    config.set_timestamp()
    return config


def message_of(*words: str) -> str:
    with pytest.raises(UserError) as ending:
        settled(*words)
    assert "\n" not in str(ending.value)
    return str(ending.value)


def contents(folder: Path) -> dict[Path, str]:
    return {path: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def far_source(capture, tmp_path) -> Path:
    """A source whose settings are not the defaults."""
    config = fresh(cds_source.config)
    config.pipeline.datamanager.dataparser.scale_factor = 0.5
    config.pipeline.datamanager.camera_res_scale_factor = 0.5
    return train_source(config, capture, tmp_path / "far", far_plane=50.0)


def test_value_that_equals_a_default_is_typed_over_the_source(words, far_source):
    words = ["cds", *words, "--load-dir", str(far_source)]
    kept = settled(*words)
    assert kept.pipeline.model.far_plane == 50 and kept.pipeline.datamanager.camera_res_scale_factor == 0.5
    typed = settled(
        *(*words, "--pipeline.model.far-plane", "1000.0", "--pipeline.datamanager.camera-res-scale-factor=1.0")
    )
    assert typed.pipeline.model.far_plane == 1000 and typed.pipeline.datamanager.camera_res_scale_factor == 1
    assert typed.pipeline.model.num_levels == kept.pipeline.model.num_levels != type(kept.pipeline.model)().num_levels


def test_setting_within_a_list_or_an_optimizer_is_typed_over_the_source(words):
    config = settled("cds", *words, "--pipeline.model.proposal_net_args_list.0.max-res", "512")
    assert config.pipeline.model.proposal_net_args_list == [
        {"hidden_dim": 16, "log2_hashmap_size": 10, "num_levels": 3, "max_res": 512}
    ]
    message = message_of("cds", *words, "--pipeline.model.proposal-net-args-list.1.max-res", "256")
    assert "--pipeline.model.proposal-net-args-list.1.max-res is not a setting of the source's Nerf" in message


def test_data_parser_that_is_named_again_keeps_the_source_s_settings(words, far_source, capture):
    words = ["cds", *words, "--load-dir", str(far_source)]
    assert settled(*words, "nerfstudio-data").pipeline.datamanager.dataparser.scale_factor == 0.5
    typed = settled(*words, "nerfstudio-data", "--downscale-factor", "2").pipeline.datamanager.dataparser
    assert (typed.scale_factor, typed.downscale_factor) == (0.5, 2)
    assert "the poses are normalised otherwise" in message_of(*words, "nerfstudio-data", "--scale-factor=1")
    assert settled(*words, "nerfstudio-data", "--data", str(capture)).pipeline.datamanager.data == capture
    assert "BlenderDataParser cannot read the data" in message_of(*words, "blender_data", "--scale_factor", "1.0")


def test_word_for_a_prompt_chooses_no_data_parser(words, far_source):
    config = settled("cds", *words, "--load-dir", str(far_source), "--prompt", "blender-data")
    assert config.pipeline.target_prompt == "blender-data"
    assert config.pipeline.datamanager.dataparser.scale_factor == 0.5


@pytest.mark.parametrize("typed", [True, False])
def test_rate_decays_over_the_typed_steps_or_over_the_edit(words, typed):
    more = ["--max-num-iterations", "3000"]
    if typed:
        more += ["--optimizers.fields.scheduler.max-steps", "1000"]
    optimizers = settled("cds", *words, *more).optimizers
    assert optimizers["fields"]["scheduler"].max_steps == (1000 if typed else 3000)
    assert optimizers["proposal_networks"]["scheduler"].max_steps == 3000


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--data A --pipeline.datamanager.data B", r"--data is A and --pipeline\.datamanager\.data is B: they mean"),
        ("--data A nerfstudio-data --data B", r"--data of the data parser is B and --pipeline.datamanager.data is A"),
        ("--load-checkpoint x.ckpt", r"--load-dir is .* and --load-checkpoint is x\.ckpt"),
        ("--pipeline.model.prompt x", r"--pipeline\.model\.prompt does nothing.*--prompt"),
        (
            "--pipeline.datamanager.train-num-rays-per-batch 4096",
            r"train-num-rays-per-batch does nothing.*rays-per-chunk",
        ),
        ("--pipeline.datamanager.eval-num-rays-per-batch 4096", r"does nothing without --steps-per-eval-image"),
        ("--pipeline.datamanager.pixel-sampler.ignore-mask True", r"ignore-mask does nothing"),
        ("--pipeline.model.loss-coefficients.rgb-loss-fine 1.0", r"rgb-loss-fine does nothing.*photographs"),
        ("--pipeline.model.proposal-warmup 5000", r"proposal-warmup does nothing"),
        ("--load-scheduler False", r"--load-scheduler is False; an edit"),
        ("--method-name nerfacto", r"--method-name is 'nerfacto'; "),
        ("--machine.dist-url tcp://x", r"--machine\.dist-url is 'tcp://x'; "),
        ("--start-paused True", r"--start-paused True: .*--vis viewer"),
        ("--mixed-precision True", r"--mixed-precision is True; on a CPU"),
        ("--pipeline.model.implementation tcnn", r"--pipeline\.model\.implementation is tcnn, .* made with torch"),
        ("--gradient-accumulation-steps field 2", r"--gradient-accumulation-steps has field; .* fields, proposal_n"),
        ("--optimizers.fields.optimizer.lr 0", r"--optimizers\.fields\.optimizer\.lr is 0\.0; .*greater than 0"),
        ("--optimizers.fields.scheduler.warmup-steps 3", r"warmup-steps is 3; it must be less than the 3 steps"),
        ("--machine.seed -1", r"--machine\.seed is -1; it must be at least 0"),
    ],
)
def test_what_was_typed_in_vain_is_refused(words, typed, message):
    assert re.search(message, message_of("cds", *words, *typed.split()))


def test_options_of_photographs_act_where_these_are_evaluated(words):
    config = settled(
        "cds", *words, "--steps-per-eval-batch", "2", "--pipeline.datamanager.eval-num-rays-per-batch", "64"
    )
    assert config.pipeline.datamanager.eval_num_rays_per_batch == 64


def test_group_that_the_source_does_not_have_is_named(words, capture, tmp_path):
    config = fresh(method_configs["vanilla-nerf"])
    config.pipeline.datamanager.dataparser = fresh(cds_source.config).pipeline.datamanager.dataparser
    config.output_dir, config.timestamp, config.data = tmp_path, "made", capture
    config.pipeline.datamanager.data = capture
    config.save_config()
    (config.get_base_dir() / "nerfstudio_models").mkdir()
    torch.save({"pipeline": {}, "step": 0}, config.get_base_dir() / "nerfstudio_models" / "step-000000000.ckpt")
    words = ["cds", *words, "--load-dir", str(config.get_base_dir())]
    message = message_of(*words, "--optimizers.proposal-networks.optimizer.lr", "0.001")
    assert re.search(
        r"--optimizers\.proposal-networks\.optimizer\.lr: the source has no such group, but .*field", message
    )
    assert "does not fit" in message_of(*words, "--optimizers.fields.optimizer.lr", "0.1")


# Runs that exist are not trained over.


@pytest.mark.parametrize("file", ["source", "edit", "nerfacto"])
def test_load_config_is_refused_whatever_run_it_is_of(words, edit_config, source_run, tmp_path, file):
    folder = source_run
    if file == "edit":
        config = edit_config()
        run(config)
        folder = config.get_base_dir()
    elif file == "nerfacto":
        folder = tmp_path
        (tmp_path / "config.yml").write_text(yaml.dump(method_configs["nerfacto"]))
    before = contents(folder)
    with pytest.raises(
        UserError, match=rf"--load-config {folder}/config\.yml .*--load-dir {folder}.*resume-from {folder}"
    ):
        train.main(tyro.cli(AnnotatedBaseConfigUnion, args=["cds", *words, "--load-config", f"{folder}/config.yml"]))
    assert contents(folder) == before


@pytest.mark.parametrize("method", ["cds-source", "nerfacto"])
def test_edit_is_not_trained_by_other_methods(edit_config, method):
    config = edit_config()
    run(config)
    folder = config.get_base_dir()
    before = contents(folder)
    with pytest.raises(UserError, match=rf"is another run: .* --pipeline\.resume-from {folder}"):
        train.main(tyro.cli(AnnotatedBaseConfigUnion, args=[method, "--load-config", f"{folder}/config.yml"]))
    assert contents(folder) == before


def test_source_is_not_trained_over(source_run, capture, tmp_path):
    folder = Path(shutil.copytree(source_run, tmp_path / "scene" / "cds-source" / "time"))
    before = contents(folder)
    for words in (
        ["cds-source", "--load-config", f"{folder}/config.yml"],
        ["nerfacto", "--load-config", f"{source_run}/config.yml"],
        *(["cds-source", "--output-dir", str(tmp_path), "--data", str(tmp_path / "scene"), "--timestamp", "time"],),
    ):
        with pytest.raises(UserError, match=r"(over its checkpoint|holds a run already).*--load-dir"):
            train.main(tyro.cli(AnnotatedBaseConfigUnion, args=words))
    assert contents(folder) == before
    words += ["--load-dir", str(folder / "nerfstudio_models")]
    settled(*words)


# A resumed edit is the same edit.


@pytest.fixture
def started(words, monkeypatch) -> Path:
    """An edit, with settings that are no defaults, that was interrupted in its second step."""
    more = ["--pipeline.guidance.w-cut", "15", "--pipeline.rays-per-chunk", "100", "--steps-per-save", "1"]
    more += ["--logging.steps-per-log", "7", "--viewer.quit-on-train-completion", "True", "--logging.profiler", "none"]
    config = settled("cds", *words, *more, "--timestamp", "started")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 1)
        run_settled(config)
    return config.get_base_dir()


def run_settled(config: CDSTrainerConfig) -> None:
    config.save_config()
    trainer = config.setup()
    trainer.setup()
    trainer.train()


def test_resumed_edit_has_its_own_settings_in_everything(started):
    before = yaml.load((started / "config.yml").read_text(), Loader=yaml.Loader)
    resumed = settled("cds", "--pipeline.resume-from", str(started))
    assert resumed == before
    assert resumed.vis == "tensorboard" and resumed.pipeline.rays_per_chunk == 100
    run_settled(resumed)
    assert load_checkpoint(started)["step"] == 2


@pytest.mark.parametrize(
    ("typed", "path", "value"),
    [
        ("--pipeline.rays-per-chunk 4096", "pipeline.rays_per_chunk", 4096),
        ("--vis viewer+tensorboard", "vis", "viewer+tensorboard"),
        ("--steps-per-save 100", "steps_per_save", 100),
        ("--logging.steps-per-log 1", "logging.steps_per_log", 1),
        ("--viewer.quit-on-train-completion False", "viewer.quit_on_train_completion", False),
        ("--max-num-iterations 1000", "max_num_iterations", 1000),
        ("--pipeline.guidance-dtype bfloat16", "pipeline.diffusion_model.dtype", "bfloat16"),
    ],
)
def test_what_may_change_on_resume_is_changed_where_it_was_typed(started, typed, path, value):
    resumed = settled("cds", "--pipeline.resume-from", str(started), *typed.split())
    untouched = settled("cds", "--pipeline.resume-from", str(started))
    assert value_at(resumed, path) == value != value_at(untouched, path)
    for other in ("pipeline.rays_per_chunk", "vis", "logging.profiler", "viewer.quit_on_train_completion"):
        assert other == path or value_at(resumed, other) == value_at(untouched, other)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--pipeline.guidance.w-cut 3.0", r"--pipeline\.guidance\.w-cut is 3\.0, but .* has 15\.0, which stays"),
        ("--prompt", r"--prompt is 'a bear', but .* 'a photo of a wolf'"),
        ("--timestamp other", r"--timestamp is 'other', but .* 'started'"),
        ("blender-data", r"--pipeline\.datamanager\.dataparser is Blender"),
        ("nerfstudio-data --scale-factor 2", r"--scale-factor of the data parser is 2\.0, but .* has 1\.0"),
        ("--optimizers.fields.optimizer.lr 0.01", r"--optimizers\.fields\.optimizer\.lr is 0\.01, but"),
        ("--load-dir x", r"--load-dir starts a new edit"),
    ],
)
def test_other_edit_is_not_resumed(started, typed, message):
    more = [*typed.split(), *(["a bear"] if typed == "--prompt" else [])]
    assert re.search(message, message_of("cds", "--pipeline.resume-from", str(started), *more))


def test_edit_is_resumed_by_all_that_it_was_started_with(started, words):
    (load_dir := words.index("--load-dir"))
    words = words[:load_dir] + words[load_dir + 2 :]
    more = ["--pipeline.guidance.w-cut", "15", "--timestamp", "started", "nerfstudio-data"]
    assert settled("cds", *words, "--pipeline.resume-from", str(started), *more).get_base_dir() == started


def test_device_that_is_gone_is_named_with_the_flag(started, monkeypatch):
    path = started / "config.yml"
    path.write_text(path.read_text().replace("device_type: cpu", "device_type: cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = message_of("cds", "--pipeline.resume-from", str(started))
    assert re.search(r"--machine\.device-type is cuda, .* add --machine\.device-type cpu", message)
    resumed = settled("cds", "--pipeline.resume-from", str(started), "--machine.device-type", "cpu")
    assert resumed.machine.device_type == "cpu" and resumed.vis == "tensorboard"


def test_edit_of_version_0_1_0_goes_on_and_is_opened(edit_config, source_run, capture, diffusion_folder, monkeypatch):
    settings = {"pipeline__guidance__w_cut": 15.0, "pipeline__rays_per_chunk": 100, "steps_per_save": 1}
    whole = edit_config(timestamp="whole", **settings)
    run(whole)
    config = edit_config(timestamp="old", **settings)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_at(patch, 2)
        run(config)
    folder = config.get_base_dir()
    old = (Path(__file__).parent / "config_of_version_0_1_0.yml").read_text()
    for name, value in {
        "SOURCE_CHECKPOINT": next((source_run / "nerfstudio_models").iterdir()),
        "DATA": capture,
        "OUTPUTS": config.output_dir,
        "DIFFUSION": diffusion_folder,
        "unnamed": config.experiment_name,
    }.items():
        old = old.replace(name, str(value))
    (folder / "config.yml").write_text(old)
    opened, pipeline, _, _ = eval_setup(folder / "config.yml", test_mode="inference")
    assert isinstance(opened, CDSTrainerConfig) and pipeline.config.diffusion_model == DiffusionOptions()
    print(opened)  # as ns-train does
    run(edit_config(pipeline__resume_from=folder))
    assert_equal_states(load_checkpoint(folder)["pipeline"], load_checkpoint(whole.get_base_dir())["pipeline"])
    written = yaml.load((folder / "config.yml").read_text(), Loader=yaml.Loader)
    assert written.pipeline.diffusion_model.model == str(diffusion_folder)
    run(edit_config(pipeline__resume_from=folder, max_num_iterations=4))


def test_python_settings_that_differ_from_the_defaults_count_as_typed(source_run, diffusion_folder, tmp_path):
    config = CDSTrainerConfig()
    config.load_dir, config.output_dir, config.prompt = source_run, tmp_path, TARGET_PROMPT
    config.pipeline.source_prompt, config.pipeline.model.far_plane = SOURCE_PROMPT, 77.0
    config.pipeline.diffusion = str(diffusion_folder)
    config.set_timestamp()
    assert config.pipeline.model.far_plane == 77 and config.pipeline.model.num_levels == 4
    assert config.pipeline.target_prompt == TARGET_PROMPT


def test_rays_per_chunk_of_a_resumed_edit_are_its_own(words, started):
    """It draws the sampling jitter of each chunk: other chunks are another edit."""
    more = ["--pipeline.guidance.w-cut", "15", "--pipeline.rays-per-chunk", "100"]
    whole = settled("cds", *words, *more, "--timestamp", "whole")
    run_settled(whole)
    run_settled(settled("cds", "--pipeline.resume-from", str(started)))
    assert_equal_states(load_checkpoint(started)["pipeline"], load_checkpoint(whole.get_base_dir())["pipeline"])
