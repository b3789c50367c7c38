"""layer_norm, corrected fan_san and none on the built-in market.

``python benchmarks/adaptive_norm.py`` writes ``benchmarks/results/adaptive_norm.json`` and prints
the table of docs/adaptive_norm.md. ``--historical`` adds the spelling that never worked.
"""

from pathlib import Path

from ablation import arguments, compared, run_variants

RESULT = Path(__file__).parent / "results" / "adaptive_norm.json"


def main() -> None:
    """Trains and compares."""
    parser = arguments(__doc__)
    parser.add_argument("--historical", action="store_true")
    options = parser.parse_args()
    options.out = options.out or RESULT
    names = ["layer_norm", "fan_san", "none"] + ["fan_san_historical"] * options.historical
    records = run_variants({name: {"model": {"adaptive_norm": name}} for name in names}, options)
    print(compared(records, names, "layer_norm"))


if __name__ == "__main__":
    main()
