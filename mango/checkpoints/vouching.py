"""Hashes checked at load: each file of a complete folder once in a process, large ones while they load."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mango.checkpoints.failures import reading
from mango.checkpoints.hashing import Digests, blake3_file, hash_file, sha256_file
from mango.checkpoints.manifest import MANIFEST_NAME, compare_hashes, list_files, read_manifest
from mango.errors import IntegrityError

_SMALL_BYTES = 1 << 22
_PACKAGE_NAME = "mango.json"  # stands in packages, which are never without a manifest
_Identity = tuple[int, int, int, int, int]
_known: dict[_Identity, dict[str, str]] = {}
"""Hashes of files that this process has read, by what changes when a file does: device, inode, size, both times."""
_lock = threading.Lock()


def check_hashes(folder: Path | str) -> None:
    """Check every file of a folder against its manifest, unless this process has done so and no file has changed.

    A folder without a manifest is no output of Mango, and nothing vouches for it: it passes, unless it is a package,
    whose manifest is then gone. A folder inside an output, such as one model of several, is checked
    against the output's manifest.

    Raises:
        IntegrityError: the manifest is gone, or a file is missing, surplus, or differs from its hash; it is named.
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
        _compare(path, before[path], entries[path])
    large = [path for path in entries if before[path][2] > _SMALL_BYTES and before[path] not in _known]
    for path in set(entries) - set(small) - set(large):
        _compare(path, before[path], entries[path])
    if not large:
        yield
    else:
        with ThreadPoolExecutor(min(len(large), os.cpu_count() or 1), "mango-hash") as pool:
            jobs: list[Future[None]] = [pool.submit(_compare, path, before[path], entries[path]) for path in large]
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


def remember_digests(path: Path, digests: Digests) -> None:
    """Keep the hashes of a file that this process has just written or read whole, so that none reads it again."""
    with _lock:
        _known[_identity(path)] = digests._asdict()


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, from memory where this process has hashed the file and nothing changed it since.

    Raises:
        CheckpointError: the file cannot be read.
    """
    identity = _identity(path)
    found = _known.get(identity, {}).get("sha256")
    if found is None:
        digests = hash_file(path)
        found = digests.sha256
        if _identity(path) == identity:
            remember_digests(path, digests)
    return found


def _vouched(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield (file, entry of the manifest) of each file of a folder; nothing where no manifest covers it."""
    folder = Path(os.path.realpath(folder))
    home, prefix = folder, ""
    if not (folder / MANIFEST_NAME).is_file():
        home, prefix = folder.parent, f"{folder.name}/"
        if not (home / MANIFEST_NAME).is_file():
            if (folder / _PACKAGE_NAME).exists():
                raise IntegrityError(
                    f"{folder}: is a package, it holds {_PACKAGE_NAME}, but its {MANIFEST_NAME}, which vouches for "
                    "every file, is gone; bring the package back or build it again"
                )
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


def _compare(path: Path, identity: _Identity, wanted: Mapping[str, Any]) -> None:
    key, compute = ("blake3", blake3_file) if "blake3" in wanted else ("sha256", sha256_file)
    found = _known.get(identity, {})
    if key not in found:
        found = {**found, key: compute(path)}
        if _identity(path) == identity:
            with _lock:
                _known[identity] = found
    compare_hashes(path, found, wanted)
