"""The end of writing a folder: every file hashed and durable, with as few waits for the disk as there can be."""

from __future__ import annotations

import ctypes
import os
import stat
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from mango.checkpoints.hashing import Digests, hash_file
from mango.checkpoints.manifest import MANIFEST_NAME, entry_of, list_files, manifest_text
from mango.checkpoints.siblings import FILE_MODE, FOLDER_MODE

CHUNK_BYTES = 1 << 23
THREADS_FROM_BYTES = 1 << 22
_WAITS = 8  # for the disk, at the same time: a journalling file system then commits once for all of them
_FEW = 4  # files that are sooner waited for one by one
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE of linux/fs.h

_Stamp = tuple[int, int, int, int]
_known: dict[_Stamp, Digests] = {}
"""Hashes that were computed while files were written, by what tells whether a file is still the same."""


def remember_hashes(path: Path, digests: Digests) -> None:
    """Keep the hashes of a file that was just written, so that sealing its folder does not read it again."""
    _known[_stamp(path.stat())] = digests


def start_writing(descriptor: int, start: int, length: int) -> None:
    """Ask the kernel to begin to write a part of a file to disk, and do not wait; nothing where it cannot."""
    if sys.platform == "linux":
        _libc().sync_file_range(descriptor, ctypes.c_longlong(start), ctypes.c_longlong(length), _START_WRITING)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def seal(folder: Path) -> None:
    """Write the manifest of everything below ``folder``, and make all of it durable.

    Each file is hashed while the disk already writes it. A file that has another name too keeps its mode, which the
    other name shares; every other one gets mode 0644.

    Raises:
        CheckpointError: something below is neither a file nor a folder.
        OSError: something cannot be written.
    """
    names = list_files(folder)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    places = [folder / name for name in names]
    folders = [Path(root, name) for root, below, _ in os.walk(folder) for name in below]
    for path in folders:
        path.chmod(FOLDER_MODE)
    if sum(path.stat().st_size for path in places) < THREADS_FROM_BYTES:  # sooner done than threads are there
        digests = list(map(_hash, places))
    else:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
            digests = list(pool.map(_hash, places))
    entries = {
        name: entry_of(found, path.stat().st_size) for name, path, found in zip(names, places, digests, strict=True)
    }
    manifest = folder / MANIFEST_NAME
    manifest.write_text(manifest_text(entries), encoding="utf-8")
    manifest.chmod(FILE_MODE)
    with manifest.open("rb") as file:
        start_writing(file.fileno(), 0, 0)  # so that it is with the first wait below
    _sync_all([*places, manifest, *folders, folder])


def make_durable(folder: Path) -> None:
    """Wait until everything below a folder is on disk, with its names.

    Raises:
        OSError: something cannot be written.
    """
    _sync_all([*folder.rglob("*"), folder])


def _sync_all(paths: Sequence[Path]) -> None:
    if len(paths) <= _FEW:
        for path in paths:
            _make_durable(path)
        return
    with ThreadPoolExecutor(min(_WAITS, len(paths))) as pool:
        list(pool.map(_make_durable, paths))


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _hash(path: Path) -> Digests:
    with path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if found.st_nlink == 1 and stat.S_IMODE(found.st_mode) != FILE_MODE:
            os.fchmod(file.fileno(), FILE_MODE)
        start_writing(file.fileno(), 0, 0)
        known = _known.pop(_stamp(found), None)
    return hash_file(path) if known is None else known


def _make_durable(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
