"""The CDS loss: equal to the plain way, at its promised cost, repeatable, and clear about mistakes."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from plain_cds import plain_cds, relative_difference
from torch import Generator, Tensor, nn

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding
from cds_nerf.errors import UserError

MakeDiffusion = Callable[..., LatentDiffusion]
Latents = tuple[Tensor, Tensor]
Texts = tuple[TextEmbedding, TextEmbedding]

TIMESTEP = torch.tensor([300, 800])


def generators(seed: int = 5, count: int = 2) -> list[Generator]:
    return [Generator().manual_seed(seed + item) for item in range(count)]


def noise_like(latents: Tensor) -> Tensor:
    return torch.randn(latents.shape, generator=Generator().manual_seed(2))


class TestAgainstThePlainWay:
    """plain_cds.py: four samples without gradient, two with, attention written out, loops over patches."""

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"patch_sizes": (1, 3, 4), "temperature": 0.2},
            {"n_patches": 20},
            {"n_patches": 20, "contrastive_query": "target"},
            {"contrastive_layers": (0,)},
            {"contrastive_layers": (1,)},
            {"guidance_scale": 3.0, "w_dds": 0.5, "w_cut": 10.0, "contrastive_query": "target"},
            {"w_dds": 0.0},
            {"contrastive_loss": "relations", "w_cut": 100.0, "n_patches": 20},
        ],
        ids=lambda settings: ",".join(settings) or "defaults",
    )
    def test_loss_and_gradient_are_equal(
        self, make_diffusion: MakeDiffusion, latents: Latents, texts: Texts, prediction_type: str, settings: Any
    ) -> None:
        diffusion = make_diffusion(prediction_type)
        config = CDSGuidanceConfig(**settings)
        source, target = latents[0], latents[1].requires_grad_()
        noise = noise_like(target)
        out = CDSGuidance(config, diffusion)(source, target, *texts, TIMESTEP, noise, generators())
        plain = plain_cds(config, diffusion, source, target, *texts, TIMESTEP, noise, generators())
        for actual, expected in zip((out.loss, out.dds_loss, out.cut_loss), plain, strict=True):
            assert actual.item() == pytest.approx(expected.item(), rel=1e-4)
            (gradient,) = torch.autograd.grad(actual, target, retain_graph=True)
            (plain_gradient,) = torch.autograd.grad(expected, target, retain_graph=True)
            assert relative_difference(gradient, plain_gradient) < 5e-5

    def test_the_choice_of_query_matters(self, diffusion: LatentDiffusion, latents: Latents, texts: Texts) -> None:
        losses = [
            CDSGuidance(CDSGuidanceConfig(contrastive_query=query), diffusion)(
                *latents, *texts, TIMESTEP, noise_like(latents[0])
            ).cut_loss
            for query in ("source", "target")
        ]
        assert losses[0] != pytest.approx(losses[1].item(), rel=1e-5)

    def test_gradient_goes_on_into_the_image_that_the_latents_are_encoded_from(
        self, diffusion: LatentDiffusion, texts: Texts
    ) -> None:
        image = torch.rand(1, 3, 40, 56, generator=Generator().manual_seed(3), requires_grad=True)
        source = diffusion.encode(torch.rand(1, 3, 40, 56, generator=Generator().manual_seed(4)))
        config, timestep, noise = CDSGuidanceConfig(), torch.tensor([200]), noise_like(source)
        out = CDSGuidance(config, diffusion)(source, diffusion.encode(image), *texts, timestep, noise)
        plain, *_ = plain_cds(config, diffusion, source, diffusion.encode(image), *texts, timestep, noise)
        (gradient,), (plain_gradient,) = (torch.autograd.grad(loss, image) for loss in (out.loss, plain))
        assert relative_difference(gradient, plain_gradient) < 5e-5


class TestOutput:
    def test_terms_are_as_the_design_says(self, diffusion: LatentDiffusion, latents: Latents, texts: Texts) -> None:
        config = CDSGuidanceConfig(w_dds=0.7, w_cut=2.0)
        target = latents[1].requires_grad_()
        out = CDSGuidance(config, diffusion)(latents[0], target, *texts, TIMESTEP)
        h, w = target.shape[-2:]
        assert not out.gradient.requires_grad and out.gradient.shape == target.shape
        assert out.timestep.tolist() == TIMESTEP.tolist()
        torch.testing.assert_close(out.loss, 0.7 * out.dds_loss + 2.0 * out.cut_loss)
        torch.testing.assert_close(out.dds_loss, 2000 * (target * out.gradient).sum() / (h * w), rtol=1e-4, atol=0)
        (dds_gradient,) = torch.autograd.grad(out.dds_loss, target, retain_graph=True)
        torch.testing.assert_close(dds_gradient, 2000 * out.gradient / (h * w))
        (cut_gradient,) = torch.autograd.grad(out.cut_loss, target, retain_graph=True)
        (out.loss * 3).backward()
        torch.testing.assert_close(target.grad, 3 * (0.7 * dds_gradient + 2.0 * cut_gradient))

    def test_equal_latents_and_prompts_have_nothing_to_change(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts
    ) -> None:
        out = CDSGuidance(CDSGuidanceConfig(), diffusion)(latents[0], latents[0].clone(), texts[0], texts[0])
        assert out.gradient.abs().max() < 1e-4
        assert out.cut_loss > 0

    def test_without_gradient_the_values_are_the_same(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts
    ) -> None:
        guidance, noise = CDSGuidance(CDSGuidanceConfig(), diffusion), noise_like(latents[0])
        target = latents[1].requires_grad_()
        expected = guidance(latents[0], target, *texts, TIMESTEP, noise)
        with counted(diffusion.unet) as calls:
            with torch.no_grad():
                under_no_grad = guidance(latents[0], target, *texts, TIMESTEP, noise)
            without_need = guidance(latents[0], target.detach(), *texts, TIMESTEP, noise)
        assert calls == [(6, False), (2, False)] * 2
        for out in (under_no_grad, without_need):
            assert not out.loss.requires_grad
            torch.testing.assert_close(out.loss, expected.loss.detach())
            torch.testing.assert_close(out.cut_loss, expected.cut_loss.detach())

    def test_with_no_contrastive_weight_its_loss_is_zero(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts
    ) -> None:
        target = latents[1].requires_grad_()
        noise = noise_like(target)
        expected = CDSGuidance(CDSGuidanceConfig(), diffusion)(latents[0], target, *texts, TIMESTEP, noise)
        out = CDSGuidance(CDSGuidanceConfig(w_cut=0), diffusion)(latents[0], target, *texts, TIMESTEP, noise)
        assert out.cut_loss == 0
        torch.testing.assert_close(out.gradient, expected.gradient, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(out.loss, expected.dds_loss, rtol=1e-3, atol=0)


@contextmanager
def counted(unet: nn.Module) -> Iterator[list[tuple[int, bool]]]:
    """The samples of each UNet call, and whether they were with gradient."""
    calls: list[tuple[int, bool]] = []

    def count(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls.append((len(args[0]), torch.is_grad_enabled() and args[0].requires_grad))

    handle = unet.register_forward_pre_hook(count)
    yield calls
    handle.remove()


class TestCost:
    @pytest.mark.parametrize(
        ("w_cut", "calls"), [(3.0, [(6, False), (2, True)]), (0.0, [(8, False)])], ids=["cds", "dds"]
    )
    def test_a_view_costs_three_samples_without_gradient_and_one_with(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts, w_cut: float, calls: list[tuple[int, bool]]
    ) -> None:
        guidance = CDSGuidance(CDSGuidanceConfig(w_cut=w_cut), diffusion)
        target = latents[1].requires_grad_()
        with counted(diffusion.unet) as made:
            guidance(latents[0], target, *texts).loss.backward()
        assert made == calls

    def test_no_weight_gets_a_gradient(self, diffusion: LatentDiffusion, latents: Latents, texts: Texts) -> None:
        CDSGuidance(CDSGuidanceConfig(), diffusion)(latents[0], latents[1].requires_grad_(), *texts).loss.backward()
        for part in (diffusion.unet, diffusion.vae, diffusion.text_encoder):
            assert not part.training
            assert all(not weight.requires_grad and weight.grad is None for weight in part.parameters())

    def test_nothing_of_the_unet_is_alive_before_backward(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts
    ) -> None:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
            out = CDSGuidance(CDSGuidanceConfig(), diffusion)(latents[0], latents[1].requires_grad_(), *texts)
        kept, nodes = 0, [out.loss.grad_fn]
        while nodes:
            node = nodes.pop()
            kept += 1
            nodes += [following for following, _ in node.next_functions if following is not None]
        assert len(saved) > 50 and kept < 12


class TestDraws:
    def test_a_seed_gives_the_same_loss_again(self, diffusion: LatentDiffusion, latents: Latents, texts: Texts) -> None:
        guidance = CDSGuidance(CDSGuidanceConfig(n_patches=10), diffusion)
        first, again, other = (
            guidance(*latents, *texts, generator=Generator().manual_seed(seed)) for seed in (7, 7, 8)
        )
        assert torch.equal(first.gradient, again.gradient) and torch.equal(first.timestep, again.timestep)
        assert first.cut_loss == again.cut_loss
        assert not torch.equal(first.gradient, other.gradient)

    def test_with_a_generator_each_an_item_gets_what_it_would_get_alone(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts
    ) -> None:
        guidance = CDSGuidance(CDSGuidanceConfig(n_patches=10), diffusion)
        source, target = latents[0], latents[1].requires_grad_()
        together = guidance(source, target, *texts, generator=generators())
        (gradient,) = torch.autograd.grad(together.loss, target)
        cut_loss = torch.zeros(())
        for item in range(2):
            one = slice(item, item + 1)
            alone_target = latents[1][one].detach().requires_grad_()
            alone = guidance(source[one], alone_target, *texts, generator=generators()[one])
            assert alone.timestep.item() == together.timestep[item]
            torch.testing.assert_close(alone.gradient, together.gradient[one], rtol=1e-3, atol=1e-4)
            (alone_gradient,) = torch.autograd.grad(alone.loss, alone_target)
            assert relative_difference(gradient[one], alone_gradient) < 5e-5
            cut_loss += alone.cut_loss.detach()
        torch.testing.assert_close(together.cut_loss.detach(), cut_loss)

    def test_timesteps_are_uniform_between_the_bounds(self, diffusion: LatentDiffusion) -> None:
        guidance = CDSGuidance(CDSGuidanceConfig(min_timestep=0.2, max_timestep=0.3), diffusion)
        drawn = guidance._draw_timestep([Generator().manual_seed(0)] * 5000)
        assert drawn.min() == 200 and drawn.max() == 300
        counts = drawn.bincount(minlength=301)[200:].float()
        chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert chi_squared < 150  # 100 degrees of freedom: exceeded once in 1000 times

    @pytest.mark.parametrize(("low", "high", "expected"), [(1.0, 1.0, 999), (0.0, 0.0, 0), (0.5, 0.5, 500)])
    def test_bounds_that_meet_give_one_timestep(
        self, diffusion: LatentDiffusion, low: float, high: float, expected: int
    ) -> None:
        guidance = CDSGuidance(CDSGuidanceConfig(min_timestep=low, max_timestep=high), diffusion)
        assert guidance._draw_timestep([None]).item() == expected

    def test_drawing_leaves_given_generators_in_charge(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts
    ) -> None:
        state = torch.get_rng_state()
        CDSGuidance(CDSGuidanceConfig(n_patches=10), diffusion)(*latents, *texts, generator=Generator())
        assert torch.equal(state, torch.get_rng_state())

    def test_precision_does_not_change_the_draws(
        self, make_diffusion: MakeDiffusion, latents: Latents, texts: Texts
    ) -> None:
        timesteps = [
            CDSGuidance(CDSGuidanceConfig(), make_diffusion(dtype=dtype))(
                *latents, *texts, generator=Generator().manual_seed(0)
            ).timestep.tolist()
            for dtype in (torch.float32, torch.bfloat16)
        ]
        assert timesteps[0] == timesteps[1]


class TestHalfPrecision:
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float16, 0.03)])
    def test_loss_is_float32_and_near_the_float32_models(
        self, make_diffusion: MakeDiffusion, latents: Latents, texts: Texts, dtype: torch.dtype, tolerance: float
    ) -> None:
        config, noise = CDSGuidanceConfig(guidance_scale=1.0), noise_like(latents[0])
        gradients = []
        for precision in (torch.float32, dtype):
            target = latents[1].detach().requires_grad_()
            guidance = CDSGuidance(config, make_diffusion(dtype=precision))
            out = guidance(latents[0], target, *texts, TIMESTEP, noise)
            assert out.loss.dtype == out.cut_loss.dtype == out.gradient.dtype == torch.float32
            gradients.append(
                [torch.autograd.grad(term, target, retain_graph=True)[0] for term in (out.dds_loss, out.cut_loss)]
            )
        for expected, actual in zip(*gradients, strict=True):
            assert actual.dtype == torch.float32 and actual.isfinite().all()
            assert relative_difference(actual, expected) < tolerance

    def test_float16_latents_get_a_float16_gradient(
        self, make_diffusion: MakeDiffusion, latents: Latents, texts: Texts
    ) -> None:
        target = latents[1].half().requires_grad_()
        CDSGuidance(CDSGuidanceConfig(), make_diffusion(dtype=torch.float16))(
            latents[0].half(), target, *texts
        ).loss.backward()
        assert target.grad is not None and target.grad.dtype == torch.float16 and target.grad.abs().sum() > 0

    def test_autocast_around_it_changes_nothing(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts
    ) -> None:
        guidance, noise = CDSGuidance(CDSGuidanceConfig(), diffusion), noise_like(latents[0])
        gradients = []
        for enabled in (False, True):
            target = latents[1].detach().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                guidance(latents[0], target, *texts, TIMESTEP, noise).loss.backward()
            gradients.append(target.grad)
        assert torch.equal(*gradients)

    def test_an_overflow_says_so(self, make_diffusion: MakeDiffusion, latents: Latents, texts: Texts) -> None:
        guidance = CDSGuidance(CDSGuidanceConfig(), make_diffusion(dtype=torch.float16))
        with pytest.raises(FloatingPointError, match=r"not finite in torch.float16 at timestep \[300, 800\].*bfloat16"):
            guidance(latents[0], latents[1] * 1e6, *texts, TIMESTEP)


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"guidance_scale": -1.0}, "guidance_scale is -1.0; it must be at least 0"),
            ({"w_dds": -1.0}, "w_dds is -1.0"),
            ({"w_cut": -0.1}, "w_cut is -0.1"),
            ({"relative_w_cut": -0.1}, "relative_w_cut is -0.1; it must be at least 0"),
            ({"relative_w_cut": float("nan")}, "relative_w_cut is nan; it must be at least 0"),
            (
                {"relative_w_cut": 0.5, "w_cut": 3.0},
                "w_cut is 3.0 and relative_w_cut is 0.5: they weigh the same, give one",
            ),
            (
                {"relative_w_cut": 0.5, "w_dds": 0.0},
                "relative_w_cut is 0.5, relative to a score whose weight w_dds is 0: give w_cut",
            ),
            ({"n_patches": 0}, "n_patches is 0; it must be at least 1"),
            ({"patch_sizes": ()}, r"patch_sizes is \(\)"),
            ({"patch_sizes": (1, 0)}, r"patch_sizes is \(1, 0\)"),
            ({"temperature": 0.0}, "temperature is 0.0; it must be greater than 0"),
            ({"min_timestep": -0.1}, "min_timestep is -0.1"),
            ({"min_timestep": 0.9, "max_timestep": 0.5}, "min_timestep is 0.9; it must be between 0 and max_timestep"),
            ({"max_timestep": 950.0}, "max_timestep is 950.0; it must be at most 1: it is a fraction"),
            ({"timestep_schedule": "cosine"}, "timestep_schedule is 'cosine'; it must be 'uniform' or 'decreasing'"),
            ({"timestep_spread": 1.5}, "timestep_spread is 1.5; it must be between 0 and 1"),
            ({"contrastive_layers": (0, -1)}, r"contrastive_layers is \(0, -1\); it must be indices of at least 0"),
            ({"contrastive_resolutions": (0,)}, r"contrastive_resolutions is \(0,\); it must be at least 1 each"),
            ({"contrastive_query": "both"}, "contrastive_query is 'both'; it must be 'source' or 'target'"),
            ({"contrastive_loss": "mse"}, "contrastive_loss is 'mse'; it must be 'patch_nce' or 'relations'"),
            (
                {"contrastive_loss": "relations", "contrastive_query": "target"},
                "contrastive_query is 'target', but relations have no query: leave it out",
            ),
            (
                {"contrastive_loss": "relations", "relative_w_cut": 0.5},
                "relative_w_cut is 0.5, relative to a gradient that is 0 before the edit",
            ),
            ({"w_cut": float("nan")}, "w_cut is nan"),
            ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
            ({"temperature": float("inf")}, "temperature is inf"),
            ({"min_timestep": float("nan")}, "min_timestep is nan"),
            ({"timestep_spread": float("nan")}, "timestep_spread is nan"),
        ],
        ids=str,
    )
    def test_a_wrong_setting_is_named(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            CDSGuidanceConfig(**settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"score": "dds", "n_patches": 3}, "n_patches is 3, but the contrastive loss has no weight: give w_cut"),
            ({"w_cut": 0.0, "contrastive_loss": "relations"}, "contrastive_loss is 'relations', but the contrastive"),
            ({"timestep_spread": 0.1}, "timestep_spread is 0.1, which is for timestep_schedule 'decreasing'"),
        ],
        ids=str,
    )
    def test_what_would_do_nothing_is_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError, match=message):
            CDSGuidanceConfig(**settings).check_told(settings)

    def test_what_acts_may_be_told(self) -> None:
        settings = {"score": "pds", "w_cut": 1.0, "n_patches": 3, "timestep_schedule": "decreasing"}
        CDSGuidanceConfig(**settings, timestep_spread=0.1).check_told({*settings, "timestep_spread"})
        CDSGuidanceConfig(score="dds").check_told({"n_patches", "timestep_spread"})  # as a record has them

    def test_a_patch_larger_than_the_feature_map(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts
    ) -> None:
        guidance = CDSGuidance(CDSGuidanceConfig(patch_sizes=(1, 16)), diffusion)
        with pytest.raises(UserError, match=r"patch_sizes has 16, but the UNet's smallest .* is 10x14"):
            guidance(*latents, *texts)
        assert torch.is_grad_enabled()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"source_latents": torch.zeros(2, 4, 8, 8)}, r"source latents of shape \[2, 4, 8, 8\]"),
            ({"source_latents": torch.zeros(1, 4, 14, 10)}, r"source latents of shape \[1, 4, 14, 10\]"),
            ({"timestep": torch.tensor([5])}, r"timestep of shape \[1\]: it must be \[2\]"),
            ({"timestep": torch.tensor(5)}, r"timestep of shape \[\]: it must be \[2\]"),
            ({"noise": torch.zeros(1, 4, 14, 10)}, r"noise of shape \[1, 4, 14, 10\]: it must be \[2, 4, 14, 10\]"),
            ({"generator": [Generator()]}, "1 generators for a batch of 2"),
            (
                {"source_text": TextEmbedding(torch.zeros(3, 16, 32), torch.zeros(1, 16, 32))},
                "embeddings of 3 prompts for a batch of 2",
            ),
        ],
        ids=["latents", "batch of one source", "timestep", "timestep number", "noise", "generators", "prompts"],
    )
    def test_shapes_that_do_not_agree(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts, arguments: dict[str, Any], message: str
    ) -> None:
        fitting = {
            "source_latents": latents[0],
            "target_latents": latents[1],
            "source_text": texts[0],
            "target_text": texts[1],
        }
        with pytest.raises(UserError, match=message):
            CDSGuidance(CDSGuidanceConfig(), diffusion)(**fitting | arguments)


def test_importing_it_imports_no_nerfstudio() -> None:
    code = "import sys, cds_nerf.guidance; sys.exit(any(name.split('.')[0] == 'nerfstudio' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
