"""`cds-nerf history`: every edit of an edit, and the commands that repeat them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import pytest
from small_edit import SOURCE_PROMPT, TARGET_PROMPT, load_checkpoint, run
from test_edit import assert_equal_states

from cds_nerf.cli import main
from cds_nerf.nerf.live_settings import LOG
from cds_nerf.nerf.train_options import parse


def test_history_of_an_edit_of_an_edit_repeats_it(edit_config, source_run, tmp_path, capsys):
    log = tmp_path / "log.json"
    log.write_text('{"1": {"target_prompt": "a photo of a lion"}}')
    first = edit_config(timestamp="first", machine__seed=7, pipeline__live_changes=log)
    run(first)
    second = edit_config(
        load_dir=first.get_base_dir(),
        pipeline__source_prompt=TARGET_PROMPT,
        prompt="a photo of a bear",
        timestamp="second",
        pipeline__guidance__w_cut=1.5,
    )
    run(second)
    capsys.readouterr()

    assert main(["history", str(second.get_base_dir())]) == 0
    training, one, other = capsys.readouterr().out.split("\n\n")
    assert training.startswith(f"1. {source_run}\n") and "cds-source, 5 steps, seed 42" in training
    assert f'edit of "{SOURCE_PROMPT}" into "{TARGET_PROMPT}", 3 of 3 steps, seed 7' in one
    assert "from step 1 on: target_prompt 'a photo of a lion'" in one
    assert f'edit of "{TARGET_PROMPT}" into "a photo of a bear"' in other and "w_cut 1.5" in other

    for text, config in ((one, first), (other, second)):
        words = shlex.split(text.partition("repeated by: ns-train ")[2])
        repeated = parse([words[0], "--timestamp", f"{config.timestamp} again", *words[1:]])
        run(repeated)
        assert_equal_states(load_checkpoint(repeated.get_base_dir()), load_checkpoint(config.get_base_dir()))
    assert (first.get_base_dir() / LOG).exists() and not (second.get_base_dir() / LOG).exists()

    shutil.rmtree(first.get_base_dir())
    capsys.readouterr()
    assert main(["history", str(second.get_base_dir())]) == 0
    assert "is not there any more; what came before it is not known" in capsys.readouterr().out


def test_command_is_told_nothing_that_is_for_nerfstudios_developers(source_run):
    words = [sys.executable, "-m", "cds_nerf.cli", "history", str(source_run)]
    result = subprocess.run(words, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(f"1. {source_run}") and result.stderr == ""


@pytest.mark.parametrize(
    ("place", "message"), [("nowhere", "does not exist: give the folder of a run"), (".", "config.yml is missing")]
)
def test_what_is_no_run_is_told(tmp_path, place, message, capsys):
    assert main(["history", str(tmp_path / place)]) == 1
    assert message in capsys.readouterr().err
