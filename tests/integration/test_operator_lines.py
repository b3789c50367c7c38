"""The log lines that operators grep for, as the terminal shows them at the default level."""

import dataclasses
import logging
import re

import numpy as np
import pytest

from atft_model.config import resolve
from atft_model.data.graph import GraphConfig, build_graph, write_graph
from atft_model.data.panel import read_panel, write_panel
from atft_model.errors import InputError
from atft_model.run import train
from atft_model.settings import from_environment
from atft_model.training.health_record import read_health
from atft_model.training.loop import Trainer
from atft_model.training.reporter import Reporter

EPOCHS, STEPS = 2, 24
NUMBER = r"\d\.\d\de[+-]\d\d"
GROUPS = [
    "prediction_head_shared", "prediction_head_heads", "backbone_projection", "adaptive_norm",
    "temporal_encoder", "input_projection", "variable_selection", "gat",
]  # fmt: skip


def lines(caplog, stored_panel, folder, environment=None, more=None, plant=None) -> list[str]:
    """What a short run prints with the environment variables given."""
    small = {
        "model": {"hidden_size": 16, "heads": 2, "lookback": 5},
        "training": {"max_epochs": EPOCHS, "batch_windows": 1, "run_length": 4, "device": "cpu",
                     "max_steps_per_epoch": STEPS},
        "optimizer": {"schedule": "plateau"},
    }  # fmt: skip
    layers = [
        ("test", small), ("environment", from_environment(environment or {})), ("more", more or {}),
    ]  # fmt: skip
    with caplog.at_level(logging.INFO, "atft"):
        train(resolve("quick", layers), *stored_panel, folder, Reporter())
    return [record.getMessage() for record in caplog.records]


def test_every_group_is_shown_each_epoch_and_each_epoch_has_its_line(
    caplog, stored_panel, tmp_path
):
    printed = lines(caplog, stored_panel, tmp_path / "run")
    for group in GROUPS:
        pattern = (
            rf"\[GRAD-MONITOR\] {group}: l2={NUMBER} max={NUMBER} grad=(\d+)/\1( \(\d+ small\))?"
        )
        assert sum(re.fullmatch(pattern, line) is not None for line in printed) == EPOCHS, group
    pattern = (
        r"Epoch \d/2: Train Loss=-?\d\.\d{4} Val Loss=-?\d\.\d{4} Sharpe Ratio: -?\d+\.\d\d "
        r"IC=-?\d\.\d{4} RankIC=-?\d\.\d{4} lr=1\.0e-03 .*"
    )
    assert sum(re.fullmatch(pattern, line) is not None for line in printed) == EPOCHS
    assert sum(re.fullmatch(r"horizon_\d+: mean=-?\d\.\d{6}, std=\d\.\d{6}", line) is not None
               for line in printed) == 4  # fmt: skip
    assert not any("ENCODER-GRAD" in line or "ADAPTIVE-NORM" in line for line in printed)


def test_encoder_hooks_print_the_whole_run_at_the_monitors_cadence(caplog, stored_panel, tmp_path):
    printed = lines(
        caplog, stored_panel, tmp_path / "run",
        {"ENABLE_ENCODER_GRAD_HOOKS": "1", "ENABLE_ADAPTIVE_NORM_DEBUG": "1"},
    )  # fmt: skip
    for name in ("projected_features", "normalized_features"):
        pattern = rf"\[ENCODER-GRAD\] {name} grad_norm={NUMBER} max={NUMBER}"
        count = sum(re.fullmatch(pattern, line) is not None for line in printed)
        assert count == EPOCHS * STEPS  # a cadence of one step
    debug = [line for line in printed if line.startswith("[ADAPTIVE-NORM] last day: in mean=")]
    assert len(debug) == EPOCHS * STEPS


def test_without_the_monitor_nothing_is_read(caplog, stored_panel, tmp_path):
    printed = lines(caplog, stored_panel, tmp_path / "run", {"ENABLE_GRAD_MONITOR": "0"})
    assert not any("GRAD-MONITOR" in line for line in printed)
    assert "gradient" not in set(read_health(tmp_path / "run" / "health")["kind"].to_pylist())


@pytest.mark.parametrize("skipped", ["0", "1"])
def test_the_scan_before_training_can_be_left_out(caplog, stored_panel, tmp_path, skipped):
    """A feature that is never known: the scan names it; without the scan it is always the mean."""
    panel = read_panel(stored_panel[0])
    features = np.array(panel.features)
    features[..., 4] = np.nan
    write_panel(dataclasses.replace(panel, features=features), tmp_path / "panel")
    graph = build_graph(read_panel(tmp_path / "panel"), GraphConfig(neighbours=5))
    write_graph(graph, tmp_path / "graph")
    places = tmp_path / "panel", tmp_path / "graph"
    environment = {"SKIP_PRETRAIN_NAN_SCAN": skipped}
    if skipped == "0":
        with pytest.raises(InputError, match="feature_4: no known feature on any training date"):
            lines(caplog, places, tmp_path / "run", environment)
    else:
        assert lines(caplog, places, tmp_path / "run", environment)


def test_a_vanishing_group_is_a_warning_of_its_own(caplog, stored_panel, tmp_path, monkeypatch):
    begin = Trainer.fit

    def broken(self, folder, progress):
        self.model.normalized.register_forward_hook(lambda module, inputs, output: output.detach())
        self.model.projected.register_forward_hook(lambda module, inputs, output: output.detach())
        return begin(self, folder, progress)

    monkeypatch.setattr(Trainer, "fit", broken)
    printed = lines(caplog, stored_panel, tmp_path / "run")
    assert "[GRAD-MONITOR] backbone_projection: norm 0.00e+00 < 1e-07" in printed
    assert any(re.search(r"temporal_encoder: l2=0.00e\+00 .* grad=0/\d+ \(\d+ none\)", line)
               for line in printed)  # fmt: skip


def test_a_loose_warning_threshold_warns_of_every_group(caplog, stored_panel, tmp_path):
    printed = lines(caplog, stored_panel, tmp_path / "run", {"GRAD_MONITOR_WARN_NORM": "1000"})
    for group in GROUPS:
        assert any(re.fullmatch(rf"\[GRAD-MONITOR\] {group}: norm {NUMBER} < 1e\+03", line)
                   for line in printed), group  # fmt: skip


@pytest.mark.parametrize("every", ["1", "5"])
def test_a_finer_setting_reads_and_shows_more_often(caplog, stored_panel, tmp_path, every):
    printed = lines(caplog, stored_panel, tmp_path / "run", {"GRAD_MONITOR_EVERY": every})
    shown = sum("[GRAD-MONITOR] gat: l2=" in line for line in printed)
    assert shown == EPOCHS * len(range(1, STEPS + 1, int(every)))
