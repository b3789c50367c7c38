"""Reports a training process that stopped making progress, from a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger("atft")


class StallWatch:
    """Warns, once per stall, when ``beat`` was not called for ``seconds``.

    Args:
        report: Called with (after what, seconds so far) as well, from the watch's own thread.
    """

    def __init__(
        self, seconds: float, report: Callable[[str, float], None] = lambda after, seconds: None
    ) -> None:
        self.seconds = seconds
        self.report = report
        self._beat = time.monotonic()
        self._what = "start"
        self._reported = False
        self._stalls: list[tuple[str, float]] = []
        self._end = threading.Event()

    def beat(self, what: str) -> list[tuple[str, float]]:
        """Notes progress; returns the stalls reported since the last call: (where, seconds)."""
        if self._reported:
            self._stalls.append((self._what, time.monotonic() - self._beat))
        self._beat, self._what, self._reported = time.monotonic(), what, False
        stalls, self._stalls = self._stalls, []
        return stalls

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watches while inside."""
        self._beat = time.monotonic()
        thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()

    def _watch(self) -> None:
        while not self._end.wait(min(self.seconds / 4, 5.0)):
            silent = time.monotonic() - self._beat
            if silent > self.seconds and not self._reported:
                self._reported = True
                log.warning("[STALL] no progress for %.0f s, after %s", silent, self._what)
                self.report(self._what, silent)
