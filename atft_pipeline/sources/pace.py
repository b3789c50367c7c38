"""How fast a vendor is asked: evenly spaced requests, also across processes."""

import datetime as dt
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Time as a source sees it, so that tests need not wait."""

    def now(self) -> dt.datetime:
        """The present moment, with time zone."""
        ...

    def sleep(self, seconds: float) -> None:
        """Lets the time pass."""
        ...


class SystemClock:
    """The computer's clock."""

    def now(self) -> dt.datetime:
        """The present moment in UTC."""
        return dt.datetime.now(dt.UTC)

    def sleep(self, seconds: float) -> None:
        """Really waits."""
        time.sleep(seconds)


class Pace:
    """Spaces requests by a minute over the limit.

    A minute's worth at once followed by a pause would exceed the limit in a minute that the vendor
    counts from another second; evenly spaced, no minute holds more.

    Args:
        per_minute: The vendor's limit.
        clock: Where the time comes from.
        stamp: File with the time of the last request of any process; callers hold a lock.
    """

    def __init__(self, per_minute: int, clock: Clock, stamp: Path) -> None:
        self.interval = 60.0 / per_minute
        self.clock = clock
        self.stamp = stamp

    def wait(self) -> None:
        """Returns when the next request may be sent, and counts it as sent."""
        now = self.clock.now().timestamp()
        # A clock that was set back must not stop the sync for longer than one interval.
        wait = min(self._last() + self.interval - now, self.interval)
        if wait > 0:
            self.clock.sleep(wait)
            now = self.clock.now().timestamp()
        self.stamp.write_text(repr(now))

    def _last(self) -> float:
        try:
            return float(self.stamp.read_text())
        except (FileNotFoundError, ValueError):  # never asked; or killed while writing
            return float("-inf")
