"""Every kind of Stable Diffusion that people use, on small random models of the true classes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from single_file_checkpoint import write_single_file
from tiny_stable_diffusion import make_pipeline
from tiny_stable_diffusion_xl import make_xl_pipeline
from torch import Tensor

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, edit_image
from cds_nerf.diffusion import single_file
from cds_nerf.diffusion.self_attention import self_attention_layers
from cds_nerf.errors import UserAdvice, UserError

FAMILIES = {
    "SD 1.x": lambda: make_pipeline(),
    "SD 2.x": lambda: make_pipeline("v_prediction"),
    "SDXL": make_xl_pipeline,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {}
    for family, make in FAMILIES.items():
        paths[family] = tmp_path_factory.mktemp("model")
        make().save_pretrained(paths[family])
    return paths


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_is_edited(folders: dict[str, Path], family: str) -> None:
    diffusion = LatentDiffusion.from_pretrained(folders[family])
    image = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
    result = edit_image(image, "a cat", "a pig", diffusion, steps=2, progress=False)
    assert result.image.shape == image.shape
    assert result.image.isfinite().all()
    assert all(loss != 0 for losses in result.losses.values() for loss in losses)
    assert not torch.equal(result.latents, result.source_latents)


def test_sdxl_noise_is_that_of_the_diffusers_pipeline(folders: dict[str, Path]) -> None:
    pipeline = DiffusionPipeline.from_pretrained(folders["SDXL"])
    diffusion = LatentDiffusion.from_pretrained(folders["SDXL"])
    theirs, theirs_empty, pooled, pooled_empty = pipeline.encode_prompt("a red cat", device="cpu")
    ours = diffusion.encode_prompt("a red cat")
    torch.testing.assert_close(ours.conditional, theirs)
    torch.testing.assert_close(ours.unconditional, theirs_empty)
    torch.testing.assert_close(ours.pooled_conditional, pooled)
    torch.testing.assert_close(ours.pooled_unconditional, pooled_empty)

    seen = []
    pipeline.unet.register_forward_hook(
        lambda _module, args, kwargs, output: seen.append((args, kwargs, output)), with_kwargs=True
    )
    pipeline("a red cat", height=32, width=48, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    ((sample, timestep), kwargs, output) = seen[0]
    noise = diffusion.predict_noise(sample, timestep.expand(1).long(), kwargs["encoder_hidden_states"], pooled)
    torch.testing.assert_close(noise, output[0])


def test_sdxl_guidance_uses_every_self_attention_of_its_deep_transformers(folders: dict[str, Path]) -> None:
    assert len(self_attention_layers(LatentDiffusion.from_pretrained(folders["SDXL"]).unet)) == 4


def test_sdxl_unconditional_is_the_empty_prompt_where_the_model_says_so(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    pipeline = make_xl_pipeline()
    pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    pipeline.save_pretrained(tmp_path)
    text = LatentDiffusion.from_pretrained(tmp_path).encode_prompt("")
    assert torch.equal(text.unconditional, text.conditional)
    zeros = LatentDiffusion.from_pretrained(folders["SDXL"]).encode_prompt("")
    assert not zeros.unconditional.any()
    assert not zeros.pooled_unconditional.any()


def test_the_vae_of_sdxl_stays_in_float32_where_half_overflows(folders: dict[str, Path]) -> None:
    half = {name: LatentDiffusion.from_pretrained(folder, dtype=torch.float16) for name, folder in folders.items()}
    assert {name: (model.dtype, model.vae.dtype) for name, model in half.items()} == {
        "SD 1.x": (torch.float16, torch.float16),
        "SD 2.x": (torch.float16, torch.float16),
        "SDXL": (torch.float16, torch.float32),
    }
    assert LatentDiffusion.from_pretrained(folders["SDXL"], dtype=torch.bfloat16).vae.dtype == torch.bfloat16


def test_sdxl_without_pooled_embeddings_is_told(folders: dict[str, Path]) -> None:
    diffusion = LatentDiffusion.from_pretrained(folders["SDXL"])
    with pytest.raises(UserError, match="pooled text embeddings"):
        diffusion.predict_noise(torch.zeros(1, 4, 8, 8), torch.tensor([5]), torch.zeros(1, 16, 80))


@pytest.mark.usefixtures("float64_by_default")
def test_a_batch_of_prompts_serves_a_batch_of_latents_in_sdxl(folders: dict[str, Path]) -> None:
    diffusion = LatentDiffusion.from_pretrained(folders["SDXL"], dtype=torch.float64)
    guidance = CDSGuidance(CDSGuidanceConfig(), diffusion)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 2, 4, 8, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    targets = ["a pig", "a dog"]
    timestep = torch.tensor([300, 700])
    text = diffusion.encode_prompt("a cat")
    together = guidance(*latents, text, diffusion.encode_prompt(targets), timestep, noise)
    for index, target in enumerate(targets):
        one = slice(index, index + 1)
        alone = guidance(*latents[:, one], text, diffusion.encode_prompt(target), timestep[one], noise[one])
        torch.testing.assert_close(together.gradient[one], alone.gradient)


@pytest.mark.parametrize("sampler", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
def test_noise_schedules_without_betas_are_refused(tmp_path: Path, sampler: str) -> None:
    make_pipeline().save_pretrained(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": sampler}))
    with pytest.raises(UserError, match=f"has the noise schedule {sampler}"):
        LatentDiffusion.from_pretrained(tmp_path)


def test_a_refiner_s_unet_is_refused() -> None:
    parts = make_xl_pipeline().components
    parts["unet"].register_to_config(projection_class_embeddings_input_dim=5 * 8 + 24)
    with pytest.raises(UserError, match="refiners are not supported"):
        LatentDiffusion(parts["unet"], parts["scheduler"], text_encoder_2=parts["text_encoder_2"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_the_same_model(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    write_single_file(FAMILIES[family](), tmp_path / "model.safetensors")
    file, folder = (
        LatentDiffusion.from_pretrained(tmp_path / "model.safetensors", model_config=folders[family]),
        LatentDiffusion.from_pretrained(folders[family]),
    )
    assert file.prediction_type == folder.prediction_type
    assert torch.equal(file.alphas_cumprod, folder.alphas_cumprod)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected = getattr(folder, name).state_dict() if getattr(folder, name) else {}
        weights = getattr(file, name).state_dict() if getattr(file, name) else {}
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)
    torch.testing.assert_close(file.encode_prompt("cat").conditional, folder.encode_prompt("cat").conditional)


def test_a_single_file_that_cannot_be_used_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    whole = tmp_path / "model.safetensors"
    write_single_file(make_pipeline(), whole)
    weights = load_file(whole)

    def part(name: str, *left_out: str) -> Path:
        save_file({key: value for key, value in weights.items() if not key.startswith(left_out)}, tmp_path / name)
        return tmp_path / name

    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "old.ckpt").write_text("")
    cases: list[tuple[Path, Path | None, str]] = [
        (whole, None, "name a diffusers folder of the same kind with model_config"),
        (tmp_path / "text.safetensors", None, "is damaged or no .safetensors file"),
        (tmp_path / "old.ckpt", None, "pickled weights are not loaded"),
        (part("flux.safetensors", "model.diffusion_model."), None, "SD3, FLUX and PixArt have none"),
        (part("cut.safetensors", "model.diffusion_model.out.2"), folders["SD 1.x"], "has not all weights"),
        (
            part("norm.safetensors", "cond_stage_model.transformer.text_model.final"),
            folders["SD 1.x"],
            "not all weights",
        ),
        (part("vae.safetensors", "first_stage_model"), folders["SD 1.x"], "does not load"),
        (folders["SD 1.x"], folders["SD 1.x"], "is no single file"),
    ]
    for model, config, message in cases:
        with pytest.raises(UserError, match=message):
            LatentDiffusion.from_pretrained(model, model_config=config)


def mark(file: Path, *names: str, metadata: dict[str, str] | None = None, **others: Tensor) -> None:
    """Put empty tensors into a checkpoint, as its maker marks what it predicts."""
    save_file(load_file(file) | dict.fromkeys(names, torch.tensor([])) | others, file, metadata)


class TestWhatASingleFilePredicts:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        write_single_file(make_pipeline(), tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    def test_a_mark_says_that_it_is_the_velocity(self, folders: dict[str, Path], file: Path) -> None:
        mark(file, "v_pred")
        diffusion = LatentDiffusion.from_pretrained(file, model_config=folders["SD 1.x"])
        assert diffusion.prediction_type == "v_prediction"
        assert torch.equal(diffusion.alphas_cumprod, make_pipeline().scheduler.alphas_cumprod)

    @pytest.mark.parametrize("family", ["SD 1.x", "SDXL"])
    def test_another_says_that_the_schedule_ends_in_noise_alone(
        self, folders: dict[str, Path], tmp_path: Path, family: str
    ) -> None:
        pipeline = FAMILIES[family]()
        write_single_file(pipeline, tmp_path / "model.safetensors")
        mark(tmp_path / "model.safetensors", "v_pred", "ztsnr")
        diffusion = LatentDiffusion.from_pretrained(tmp_path / "model.safetensors", model_config=folders[family])
        schedule = DDIMScheduler.from_config(pipeline.scheduler.config, rescale_betas_zero_snr=True)
        assert diffusion.prediction_type == "v_prediction"
        assert torch.equal(diffusion.alphas_cumprod, schedule.alphas_cumprod)
        assert diffusion.alphas_cumprod[-1] == 0
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
        assert edit_image(image, "a cat", "a pig", diffusion, steps=2, progress=False).image.isfinite().all()

    def test_without_a_mark_it_is_what_the_configuration_says(self, folders: dict[str, Path], file: Path) -> None:
        for metadata in ({}, {"modelspec.prediction_type": "epsilon"}):
            mark(file, metadata=metadata)
            diffusion = LatentDiffusion.from_pretrained(file, model_config=folders["SD 2.x"])
            assert diffusion.prediction_type == "v_prediction"

    @pytest.mark.parametrize(
        ("metadata", "expected"),
        [
            ({"modelspec.prediction_type": "v"}, "v_prediction"),
            ({"modelspec.predict_key": "v"}, "v_prediction"),
            ({"modelspec.predict_key": "epsilon"}, "epsilon"),
            ({"modelspec.title": "a title"}, "epsilon"),
        ],
    )
    def test_where_no_configuration_is_given_its_metadata_say_it(
        self, folders: dict[str, Path], file: Path, monkeypatch: pytest.MonkeyPatch, metadata: dict, expected: str
    ) -> None:
        found_by_diffusers(monkeypatch, folders["SD 1.x"])
        mark(file, metadata=metadata)
        assert LatentDiffusion.from_pretrained(file).prediction_type == expected

    @pytest.mark.parametrize(("deviation", "expected"), [(0.05, "epsilon"), (0.2, "v_prediction")])
    def test_of_stable_diffusion_2_the_weights_say_it(
        self,
        folders: dict[str, Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        deviation: float,
        expected: str,
    ) -> None:
        file = tmp_path / "model.safetensors"
        write_single_file(make_pipeline(), file)
        weight = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
        mark(file, **{weight: deviation * torch.randn(320, generator=torch.Generator().manual_seed(0))})
        monkeypatch.setattr(single_file._Header, "is_sd2", True)
        found_by_diffusers(monkeypatch, folders["SD 2.x"])
        with pytest.warns(UserAdvice, match=f"does not say what it predicts; its weights look like {expected}"):
            assert LatentDiffusion.from_pretrained(file).prediction_type == expected
        assert LatentDiffusion.from_pretrained(file, model_config=folders["SD 2.x"]).prediction_type == "v_prediction"

    @pytest.mark.parametrize(("name", "model"), [("edm_vpred.sigma_max", "CosXL"), ("edm_mean", "Playground v2.5")])
    def test_schedules_without_betas_are_refused(self, file: Path, name: str, model: str) -> None:
        mark(file, "v_pred", name)
        with pytest.raises(UserError, match=f"has {name}, the noise schedule of {model}"):
            LatentDiffusion.from_pretrained(file)


def found_by_diffusers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let diffusers find a configuration where it would ask the hub for one."""
    monkeypatch.setattr(
        "diffusers.loaders.single_file.fetch_diffusers_config",
        lambda _checkpoint: {"pretrained_model_name_or_path": str(folder)},
    )


