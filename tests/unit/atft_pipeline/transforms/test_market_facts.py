"""Opens, limits and traded value on the panel's axes, against the prices themselves."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from atft_model.data.panel import Panel, read_panel
from atft_model.errors import InputError
from atft_pipeline.transforms.market_facts import market_facts, on_panel


@pytest.fixture(scope="module")
def panel(stored_panel) -> Panel:
    return read_panel(stored_panel[0])


@pytest.fixture(scope="module")
def prices(panel) -> pl.DataFrame:
    """Bars whose closes are those of the panel's returns."""
    rng = np.random.default_rng(0)
    rows = []
    for column, code in enumerate(panel.codes):
        close = 100.0
        for row in np.flatnonzero(panel.observed[:, column]):
            move = panel.daily_return[row, column]
            close *= 1.0 + float(move)
            rows.append((panel.dates[row], code, close * rng.uniform(0.99, 1.01), close,
                         rng.uniform(1e6, 2e6)))  # fmt: skip
    frame = pl.DataFrame(rows, schema=["date", "code", "open", "close", "turnover"], orient="row")
    return frame.sample(fraction=1.0, shuffle=True, seed=0)


def _first_bars(panel: Panel) -> Panel:
    """The panel as the pipeline makes it: a stock's first bar has no return."""
    from dataclasses import replace

    daily = np.array(panel.daily_return)
    daily[np.argmax(panel.observed, axis=0), np.arange(daily.shape[1])] = np.nan
    return replace(panel, daily_return=daily)


def test_opens_and_traded_value_are_those_of_the_stocks_own_bars(panel, prices) -> None:
    mine = _first_bars(panel)
    facts = market_facts(prices, mine)
    of_stock = prices.filter(pl.col("code") == "S007").sort("date")
    rows = [panel.dates.index(day) for day in of_stock["date"]]
    opens, value = of_stock["open"].to_numpy(), of_stock["turnover"].to_numpy()
    assert facts.open_return is not None
    assert facts.traded_value is not None
    np.testing.assert_allclose(facts.open_return[rows[1:], 7], opens[1:] / opens[:-1] - 1)
    for position in (3, 25, 90):
        mean = value[max(0, position - 19) : position + 1].mean()
        assert facts.traded_value[rows[position], 7] == pytest.approx(mean)
    assert np.isnan(facts.traded_value[~panel.observed]).all()
    assert facts.can_buy is None
    assert facts.can_sell is None


def test_at_a_limit_one_side_is_missing(panel, prices) -> None:
    day, code = panel.dates[100], panel.codes[5]
    here = (pl.col("date") == day) & (pl.col("code") == code)
    flagged = prices.with_columns(
        limit_up=pl.when(here).then(True).otherwise(None),
        limit_down=pl.lit(None, dtype=pl.Boolean),
    )
    facts = market_facts(flagged, _first_bars(panel))
    assert facts.can_buy is not None
    assert facts.can_sell is not None
    assert np.argwhere(~facts.can_buy).tolist() == [[100, 5]]
    assert facts.can_sell.all()


def test_prices_of_another_panel_are_refused(panel, prices) -> None:
    moved = prices.with_columns(close=pl.col("close") * (1 + 0.01 * (pl.col("code") == "S009")
                                * (pl.col("date") > dt.date(2020, 3, 1))))  # fmt: skip
    for other in (moved, prices.head(prices.height - 1)):
        with pytest.raises(InputError, match="daily returns are not those of the panel"):
            market_facts(other, _first_bars(panel))


def test_rows_of_other_dates_and_stocks_fall_away(panel) -> None:
    rows = pl.DataFrame(
        {
            "date": [panel.dates[3], dt.date(1999, 1, 1), panel.dates[4]],
            "code": ["S001", "S001", "nobody"],
            "score": [2.5, 1.0, 1.0],
        }
    )
    grid = on_panel(rows, "score", panel)
    assert np.argwhere(np.isfinite(grid)).tolist() == [[3, 1]]
    assert grid[3, 1] == 2.5
