"""Which tensors of a merge are written, with the hash of the bytes up to there: what a killed merge goes on from."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from mango.checkpoints.failures import writing

JOURNAL_NAME = "progress"


@dataclass(frozen=True)
class Mark:
    """A place in a weight file behind a finished tensor.

    Attributes:
        num_tensors: tensors of the file that are finished.
        position: bytes of the file that are finished.
        sha256: hash of these bytes.
    """

    num_tensors: int
    position: int
    sha256: str


class Journal:
    """A text file with one line for each mark: file, tensors, bytes, hash.

    A line is written after the bytes that it speaks of. Whoever reads it checks the hash, so that neither a torn line
    nor bytes that did not reach the disk do harm.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_NAME
        self._lock = threading.Lock()
        self.marks: dict[str, list[Mark]] = {}
        if self._path.is_file():
            for line in self._path.read_text("ascii", errors="replace").splitlines():
                name, *rest = line.split(" ")
                if len(rest) == 3 and rest[0].isdigit() and rest[1].isdigit() and len(rest[2]) == 64:
                    self.marks.setdefault(name, []).append(Mark(int(rest[0]), int(rest[1]), rest[2]))
        with writing(self._path):
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(self._file, b"\n")  # behind a line that was torn

    def add(self, name: str, mark: Mark) -> None:
        """Write a mark of the weight file ``name``."""
        line = f"{name} {mark.num_tensors} {mark.position} {mark.sha256}\n"
        with self._lock, writing(self._path):
            os.write(self._file, line.encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
