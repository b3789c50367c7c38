"""``python -m atft_pipeline run``: materialize everything, then say in a table what was found."""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.errors import DagsterExecutionInterruptedError, DagsterHomeNotSetError

from atft_model.errors import InputError
from atft_pipeline.alerts import alert_test
from atft_pipeline.assets.acceptance import accepted_model, history_metadata, rollback
from atft_pipeline.checks_page import checks_page
from atft_pipeline.config_schema import check_run_config
from atft_pipeline.definitions import defs
from atft_pipeline.failures import is_failed_check
from atft_pipeline.feature_page import features_page
from atft_pipeline.report.compare import compare_runs
from atft_pipeline.resources import Market
from atft_pipeline.storage import Storage
from atft_pipeline.upkeep import disk_use, removals, remove, size_of

READY = "start with make run, or source activate.sh first"
UNPARTITIONED = "not key:rolling_model+"
"""Everything but the walk-forward, whose periods are runs of their own."""
RED, GREEN, YELLOW, PLAIN = "\033[31m", "\033[32m", "\033[33m", "\033[0m"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; 1 when an asset or an integrity check failed (skill verdicts do not count); 2 when the
        command itself cannot be carried out, with one line on stderr.
    """
    parser = argparse.ArgumentParser(prog="python -m atft_pipeline", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run", help="materialize the graph and print a summary")
    run.add_argument("--select", default=UNPARTITIONED, help="asset selection (default: all but "
                     "the walk-forward)")  # fmt: skip
    run.add_argument("--config", type=Path, help="Dagster run config, YAML")
    walk = commands.add_parser("walk-forward", help="train and score every test period, then judge "
                               "all of them together")  # fmt: skip
    walk.add_argument("--config", type=Path, help="Dagster run config, YAML")
    walk.add_argument("--keep", action="store_true", help="leave the periods that have scores of "
                      "the current panel as they are")  # fmt: skip
    compare = commands.add_parser("compare", help="a page that compares two evaluated runs")
    compare.add_argument("runs", nargs=2, metavar="RUN", help="run id: a folder in models")
    commands.add_parser("features-table", help="print docs/features.md, written from the registry")
    commands.add_parser("checks-table", help="print docs/checks.md, written from the checks")
    commands.add_parser("alert-test", help="send one message to every address in ATFT_ALERTS")
    clean = commands.add_parser("clean-runs", help="show, or delete, what is old and unused")
    clean.add_argument("--days", type=float, default=30, help="not written since (default: 30)")
    clean.add_argument("--delete", action="store_true", help="delete what is shown without this")
    back = commands.add_parser("rollback", help="put an earlier model in use again")
    back.add_argument("--to", metavar="RUN", help="run id (default: the one in use before)")
    back.add_argument("--reason", default="none given", help="for the history")
    options = parser.parse_args(arguments)
    if options.command == "features-table":
        print(features_page(), end="")
        return 0
    if options.command == "checks-table":
        print(checks_page(all_checks()), end="")
        return 0
    if options.command == "alert-test":
        return print_alert_test()
    started = time.monotonic()
    try:
        if options.command == "compare":
            storage = storage_of({})
            print(compare_runs(storage.models, storage.reports, *options.runs))
            return 0
        if options.command == "clean-runs":
            with open_instance() as instance:
                clean_runs(instance, options.days, delete=options.delete)
            return 0
        if options.command == "rollback":
            with open_instance() as instance:
                roll_back(instance, options.to, options.reason)
            return 0
        config = read_config(options.config) if options.config else {}
        with open_instance() as instance:
            if options.command == "walk-forward":
                results = list(walk_forward(config, instance, options.keep))
            else:
                results = [materialize(options.select, config, instance)]
    except InputError as error:
        print(f"atft_pipeline: {error}", file=sys.stderr)
        return 2
    for result in results:
        print_summary(result)
    print(f"\n{time.monotonic() - started:.0f} s. Next: make ui")
    return max(exit_code(result) for result in results)


def print_alert_test() -> int:
    """Sends a test message and prints what became of it at each address.

    Returns:
        0; 1 when an address refused it; 2 when there is no address.
    """
    lines = alert_test()
    print("\n".join(lines) or "atft_pipeline: ATFT_ALERTS is not set; nobody to tell")
    if not lines:
        return 2
    return 1 if any(line.startswith("FAILED") for line in lines) else 0


def clean_runs(instance: dg.DagsterInstance, days: float, *, delete: bool) -> None:
    """Prints disk use and what is old and unused; deletes it if told to."""
    storage, home = Storage(market=Market()), Path(instance.root_directory)
    print("\n".join(f"{size / 1e6:10.1f} MB  {part}" for part, size in disk_use(storage, home)))
    planned = removals(storage, instance, home, days)
    print(f"\n{len(planned)} removable, not written for {days:g} days:")
    for removal in planned:
        print(f"{size_of(removal.path) / 1e6:10.1f} MB  {removal.what}")
    if delete:
        remove(planned, instance)
        print("deleted")
    elif planned:
        print("nothing deleted; to delete them: make clean-runs DELETE=1")


def roll_back(instance: dg.DagsterInstance, to: str | None, reason: str) -> None:
    """Puts an earlier model in use again, tells Dagster, and says what comes next."""
    history = rollback(storage_of({}), to, reason)
    newest = history.row(-1, named=True)
    record = {"run_id": newest["run_id"], "panel_hash": newest["panel_hash"]}
    instance.report_runless_asset_event(dg.AssetMaterialization(
        accepted_model.key, description=f"rollback: {reason}",
        metadata={**record, **history_metadata(history)},
    ))  # fmt: skip
    print(f"in use: {newest['run_id']}, before: {newest['before']}")
    print("next: dagster asset materialize --select latest_scores")


def read_config(path: Path) -> dict[str, Any]:
    """The run config of a YAML file.

    Raises:
        InputError: no such file, or its content is no table of settings.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: run config not found; give the path of a YAML file") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable YAML file: {problem}") from None
    if config is not None and not isinstance(config, dict):
        raise InputError(f"{path}: expected a table such as ops: and resources:, found {config!r}")
    return config or {}


