"""``python -m atft_model structure``: any CSV of series in, the record of a learned graph out."""

import argparse
import itertools
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from atft_model.data.artifacts import write_text_atomically
from atft_model.errors import InputError
from atft_model.structure.checks import check_structure
from atft_model.structure.config import PRESETS, StructureConfig
from atft_model.structure.gradient import propose
from atft_model.structure.learn import learn_structure
from atft_model.structure.record import StructureRecord, write_record
from atft_model.structure.series import Series, make_table

SWEEP = {
    "lambda_sparse": (0.02, 0.05, 0.1),
    "lambda_acyclic": (0.1, 1.0, 10.0),
    "lambda_disen": (0.0, 0.01),
    "lambda_recon": (1.0,),
}
"""The grid of --sweep; only ratios of the four weights matter, so one of them stays."""

MISSING = ["", "NA", "NaN", "nan", "null", "None"]

log = logging.getLogger("atft")


def learn_from_csv(options: argparse.Namespace) -> int:
    """Learns, writes the record and prints what was found; exit code 1 if a check fails."""
    series = read_series(options.data, _names(options.exogenous))
    config = _config(options)
    log.info("%d series, %d rows", len(series.names), len(series.values))
    if options.sweep:
        config = sweep(series, config, options.out)
    record = learn_structure(series, config)
    write_record(record, options.out)
    for line in describe(record):
        log.info("%s", line)
    verdicts = check_structure(record)
    for verdict in verdicts:
        mark = "pass" if verdict.passed else verdict.severity
        log.info("%-5s %-26s %s", mark, verdict.name, verdict.message)
    log.info("record written to %s", options.out)
    return int(any(not v.passed and v.severity == "ERROR" for v in verdicts))


def read_series(path: Path, exogenous: tuple[str, ...] = ()) -> Series:
    """The numeric columns of a CSV; empty cells are missing values.

    Raises:
        InputError: no such file, broken CSV, text columns, unknown exogenous names.
    """
    if not path.exists():
        raise InputError(f"{path}: data file not found; give the path of a CSV file")
    options = pa_csv.ConvertOptions(null_values=MISSING, strings_can_be_null=True)
    try:
        table = pa_csv.read_csv(path, convert_options=options)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: not a readable CSV: {str(error).splitlines()[0]}") from error
    columns: dict[str, np.ndarray] = {}
    for position, name in enumerate(table.column_names):
        column = table.column(name)
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            values = column.cast(pa.float64()).to_numpy()
            columns[name] = np.where(np.isfinite(values), values, np.nan)
        elif position > 0:
            raise InputError(f"{path}: column {name!r} holds {column.type}, expected numbers; "
                             "remove the column")  # fmt: skip
    unknown = [name for name in exogenous if name not in columns]
    if unknown:
        raise InputError(f"{path}: no column {unknown[0]!r} for --exogenous; found "
                         f"{', '.join(columns)}")  # fmt: skip
    inner = tuple(name for name in columns if name not in exogenous)
    if not inner:
        raise InputError(f"{path}: no numeric columns; expected one per series")
    outside = np.column_stack([columns[n] for n in exogenous]) if exogenous else None
    return Series(np.column_stack([columns[n] for n in inner]), inner, outside, exogenous)


def sweep(series: Series, config: StructureConfig, out: Path) -> StructureConfig:
    """Trains the gradient stage at every grid point; the config with the best one.

    Best is the highest score of the thresholded graph (minus the extended BIC): the loss itself
    moves with the weights, and the truth is not known.
    """
    table = make_table(series, config.lags)
    points = [
        dict(zip(SWEEP, values, strict=True)) for values in itertools.product(*SWEEP.values())
    ]
    rows: list[dict[str, Any]] = []
    for number, point in enumerate(points, 1):
        gradient = replace(config.gradient, **point)
        proposal = propose(table, gradient, config.search, config.seed)
        last = proposal.health[-1]
        rows.append(
            point
            | {
                "score": max(proposal.threshold.scores),
                "edges": int(proposal.threshold.parents.sum()),
                "threshold": proposal.threshold.value,
                "validation_log_likelihood": proposal.validation_log_likelihood,
                "acyclicity": last.acyclicity,
                "clip_ratio": last.clip_ratio,
                "seconds": round(sum(row.seconds for row in proposal.health), 2),
            }
        )
        log.info("sweep %d of %d: score %.1f, %d edges, %.1f s", number, len(points),
                 rows[-1]["score"], rows[-1]["edges"], rows[-1]["seconds"])  # fmt: skip
    write_text_atomically(out / "sweep.json", json.dumps(rows, indent=1))
    ranked = sorted(rows, key=lambda row: -row["score"])
    names = list(ranked[0])
    log.info(" ".join(f"{name[-14:]:>14}" for name in names))
    for row in ranked:
        log.info(" ".join(f"{row[name]:>14.4g}" for name in names))
    best = {name: ranked[0][name] for name in SWEEP}
    return replace(config, gradient=replace(config.gradient, **best))


def describe(record: StructureRecord) -> list[str]:
    """The graph in words, strongest first."""
    lines = [f"{len(record.kept_edges)} edges kept of {len(record.edges)} decided "
             f"({record.distinct_optima} different graphs over the starting orders)"]  # fmt: skip
    for edge in sorted(record.kept_edges, key=lambda e: (e.lag, -abs(e.weight))):
        when = "same day" if edge.lag == 0 else f"lag {edge.lag}"
        sure = "" if edge.confidence is None else f"  confidence {edge.confidence:.2f}"
        lines.append(f"  {edge.source} -> {edge.target}  {when}  {edge.weight:+.3f}{sure}")
    return lines


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _config(options: argparse.Namespace) -> StructureConfig:
    config = StructureConfig(**PRESETS[options.preset])
    if options.common_factor is not None:
        config = replace(config, common_factor=options.common_factor)
    if options.lags is not None:
        config = replace(config, lags=options.lags)
    if options.seed is not None:
        config = replace(config, seed=options.seed)
    if options.resamples is not None:
        config = replace(config, bootstrap=replace(config.bootstrap, resamples=options.resamples))
    return config
