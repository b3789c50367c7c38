"""What a J-Quants plan allows: pace, dates and tables, and how the API says that it does not."""

import datetime as dt
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """A plan's pace, and the raw tables that it lacks."""

    requests_per_minute: int
    lacks: tuple[str, ...] = ()


WITHOUT = {
    "raw_indices": "no index: the market series is the equal-weighted return of the universe",
    "raw_investor_flows": "no investor flows: flow features are left out",
}
"""What it means for the run that a plan lacks a table."""

PLANS = {
    "free": Plan(5, ("raw_indices", "raw_investor_flows")),
    "light": Plan(60),
    "standard": Plan(120),
    "premium": Plan(500),
}
"""Requests per minute from https://jpx-jquants.com/en/spec/rate-limits, read in November 2026."""


@dataclass(frozen=True)
class Window:
    """The dates that the plan covers, both included; all until the API says otherwise."""

    first: dt.date = dt.date.min
    last: dt.date = dt.date.max

    def __str__(self) -> str:
        first = "the start" if self.first == dt.date.min else self.first
        last = "today" if self.last == dt.date.max else self.last
        return f"{first} to {last}"


class OutsidePlanError(Exception):
    """The plan covers other dates than those asked for."""

    def __init__(self, window: Window) -> None:
        super().__init__(f"the plan covers {window}")
        self.window = window


class NotInPlanError(Exception):
    """The plan does not have this table at all."""
