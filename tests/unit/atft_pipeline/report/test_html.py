"""The page says what the data say: self-contained, the same each time, failures in plain sight."""

import datetime
import re
from dataclasses import fields, replace
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from atft_model.evaluation import ScorerResult
from atft_model.metrics.portfolio import PortfolioReturns
from atft_pipeline.assets.evaluation import graphs_table
from atft_pipeline.report.html import (
    CheckRow,
    ReportData,
    StructureSection,
    Verdict,
    render_report,
)
from atft_pipeline.report.structure import edges_table
from tests.support.structure_record import sound_record

DAYS = np.busday_offset("2014-01-06", np.arange(90), roll="forward").tolist()
NAN = float("nan")


def _check(name: str, passed: bool, severity: str = "ERROR", kind: str = "integrity") -> CheckRow:
    return CheckRow("trained_model", name, passed, severity, kind, "0.1", "≥ 0.2", "Why.")  # pyright: ignore[reportArgumentType]


def _horizon_row(scorer: str, horizon: int) -> dict:
    return {
        "scorer": scorer,
        "horizon": horizon,
        "rank_ic": 0.0213 * horizon,
        "rank_ic_se": 0.0081,
        "rank_ic_t": 2.63,
        "icir": 0.17,
        "hit_rate": 0.512,
        "oracle_share": None,
        "sharpe_net": -0.614,
        "sharpe_se": 0.873,
        "sharpe_gross": 0.95,
        "turnover": 0.78,
        "max_drawdown": -0.123,
        "breakeven_cost_bp": 4.2,
        "n_dates": 1234,
        "rank_ic_low": 0.001,
        "rank_ic_high": 0.04,
        "rank_ic_gap_t": 1.7 if scorer != "model" else NAN,
        "residual_rank_ic": 0.0123,
        "residual_rank_ic_t": 1.5,
        "sharpe_net_low": -2.31,
        "sharpe_net_high": 1.09,
        "sharpe_gap_t": 0.4,
        "rank_weighted_sharpe_net": 0.31,
        "top_sharpe_net": 0.52,
        "capacity": 2.5e6,
        "deflated_sharpe": 0.21,
        "sharpe_by_luck": 1.17,
        "trials": 12.0,
        "sharpe_lag": 5.0,
        "rank_ic_band_low": -0.0081 if scorer == "ridge" else NAN,
        "rank_ic_band_high": 0.0079 if scorer == "ridge" else NAN,
        "sharpe_net_band_low": -2.5,
        "sharpe_net_band_high": 1.4,
    }


def _breakdowns() -> pl.DataFrame:
    rows = [
        ("age", "0", "rank_ic"), ("age", "5", "rank_ic"), ("sector", "Energy", "rank_ic"),
        ("size", "small", "rank_ic"), ("year", "2014", "rank_ic"), ("year", "2014", "return_net"),
        ("month", "2014-01", "rank_ic"), ("month", "2014-02", "rank_ic"),
        ("quantile", "0.05", "coverage"), ("quantile", "all", "crossing"),
    ]  # fmt: skip
    return pl.DataFrame(
        [
            {"horizon": 5, "breakdown": kind, "group": group, "metric": metric, "value": 0.021,
             "standard_error": 0.01, "dates": 21}
            for kind, group, metric in rows
        ]
    )  # fmt: skip


