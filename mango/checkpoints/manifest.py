"""The manifest: the hashes of every file of a folder, written last, so that it also marks the folder as whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mango.checkpoints.documents import Bounds, read_json
from mango.checkpoints.hashing import Digests, hash_file
from mango.errors import CheckpointError, IntegrityError
from mango.security.signing import SIGNATURE_NAME

MANIFEST_NAME = "MANIFEST.json"
FORMAT_VERSION = 1
_TITLES = {"sha256": "SHA-256", "blake3": "BLAKE3"}
_BOUNDS = Bounds(64 << 20, 1_000_000, depth=4)


def entry_of(digests: Digests, size: int) -> dict[str, Any]:
    """Return what a manifest says of a file of these hashes and ``size`` bytes."""
    return {**digests._asdict(), "size": size}


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
    """Return the text of a manifest of these files, ``{name: {"blake3": ..., "sha256": ..., "size": ...}}``."""
    return json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return ``{name: {"sha256": ..., "size": ...}}`` of a folder's manifest, with ``blake3`` where it has that too.

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
        return {str(name): _entry(file) for name, file in document["files"].items()}
    except (CheckpointError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, IntegrityError):
            raise
        raise IntegrityError(f"{path}: malformed ({error}); write the folder again") from error


def _entry(file: Mapping[str, Any]) -> dict[str, Any]:
    hashes = {key: str(file[key]) for key in Digests._fields if key == "sha256" or key in file}
    return {**hashes, "size": int(file["size"])}


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
        compare_hashes(path, hash_file(path), wanted[name])


def compare_hashes(path: Path, found: Mapping[str, str] | Digests, wanted: Mapping[str, Any]) -> None:
    """Refuse a file whose hashes, as far as they were computed, are not those of its entry in the manifest.

    Raises:
        IntegrityError: one differs.
    """
    hashes = found._asdict() if isinstance(found, Digests) else found
    for key, digest in hashes.items():
        if key in wanted and digest != wanted[key]:
            raise IntegrityError(
                f"{path}: {_TITLES[key]} is {digest[:12]}..., {MANIFEST_NAME} says {wanted[key][:12]}...: "
                "the file was changed or damaged; write the folder again"
            )
