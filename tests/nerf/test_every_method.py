"""What docs/sources.md says of each method of the installed nerfstudio is so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.scripts.eval import ComputePSNR
from nerfstudio.scripts.render import DatasetRender
from small_edit import load_checkpoint, run, train_source
from small_methods import NERFSTUDIO_METHODS, small_method, stand_in_for_cuda

from cds_nerf.errors import UserError
from cds_nerf.nerf.held_out import render_held_out

DOCUMENT = Path(__file__).parents[2] / "docs" / "sources.md"
ROW = re.compile(
    r"\| `(?P<method>[\w-]+)` \| (?P<edit>[\w ]*)\|(?P<eval>[\w ]*)\|(?P<render>[\w ]*)\| (?P<remark>.*)\|"
)
TABLE = {
    row["method"]: {name: cell.strip() for name, cell in row.groupdict().items()}
    for row in map(ROW.fullmatch, DOCUMENT.read_text("utf8").splitlines())
    if row
}
REFUSED = {"generfacto": "has no capture", "instant-ngp": "renders with CUDA alone", "neus": "needs tiny-cuda-nn"}


def test_table_has_every_method_of_nerfstudio():
    assert sorted(TABLE) == NERFSTUDIO_METHODS


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method, row in TABLE.items() if row["edit"] != "refused"])
def test_method_is_edited_and_opens_as_the_table_says(method, edit_config, tmp_path, monkeypatch):
    if TABLE[method]["edit"] == "with CUDA":
        stand_in_for_cuda(monkeypatch)
    settings, capture, small = small_method(method, tmp_path / "capture")
    source = train_source(settings, capture, tmp_path / "source", **small)
    config = edit_config(load_dir=source, max_num_iterations=2)
    run(config)
    folder = config.get_base_dir()
    before, after = load_checkpoint(source)["pipeline"], load_checkpoint(folder)["pipeline"]
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed and not any("camera_optimizer" in name for name in changed)
    assert all(value.isfinite().all() for value in after.values())

    assert TABLE[method]["eval"] == TABLE[method]["render"] == "yes"
    ComputePSNR(load_config=folder / "config.yml", output_path=folder / "metrics.json").main()
    assert json.loads((folder / "metrics.json").read_text())["results"]["psnr"] > 0
    output = "rgb_fine" if "rgb_fine" in TABLE[method]["remark"] else "rgb"
    DatasetRender(
        load_config=folder / "config.yml", output_path=folder / "renders", rendered_output_names=[output]
    ).main()
    pictures = list((folder / "renders").rglob("*.jpg"))
    assert pictures
    for name, made in (("source", source), ("edit", folder)):
        render_held_out(made, folder / "held_out" / name)
        assert len(list((folder / "held_out" / name).iterdir())) == len(pictures)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what needs CUDA is not refused where it is")
@pytest.mark.parametrize("method", [method for method, row in TABLE.items() if row["edit"] != "yes"])
def test_method_that_cannot_be_edited_is_refused_before_anything_is_made(method, edit_config, source_run, tmp_path):
    source = tmp_path / "source"
    (source / "nerfstudio_models").mkdir(parents=True)
    (source / "nerfstudio_models" / "step-000000004.ckpt").symlink_to(
        next((source_run / "nerfstudio_models").iterdir()).resolve()
    )
    settings = all_methods[method]
    (source / "config.yml").write_text(yaml.dump(settings))
    config = edit_config(load_dir=source, pipeline__diffusion="no/such/model")
    reason = next(reason for name, reason in REFUSED.items() if method.startswith(name))
    with pytest.raises(UserError, match=rf"is a {method} run, .*{reason}.*such as nerfacto"):
        run(config)
    assert not config.output_dir.exists()
    with pytest.raises(UserError, match=reason):
        render_held_out(source, tmp_path / "held_out")
    assert not (tmp_path / "held_out").exists()