def _importance() -> pl.DataFrame:
    rows = [
        ("group", "returns", None, 0.031, 0.004), ("group", "flows", None, -0.002, NAN),
        ("group_score_change", "returns", None, 0.42, 0.01),
        ("group_score_change", "flows", None, 0.02, 0.01),
        ("feature_selection", "returns_1d", None, 0.0712, 0.0012),
        ("feature_selection", "stmt_roe", None, 0.0123, 0.0005),
        ("pair", "S001", "S002", 0.213, 0.02), ("received", "S002", None, 2.1, 0.1),
    ]  # fmt: skip
    schema = ["kind", "name", "neighbour", "importance", "standard_error"]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _data() -> ReportData:
    rng = np.random.default_rng(0)
    scorers, n = ("model", "ridge"), len(DAYS)
    return ReportData(
        title="Evaluation of run r1",
        identity={"run": "r1", "checkpoint": "sha256:abc"},
        verdict=Verdict(False, ("encoder_gradients_nonzero fails",)),
        checks=[
            _check("no_nonfinite_steps", True),
            _check("encoder_gradients_nonzero", False),
            _check("resets_within_limit", False, severity="WARN"),
            _check("rank_ic_positive", True, kind="skill"),
        ],
        horizons=pl.DataFrame(
            [_horizon_row(s, h) for s in scorers for h in (1, 5)],
            schema_overrides={"oracle_share": pl.Float64},
        ),
        daily=pl.concat(
            pl.DataFrame({"scorer": [s] * n, "date": DAYS, "gross": x, "net": x - 0.0005})
            for s, x in zip(scorers, rng.normal(0, 0.01, (2, n)), strict=True)
        ),
        rank_ic_by_date=pl.DataFrame(
            {
                "scorer": ["model"] * n,
                "horizon": [5] * n,
                "date": DAYS,
                "rank_ic": rng.normal(size=n),
            }
        ),
        deciles=pl.DataFrame(
            {
                "horizon": [5] * 10,
                "decile": list(range(1, 11)),
                "mean_return": np.linspace(-0.001, 0.001, 10),
                "standard_error": [0.0003] * 10,
            }
        ),
        epochs=pl.DataFrame(
            {
                "epoch": [1, 2],
                "train_loss": [1.0, 0.9],
                "val_loss": [1.0, 0.95],
                "val_rank_ic": [0.01, 0.02],
                "learning_rate": [5e-4, 5e-4],
                "windows_per_second": [900.0, 1100.0],
            }
        ),
        gradients=pl.DataFrame({"step": [1, 2], "group": ["gat", "gat"], "l2": [0.1, 0.0]}),
        quarantine=pl.DataFrame({"reason": ["high < low", "zero volume"], "rows": [17, 2300]}),
        breakdowns=_breakdowns(),
        missing={"statements": "16 features left out"},
        notes=["Survivors only."],
    )


