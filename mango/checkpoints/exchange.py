"""Putting a finished folder into the place of another."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_LARGE_BYTES = 1 << 30
_REMOVERS = 8
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def aside(path: Path) -> Path:
    """Return where the old version of ``path`` lies for the moment between two renames."""
    return path.with_name(f".{path.name}.mango-old")


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step.

    Returns:
        False when the kernel or the filesystem cannot do it; nothing has changed then.

    Raises:
        OSError: the swap failed for another reason.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(second))


def put_in_place(new: Path, path: Path) -> Path | None:
    """Put the finished folder ``new`` at ``path``, durably.

    With ``renameat2`` the swap is one step. Without it the old version is moved aside, and whoever opens or
    replaces ``path`` after a crash between the two renames brings it back (:func:`recover`).

    Returns:
        Where the old version lies now (:func:`remove_old`), or None when there was none.

    Raises:
        OSError: the renames failed; ``path`` still holds the old version.
    """
    if not path.exists() and _rename_into_free_place(new, path):
        sync_folder(path.parent)
        return None
    if exchange(new, path):
        sync_folder(path.parent)
        return new
    old = aside(path)
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    sync_folder(path.parent)
    return old


def take_back(new: Path, path: Path, old: Path | None) -> None:
    """Undo :func:`put_in_place`, which has returned ``old``: the new folder is at ``new`` again.

    Raises:
        OSError: the old version cannot be moved back.
    """
    if old is None or not exchange(old, path):
        path.rename(new)
        if old is not None:
            old.rename(path)
    sync_folder(path.parent)


def remove_old(old: Path | None) -> None:
    """Remove what :func:`put_in_place` returned; what stays behind is cleaned by the next replacement."""
    if old is None:
        return
    files = [path for path in old.rglob("*") if path.is_file() and not path.is_symlink()]
    if len(files) > 1 and sum(path.stat().st_size for path in files) > _LARGE_BYTES:  # many pages to give back
        with ThreadPoolExecutor(_REMOVERS) as pool, suppress(OSError):
            list(pool.map(Path.unlink, files))
    shutil.rmtree(old, ignore_errors=True)


def _rename_into_free_place(new: Path, path: Path) -> bool:
    """Rename, and return False when another process has put its version there meanwhile."""
    try:
        new.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def recover(path: Path) -> None:
    """Bring back the old version of ``path`` if a crash left it aside, or remove it if a newer one took its place.

    Raises:
        OSError: the old version cannot be moved back.
    """
    old = aside(path)
    if not old.is_dir():
        return
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(path)
        sync_folder(path.parent)
