"""The relative contrastive weight: one number that means the same for every score, size and model."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from plain_cds import relative_difference
from torch import Generator, Tensor

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding
from cds_nerf.guidance.gradient_strengths import MEMORY, GradientStrengths
from cds_nerf.guidance.registry import SCORES

MakeDiffusion = Callable[..., LatentDiffusion]
Latents = tuple[Tensor, Tensor]
Texts = tuple[TextEmbedding, TextEmbedding]


def gradients(guidance: CDSGuidance, latents: Latents, texts: Texts, seed: int = 0) -> dict[str, Tensor]:
    """The gradient of each weighted term."""
    target = latents[1].detach().requires_grad_()
    out = guidance(latents[0], target, *texts, generator=Generator().manual_seed(seed))
    torch.testing.assert_close(out.loss, sum(out.weighted_terms.values()))
    return {name: torch.autograd.grad(loss, target, retain_graph=True)[0] for name, loss in out.weighted_terms.items()}


def strength(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).norm(dim=1)


@pytest.mark.parametrize("score", SCORES)
def test_in_the_first_step_it_is_the_ratio_of_both_gradients_of_each_item(
    diffusion: LatentDiffusion, latents: Latents, texts: Texts, score: str
) -> None:
    config = CDSGuidanceConfig(score=score, relative_w_cut=0.3, w_dds=0.7)
    change, keep = gradients(CDSGuidance(config, diffusion), latents, texts).values()
    torch.testing.assert_close(strength(keep), 0.3 * strength(change), rtol=1e-4, atol=0)


def test_over_many_steps_it_is_the_ratio_of_their_means_and_the_weight_grows_steady(
    diffusion: LatentDiffusion, latents: Latents, texts: Texts
) -> None:
    guidance = CDSGuidance(CDSGuidanceConfig(relative_w_cut=0.3), diffusion)
    plain = CDSGuidance(CDSGuidanceConfig(w_cut=1.0), diffusion)
    latents = (latents[0][:1], latents[1][:1])
    changes, keeps, weights = [], [], []
    for seed in range(30):
        _, keep = gradients(guidance, latents, texts, seed).values()
        change, unweighted = gradients(plain, latents, texts, seed).values()
        changes.append(strength(change))
        keeps.append(strength(unweighted))
        weights.append((strength(keep) / strength(unweighted)).item())
    decay = MEMORY ** torch.arange(29, -1, -1)
    expected = 0.3 * (decay * torch.cat(changes)).sum() / (decay * torch.cat(keeps)).sum()
    assert weights[-1] == pytest.approx(expected.item(), rel=1e-3)
    single = torch.cat(changes) / torch.cat(keeps)
    late = torch.tensor(weights[15:])
    assert late.std() / late.mean() < 0.2 * single.std() / single.mean()


@pytest.mark.parametrize(
    "change",
    [{"patch_sizes": (1,)}, {"contrastive_layers": (0,)}, {"guidance_scale": 3.0}, {"score": "pds"}],
    ids=str,
)
def test_it_means_the_same_where_a_plain_weight_does_not(
    diffusion: LatentDiffusion, latents: Latents, texts: Texts, change: dict[str, Any]
) -> None:
    def ratios(**settings: Any) -> list[float]:
        """The contrastive gradient's strength relative to the score's, before and after the change."""
        found = []
        for config in (CDSGuidanceConfig(**settings), CDSGuidanceConfig(**settings, **change)):
            change_, keep = gradients(CDSGuidance(config, diffusion), latents, texts).values()
            found.append((strength(keep) / strength(change_)).mean().item())
        return found

    relative, plain = ratios(relative_w_cut=0.3), ratios(w_cut=3.0)
    assert relative[1] == pytest.approx(relative[0], rel=1e-3)
    assert plain[1] != pytest.approx(plain[0], rel=0.1)


def test_each_item_of_a_batch_gets_the_weight_that_it_would_get_alone(
    make_diffusion: MakeDiffusion, latents: Latents
) -> None:
    diffusion = make_diffusion(dtype=torch.float64)
    texts = tuple(diffusion.encode_prompt(prompt) for prompt in ("a fox", "a wolf"))
    source, target = (each.double() for each in latents)

    def edit(items: slice, generators: list[Generator]) -> Tensor:
        guidance = CDSGuidance(CDSGuidanceConfig(relative_w_cut=0.5, n_patches=10), diffusion)
        edited = target[items].clone().requires_grad_()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(
                guidance(source[items], edited, *texts, generator=generators).loss, edited
            )
            edited = (edited - 0.01 * gradient).detach().requires_grad_()
        return edited.detach()

    together = edit(slice(2), [Generator().manual_seed(seed) for seed in (0, 1)])
    for item in range(2):
        alone = edit(slice(item, item + 1), [Generator().manual_seed(item)])
        torch.testing.assert_close(alone, together[item : item + 1], rtol=0, atol=1e-9)


def test_a_call_without_gradient_is_no_step(diffusion: LatentDiffusion, latents: Latents, texts: Texts) -> None:
    guidance = CDSGuidance(CDSGuidanceConfig(relative_w_cut=0.5), diffusion)
    assert guidance(*latents, *texts).weighted_terms["cut_loss"] == 0  # whose weight is not known yet
    assert guidance.strengths.state() is None
    gradients(guidance, latents, texts)
    state = guidance.strengths.state()
    assert guidance(*latents, *texts).weighted_terms["cut_loss"] > 0
    assert guidance.strengths.state() == state


def test_what_is_remembered_goes_through_a_file_without_a_change(
    diffusion: LatentDiffusion, latents: Latents, texts: Texts
) -> None:
    config = CDSGuidanceConfig(relative_w_cut=0.5)
    guidance, other = CDSGuidance(config, diffusion), CDSGuidance(config, diffusion)
    gradients(guidance, latents, texts, seed=1)
    other.strengths.load(guidance.strengths.state())
    for one, two in zip(*(gradients(each, latents, texts, seed=2).values() for each in (guidance, other)), strict=True):
        assert torch.equal(one, two)
    other.strengths.clear()
    assert other.strengths.state() is None


def test_gradients_of_nothing_give_no_weight() -> None:
    strengths = GradientStrengths()
    nothing, something = torch.zeros(2, 4, 3, 3), torch.ones(2, 4, 3, 3)
    strengths.add(something, nothing)
    assert strengths.ratio(something).tolist() == [0, 0]


def test_the_weight_can_be_exchanged_for_the_plain_one_and_back() -> None:
    """As a control in a viewer would do it, whose settings may come from a file, where all are told."""
    config = CDSGuidanceConfig(relative_w_cut=0.5)
    assert config.w_cut == 0 and config.has_contrastive_term
    assert replace(config, relative_w_cut=None).w_cut == 3
    told = replace(config, w_cut=0.0)
    assert replace(told, relative_w_cut=0.2).relative_w_cut == 0.2
    assert not replace(told, relative_w_cut=None).has_contrastive_term


def test_in_float16_it_is_as_in_float32(make_diffusion: MakeDiffusion, latents: Latents, texts: Texts) -> None:
    found = []
    for dtype in (torch.float32, torch.float16):
        guidance = CDSGuidance(CDSGuidanceConfig(relative_w_cut=0.5, guidance_scale=1.0), make_diffusion(dtype=dtype))
        found.append(gradients(guidance, latents, texts)["cut_loss"])
    assert relative_difference(found[1], found[0]) < 0.05
