"""The viewer of a running edit in a real browser: what a user sees, types and presses there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import ns_commands
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright
from test_end_to_end import SMALL_MODEL

from cds_nerf.nerf.live_settings import LOG
from cds_nerf.nerf.viewer_buttons import Request
from cds_nerf.shapes.dataset import Capture, write_capture

pytestmark = pytest.mark.slow
PATIENCE = 120
"""Seconds that a busy machine may take for anything; a step takes less than one."""
NEW_PROMPT = "a photo of a yellow cube on a wooden floor"
expect.set_options(timeout=PATIENCE * 1000)


def wait_until(holds: Callable[[], object], process: ForkServerProcess, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert process.is_alive() and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)


@pytest.fixture(scope="module")
def edit(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """The run folder of an edit with the bundled model that is under way, and where its viewer is."""
    folder = tmp_path_factory.mktemp("browser")
    write_capture(Capture.of("a red cube on a wooden floor", views=24), folder / "scene")
    words = ["ns-train", "cds-source", "--data", "scene", "--timestamp", "source", "--vis", "tensorboard"]
    words += [*SMALL_MODEL, "--max-num-iterations", 60, "--machine.device-type", "cpu"]
    words += ["--steps-per-eval-batch", 0, "--steps-per-eval-image", 0]
    source = ns_commands.start(words, folder, folder / "source.log")
    source.join()
    assert source.exitcode == 0, (folder / "source.log").read_text()[-3000:]

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["ns-train", "cds", "--load-dir", "outputs/scene/cds-source/source", "--timestamp", "edit"]
    words += ["--pipeline.source-prompt", "a photo of a red cube on a wooden floor"]
    words += ["--prompt", "a photo of a blue cube on a wooden floor", "--pipeline.diffusion", "shapes"]
    words += ["--vis", "viewer", "--viewer.websocket-port", port, "--max-num-iterations", 100000]
    words += ["--pipeline.steps-per-strip", 3, "--machine.device-type", "cpu"]
    log = folder / "edit.log"
    process = ns_commands.start(words, folder, log)
    run = folder / "outputs" / "scene" / "cds" / "edit"
    try:
        wait_until(lambda: (run / "strips").exists(), process, log)
        address = re.search(r"open (http://localhost:\d+) there", log.read_text())
        assert address is not None
        yield run, address[1]
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        process.kill()


@pytest.fixture
def page() -> Iterator[Page]:
    """A new page of the system's Chromium, whose WebGL needs no graphics card."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        assert os.environ.get("CDS_NERF_BROWSER_TEST") != "required", "there is no Chromium"
        pytest.skip("the test of the viewer needs a browser: apt-get install --yes chromium")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.set_default_timeout(PATIENCE * 1000)
        yield page
        browser.close()


def field(page: Page, label: str) -> Locator:
    """The field behind a label of the panel."""
    return page.locator(f"xpath=//*[normalize-space(text())='{label}']/following::input[not(@type='hidden')][1]")


def scene(page: Page) -> np.ndarray:
    """The pixels of the middle of the canvas, where no panel lies over it."""
    canvas = np.asarray(Image.open(BytesIO(page.locator("canvas").first.screenshot())).convert("RGB")).astype(float)
    return canvas[100:-20, 20:600]


def wait_for_a_change(page: Page, before: np.ndarray, mean: float) -> np.ndarray:
    end = time.monotonic() + PATIENCE
    while np.abs(scene(page) - before).mean() < mean:
        assert time.monotonic() < end
        page.wait_for_timeout(500)
    return scene(page)


def test_prompt_is_changed_in_the_panel_and_the_edit_follows(edit, page, tmp_path):
    run, address = edit
    page.goto(address)
    expect(page.get_by_text("Connected", exact=True)).to_be_visible()
    field(page, "Max res").fill("64")  # which a processor draws in time
    expect(page.get_by_text(re.compile(r"Resolution: [1-9]"))).to_be_visible()
    seen = scene(page)
    assert (
        len(np.unique(seen.reshape(-1, 3) // 16, axis=0)) > 30
    )  # neither one colour nor a background with a few marks
    assert (seen.sum(axis=2) > 100).mean() > 0.5

    assert field(page, "Target prompt").input_value() == "a photo of a blue cube on a wooden floor"
    field(page, "W cut").fill("-1")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("w_cut is -1.0; it must be at least 0")).to_be_visible()
    field(page, "W cut").fill("3")
    field(page, "Target prompt").fill(NEW_PROMPT)
    page.get_by_role("button", name="Apply").click()
    said = page.get_by_text(re.compile(r"Changed from step \d+ on: target_prompt, guidance.w_cut"))
    expect(said).to_be_visible()
    step = re.search(r"\d+", said.inner_text())[0]
    assert json.loads((run / LOG).read_text()) == {step: {"target_prompt": NEW_PROMPT, "guidance.w_cut": 3.0}}

    page.get_by_role("button", name=Request.SAVE.value).click()
    expect(page.get_by_text(re.compile(r"Step \d+ is saved"))).to_be_visible()
    assert list((run / "nerfstudio_models").glob("step-*.ckpt"))
    assert [path.name[:5] for path in (run / "source" / "measured").glob("auto-*")] == ["auto-"]  # of the new prompt

    page.get_by_role("button", name=Request.RETURN.value).click()
    expect(page.get_by_text("Press it again to go back to the source")).to_be_visible()
    page.get_by_role("button", name=Request.RETURN.value).click()
    expect(page.get_by_text(re.compile(r"Step \d+ begins with the source's field"))).to_be_visible()
    assert {"field": "source"} in json.loads((run / LOG).read_text()).values()

    for picture in ("Losses", "The last view, and where the guidance pulls at it"):
        shown = page.get_by_role("img", name=picture)
        shown.scroll_into_view_if_needed()
        assert shown.evaluate("picture => picture.naturalWidth") > 100
    page.screenshot(path=tmp_path / "panel.png")

    before = scene(page)
    field(page, "Output type").click()
    page.get_by_role("option", name="relevance", exact=True).click()
    wait_for_a_change(page, before, mean=20)
    page.screenshot(path=tmp_path / "relevance.png")
    print(f"screenshots: {tmp_path}")
