"""What is wrong with a recipe is told before anything starts, with the nearest right name."""

from pathlib import Path

import pytest
import yaml
from nerfstudio.configs.method_configs import all_methods

from cds_nerf import cli
from cds_nerf.errors import UserError
from cds_nerf.nerf.train_options import command_line, normalised, parse
from cds_nerf.recipe import stages
from cds_nerf.recipe.recipe import SOURCE_METHODS, read_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes a recipe, with changes; its path. Nothing may be started."""
    (tmp_path / "capture").mkdir()
    (tmp_path / "capture" / "transforms.json").write_text("{}")
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "_run", lambda command: pytest.fail(f"started {command}"))

    def write(**changes) -> Path:
        keys = {
            "capture": "capture",
            "source_prompt": "a fox",
            "target_prompt": "a wolf",
            "output": "out",
            "diffusion": "model",
        }
        keys = {name: value for name, value in (keys | changes).items() if value is not ...}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(keys))
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"captur": "x"}, "'captur' is no key of a recipe: did you mean capture?"),
        ({"zzz": "x"}, "'zzz' is no key of a recipe: there are source_prompt, target_prompt, output,"),
        ({"target_prompt": ...}, "target_prompt is missing"),
        ({"target_prompt": " "}, "target_prompt is ' '; it must be a text"),
        ({"target_prompt": "a fox"}, "are both 'a fox': there is nothing to change"),
        ({"capture": "nowhere"}, "capture is nowhere, which does not exist"),
        ({"source_run": "nowhere"}, "source_run is nowhere, which does not exist"),
        ({"capture": ...}, "capture is missing"),
        ({"capture": "model"}, "capture model has no transforms.json"),
        ({"seed": -1}, "seed is -1; it must be a whole number"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"field": "splat"}, "field is 'splat': did you mean splats?"),
        (
            {"field": "nerf", "source_run": "model"},
            "field says how a capture is reconstructed, but there is a source_run",
        ),
        ({"source": 3}, "source is 3; it must hold options"),
        (
            {"source": {"pipeline.model.num-levls": 8}},
            "source: pipeline.model.num-levls is no option of ns-train cds-source: "
            "did you mean pipeline.model.num-levels?",
        ),
        ({"edit": {"w_cut": 1}}, "edit: w-cut is no option of ns-train cds: did you mean pipeline.guidance.w-cut?"),
        ({"edit": {"guidance.w-cutt": 1}}, "did you mean pipeline.guidance.w-cut?"),
        ({"edit": {"optimizers.field.optimizer.lr": 1}}, "did you mean optimizers.fields.optimizer.lr?"),
        ({"edit": {"vis": "tensorbord"}}, "edit: vis is 'tensorbord': did you mean tensorboard?"),
        ({"edit": {"pipeline.guidance-dtype": "float61"}}, "did you mean float16?"),
        ({"edit": {"pipeline.guidance.w-cut": "much"}}, "the options: Error parsing --pipeline.guidance.w-cut: "),
        ({"edit": {"pipeline.orbit-frames": -1}}, "--pipeline.orbit-frames is -1; it must be at least 0"),
        ({"edit": {"prompt": "a pig"}}, "edit: prompt follows from the recipe's target_prompt: set that"),
        ({"edit": {"pipeline": {"guidance": {}}}}, "edit: pipeline is no option of ns-train cds"),
        ({"source": {"pipeline.datamanager.dataparser": "colmapp"}}, "did you mean colmap?"),
        ({}, "model"),  # an empty folder is no diffusion model
    ],
)
def test_mistakes(recipe, changes, told, capsys, tmp_path):
    path = recipe(**changes)
    assert cli.main(["scene", str(path)]) == 1
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_none(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_recipe(tmp_path / "none.yaml")
    path = tmp_path / "recipe.yaml"
    for content, told in (("a: b: c", "is not YAML"), ("- a", "has no keys")):
        path.write_text(content)
        with pytest.raises(UserError, match=told):
            read_recipe(path)


def test_options_reach_ns_train():
    options = {
        "pipeline.model.num_levels": 4,
        "pipeline.model.num-proposal-samples-per-ray": [16, 8],
        "pipeline.model.proposal-net-args-list.0.hidden-dim": 8,
        "pipeline.datamanager.dataparser.downscale-factor": 2,
        "pipeline.model.camera-optimizer.mode": "off",
        "mixed-precision": False,
        "optimizers.fields.optimizer.lr": "2e-3",
        "logging.steps-per-log": 7,
    }
    config = parse(command_line("cds-source", normalised(options, "cds-source", {})))
    assert type(config) is type(all_methods["cds-source"])
    model = config.pipeline.model
    assert (model.num_levels, model.num_proposal_samples_per_ray) == (4, (16, 8))
    assert model.proposal_net_args_list[0]["hidden_dim"] == 8
    assert model.camera_optimizer.mode == "off"
    assert config.pipeline.datamanager.dataparser.downscale_factor == 2
    assert config.mixed_precision is False and config.logging.steps_per_log == 7
    assert config.optimizers["fields"]["optimizer"].lr == 2e-3


@pytest.mark.parametrize("name", ["demo.yaml", "demo-splats.yaml", "capture.yaml"])
def test_the_recipes_that_are_shipped_are_right(name, tmp_path, monkeypatch):
    keys = yaml.safe_load((ROOT / "configs" / name).read_text())
    for commented in (ROOT / "configs" / name).read_text().splitlines():  # what the template offers is right as well
        if commented.startswith("  # ") and ": " in commented:
            section = "source" if "vis:" in commented or "dataparser" in commented else "edit"
            keys[section] |= yaml.safe_load(commented.removeprefix("  # "))
    monkeypatch.chdir(tmp_path)
    capture = Path(keys["capture"])
    capture.mkdir(parents=True)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(keys | {"diffusion": "any"}))
    recipe = read_recipe(path)
    for key, method in (("source", SOURCE_METHODS[recipe.field]), ("edit", "cds")):
        parse(command_line(method, normalised(getattr(recipe, key), method, stages.MANAGED)))
