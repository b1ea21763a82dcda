"""Writing that survives a crash: after ``kill -9`` or a power cut there is the old version or the new one."""

from __future__ import annotations

import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mango.checkpoints.exchange import recover, sync_folder, take_place
from mango.checkpoints.failures import write_failure, writing
from mango.checkpoints.manifest import MANIFEST_NAME, build_manifest, list_files
from mango.errors import CheckpointError

_FILE_MODE = 0o644
_FOLDER_MODE = 0o755


def write_file(path: Path | str, data: bytes | str) -> None:
    """Write a whole file so that a reader sees the old content or the new one, durably (mode 0644).

    Args:
        path: the file; missing parent folders are made. A link is followed.
        data: bytes, or text that is written as UTF-8.

    Raises:
        CheckpointError: it cannot be written; the old content is intact.
    """
    path = Path(os.path.realpath(path))
    content = data.encode() if isinstance(data, str) else data
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, lock = _new_sibling(path, is_folder=False)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), _FILE_MODE)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(lock)
        sync_folder(path.parent)


def recover_folder(path: Path | str) -> None:
    """Bring back a folder that a crash left moved aside (only where the kernel cannot swap folders in one step).

    Raises:
        CheckpointError: the folder cannot be moved back.
    """
    path = Path(path)
    with writing(path):
        recover(Path(os.path.realpath(path)))


@contextmanager
def replace_folder(path: Path | str) -> Iterator[Path]:
    """Fill a new folder that takes the place of ``path`` in one step when the body ends without an error.

    The new folder is a hidden sibling, locked for as long as this process lives. At the end every file is made
    durable, ``MANIFEST.json`` with the SHA-256 of every file is written last, and the folder takes the place of the
    old version. On any error, Ctrl-C included, the new folder is removed and the old version stays. After
    ``kill -9`` the old version stays, and the next replacement removes what was left behind.

    Args:
        path: the folder; missing parents are made. A link is followed.

    Yields:
        The new, empty folder to write into.

    Raises:
        CheckpointError: it cannot be written (disk full included); the old version is intact.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path}: is a file; a folder was to be written there. Move it or choose another path")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        temporary, lock = _new_sibling(path, is_folder=True)
    try:
        try:
            yield temporary
        except OSError as error:
            if error.filename is not None and not _is_below(error.filename, temporary):
                raise
            raise write_failure(path, error) from error
        with writing(path):
            _seal(temporary)
            take_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _is_below(name: object, folder: Path) -> bool:
    return isinstance(name, str | os.PathLike) and Path(name).absolute().is_relative_to(folder)


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock of ``path``, or None when another process holds it or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _new_sibling(path: Path, *, is_folder: bool) -> tuple[Path, int]:
    """Make a hidden, locked sibling of ``path``; those that dead processes left, whose lock nobody holds, go away."""
    prefix = f".{path.name}.mango-new-"
    for stale in sorted(path.parent.glob(f"{glob.escape(prefix)}*")):
        lock = _try_lock(stale)
        if lock is not None:
            try:
                _remove(stale)
            finally:
                os.close(lock)
    while True:
        temporary = path.with_name(prefix + secrets.token_hex(4))
        if is_folder:
            temporary.mkdir(mode=_FOLDER_MODE)
        else:
            temporary.touch(mode=_FILE_MODE, exist_ok=False)
        lock = _try_lock(temporary)
        if lock is not None:  # otherwise another process took it for a stale one before it was locked
            return temporary, lock


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _seal(folder: Path) -> None:
    """Make everything below ``folder`` durable, then write its manifest."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for name in list_files(folder):
        descriptor = os.open(folder / name, os.O_RDONLY)
        try:
            os.fchmod(descriptor, _FILE_MODE)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    for root, folders, _ in os.walk(folder, topdown=False):
        for name in folders:
            Path(root, name).chmod(_FOLDER_MODE)
            sync_folder(Path(root, name))
    write_file(folder / MANIFEST_NAME, build_manifest(folder))
