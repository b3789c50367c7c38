"""``python -m atft_pipeline run``: materialize everything, then say in a table what was found."""

import argparse
import sys
import time
from pathlib import Path

import dagster as dg
import yaml

from atft_model.errors import InputError
from atft_pipeline.definitions import defs

RED, GREEN, YELLOW, PLAIN = "\033[31m", "\033[32m", "\033[33m", "\033[0m"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 when an asset or an integrity check failed; skill verdicts do not count."""
    parser = argparse.ArgumentParser(prog="python -m atft_pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="materialize the graph and print a summary")
    run.add_argument("--select", default="*", help="asset selection (default: everything)")
    run.add_argument("--config", type=Path, help="Dagster run config, YAML")
    return materialize(parser.parse_args(arguments))


def materialize(options: argparse.Namespace) -> int:
    """Runs the selection in this process with the instance of DAGSTER_HOME."""
    started = time.monotonic()
    config = yaml.safe_load(options.config.read_text()) if options.config else {}
    config.setdefault("loggers", {"console": {"config": {"log_level": "INFO"}}})
    job = defs.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.get() as instance:
        keys = dg.AssetSelection.from_string(options.select).resolve(job.asset_layer.asset_graph)
        result = job.execute_in_process(
            run_config=config, instance=instance, asset_selection=list(keys), raise_on_error=False
        )
    for line in failures(result):
        print(f"{RED}FAILED{PLAIN} {line}")
    stopped = summary(result)
    print(f"\n{time.monotonic() - started:.0f} s. Next: make ui")
    return 1 if stopped or not result.success else 0


def failures(result: dg.ExecuteInProcessResult) -> list[str]:
    """One line per asset that raised: the innermost cause in its own words."""
    lines = []
    for event in result.filter_events(lambda event: event.is_step_failure):
        error = event.step_failure_data.error
        while error and error.cause:
            error = error.cause
        if event.step_failure_data.user_failure_data:
            message = event.step_failure_data.user_failure_data.description or ""
        else:
            message = error.message.strip() if error else ""
        message = message.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")
        lines.append(f"{event.step_key}: {message.splitlines()[0] if message else 'see above'}")
    return lines


def summary(result: dg.ExecuteInProcessResult) -> bool:
    """Prints every check with its figure and verdict; returns whether an integrity check failed."""
    kinds = {check.name: (check.metadata or {}).get("kind")
             for asset in defs.resolve_asset_graph().assets_defs
             for check in asset.check_specs}  # fmt: skip
    stopped = False
    print()
    for check in result.get_asset_check_evaluations():
        error = check.severity == dg.AssetCheckSeverity.ERROR
        word, colour = ("holds", GREEN) if check.passed else ("FAILS", RED)
        if not check.passed and not error:
            word, colour = "warns", YELLOW
        stopped |= not check.passed and error and kinds.get(check.check_name) != "skill"
        name = f"{check.asset_key.path[-1]}:{check.check_name}"
        print(f"{colour}{word}{PLAIN}  {name:<52} {check.metadata['figure'].value}")
    for event in result.filter_events(lambda e: e.is_step_materialization):
        metadata = event.step_materialization_data.materialization.metadata
        if "report" in metadata:
            print(f"\nreport: {metadata['report'].value}")
    return stopped


if __name__ == "__main__":
    sys.exit(main())
