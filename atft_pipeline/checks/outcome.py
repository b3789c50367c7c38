"""What a check found, in the form that Dagster, the terminal and the report all show."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import dagster as dg

from atft_pipeline.storage import Storage

Kind = Literal["integrity", "skill"]
PARTITION = "partition"
"""Name of the metadata of a check that says which partition was judged."""


@dataclass(frozen=True)
class Outcome:
    """One verdict with its evidence.

    Attributes:
        name: The fact that the check states, such as ``encoder_gradients_nonzero``.
        passed: Whether it holds.
        figure: What was measured, in words and numbers for a person.
        threshold: What it was measured against.
        severity: Of a failure; a WARN neither stops anything nor bars the model.
        numbers: Figures that the UI plots over time.
        details: Markdown shown with the verdict, such as a table of what is out of bounds.
    """

    name: str
    passed: bool
    figure: str
    threshold: str
    severity: Literal["ERROR", "WARN"] = "ERROR"
    numbers: Mapping[str, float] = field(default_factory=dict)
    details: str | None = None

    @property
    def stops(self) -> bool:
        """Whether what was checked must not be used."""
        return not self.passed and self.severity == "ERROR"

    def result(self, asset: str, partition: str | None = None) -> dg.AssetCheckResult:
        """The verdict as Dagster records it.

        Args:
            partition: Of a partitioned asset. Dagster records none with a check (but in preview),
                and one period that holds would pass for the recovery of another.
        """
        metadata: dict[str, Any] = {"figure": self.figure, "threshold": self.threshold}
        if partition is not None:
            metadata[PARTITION] = partition
        metadata |= {name: _number(value) for name, value in self.numbers.items()}
        if self.details:
            metadata["details"] = dg.MetadataValue.md(self.details)
        return dg.AssetCheckResult(
            asset_key=asset,
            check_name=self.name,
            passed=self.passed,
            severity=dg.AssetCheckSeverity[self.severity],
            description=f"{self.figure} (expected: {self.threshold})",
            metadata=metadata,
        )


def spec(asset: str, name: str, description: str, kind: Kind = "integrity") -> dg.AssetCheckSpec:
    """A check of an asset. Integrity failures block and fail the run; skill failures do not."""
    return dg.AssetCheckSpec(
        name=name,
        asset=asset,
        description=description,
        blocking=kind == "integrity",
        metadata={"kind": kind},
    )


def verdicts(
    asset: str, outcomes: Iterable[Outcome], value: Any, metadata: Mapping[str, Any],
    storage: Storage | None = None, partition: str | None = None,
) -> Iterator[dg.AssetCheckResult | dg.Output]:  # fmt: skip
    """Yields every verdict, and the output only if none of them stops it.

    Args:
        storage: Where a table that is stopped is kept beside the good one; only for tables.
        partition: Of a partitioned asset.
    """
    outcomes = list(outcomes)
    stopped = any(outcome.stops for outcome in outcomes)
    if stopped and storage is not None:
        storage.write_rejected(asset, value)
    for outcome in outcomes:
        yield outcome.result(asset, partition)
    if not stopped:
        yield dg.Output(value, metadata=dict(metadata))


def markdown_table(headers: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table of anything."""
    headers = list(headers)
    lines = [" | ".join(headers), " | ".join("---" for _ in headers)]
    lines += [" | ".join(_cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float) -> Any:
    return int(value) if isinstance(value, int) else float(value)
