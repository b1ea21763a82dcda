"""The manifest: the SHA-256 of every file of a folder, written last, so that it also marks the folder as whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mango.checkpoints.documents import Bounds, read_json
from mango.checkpoints.failures import reading
from mango.errors import CheckpointError, IntegrityError
from mango.security.signing import SIGNATURE_NAME

MANIFEST_NAME = "MANIFEST.json"
FORMAT_VERSION = 1
_BOUNDS = Bounds(64 << 20, 1_000_000, depth=4)


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = Path(path)
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[str]:
    """Return the relative POSIX paths of all files below ``folder``, sorted.

    The manifest is left out, and so is a signature at the top of the folder, which covers the manifest too and is
    therefore written after it.

    Raises:
        CheckpointError: something below is neither a file nor a folder (a link, a socket, a device).
    """
    names = []
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise CheckpointError(f"{path}: is a link or a special file; a model folder holds plain files only")
        names += [Path(root, name).relative_to(folder).as_posix() for name in files]
    return sorted(name for name in names if name not in {MANIFEST_NAME, SIGNATURE_NAME})


def manifest_text(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of a manifest of these files, ``{name: {"sha256": ..., "size": ...}}``."""
    return json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return ``{name: {"sha256": ..., "size": ...}}`` of a folder's manifest.

    Raises:
        IntegrityError: there is no manifest, or it is malformed.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise IntegrityError(f"{folder}: holds no {MANIFEST_NAME}, so it is no complete output; write it again")
    try:
        document = read_json(path, _BOUNDS)
        if document["format_version"] != FORMAT_VERSION:
            raise IntegrityError(
                f"{path}: format version {document['format_version']!r}; this version of Mango reads {FORMAT_VERSION}"
            )
        return {str(n): {"sha256": str(f["sha256"]), "size": int(f["size"])} for n, f in document["files"].items()}
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, IntegrityError):
            raise
        raise IntegrityError(f"{path}: malformed ({error}); write the folder again") from error


def verify(folder: Path | str) -> None:
    """Check every file of a folder against its manifest.

    Raises:
        IntegrityError: a file is missing, surplus, or its bytes differ; the message names it.
    """
    folder = Path(folder)
    wanted = read_manifest(folder)
    found = list_files(folder)
    if missing := sorted(set(wanted) - set(found)):
        raise IntegrityError(f"{folder / missing[0]}: is in {MANIFEST_NAME} but missing; write the folder again")
    if surplus := sorted(set(found) - set(wanted)):
        raise IntegrityError(f"{folder / surplus[0]}: is not in {MANIFEST_NAME}; remove it or write the folder again")
    for name in found:
        path = folder / name
        size = path.stat().st_size
        if size != wanted[name]["size"]:
            raise IntegrityError(f"{path}: {size} bytes; {MANIFEST_NAME} says {wanted[name]['size']}")
        digest = sha256_file(path)
        if digest != wanted[name]["sha256"]:
            raise IntegrityError(
                f"{path}: SHA-256 is {digest[:12]}..., {MANIFEST_NAME} says {wanted[name]['sha256'][:12]}...: "
                "the file was changed or damaged; write the folder again"
            )
