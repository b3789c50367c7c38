"""The whole learner: table, gradient stage, decision, refit and confidence, into one record."""

import math
import time
from dataclasses import asdict

import numpy as np

from atft_model.structure.common_factor import CommonFactor, find_common_factor, with_factor
from atft_model.structure.confidence import (
    against_chance,
    against_rescaling,
    bootstrap_frequency,
)
from atft_model.structure.config import StructureConfig
from atft_model.structure.decide import Decision, decide, noise_shapes, topological_order
from atft_model.structure.density import NORMAL, Fit, GaussianDensity, HeavyTailDensity
from atft_model.structure.gradient import Proposal, propose
from atft_model.structure.graph_metrics import cpdag, edge_scores, structural_hamming_distance
from atft_model.structure.health import Truth, against_truth, threshold_sweep
from atft_model.structure.order_search import LocalScores
from atft_model.structure.record import Edge, StructureRecord
from atft_model.structure.series import Series, Table, make_table
from atft_model.structure.threshold import GRID, Threshold, choose_threshold


def learn_structure(
    series: Series, config: StructureConfig, truth: Truth | None = None
) -> StructureRecord:
    """Learns which series drive which, with the evidence that the checks read.

    Args:
        truth: The known graph, for benchmarks: reported in the record, never used.

    Raises:
        InputError: series that cannot be learned from; the message names them.
    """
    clock = _Clock()
    rng = np.random.default_rng(config.seed)
    series, taken_out = without_common_factor(series, config)
    clock.lap("common_factor")
    table = make_table(series, config.lags)
    clock.lap("table")
    proposal = propose(table, config.gradient, config.search, config.seed, truth)
    clock.lap("gradient")
    searched = config.decided_by == "order_search"
    if searched:
        starts = np.random.default_rng(config.seed)
        decision = decide(table, config.search, starts, [proposal.order])
    else:
        decision = _by_gradient(table, proposal, config)
    clock.lap("decision")
    frequency, threshold = None, None
    if searched and config.bootstrap.resamples:
        frequency = bootstrap_frequency(table, decision, config.search, config.bootstrap, rng)
        threshold = _confidence_threshold(table, frequency, config)
    clock.lap("bootstrap")
    chance = None
    if searched and config.bootstrap.shuffles:
        chance = against_chance(
            series, config.lags, decision, config.search, config.bootstrap.shuffles, rng
        )
    clock.lap("shuffles")
    rescaling = None
    if searched:
        rescaling = against_rescaling(
            series, config.lags, decision, config.search, proposal.order, config.seed
        )
    clock.lap("rescaling")
    factor = find_common_factor(
        series, config.lags, config.search, config.seed, "flag", decision.order
    )
    clock.lap("hidden_factor")
    fits = _refit(table, decision)
    edges = _edges(series.names, decision, fits, frequency, threshold)
    chosen = threshold if searched else proposal.threshold
    return StructureRecord(
        names=series.names,
        exogenous_names=series.exogenous_names,
        rows=len(table.rows),
        missing_share=float(1 - table.observed[:, : table.series].mean()),
        config=asdict(config),
        edges=edges,
        order=tuple(series.names[i] for i in decision.order),
        noise={
            name: {
                "variance_left": fit.noise_variance,
                "degrees": None if math.isinf(shape.degrees) else shape.degrees,
                "alpha": shape.alpha,
                "beta": shape.beta,
            }
            for name, fit, shape in zip(series.names, fits, decision.shapes, strict=True)
        },
        exogenous_effects={
            name: table.exogenous_effects[:, i].tolist() for i, name in enumerate(series.names)
        },
        health=tuple(asdict(row) for row in proposal.health),
        routes=proposal.routes,
        threshold=_plain(chosen),
        gradient_threshold=_plain(proposal.threshold) or {},
        chance=asdict(chance) if chance else None,
        rescaling=asdict(rescaling) if rescaling else None,
        hidden_factor=factor.facts(),
        common_factor=None
        if taken_out is None
        else taken_out.facts()
        | {
            # From the day on which the record's series begin.
            "values": [round(value, 6) for value in taken_out.fit.values.tolist()],
        },
        distinct_optima=decision.distinct_optima,
        expected_distance=decision.expected_distance,
        truth=None if truth is None else score_against(edges, series.names, proposal, truth),
        seconds=clock.laps,
        processor_seconds=clock.processor_laps,
    )


