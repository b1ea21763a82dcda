"""Hashes checked at load: each file of a complete folder once in a process, large ones while they load."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mango.checkpoints.failures import reading
from mango.checkpoints.manifest import MANIFEST_NAME, list_files, read_manifest, sha256_file
from mango.errors import IntegrityError

_SMALL_BYTES = 1 << 22
_Identity = tuple[int, int, int, int, int]
_known: dict[_Identity, str] = {}
"""SHA-256 of files hashed in this process, by what changes when a file does: device, inode, size, both times."""
_lock = threading.Lock()


def check_hashes(folder: Path | str) -> None:
    """Check every file of a folder against its manifest, unless this process has done so and no file has changed.

    A folder without a manifest is no output of Mango, and nothing vouches for it: it passes. A folder inside an
    output, such as one model of several, is checked against the output's manifest.

    Raises:
        IntegrityError: a file is missing, surplus, or differs from its hash; the message names it.
        CheckpointError: a file cannot be read, or something in the folder is no plain file.
    """
    with checked_hashes(folder):
        pass


@contextmanager
def checked_hashes(folder: Path | str) -> Iterator[None]:
    """Check a folder's files as `check_hashes` does, large ones while the body runs.

    The body may begin to load weights, which are numbers and select nothing; configurations, tokenizers and every
    other small file have been checked before it starts. What it loads must not be used before the end: there the
    last hash is known, and no file may have changed meanwhile.

    Raises:
        IntegrityError: a file is missing, surplus, differs from its hash, or was changed while it was loaded.
        CheckpointError: a file cannot be read, or something in the folder is no plain file.
    """
    entries = dict(_vouched(Path(folder)))
    before = {path: _identity(path) for path in entries}
    for path, wanted in entries.items():
        if before[path][2] != wanted["size"]:
            raise IntegrityError(f"{path}: {before[path][2]} bytes; {MANIFEST_NAME} says {wanted['size']}")
    small = [path for path in entries if before[path][2] <= _SMALL_BYTES]
    for path in small:
        _compare(path, before[path], entries[path]["sha256"])
    large = [path for path in entries if before[path][2] > _SMALL_BYTES and _known.get(before[path]) is None]
    for path in set(entries) - set(small) - set(large):
        _compare(path, before[path], entries[path]["sha256"])
    if not large:
        yield
    else:
        with ThreadPoolExecutor(min(len(large), os.cpu_count() or 1), "mango-hash") as pool:
            jobs: list[Future[None]] = [
                pool.submit(_compare, path, before[path], entries[path]["sha256"]) for path in large
            ]
            try:
                yield
            except BaseException:
                for job in jobs:
                    job.cancel()
                raise
            for job in jobs:
                job.result()
    for path, identity in before.items():
        if _identity(path) != identity:
            raise IntegrityError(f"{path}: was changed while it was loaded; open the folder again")


def forget() -> None:
    """Forget what was hashed, so that the next check reads every file again."""
    with _lock:
        _known.clear()


def remember_hash(path: Path, digest: str) -> None:
    """Keep the hash of a file that this process has just written whole, so that opening it does not read it again."""
    with _lock:
        _known[_identity(path)] = digest


def _vouched(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (file, entry of the manifest) of each file of a folder; nothing where no manifest covers it."""
    folder = Path(os.path.realpath(folder))
    home, prefix = folder, ""
    if not (folder / MANIFEST_NAME).is_file():
        home, prefix = folder.parent, f"{folder.name}/"
        if not (home / MANIFEST_NAME).is_file():
            return
    wanted = {
        name.removeprefix(prefix): entry for name, entry in read_manifest(home).items() if name.startswith(prefix)
    }
    if not wanted and prefix:
        return  # the manifest beside it is about something else
    found = list_files(folder)
    if missing := sorted(set(wanted) - set(found)):
        raise IntegrityError(f"{folder / missing[0]}: is in {MANIFEST_NAME} but missing; write the folder again")
    if surplus := sorted(set(found) - set(wanted)):
        raise IntegrityError(f"{folder / surplus[0]}: is not in {MANIFEST_NAME}; remove it or write the folder again")
    yield from ((folder / name, wanted[name]) for name in found)


def _identity(path: Path) -> _Identity:
    with reading(path):
        found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _compare(path: Path, identity: _Identity, wanted: str) -> None:
    digest = _known.get(identity)
    if digest is None:
        digest = sha256_file(path)
        if _identity(path) == identity:
            with _lock:
                _known[identity] = digest
    if digest != wanted:
        raise IntegrityError(
            f"{path}: SHA-256 is {digest[:12]}..., {MANIFEST_NAME} says {wanted[:12]}...: "
            "the file was changed or damaged; write the folder again"
        )
