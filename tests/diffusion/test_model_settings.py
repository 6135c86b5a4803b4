"""Settings that a model carries in its folder: taken where nothing was said, checked, and read from wherever it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cds_nerf import CDSGuidanceConfig, LatentDiffusion
from cds_nerf.diffusion import pretrained
from cds_nerf.diffusion.model_name import BUNDLED_FOLDER
from cds_nerf.diffusion.model_settings import SETTINGS_FILE, ModelSettings
from cds_nerf.diffusion.options import DiffusionOptions
from cds_nerf.errors import UserError
from cds_nerf.image.settings import ImageEditSettings
from cds_nerf.shapes import prior_path


@pytest.fixture
def model(diffusion_folder: Path, tmp_path: Path) -> Path:
    """A model that carries settings."""
    folder = Path(shutil.copytree(diffusion_folder, tmp_path / "model"))
    write(
        folder, guidance={"cds": {"guidance_scale": 3, "patch_sizes": [1]}}, image={"learning_rate": 0.02, "steps": 7}
    )
    return folder


def write(folder: Path, **content: Any) -> None:
    (folder / SETTINGS_FILE).write_text(json.dumps(content))


def test_a_model_without_a_file_has_none(diffusion_folder: Path) -> None:
    assert LatentDiffusion.from_pretrained(diffusion_folder).settings == ModelSettings()
    settings = ImageEditSettings()
    assert settings.suited_to(ModelSettings()) == (settings, {})


def test_what_was_not_typed_is_the_model_s(model: Path) -> None:
    carried = LatentDiffusion.from_pretrained(model).settings
    assert carried == DiffusionOptions(str(model)).settings()
    suited, taken = ImageEditSettings().suited_to(carried)
    assert (suited.steps, suited.learning_rate) == (7, 0.02)
    assert suited.guidance == CDSGuidanceConfig(guidance_scale=3.0, patch_sizes=(1,))
    assert taken == {"guidance_scale": 3, "patch_sizes": (1,), "learning_rate": 0.02, "steps": 7}


def test_what_was_typed_stays_even_where_it_is_the_default(model: Path) -> None:
    suited, taken = ImageEditSettings().suited_to(ModelSettings.read(model), {"steps", "guidance.guidance_scale"})
    assert (suited.steps, suited.guidance.guidance_scale) == (200, 7.5)
    assert taken == {"patch_sizes": (1,), "learning_rate": 0.02}


@pytest.mark.parametrize(("told", "carried"), [("relative_w_cut", "w_cut"), ("w_cut", "relative_w_cut")])
def test_of_the_two_weights_the_told_one_rules_the_model_s_out(model: Path, told: str, carried: str) -> None:
    write(model, guidance={"cds": {"guidance_scale": 3.0, carried: 15.0}})
    settings = ImageEditSettings(guidance=CDSGuidanceConfig(**{told: 0.3}))
    suited, taken = settings.suited_to(ModelSettings.read(model), {f"guidance.{told}"})
    assert suited.guidance == CDSGuidanceConfig(guidance_scale=3.0, **{told: 0.3})
    assert taken == {"guidance_scale": 3.0}
    if carried == "relative_w_cut":
        with pytest.raises(UserError, match="they weigh the same"):
            ImageEditSettings(guidance=CDSGuidanceConfig(w_cut=0.3)).suited_to(ModelSettings.read(model))


def test_another_score_has_settings_of_its_own(model: Path) -> None:
    settings = ImageEditSettings(guidance=CDSGuidanceConfig(score="dds"))
    suited, taken = settings.suited_to(ModelSettings.read(model))
    assert suited.guidance == settings.guidance
    assert taken == {"learning_rate": 0.02, "steps": 7}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": {}}, "have 'images': did you mean image"),
        ({"x": {}}, "have 'x': there are guidance, image, scene"),
        ({"image": 3}, "have image 3: it must hold settings by name"),
        ({"guidance": {"cds": 3}}, "have cds 3: it must hold settings by name"),
        ({"guidance": {"cds": {"w_cutt": 3}}}, r"have guidance\.cds\.w_cutt: did you mean w_cut"),
        ({"guidance": {"cds": {"w_cut": "3"}}}, r"have guidance\.cds\.w_cut '3': it must be like 3\.0"),
        ({"guidance": {"cds": {"w_cut": True}}}, r"have guidance\.cds\.w_cut True: it must be like 3\.0"),
        ({"guidance": {"cds": {"w_cut": -1}}}, "w_cut is -1; it must be at least 0"),
        ({"image": {"step": 3}}, r"have image\.step: did you mean steps"),
        ({"image": {"mask": "a.png"}}, r"have image\.mask: there are steps, learning_rate"),
        ({"image": {"steps": 3.5}}, r"have image\.steps 3\.5: it must be like 200"),
        ({"image": {"steps": 0}}, "steps is 0; it must be at least 1"),
    ],
)
def test_a_file_that_says_something_else_is_named(model: Path, content: dict[str, Any], message: str) -> None:
    write(model, **content)
    with pytest.raises(UserError, match=f"the model's settings {model / SETTINGS_FILE}.*{message}"):
        ImageEditSettings().suited_to(ModelSettings.read(model))


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_a_file_that_is_none_is_named_before_the_weights_are_read(model: Path, content: str) -> None:
    (model / SETTINGS_FILE).write_text(content)
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_text("damaged")
    with pytest.raises(UserError, match=f"the model's settings {model / SETTINGS_FILE} "):
        LatentDiffusion.from_pretrained(model)


def test_for_scenes_they_are_options_by_their_paths(model: Path) -> None:
    write(model, guidance={"cds": {"w_cut": 15.0}, "dds": {}}, scene={"pipeline.w-keep": 3.0})
    settings = ModelSettings.read(model)
    assert settings.for_scene("cds") == {"pipeline.guidance.w_cut": 15.0, "pipeline.w_keep": 3.0}
    assert settings.for_scene("dds") == {"pipeline.w_keep": 3.0}


def test_the_bundled_model_has_a_name_and_settings() -> None:
    assert prior_path() == BUNDLED_FOLDER
    settings = LatentDiffusion.from_pretrained("shapes").settings
    assert settings == DiffusionOptions("shapes").settings()
    suited, _ = ImageEditSettings().suited_to(settings)
    assert (suited.guidance.guidance_scale, suited.guidance.w_cut) == (3.0, 15.0)
    assert (suited.learning_rate, suited.steps) == (0.02, 70)


class TestChecksBeforeLoading:
    @pytest.fixture(autouse=True)
    def no_loading(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pretrained, "UNet2DConditionModel", None)

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            ("a red cube", "a red dog", "target_prompt has 'dog', which the model does not know"),
            (
                "a Red cube",
                "a red cube",
                "the model reads source_prompt 'a Red cube' and target_prompt 'a red cube' alike",
            ),
            ("a cube " * 8 + "a", "a cube " * 8 + "on a floor", "differ only beyond the model's 16 tokens"),
        ],
    )
    def test_prompts_are_checked_with_the_model_s_tokenizer(self, source: str, target: str, message: str) -> None:
        DiffusionOptions("shapes").check("a red cube", "a blue cube")
        with pytest.raises(UserError, match=message):
            DiffusionOptions("shapes").check(source, target)

    def test_models_and_additions_that_are_not_there_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "a.safetensors").write_text("no weights")
        options = {
            "there is no LoRA /no/lora": DiffusionOptions("shapes", lora=("/no/lora",)),
            "there is no folder /no/model": DiffusionOptions("/no/model"),
            "is damaged or no .safetensors file": DiffusionOptions(str(tmp_path / "a.safetensors")),
            "is no single file": DiffusionOptions("shapes", model_config="a/b"),
            "device is 'abacus', which torch cannot use": DiffusionOptions("shapes", device="abacus"),
        }
        for message, option in options.items():
            with pytest.raises(UserError, match=message):
                option.check("a red cube", "a blue cube")
