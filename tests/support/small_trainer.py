"""A trainer on a stored panel that tests can look into between steps."""

from pathlib import Path
from typing import Any

import torch

from atft_model.config import resolve
from atft_model.data.batches import fit_target_scale
from atft_model.data.graph import read_graph
from atft_model.data.panel import fit_statistics, read_panel
from atft_model.run import build_trainer, training_data
from atft_model.training.loop import Trainer
from atft_model.training.reporter import Reporter

LOOKBACK = 5


def small_trainer(places: tuple[Path, Path], folder: Path, *settings: dict[str, Any]) -> Trainer:
    """The trainer of a small model on (panel, graph), always with the same first weights."""
    panel = read_panel(places[0])
    graph = read_graph(places[1], panel)
    small = {"model": {"hidden_size": 16, "heads": 2, "lookback": LOOKBACK},
             "training": {"device": "cpu"}}  # fmt: skip
    torch.manual_seed(0)
    config = resolve("quick", [("test", layer) for layer in (small, *settings)])
    data = training_data(
        config, panel, graph, fit_statistics(panel, panel.split.train),
        fit_target_scale(panel, panel.split.train), torch.device("cpu"),
    )  # fmt: skip
    return build_trainer(config, data, folder, Reporter(), {})
