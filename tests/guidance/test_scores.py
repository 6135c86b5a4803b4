"""Every score: the numbers of its authors' code, its own defaults, and no more UNet samples than its formula needs."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
import yaml
from diffusers import DDIMScheduler, UNet2DConditionModel
from plain_cds import relative_difference
from safetensors import safe_open
from test_cds import counted
from tiny_stable_diffusion_xl import make_xl_pipeline
from torch import Generator, Tensor

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding
from cds_nerf.errors import UserError
from cds_nerf.guidance.registry import SCORES, score_class

MakeDiffusion = Callable[..., LatentDiffusion]
Latents = tuple[Tensor, Tensor]
Texts = tuple[TextEmbedding, TextEmbedding]

REFERENCE = Path(__file__).parents[1] / "reference"
TOLERANCE = 1e-4


def read(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(REFERENCE / name, "pt") as file:
        return json.loads(file.metadata()["meta"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


class Reference:
    def __init__(self) -> None:
        self.meta, self.tensors = read("scores_reference_sd1.safetensors")
        model_meta, model = read(self.meta["model"])
        unet = UNet2DConditionModel(**model_meta["unet"])
        unet.load_state_dict({k.removeprefix("unet."): v for k, v in model.items() if k.startswith("unet.")})
        self.diffusion = LatentDiffusion(unet=unet, scheduler=DDIMScheduler(**model_meta["scheduler"]))
        self.texts = [TextEmbedding(model[f"text.{name}"], model["text.uncond"]) for name in ("source", "target")]

    def gradients(self, number: int, case: dict[str, Any], **settings: Any) -> tuple[Tensor, Tensor]:
        """The score, and the gradient of its loss with respect to the target latents."""
        target = self.tensors[f"case{number}.target_latents"].requires_grad_()
        config = CDSGuidanceConfig(guidance_scale=case["guidance_scale"], **settings)
        out = CDSGuidance(config, self.diffusion)(
            self.tensors[f"case{number}.source_latents"],
            target,
            *self.texts,
            timestep=torch.tensor([case["timestep"]]),
            noise=self.tensors[f"case{number}.noise"],
        )
        return out.gradient, torch.autograd.grad(out.loss, target)[0]


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("score", ["pds", "sds"])
def test_pds_and_sds_are_their_authors(reference: Reference, score: str, number: int) -> None:
    expected = reference.tensors[f"case{number}.{score}_score"]
    gradient, loss_gradient = reference.gradients(number, reference.meta["cases"][number], score=score)
    assert relative_difference(gradient, expected) < TOLERANCE
    h, w = expected.shape[-2:]
    assert relative_difference(loss_gradient, 2000 / (h * w) * expected) < TOLERANCE
    # The authors' loss has another constant: the mean over all elements.
    authors = reference.tensors[f"case{number}.{score}_gradient"]
    assert relative_difference(loss_gradient / (2000 / (h * w)) / expected.numel(), authors) < TOLERANCE


@pytest.mark.parametrize("number", range(4))
def test_ids_is_its_authors(reference: Reference, number: int) -> None:
    gradient, loss_gradient = reference.gradients(number, reference.meta["ids"][number], score="ids")
    expected = reference.tensors[f"case{number}.ids_score"]
    h, w = expected.shape[-2:]
    assert relative_difference(gradient, expected) < TOLERANCE
    assert relative_difference(loss_gradient, 2000 / (h * w) * expected) < TOLERANCE


def test_dds_is_cds_without_the_contrastive_loss(diffusion: LatentDiffusion, latents: Latents, texts: Texts) -> None:
    outs = [
        CDSGuidance(config, diffusion)(*latents, *texts, generator=Generator().manual_seed(3))
        for config in (CDSGuidanceConfig(score="dds"), CDSGuidanceConfig(w_cut=0))
    ]
    assert outs[0].terms.keys() == {"dds_loss"}
    assert torch.equal(outs[0].loss, outs[1].loss)


def test_pds_of_equal_prompts_pulls_back_to_the_source(diffusion: LatentDiffusion, latents: Latents) -> None:
    """What distinguishes it from a weighted Delta Denoising Score: psi is greater than 0."""
    text = diffusion.encode_prompt("a fox")
    source, target = latents
    out = CDSGuidance(CDSGuidanceConfig(score="pds", guidance_scale=0), diffusion)(
        source, target, text, text, timestep=torch.tensor([301, 301])
    )
    plain = CDSGuidance(CDSGuidanceConfig(score="dds", guidance_scale=0), diffusion)(
        source, target, text, text, timestep=torch.tensor([301, 301]), noise=torch.zeros_like(source)
    )
    along = (out.gradient * (target - source)).sum() / (target - source).square().sum()
    assert along > 0.01 and plain.gradient.abs().sum() > 0


class TestCost:
    """Samples for a batch of two: each UNet call's, and whether it was with gradient."""

    FIXED_POINT = [(4, True)] * 3

    @pytest.mark.parametrize(
        ("score", "w_cut", "calls"),
        [
            ("cds", None, [(6, False), (2, True)]),
            ("cds", 0.0, [(8, False)]),
            ("dds", None, [(8, False)]),
            ("dds", 3.0, [(6, False), (2, True)]),
            ("sds", None, [(4, False)]),
            ("sds", 3.0, [(4, False), (2, True)]),
            ("pds", None, [(8, False)]),
            ("pds", 3.0, [(6, False), (2, True)]),
            ("ids", None, [*FIXED_POINT, (8, False)]),
            ("ids", 3.0, [*FIXED_POINT, (6, False), (2, True)]),
        ],
    )
    def test_as_few_unet_samples_as_the_formula_needs(
        self,
        diffusion: LatentDiffusion,
        latents: Latents,
        texts: Texts,
        score: str,
        w_cut: float | None,
        calls: list[tuple[int, bool]],
    ) -> None:
        config = CDSGuidanceConfig(score=score) if w_cut is None else CDSGuidanceConfig(score=score, w_cut=w_cut)
        with counted(diffusion.unet) as made:
            CDSGuidance(config, diffusion)(latents[0], latents[1].requires_grad_(), *texts).loss.backward()
        assert made == calls

    @pytest.mark.parametrize("score", SCORES)
    def test_nothing_of_the_unet_gets_a_gradient(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts, score: str
    ) -> None:
        target = latents[1].requires_grad_()
        config = CDSGuidanceConfig(score=score, w_cut=3.0)
        CDSGuidance(config, diffusion)(latents[0], target, *texts).loss.backward()
        assert target.grad is not None and target.grad.abs().sum() > 0
        assert all(weight.grad is None for weight in diffusion.unet.parameters())


