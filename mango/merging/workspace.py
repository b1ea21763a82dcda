"""The hidden folder in which a merge grows; a killed merge finds it again and goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mango
from mango import signals
from mango.checkpoints import only_writer
from mango.checkpoints.exchange import put_in_place, recover, remove_old
from mango.checkpoints.failures import write_failure, writing
from mango.checkpoints.sealing import seal
from mango.errors import CheckpointError
from mango.merging.journal import JOURNAL_NAME
from mango.merging.plan import MergePlan

_LAYOUT_VERSION = 1  # of what a folder that grows holds; a change makes older ones useless


def fingerprint(plan: MergePlan, max_shard_bytes: int, device: str) -> str:
    """Return a hash of everything that decides the bytes of a merge: only a merge of the same hash goes on.

    Args:
        plan: the merge.
        max_shard_bytes: largest weight file.
        device: where it is computed.
    """
    places: list[Any] = []
    for model in plan.all_inputs():
        files = [] if model.folder is None else sorted(model.folder.glob("*.safetensors"))
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        places.append([model.key, model.place, stats])
    outputs = [
        [o.spec.name, o.spec.dtype, o.spec.shape, o.method, repr(o.arguments), o.seeds, [key for key, _ in o.sources]]
        for o in plan.tensors
    ]
    document = plan.document.model_dump(mode="json", by_alias=True)
    whole = [_LAYOUT_VERSION, mango.__version__, document, places, outputs, dict(plan.config), max_shard_bytes, device]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def growing_folder(path: Path | str, mark: str) -> Iterator[Path]:
    """Fill a folder that takes the place of ``path`` in one step, and that a killed run leaves for the next.

    It is a hidden sibling named by ``mark``: a run with the same mark finds what an earlier one has written, and any
    other run into the same path removes it. When the body is ended by a signal or Ctrl-C the folder stays; on an
    error it is removed. The older version of ``path`` stays until the new one is durable.

    Args:
        path: the folder; missing parents are made. A link is followed.
        mark: of the work, in hexadecimal.

    Yields:
        The folder to write into.

    Raises:
        CheckpointError: it cannot be written, or another process writes it; the old version is intact.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path}: is a file; a folder was to be written there. Move it or choose another path")
    folder = path.with_name(f".{path.name}.mango-new-merge-{mark[:16]}")
    with only_writer(path):
        with writing(path):
            recover(path)
            for stale in path.parent.glob(f".{path.name}.mango-new-*"):
                if stale != folder:
                    shutil.rmtree(stale, ignore_errors=True)
            folder.mkdir(exist_ok=True)
        try:
            with signals.resumes(lambda: f"{path.name!r} goes on from what it has written" if folder.exists() else ""):
                yield folder
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            if error.filename is None or Path(str(error.filename)).is_relative_to(folder):
                raise write_failure(path, error) from error
            raise
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with writing(path):
            (folder / JOURNAL_NAME).unlink(missing_ok=True)
            seal(folder)
            old = put_in_place(folder, path)
        if ".mango-new-" not in str(path.parent):
            signals.replaced(path)
        remove_old(old)