class TestOtherSingleFiles:
    def refused(self, file: Path, **options: Any) -> str:
        with pytest.raises(UserError) as caught:
            LatentDiffusion.from_pretrained(file, **options)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)
        return str(caught.value)

    @pytest.mark.parametrize(("channels", "kind"), [(9, "an inpainting model"), (8, "an instruction model")])
    def test_other_unets_are_named(self, folders: dict[str, Path], tmp_path: Path, channels: int, kind: str) -> None:
        pipeline = make_pipeline()
        config = {key: value for key, value in pipeline.unet.config.items() if key != "_use_default_values"}
        pipeline.unet = UNet2DConditionModel.from_config(config | {"in_channels": channels})
        write_single_file(pipeline, tmp_path / "a.safetensors")
        for options in ({}, {"model_config": folders["SD 1.x"]}):
            assert f"is {kind}" in (message := self.refused(tmp_path / "a.safetensors", **options))
            assert f"whose UNet takes {channels} channels where the VAE makes 4" in message

    @pytest.mark.parametrize("name", ["AutoencoderTiny", "AsymmetricAutoencoderKL"])
    def test_other_autoencoders_are_named(self, folders: dict[str, Path], tmp_path: Path, name: str) -> None:
        write_single_file(make_pipeline(), tmp_path / "a.safetensors")
        tensors = {key: value for key, value in load_file(tmp_path / "a.safetensors").items() if "first_st" not in key}
        vae = getattr(diffusers, name)().state_dict()
        tensors |= {f"first_stage_model.{key}": value for key, value in vae.items()}
        save_file(tensors, tmp_path / "a.safetensors")
        message = self.refused(tmp_path / "a.safetensors", model_config=folders["SD 1.x"])
        assert f"has the vae {name}, where it must be AutoencoderKL" in message

    def test_a_configuration_of_another_autoencoder_is_named(self, folders: dict[str, Path], tmp_path: Path) -> None:
        write_single_file(make_pipeline(), tmp_path / "a.safetensors")
        shutil.copytree(folders["SD 1.x"], tmp_path / "config")
        file = tmp_path / "config" / "vae" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "AutoencoderTiny"}))
        with pytest.raises(UserError, match=r"model_config .* has the vae AutoencoderTiny, where it must be"):
            LatentDiffusion.from_pretrained(tmp_path / "a.safetensors", model_config=tmp_path / "config")

    @pytest.mark.parametrize(
        ("tensors", "kind"),
        [
            (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "it is a LoRA, which is given as lora"),
            (["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"], "it is a LoRA, which is given as lora"),
            (["emb_params"], "it is a textual inversion, which is given as textual_inversion"),
            (["encoder.layers.0.weight", "decoder.layers.0.weight"], r"it is an AutoencoderTiny \(TAESD\) alone"),
            (["encoder.conv_in.weight", "decoder.conv_in.weight"], "it is a VAE alone"),
            (["control_model.input_blocks.0.0.weight"], "it is a ControlNet alone"),
            (
                ["down_blocks.0.attentions.0.proj_in.weight", "conv_in.weight"],
                "it is one part of a diffusers folder: give the",
            ),
            (["model.diffusion_model.joint_blocks.0.x.weight"], "it is a transformer, as SD3 and FLUX have"),
        ],
    )
    def test_files_without_a_unet_are_named(self, tmp_path: Path, tensors: list[str], kind: str) -> None:
        save_file({name: torch.zeros(1) for name in tensors}, tmp_path / "a.safetensors")
        assert re.search(
            f"has no UNet in the layout of Stable Diffusion: {kind}", self.refused(tmp_path / "a.safetensors")
        )

    def test_a_refiner_is_named(self, tmp_path: Path) -> None:
        unet = ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight")
        names = ("conditioner.embedders.0.model.ln_final.weight", *unet)
        save_file({name: torch.zeros(1) for name in names}, tmp_path / "a.safetensors")
        assert "has the second text encoder of SDXL alone, as its refiner does" in self.refused(
            tmp_path / "a.safetensors"
        )


@pytest.mark.parametrize("family", ["SD 1.x", "SDXL"])
def test_a_model_with_weights_in_half_precision_alone_loads(tmp_path: Path, family: str) -> None:
    FAMILIES[family]().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    for dtype in (torch.float16, torch.float32):
        diffusion = LatentDiffusion.from_pretrained(tmp_path, dtype=dtype)
        expected = FAMILIES[family]().unet.conv_in.weight.half().to(dtype)
        assert torch.equal(diffusion.unet.conv_in.weight, expected)


def test_of_two_precisions_the_one_that_is_wanted_is_loaded(tmp_path: Path) -> None:
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path)
    pipeline.unet.conv_in.weight.data.zero_()
    pipeline.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    for dtype, zero in ((torch.float16, True), (torch.bfloat16, False), (torch.float32, False)):
        assert (not LatentDiffusion.from_pretrained(tmp_path, dtype=dtype).unet.conv_in.weight.any()) == zero
