"""The commands that a user types, on a real capture: source, edit, render, evaluate, export, view, resume."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import libusb_package
import numpy as np
import pytest
import torch
from PIL import Image
from small_edit import SOURCE_PROMPT, TARGET_PROMPT, load_checkpoint
from test_edit import assert_equal_states
from torchmetrics.functional.image.lpips import _LPIPS

FOX = Path(__file__).parents[3] / "shared" / "fox"
SMALL_MODEL = [
    *("--pipeline.model.num-levels", 8, "--pipeline.model.log2-hashmap-size", 14, "--pipeline.model.max-res", 512),
    *("--pipeline.model.hidden-dim", 32, "--pipeline.model.hidden-dim-color", 32),
    *("--pipeline.model.num-nerf-samples-per-ray", 24, "--pipeline.model.num-proposal-samples-per-ray", 48),
    *("--pipeline.model.num-proposal-iterations", 1, "--pipeline.datamanager.train-num-rays-per-batch", 1024),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOX.is_dir(), reason="the fox capture is not beside the project"),
]
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """No network, empty caches, and what nerfstudio's commands need of the system, from packages."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())  # ns-render asks for one
    libraries = []
    if ctypes.util.find_library("usb-1.0") is None:  # ns-export's open3d asks for it
        (folder / "libusb-1.0.so.0").symlink_to(libusb_package.get_library_path())
        libraries = [str(folder)]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")]),
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "TORCH_HOME": str(folder / "caches" / "torch"),
        "HF_HOME": str(folder / "caches" / "huggingface"),
        "COLUMNS": "250",
        "TERM": "dumb",
    }


@pytest.fixture(scope="module")
def command(environment, tmp_path_factory) -> Command:
    """Runs a command in a folder that has the fox."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "fox").symlink_to(FOX)

    def run(*words: object) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    run.folder = folder
    return run


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def add_alexnet(run_folder: Path) -> None:
    """Make a checkpoint what nerfstudio alone would have written: with the LPIPS network's weights in it."""
    path = only(run_folder / "nerfstudio_models")
    checkpoint = torch.load(path, weights_only=True)
    network = _LPIPS(pretrained=False, net="alex", pnet_rand=True)
    checkpoint["pipeline"] |= {f"_model.lpips.net.{key}": value for key, value in network.state_dict().items()}
    torch.save(checkpoint, path)


def edit_words(run_folder: Path, diffusion_folder: Path, steps: int) -> list[object]:
    return [
        *("ns-train", "cds", "--data", "fox", "--load-dir", run_folder / "nerfstudio_models", "--vis", "tensorboard"),
        *("--pipeline.source-prompt", SOURCE_PROMPT, "--prompt", TARGET_PROMPT, "--max-num-iterations", steps),
        *("--pipeline.diffusion", diffusion_folder, "--pipeline.guidance-resolution", 32),
        *("--pipeline.orbit-frames", 4, "--machine.device-type", "cpu"),
    ]


