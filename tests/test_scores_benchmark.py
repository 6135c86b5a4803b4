"""The benchmark of the scores: what it compares can be run, and it goes on where it was interrupted."""

from pathlib import Path

import pytest
import torch
from compared_scores import LAYERS, QUICK, RUNS, mean_and_spread, without_contrastive_loss
from edit_courses import MEASURES, Courses, table_of
from field_scores import edit_of_seed
from image_scores import Cases, ImageScores

from cds_nerf import CDSGuidanceConfig
from cds_nerf.evaluation.detail import detail_kept


@pytest.mark.parametrize("name", RUNS)
def test_what_is_compared_is_a_setting_of_the_guidance(name: str) -> None:
    assert CDSGuidanceConfig(**RUNS[name]).score == name.split(",")[0].split()[0]


def test_parts_of_the_benchmark_are_known_runs_and_its_layers_settings() -> None:
    assert len({CDSGuidanceConfig(**settings).contrastive_layers for settings in LAYERS.values()}) == len(LAYERS) / 2
    assert set(QUICK) <= RUNS.keys()


def test_cases_of_a_seed_are_the_same_and_their_truth_keeps_the_pattern() -> None:
    cases, again = Cases.draw("shape", 1, 2), Cases.draw("shape", 1, 2)
    assert cases.images.equal(again.images) and cases.sources == again.sources
    assert all(a.color == b.color and a.shape != b.shape for a, b in zip(cases.sources, cases.targets, strict=True))
    assert detail_kept(cases.truth, cases.truth, cases.plain, cases.target_mask).min() > 0.99


def test_a_measured_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageScores(count=1, steps=5, output=tmp_path)
    table = images.section("color", "on", ("dds",), (0,), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [row.split(" | ")[0] for row in table if row.startswith("|")] == ["| score", "| ---", "| dds"] * 2
    monkeypatch.setattr("image_scores.edit_image", lambda *_, **__: pytest.fail("run again"))
    assert images.section("color", "on", ("dds",), (0,), tmp_path / "curves.png") == table


def test_scores_are_compared_when_an_image_first_shows_its_target() -> None:
    def courses(shows: list[list[int]], detail: list[list[float]]) -> Courses:
        measures = dict.fromkeys(MEASURES, torch.tensor(detail))
        return Courses(torch.tensor([2, 4, 6]), torch.tensor(shows) > 0, measures)

    plain = courses([[0, 1, 0], [1, 0, 0], [1, 1, 0]], [[0.9, 0.8, 1.0], [0.7, 0.6, 1.0], [0.5, 0.4, 1.0]])
    assert plain.succeeds.tolist() == [True, True, False]
    torch.testing.assert_close(plain.at_first("detail"), torch.tensor([0.7, 0.8, torch.nan]), equal_nan=True)
    contrastive = courses([[0, 0, 0], [0, 0, 1], [1, 1, 1]], [[0.9] * 3, [0.9] * 3, [0.9, 0.7, 0.9]])
    table = table_of({"dds": plain, "cds, w_cut 15": contrastive})
    row, last = [line for line in table if line.startswith("| cds, w_cut 15")]
    assert "| 100% | 5 |" in row  # at steps 6, 6 and 4
    assert row.endswith("| 0.833 (+0.050 ± 0.150) |")  # of the first two images: +0.2 and -0.1
    assert last.endswith("| 0.833 (+0.350 ± 0.050) |")  # of the same: +0.4 and +0.3


def test_contrastive_loss_is_compared_with_the_same_score_without_it() -> None:
    plain = {without_contrastive_loss(name) for name in RUNS}
    assert plain == {"dds", "dds, decreasing", "sds", "pds", "ids"}


def test_edits_of_a_scene_start_from_the_same_and_change_one_word() -> None:
    source, target = edit_of_seed("floor", 4)
    assert source == edit_of_seed("color", 4)[0]
    assert (source.color, source.shape) == (target.color, target.shape) and source.floor != target.floor


def test_spread_is_told_where_there_are_several() -> None:
    assert mean_and_spread([1.0, 3.0], ".1f") == "2.0 ± 1.4"
    assert mean_and_spread([2.0], ".1f") == "2.0"
