"""Every kind of Stable Diffusion that people use, on small random models of the true classes."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from single_file_checkpoint import write_single_file
from tiny_stable_diffusion import make_pipeline
from tiny_stable_diffusion_xl import make_xl_pipeline

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, edit_image
from cds_nerf.diffusion.self_attention import self_attention_layers
from cds_nerf.errors import UserError

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