def open_instance() -> dg.DagsterInstance:
    """The instance of DAGSTER_HOME: what is recorded in no other place is lost with the process.

    Raises:
        InputError: DAGSTER_HOME is not set or no folder.
    """
    try:
        return dg.DagsterInstance.get()
    except DagsterHomeNotSetError:
        raise InputError(f"DAGSTER_HOME is not set; {READY}") from None
    except dg.DagsterInvariantViolationError as error:
        reason = str(error).partition(". ")[0]
        raise InputError(f"{reason}; {READY}") from None


def walk_forward(
    config: Mapping[str, Any], instance: dg.DagsterInstance, keep: bool = False
) -> Iterator[dg.ExecuteInProcessResult]:
    """Runs every period of the walk-forward, one after the other, and judges them together.

    What comes before is built where it was never built, and used as it is where it was. A period
    that fails leaves the others to run; ``walk_forward_evaluation`` then names it.

    Args:
        keep: Leave periods alone that have scores of the current panel.
    """
    storage = storage_of(config)
    if not (storage.graph / "current.json").exists():
        result = materialize("*stock_graph", config, instance)
        yield result
        if not result.success:
            return
    result = materialize("key:test_periods", config, instance)
    yield result
    if not result.success:
        return
    plan = storage.read_table("test_periods", "walk_forward_evaluation")
    if plan.is_empty():
        raise InputError(
            "walk-forward: no test period has enough training dates before it; give more dates, "
            "or lower min_train_dates of the resource walk_forward"
        )
    parts = storage.read_parts("rolling_model") if keep else {}
    for period, panel_hash in plan.select("period", "panel_hash").iter_rows():
        if period in parts and parts[period]["panel_hash"].unique().to_list() == [panel_hash]:
            print(f"{period}: kept")
            continue
        result = materialize("key:rolling_model", config, instance, period)
        yield result
        if was_interrupted(result):
            return
    yield materialize("key:walk_forward_evaluation", config, instance)


