"""Mends what a killed DVC leaves.

It writes its two state files in place, so ``kill -9`` can cut either short; it keeps the numbers of its processes in
one of them, and such a number may be another process's by now; and it takes git's lock to stage files.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from mango.errors import RegistryError
from mango.tracking.processes import dvc_processes, git_processes, is_running_dvc

LOCK = Path("dvc.lock")
READERS = Path(".dvc/tmp/rwlock")
_FRESH_S = 2.0
_STAGE = re.compile(r"^  (?! )", re.MULTILINE)
"""Where a stage starts in ``dvc.lock``, or the first letters of its name when the file ends there."""


def repair(root: Path | str = ".") -> list[str]:
    """Bring DVC's state files into a form that ``dvc repro`` reads; whole ones are left alone.

    Of a ``dvc.lock`` that was cut short, the stages that are whole stay, so only the others run again.

    Args:
        root: the repository.

    Returns:
        What was done, a sentence each; empty when nothing was broken.

    Raises:
        RegistryError: this is no DVC repository, or DVC is running in it.
        CheckpointError: a file cannot be written.
    """
    root = Path(root)
    if not (root / ".dvc").is_dir():
        raise RegistryError(f"{root.resolve()}: is no DVC repository; run this where dvc.yaml is")
    if running := _busy(root):
        raise RegistryError(f"{root.resolve()}: DVC is running here ({running}); wait until it is done, or end it")
    return [*_repair_readers(root), *_repair_lock(root), *_repair_index(root)]


def _busy(root: Path) -> str | None:
    if pids := dvc_processes(root):
        return f"process {', '.join(map(str, pids))}"
    path = root / ".dvc" / "tmp" / "lock"
    if not path.exists():
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "it holds its lock"
    finally:
        os.close(descriptor)
    return None


def _repair_readers(root: Path) -> list[str]:
    path = root / READERS
    if not path.exists():
        return []
    try:
        table = json.loads(path.read_bytes())
        numbers = [int(user["pid"]) for user in _users(table)]
    except (ValueError, TypeError, KeyError, AttributeError):
        path.unlink()
        return [f"{READERS}: was cut short; removed, since no DVC runs"]
    if running := sorted({number for number in numbers if is_running_dvc(number)}):
        raise RegistryError(
            f"{root.resolve()}: DVC is running here (process {', '.join(map(str, running))}); wait until it is done, "
            "or end it"
        )
    if not numbers:
        return []
    path.unlink()
    return [f"{READERS}: named processes that are gone; removed"]


def _users(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Return who reads and writes paths, by the table that DVC keeps of them."""
    if set(table) - {"read", "write"}:
        raise ValueError("neither readers nor writers")
    readers = [user for users in table.get("read", {}).values() for user in users]
    return [*readers, *table.get("write", {}).values()]


def _repair_lock(root: Path) -> list[str]:
    path = root / LOCK
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    if _stages(text) is not None:
        return []
    starts = [match.start() for match in _STAGE.finditer(text)]
    from mango.checkpoints import write_file

    while starts:
        kept = text[: starts.pop()]
        if stages := _stages(kept):
            write_file(path, kept)
            return [f"{LOCK}: was cut short; kept what it says of {', '.join(stages)}"]
    path.unlink()
    return [f"{LOCK}: held no whole stage; removed, so every stage runs again"]


def _repair_index(root: Path) -> list[str]:
    """Remove git's lock when nobody can hold it: DVC takes it to stage ``dvc.lock``, and every git waits for it."""
    found = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-dir", "--show-toplevel"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:  # no work tree of git, as a DVC repository may be
        return []
    git, top = map(Path, found.stdout.splitlines())
    lock = git / "index.lock"
    # A program that uses a library of git has the lock for moments, and is no process called git.
    while (age_s := _age_s(lock)) is not None and age_s < _FRESH_S:
        time.sleep(0.1)
    if age_s is None:
        return []
    if pids := git_processes(top):
        raise RegistryError(
            f"{lock}: git is running here (process {', '.join(map(str, pids))}); wait until it is done, or end it"
        )
    lock.unlink(missing_ok=True)
    return [f"{lock.relative_to(top) if lock.is_relative_to(top) else lock}: nobody holds it any more; removed"]


def _age_s(path: Path) -> float | None:
    try:
        return max(time.time() - path.stat().st_mtime, 0.0)
    except FileNotFoundError:
        return None


def _stages(text: str) -> list[str] | None:
    """Return the names of the stages in a whole lock file, or None for one that DVC refuses."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found: Any = YAML(typ="safe").load(text)
    except YAMLError:
        return None
    if not isinstance(found, dict) or "schema" not in found or not isinstance(found.get("stages"), dict):
        return None
    stages: dict[str, Any] = found["stages"]
    return list(stages) if all(isinstance(stage, dict) and "cmd" in stage for stage in stages.values()) else None
