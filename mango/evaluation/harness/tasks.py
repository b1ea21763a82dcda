"""Finds and loads tasks of lm-eval: those that it ships, and a user's own."""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from mango.errors import EvaluationError

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

EXTRA = "pip install 'mango-compose[lm-eval]'"

_OFFLINE = re.compile(
    r"Connect(ion)?(Error|Timeout)|OfflineMode|LocalEntryNotFound|NameResolution|MaxRetry|URLError|gaierror|ProxyError"
)
"""Names of exceptions that say that something could not be fetched."""


@dataclass(frozen=True)
class Loaded:
    """Tasks with their data.

    Args:
        tasks: each task by name.
        groups: each group by name; its score is made of those of its tasks.
    """

    tasks: dict[str, Any]
    groups: dict[str, Any]


def harness_version() -> str:
    """Return the version of lm-eval.

    Raises:
        EvaluationError: it is not installed.
    """
    try:
        import lm_eval
    except ImportError as error:
        raise EvaluationError(
            f"tasks of the lm-evaluation-harness: the package lm-eval is not installed ({error}): {EXTRA}"
        ) from error
    return str(lm_eval.__version__)


def load_tasks(wanted: Sequence[str], metadata: Mapping[str, Any]) -> Loaded:
    """Load tasks and their data.

    Args:
        wanted: names of tasks, tags and groups that lm-eval ships, patterns of such names, and paths of a user's own
            task files or of folders of them. A task file may name Python functions, which are run.
        metadata: what tasks that make their own data are told.

    Returns:
        The tasks.

    Raises:
        EvaluationError: lm-eval is missing; there is no such task; its data cannot be fetched; it would run code that
            a model writes or that lies on the Hub, or needs a model that sees; or its definition is wrong.
    """
    version = harness_version()
    paths = [name for name in wanted if _is_path(name)]
    missing = [name for name in paths if not Path(name).exists()]
    if missing:
        raise EvaluationError(f"{missing[0]}: there is no such task file or folder")
    manager = _manager(paths, any(name not in paths for name in wanted), metadata)
    loaded = Loaded({}, {})
    for entry in wanted:
        names = _inside(Path(entry), manager) if entry in paths else _known(entry, manager, version)
        for name in names:
            what = f"task {name!r}" + (f" of {entry}" if entry in paths else "")
            with _explained(what), _without_fetched_code() as asked:
                found = manager.load([name])
            if asked:
                raise EvaluationError(
                    f"{what}: its metric {asked[0]!r} is code on the Hub, and none of that is run here"
                )
            loaded.tasks.update(found["tasks"])
            loaded.groups.update(found.get("groups", {}))
    for name, task in loaded.tasks.items():
        _refuse(name, task)
    return loaded


def _is_path(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) or "/" in name or Path(name).is_dir()


def _manager(paths: Sequence[str], packaged: bool, metadata: Mapping[str, Any]) -> TaskManager:
    """Return what knows the tasks; the thousands that lm-eval ships are read only where one is asked for."""
    from lm_eval.tasks import TaskManager

    if not paths:
        return _packaged(json.dumps(metadata, sort_keys=True))
    folders = dict.fromkeys(str(path if path.is_dir() else path.parent) for path in map(Path, paths))
    return TaskManager(include_defaults=packaged, include_path=list(folders), metadata=dict(metadata))


@functools.cache
def _packaged(metadata: str) -> TaskManager:
    """Return what knows the tasks that lm-eval ships, read once: that takes several seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(metadata=json.loads(metadata))


def _known(name: str, manager: TaskManager, version: str) -> list[str]:
    known = manager.all_tasks
    if name in known:
        return [name]
    found = [task for task in known if fnmatch(task, name)] if re.search(r"[*?\[]", name) else []
    if not found:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise EvaluationError(
            f"task {name!r} is unknown to lm-eval {version}{hint} `lm-eval ls tasks` lists the {len(known):,} that it "
            "ships; a task of your own is named by the path of its YAML file"
        )
    return found


def _inside(path: Path, manager: TaskManager) -> list[str]:
    """Return what a task file defines, or the groups of a folder and the tasks in none of them."""
    places = {name: entry for name, entry in manager.task_index.items() if entry.yaml_path is not None}
    if path.is_file():
        names = [name for name, entry in places.items() if Path(entry.yaml_path).resolve() == path.resolve()]
        if not names:
            raise EvaluationError(_no_task(path))
        return names
    inside = {n: e for n, e in places.items() if Path(e.yaml_path).resolve().is_relative_to(path.resolve())}
    for file in sorted(path.rglob("*.yaml")):
        with _explained(str(file)):
            _read(file)
    groups = [name for name, entry in inside.items() if "group" in (entry.cfg or {})]
    listed = [item for name in groups for item in (inside[name].cfg or {}).get("task") or []]
    members = {item if isinstance(item, str) else item.get("task", item.get("group")) for item in listed}
    found = [name for name in (*groups, *(n for n in inside if n not in groups)) if name not in members]
    if not found:
        raise EvaluationError(f"{path}: holds no task file, a file ending in .yaml with the key 'task' or 'group'")
    return found


def _read(path: Path) -> Any:
    """Return the content of a task file; functions that it names are not looked for."""
    from ruamel.yaml import YAML

    return YAML().load(path)


def _no_task(path: Path) -> str:
    """Return why lm-eval found no task in a file."""
    if path.suffix != ".yaml":
        return f"{path}: lm-eval reads task files that end in .yaml: rename it"
    with _explained(str(path)):
        content = _read(path)
    keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    return f"{path}: is no task file: it needs the key 'task' or 'group', a name that is its own; it holds {keys}"


def _refuse(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise EvaluationError(
            f"task {name!r} runs the code that a model writes, in this process and without a sandbox: leave it out"
        )
    if getattr(task, "MULTIMODAL", False):
        raise EvaluationError(f"task {name!r} asks a model about images; only tasks of text are run: leave it out")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say of a task what went wrong: its definition may fail in any way, since it may hold functions."""
    import jinja2
    import yaml
    from ruamel.yaml.error import YAMLError

    any_kind = (
        ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError,
        ValueError, jinja2.TemplateError, yaml.YAMLError, YAMLError,
    )  # fmt: skip
    try:
        yield
    except any_kind as error:
        line = f"{type(error).__name__}: {str(error).strip() or 'without a word'}".splitlines()[0]
        if _could_not_fetch(error):
            raise EvaluationError(
                f"{what}: what it needs is not on this machine and could not be fetched ({line}); connect to the "
                "network, put it into the cache of the Hub, or choose a task with data of its own"
            ) from error
        raise EvaluationError(f"{what}: cannot be loaded ({line})") from error


@contextmanager
def _without_fetched_code() -> Iterator[list[str]]:
    """Keep tasks from fetching metrics as code from the Hub, and note which they ask for.

    Yields:
        the names of those metrics, filled in as they are asked for.
    """
    asked: list[str] = []

    def refuse(name: str, *_: Any, **__: Any) -> None:
        asked.append(name)
        raise RuntimeError(f"metric {name!r} is code on the Hub")

    with patch("evaluate.load", refuse):
        yield asked


def _could_not_fetch(error: BaseException | None) -> bool:
    while error is not None:
        if any(_OFFLINE.search(kind.__name__) for kind in type(error).__mro__):
            return True
        error = error.__cause__ or error.__context__
    return False
