"""LatentDiffusion: encoding, decoding, prompts, noise, and which models it takes."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from tiny_stable_diffusion import LATENT_PIXELS, make_pipeline
from torch import nn

from cds_nerf import LatentDiffusion
from cds_nerf.errors import UserError

MakeDiffusion = Callable[..., LatentDiffusion]


class TestImages:
    def test_encoding_is_the_posterior_mean_times_the_scaling_factor(self, diffusion: LatentDiffusion) -> None:
        images = torch.rand(2, 3, 24, 40)
        latents = diffusion.encode(images)
        assert latents.shape == (2, 4, 24 // LATENT_PIXELS, 40 // LATENT_PIXELS)
        mean = diffusion.vae.encode(images * 2 - 1).latent_dist.mean
        torch.testing.assert_close(latents, mean * diffusion.vae.config["scaling_factor"])
        assert torch.equal(latents, diffusion.encode(images))

    def test_encoding_is_differentiable(self, make_diffusion: MakeDiffusion) -> None:
        diffusion = make_diffusion(dtype=torch.float64)
        image = torch.rand(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        assert diffusion.encode(image).dtype == torch.float64
        assert torch.autograd.gradcheck(diffusion.encode, (image,), fast_mode=True)

    def test_decoding_gives_images_between_0_and_1(self, diffusion: LatentDiffusion) -> None:
        latents = 5 * torch.randn(2, 4, 6, 10)
        images = diffusion.decode(latents)
        assert images.shape == (2, 3, 6 * LATENT_PIXELS, 10 * LATENT_PIXELS)
        assert images.min() >= 0 and images.max() <= 1
        decoded = diffusion.vae.decode(latents / diffusion.vae.config["scaling_factor"]).sample
        torch.testing.assert_close(images, ((decoded + 1) / 2).clamp(0, 1))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_latents_and_images_of_a_half_precision_model_are_float32(
        self, make_diffusion: MakeDiffusion, dtype: torch.dtype
    ) -> None:
        diffusion = make_diffusion(dtype=dtype)
        image = torch.rand(1, 3, 16, 16, requires_grad=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = diffusion.encode(image)
            assert latents.dtype == diffusion.decode(latents).dtype == torch.float32
        latents.sum().backward()
        assert image.grad is not None and image.grad.isfinite().all() and image.grad.abs().sum() > 0

    @pytest.mark.parametrize(
        ("width", "height", "nearest"),
        [
            (30, 24, "width 28 or 32, height 24"),
            (32, 27, "width 32, height 24 or 28"),
            (3, 5, "width 4, height 4 or 8"),
        ],
    )
    def test_an_image_that_does_not_fit_is_told_the_nearest_sizes(
        self, diffusion: LatentDiffusion, width: int, height: int, nearest: str
    ) -> None:
        assert diffusion.image_multiple == LATENT_PIXELS
        with pytest.raises(UserError, match=rf"images of {width}x{height} pixels.*{nearest}$"):
            diffusion.encode(torch.zeros(1, 3, height, width))

    @pytest.mark.parametrize("size", [(4, 4), (12, 20), (28, 60)])
    def test_the_sizes_it_names_go_through_the_unet(self, diffusion: LatentDiffusion, size: tuple[int, int]) -> None:
        latents = diffusion.encode(torch.rand(1, 3, *size))
        noise = diffusion.predict_noise(latents, torch.tensor([10]), diffusion.encode_prompt("a").conditional)
        assert noise.shape == latents.shape

    def test_native_size_is_that_of_the_training_images(self, diffusion: LatentDiffusion) -> None:
        assert diffusion.native_size == 16 * LATENT_PIXELS


class TestPrompts:
    def test_one_or_several(self, diffusion: LatentDiffusion) -> None:
        one = diffusion.encode_prompt("a fox")
        several = diffusion.encode_prompt(["a fox", "a wolf"])
        assert one.conditional.shape == one.unconditional.shape == (1, 16, 32)
        assert several.conditional.shape == several.unconditional.shape == (2, 16, 32)
        torch.testing.assert_close(several.conditional[:1], one.conditional)
        assert not torch.equal(several.conditional[0], several.conditional[1])
        torch.testing.assert_close(one.unconditional, diffusion.encode_prompt("").conditional)
        assert not one.conditional.requires_grad

    def test_one_that_is_too_long_is_cut_with_a_warning_that_says_what(self, diffusion: LatentDiffusion) -> None:
        with pytest.warns(UserWarning, match=r"longer than the model's 16 tokens; it does not see 'o p q'"):
            embedding = diffusion.encode_prompt("a b c d e f g h i j k l m n o p q")
        assert torch.equal(embedding.conditional, diffusion.encode_prompt("a b c d e f g h i j k l m n").conditional)

    def test_one_that_just_fits_is_not_warned_about(self, diffusion: LatentDiffusion) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            diffusion.encode_prompt("a b c d e f g h i j k l m n")


class TestNoise:
    def test_adding_it_is_the_schedulers_forward_process(self, diffusion: LatentDiffusion) -> None:
        scheduler = make_pipeline().scheduler
        latents, noise, timestep = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
        expected = scheduler.add_noise(latents, noise, timestep)
        torch.testing.assert_close(diffusion.add_noise(latents, noise, timestep), expected)

    def test_a_perfect_velocity_is_turned_into_the_noise(self, make_diffusion: MakeDiffusion) -> None:
        diffusion, scheduler = make_diffusion("v_prediction"), make_pipeline("v_prediction").scheduler
        latents, noise, timestep = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
        velocity = scheduler.get_velocity(latents, noise, timestep)
        diffusion.unet.forward = lambda *_: type("Output", (), {"sample": velocity})
        noisy = scheduler.add_noise(latents, noise, timestep)
        predicted = diffusion.predict_noise(noisy, timestep, torch.zeros(2, 16, 32))
        torch.testing.assert_close(predicted, noise, rtol=1e-4, atol=1e-4)

    def test_any_scheduler_of_the_same_noise_gives_the_same_model(self, diffusion: LatentDiffusion) -> None:
        config = make_pipeline().scheduler.config
        other = LatentDiffusion(unet=diffusion.unet, scheduler=EulerDiscreteScheduler.from_config(config))
        torch.testing.assert_close(other.alphas_cumprod, diffusion.alphas_cumprod)


class TestHolding:
    def test_its_weights_never_enter_the_module_that_holds_it(self, diffusion: LatentDiffusion) -> None:
        module = nn.Linear(2, 2)
        module.diffusion = diffusion
        assert list(module.state_dict()) == ["weight", "bias"]
        assert len(list(module.parameters())) == 2 and len(list(module.modules())) == 1
        module.train()
        assert not diffusion.unet.training


class TestParts:
    def test_without_vae_or_text_encoder_the_rest_works(self, diffusion: LatentDiffusion) -> None:
        parts = LatentDiffusion(unet=diffusion.unet, scheduler=make_pipeline().scheduler)
        with pytest.raises(UserError, match="no VAE"):
            parts.encode(torch.zeros(1, 3, 8, 8))
        with pytest.raises(UserError, match="no VAE"):
            parts.decode(torch.zeros(1, 4, 2, 2))
        with pytest.raises(UserError, match="no text encoder and tokenizer"):
            parts.encode_prompt("a fox")
        assert parts.predict_noise(torch.zeros(1, 4, 8, 8), torch.tensor([1]), torch.zeros(1, 16, 32)).shape[1] == 4

    def test_models_it_cannot_use_are_named(self) -> None:
        pipeline = make_pipeline()

        def unet_with(**settings: Any) -> UNet2DConditionModel:
            # Those that are marked as defaults would be set back to them.
            config = {k: v for k, v in pipeline.unet.config.items() if k != "_use_default_values"}
            return UNet2DConditionModel.from_config(config | settings)

        with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
            LatentDiffusion(pipeline.unet, FlowMatchEulerDiscreteScheduler())
        with pytest.raises(UserError, match="prediction_type is 'sample'; supported are"):
            LatentDiffusion(pipeline.unet, DDIMScheduler(prediction_type="sample"))
        with pytest.raises(
            UserError, match="is an inpainting model, whose UNet takes 9 channels where the VAE makes 4"
        ):
            LatentDiffusion(unet_with(in_channels=9), pipeline.scheduler, pipeline.vae)
        with pytest.raises(UserError, match="wants class labels, as those of upscalers and unCLIP do"):
            LatentDiffusion(unet_with(num_class_embeds=10), pipeline.scheduler)
        conditioned = unet_with(addition_embed_type="text", addition_embed_type_num_heads=4)
        with pytest.raises(UserError, match=r"additional conditioning \(addition_embed_type='text'\)"):
            LatentDiffusion(conditioned, pipeline.scheduler)
