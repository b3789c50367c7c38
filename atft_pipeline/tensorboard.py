"""``python -m atft_pipeline.tensorboard``: health records as TensorBoard event files.

The health record is the one account of a run; these files are a view of it, written anew each
time. TensorBoard is no dependency of the project: ``make tensorboard`` installs it when asked for.
"""

import argparse
import shutil
from pathlib import Path

from atft_model.training.health_record import read_health
from atft_pipeline.resources import Market, data_folder

CURVES = (
    "gradient",
    "update",
    "activation_gradient",
    "encoder_spread",
    "loss",
    "step",
    "score_std",
    "epoch",
    "guard",
)
"""Kinds of readings that are curves over steps."""


def write_events(models: Path, out: Path) -> list[str]:
    """Writes each run's readings below ``out``; returns the run ids.

    A reading is the scalar ``kind/name/metric`` at its step, such as
    ``gradient/temporal_encoder/l2``.
    """
    from torch.utils.tensorboard import SummaryWriter

    written = []
    for health in sorted(models.glob("*/health")):
        if not any(health.glob("part-*.parquet")):
            continue
        run_id = health.parent.name
        shutil.rmtree(out / run_id, ignore_errors=True)
        with SummaryWriter(str(out / run_id)) as writer:
            for row in read_health(health).to_pylist():
                if row["kind"] in CURVES:
                    tag = f"{row['kind']}/{row['name']}/{row['metric']}"
                    writer.add_scalar(tag, row["value"], row["step"])
        written.append(run_id)
    return written


def main(arguments: list[str] | None = None) -> int:
    """Converts every run of the data set; prints where the event files lie."""
    parser = argparse.ArgumentParser(prog="python -m atft_pipeline.tensorboard")
    parser.add_argument("--out", type=Path, help="folder of event files (default: the data set's)")
    options = parser.parse_args(arguments)
    root = data_folder(None, None, Market().name())
    out = options.out or root / "tensorboard"
    written = write_events(root / "models", out)
    print(f"{len(written)} runs written to {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