class TestContrastiveTerm:
    @pytest.mark.parametrize("score", ["dds", "sds", "pds"])
    def test_beside_any_score_it_is_that_of_cds(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts, score: str
    ) -> None:
        noise = torch.randn(latents[0].shape, generator=Generator().manual_seed(2))
        timestep, gradients, losses = torch.tensor([301, 801]), [], []
        for name in ("cds", score):
            target = latents[1].detach().requires_grad_()
            config = CDSGuidanceConfig(score=name, w_cut=3.0)
            out = CDSGuidance(config, diffusion)(latents[0], target, *texts, timestep, noise)
            assert list(out.terms) == [f"{'dds' if name == 'cds' else name}_loss", "cut_loss"]
            assert out.loss.item() == pytest.approx((out.dds_loss + 3 * out.cut_loss).item())
            gradients.append(torch.autograd.grad(out.weighted_terms["cut_loss"], target)[0])
            losses.append(out.cut_loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert relative_difference(*gradients) < TOLERANCE

    def test_beside_ids_it_is_taken_at_the_noise_that_the_moved_source_means(
        self, reference: Reference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = reference.meta["ids"][1]
        source, target = (reference.tensors[f"case1.{name}_latents"] for name in ("source", "target"))
        arguments = (source, target.requires_grad_(), *reference.texts, torch.tensor([case["timestep"]]))
        ids = CDSGuidance(CDSGuidanceConfig(score="ids", w_cut=3.0, n_patches=1000), reference.diffusion)
        cds = CDSGuidance(CDSGuidanceConfig(n_patches=1000), reference.diffusion)
        out = ids(*arguments, noise=reference.tensors["case1.noise"])
        expected = cds(*arguments, noise=reference.tensors["case1.ids_noise"])
        assert out.cut_loss.item() == pytest.approx(expected.cut_loss.item(), rel=TOLERANCE)
        assert relative_difference(out.gradient, expected.gradient) < TOLERANCE


class TestModels:
    @pytest.mark.parametrize("score", SCORES)
    def test_on_sdxl_a_batch_s_items_get_what_each_would_get_alone(self, latents: Latents, score: str) -> None:
        parts = make_xl_pipeline().components
        names = ("unet", "scheduler", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae")
        diffusion = LatentDiffusion(**{name: parts[name] for name in names})
        texts = [diffusion.encode_prompt(prompts) for prompts in (["a fox", "a cow"], ["a wolf", "a cow on ice"])]
        noise = torch.randn(latents[0].shape, generator=Generator().manual_seed(2))
        guidance = CDSGuidance(CDSGuidanceConfig(score=score, w_cut=3.0), diffusion)
        target = latents[1].requires_grad_()
        together = guidance(latents[0], target, *texts, torch.tensor([301, 801]), noise)
        (gradient,) = torch.autograd.grad(together.loss, target)
        second = slice(1, 2)
        alone_target = latents[1][second].detach().requires_grad_()
        alone_texts = [diffusion.encode_prompt(prompt) for prompt in ("a cow", "a cow on ice")]
        alone = guidance(latents[0][second], alone_target, *alone_texts, torch.tensor([801]), noise[second])
        assert relative_difference(torch.autograd.grad(alone.loss, alone_target)[0], gradient[second]) < TOLERANCE

    @pytest.mark.parametrize("score", SCORES)
    def test_a_checkpointed_unet_gives_the_same_gradient(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts, score: str
    ) -> None:
        guidance, gradients = CDSGuidance(CDSGuidanceConfig(score=score, w_cut=3.0), diffusion), []
        for checkpointing in (False, True):
            if checkpointing:
                diffusion.unet.enable_gradient_checkpointing()
            target = latents[1].detach().requires_grad_()
            guidance(latents[0], target, *texts, generator=Generator().manual_seed(0)).loss.backward()
            gradients.append(target.grad)
        assert torch.equal(*gradients)

    def test_velocity_and_noise_predictions_of_one_model_give_one_score(
        self, make_diffusion: MakeDiffusion, latents: Latents, texts: Texts
    ) -> None:
        """IDS moves noisy latents, so that the derivative of the conversion counts."""
        timestep = torch.tensor([301, 801])
        velocity, noise = make_diffusion("v_prediction"), make_diffusion()
        unet = noise.unet.forward

        def as_noise(latents: Tensor, timestep: Tensor, embedding: Tensor) -> Any:
            output = unet(latents, timestep, embedding)
            a = noise.alphas_cumprod[timestep][:, None, None, None]
            output.sample = a.sqrt() * output.sample + (1 - a).sqrt() * latents
            return output

        noise.unet.forward = as_noise
        drawn = torch.randn(latents[0].shape, generator=Generator().manual_seed(2))
        gradients = [
            CDSGuidance(CDSGuidanceConfig(score="ids"), diffusion)(*latents, *texts, timestep, drawn).gradient
            for diffusion in (velocity, noise)
        ]
        assert relative_difference(*gradients) < TOLERANCE


class TestDraws:
    @pytest.mark.parametrize("score", SCORES)
    def test_with_a_generator_each_an_item_gets_what_it_would_get_alone(
        self, make_diffusion: MakeDiffusion, latents: Latents, score: str
    ) -> None:
        diffusion = make_diffusion(dtype=torch.float64)  # so that nothing hides behind rounding
        texts = [diffusion.encode_prompt(prompt) for prompt in ("a fox", "a wolf")]
        guidance = CDSGuidance(CDSGuidanceConfig(score=score, w_cut=3.0, n_patches=10), diffusion)
        source, target = (each.double() for each in latents)
        target.requires_grad_()
        together = guidance(source, target, *texts, generator=[Generator().manual_seed(seed) for seed in (5, 6)])
        (gradient,) = torch.autograd.grad(together.loss, target)
        for item in range(2):
            one = slice(item, item + 1)
            alone_target = target[one].detach().requires_grad_()
            alone = guidance(source[one], alone_target, *texts, generator=[Generator().manual_seed(5 + item)])
            assert alone.timestep.item() == together.timestep[item]
            torch.testing.assert_close(alone.gradient, together.gradient[one], rtol=0, atol=1e-9)
            (alone_gradient,) = torch.autograd.grad(alone.loss, alone_target)
            torch.testing.assert_close(alone_gradient, gradient[one], rtol=0, atol=1e-8)

    @pytest.mark.parametrize(("score", "least", "most", "odd"), [("pds", 21, 979, True), ("sds", 20, 980, False)])
    def test_timesteps_are_those_of_the_score_s_grid(
        self, diffusion: LatentDiffusion, score: str, least: int, most: int, odd: bool
    ) -> None:
        guidance = CDSGuidance(CDSGuidanceConfig(score=score), diffusion)
        drawn = guidance._draw_timestep([Generator().manual_seed(0)] * 20000)
        assert drawn.min() == least and drawn.max() == most
        assert len(drawn.unique()) == (480 if odd else 961)
        assert (drawn % 2 == 1).all().item() is odd

    def test_bounds_between_two_timesteps_of_a_grid_give_the_next(self, diffusion: LatentDiffusion) -> None:
        for bound, expected in ((0.5, 501), (0.0, 3), (1.0, 999)):
            config = CDSGuidanceConfig(score="pds", min_timestep=bound, max_timestep=bound)
            assert CDSGuidance(config, diffusion)._draw_timestep([None]).item() == expected


class TestDefaults:
    def test_each_score_has_its_own(self) -> None:
        found = {
            name: (config.guidance_scale, config.w_cut, config.min_timestep, config.max_timestep)
            for name in SCORES
            for config in [CDSGuidanceConfig(score=name)]
        }
        assert found == {
            "cds": (7.5, 3.0, 0.05, 0.95),
            "dds": (7.5, 0.0, 0.05, 0.95),
            "sds": (100.0, 0.0, 0.02, 0.98),
            "pds": (100.0, 0.0, 0.02, 0.98),
            "ids": (7.5, 0.0, 0.05, 0.95),
        }
        assert CDSGuidanceConfig() == CDSGuidanceConfig(score="cds")

    def test_those_of_the_configuration_are_the_default_score_s(self) -> None:
        score = score_class(CDSGuidanceConfig.score)
        for name in ("guidance_scale", "w_cut", "min_timestep", "max_timestep"):
            assert getattr(CDSGuidanceConfig(), name) == getattr(score, name)


class TestMistakes:
    def test_an_unknown_score_is_named_with_those_that_there_are(self) -> None:
        with pytest.raises(UserError, match="score is 'vsd'; it must be one of cds, dds, sds, pds, ids"):
            CDSGuidanceConfig(score="vsd")

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                "no_such_module:Mine",
                "whose no_such_module:Mine cannot be imported: ModuleNotFoundError: No module named",
            ),
            ("cds_nerf.guidance.sds:Mine", "whose cds_nerf.guidance.sds:Mine cannot be imported: AttributeError"),
            ("cds_nerf.errors:UserError", "whose cds_nerf.errors:UserError is no subclass of cds_nerf.guidance.Score"),
        ],
    )
    def test_another_package_s_score_that_is_none_says_why(
        self, monkeypatch: pytest.MonkeyPatch, value: str, message: str
    ) -> None:
        entry = EntryPoint("mine", value, "cds_nerf.scores")
        monkeypatch.setattr("cds_nerf.guidance.registry.entry_points", lambda group: [entry])
        with pytest.raises(UserError, match=f"score is 'mine', {message}"):
            CDSGuidanceConfig(score="mine")
        with pytest.raises(UserError, match="one of cds, dds, sds, pds, ids, mine"):
            CDSGuidanceConfig(score="yours")

    @pytest.mark.parametrize(
        ("score", "timestep", "message"),
        [
            ("pds", 1, r"timestep is \[1\]; the score pds takes 3 to 999"),
            ("cds", 1000, r"timestep is \[1000\]; the score cds takes 0 to 999"),
            ("cds", -1, r"timestep is \[-1\]"),
        ],
    )
    def test_a_timestep_that_the_score_cannot_take(
        self, diffusion: LatentDiffusion, latents: Latents, texts: Texts, score: str, timestep: int, message: str
    ) -> None:
        guidance = CDSGuidance(CDSGuidanceConfig(score=score), diffusion)
        with pytest.raises(UserError, match=message):
            guidance(latents[0][:1], latents[1][:1], *texts, torch.tensor([timestep]))


