"""``python -m atft_model importance``: which features and neighbours a trained run rests on."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from atft_model.data.batches import DevicePanel, WindowBatch, usable_dates
from atft_model.data.graph import read_graph
from atft_model.data.panel import Panel, check_axes, read_panel
from atft_model.errors import InputError
from atft_model.evaluation import HEADLINE_HORIZON
from atft_model.importance import (
    Importance,
    ImportanceConfig,
    batches_of,
    day_importance,
    group_importance,
    neighbour_importance,
    selection_importance,
)
from atft_model.model.atft import ATFT
from atft_model.model.readout import Readout, recording
from atft_model.run import TrainedRun, choose_device, model_shape, open_run
from atft_model.training.validation import forward

log = logging.getLogger("atft")

FEATURES, NEIGHBOURS = "feature_importance", "neighbour_importance"


def importance_tables(
    folder: Path, panel_folder: Path, graph_folder: Path,
    groups: Mapping[str, Sequence[str]] | None = None, device: str = "auto",
    config: ImportanceConfig | None = None,
) -> dict[str, pa.Table]:  # fmt: skip
    """Tables ``feature_importance`` and ``neighbour_importance`` of a run's test dates.

    Args:
        groups: Feature names by group; names that the panel lacks are passed over. None: every
            feature by itself, which takes as many passes.

    Returns:
        By table name: run_id, checkpoint_hash, panel_hash, kind, name, importance, standard_error,
        and for neighbours also neighbour. The kinds are those of ``atft_model.importance``.

    Raises:
        InputError: damaged run, a panel with other features, groups without any feature of it, or
            no usable test date.
    """
    config = config or ImportanceConfig()
    run, panel = open_run(folder), read_panel(panel_folder)
    check_axes(panel, run.record["features"], f"run {folder.name}")
    columns = group_columns(panel, groups)
    where = choose_device(device)
    model = ATFT(run.config.model, model_shape(panel)).to(where).eval()
    model.load_state_dict(dict(run.weights))
    data = DevicePanel(
        panel, read_graph(graph_folder, panel), run.statistics, run.scale,
        run.config.model.lookback, where,
    )  # fmt: skip
    smallest = run.config.training.min_stocks
    batches = batches_of(data, usable_dates(data.valid, panel.split.test, smallest), config)
    log.info("importance of %d groups on %d windows of test dates", len(columns) + 1,
             sum(batch.windows for batch in batches))  # fmt: skip
    place = panel.horizons.index(HEADLINE_HORIZON) if HEADLINE_HORIZON in panel.horizons else 0

    def score(batch: WindowBatch) -> torch.Tensor:
        quantiles = forward(model, batch, run.config.training.precision)
        return model.point_score(quantiles)[..., place]

    readouts = read_out(model, batches, run.config.training.precision)
    found = {
        FEATURES: [
            *group_importance(score, batches, columns, place, panel.horizons[place], smallest,
                              config),
            *selection_importance(readouts, batches, panel.feature_names),
            *day_importance(readouts, batches),
        ],
        NEIGHBOURS: neighbour_importance(readouts, batches, panel.codes),
    }  # fmt: skip
    return {name: _table(rows, run, panel, name == NEIGHBOURS) for name, rows in found.items()}


def read_out(model: ATFT, batches: Iterable[WindowBatch], precision: str) -> list[Readout]:
    """The model's own weights on features, days and neighbours, batch by batch."""
    found = []
    with torch.no_grad():
        for batch in batches:
            with recording(model) as recorder:
                forward(model, batch, precision)
            found.append(recorder.readout(batch))
    return found


def read_groups(path: Path) -> dict[str, list[str]]:
    """Feature names by group, from JSON.

    Raises:
        InputError: no such file, or something else in it.
    """
    try:
        groups = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: groups file not found; give a JSON file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not a readable JSON file: {error}") from None
    if not isinstance(groups, dict) or not all(isinstance(g, list) for g in groups.values()):
        raise InputError(f'{path}: expected {{"group": ["feature", ...], ...}}')
    return groups


def group_columns(panel: Panel, groups: Mapping[str, Sequence[str]] | None) -> dict[str, list[int]]:
    """Positions of each group's features on the panel; groups without any are left out.

    Raises:
        InputError: a feature in two groups, or no group with a feature of the panel.
    """
    names = list(panel.feature_names)
    if groups is None:
        return {name: [place] for place, name in enumerate(names)}
    listed = [name for group in groups.values() for name in group]
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise InputError(f"importance: {', '.join(twice)} in two groups; expected in one")
    columns = {
        group: [names.index(name) for name in wanted if name in names]
        for group, wanted in groups.items()
    }
    if not any(columns.values()):
        raise InputError("importance: no group has a feature of the panel; check the groups file")
    return {group: places for group, places in columns.items() if places}


def _table(
    rows: Sequence[Importance], run: TrainedRun, panel: Panel, with_neighbour: bool
) -> pa.Table:
    identity = {
        "run_id": run.record["run_id"],
        "checkpoint_hash": run.record["checkpoint_hash"],
        "panel_hash": panel.hash,
    }
    columns = {name: pa.array([value] * len(rows)) for name, value in identity.items()}
    for name in ("kind", "name", "neighbour")[: 3 if with_neighbour else 2]:
        columns[name] = pa.array([getattr(row, name) for row in rows])
    for name in ("importance", "standard_error"):
        columns[name] = pa.array(np.array([getattr(row, name) for row in rows], dtype=np.float64))
    return pa.table(columns)