def without_common_factor(
    series: Series, config: StructureConfig
) -> tuple[Series, CommonFactor | None]:
    """The series with the factor that drives most of them as an exogenous one, if there is one.

    Returns:
        The series, and the factor taken out; as they were and None where none is likely or asked.
    """
    if config.common_factor == "flag":
        return series, None
    factor = find_common_factor(series, config.lags, config.search, config.seed, "take_out")
    if not factor.likely:
        return series, None
    table = make_table(series, config.lags)
    rng = np.random.default_rng(config.seed)
    return with_factor(series, table, factor.fit, rng), factor


def score_against(
    edges: tuple[Edge, ...], names: tuple[str, ...], proposal: Proposal, truth: Truth
) -> dict[str, object]:
    """Scores of the kept edges against the truth, and the gradient stage's threshold sweep."""
    place = {name: i for i, name in enumerate(names)}
    found = np.zeros((1 + len(truth.lagged), len(names), len(names)))
    for edge in edges:
        if edge.kept:
            found[edge.lag, place[edge.source], place[edge.target]] = 1
    lagged = edge_scores(found[1:], truth.lagged)
    return {
        **against_truth(found[0], truth.instant),
        "cpdag_shd": structural_hamming_distance(cpdag(found[0]), cpdag(truth.instant)),
        "lag_f1": None if math.isnan(lagged.f1) else lagged.f1,
        "threshold_sweep": threshold_sweep(proposal.instant, proposal.lagged, truth),
    }


def _by_gradient(table: Table, proposal: Proposal, config: StructureConfig) -> Decision:
    """The thresholded adjacency as it is."""
    parents = proposal.threshold.parents
    shapes = noise_shapes(table, parents, config.search.normality_level)
    return Decision(parents, topological_order(parents), math.nan, shapes, 1)


def _confidence_threshold(
    table: Table, frequency: np.ndarray, config: StructureConfig
) -> Threshold:
    """The confidence above which edges make the graph with the best extended BIC."""
    series = table.series
    rows = table.effective_rows
    penalty = np.log(rows) + 2 * config.search.extra_penalty * np.log(len(table.correlation) - 1)
    lagged = frequency[:, series:].reshape(series, table.lags, series).transpose(1, 2, 0)
    scores = LocalScores(table.correlation, rows, float(penalty), series)
    return choose_threshold(frequency[:, :series].T, lagged, scores)


def _refit(table: Table, decision: Decision) -> list[Fit]:
    """Every series on its parents, with the likelihood that decided."""
    density = GaussianDensity(table.correlation, table.effective_rows, table.series)
    if any(shape != NORMAL for shape in decision.shapes):
        density = HeavyTailDensity(
            table.rows, table.observed[:, : table.series], np.ones(len(table.rows)),
            list(decision.shapes),
        )  # fmt: skip
    return [
        density.fit(target, tuple(np.flatnonzero(parents).tolist()))
        for target, parents in enumerate(decision.parents)
    ]


def _edges(
    names: tuple[str, ...],
    decision: Decision,
    fits: list[Fit],
    frequency: np.ndarray | None,
    threshold: Threshold | None,
) -> tuple[Edge, ...]:
    edges = []
    believed = decision.belief and decision.belief.edge_probability()
    for target, (parents, fit) in enumerate(zip(decision.parents, fits, strict=True)):
        for column, weight in zip(np.flatnonzero(parents), fit.weights, strict=True):
            lag, source = divmod(int(column), len(names))
            confidence = link = None
            if frequency is not None:
                confidence = link = float(frequency[target, column])
                if lag == 0:
                    link = confidence + float(frequency[source, target])
            edges.append(
                Edge(
                    names[source], names[target], lag, float(weight), confidence, link,
                    kept=threshold is None or float(confidence or 0.0) > threshold.value,
                    probability=None if believed is None else float(believed[target, column]),
                )
            )  # fmt: skip
    return tuple(edges)


def _plain(threshold: Threshold | None) -> dict[str, object] | None:
    if threshold is None:
        return None
    return {
        "value": threshold.value, "plateau": threshold.plateau,
        "at_grid_end": threshold.at_grid_end, "grid": list(GRID), "scores": list(threshold.scores),
    }  # fmt: skip


class _Clock:
    """Seconds since the last lap, by name: on the wall, and of the processor."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.processor_laps: dict[str, float] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.laps[name] = round(now[0] - self._last[0], 3)
        self.processor_laps[name] = round(now[1] - self._last[1], 3)
        self._last = now
