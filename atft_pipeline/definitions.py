"""Assembly only: the assets, resources, schedules and sensors of the project as ``defs``."""

import dagster as dg

from atft_pipeline import alerts, schedules
from atft_pipeline.assets import (
    acceptance,
    core,
    evaluation,
    features,
    graph,
    model,
    raw,
    realized,
    serving,
    structure,
    walk_forward,
)
from atft_pipeline.failures import console
from atft_pipeline.resources import Lookahead, Market, SplitSettings, WalkForward
from atft_pipeline.storage import Storage, TableIOManager, VersionIOManager

# At launch, or the I/O managers would keep the storage of import time whatever the run config says.
market = Market.configure_at_launch()
storage = Storage.configure_at_launch(market=market)

OWNERS = ["team:research"]
"""Whom the UI names beside every asset."""

ASSETS = [
    *raw.ASSETS,
    *core.ASSETS,
    *features.ASSETS,
    *structure.ASSETS,
    *graph.ASSETS,
    *model.ASSETS,
    *evaluation.ASSETS,
    *walk_forward.ASSETS,
    *acceptance.ASSETS,
    *serving.ASSETS,
    *realized.ASSETS,
]

defs = dg.Definitions(
    assets=dg.map_asset_specs(lambda spec: spec.replace_attributes(owners=OWNERS), ASSETS),
    resources={
        "market": market,
        "storage": storage,
        "split": SplitSettings(),
        "walk_forward": WalkForward(),
        "lookahead": Lookahead(),
        "io_manager": TableIOManager(storage=storage),
        "versions": VersionIOManager(storage=storage),
    },
    jobs=schedules.JOBS,
    schedules=schedules.SCHEDULES,
    sensors=alerts.SENSORS,
    loggers={"console": console},
    executor=dg.in_process_executor,
)
