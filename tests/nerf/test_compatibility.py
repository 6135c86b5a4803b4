"""What nerfstudio does not do by itself on the torch of today."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from urllib.error import URLError

import pytest
import torch
import torchmetrics.image.lpip
from nerfstudio.utils.eval_utils import eval_setup
from small_edit import load_checkpoint, run
from torch import nn
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from cds_nerf.nerf.compatibility import LazyLPIPS, copy_of


def test_checkpoints_load_with_weights_only(source_run):
    assert load_checkpoint(source_run)["step"] == 4  # weights_only=True


def test_unsafe_checkpoints_are_still_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"pipeline": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(pickle.UnpicklingError, match=r"Weights only load failed|which is no weight"):
        torch.load(tmp_path / "evil.ckpt", weights_only=True)


def test_every_ns_command_loads_checkpoints(source_run):
    """The commands import their plugins, and by that this package; nothing else is done here."""
    (checkpoint,) = (source_run / "nerfstudio_models").iterdir()
    code = f"import nerfstudio.configs.method_configs, torch; torch.load({str(checkpoint)!r}, weights_only=True)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Network(nn.Module):
    """In place of AlexNet."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, one, other, normalize=False):
        return (one - other).abs().mean(dim=(1, 2, 3), keepdim=True)


def unreachable() -> nn.Module:
    raise URLError("Name or service not known")


def test_models_hold_no_alexnet(source_run):
    assert not any("lpips" in key for key in load_checkpoint(source_run)["pipeline"])
    assert isinstance(LearnedPerceptualImagePatchSimilarity().net, LazyLPIPS)


def test_lpips_is_fetched_once_when_a_metric_needs_it(monkeypatch):
    fetched = []

    def fetch() -> nn.Module:
        fetched.append(1)
        return Network()

    metric = LearnedPerceptualImagePatchSimilarity(normalize=True)
    metric.net = LazyLPIPS(fetch)
    assert not fetched
    images = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert float(metric(*images)) == pytest.approx(1)
    metric(*images)
    assert fetched == [1]
    assert not metric.net.state_dict()


def test_checkpoint_with_alexnet_in_it_loads(source_run, edit_config, tmp_path):
    """As plain nerfacto runs have, made without this package."""
    lazy = LazyLPIPS(Network)
    parent = nn.Module()
    parent.lpips = lazy
    parent.load_state_dict({"lpips.net.slice1.0.weight": torch.ones(3)})

    config = edit_config()
    run(config)
    folder = config.get_base_dir()
    (path,) = (folder / "nerfstudio_models").iterdir()
    checkpoint = load_checkpoint(folder)
    checkpoint["pipeline"]["_model.lpips.net.net.slice1.0.weight"] = torch.ones(3)
    torch.save(checkpoint, path)
    eval_setup(folder / "config.yml", test_mode="inference")
    again = edit_config(timestamp="again", load_dir=folder)
    run(again)


def test_metric_that_cannot_be_had_is_left_out_with_a_warning(source_run, capsys):
    _, pipeline, _, _ = eval_setup(source_run / "config.yml", test_mode="inference")
    pipeline.model.lpips.net = LazyLPIPS(unreachable)
    camera = pipeline.datamanager.train_dataset.cameras[0:1]
    batch = {"image": torch.rand(int(camera.height), int(camera.width), 3)}
    metrics = pipeline.get_average_image_metrics([(camera, batch)] * 2, "", get_std=True)
    assert {"psnr", "ssim", "psnr_std"} <= set(metrics)
    assert not any(name.startswith("lpips") for name in metrics)
    assert not any(math.isnan(value) for value in metrics.values() if value is not None) or "psnr_std" in metrics
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("LPIPS is left out of the metrics") == 1
    assert "Name or service not known" in printed


def test_unknown_failures_of_lpips_are_not_hidden():
    def broken() -> nn.Module:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        LazyLPIPS(broken)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_workarounds_can_be_applied_twice():
    from cds_nerf.nerf import compatibility

    build = torchmetrics.image.lpip._NoTrainLpips
    compatibility.apply()
    assert torchmetrics.image.lpip._NoTrainLpips is build


def test_normalised_layers_are_copied():
    layer = nn.utils.weight_norm(nn.Linear(3, 2))
    copied = copy_of(nn.Sequential(layer))
    inputs = torch.ones(1, 3)
    assert torch.equal(copied(inputs), layer(inputs))
    layer(inputs).sum().backward()
    assert layer.weight_v.grad is not None and copied[0].weight_v.grad is None
