"""Live progress to whoever started the run: Dagster over Pipes, or nobody."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from atft_model.settings import Place

PIPES_CONTEXT = "DAGSTER_PIPES_CONTEXT"


class Reporter:
    """Reports nothing: the run was started by hand."""

    def epoch(self, numbers: Mapping[str, float]) -> None:
        """One epoch's figures."""

    def stall(self, after: str, seconds: float) -> None:
        """No progress for so long since ``after``; said by another thread, while it lasts."""

    def result(self, facts: Mapping[str, Any]) -> None:
        """What the run made."""


class PipesReporter(Reporter):
    """Sends each epoch, each stall and the result as custom Pipes messages."""

    def __init__(self, context: Any) -> None:
        self.context = context

    def epoch(self, numbers: Mapping[str, float]) -> None:
        self.context.report_custom_message({"epoch": dict(numbers)})

    def stall(self, after: str, seconds: float) -> None:
        self.context.report_custom_message({"stall": {"after": after, "seconds": seconds}})

    def result(self, facts: Mapping[str, Any]) -> None:
        self.context.report_custom_message({"result": dict(facts)})


@contextmanager
def open_reporter(place: Place) -> Iterator[Reporter]:
    """A reporter to the Dagster run that started this process, if one did; of several, rank 0's."""
    if PIPES_CONTEXT not in os.environ or place.rank != 0:
        yield Reporter()
        return
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as context:
        yield PipesReporter(context)
