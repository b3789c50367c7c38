"""The lock: one holder, and none when the holder has died."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from atft_model.errors import InputError
from atft_pipeline.sources.lock import exclusive

HOLDER = """
import sys, time
from pathlib import Path
from atft_pipeline.sources.lock import exclusive
with exclusive(Path(sys.argv[1]), "long work", 0.0):
    print("held", flush=True)
    time.sleep(60)
"""


def take(path: Path, holder: str) -> bool:
    """Takes the lock without waiting and gives it back; raises where another holds it."""
    with exclusive(path, holder, 0.0):
        return path.exists()


def test_a_second_holder_fails_and_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / ".lock"
    said = (
        rf"\.lock: held by process {os.getpid()} \(first\); second waited 0 s for it; expected one "
        "run at a time; wait until that process has ended, or end it, and run again"
    )
    with exclusive(path, "first", 0.0), pytest.raises(InputError, match=said):
        take(path, "second")


def test_a_second_holder_gets_it_when_the_first_is_done(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusive(tmp_path / ".lock", "second", 30.0):
            order.append("second")

    with exclusive(tmp_path / ".lock", "first", 0.0):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_an_error_inside_frees_it(tmp_path: Path) -> None:
    with pytest.raises(KeyError), exclusive(tmp_path / ".lock", "first", 0.0):
        raise KeyError
    assert take(tmp_path / ".lock", "second")


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=rf"held by process {holder.pid} \(long work\)"):
            take(path, "second")
    finally:
        holder.kill()
        holder.communicate()
    with exclusive(path, "second", 0.0):
        assert str(os.getpid()) in path.read_text()
