"""What one process does, another does not do at the same time; a killed one stands in nobody's way."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cds_nerf.errors import UserAdvice, UserError
from cds_nerf.locking import check_free, held, hold, let_go

HOLDER = """
import sys, time
from pathlib import Path
from cds_nerf.locking import hold
hold(Path(sys.argv[1]), "it runs")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "lock"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_lock_of_another_process_is_refused_with_its_number(other, tmp_path):
    for attempt in (hold, check_free):
        with pytest.raises(UserError, match=rf"^it runs already, by process {other.pid} on .+: wait for it to end"):
            attempt(tmp_path / "lock", "it runs")


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_process_that_was_killed_leaves_no_lock(other, tmp_path, ending):
    other.send_signal(ending)
    other.wait()
    check_free(tmp_path / "lock", "it runs")
    with held(tmp_path / "lock", "it runs"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_lock_is_taken_once_and_given_back(tmp_path):
    path = tmp_path / "lock"
    with held(path, "it runs"):
        hold(path, "it runs")
        check_free(path, "it runs")
        assert not can_be_locked(path)
    assert can_be_locked(path)
    let_go(path)


def test_nothing_is_made_to_look_whether_a_lock_is_free(tmp_path):
    check_free(tmp_path / "folder" / "lock", "it runs")
    assert not list(tmp_path.iterdir())


def test_filesystem_without_locks_is_told_of_and_does_not_stop_the_work(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    told = rf"the filesystem of {tmp_path} has no locks \(No locks available\)"
    with pytest.warns(UserAdvice, match=told), held(tmp_path / "lock", "it runs"):
        pass


def can_be_locked(path: Path) -> bool:
    """By an open file other than the one that holds it, as another process would."""
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
