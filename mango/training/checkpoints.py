"""Checkpoints that a killed training goes on from: each is whole or does not exist, and knows its run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mango import console
from mango.checkpoints import MANIFEST_NAME, replace_folder, verify, write_file
from mango.errors import IntegrityError

RUN_FILE = "run.json"
KEPT = 2
"""Checkpoints that stay: the newest, and the one before it."""


@contextmanager
def new_checkpoint(folder: Path, step: int, fingerprint: str, state: Mapping[str, Any]) -> Iterator[Path]:
    """Fill a new checkpoint, which exists when the body is done; older ones go away then.

    Args:
        folder: the checkpoints of a run.
        step: how many steps are done.
        fingerprint: of everything that the run depends on; a checkpoint of another run is not resumed.
        state: numbers to keep with it.

    Yields:
        The new folder.
    """
    with replace_folder(folder / f"checkpoint-{step}", is_output=False) as new:
        yield new
        write_file(new / RUN_FILE, json.dumps({"fingerprint": fingerprint, "step": step, **state}) + "\n")
    for _, path in _whole(folder)[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(folder: Path, fingerprint: str) -> Path | None:
    """Return the newest complete checkpoint of the same run, if there is one.

    One that is damaged is passed over, with a line that says so.
    """
    for _, path in _whole(folder):
        try:
            verify(path)
            if read_state(path)["fingerprint"] == fingerprint:
                return path
        except (IntegrityError, OSError, ValueError, KeyError) as error:
            console.note(f"{path}: not resumed: {error}")
    return None


def read_state(path: Path) -> dict[str, Any]:
    """Return the fingerprint, the step and the numbers that were kept with a checkpoint."""
    found: dict[str, Any] = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    return found


def step_of(path: Path) -> int:
    """Return the step of a checkpoint."""
    return int(path.name.rpartition("-")[2])


def how_it_resumes(work: Path) -> str:
    """Return a clause about where the trainings whose checkpoints lie below a folder would go on."""
    newest = [(path.name, found[0]) for path in sorted(work.glob("*")) if (found := _whole(path))]
    clauses = [f"{name!r} goes on from step {step} ({place.as_posix()})" for name, (step, place) in newest]
    return ", ".join(clauses) or "it starts over, since no checkpoint is whole yet"


def _whole(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints with a manifest, which is written last, newest first."""
    found = [mark.parent for mark in folder.glob(f"checkpoint-*/{MANIFEST_NAME}")]
    return sorted(((step_of(path), path) for path in found if path.name[11:].isdecimal()), reverse=True)
