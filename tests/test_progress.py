"""Progress is a bar that moves in a terminal, and a few lines in a log file."""

import io
from collections.abc import Callable
from itertools import count

import pytest

from cds_nerf import progress
from cds_nerf.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Reads what went to a log file, where a second passes with each look at the clock."""
    monkeypatch.setattr(progress.time, "monotonic", count().__next__)
    return lambda: capsys.readouterr().err


def test_a_log_file_gets_a_line_now_and_then_and_one_at_the_end(log: Callable[[], str]) -> None:
    with progress_bar(description="a pig\n at night", total=1000) as bar:
        for step in range(1000):
            bar.set_postfix(dds=f"{step}", refresh=False)
            bar.update()
            bar.refresh()
    *before, last, end = (text := log()).split("\n")
    assert 20 < len(before) < 40
    assert all(line.startswith("a pig at night: ") and "left, dds=" in line for line in before)
    assert last.startswith("a pig at night: 1000/1000 (100 %), ")
    assert end == ""
    assert "\r" not in text


def test_short_work_is_one_line_of_a_log_file(log: Callable[[], str]) -> None:
    assert list(progress_bar("abc", description="Views")) == ["a", "b", "c"]
    assert log() == "Views: 3/3 (100 %), 00:00 gone, 00:00 left\n"


def test_a_log_file_says_how_far_it_came_where_work_was_interrupted(log: Callable[[], str]) -> None:
    with pytest.raises(KeyboardInterrupt), progress_bar(description="Editing", total=100, initial=40) as bar:
        bar.update(7)
        raise KeyboardInterrupt
    assert log().startswith("Editing: 47/100 (47 %), ")


def test_in_a_terminal_one_line_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress_bar(description="Editing", total=4) as bar:
        for _ in range(4):
            bar.update()
            bar.refresh()
    assert terminal.getvalue().count("\rEditing: ") > 4
    assert terminal.getvalue().count("\n") == 1


def test_what_is_not_to_be_shown_is_not(log: Callable[[], str]) -> None:
    assert list(progress_bar(range(3), description="Views", shown=False)) == [0, 1, 2]
    assert log() == ""
