"""One process at a time: a lock that the operating system takes back when its holder dies."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from atft_model.errors import InputError

POLL_SECONDS = 0.2

logger = logging.getLogger(__name__)


@contextmanager
def exclusive(path: Path, doing: str, wait_seconds: float) -> Iterator[None]:
    """Holds ``path`` as a lock; another holder is waited for.

    The lock is the operating system's (``flock``), not the file: a process that was killed holds
    nothing, and a file left behind means nothing. It is never removed, because a process that
    waits has it open.

    Args:
        path: The lock file; its folder is created. Its text names the holder.
        doing: What the holder does, in words for the one who waits.
        wait_seconds: How long at most; 0 fails at once.

    Raises:
        InputError: it is still held then; the message names the holder's process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        _acquire(file, path, doing, wait_seconds)
        file.truncate(0)
        file.write(f"process {os.getpid()} ({doing})")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _acquire(file: TextIO, path: Path, doing: str, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    said = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = path.read_text(encoding="utf-8") or "another process"
        else:
            return
        if time.monotonic() >= deadline:
            raise InputError(
                f"{path}: held by {holder}; {doing} waited {wait_seconds:g} s for it; expected one "
                "run at a time; wait until that process has ended, or end it, and run again"
            )
        if not said:
            logger.info("%s waits for %s, at most %g s", doing, holder, wait_seconds)
            said = True
        time.sleep(POLL_SECONDS)
