"""The commands that a user types, on photographs: source, edit, render, evaluate, export, view, resume."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import ns_commands
import numpy as np
import pytest
import torch
from photographs import write_photographs
from PIL import Image
from small_edit import SOURCE_PROMPT, TARGET_PROMPT, load_checkpoint
from test_edit import assert_equal_states
from torchmetrics.functional.image.lpips import _LPIPS

SMALL_MODEL = [
    *("--pipeline.model.num-levels", 8, "--pipeline.model.log2-hashmap-size", 14, "--pipeline.model.max-res", 512),
    *("--pipeline.model.hidden-dim", 32, "--pipeline.model.hidden-dim-color", 32),
    *("--pipeline.model.num-nerf-samples-per-ray", 16, "--pipeline.model.num-proposal-samples-per-ray", 32),
    *("--pipeline.model.num-proposal-iterations", 1, "--pipeline.datamanager.train-num-rays-per-batch", 512),
]

pytestmark = pytest.mark.slow
Command = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory) -> Iterator[None]:
    """No network, empty caches, and what nerfstudio's commands need of the system, from packages."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())  # ns-render asks for one
    variables = {
        "PATH": os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
        "TORCH_HOME": str(folder / "caches" / "torch"),
        "HF_HOME": str(folder / "caches" / "huggingface"),
        "COLUMNS": "250",
        "TERM": "dumb",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder that has the photographs."""
    folder = tmp_path_factory.mktemp("work")
    write_photographs(folder / "photos")
    return folder


@pytest.fixture
def command(work) -> Command:
    """Runs a command in that folder, and gives what it printed."""

    def run(*words: object, anew: bool = False) -> str:
        log = work / "log"
        if anew:  # with all that an interpreter imports, as a user's terminal starts it
            with log.open("w") as output:
                program = [shutil.which(str(words[0])), *map(str, words[1:])]
                status = subprocess.run(program, cwd=work, stdout=output, stderr=output, timeout=900).returncode
        else:
            process = ns_commands.start(words, work, log)
            process.join(900)
            status = process.exitcode
        printed = log.read_text()
        assert status == 0, f"{words}\n{printed[-6000:]}"
        return printed

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
        *(
            "ns-train",
            "cds",
            "--data",
            "photos",
            "--load-dir",
            run_folder / "nerfstudio_models",
            "--vis",
            "tensorboard",
        ),
        *("--pipeline.source-prompt", SOURCE_PROMPT, "--prompt", TARGET_PROMPT, "--max-num-iterations", steps),
        *("--pipeline.diffusion", diffusion_folder, "--pipeline.guidance-resolution", 32),
        *("--pipeline.orbit-frames", 4, "--machine.device-type", "cpu"),
    ]


def view(config: Path, work: Path) -> None:
    """Start ns-viewer, get its page, stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = work / "viewer.log"
    viewer = ns_commands.start(["ns-viewer", "--load-config", config, "--viewer.websocket-port", port], work, log)
    try:
        for _ in range(600):
            assert viewer.is_alive(), log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as page:
                    assert page.status == 200
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail(f"the viewer did not answer: {log.read_text()[-3000:]}")
    finally:
        viewer.kill()
        viewer.join()


@pytest.mark.parametrize("method", ["cds-source", "nerfacto"])
def test_every_command_runs_on_the_edit(method, command, work, diffusion_folder, tmp_path):
    anew = method == "cds-source"
    command(
        *("ns-train", method, "--data", "photos", "--max-num-iterations", 60, "--vis", "tensorboard", *SMALL_MODEL),
        *("--machine.device-type", "cpu", "--pipeline.datamanager.camera-res-scale-factor", 0.5),
    )
    source = only(work / "outputs" / "photos" / method)
    if method == "nerfacto":
        add_alexnet(source)
    command(*edit_words(source, diffusion_folder, 20), "--timestamp", f"from-{method}", anew=anew)
    edit = work / "outputs" / "photos" / "cds" / f"from-{method}"
    assert load_checkpoint(edit)["step"] == 19
    assert not list(Path(os.environ["HF_HOME"]).rglob("*.safetensors"))
    assert not list(Path(os.environ["TORCH_HOME"]).rglob("*.pth"))

    frames = {}
    for name, folder in (("source", source), ("edit", edit)):
        command(
            *("ns-render", "dataset", "--load-config", folder / "config.yml", "--output-path", tmp_path / name),
            *("--split", "test", "--rendered-output-names", "rgb", "--image-format", "png"),
        )
        pictures = sorted((tmp_path / name).rglob("*.png"))
        frames[name] = np.stack([np.asarray(Image.open(picture), dtype=float) for picture in pictures])
    assert len(frames["edit"]) == 3
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
    printed = command("ns-eval", "--load-config", config, "--output-path", tmp_path / "eval.json", anew=anew)
    results = json.loads((tmp_path / "eval.json").read_text())["results"]
    assert {"psnr", "ssim"} <= set(results)
    assert "lpips" not in results and "LPIPS is left out of the metrics" in printed
    command(
        *("ns-export", "pointcloud", "--load-config", config, "--output-dir", tmp_path / "cloud"),
        *("--num-points", 2000, "--normal-method", "open3d"),
    )
    assert (tmp_path / "cloud" / "point_cloud.ply").stat().st_size > 0
    view(config, work)


def test_killed_edit_resumes_to_the_uninterrupted_one(command, work, source_run, diffusion_folder, capture):
    words = [*edit_words(source_run, diffusion_folder, 40), "--data", capture, "--steps-per-save", 3]
    command(*words, "--timestamp", "whole")
    runs = work / "outputs" / capture.name / "cds"
    killed = runs / "killed"
    process = ns_commands.start([*words, "--timestamp", "killed"], work, work / "killed.log")
    while not list(killed.glob("nerfstudio_models/step-*.ckpt")):
        assert process.is_alive()
        time.sleep(0.05)
    process.kill()
    process.join()
    assert load_checkpoint(killed)["step"] < 39
    command("ns-train", "cds", "--pipeline.resume-from", killed, "--vis", "tensorboard")
    assert_equal_states(load_checkpoint(killed), load_checkpoint(runs / "whole"))


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        (
            ["ns-train"],
            ["--load-config", "run/config.yml"],
            "cds: --load-config run/config.yml makes nerfstudio train that run anew",
        ),
        (
            [sys.executable, "-m", "nerfstudio.scripts.train"],
            ["--load-dir", "nowhere", "--prompt", "a wolf"],
            "cds: --pipeline.source-prompt is missing",
        ),
    ],
)
def test_mistake_is_one_line_and_status_1(tmp_path, program, words, message):
    program = [shutil.which(program[0]), *program[1:]]
    done = subprocess.run([*program, "cds", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(message)
    assert not list(tmp_path.iterdir())
