"""A learned structure as a version on disk: its record, which stock is in which group, and of what.

Where nothing could be learned, the version holds the reason instead of a record, so that what
reads it can say why it goes on without.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from atft_model.data.artifacts import current_version, prune, text_hash, write_text_atomically
from atft_model.structure.checks import check_structure
from atft_model.structure.record import StructureRecord, read_record, write_record

TIMED = ("seconds", "processor_seconds", "health")
"""Fields of a record that differ between two runs that learned the same."""


@dataclass(frozen=True)
class StoredStructure:
    """What ``learned_structure`` left.

    Attributes:
        record: None where nothing was learned.
        reason: Why nothing was learned; empty where something was.
        group_of: Code to the name of its group, for every stock in one.
        panel_hash: The panel that it was learned from.
    """

    record: StructureRecord | None
    reason: str
    group_of: Mapping[str, str]
    panel_hash: str

    def refusal(self, panel_hash: str) -> str | None:
        """Why no stock graph may be made of it; None where one may.

        Recomputed from the record: a verdict that somebody stored is not evidence.
        """
        if self.panel_hash != panel_hash:
            return (
                f"learned_structure is of panel {self.panel_hash}, not of {panel_hash}; "
                "materialize it again"
            )
        if self.record is None:
            return f"nothing was learned: {self.reason}"
        failed = [v for v in check_structure(self.record) if not v.passed and v.severity == "ERROR"]
        if failed:
            return "; ".join(f"{v.name}: {v.message}" for v in failed)
        return None


def publish_structure(structure: StoredStructure, root: Path) -> str:
    """Stores a version under ``root``, points ``current.json`` at it, and removes the others.

    Returns:
        Its content hash; seconds do not enter it.
    """
    facts = {
        "reason": structure.reason,
        "group_of": dict(structure.group_of),
        "panel_hash": structure.panel_hash,
    }
    learned = asdict(structure.record) if structure.record else {}
    untimed = {key: value for key, value in learned.items() if key not in TIMED}
    version = text_hash(json.dumps(facts | untimed, sort_keys=True))
    root.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".building-", dir=root))
    try:
        if structure.record is not None:
            write_record(structure.record, building)
        write_text_atomically(building / "groups.json", json.dumps(facts, indent=1))
        if not (root / version).exists():
            os.replace(building, root / version)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    write_text_atomically(root / "current.json", json.dumps({"hash": version}))
    prune(root, keep=set())
    return version


def read_structure(root: Path) -> StoredStructure:
    """The current version under ``root``.

    Raises:
        InputError: nothing was published there, or by another version of this software.
    """
    folder = current_version(root, "learned_structure")
    facts = json.loads((folder / "groups.json").read_text())
    record = None if facts["reason"] else read_record(folder)
    return StoredStructure(record, facts["reason"], facts["group_of"], facts["panel_hash"])
