"""The numbers of docs/cost.md are what the arithmetic makes of what was measured, and that is measured rightly."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from cost_page import (
    ALLOWANCE,
    GAUSSIANS,
    GIB,
    MEASURED,
    PAGE,
    RASTERISED_GAUSSIAN,
    RAYS,
    TIERS,
    USABLE,
    Flags,
    best_flags,
    choices,
    measure_prior,
    measure_weights,
    peak,
    step_in_samples,
    tables,
    vae_flops,
    with_tables,
)
from fake_memory import LiveBytes, flops
from peak_memory import peak_memory
from prior_architectures import ARCHITECTURES
from tiny_stable_diffusion import make_pipeline
from torch._subclasses import FakeTensorMode

from cds_nerf import CDSGuidance, CDSGuidanceConfig, LatentDiffusion, TextEmbedding

MEASUREMENTS = json.loads(MEASURED.read_text("utf8"))
PUBLISHED_PARAMETERS = {"SD 1.5": 859_520_964, "SD 2.1": 865_910_724, "SDXL": 2_567_463_684}
"""Of the UNets."""


def test_page_has_the_numbers_that_are_computed():
    page = PAGE.read_text("utf8")
    assert with_tables(page, tables(MEASUREMENTS)) == page
    other = copy.deepcopy(MEASUREMENTS)
    other["priors"]["SDXL"]["unet"] += GIB
    assert with_tables(page, tables(other)) != page


def test_peak_is_the_greatest_part_of_a_step():
    """Of SDXL at 1024 pixels the encoder's backward pass is, or the score while what it needs is kept."""
    model, rays, splats = (MEASUREMENTS["priors"]["SDXL"], MEASUREMENTS["nerfacto"], MEASUREMENTS["splats"])
    weights = model["unet"] + model["vae"]
    step = model["sizes"]["1024"]["plain"]
    expected = ALLOWANCE + weights + 5 * rays["parameters"] + step["encode_backward"]
    assert peak(MEASUREMENTS, "SDXL", 1024, "nerfacto", Flags(encoded_twice=True)) == expected
    gaussian = 5 * splats["gaussian"] + splats["drawing"] + RASTERISED_GAUSSIAN
    expected = ALLOWANCE + weights + step["encoder_graph"] + step["score"] + GAUSSIANS * gaussian
    assert peak(MEASUREMENTS, "SDXL", 1024, "splats", Flags()) == expected
    # Of a small view a nerfacto's rendering is.
    model = MEASUREMENTS["priors"]["SD 1.5"]
    expected = (
        ALLOWANCE + model["unet"] + model["vae"] + 5 * rays["parameters"] + rays["rendering"] + RAYS * rays["ray"]
    )
    assert peak(MEASUREMENTS, "SD 1.5", 256, "nerfacto", Flags()) == expected


@pytest.mark.parametrize("field", ["nerfacto", "splats"])
def test_settings_are_the_first_that_fit(field):
    for prior, model in MEASUREMENTS["priors"].items():
        for size in map(int, model["sizes"]):
            for tier in TIERS:
                chosen = best_flags(MEASUREMENTS, prior, size, field, tier)
                for flags in choices(field):
                    fits = peak(MEASUREMENTS, prior, size, field, flags) <= USABLE * tier * GIB
                    assert fits == (flags == chosen)
                    if fits:
                        break


def test_step_takes_the_samples_of_its_score_and_the_vae():
    """CDS is three samples and one with gradient, which is worth about two; DDS four."""
    for prior, model in MEASUREMENTS["priors"].items():
        for size, found in model["sizes"].items():
            vae = vae_flops(found["plain"], Flags()) / found["sample_flops"]
            cds, dds = (step_in_samples(MEASUREMENTS, prior, int(size), Flags(no_contrast=only)) for only in (0, 1))
            assert cds - vae == pytest.approx(5.15, abs=0.4) and dds - vae == pytest.approx(4, abs=0.01)


def test_architectures_are_the_published_ones():
    for name, parameters in PUBLISHED_PARAMETERS.items():
        assert MEASUREMENTS["priors"][name]["unet"] == 2 * parameters


def test_fake_tensors_take_what_real_ones_do():
    def tiny():
        pipeline = make_pipeline()
        return LatentDiffusion(pipeline.unet, pipeline.scheduler)

    def step(diffusion):
        latents = torch.randn(1, 4, 16, 16, requires_grad=True)
        texts = [TextEmbedding(torch.randn(1, 16, 32), torch.randn(1, 16, 32)) for _ in range(2)]
        guidance = CDSGuidance(CDSGuidanceConfig(), diffusion)
        return lambda: guidance(latents, latents, *texts, timestep=torch.tensor([500])).loss.backward()

    real = step(tiny())
    real()  # what is allocated once is allocated here
    expected = peak_memory(real, torch.device("cpu"))
    with FakeTensorMode():
        fake = step(tiny())
        with LiveBytes() as live:
            fake()
            found, _ = live.peak_of(fake)
    assert found == pytest.approx(expected, rel=0.1)


def test_operations_are_those_of_products():
    matrix = torch.randn(8, 16, requires_grad=True)
    assert flops(lambda: matrix @ matrix.T)[0] == 2 * 8 * 16 * 8


@pytest.mark.slow
def test_measurements_are_of_today():
    architecture = ARCHITECTURES[0]
    assert measure_prior(architecture, 256) == MEASUREMENTS["priors"]["SD 1.5"]["sizes"]["256"]
    weights = measure_weights(architecture)
    assert {name: MEASUREMENTS["priors"]["SD 1.5"][name] for name in weights} == weights
