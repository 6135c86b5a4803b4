"""CLIP's and DINO's metrics, against their definitions written out on the same networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_judges import save_tiny_clip, save_tiny_dino
from torchvision.transforms.functional import normalize

from cds_nerf.errors import UserError
from cds_nerf.evaluation.clip import (
    CLIPFeatures,
    directional_consistency,
    directional_similarity,
    nearer_to_target,
    text_similarity,
)
from cds_nerf.evaluation.structure import StructureDistance


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return CLIPFeatures(str(save_tiny_clip(tmp_path_factory.mktemp("clip"))))


@pytest.fixture
def pictures():
    return torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def test_features_are_those_of_the_clip_model(clip, pictures):
    colors = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    pixels = normalize(F.interpolate(pictures, (32, 32), mode="bicubic", align_corners=False), *colors)
    tokens = clip.tokenizer(["a fox"], return_tensors="pt")
    out = clip.model(pixel_values=pixels, **tokens)
    assert torch.allclose(clip.of_pictures(pictures), out.image_embeds, atol=1e-5)
    assert torch.allclose(clip.of_text("a fox"), out.text_embeds, atol=1e-5)


def test_text_longer_than_clip_takes_is_cut(clip):
    assert torch.equal(clip.of_text("a fox in the snow and more"), clip.of_text("a fox in the snow and then"))


def test_direction_is_1_where_pictures_change_as_texts_do_and_0_across():
    before = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0]])
    after = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1 / math.sqrt(2), 1 / math.sqrt(2), 0]])
    source, target = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0.0, 1, 0]])
    similarity = directional_similarity(before, after, source, target)
    assert similarity.tolist() == pytest.approx([1.0, 0.5, math.cos(math.radians(22.5))])
    consistency = directional_consistency(before, after)
    assert consistency.tolist()[0] == pytest.approx(0.5)
    assert len(consistency) == 2
    assert text_similarity(after, target).tolist() == pytest.approx([1.0, 0.0, 1 / math.sqrt(2)])
    assert nearer_to_target(after, source, target).tolist() == [1.0, 0.0, 0.0]


def test_structure_distance_is_that_of_the_last_layers_keys(tmp_path, pictures):
    distance = StructureDistance(str(save_tiny_dino(tmp_path)))

    def self_similarity(picture):
        size = (224, 320)  # 40x56 at a shorter side of 224: 313.6, the nearest multiple of the patches
        colors = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        pixels = normalize(F.interpolate(picture[None], size, mode="bicubic", antialias=True), *colors)
        out = distance.model(pixel_values=pixels, interpolate_pos_encoding=True, output_hidden_states=True)
        names = dict(distance.model.named_modules())
        before_last = out.hidden_states[-2]
        norm = next(m for n, m in names.items() if n.endswith("2.layernorm_before"))
        keys = distance.last_keys(norm(before_last))[0]
        return torch.stack([F.cosine_similarity(key[None], keys, dim=1) for key in keys])

    one, other = pictures[0], pictures[1]
    expected = (self_similarity(one) - self_similarity(other)).square().mean()
    assert distance(one, other).item() == pytest.approx(expected.item(), rel=1e-4)
    assert distance(one, one).item() == 0


@pytest.mark.parametrize("judge", [CLIPFeatures, StructureDistance])
def test_model_that_cannot_be_had_is_named(judge, tmp_path):
    with pytest.raises(UserError, match=r"nothing here cannot be had \("):
        judge(str(tmp_path / "nothing here"))


def test_hub_that_cannot_be_reached_is_asked_once(monkeypatch):
    asked = []

    def ask(model: str, **_: object) -> None:
        asked.append(model)
        raise ConnectionError("no such host")

    monkeypatch.setattr("cds_nerf.hub.model_info", ask)
    with pytest.raises(UserError, match=r"owner/name cannot be had from the Hugging Face Hub \(no such host\)"):
        CLIPFeatures("owner/name")
    assert asked == ["owner/name"]
