"""The whole model, from a panel to scores: each window computed alone, and who influences whom."""

import dataclasses

import numpy as np
import pytest
import torch
from compiler import needs_compiler
from torch.utils.checkpoint import checkpoint

import atft_model.model.atft as atft_module
from atft_model.config import ModelConfig, resolve
from atft_model.data.batches import DevicePanel, TargetScale, WindowBatch, fit_target_scale
from atft_model.data.graph import GraphConfig, StockGraph, build_graph, read_graph
from atft_model.data.group_links import GroupLinks
from atft_model.data.normalizer import TimeSeriesStatistics
from atft_model.data.panel import Panel, fit_statistics, read_panel
from atft_model.losses.total import TrainingLoss
from atft_model.model import native
from atft_model.model.adaptive_norm import covering_slices
from atft_model.model.atft import ATFT
from atft_model.model.native import compile_kernels
from atft_model.run import model_shape
from tests.references import atft as plain
from tests.references import windows as slow
from tests.references.agreement import assert_agree

LOOKBACK = 5
CONFIG = ModelConfig(hidden_size=16, heads=2, lookback=LOOKBACK, graph_layers=2, input_skip=3)
STARTS, LENGTH = (79, 150), 2
"""Stock 3 lists on date 80, so that its windows fill up, and stock 4 ends after 159."""


@dataclasses.dataclass(frozen=True)
class Market:
    """A panel with its graph and what was fitted on its training dates."""

    panel: Panel
    graph: StockGraph
    statistics: TimeSeriesStatistics
    scale: TargetScale

    def on_device(self) -> DevicePanel:
        return DevicePanel(
            self.panel, self.graph, self.statistics, self.scale, LOOKBACK, torch.device("cpu")
        )


def fitted(panel: Panel, graph: StockGraph) -> Market:
    part = panel.split.train
    return Market(panel, graph, fit_statistics(panel, part), fit_target_scale(panel, part))


def take_stocks(panel: Panel, order: np.ndarray) -> Panel:
    """The panel with its stock axis in another order, or cut."""
    across = ("features", "observed", "tradable", "targets", "daily_return")
    return dataclasses.replace(
        panel,
        **{name: np.array(getattr(panel, name))[:, order] for name in across},
        sector=np.array(panel.sector)[order],
        market=np.array(panel.market)[order],
        codes=tuple(panel.codes[i] for i in order),
    )


@pytest.fixture(scope="module")
def market(stored_panel) -> Market:
    panel = read_panel(stored_panel[0])
    return fitted(panel, read_graph(stored_panel[1], panel))


@pytest.fixture(scope="module")
def small(market) -> Market:
    """Ten of the stocks, some of unknown sector: little enough for loops over everything."""
    panel = take_stocks(market.panel, np.arange(10))
    panel = dataclasses.replace(
        panel,
        sector=np.where(np.arange(10) % 5 == 0, 0, panel.sector).astype(np.int16),
        market=np.where(np.arange(10) % 7 == 0, 0, panel.market).astype(np.int16),
    )
    links = GroupLinks(
        {code: number % 3 for number, code in enumerate(panel.codes[1:])},
        np.array([[0, 1, 0], [0, 0, 2], [0, 0, 0]], dtype=np.int16),
        np.array([[0.0, 0, 0], [0.5, 1, 0.9], [-0.3, 0, 0.7]]),
    )
    graph = build_graph(panel, GraphConfig(neighbours=4, graph="both"), links=links)
    assert set(np.unique(graph.link)) == {0, 1, 2}
    return fitted(panel, graph)


