"""Which tensors of a merge are written, with the hash of the bytes up to there: what a killed merge goes on from."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from mango.checkpoints.failures import writing

_SEALED = "sealed"


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
    """A text file with one line for each mark (file, tensors, bytes, hash), and one when the folder is sealed.

    It lies beside the folder that it speaks of, so that it is still there while the folder is made durable and takes
    its place. A line is written after the bytes that it speaks of. Whoever reads it checks the hash, so that neither a
    torn line nor bytes that did not reach the disk do harm.

    Args:
        path: the file; a new one is made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.marks, self.sealed = read_journal(path)
        with writing(self._path):
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(self._file, b"\n")  # behind a line that was torn

    def add(self, name: str, mark: Mark) -> None:
        """Write a mark of the weight file ``name``."""
        line = f"{name} {mark.num_tensors} {mark.position} {mark.sha256}\n"
        with self._lock, writing(self._path):
            os.write(self._file, line.encode())

    def seal(self, sha256: str) -> None:
        """Write, durably, that the folder is whole and takes its place now.

        Args:
            sha256: hash of the folder's manifest, by which the folder is known again wherever it lies.
        """
        with self._lock, writing(self._path):
            os.write(self._file, f"{_SEALED} {sha256}\n".encode())
            os.fsync(self._file)
        self.sealed = sha256

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_journal(path: Path) -> tuple[dict[str, list[Mark]], str | None]:
    """Return the marks of each weight file, and the hash under which the folder was sealed, or None."""
    marks: dict[str, list[Mark]] = {}
    sealed = None
    if path.is_file():
        for line in path.read_text("ascii", errors="replace").splitlines():
            name, *rest = line.split(" ")
            if len(rest) == 3 and rest[0].isdigit() and rest[1].isdigit() and len(rest[2]) == 64:
                marks.setdefault(name, []).append(Mark(int(rest[0]), int(rest[1]), rest[2]))
            elif name == _SEALED and len(rest) == 1 and len(rest[0]) == 64:
                sealed = rest[0]
    return marks, sealed
