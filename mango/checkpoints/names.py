"""Which names a model folder's files and tensors may have, and which files belong to the folder."""

from __future__ import annotations

import os
from pathlib import Path

from mango.checkpoints.documents import shown
from mango.checkpoints.failures import reading
from mango.errors import UnsafeFileError

MAX_NAME_LENGTH = 1000


def check_tensor_name(name: str, where: object) -> None:
    """Refuse a tensor name that is empty, unprintable, very long, or would lead out of a folder as a path.

    Raises:
        UnsafeFileError: the name is one of these.
    """
    problem = None
    if not name or not name.isprintable():  # NUL and lone surrogates are unprintable too
        problem = "is empty or unprintable"
    elif len(name) > MAX_NAME_LENGTH:
        problem = f"has {len(name)} characters, more than {MAX_NAME_LENGTH}"
    elif "\\" in name or ("/" in name and not {"", ".", ".."}.isdisjoint(name.split("/"))):
        problem = "is a path that leads elsewhere"
    if problem:
        raise UnsafeFileError(f"{where}: tensor name {shown(name)} {problem}; the file was made to mislead")


def is_file_name(name: object) -> bool:
    """Tell whether something names a file beside another one: no path, nothing hidden, nothing unprintable."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode("utf-8", "replace")) <= 255
        and name.isprintable()
        and not name.startswith(".")
        and "/" not in name
        and "\\" not in name
    )


def check_inside(path: Path, folder: Path) -> Path:
    """Refuse a file that is a link to somewhere outside of its model folder.

    A snapshot in the Hub's cache consists of links to the ``blobs`` of the same repository; these are inside.

    Args:
        path: a file below the folder, which need not exist.
        folder: the model folder, itself perhaps reached through a link.

    Returns:
        The path.

    Raises:
        UnsafeFileError: the file, or a folder on the way to it, leads out of the model folder.
    """
    with reading(path):
        real, home = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if real.is_relative_to(home):
        return path
    if home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs"):
        return path
    raise UnsafeFileError(f"{path}: leads to {real}, outside of {folder}; put the file itself there")
