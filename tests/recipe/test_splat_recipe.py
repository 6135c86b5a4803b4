"""A recipe that reconstructs splats, without a GPU, without network and from the capture's own points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_stages import change, commands, run_here, write_recipe  # noqa: F401 - a fixture

from cds_nerf import cli
from cds_nerf.nerf.checkpoints import newest_checkpoint
from cds_nerf.nerf.source_run import read_checkpoint

pytestmark = pytest.mark.field

SOURCE = Path("out/cds-splat-source/run")
SMALL = {
    "max-num-iterations": 4,
    "steps-per-save": 2,
    "steps-per-eval-image": 0,
    "pipeline.model.num-downscales": 0,
    "pipeline.model.sh-degree": 1,
    "pipeline.model.sh-degree-interval": 1,
    "machine.device-type": "cpu",
}


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = write_recipe(tmp_path)
    keys = yaml.safe_load(path.read_text()) | {"field": "splats", "source": SMALL}
    del keys["edit"]["optimizers.fields.optimizer.lr"]
    path.write_text(yaml.safe_dump(keys))
    return path


def gaussians(run: Path) -> dict[str, Any]:
    checkpoint, _ = newest_checkpoint(run / "nerfstudio_models")
    assert checkpoint is not None
    state = read_checkpoint(checkpoint)["pipeline"]
    return {name: values for name, values in state.items() if "gauss_params" in name}


def test_splats_are_reconstructed_and_edited(recipe, commands, capsys):  # noqa: F811
    assert cli.main(["scene", str(recipe)]) == 0
    assert [command[0] for command in commands] == ["cds-splat-source", "cds"]
    header = Path("scene/sparse_pc.ply").read_text().splitlines()[2]
    source, edit = gaussians(SOURCE), gaussians(Path("out/cds/a-blue-cube"))
    assert header == f"element vertex {len(source['_model.gauss_params.means'])}"  # too few steps to add any
    assert not torch.equal(source["_model.gauss_params.features_dc"], edit["_model.gauss_params.features_dc"])
    assert {path.name for path in Path("out/held_out").iterdir()} == {"source", "a-blue-cube"}

    assert cli.main(["scene", str(recipe)]) == 0
    assert len(commands) == 2
    change(recipe, None, field="nerf", source={})
    assert cli.main(["scene", str(recipe)]) == 1
    told = capsys.readouterr().err
    assert "holds a source whose field is splats, the recipe says nerf: choose another output" in told


def test_a_source_of_splats_that_goes_on_is_trained_further(recipe, commands):  # noqa: F811
    """Its optimizers move what was loaded."""
    change(recipe, None, source=SMALL | {"max-num-iterations": 2})
    assert cli.main(["scene", str(recipe)]) == 0
    before = gaussians(SOURCE)
    (recipe.parent / "out" / "cds").rename(recipe.parent / "earlier")
    change(recipe, None, source=SMALL)
    assert cli.main(["scene", str(recipe)]) == 0
    assert any("--load-checkpoint" in command for command in commands)
    after = gaussians(SOURCE)
    for name in before:
        assert not torch.equal(before[name], after[name]), name
