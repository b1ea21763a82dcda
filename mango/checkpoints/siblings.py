"""Hidden siblings of an output: where its next version grows, and the lock of whoever writes it."""

from __future__ import annotations

import fcntl
import glob
import json
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mango.checkpoints.failures import writing
from mango.errors import CheckpointError

FILE_MODE = 0o644
FOLDER_MODE = 0o755
_held: dict[Path, tuple[int, int]] = {}
"""Outputs that a thread of this process may write: the thread, and how often it has asked."""
_guard = threading.Lock()


@contextmanager
def only_writer(path: Path | str) -> Iterator[None]:
    """Be the only one who writes an output, or leave at once; a thread may hold it more than once.

    The lock is a hidden file beside the output, which the kernel frees when its process ends, however it ends.

    Args:
        path: the file or folder; missing parents are made. A link is followed.

    Raises:
        CheckpointError: another process or thread writes it, or no lock can be made there.
    """
    path = Path(os.path.realpath(path))
    own = threading.get_ident()
    with _guard:
        owner, times = _held.get(path, (own, 0))
        if owner != own:
            raise _busy(path, "another thread of this process")
        lock = None if times else _lock_of(path)
        _held[path] = (own, times + 1)
    try:
        yield
    finally:
        with _guard:
            if times:
                _held[path] = (own, times)
            else:
                del _held[path]
                if lock is not None:
                    _lock_name(path).unlink(missing_ok=True)
                    os.close(lock)


def _lock_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.mango-lock")


def _lock_of(path: Path) -> int:
    name = _lock_name(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT, FILE_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                said = os.read(descriptor, 4096)
                os.close(descriptor)
                raise _busy(path, _who(said)) from None
            if _is_at(descriptor, name):
                break
            os.close(descriptor)  # its owner took the file away between the two calls
        text = json.dumps(
            {"pid": os.getpid(), "command": [Path(sys.argv[0]).name, *sys.argv[1:]], "since": time.time()}
        )
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, text.encode()[:4000])
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def _is_at(descriptor: int, name: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == name.stat().st_ino
    except FileNotFoundError:
        return False


def _who(said: bytes) -> str:
    try:
        found = json.loads(said)
        command = " ".join(map(str, found["command"]))[:120]
        return f"process {int(found['pid'])} (`{command}`, for {max(0.0, time.time() - float(found['since'])):.0f} s)"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _busy(path: Path, who: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {who} is writing it; this run changed nothing. Wait for that one to end, or choose another output"
    )


def try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock of ``path``, or None when another process holds it or it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def new_sibling(path: Path, *, is_folder: bool) -> tuple[Path, int]:
    """Make a hidden, locked sibling of ``path``; those that dead processes left, whose lock nobody holds, go away.

    Returns:
        The sibling and the descriptor that holds its lock.
    """
    prefix = f".{path.name}.mango-new-"
    for stale in sorted(path.parent.glob(f"{glob.escape(prefix)}*")):
        lock = try_lock(stale)
        if lock is not None:
            try:
                _remove(stale)
            finally:
                os.close(lock)
    while True:
        temporary = path.with_name(prefix + secrets.token_hex(4))
        if is_folder:
            temporary.mkdir(mode=FOLDER_MODE)
        else:
            temporary.touch(mode=FILE_MODE, exist_ok=False)
        lock = try_lock(temporary)
        if lock is not None:  # otherwise another process took it for a stale one before it was locked
            return temporary, lock


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
