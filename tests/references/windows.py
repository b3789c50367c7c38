"""What the model sees of a panel, gathered slowly: one date, stock and edge at a time."""

import numpy as np

from atft_model.data.graph import StockGraph
from atft_model.data.normalizer import TimeSeriesStatistics
from atft_model.data.panel import Panel


def window(
    panel: Panel, statistics: TimeSeriesStatistics, stock: int, day: int, lookback: int
) -> tuple[np.ndarray, np.ndarray]:
    """Normalized features [lookback, features], unknown ones 0, and which days were observed."""
    days = slice(day - lookback + 1, day + 1)
    values = np.array(panel.features[days, stock], dtype=np.float64)
    scaled = [i for i, kind in enumerate(panel.normalizers) if kind == "time_series"]
    for place, feature in enumerate(scaled):
        inside = values[:, feature].clip(statistics.lower[place], statistics.upper[place])
        score = (inside - statistics.mean[place]) / statistics.std[place]
        values[:, feature] = score.clip(-5, 5)
    return np.where(np.isnan(values), 0.0, values), np.array(panel.observed[days, stock])


def scorable(panel: Panel, stock: int, day: int, lookback: int) -> bool:
    """Tradable, with a bar on the day and on at least half of its window's days."""
    if day < lookback - 1:
        return False
    seen = panel.observed[day - lookback + 1 : day + 1, stock]
    return bool(panel.tradable[day, stock] and seen[-1] and 2 * seen.sum() >= lookback)


def edges(
    panel: Panel, graph: StockGraph, day: int, lookback: int
) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours [stocks, k], -1 where none, and their attributes."""
    stocks, k = graph.neighbours.shape[1:]
    neighbours = np.full((stocks, k), -1)
    attributes = np.zeros((stocks, k, 6))
    past = [refresh for refresh, date in enumerate(graph.refresh) if date <= day]
    for stock in range(stocks if past else 0):
        for place, other in enumerate(graph.neighbours[past[-1], stock]):
            if other < 0 or not scorable(panel, other, day, lookback):
                continue
            neighbours[stock, place] = other
            attributes[stock, place, :3] = [
                graph.correlation[past[-1], stock, place],
                panel.sector[stock] == panel.sector[other] != 0,
                panel.market[stock] == panel.market[other] != 0,
            ]
            if graph.link is not None and graph.links is not None:
                attributes[stock, place, 3:] = graph.links[graph.link[past[-1], stock, place]]
    return neighbours, attributes
