"""Which model is in use: put in use by materializing ``accepted_model``, or by a rollback.

``models/accepted.json`` names the run; the table ``accepted_models`` keeps what was in use since
when, and why. The checks themselves are in ``checks/acceptance.py``.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from atft_model.data.artifacts import write_text_atomically
from atft_model.errors import InputError
from atft_model.evaluation import HEADLINE_HORIZON
from atft_pipeline.assets.evaluation import TEST_SCORES
from atft_pipeline.checks.acceptance import (
    AcceptanceGates,
    Comparison,
    blocking_checks_green,
    compare_scores,
    in_words,
    not_worse_than_before,
)
from atft_pipeline.checks.outcome import markdown_table, spec
from atft_pipeline.checks.record import RunVerdicts, read_verdicts
from atft_pipeline.checks.serving import integrity_failures
from atft_pipeline.config_schema import build, fields_of
from atft_pipeline.failures import plain_failures
from atft_pipeline.resources import is_plain_name
from atft_pipeline.storage import PAST_SCORES, Storage, table_metadata

ASSET = "accepted_model"
JUDGES = ("trained_model", "evaluation")
"""Assets whose blocking checks a run has to pass before it is put in use."""
HISTORY = "accepted_models"
ACCEPTED, ROLLED_BACK = "accepted", "rollback"
HISTORY_COLUMNS = {
    "accepted_at": pl.Datetime("us", "UTC"), "kind": pl.String, "run_id": pl.String,
    "before": pl.String, "reason": pl.String, "checkpoint_hash": pl.String,
    "panel_hash": pl.String, "skill_not_shown": pl.String, "rank_ic_difference": pl.Float64,
    "standard_error": pl.Float64, "common_dates": pl.Int64,
}  # fmt: skip
"""One row per change of the model in use; the last three of the run against the one before."""
SHOWN_ROWS = 20


@dg.asset(
    group_name="serving", kinds={"pytorch"}, output_required=False, io_manager_key="versions",
    deps=["evaluation"], config_schema=fields_of(AcceptanceGates),
    check_specs=[
        spec(ASSET, "blocking_checks_green",
             "The newest run that trained_model and evaluation found sound is the one in use."),
        spec(ASSET, "not_worse_than_before",
             "No sound run is newer and significantly worse than the model in use; one that is "
             "stays out of use.", kind="skill"),
    ],
    description="Points models/accepted.json at the newest trained run whose blocking checks are "
                "green and which is not significantly worse than the one before; the table "
                "accepted_models keeps what was in use since when.",
)  # fmt: skip
@plain_failures
def accepted_model(
    context: dg.AssetExecutionContext, storage: Storage, trained_model: Path,
    targets: pl.DataFrame,
) -> Iterator[Any]:  # fmt: skip
    """Looks at the runs from the newest on, and takes the first that nothing speaks against."""
    gates = build(AcceptanceGates, context.op_execution_context.op_config)
    choice = take_newest(storage, targets, gates)
    chosen, history = choice.folder, read_history(storage)
    for line in (in_words(found, gates) for found in choice.comparisons):
        context.log.info(line)
    unskilled = skill_not_shown(chosen) if chosen else ()
    yield blocking_checks_green(
        chosen.name if chosen else None, choice.passed_over, unskilled
    ).result(ASSET)
    yield not_worse_than_before(choice.comparisons, gates).result(ASSET)
    if chosen is not None:
        record = json.loads((chosen / "run.json").read_text())
        metadata = {
            "run_id": chosen.name, "panel_hash": record["panel_hash"],
            "trained": record["finished_at"], "skill_not_shown": ", ".join(unskilled) or "none",
            **history_metadata(history),
        }  # fmt: skip
        yield dg.Output(record["checkpoint_hash"], metadata=metadata)


@dataclass
class Choice:
    """What was found when looking for the run to use.

    Attributes:
        folder: The run to use; None where none is sound.
        passed_over: Newer runs, each with the reason in words.
        comparisons: Of sound newer runs with the model in use, newest first.
    """

    folder: Path | None = None
    passed_over: dict[str, str] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def comparison_of_chosen(self) -> Comparison | None:
        """The comparison that let the run through; None where there was nothing before."""
        mine = [c for c in self.comparisons if self.folder and c.run_id == self.folder.name]
        return mine[0] if mine else None

    def reason(self, gates: AcceptanceGates) -> str:
        """Why the run is used, for the history."""
        found = self.comparison_of_chosen
        return in_words(found, gates) if found else "every blocking check is green"


def take_newest(storage: Storage, targets: pl.DataFrame, gates: AcceptanceGates) -> Choice:
    """Chooses the run to use and puts it in use; no rollback can come in between."""
    with storage.one_run_at_a_time(HISTORY):
        choice = choose(storage, targets, gates)
        if choice.folder is not None:
            put_in_use(storage, choice.folder, ACCEPTED, choice.reason(gates),
                       choice.comparison_of_chosen)  # fmt: skip
    return choice


def choose(storage: Storage, targets: pl.DataFrame, gates: AcceptanceGates) -> Choice:
    """The newest sound run that is not worse than the one in use.

    Runs that were there at the last rollback stay out, but for the one that it went back to: a
    person passed them over.
    """
    models, choice = storage.models, Choice()
    in_use, rolled_back = run_in_use(models), last_rollback(storage)
    # Figures of an unsound run are no measure, nor is one that was deleted by hand.
    known = in_use is not None and (models / in_use / "run.json").exists()
    before = in_use if in_use and known and not failures_of_run(models / in_use) else None
    for folder in runs_from_newest(models):
        name = folder.name
        if rolled_back and name != in_use and finished_at(folder) <= rolled_back:
            choice.passed_over[name] = f"was there at the rollback of {rolled_back:%Y-%m-%d %H:%M}"
            continue
        bars = failures_of_run(folder)
        if gates.require_skill:
            bars = (*bars, *skill_not_shown(folder))
        if bars:
            choice.passed_over[name] = f"failed {', '.join(bars)}"
            continue
        if before and name != before:
            found = compare_runs(storage, folder, models / before, targets)
            choice.comparisons.append(found)
            if found.is_worse(gates):
                choice.passed_over[name] = f"is worse than {before}"
                continue
        choice.folder = folder
        break
    return choice


def compare_runs(
    storage: Storage, folder: Path, before: Path, targets: pl.DataFrame
) -> Comparison:  # fmt: skip
    """A run against the model in use, by the scores that each gave stocks it had not learned."""
    mine, theirs = judged_scores(storage, folder), judged_scores(storage, before)
    for run, scores in ((folder.name, mine), (before.name, theirs)):
        if scores is None:
            return Comparison(folder.name, before.name,
                              missing=f"{run} has no scores of its weights in evaluation/, "
                                      "materialize evaluation for it")  # fmt: skip
    assert mine is not None
    assert theirs is not None
    return compare_scores(folder.name, before.name, mine, theirs, targets)


def judged_scores(storage: Storage, folder: Path) -> pl.DataFrame | None:
    """(date, code, score) of a run's test dates and of the days after them that it was used on.

    None where its evaluation kept none, or kept those of other weights.
    """
    path = folder / "evaluation" / f"{TEST_SCORES}.parquet"
    if not path.exists():
        return None
    kept = pl.read_parquet(path)
    record = json.loads((folder / "run.json").read_text())
    if kept["checkpoint_hash"].unique().to_list() != [record["checkpoint_hash"]]:
        return None
    parts = storage.read_parts(PAST_SCORES).values()
    used = [part.select("date", "code", score=f"score_{HEADLINE_HORIZON}d") for part in parts
            if part["checkpoint_hash"][0] == record["checkpoint_hash"]
            and part["date"][0] > kept["date"].max()]  # fmt: skip
    return pl.concat([kept.select("date", "code", "score"), *used]).unique(
        ["date", "code"], keep="first", maintain_order=True
    )


def rollback(storage: Storage, to: str | None, reason: str) -> pl.DataFrame:
    """Puts an earlier run in use again; by default the one before the one in use.

    Args:
        to: Name of a sound run of ``models``, also one that is newer.
        reason: For the history.

    Returns:
        The history, newest row last.

    Raises:
        InputError: nothing is in use, there is no earlier one, or the run is missing, in use
            already, or failed a blocking check.
    """
    models = storage.models
    with storage.one_run_at_a_time(HISTORY):
        in_use = run_in_use(models)
        if in_use is None:
            raise InputError(f"rollback: no model is in use in {models}; materialize {ASSET}")
        name = to or run_before(read_history(storage), in_use)
        if name is None:
            raise InputError(f"rollback: {in_use} is the first in use; name another: --to RUN")
        folder = finished_run(models, name, "rollback: --to")
        if name == in_use:
            raise InputError(f"rollback: {name} is in use already; name another: --to RUN")
        if failed := failures_of_run(folder):
            raise InputError(
                f"rollback: {name} failed {', '.join(failed)}; expected a run whose blocking "
                "checks are green"
            )
        put_in_use(storage, folder, ROLLED_BACK, reason)
        return read_history(storage)


def run_before(history: pl.DataFrame, in_use: str) -> str | None:
    """What the run in use took the place of when it was accepted; None for the first."""
    rows = history.filter(pl.col("run_id") == in_use, pl.col("kind") == ACCEPTED)
    return rows["before"][-1] if rows.height else None


def finished_run(models: Path, name: str, where: str) -> Path:
    """The folder of a finished run.

    Raises:
        InputError: a name that is none, or of no finished run of this data set.
    """
    folder = models / name
    if not (is_plain_name(name) and (folder / "run.json").exists()):
        raise InputError(
            f"{where} is {name!r}; expected the name of a finished run in {models}"
        )  # fmt: skip
    return folder


def run_in_use(models: Path) -> str | None:
    """The run that ``accepted.json`` names; None before the first."""
    pointer = models / "accepted.json"
    return json.loads(pointer.read_text())["hash"] if pointer.exists() else None


def put_in_use(
    storage: Storage, folder: Path, kind: str, reason: str, found: Comparison | None = None
) -> None:
    """Points ``accepted.json`` at a run and adds a row to the history; the same run adds none."""
    before = run_in_use(storage.models)
    if before == folder.name:
        return
    record = json.loads((folder / "run.json").read_text())
    figures = (found.difference, found.standard_error, found.dates) if found and found.dates else ()
    difference, error, dates = figures or (None, None, None)
    row = {
        "accepted_at": datetime.now(UTC), "kind": kind, "run_id": folder.name, "before": before,
        "reason": reason, "checkpoint_hash": record["checkpoint_hash"],
        "panel_hash": record["panel_hash"], "skill_not_shown": ", ".join(skill_not_shown(folder)),
        "rank_ic_difference": difference, "standard_error": error, "common_dates": dates,
    }  # fmt: skip
    line = pl.DataFrame([row], schema=HISTORY_COLUMNS)
    storage.write_table(HISTORY, pl.concat([read_history(storage), line]))
    # Last: a killed command leaves the old model in use, and running it again mends the rest.
    write_text_atomically(storage.models / "accepted.json", json.dumps({"hash": folder.name}))


def read_history(storage: Storage) -> pl.DataFrame:
    """What was in use since when, oldest first; rows of earlier versions were all acceptances."""
    stored = storage.read_if_stored(HISTORY)
    if stored is None:
        return pl.DataFrame(schema=HISTORY_COLUMNS)
    whole = pl.concat([pl.DataFrame(schema=HISTORY_COLUMNS), stored], how="diagonal_relaxed")
    return whole.select(
        pl.col("kind").fill_null(ACCEPTED) if name == "kind" else pl.col(name)
        for name in HISTORY_COLUMNS
    )


def last_rollback(storage: Storage) -> datetime | None:
    """When a person last went back; None if never."""
    rows = read_history(storage).filter(pl.col("kind") == ROLLED_BACK)
    return rows["accepted_at"][-1] if rows.height else None


def history_metadata(history: pl.DataFrame) -> dict[str, Any]:
    """What the UI shows of the history: its newest rows, and its columns."""
    shown = history.tail(SHOWN_ROWS).reverse()
    return {
        "history": dg.MetadataValue.md(markdown_table(shown.columns, shown.iter_rows())),
        **table_metadata(history),
    }


def runs_from_newest(models: Path) -> list[Path]:
    """Folders of finished runs, by when they finished."""
    folders = [path.parent for path in models.glob("*/run.json")]
    return sorted(folders, key=lambda folder: (finished_at(folder), folder.name), reverse=True)


def finished_at(folder: Path) -> datetime:
    """When a run's training ended."""
    record = json.loads((folder / "run.json").read_text())
    return datetime.fromisoformat(record["finished_at"])


def failures_of_run(folder: Path) -> tuple[str, ...]:
    """Integrity checks that a run failed, its weights hashed anew."""
    from atft_model.training.checkpoint import load_weights, weights_hash

    found = weights_hash(load_weights(folder / "best.pt"))
    return integrity_failures(verdicts_of_run(folder), found)


def verdicts_of_run(folder: Path) -> dict[str, RunVerdicts | None]:
    """What each judge found on a run."""
    return {asset: read_verdicts(folder, asset) for asset in JUDGES}


def skill_not_shown(folder: Path) -> tuple[str, ...]:
    """Skill verdicts that a run failed."""
    found = verdicts_of_run(folder)
    return tuple(f"{asset}:{name}" for asset, verdict in found.items() if verdict
                 for name in verdict.failed_skill)  # fmt: skip


ASSETS = [accepted_model]
