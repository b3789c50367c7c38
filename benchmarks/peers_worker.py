"""Trains one peer's model on windows of a stored panel: run by ``peers.py`` in ``.venv-peers``.

Prints one line of JSON. Only the step is timed (forward, quantile loss, backward, AdamW): windows
are cut and stacked before, so no data loader of a peer counts against it. Each forecasts one
horizon, where ours has four.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Forward = Callable[[Tensor], Tensor]


def pytorch_forecasting(features: int, options: argparse.Namespace) -> tuple[nn.Module, Forward]:
    """``TemporalFusionTransformer``; ``--width`` is the size of its networks per feature."""
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.metrics import QuantileLoss

    names = [f"feature_{number}" for number in range(features)]
    model = TemporalFusionTransformer(
        hidden_size=options.hidden, attention_head_size=options.heads, lstm_layers=1, dropout=0.1,
        hidden_continuous_size=options.width, output_size=len(QUANTILES),
        loss=QuantileLoss(list(QUANTILES)), max_encoder_length=options.lookback,
        time_varying_reals_encoder=names, time_varying_reals_decoder=["time"],
        x_reals=[*names, "time"],
    )  # fmt: skip
    model.transform_output = lambda prediction, target_scale, loss=None: prediction

    def forward(x: Tensor) -> Tensor:
        count = len(x)
        cont = torch.cat([x, x.new_zeros(count, options.lookback, 1)], dim=-1)
        batch = {
            "encoder_cont": cont, "decoder_cont": cont[:, :1],
            "encoder_cat": x.new_zeros(count, options.lookback, 0, dtype=torch.long),
            "decoder_cat": x.new_zeros(count, 1, 0, dtype=torch.long),
            "encoder_lengths": torch.full((count,), options.lookback),
            "decoder_lengths": torch.ones(count, dtype=torch.long),
            "target_scale": x.new_ones(count, 2),
        }  # fmt: skip
        return model(batch)["prediction"][:, 0]

    return model, forward


def neuralforecast(features: int, options: argparse.Namespace) -> tuple[nn.Module, Forward]:
    """``TFT``; its networks per feature always have the full width."""
    from neuralforecast.losses.pytorch import MQLoss
    from neuralforecast.models import TFT

    model = TFT(
        h=1, input_size=options.lookback, hidden_size=options.hidden, n_head=options.heads,
        hist_exog_list=[f"feature_{number}" for number in range(features)],
        loss=MQLoss(quantiles=list(QUANTILES)), dropout=0.1,
    )  # fmt: skip

    def forward(x: Tensor) -> Tensor:
        batch = {
            "insample_y": x[:, :, :1], "hist_exog": x, "futr_exog": None, "stat_exog": None,
        }  # fmt: skip
        return model(batch)[:, 0]

    return model, forward


PEERS = {"pytorch-forecasting": pytorch_forecasting, "neuralforecast": neuralforecast}


def windows(folder: Path, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random windows of the panel [batch, lookback, features], and their first target."""
    features, targets = (np.load(folder / f"{name}.npy") for name in ("features", "targets"))
    rng = np.random.default_rng(options.seed)
    dates, stocks = features.shape[:2]
    last = rng.integers(options.lookback, dates, options.batch)
    stock = rng.integers(0, stocks, options.batch)
    days = last[:, None] + np.arange(1 - options.lookback, 1)
    x = torch.from_numpy(features[days, stock[:, None]])
    return x, torch.from_numpy(targets[last, stock, 0])


def pinball(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean quantile loss of predictions [batch, quantiles]."""
    error = target[:, None] - prediction
    level = torch.tensor(QUANTILES)
    return torch.maximum(level * error, (level - 1) * error).mean()


def main() -> None:
    """Warms up once, then times steps."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--precision", default="32", choices=("32", "bf16-mixed"))
    parser.add_argument("--lookback", type=int, required=True)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    x, target = windows(options.folder, options)
    model, forward = PEERS[options.peer](x.shape[-1], options)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=True)
    took = []
    for _ in range(options.steps + 1):
        started = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision != "32"):
            prediction = forward(x)
        loss = pinball(prediction.float(), target)
        loss.backward()
        optimizer.step()
        took.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    assert torch.isfinite(loss)
    wall, cpu = (sum(step[side] for step in took[1:]) for side in (0, 1))
    count = options.steps * options.batch
    print(json.dumps({
        "windows_per_second": count / wall, "windows_per_cpu_second": count / cpu,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(), "torch": torch.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
