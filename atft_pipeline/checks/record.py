"""The verdicts on a run, kept in its folder: what was found, of which weights.

``accepted_model`` and ``latest_scores`` read them. They belong to one run and one set of weights,
so no other run's verdict can pass for this one's.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from atft_model.data.artifacts import write_text_atomically
from atft_pipeline.checks.outcome import Outcome


@dataclass(frozen=True)
class RunVerdicts:
    """What the checks of one asset found on a run.

    Attributes:
        checkpoint_hash: Of the weights that were judged.
        failed_integrity: Names of the checks that block.
        failed_skill: Names of the skill verdicts that failed.
    """

    checkpoint_hash: str
    failed_integrity: tuple[str, ...]
    failed_skill: tuple[str, ...]


def write_verdicts(
    folder: Path, asset: str, outcomes: Iterable[Outcome], skill: Collection[str],
    checkpoint_hash: str,
) -> None:  # fmt: skip
    """Stores the verdicts of one asset's checks in the run's folder.

    Args:
        skill: Names of the checks that judge skill; the others judge integrity.
    """
    rows = [
        {"name": o.name, "passed": o.passed, "severity": o.severity,
         "kind": "skill" if o.name in skill else "integrity",
         "figure": o.figure, "threshold": o.threshold}
        for o in outcomes
    ]  # fmt: skip
    body = {"checkpoint_hash": checkpoint_hash, "checks": rows}
    write_text_atomically(_path(folder, asset), json.dumps(body, indent=1))


def read_verdicts(folder: Path, asset: str) -> RunVerdicts | None:
    """The verdicts of one asset's checks on a run; None where it was never judged."""
    path = _path(folder, asset)
    if not path.exists():
        return None
    body = json.loads(path.read_text())
    failed = [row for row in body["checks"] if not row["passed"] and row["severity"] == "ERROR"]
    by_kind = {kind: tuple(row["name"] for row in failed if row["kind"] == kind)
               for kind in ("integrity", "skill")}  # fmt: skip
    return RunVerdicts(body["checkpoint_hash"], by_kind["integrity"], by_kind["skill"])


def _path(folder: Path, asset: str) -> Path:
    return folder / f"verdicts_{asset}.json"
