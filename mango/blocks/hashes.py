"""Hashes of blocks that extraction did not read, taken when they are asked for and kept between processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mango.blocks.identity import check_unchanged
from mango.blocks.manifest import StoredFile, StoredTensor
from mango.checkpoints import default_cache, write_file


def remembered(
    root: Path, files: Sequence[StoredFile], tensors: Sequence[StoredTensor], prefix: str, compute: Callable[[], str]
) -> str:
    """Return the hash of tensors, from the cache where it was taken of the same bytes of the same files before.

    An entry is named by where each tensor lies and by size, times and inode of every file, so that a file that changes
    has none.

    Args:
        root: folder that relative file names start from.
        files: the files that the tensors lie in.
        tensors: where they lie.
        prefix: what is left out of their names.
        compute: reads them and returns their hash.

    Raises:
        CheckpointError: a file is missing.
        IntegrityError: a file is not the one that was extracted.
    """
    for file in files:
        check_unchanged(root / file.file, file, f"{len(tensors)} tensors")
    where = [
        [os.path.realpath(root / f.file), f.size, f.modified_ns, f.changed_ns, f.inode, f.header_sha256] for f in files
    ]
    what = [[t.name.removeprefix(prefix), t.dtype, t.shape, t.start, t.end] for t in tensors]
    key = hashlib.sha256(json.dumps([where, what]).encode()).hexdigest()
    entry = default_cache() / "block-hashes" / key[:2] / key
    try:
        known = entry.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        known = ""
    if len(known) == 64:
        return known
    found = compute()
    entry.parent.mkdir(parents=True, exist_ok=True)
    write_file(entry, found + "\n")
    return found
