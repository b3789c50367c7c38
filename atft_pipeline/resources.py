"""Places, sources and settings from the environment: the only reader of ATFT_* on this side.

Each setting is a resource field; a field left empty takes its environment variable, then the
default. So the Launchpad, ``--config-json``, a run-config file and the shell mean the same thing.
"""

import datetime as dt
import os
import zlib
from pathlib import Path

import dagster as dg
from pydantic import Field

from atft_model.data.folds import WalkForwardConfig
from atft_model.data.splits import SplitConfig
from atft_model.errors import InputError
from atft_pipeline.exchange_hours import EXCHANGES, Exchange
from atft_pipeline.sources.base import MarketSource
from atft_pipeline.sources.files import FilesConfig, FilesSource
from atft_pipeline.sources.jquants import JQuantsConfig, JQuantsSource
from atft_pipeline.sources.synthetic import SyntheticConfig, SyntheticMarket
from atft_pipeline.transforms.lookahead import LookaheadConfig

SOURCES = ("synthetic", "files", "jquants")


class Market(dg.ConfigurableResource):
    """Which market data are used."""

    source: str | None = Field(
        default=None, description="synthetic, files or jquants. Empty: ATFT_SOURCE, else synthetic."
    )
    prices: str | None = Field(
        default=None, description="files: Parquet or CSV of daily bars. Empty: ATFT_PRICES."
    )
    listings: str | None = Field(
        default=None,
        description="files: optional table of stocks (sector, market). Empty: ATFT_LISTINGS.",
    )
    indices: str | None = Field(
        default=None, description="files: optional table of index closes. Empty: ATFT_INDICES."
    )
    statements: str | None = Field(
        default=None,
        description="files: optional table of company statements. Empty: ATFT_STATEMENTS.",
    )
    flows: str | None = Field(
        default=None,
        description="files: optional table of weekly investor flows. Empty: ATFT_FLOWS.",
    )
    start_date: str | None = Field(
        default=None,
        description="files, jquants: first date used, YYYY-MM-DD. Empty: ATFT_START_DATE, "
        "else all.",
    )
    end_date: str | None = Field(
        default=None,
        description="files, jquants: last date used, YYYY-MM-DD. Empty: ATFT_END_DATE, else all.",
    )
    jquants_plan: str | None = Field(
        default=None,
        description="jquants: free, light, standard or premium; sets the pace of requests. "
        "Empty: ATFT_JQUANTS_PLAN, else free. (The API key is no setting, as settings are stored "
        "with each run: it is read from JQUANTS_API_KEY alone.)",
    )
    jquants_cache: str | None = Field(
        default=None,
        description="jquants: folder of everything that was ever fetched. Empty: "
        "ATFT_JQUANTS_CACHE, else jquants_cache in ATFT_DATA_DIR.",
    )
    seed: int = Field(default=SyntheticConfig.seed, description="synthetic: seed of the market.")
    stocks: int = Field(default=SyntheticConfig.stocks, description="synthetic: number of stocks.")
    dates: int = Field(
        default=SyntheticConfig.dates, description="synthetic: number of trading days."
    )
    signal: float = Field(
        default=SyntheticConfig.signal, description="synthetic: planted signal; 0 plants none."
    )
    sector_links: float = Field(
        default=SyntheticConfig.sector_links,
        description="synthetic: effect of sectors on each other, for learned_structure to find; "
        "0 plants none.",
    )

    def name(self) -> str:
        """The chosen source's name.

        Raises:
            InputError: no such source.
        """
        name = self.source or os.environ.get("ATFT_SOURCE") or "synthetic"
        if name not in SOURCES:
            raise InputError(f"ATFT_SOURCE is {name!r}; expected one of {', '.join(SOURCES)}")
        return name

    def build(self) -> MarketSource:
        """The configured source.

        Raises:
            InputError: unknown source, a missing path or key, or a date that is none.
        """
        if self.name() == "jquants":
            return JQuantsSource(self._jquants())
        if self.name() == "synthetic":
            return SyntheticMarket(
                SyntheticConfig(
                    seed=self.seed,
                    stocks=self.stocks,
                    dates=self.dates,
                    signal=self.signal,
                    sector_links=self.sector_links,
                )
            )
        prices = self.prices or os.environ.get("ATFT_PRICES")
        if not prices:
            raise InputError(
                "ATFT_SOURCE is 'files' but ATFT_PRICES is not set; give the path of a Parquet or "
                "CSV file of daily bars"
            )
        return FilesSource(
            FilesConfig(
                prices=Path(prices),
                listings=_path(self.listings, "ATFT_LISTINGS"),
                indices=_path(self.indices, "ATFT_INDICES"),
                statements=_path(self.statements, "ATFT_STATEMENTS"),
                flows=_path(self.flows, "ATFT_FLOWS"),
                start_date=_date(self.start_date, "ATFT_START_DATE"),
                end_date=_date(self.end_date, "ATFT_END_DATE"),
            )
        )

    def _jquants(self) -> JQuantsConfig:
        key = os.environ.get("JQUANTS_API_KEY", "").strip()
        if not key:
            raise InputError(
                "ATFT_SOURCE is 'jquants' but JQUANTS_API_KEY is not set; set it to the API key "
                "of the J-Quants dashboard"
            )
        cache = _path(self.jquants_cache, "ATFT_JQUANTS_CACHE")
        return JQuantsConfig(
            api_key=key,
            cache=cache or Path(os.environ.get("ATFT_DATA_DIR") or "data") / "jquants_cache",
            plan=self.jquants_plan or os.environ.get("ATFT_JQUANTS_PLAN") or "free",
            start_date=_date(self.start_date, "ATFT_START_DATE"),
            end_date=_date(self.end_date, "ATFT_END_DATE"),
        )


