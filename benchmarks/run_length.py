"""What batching runs of consecutive dates costs in rank IC: ``python benchmarks/run_length.py``.

Batches of the same number of dates, in runs of 1 (single shuffled dates) up to all of them, the
same number of steps: every variant sees the same number of windows. Prints the table of
docs/performance.md and writes ``benchmarks/results/run_length.json``.
"""

from pathlib import Path

import numpy as np
from ablation import arguments, compared, run_variants

from atft_model.data.batches import runs_per_batch
from atft_model.data.panel import read_panel, window_observed

RESULT = Path(__file__).parent / "results" / "run_length.json"
LOOKBACK = 20


def windows_per_date(data: Path) -> float:
    """Scorable windows of a training date, on average."""
    panel = read_panel(data / "panel")
    scorable = window_observed(np.asarray(panel.observed), LOOKBACK) & np.asarray(panel.tradable)
    counts = scorable[slice(*panel.split.train)].sum(axis=1)
    return float(counts[counts > 0].mean())


def main() -> None:
    """Trains and compares."""
    parser = arguments(__doc__)
    parser.add_argument("--dates", type=int, default=8, help="dates in a batch")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 2, 4, 8])
    options = parser.parse_args()
    options.out = options.out or RESULT
    # Rounded up to whole runs, so a little less than the dates' windows asks for exactly them.
    windows = int(0.95 * options.dates * min(windows_per_date(data) for data in options.data))
    for length in options.lengths:
        for data in options.data:
            if runs_per_batch(windows, length, windows_per_date(data)) * length != options.dates:
                raise SystemExit(f"{data}: runs of {length} dates do not fill {options.dates}")
    variants = {
        f"runs of {length}": {"training": {"batch_windows": windows, "run_length": length}}
        for length in options.lengths
    }
    records = run_variants(variants, options)
    print(compared(records, list(variants), "runs of 1" if 1 in options.lengths
                   else f"runs of {options.lengths[0]}"))  # fmt: skip


if __name__ == "__main__":
    main()
