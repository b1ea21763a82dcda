"""Room on the disk, asked for before anything is computed."""

from __future__ import annotations

import os
from pathlib import Path

from mango.config import Settings
from mango.errors import CheckpointError


def check_room(path: Path | str, num_bytes: int) -> None:
    """Refuse to begin what would not fit on the disk.

    The older version stays until the new one is whole, so what it takes is not counted as free. What is left over
    must be no less than ``MANGO_DISK_RESERVE``.

    Args:
        path: the output; missing parents are not made.
        num_bytes: what is going to be written, about.

    Raises:
        CheckpointError: there is less room; the message says how much is needed and how much is free.
        ConfigError: a setting in the environment is wrong.
    """
    reserve = int(Settings.from_environ().disk_reserve)
    free = free_bytes(path)
    if num_bytes + reserve > free:
        raise CheckpointError(
            f"{path}: no room to write: needs {num_bytes:,} bytes and {reserve:,} in reserve (MANGO_DISK_RESERVE), "
            f"{free:,} are free; what was there before is unchanged. Free disk space, or choose another folder"
        )


def free_bytes(path: Path | str) -> int:
    """Return how much this user may still write on the disk that holds ``path``, or would hold it."""
    place = Path(os.path.realpath(path))
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def size_of(folder: Path | str) -> int:
    """Return the size in bytes of all files below a folder, links followed; 0 where there is none."""
    total = 0
    for root, _, files in os.walk(folder, followlinks=True):
        total += sum(Path(root, name).stat().st_size for name in files)
    return total