def make(market: Market, config: ModelConfig) -> ATFT:
    """Dropout off, random weights everywhere."""
    torch.manual_seed(0)
    model = ATFT(config, model_shape(market.panel)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def model(market) -> ATFT:
    return make(market, CONFIG)


def of_type(dtype: torch.dtype, batch: WindowBatch) -> WindowBatch:
    """The same numbers as ``dtype``."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{
        name: value.to(dtype) for name, value in fields.items()
        if isinstance(value, torch.Tensor) and value.is_floating_point()
    })  # fmt: skip


def scores(model: ATFT, market: Market, starts: tuple[int, ...] = STARTS, length: int = LENGTH):
    """Quantiles [runs, length, stocks, horizons, quantiles], NaN where a window is not scorable."""
    batch = of_type(
        next(model.parameters()).dtype, market.on_device().batch(np.array(starts), length)
    )
    output = model(batch)
    run, date, column = batch.scorable.nonzero(as_tuple=True)
    on_the_panel = output.new_full(
        (*batch.positions.shape, len(market.panel.codes), *output.shape[3:]), torch.nan
    )
    on_the_panel[run, date, batch.stocks[run, column]] = output[run, date, column]
    return on_the_panel


def gradients(model: ATFT, market: Market) -> dict[str, torch.Tensor]:
    """Of the training loss of one batch for every parameter."""
    batch = market.on_device().batch(np.array(STARTS), LENGTH)
    loss = TrainingLoss(resolve("quick"), torch.device("cpu"), market.panel.horizons)
    model.zero_grad()
    loss(model(batch), batch.target, batch.rank_target, batch.valid).total.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        error = float((found[name] - gradient).abs().max())
        assert error <= 1e-5 * max(float(gradient.abs().max()), 0.1 * largest), name


@pytest.mark.parametrize(
    ("norm", "slices", "input_skip", "kernels"),
    [
        ("layer_norm", None, 0, False),
        ("fan_san", covering_slices(LOOKBACK), 0, False),
        ("layer_norm", None, 3, False),
        pytest.param("layer_norm", None, 3, True, marks=needs_compiler),
    ],
)
def test_runs_of_dates_score_as_each_window_alone(small, norm, slices, input_skip, kernels):
    """Shared per-day work is the same mathematics: scores and every gradient, from the panel on.

    Also where the normalization reads the window's other days, with the input skip, and by the
    kernels that compute in training.
    """
    config = dataclasses.replace(CONFIG, adaptive_norm=norm, input_skip=input_skip)
    if kernels:
        config = dataclasses.replace(config, dropout=0.0, input_skip_noise=0.0)
    model = make(small, config)
    if kernels:
        compile_kernels(model.variable_selection.networks, model.temporal_encoder)
        model.train()
    if slices is not None:
        # In float32 its divisions by what is left of a slice leave 2e-5 of a gradient.
        model.double()
    ours = scores(model, small)
    weights = plain.weights_of(model)
    panel = small.panel
    expected, used = [], []
    for start in STARTS:
        for day in range(start, start + LENGTH):
            seen = [
                slow.window(panel, small.statistics, stock, day, LOOKBACK) for stock in range(10)
            ]
            neighbours, attributes = slow.edges(panel, small.graph, day, LOOKBACK)
            expected.append(
                plain.atft_of_one_date(
                    weights,
                    torch.from_numpy(np.stack([features for features, _ in seen])),
                    torch.from_numpy(np.stack([observed for _, observed in seen])),
                    panel.sector, panel.market, neighbours.tolist(), torch.from_numpy(attributes),
                    CONFIG.heads, CONFIG.lstm_layers, CONFIG.quantiles.index(0.5), slices,
                    model_shape(panel).ranked,
                )
            )  # fmt: skip
            used.append([slow.scorable(panel, stock, day, LOOKBACK) for stock in range(10)])
    ours, use = ours.flatten(0, 1), torch.tensor(used)
    assert use.any()
    assert not use.all()
    assert torch.isnan(ours[~use]).all()
    assert_agree(
        ours[use], torch.stack(expected)[use], dict(model.named_parameters()),
        tolerance=1e-5 if slices is None else 1e-6,  # its shares of days are kept as float32
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["layer_norm", "fan_san"])
def test_windows_that_are_computed_again_have_the_same_gradients(market, norm, monkeypatch):
    """Where no memory is left to keep the encoder's intermediates, dropout falls alike again."""
    config = dataclasses.replace(CONFIG, adaptive_norm=norm, dropout=0.3)
    model = make(market, config).train()
    monkeypatch.setattr(atft_module, "CPU_CHUNK_WINDOWS", 60)  # several chunks
    found, again = [], 0

    def recompute(*arguments, **options):
        nonlocal again
        again += 1
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(atft_module, "checkpoint", recompute)
    for room in (1 << 40, 500_000, 0):
        monkeypatch.setitem(atft_module.KEPT_BYTES, "cpu", room)
        torch.manual_seed(5)
        before = again
        found.append(gradients(model, market))
        found[-1]["times computed again"] = torch.tensor(float(again - before))
    model.keep_for_backward(3 << 40)  # goes before the default, which is 0 by now
    before = again
    gradients(model, market)
    assert again == before
    kept, some, none = (gradient.pop("times computed again") for gradient in found)
    assert kept == 0
    assert 0 < some < none
    for name, gradient in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert all(gradient.abs().max() > 0 for gradient in found[2].values())


@needs_compiler
@pytest.mark.parametrize(
    ("norm", "autocast"), [("layer_norm", False), ("layer_norm", True), ("fan_san", False)]
)
def test_kernels_compute_in_training_and_only_there(market, norm, autocast, monkeypatch):
    """All of them, over several parts; without dropout they find what the plain parts do."""
    config = dataclasses.replace(CONFIG, adaptive_norm=norm, dropout=0.25, input_skip_noise=0.0)
    monkeypatch.setattr(atft_module, "CPU_CHUNK_WINDOWS", 60)
    called: set[str] = set()
    call = native.Call.__call__
    monkeypatch.setattr(
        native.Call,
        "__call__",
        lambda self, name, *rest: called.add(name) or call(self, name, *rest),
    )

    def both(rate: float) -> tuple[ATFT, ATFT]:
        models = [make(market, dataclasses.replace(config, dropout=rate)) for _ in range(2)]
        compile_kernels(models[1].variable_selection.networks, models[1].temporal_encoder)
        return models[0], models[1]

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain_model, by_kernels = both(0.25)
        expected = scores(plain_model, market)
        assert torch.equal(scores(by_kernels, market).nan_to_num(), expected.nan_to_num())
        assert not called
        by_kernels.train()
        first, second = scores(by_kernels, market), scores(by_kernels, market)
        assert not torch.equal(first.nan_to_num(), second.nan_to_num())
        plain_model, by_kernels = both(0.0)
        pairs = gradients(by_kernels.train(), market), gradients(plain_model.train(), market)
        assert called == set(native.KERNELS) - {"dropout_masks"}
        torch.testing.assert_close(
            scores(by_kernels, market), scores(plain_model, market), equal_nan=True,
            rtol=1e-5, atol=0.05 if autocast else 1e-5,
        )  # fmt: skip
    largest = max(float(gradient.abs().max()) for gradient in pairs[1].values())
    for name, gradient in pairs[1].items():
        error = float((pairs[0][name] - gradient).abs().max())
        assert error <= (0.1 if autocast else 1e-4) * max(float(gradient.abs().max()), largest), (
            name
        )


@pytest.mark.parametrize("length", [2, 5, 8])
def test_a_date_scores_alike_in_a_run_of_any_length(market, model, length):
    with torch.no_grad():
        run = scores(model, market, (78,), length)
        for offset in range(length):
            alone = scores(model, market, (78 + offset,), 1)
            torch.testing.assert_close(
                run[:, offset : offset + 1], alone, rtol=1e-5, atol=1e-5, equal_nan=True
            )


@pytest.mark.parametrize("seed", range(5))
def test_permuting_stocks_permutes_scores_and_keeps_gradients(market, model, seed):
    stocks = len(market.panel.codes)
    order = np.random.default_rng(seed).permutation(stocks)
    place = np.argsort(order)
    neighbours = np.array(market.graph.neighbours)[:, order]
    graph = dataclasses.replace(
        market.graph,
        neighbours=np.where(neighbours >= 0, place[neighbours], -1).astype(np.int32),
        correlation=np.array(market.graph.correlation)[:, order],
    )
    shuffled = fitted(take_stocks(market.panel, order), graph)
    with torch.no_grad():
        torch.testing.assert_close(
            scores(model, shuffled), scores(model, market)[:, :, order],
            rtol=1e-5, atol=1e-5, equal_nan=True,
        )  # fmt: skip
    assert_same_gradients(gradients(model, shuffled), gradients(model, market))


def with_absent_stocks(market: Market, kind: str, rng: np.random.Generator) -> Market:
    """Seven more stocks that nobody may see, with garbage in every array, among the others.

    ``missing`` stocks have no bar; ``untradable`` ones have bars but are never in the universe.
    Empty places in the old stocks' neighbour lists point at them, and so does a place of its own.
    """
    panel, extra = market.panel, 7
    dates, old, features = panel.features.shape
    total = old + extra
    garbage = 1e6 * rng.standard_normal((dates, extra, features)).astype(np.float32)
    garbage[rng.random(garbage.shape) < 0.1] = np.nan
    column = panel.normalizers.index("time_series")
    if kind == "untradable":  # observed rows fit the statistics: the market's value is theirs too
        garbage[..., column] = np.nan

    def wider(values: np.ndarray, more: np.ndarray) -> np.ndarray:
        return np.concatenate([np.array(values), more.astype(values.dtype)], axis=1)

    shape = (dates, extra)
    absent = np.zeros(shape, dtype=bool)
    targets = rng.standard_normal((dates, extra, len(panel.horizons))) * 1e3
    wide = dataclasses.replace(
        panel,
        features=wider(panel.features, garbage),
        observed=wider(panel.observed, absent if kind == "missing" else ~absent),
        tradable=wider(panel.tradable, absent),
        targets=wider(panel.targets, targets),
        daily_return=wider(panel.daily_return, rng.standard_normal(shape)),
        sector=np.concatenate([panel.sector, np.ones(extra, np.int16)]),
        market=np.concatenate([panel.market, np.ones(extra, np.int16)]),
        codes=panel.codes + tuple(f"X{i}" for i in range(extra)),
    )
    refreshes, _, k = market.graph.neighbours.shape
    neighbours = rng.integers(0, total, (refreshes, total, k + 2)).astype(np.int32)
    correlation = rng.standard_normal(neighbours.shape).astype(np.float32)
    stranger = rng.integers(old, total, (refreshes, old, k + 2)).astype(np.int32)
    neighbours[:, :old] = stranger
    known = np.array(market.graph.neighbours)
    neighbours[:, :old, :k] = np.where(known >= 0, known, stranger[..., :k])
    correlation[:, :old, :k] = np.where(known >= 0, market.graph.correlation, 0.9)
    graph = dataclasses.replace(market.graph, neighbours=neighbours, correlation=correlation)
    return fitted(wide, graph)


@pytest.mark.parametrize("kind", ["missing", "untradable"])
@pytest.mark.parametrize("seed", range(3))
def test_stocks_that_cannot_be_scored_change_nothing(market, model, kind, seed):
    stocks = len(market.panel.codes)
    wide = with_absent_stocks(market, kind, np.random.default_rng(seed))
    assert wide.scale == market.scale
    with torch.no_grad():
        found = scores(model, wide)
    assert torch.isnan(found[:, :, stocks:]).all()
    with torch.no_grad():
        torch.testing.assert_close(
            found[:, :, :stocks], scores(model, market), rtol=1e-5, atol=1e-5, equal_nan=True
        )
    assert_same_gradients(gradients(model, wide), gradients(model, market))


@pytest.mark.parametrize("garbage", [np.nan, 1e6, -3e38, np.inf])
def test_what_stands_in_a_day_without_a_bar_changes_nothing(market, model, garbage):
    features = np.array(market.panel.features)
    features[~market.panel.observed] = garbage
    panel = dataclasses.replace(market.panel, features=features)
    filled = dataclasses.replace(market, panel=panel)
    with torch.no_grad():
        torch.testing.assert_close(
            scores(model, filled), scores(model, market), rtol=0, atol=0, equal_nan=True
        )
    found = gradients(model, filled)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    assert_same_gradients(found, gradients(model, market))


def scored_at(market: Market, stock: int, day: int, neighbours: np.ndarray) -> bool:
    """Scorable, with a neighbour."""
    return slow.scorable(market.panel, stock, day, LOOKBACK) and (neighbours[stock] >= 0).any()


def test_a_neighbour_that_can_be_scored_does_change_something(market, model):
    """The tests above could not fail if nobody ever saw a neighbour."""
    neighbours, _ = slow.edges(market.panel, market.graph, 150, LOOKBACK)
    stock = next(s for s in range(len(neighbours)) if scored_at(market, s, 150, neighbours))
    neighbour = next(int(other) for other in neighbours[stock] if other >= 0)
    features = np.array(market.panel.features)
    features[145:151, neighbour] += 1.0
    panel = dataclasses.replace(market.panel, features=features)
    with torch.no_grad():
        before = scores(model, market, (150,), 1)
        after = scores(model, dataclasses.replace(market, panel=panel), (150,), 1)
    assert (after - before)[0, 0, stock].abs().max() > 1e-4


def test_days_after_the_signal_change_nothing(market, model):
    rng = np.random.default_rng(0)
    features = np.array(market.panel.features)
    features[153:] = rng.standard_normal(features[153:].shape)
    panel = dataclasses.replace(market.panel, features=features)
    later = dataclasses.replace(market, panel=panel)
    with torch.no_grad():
        assert torch.equal(
            scores(model, later).nan_to_num(9.0), scores(model, market).nan_to_num(9.0)
        )
