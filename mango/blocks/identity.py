"""Whether a weight file still is the one that was extracted, told without reading it."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from mango.blocks.manifest import StoredFile
from mango.checkpoints import MANIFEST_NAME, known_sha256, read_manifest
from mango.errors import CheckpointError, IntegrityError

_SMALL_BYTES = 1 << 22
_BLOB = re.compile(r"[0-9a-f]{64}")


def identify(files: Iterable[Path], folder: Path, place: Callable[[Path], str]) -> tuple[StoredFile, ...]:
    """Return what tells weight files from changed ones, and their hashes where their source says them.

    Args:
        files: the files; their headers are read, and nothing else of them.
        folder: the model folder that they lie in.
        place: how the store writes a path.

    Raises:
        CheckpointError: a file cannot be read.
    """
    vouched = read_manifest(folder) if (folder / MANIFEST_NAME).is_file() else {}
    found = []
    for file in files:
        at = _stat(file)
        found.append(
            StoredFile(
                file=place(file),
                size=at.st_size,
                modified_ns=at.st_mtime_ns,
                changed_ns=at.st_ctime_ns,
                inode=at.st_ino,
                header_sha256=header_sha256(file),
                sha256=vouched[file.name]["sha256"] if file.name in vouched else _hub_sha256(file),
            )
        )
    return tuple(found)


def check_vouched(folder: Path) -> None:
    """Check a model folder against its manifest, large files by their size alone; nothing where there is none.

    Raises:
        IntegrityError: a file is missing, has another size, or is small and has another hash.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return
    for name, entry in sorted(read_manifest(folder).items()):
        file = folder / name
        if not file.is_file():
            raise IntegrityError(f"{file}: is in {MANIFEST_NAME} but missing; write the folder again")
        size = file.stat().st_size
        if size != entry["size"]:
            raise IntegrityError(f"{file}: {size} bytes; {MANIFEST_NAME} says {entry['size']}; write the folder again")
        if size <= _SMALL_BYTES and known_sha256(file) != entry["sha256"]:
            raise IntegrityError(
                f"{file}: its SHA-256 is not that of {MANIFEST_NAME}: the file was changed or damaged; write the "
                "folder again"
            )


def check_unchanged(file: Path, stored: StoredFile, owner: str) -> None:
    """Refuse a file that is not the one that was extracted.

    Where size, times and inode are the same, so is the file. Where they differ, the hash of the whole file decides if
    the store knows it, as it does of files from the Hub and of Mango's own outputs: then it is read once.

    Args:
        file: where it is now.
        stored: what extraction noted.
        owner: what lies in it, for messages (``"block 3 of 'code'"``).

    Raises:
        CheckpointError: the file is missing.
        IntegrityError: it was changed or replaced.
    """
    try:
        at = _stat(file)
    except CheckpointError as error:
        raise CheckpointError(
            f"{file}: missing, and {owner} lies in it; bring the model back or run extract-blocks again"
        ) from error
    if at.st_size < stored.size:
        raise IntegrityError(
            f"{file}: {owner} lies in a file of {stored.size} bytes, but it has {at.st_size}: it was truncated or "
            "replaced; restore it or run extract-blocks again"
        )
    found = (at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino)
    if found == (stored.size, stored.modified_ns, stored.changed_ns, stored.inode):
        return
    if stored.sha256 is not None and at.st_size == stored.size and known_sha256(file) == stored.sha256:
        return
    if header_sha256(file) != stored.header_sha256:
        what = "its header is another"
    elif stored.sha256 is not None:
        what = "its bytes have another SHA-256"
    else:
        what = f"it was written or replaced at {datetime.fromtimestamp(at.st_ctime, UTC):%Y-%m-%d %H:%M:%S} UTC"
    raise IntegrityError(
        f"{file}: is not the file that was extracted, and {owner} lies in it: {what}; restore it or run extract-blocks "
        "again"
    )


def header_sha256(file: Path) -> str:
    """Return the hash of a safetensors file's header.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            return hashlib.sha256(head + stream.read(min(length, 1 << 25))).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error


def _hub_sha256(file: Path) -> str | None:
    """Return the hash that the Hub's cache names a file by: links of a snapshot lead to ``blobs/SHA256``."""
    target = Path(os.path.realpath(file))
    if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
        return target.name
    return None


def _stat(file: Path) -> os.stat_result:
    try:
        return file.stat()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