def view(config: Path, environment: dict[str, str], folder: Path) -> None:
    """Start ns-viewer, get its page, stop it."""
    log = folder / "viewer.log"
    with log.open("w") as output:
        viewer = subprocess.Popen(
            ["ns-viewer", "--load-config", config, "--viewer.websocket-port", "7117"],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        for _ in range(120):
            assert viewer.poll() is None, log.read_text()[-3000:]
            try:
                with urllib.request.urlopen("http://127.0.0.1:7117", timeout=5) as page:
                    assert page.status == 200
                    return
            except OSError:
                time.sleep(1)
        pytest.fail(f"the viewer did not answer: {log.read_text()[-3000:]}")
    finally:
        viewer.kill()
        viewer.wait()


@pytest.mark.parametrize("method", ["cds-source", "nerfacto"])
def test_every_command_runs_on_the_edit(method, command, environment, diffusion_folder, tmp_path):
    command(
        *("ns-train", method, "--data", "fox", "--max-num-iterations", 300, "--vis", "tensorboard", *SMALL_MODEL),
        *("--machine.device-type", "cpu", "--pipeline.datamanager.camera-res-scale-factor", 0.25),
    )
    source = only(command.folder / "outputs" / "fox" / method)
    if method == "nerfacto":
        add_alexnet(source)
    command(*edit_words(source, diffusion_folder, 20), "--timestamp", f"from-{method}")
    edit = command.folder / "outputs" / "fox" / "cds" / f"from-{method}"
    assert load_checkpoint(edit)["step"] == 19
    assert not list(Path(environment["HF_HOME"]).rglob("*.safetensors"))
    assert not list(Path(environment["TORCH_HOME"]).rglob("*.pth"))

    frames = {}
    for name, folder in (("source", source), ("edit", edit)):
        command(
            *("ns-render", "dataset", "--load-config", folder / "config.yml", "--output-path", tmp_path / name),
            *("--split", "test", "--rendered-output-names", "rgb", "--image-format", "png"),
        )
        pictures = sorted((tmp_path / name).rglob("*.png"))
        frames[name] = np.stack([np.asarray(Image.open(picture), dtype=float) for picture in pictures])
    assert len(frames["edit"]) == 5
    assert np.abs(frames["edit"] - frames["source"]).mean() > 0.5  # of 255

    config = edit / "config.yml"
    command(
        *("ns-render", "interpolate", "--load-config", config, "--output-path", tmp_path / "between.mp4"),
        *("--interpolation-steps", 1, "--pose-source", "eval", "--downscale-factor", 2),
    )
    assert (tmp_path / "between.mp4").stat().st_size > 0
    pose = np.eye(4)
    pose[2, 3] = 0.5
    keyframe = {"camera_to_world": pose.flatten().tolist(), "fov": 50, "aspect": 1}
    path = {"camera_type": "perspective", "render_height": 24, "render_width": 24, "camera_path": [keyframe] * 2}
    (tmp_path / "path.json").write_text(json.dumps(path | {"seconds": 1}))
    command(
        *("ns-render", "camera-path", "--load-config", config, "--camera-path-filename", tmp_path / "path.json"),
        *("--output-path", tmp_path / "path.mp4"),
    )
    assert (tmp_path / "path.mp4").stat().st_size > 0
    evaluated = command("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json")
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert {"psnr", "ssim"} <= set(results)
    assert "lpips" not in results and "LPIPS is left out of the metrics" in evaluated.stdout
    command(
        *("ns-export", "pointcloud", "--load-config", config, "--output-dir", tmp_path / "cloud"),
        *("--num-points", 2000, "--normal-method", "open3d"),
    )
    assert (tmp_path / "cloud" / "point_cloud.ply").stat().st_size > 0
    view(config, environment, command.folder)


def test_killed_edit_resumes_to_the_uninterrupted_one(command, environment, source_run, diffusion_folder, capture):
    words = [*edit_words(source_run, diffusion_folder, 40), "--data", capture, "--steps-per-save", 3]
    command(*words, "--timestamp", "whole")
    runs = command.folder / "outputs" / capture.name / "cds"
    killed = runs / "killed"
    process = subprocess.Popen(
        [str(word) for word in [*words, "--timestamp", "killed"]],
        cwd=command.folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(killed.glob("nerfstudio_models/step-*.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_checkpoint(killed)["step"] < 39
    command("ns-train", "cds", "--pipeline.resume-from", killed, "--vis", "tensorboard")
    assert_equal_states(load_checkpoint(killed), load_checkpoint(runs / "whole"))


def test_mistake_is_one_line_and_status_1(environment, tmp_path):
    done = subprocess.run(
        [shutil.which("ns-train", path=environment["PATH"]), "cds", "--load-dir", "nowhere", "--prompt", "a wolf"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("cds: --pipeline.source-prompt is missing")
    assert not list(tmp_path.iterdir())
