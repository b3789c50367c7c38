"""Runs ``python -m atft_model`` in its own process, with live figures in the Dagster UI.

A crash or an out-of-memory kill ends that process alone, and its device memory goes with it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0
"""Between asking an interrupted process to stop and killing it."""


def run_model_process(
    context: dg.AssetExecutionContext,
    arguments: Sequence[str],
    on_message: Callable[[dict[str, Any]], None] = lambda message: None,
) -> None:
    """Runs one command of the model library under a Pipes session.

    Args:
        arguments: What follows ``python -m atft_model``.
        on_message: Called with each custom message, once, as it arrives.

    Raises:
        dg.Failure: the process ended with an exit code other than 0.
    """
    command = [sys.executable, "-m", "atft_model", *arguments, "--die-with-parent"]
    seen = 0
    with _pipes_session(context) as session, tempfile.TemporaryFile("w+") as errors:
        environment = {
            **os.environ,
            **session.get_bootstrap_env_vars(),
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stderr=errors, text=True
        )
        try:
            while process.poll() is None:
                seen = _deliver(session, seen, on_message)
                time.sleep(POLL_SECONDS)
        finally:
            _stop(process)
        errors.seek(0)
        printed = errors.read()
    _deliver(session, seen, on_message)
    sys.stderr.write(printed)
    if process.returncode != 0:
        raise dg.Failure(description=_explain(arguments[0], process.returncode, printed))


@contextmanager
def _pipes_session(context: dg.AssetExecutionContext) -> Iterator[Any]:
    with warnings.catch_warnings():
        # Every session of Dagster's reads these two of its own; nothing of ours does.
        warnings.filterwarnings(
            "ignore", "Function `PipesMessageReader.expected_writer_count`", dg.PreviewWarning
        )
        warnings.filterwarnings(
            "ignore", "AssetExecutionContext.run_id is deprecated", DeprecationWarning
        )
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
        ) as session:
            yield session


def _deliver(session: Any, seen: int, on_message: Callable[[dict[str, Any]], None]) -> int:
    messages = session.get_custom_messages()
    for message in messages[seen:]:
        on_message(message)
    return len(messages)


def _stop(process: subprocess.Popen) -> None:
    """Ends the whole process group: asked first, then killed."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _explain(command: str, code: int, errors: str) -> str:
    """Why the process ended, in one line."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; perhaps out of memory" if name == "SIGKILL" else ""
        return f"atft_model {command} was ended by {name}{hint}"
    lines = [line for line in errors.strip().splitlines() if line.strip()]
    reason = lines[-1] if lines else f"exit code {code}"
    return reason.removeprefix("atft_model: ")