class SplitSettings(dg.ConfigurableResource):
    """How the dates are divided into train, validation and test."""

    train_fraction: float = Field(
        default=SplitConfig.train_fraction, description="Share of the usable dates for training."
    )
    validation_fraction: float = Field(
        default=SplitConfig.validation_fraction,
        description="Share for validation; the rest is test.",
    )
    embargo: int = Field(
        default=SplitConfig.embargo,
        description="Trading days left out after the purge (largest horizon + 1) of each part.",
    )

    def config(self) -> SplitConfig:
        """The split's settings as the library knows them."""
        return SplitConfig(self.train_fraction, self.validation_fraction, self.embargo)


class WalkForward(dg.ConfigurableResource):
    """How the dates are cut into test periods, each with a model of its own."""

    period: str | None = Field(
        default=None, description="year or quarter. Empty: ATFT_TEST_PERIOD, else year."
    )
    validation_dates: int = Field(
        default=WalkForwardConfig.validation_dates,
        description="Trading days of validation before each test period.",
    )
    embargo: int = Field(
        default=WalkForwardConfig.embargo,
        description="Trading days left out after the purge (largest horizon + 1) of each part.",
    )
    min_train_dates: int = Field(
        default=WalkForwardConfig.min_train_dates,
        description="Training dates below which a period is not tested.",
    )
    train_dates: int | None = Field(
        default=WalkForwardConfig.train_dates,
        description="Newest training dates that are used. Empty: all that came before.",
    )

    def config(self) -> WalkForwardConfig:
        """The settings as the library knows them.

        Raises:
            InputError: no such period.
        """
        period = self.period or os.environ.get("ATFT_TEST_PERIOD") or WalkForwardConfig.period
        if period not in ("year", "quarter"):
            raise InputError(f"ATFT_TEST_PERIOD is {period!r}; expected year or quarter")
        return WalkForwardConfig(
            period, self.validation_dates, self.embargo, self.min_train_dates, self.train_dates
        )


class Lookahead(dg.ConfigurableResource):
    """How hard the checks ``no_lookahead`` look."""

    cuts: int = Field(
        default=LookaheadConfig.cuts,
        description="Random dates after which the data are removed, and again rewritten.",
    )
    seed: int | None = Field(
        default=None,
        description="Draws the dates and the rewritten values. Empty: from the run's id, so that "
        "each run looks elsewhere; a failed check shows its seed.",
    )

    def config(self, run_id: str) -> LookaheadConfig:
        """The settings of one run's checks."""
        seed = zlib.crc32(run_id.encode()) if self.seed is None else self.seed
        return LookaheadConfig(self.cuts, seed)


def is_plain_name(name: str) -> bool:
    """Whether a name from config, joined to a folder, stays one level below it."""
    return name not in ("", ".", "..") and Path(name).name == name and "\0" not in name


def data_folder(data_dir: str | None, dataset: str | None, source: str) -> Path:
    """``<data dir>/<data set>``, absolute; by default ``data`` and the name of the source.

    Raises:
        InputError: a data set name that would lead out of the data dir.
    """
    name = dataset or os.environ.get("ATFT_DATASET") or source
    if not is_plain_name(name):
        raise InputError(
            f"data set (ATFT_DATASET) is {name!r}; expected a plain folder name, such as tokyo"
        )
    return Path(data_dir or os.environ.get("ATFT_DATA_DIR") or "data").absolute() / name


ALERT_LEVELS = ("WARN", "ERROR")


def alert_urls() -> list[str]:
    """Where alerts go: apprise URLs in ATFT_ALERTS, separated by spaces or commas."""
    return os.environ.get("ATFT_ALERTS", "").replace(",", " ").split()


def alert_level() -> str:
    """ATFT_ALERT_LEVEL: the least severity of a failed check that is told.

    Raises:
        InputError: no such severity.
    """
    level = (os.environ.get("ATFT_ALERT_LEVEL") or "WARN").upper()
    if level not in ALERT_LEVELS:
        raise InputError(
            f"ATFT_ALERT_LEVEL is {level!r}; expected one of {', '.join(ALERT_LEVELS)}"
        )
    return level


def ui_url() -> str:
    """ATFT_UI_URL: where the links of an alert lead."""
    return (os.environ.get("ATFT_UI_URL") or "http://127.0.0.1:3000").rstrip("/")


def secrets() -> list[str]:
    """What must appear in no message: the vendor's key, every address of an alert in any part."""
    key = os.environ.get("JQUANTS_API_KEY", "").strip()
    return [*([key] if key else []), *alert_urls()]


def exchange() -> Exchange:
    """ATFT_EXCHANGE: whose trading days and close the daily schedule follows.

    Raises:
        InputError: no such exchange.
    """
    name = os.environ.get("ATFT_EXCHANGE") or "tokyo"
    if name not in EXCHANGES:
        raise InputError(f"ATFT_EXCHANGE is {name!r}; expected one of {', '.join(EXCHANGES)}")
    return EXCHANGES[name]


def default_preset() -> str:
    """ATFT_PRESET, else the preset that fits the built-in market."""
    return os.environ.get("ATFT_PRESET") or "quick"


def _path(given: str | None, variable: str) -> Path | None:
    text = given or os.environ.get(variable)
    return Path(text) if text else None


def _date(given: str | None, variable: str) -> dt.date | None:
    text = given or os.environ.get(variable)
    if not text:
        return None
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        raise InputError(f"{variable} is {text!r}; expected a date as YYYY-MM-DD") from None
