"""What `ns-export gaussian-splat` writes of an edit: its Gaussians, in its colours."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import libusb_package
import pytest
import torch
import trimesh
from small_edit import edit_config_for, run
from test_splat_edit import gaussians


@pytest.mark.slow
def test_exported_splats_are_the_edits(splat_run, diffusion_folder, tmp_path: Path) -> None:
    config = edit_config_for(
        splat_run,
        diffusion_folder,
        tmp_path / "outputs",
        max_num_iterations=4,
        pipeline__growing__kind="greatest",
        pipeline__growing__share=0.2,
        pipeline__growing__every=2,
    )
    run(config)
    environment = dict(os.environ)
    if ctypes.util.find_library("usb-1.0") is None:  # as docs/sources.md says
        (tmp_path / "libusb-1.0.so.0").symlink_to(libusb_package.get_library_path())
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([str(tmp_path), os.environ.get("LD_LIBRARY_PATH", "")])
    words = ["gaussian-splat", "--load-config", config.get_base_dir() / "config.yml", "--output-dir", tmp_path / "out"]
    command = [sys.executable, "-m", "nerfstudio.scripts.exporter", *map(str, words)]
    subprocess.run(command, check=True, env=environment)

    edit = gaussians(config.get_base_dir())
    seen = edit["opacities"][:, 0].sigmoid() >= 1 / 255  # nerfstudio leaves out what is not
    assert int(seen.sum()) > len(gaussians(splat_run)["means"])
    written = trimesh.load(tmp_path / "out" / "splat.ply", process=False).metadata["_ply_raw"]["vertex"]["data"]
    for names, values in (
        (("x", "y", "z"), edit["means"]),
        (("f_dc_0", "f_dc_1", "f_dc_2"), edit["features_dc"]),
        (("opacity",), edit["opacities"]),
        (("scale_0", "scale_1", "scale_2"), edit["scales"]),
        (("f_rest_0", "f_rest_8", "f_rest_16"), edit["features_rest"][:, 0]),
    ):
        columns = [torch.from_numpy(written[name].copy()).reshape(-1) for name in names]
        torch.testing.assert_close(torch.stack(columns, dim=1), values[seen])
