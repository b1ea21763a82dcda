"""The hidden folder in which a merge grows; a killed merge finds it again and goes on."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import mango
from mango import signals
from mango.checkpoints import MANIFEST_NAME, check_hashes, only_writer, sha256_file
from mango.checkpoints.exchange import put_in_place, recover, remove_old
from mango.checkpoints.failures import write_failure, writing
from mango.checkpoints.sealing import seal
from mango.errors import CheckpointError, IntegrityError
from mango.merging.journal import Journal, read_journal
from mango.merging.plan import MergePlan
from mango.merging.tensor_sources import Held

State = Literal["growing", "whole", "in place"]
_LAYOUT_VERSION = 2  # of what a folder that grows holds; a change makes older ones useless


class Work(NamedTuple):
    """What a merge is going to do.

    Attributes:
        mark: names it: a hash of all that decides its bytes, or chance where models in memory do.
        states: of the files that it reads.
    """

    mark: str
    states: list[Any]


def work_of(plan: MergePlan, max_shard_bytes: int, device: str) -> Work:
    """Return the work of a merge; only a merge of the same mark goes on where another was killed.

    Args:
        plan: the merge.
        max_shard_bytes: largest weight file.
        device: where it is computed.
    """
    states = file_states(plan)
    if any(isinstance(source, Held) for output in plan.tensors for source in output.inputs):
        return Work(secrets.token_hex(32), states)
    outputs = [
        [o.spec.name, o.spec.dtype, o.spec.shape, o.method, repr(o.arguments), o.seeds, [key for key, _ in o.sources]]
        for o in plan.tensors
    ]
    document = plan.document.model_dump(mode="json", by_alias=True)
    whole = [_LAYOUT_VERSION, mango.__version__, document, states, outputs, dict(plan.config), max_shard_bytes, device]
    return Work(hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest(), states)


def file_states(plan: MergePlan) -> list[Any]:
    """Return what changes when a file of a model or of text does: its size, its place on the disk and its times."""
    models = [[model.key, model.place, [_state(folder) for folder in model.folders]] for model in plan.all_inputs()]
    return [*models, *([str(path), _state_of_file(path)] for path in plan.text_files())]


def _state(folder: Path) -> list[Any]:
    return [
        _state_of_file(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_file()
    ]


def _state_of_file(path: Path) -> tuple[Any, ...]:
    stat = path.stat()
    return path.name, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


@dataclass(frozen=True)
class Growing:
    """A folder that a merge fills.

    Attributes:
        folder: where it grows, or its own place, where an earlier run has put it there.
        bench: folder beside it for what the work measures; it is made by whom it serves, and gone when the result is in
            its place.
        journal: what is written of it.
        is_done: an earlier run has finished it, and nothing is left to write.
    """

    folder: Path
    bench: Path
    journal: Journal
    is_done: bool


@contextmanager
def growing_folder(path: Path | str, mark: str, *, remember: bool = False) -> Iterator[Growing]:
    """Fill a folder that takes the place of ``path`` in one step, and that a killed run leaves for the next.

    It is a hidden sibling named by ``mark``, with a journal beside it: a run with the same mark finds what an earlier
    one has written and measured, and any other run into the same path removes it. When the body is ended by a signal or
    Ctrl-C all of it stays; on an error it is removed. The older version of ``path`` stays until the new one is
    durable. A run that was killed behind that moment is known by its journal, too: the next one then finds that all
    is done.

    Args:
        path: the folder; missing parents are made. A link is followed.
        mark: of the work, in hexadecimal.
        remember: keep the journal when all is done, as :func:`forget` removes it: a run that makes several folders
            then knows which of them are finished.

    Yields:
        The folder to write into, and its journal.

    Raises:
        CheckpointError: it cannot be written, or another process writes it; the old version is intact.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path}: is a file; a folder was to be written there. Move it or choose another path")
    folder, note, bench = _places(path, mark)
    inside = ".mango-new-" in str(path.parent)  # a part of another folder that grows
    with only_writer(path):
        with writing(path):
            recover(path)
            state = _prepare(path, folder, note)
        journal = Journal(note)
        try:
            with signals.resumes(lambda: "" if inside else _how_it_goes_on(path, folder)):
                yield Growing(path if state == "in place" else folder, bench, journal, state != "growing")
        except OSError as error:
            _discard(folder, note, bench)
            if error.filename is None or Path(str(error.filename)).is_relative_to(folder):
                raise write_failure(path, error) from error
            raise
        except Exception:
            _discard(folder, note, bench)
            raise
        finally:
            journal.close()
        old = None
        with writing(path):
            if state == "growing":
                seal(folder)
                _note_seal(note, folder)
            if state != "in place":
                old = put_in_place(folder, path)
        if not inside:
            signals.replaced(path)
        remove_old(old)
        shutil.rmtree(bench, ignore_errors=True)  # not before: a run that is killed until here would measure again
        if not remember:
            forget(path, mark)


def forget(path: Path | str, mark: str) -> None:
    """Remove the journal that :func:`growing_folder` has kept of a finished folder."""
    _places(Path(os.path.realpath(path)), mark)[1].unlink(missing_ok=True)


def _places(path: Path, mark: str) -> tuple[Path, Path, Path]:
    """Return the hidden folder of some work, the file of its journal, and the folder of what it measures."""
    name = f".{path.name}.mango-new-merge-{mark[:16]}"
    return path.with_name(name), path.with_name(f"{name}.journal"), path.with_name(f"{name}.calibration")


def _prepare(path: Path, folder: Path, note: Path) -> State:
    """Remove what is of other work or of no known work, make the folder, and tell how far an earlier run has come."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.mango-new-*"):
        if not stale.name.startswith(folder.name):  # its journal and what it has measured bear its name
            if stale.is_dir():
                shutil.rmtree(stale, ignore_errors=True)
            else:
                stale.unlink(missing_ok=True)
    sealed = read_journal(note)[1]
    if sealed is not None and _is_sealed(path, sealed):
        shutil.rmtree(folder, ignore_errors=True)  # the older version, which the new one has changed places with
        return "in place"
    if sealed is not None and _is_sealed(folder, sealed):
        return "whole"
    if not note.exists() or sealed is not None:
        _discard(folder, note)
    if not folder.exists():
        note.unlink(missing_ok=True)
        folder.mkdir()
    return "growing"


def _is_sealed(folder: Path, sealed: str) -> bool:
    """Tell whether a folder is the one that a journal calls whole, and is still whole."""
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file() or sha256_file(manifest) != sealed:
        return False
    try:
        check_hashes(folder)
    except (IntegrityError, CheckpointError):
        return False
    return True


def _note_seal(note: Path, folder: Path) -> None:
    journal = Journal(note)
    try:
        journal.seal(sha256_file(folder / MANIFEST_NAME))
    finally:
        journal.close()


def _discard(folder: Path, note: Path, *more: Path) -> None:
    note.unlink(missing_ok=True)
    for one in (folder, *more):
        shutil.rmtree(one, ignore_errors=True)


def _how_it_goes_on(path: Path, folder: Path) -> str:
    return f"{path.name!r} goes on from what it has written" if folder.exists() else ""
