"""The bundled prior and its judge are what the README says, on less than its benchmarks measure."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from cds_nerf import CDSGuidanceConfig, LatentDiffusion, edit_image
from cds_nerf.evaluation.fidelity import outside, psnr
from cds_nerf.shapes import prior_path
from cds_nerf.shapes.classifier import WEIGHTS, AttributeClassifier
from cds_nerf.shapes.render import render
from cds_nerf.shapes.scene import ATTRIBUTES, COLORS, Scene, all_scenes
from cds_nerf.shapes.training.renders import random_renders, random_view

HELD_OUT_SEED = 2 * 10**6


@pytest.fixture(scope="module")
def judge() -> AttributeClassifier:
    return AttributeClassifier.from_pretrained()


@pytest.fixture(scope="module")
def prior() -> LatentDiffusion:
    return LatentDiffusion.from_pretrained(prior_path())


def test_bundled_weights_are_small_and_in_half_precision() -> None:
    files = [WEIGHTS, *prior_path().rglob("*")]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 25e6
    weights = [WEIGHTS, *prior_path().rglob("*.safetensors")]
    assert len(weights) == 4
    for path in weights:
        with safe_open(path, "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} <= {"F16", "I64"}  # noqa: SIM118


@pytest.mark.slow
def test_classifier_knows_held_out_renders(judge: AttributeClassifier) -> None:
    renders = random_renders(252, HELD_OUT_SEED, progress=False)
    found = judge.classify(renders.images / 255)
    for index, (name, words) in enumerate(ATTRIBUTES.items()):
        right = sum(words.index(one[name]) == renders.words[i, index] for i, one in enumerate(found))
        assert right > 0.985 * len(found), name


@pytest.mark.slow
def test_autoencoder_reconstructs_held_out_renders(prior: LatentDiffusion) -> None:
    images = random_renders(84, HELD_OUT_SEED, progress=False).images / 255
    with torch.no_grad():
        latents = prior.encode(images)
        error = (prior.decode(latents) - images).square().mean(dim=(1, 2, 3))
    assert -10 * error.log10().mean() > 33
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.2 and (latents.std(dim=(0, 2, 3)) - 1).abs().max() < 0.2


@pytest.mark.slow
def test_stable_diffusion_pipeline_samples_what_captions_say(judge: AttributeClassifier) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(prior_path())
    pipeline.set_progress_bar_config(disable=True)
    scenes = list(all_scenes())[::7]
    images = pipeline(
        [scene.caption for scene in scenes],
        guidance_scale=5.0,
        num_inference_steps=20,
        generator=[torch.Generator().manual_seed(i) for i in range(len(scenes))],
        output_type="pt",
    ).images
    right = [one == scene.words for one, scene in zip(judge.classify(images), scenes, strict=True)]
    assert sum(right) >= len(scenes) - 1


@pytest.mark.slow
def test_image_edit_recolours_the_object_and_keeps_the_rest(judge: AttributeClassifier, prior: LatentDiffusion) -> None:
    draw = random.Random(0)
    sources = [Scene.draw(draw) for _ in range(8)]
    colors = [draw.choice([color for color in COLORS if color != source.color]) for source in sources]
    targets = [replace(source, color=color) for source, color in zip(sources, colors, strict=True)]
    images, masks = zip(*(render(*random_view(source, draw), 64) for source in sources), strict=True)
    edit = edit_image(
        torch.cat(images),
        [source.caption for source in sources],
        [target.caption for target in targets],
        prior,
        CDSGuidanceConfig(w_cut=15, guidance_scale=3),
        steps=40,
        learning_rate=0.02,
    )
    right = [one == target.words for one, target in zip(judge.classify(edit.image), targets, strict=True)]
    assert sum(right) >= 7
    unedited = prior.decode(edit.source_latents)
    covered = torch.nn.functional.max_pool2d(torch.cat(masks), 5, stride=1, padding=2)
    fidelity = psnr(edit.image, unedited, outside(covered)).mean()
    assert fidelity > 30
