"""Asks Dagster's webserver what a person's browser would ask it."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until(
    holds: Callable[[], object], seconds: float, process: subprocess.Popen | None = None
) -> bool:
    """Whether it held within that time; waits no longer than the process lives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (process is None or process.poll() is None):
        if holds():
            return True
        time.sleep(0.3)
    return bool(holds())


def answer(url: str, query: str | None = None) -> dict | None:
    """The JSON of a page or of a GraphQL query; None while nobody answers."""
    body = json.dumps({"query": query}).encode() if query else None
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200
            return json.load(response)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def launch(url: str, assets: Sequence[str], config: dict[str, Any]) -> str:
    """Materializes assets as the button in the UI does; the run's id."""
    found = answer(f"{url}/graphql", """{repositoriesOrError {... on RepositoryConnection
        {nodes {name location {name}}}}}""")  # fmt: skip
    assert found is not None
    (repository,) = found["data"]["repositoriesOrError"]["nodes"]
    keys = ", ".join(f'{{path: ["{asset}"]}}' for asset in assets)
    selector = f"""{{repositoryName: "{repository["name"]}",
        repositoryLocationName: "{repository["location"]["name"]}", jobName: "__ASSET_JOB",
        assetSelection: [{keys}]}}"""
    settings = json.dumps(json.dumps(config))
    found = answer(f"{url}/graphql", f"""mutation {{launchRun(executionParams: {{
        selector: {selector}, runConfigData: {settings}}}) {{
        __typename ... on LaunchRunSuccess {{run {{runId}}}}
        ... on PythonError {{message}}
        ... on RunConfigValidationInvalid {{errors {{message}}}}}}}}""")  # fmt: skip
    assert found is not None
    launched = found["data"]["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", found
    return launched["run"]["runId"]


def run_of(url: str, run_id: str) -> dict[str, Any]:
    """Its ``status``, ``startTime`` and ``endTime``; the status says when nobody answers."""
    found = answer(f"{url}/graphql", f"""{{runOrError(runId: "{run_id}")
        {{... on Run {{status startTime endTime}}}}}}""")  # fmt: skip
    return found["data"]["runOrError"] if found else {"status": "no answer"}