class _Page(HTMLParser):
    """Words of the page and its tags, as a browser would read them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(_data())


def test_the_page_is_self_contained_and_well_formed(html: str) -> None:
    page = _Page(html)
    assert page.open == []  # every tag is closed, in order
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert "http://" not in without_namespaces
    assert "https://" not in without_namespaces
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "img"}
    assert "@import" not in html
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert "src" not in attributes
        for name in ("href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")


def test_ids_are_unique_and_the_contents_lead_somewhere(html: str) -> None:
    tags = _Page(html).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {a["href"] for tag, a in tags if tag == "a"}
    assert len(links) == 9
    assert {f"#{i}" for i in ids} >= links


def test_the_page_is_deterministic_and_small(html: str) -> None:
    assert render_report(_data()) == html
    assert len(html.encode()) < 1_000_000


def test_a_long_evaluation_stays_under_three_megabytes() -> None:
    days = np.busday_offset("2000-01-03", np.arange(5000), roll="forward").tolist()
    rng, n = np.random.default_rng(1), 5000
    long = replace(
        _data(),
        daily=pl.concat(
            pl.DataFrame({"scorer": [s] * n, "date": days, "net": rng.normal(size=n) / 100})
            for s in ("model", *"abcdefgh")
        ).with_columns(gross=pl.col("net")),
        rank_ic_by_date=pl.DataFrame(
            {
                "scorer": ["model"] * n,
                "horizon": [5] * n,
                "date": days,
                "rank_ic": rng.normal(size=n),
            }
        ),
    )
    assert len(render_report(long).encode()) < 3_000_000


def test_failing_checks_appear_as_failing_and_first(html: str) -> None:
    text = _Page(html).text
    assert "✗ Checks that fail encoder_gradients_nonzero fails" in text
    assert "✓ No check fails" not in text
    assert "✗ fails encoder_gradients_nonzero" in text
    assert "! warning resets_within_limit" in text
    assert "✓ holds no_nonfinite_steps" in text
    assert "Integrity: 1 of 3 hold" in text
    assert "Skill: 1 of 1 hold" in text
    order = [text.index(n) for n in ("✗ fails", "! warning resets", "✓ holds no_nonfinite_steps")]
    assert order == sorted(order)


def test_an_accepted_model_says_so() -> None:
    checks = [_check("no_nonfinite_steps", True), _check("resets", False, severity="WARN")]
    page = _Page(render_report(replace(_data(), verdict=Verdict(True, ()), checks=checks)))
    assert "✓ No check fails" in page.text
    assert "Checks that fail" not in page.text


def test_an_accepting_verdict_over_a_failed_check_is_refused() -> None:
    with pytest.raises(ValueError, match="accepted, but encoder_gradients_nonzero failed"):
        replace(_data(), verdict=Verdict(True, ()))


def test_no_checks_no_trust() -> None:
    assert "No check was run." in _Page(render_report(replace(_data(), checks=[]))).text


def test_numbers_come_with_their_errors(html: str) -> None:
    text = _Page(html).text
    assert "0.1065 ± 0.0081" in text  # rank IC at 5 days
    assert "−0.61 ± 0.87" in text
    assert "95 %: −2.31 to 1.09 (bootstrap), lag 5; gross 0.95" in text
    assert "probability that it is above 1.17, the best of 12 by luck" in text
    assert "Luck alone: 95 % of random scores end at a rank IC of −0.0081 to 0.0079" in text
    assert "2.5 m" in text  # capacity
    assert "−12.3 %" in text  # no-break spaces are white space to the parser
    assert "1,234" in text
    assert "2,317" in text  # rows of quarantine, summed
    assert "share of oracle" not in text  # no market but the built-in one has an oracle


def test_the_share_of_the_oracle_is_shown_where_it_is_known() -> None:
    horizons = _data().horizons.with_columns(oracle_share=pl.lit(0.42))
    text = _Page(render_report(replace(_data(), horizons=horizons))).text
    assert "share of oracle" in text
    assert "42 %" in text


@pytest.mark.parametrize("value", [NAN, None, float("inf")])
def test_what_is_not_defined_reads_na(value: float | None) -> None:
    row = {k: value if isinstance(v, float) else v for k, v in _horizon_row("model", 5).items()}
    horizons = pl.DataFrame(
        [row], schema_overrides={k: pl.Float64 for k, v in row.items() if v is None}
    )
    epochs = _data().epochs.with_columns(
        pl.lit(value, dtype=pl.Float64).alias("windows_per_second"),
        pl.lit(value, dtype=pl.Float64).alias("val_rank_ic"),
        pl.lit(value, dtype=pl.Float64).alias("learning_rate"),
    )
    page = _Page(render_report(replace(_data(), horizons=horizons, epochs=epochs)))
    assert page.text.count("n/a") > 10
    assert not re.search(r"\b(nan|NaN|None|inf)\b", page.text)


def test_a_rounded_zero_has_no_sign() -> None:
    horizons = _data().horizons.with_columns(sharpe_net=pl.lit(-0.001))
    text = _Page(render_report(replace(_data(), horizons=horizons))).text
    assert not re.search(r"−0\.00\b", text)
    assert "0.00 ± 0.87" in text


def test_hostile_names_are_escaped() -> None:
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>'
    data = _data()
    hostile = replace(
        data,
        title=evil,
        identity={evil: evil},
        verdict=Verdict(False, (evil,)),
        checks=[CheckRow(evil, evil, False, "ERROR", "skill", evil, evil, evil)],
        horizons=data.horizons.with_columns(scorer=pl.col("scorer").replace("ridge", evil)),
        daily=data.daily.with_columns(scorer=pl.col("scorer").replace("ridge", evil)),
        gradients=data.gradients.with_columns(group=pl.lit(evil)),
        quarantine=data.quarantine.with_columns(reason=pl.lit(evil)),
        missing={evil: evil},
        notes=[evil],
    )
    page = _Page(render_report(hostile))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count("alert(1)") >= 12


def test_mathematics_in_names_is_not_typeset_by_the_figures() -> None:
    gradients = _data().gradients.with_columns(group=pl.lit("cost in $, x^2$"))
    assert "cost in $, x^2$" in _Page(render_report(replace(_data(), gradients=gradients))).text


def test_what_was_not_recorded_is_said() -> None:
    nothing = dict.fromkeys(
        ("horizons", "daily", "rank_ic_by_date", "deciles", "epochs", "gradients", "quarantine"),
        pl.DataFrame(),
    )
    empty = replace(_data(), **nothing, checks=[], identity={}, missing={}, notes=[])
    page = _Page(render_report(empty))
    assert page.open == []
    assert page.text.count("Not recorded in this run.") == 8
    assert "No row was rejected." in page.text


def test_a_frame_without_a_column_is_named() -> None:
    with pytest.raises(ValueError, match="daily lacks net; found"):
        replace(_data(), daily=_data().daily.drop("net"))


def test_a_date_is_not_taken_from_the_clock(html: str) -> None:
    assert str(datetime.date.today().year) not in _Page(html).text


def test_importance_shows_groups_features_and_neighbours():
    page = render_report(replace(_data(), importance=_importance()))
    figures = page[page.index("What the scores rest on") :]
    assert figures.index("<svg") < figures.index("rank IC that is lost")
    table = page[page.index("Features by selection weight") : page.index("Neighbours by attention")]
    assert table.index("returns_1d") < table.index("stmt_roe")
    assert "7.1\N{NO-BREAK SPACE}% ± 0.1\N{NO-BREAK SPACE}%" in table
    assert "S001 ← S002" in page


def test_an_importance_without_its_columns_is_refused():
    with pytest.raises(ValueError, match="importance lacks neighbour"):
        replace(_data(), importance=_importance().drop("neighbour"))


def _graph_result(scorer: str, horizon: int, rank_ic: float, behind: float | None):
    figures = {"rank_ic": (rank_ic, 0.005, 200)}
    if behind is not None:
        figures["rank_ic_behind_model"] = (behind, 0.002, 200)
    none = np.zeros(0)
    returns = PortfolioReturns(*[none] * len(fields(PortfolioReturns)))
    return ScorerResult(scorer, horizon, figures, none, none, none, none, returns)


def test_the_structure_section_says_whether_its_graph_helped():
    rows = graphs_table(
        [
            _graph_result("model", 5, 0.031, None), _graph_result("model", 1, 0.9, None),
            _graph_result("model_learned_graph", 5, 0.024, 0.007),
            _graph_result("model_random_graph", 5, 0.019, 0.012),
            _graph_result("ridge", 5, 0.5, -0.4),
        ],
        "correlation",
    )  # fmt: skip
    assert [row[0] for row in rows] == ["correlation (trained on it)", "learned", "random"]
    record = sound_record()
    section = StructureSection(
        edges_table(record), record.order, pl.DataFrame(list(record.health)),
        dict.fromkeys(record.names, 9), "Every check holds", rows,
    )  # fmt: skip
    page = render_report(replace(_data(), structure=section))
    assert "Did it help?" in page
    assert "0.0240 ± 0.0050" in page
    assert "0.0070 ± 0.0020" in page
    for name in record.names:  # named nodes in the picture, not only in the table
        assert f">{name}</text>" in page or f"<!-- {name} -->" in page
    alone = render_report(replace(_data(), structure=replace(section, graphs=())))
    assert "Did it help?" not in alone
