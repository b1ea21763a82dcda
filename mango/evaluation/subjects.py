"""What is compared in an evaluation, and where it lies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mango.blocks import BlockStore
from mango.merging import DOCUMENT_NAME, load_document
from mango.merging.summary import summarise


@dataclass(frozen=True)
class Subjects:
    """Where what is compared lies.

    Args:
        fused: folder of the fused model.
        store: the blocks, through which the source models are found.
        merged: folder with a merged checkpoint in each of its folders; left out where it does not exist.
        controls: folder with the controls; left out where it does not exist.
    """

    fused: Path
    store: BlockStore
    merged: Path
    controls: Path


LABELS = {"self_stitch": "Self-stitch", "continued_trunk": "Trunk trained further"}
NOTES = {
    "self_stitch": "the same adapters and routers, with the trunk's own spans as every expert: capacity without fusion",
    "continued_trunk": "the trunk, all weights trained on the sequences that the fused model was trained on",
}


def merge_facts(folder: Path) -> dict[str, Any] | None:
    """Return how a merged checkpoint was made, as far as its document says; None where it has none.

    Raises:
        ConfigError: its document is wrong.
    """
    path = folder / DOCUMENT_NAME
    if not path.is_file():
        return None
    found = summarise(load_document(path))
    return {"method": found.method, "models": list(found.models), "parameters": found.parameters}


def saved_models(subjects: Subjects) -> Iterator[tuple[str, str, str, Path, str]]:
    """Yield name, label, kind, folder and note of every model in a folder: static merges, then controls.

    Args:
        subjects: where they lie.
    """
    for root, prefix in ((subjects.merged, "merge_"), (subjects.controls, "")):
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            if (folder / "config.json").is_file():
                kind = "control" if folder.name in LABELS and not prefix else "merge"
                note = NOTES.get(folder.name, "one static model, merged from the experts")
                yield f"{prefix}{folder.name}", LABELS.get(folder.name, f"Merge {folder.name}"), kind, folder, note
