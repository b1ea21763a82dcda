"""Writing that survives a crash: after ``kill -9`` or a power cut there is the old version or the new one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mango import signals
from mango.checkpoints.exchange import put_in_place, recover, remove_old, sync_folder, take_back
from mango.checkpoints.failures import write_failure, writing
from mango.checkpoints.sealing import seal
from mango.checkpoints.siblings import FILE_MODE, new_sibling, only_writer
from mango.errors import CheckpointError

_filling: set[Path] = set()
"""New folders that this process fills; what is written there becomes durable when they are sealed."""


def write_file(path: Path | str, data: bytes | str) -> None:
    """Write a whole file so that a reader sees the old content or the new one, durably (mode 0644).

    Inside a folder of :func:`replace_folder` it becomes durable together with the rest of that folder.

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
        if any(path.is_relative_to(folder) for folder in tuple(_filling)):
            path.write_bytes(content)
            path.chmod(FILE_MODE)
            return
        temporary, lock = new_sibling(path, is_folder=False)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), FILE_MODE)
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(lock)
        sync_folder(path.parent)


def remove_file(path: Path | str) -> None:
    """Remove a file, durably; nothing where there is none.

    Raises:
        CheckpointError: it cannot be removed.
    """
    path = Path(path)
    with writing(path):
        if path.exists():
            path.unlink(missing_ok=True)
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
def replace_folder(path: Path | str, *, is_output: bool = True) -> Iterator[Path]:
    """Fill a new folder that takes the place of ``path`` in one step when the body ends without an error.

    The new folder is a hidden sibling, locked for as long as this process lives. At the end every file is made
    durable, with ``MANIFEST.json`` and its SHA-256 of every file written last, and the folder takes the place of the
    old version. On any error, Ctrl-C included, the new folder is removed and the old version stays. After
    ``kill -9`` the old version stays, and the next replacement removes what was left behind.

    Args:
        path: the folder; missing parents are made. A link is followed.
        is_output: whether a run that ends early tells that it has replaced this, as it does of what it was asked for.

    Yields:
        The new, empty folder to write into.

    Raises:
        CheckpointError: it cannot be written (disk full included), or another process writes it; the old version is
            intact.
    """
    with replace_folders(path, are_outputs=is_output) as (folder,):
        yield folder


@contextmanager
def replace_folders(*paths: Path | str, are_outputs: bool = True) -> Iterator[tuple[Path, ...]]:
    """Replace several folders that belong together, as :func:`replace_folder` does one.

    All of them are durable before the first takes its place, and when one cannot, those before it go back.

    Args:
        paths: the folders, in the order in which they take their places.
        are_outputs: see :func:`replace_folder`.

    Yields:
        The new, empty folders to write into, in the order of ``paths``.

    Raises:
        CheckpointError: one cannot be written, or another process writes it; all old versions are intact.
    """
    targets = [Path(os.path.realpath(path)) for path in paths]
    for path in targets:
        if path.exists() and not path.is_dir():
            raise CheckpointError(
                f"{path}: is a file; a folder was to be written there. Move it or choose another path"
            )
    with ExitStack() as held:
        for path in targets:
            held.enter_context(only_writer(path))
        new = {path: held.enter_context(_growing(path)) for path in targets}
        try:
            yield tuple(new.values())
        except OSError as error:
            for path, temporary in new.items():
                if error.filename is None or _is_below(error.filename, temporary):
                    raise write_failure(path, error) from error
            raise
        for path, temporary in new.items():
            with writing(path):
                seal(temporary)
        _put_all(new)
        if are_outputs:
            for path in targets:
                signals.replaced(path)


@contextmanager
def _growing(path: Path) -> Iterator[Path]:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        temporary, lock = new_sibling(path, is_folder=True)
    _filling.add(temporary)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        _filling.discard(temporary)
        os.close(lock)


def _put_all(new: dict[Path, Path]) -> None:
    done: list[tuple[Path, Path | None]] = []
    try:
        for path, temporary in new.items():
            with writing(path):
                done.append((path, put_in_place(temporary, path)))
    except BaseException:
        for path, old in reversed(done):
            take_back(new[path], path, old)
        raise
    for _, old in done:
        remove_old(old)


def _is_below(name: object, folder: Path) -> bool:
    return isinstance(name, str | os.PathLike) and Path(name).absolute().is_relative_to(folder)
