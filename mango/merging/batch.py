"""Several merges as one piece of work: all of them planned first, and what is finished not made again after a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from mango.checkpoints import MANIFEST_NAME, check_hashes, check_room, size_of
from mango.checkpoints.writer import DEFAULT_SHARD_BYTES
from mango.errors import CheckpointError, IntegrityError, MangoError, MergeError
from mango.merging.devices import check_devices
from mango.merging.document import MergeDocument
from mango.merging.engine import MergeReport, OnProgress, check_output, merge_plan
from mango.merging.inputs import ModelValue
from mango.merging.plan import MergePlan, plan
from mango.merging.workspace import forget, growing_folder, work_of

Watch = Callable[[str], AbstractContextManager[OnProgress]]
"""Opens what shows how far the merge of a name is; it is called with (bytes done, bytes in all)."""


def plan_all(
    documents: Mapping[str, MergeDocument],
    places: Mapping[str, Path],
    models: Mapping[str, ModelValue] | None = None,
    *,
    cache: Path | None = None,
) -> dict[str, MergePlan]:
    """Plan merges, without reading a weight.

    Args:
        documents: what to merge, by name.
        places: the folder of each result.
        models: where the models are that the documents name.
        cache: see :func:`mango.checkpoints.resolve`.

    Returns:
        The plans by name.

    Raises:
        MergeError: one line for each problem, with the names of the documents that have it where there are several.
    """
    found: dict[str, MergePlan] = {}
    problems: dict[str, list[str]] = {}
    for name, document in documents.items():
        try:
            found[name] = plan(document, models, cache=cache)
            check_output(found[name], places[name])
        except MangoError as error:
            for line in str(error).splitlines():
                problems.setdefault(line, []).append(name)
    if problems:
        several = len(documents) > 1
        raise MergeError("\n".join(f"{', '.join(who)}: {line}" if several else line for line, who in problems.items()))
    return found


def merge_all(
    documents: Mapping[str, MergeDocument],
    places: Mapping[str, Path],
    models: Mapping[str, ModelValue] | None = None,
    *,
    cache: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    threads: int | None = None,
    device: str = "cpu",
    watch: Watch,
) -> dict[str, MergeReport]:
    """Merge several documents, each into a folder of its own that appears when it is done.

    After a kill the same call leaves what is finished as it is, and goes on where it was.

    Args:
        documents: what to merge, by name.
        places: the folder of each result.
        models: where the models are that the documents name.
        cache: see :func:`mango.checkpoints.resolve`.
        max_shard_bytes: largest weight file.
        threads: see :func:`mango.merging.merge`.
        device: see :func:`mango.merging.merge`.
        watch: shows how far each merge is.

    Returns:
        What was done, by name.

    Raises:
        MergeError: models do not fit together, or a result has elements that are not finite.
        CheckpointError: a model is damaged, or a result cannot be written; those before it are in their places.
    """
    check_devices(device)
    planned = plan_all(documents, places, models, cache=cache)
    ready = {name: _local(documents[name], found, models, cache) for name, found in planned.items()}
    work = {name: work_of(found, max_shard_bytes, device) for name, found in ready.items()}
    reports = {}

    def forget_all() -> None:
        for name, place in places.items():
            forget(place, work[name].mark)

    try:
        for name, found in ready.items():
            with watch(name) as meter:
                reports[name] = merge_plan(
                    found,
                    places[name],
                    work=work[name],
                    max_shard_bytes=max_shard_bytes,
                    threads=threads,
                    device=device,
                    on_bytes=meter,
                    remember=True,
                )
    except Exception:
        forget_all()
        raise
    forget_all()
    return reports


def merge_into_one(
    documents: Mapping[str, MergeDocument],
    out: Path | str,
    models: Mapping[str, ModelValue] | None = None,
    *,
    cache: Path | None = None,
    threads: int | None = None,
    watch: Watch,
) -> dict[str, MergeReport]:
    """Merge several documents into folders of one folder, which appears when all of them are done.

    After a kill the same call goes on: a merge that was finished is not made again, and the one that was not is
    continued. Where anything has changed that decides a byte of one of them, all start over.

    Args:
        documents: what to merge, by the name of its folder.
        out: the folder; an older version is replaced in one step at the end.
        models: where the models are that the documents name.
        cache: see :func:`mango.checkpoints.resolve`.
        threads: see :func:`mango.merging.merge`.
        watch: shows how far each merge is.

    Returns:
        What was done, by name; of a merge that an earlier run has finished, all tensors are resumed.

    Raises:
        MergeError: models do not fit together, or a result has elements that are not finite; ``out`` is as it was.
        CheckpointError: a model is damaged, or a result cannot be written; ``out`` is as it was.
    """
    out = Path(out)
    planned = plan_all(documents, {name: out / name for name in documents}, models, cache=cache)
    growing_bytes = sum(size_of(folder) for folder in out.parent.glob(f".{out.name}.mango-new-merge-*"))
    check_room(out, max(0, sum(found.num_bytes for found in planned.values()) - growing_bytes))
    ready = {name: _local(documents[name], found, models, cache) for name, found in planned.items()}
    work = {name: work_of(found, DEFAULT_SHARD_BYTES, "cpu") for name, found in ready.items()}
    mark = hashlib.sha256(json.dumps([[name, one.mark] for name, one in work.items()]).encode()).hexdigest()
    reports = {}
    with growing_folder(out, mark) as growing:
        for name, found in ready.items():
            place = growing.folder / name
            with watch(name) as meter:
                if growing.is_done or _is_whole(place):
                    meter(found.num_bytes, found.num_bytes)
                    report = MergeReport.of(found, place, num_resumed=len(found.tensors), seconds=0.0)
                else:
                    report = merge_plan(
                        found,
                        place,
                        work=work[name],
                        threads=threads,
                        on_bytes=meter,
                    )
            reports[name] = replace(report, out=out / name)
        if not growing.is_done:
            _tidy(growing.folder, set(reports))
    return reports


def _local(
    document: MergeDocument, planned: MergePlan, models: Mapping[str, ModelValue] | None, cache: Path | None
) -> MergePlan:
    return plan(document, models, cache=cache, download=True) if planned.unread else planned


def _is_whole(place: Path) -> bool:
    """Tell whether an earlier run has finished a folder; one that is damaged is removed."""
    try:
        if not (place / MANIFEST_NAME).is_file():
            return False
        check_hashes(place)
    except (CheckpointError, IntegrityError):
        shutil.rmtree(place)
        return False
    return True


def _tidy(folder: Path, names: set[str]) -> None:
    """Remove what a killed run has left beside the results, such as locks."""
    for path in folder.iterdir():
        if path.name in names:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