def was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether someone stopped the run: Dagster records that and returns as from any other."""
    failures_seen = (
        event.step_failure_data for event in result.all_events if event.is_step_failure
    )
    interrupted = DagsterExecutionInterruptedError.__name__
    return any(data.error and data.error.cls_name == interrupted for data in failures_seen)


def storage_of(config: Mapping[str, Any]) -> Storage:
    """The storage that a run with this config uses."""
    given = config.get("resources", {})
    settings = {name: given.get(name, {}).get("config", {}) for name in ("market", "storage")}
    return Storage(market=Market(**settings["market"]), **settings["storage"])


def materialize(
    select: str, config: Mapping[str, Any], instance: dg.DagsterInstance,
    partition: str | None = None,
) -> dg.ExecuteInProcessResult:  # fmt: skip
    """Runs the selection in this process.

    Raises:
        InputError: a selection of nothing, or config that the assets do not know, also that of
            assets that are not selected.
    """
    job = defs.resolve_implicit_global_asset_job_def()
    check_run_config(job, config)
    quiet = {"loggers": {"console": {"config": {"log_level": "INFO"}}}}
    return job.execute_in_process(
        run_config=quiet | dict(config), instance=instance,
        asset_selection=selected(select, job.asset_layer.asset_graph), raise_on_error=False,
        partition_key=partition,
    )  # fmt: skip


def selected(select: str, graph: Any) -> list[dg.AssetKey]:
    """The assets that a selection names.

    Raises:
        InputError: broken syntax, an unknown asset, or nothing selected.
    """
    with warnings.catch_warnings():
        # Dagster's own parser passes this parameter; what it selects here would be the same.
        warnings.filterwarnings("ignore", "Parameter `include_sources`", dg.BetaWarning)
        try:
            keys = dg.AssetSelection.from_string(select).resolve(graph)
        except dg.DagsterError as error:
            reason = str(error).partition(". ")[0]
            raise InputError(f"--select {select!r}: {reason}") from None
    if not keys:
        raise InputError(f"--select {select!r} selects no asset; make ui shows their names")
    return list(keys)


def all_checks() -> list[dg.AssetCheckSpec]:
    """Every check of every asset."""
    return [check for asset in defs.resolve_asset_graph().assets_defs
            for check in asset.check_specs]  # fmt: skip


def exit_code(result: dg.ExecuteInProcessResult) -> int:
    """1 when an asset failed or an integrity check did; skill verdicts do not count."""
    # By asset too: two assets may have a check of one name and not of one kind.
    kinds = {check.key: (check.metadata or {}).get("kind") for check in all_checks()}
    stopped = any(
        kinds[check.asset_check_key] != "skill" and check.severity == dg.AssetCheckSeverity.ERROR
        for check in result.get_asset_check_evaluations()
        if not check.passed
    )
    return 1 if stopped or not result.success else 0


def print_summary(result: dg.ExecuteInProcessResult) -> None:
    """Prints what failed, every check with its figure and verdict, and where the report lies."""
    for line in failures(result):
        print(f"{RED}FAILED{PLAIN} {line}")
    print()
    for check in result.get_asset_check_evaluations():
        word, colour = ("holds", GREEN) if check.passed else ("FAILS", RED)
        if not check.passed and check.severity == dg.AssetCheckSeverity.WARN:
            word, colour = "warns", YELLOW
        name = f"{check.asset_key.path[-1]}:{check.check_name}"
        print(f"{colour}{word}{PLAIN}  {name:<52} {check.metadata['figure'].value}")
    for event in result.filter_events(lambda e: e.is_step_materialization):
        metadata = event.step_materialization_data.materialization.metadata
        if "report" in metadata:
            print(f"\nreport: {metadata['report'].value}")


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
            if is_failed_check(error):
                checks = message.splitlines()[-1].partition(": ")[2].replace(",", ", ")
                message = f"not stored, failed {checks}"
        message = message.removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ")
        lines.append(f"{event.step_key}: {message.splitlines()[0] if message else 'see above'}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