class TestHalfPrecision:
    @pytest.mark.parametrize("score", SCORES)
    def test_in_float16_it_is_near_the_float32_model_s(
        self, make_diffusion: MakeDiffusion, latents: Latents, texts: Texts, score: str
    ) -> None:
        noise = torch.randn(latents[0].shape, generator=Generator().manual_seed(2))
        config = CDSGuidanceConfig(score=score, guidance_scale=1.0)
        gradients = [
            CDSGuidance(config, make_diffusion(dtype=dtype))(*latents, *texts, torch.tensor([301, 801]), noise).gradient
            for dtype in (torch.float32, torch.float16)
        ]
        assert gradients[1].dtype == torch.float32
        assert relative_difference(gradients[1], gradients[0]) < 0.03


class TestNotTold:
    """A command line hands on what was not typed as it stands in the defaults; what was typed acts, whatever it is."""

    @dataclass
    class Options:
        guidance: CDSGuidanceConfig = field(default_factory=CDSGuidanceConfig)

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], (7.5, 3.0, 0.05)),
            (["--guidance.score", "pds"], (100.0, 0.0, 0.02)),
            (["--guidance.score", "pds", "--guidance.guidance-scale", "7.5"], (7.5, 0.0, 0.02)),
            (["--guidance.score", "dds", "--guidance.w-cut", "3"], (7.5, 3.0, 0.05)),
            (["--guidance.score", "cds", "--guidance.min-timestep", "0.3"], (7.5, 3.0, 0.3)),
        ],
        ids=str,
    )
    def test_it_is_the_score_s_own(self, words: list[str], expected: tuple[float, ...]) -> None:
        config = tyro.cli(self.Options, args=words).guidance
        assert (config.guidance_scale, config.w_cut, config.min_timestep) == expected

    def test_it_follows_another_score_and_what_was_told_does_not(self) -> None:
        config = replace(CDSGuidanceConfig(w_cut=1.0, score="ids"), score="sds")
        assert (config.guidance_scale, config.w_cut) == (100.0, 1.0)
        assert replace(config, score="cds").guidance_scale == 7.5

    def test_in_files_it_is_a_number(self) -> None:
        config = CDSGuidanceConfig(score="pds")
        assert "guidance_scale: 100.0\n" in yaml.dump(asdict(config))
        assert json.loads(json.dumps(asdict(config)))["max_timestep"] == 0.98
