"""A person's mistake reads as one line: in the terminal, in the UI and in the run's record.

Left alone, Dagster wraps an ``InputError`` in an error of its own and prints two chained
tracebacks, twice. As ``dg.Failure`` its message leads, with one traceback; ``console`` leaves that
out too. A run uses ``console`` where its config names it, as ``python -m atft_pipeline run`` does.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterAssetCheckFailedError

from atft_model.errors import InputError

TRACE = "\n\nStack Trace:"


@contextmanager
def input_errors_as_failures() -> Iterator[None]:
    """An ``InputError`` becomes a ``dg.Failure`` that says the same; bugs keep their traceback."""
    try:
        yield
    except InputError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def plain_failures(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates the function of an asset, below ``@dg.asset``: its bad input fails in one line."""
    if inspect.isgeneratorfunction(compute):

        @functools.wraps(compute)
        def generate(*arguments: Any, **named: Any) -> Iterator[Any]:
            with input_errors_as_failures():
                yield from compute(*arguments, **named)

        return generate

    @functools.wraps(compute)
    def run(*arguments: Any, **named: Any) -> Any:
        with input_errors_as_failures():
            return compute(*arguments, **named)

    return run


class _WithoutTraceOfFailures(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        event = getattr(record, "dagster_meta", {}).get("dagster_event")
        data = event.event_specific_data if event else None
        # The run's own failure event repeats that of its first failed step.
        first = getattr(data, "first_step_failure_event", None)
        data = first.event_specific_data if first else data
        error = getattr(data, "error", None)
        said = getattr(data, "user_failure_data", None) or is_failed_check(error)
        if said:
            record.msg = record.msg.partition(TRACE)[0]
        return True


def is_failed_check(error: Any) -> bool:
    """Whether a step's error record says that a blocking check failed: it has the evidence."""
    return getattr(error, "cls_name", None) == DagsterAssetCheckFailedError.__name__


@dg.logger(
    config_schema={
        "log_level": dg.Field(str, is_required=False, default_value="INFO"),
        "name": dg.Field(str, is_required=False, default_value="dagster"),
    },
    description="Dagster's coloured console without the traceback of a failure said in words.",
)
def console(context: dg.InitLoggerContext) -> logging.Logger:
    """The logger of runs whose config has ``loggers: console``."""
    logger = dg.colored_console_logger.logger_fn(context)
    logger.addFilter(_WithoutTraceOfFailures())
    return logger
