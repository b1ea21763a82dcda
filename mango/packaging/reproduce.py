"""The command that makes a package again: the commit, and the parameters that were not committed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Collection, Mapping
from typing import Any

from mango.packaging.git import GitState

_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
_WORDS = {"true", "false", "null"}


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of nested parameters by dotted name; a list is one leaf, and so is an empty section."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= {f"{key}.{below}": leaf for below, leaf in flat(value).items()}
        else:
            leaves[key] = value
    return leaves


def changes(committed: Mapping[str, Any], used: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that were used and differ from the committed ones, by dotted name."""
    before = flat(committed)
    return {key: value for key, value in flat(used).items() if key not in before or before[key] != value}


def reproduce_command(git: GitState, target: str, changed: Mapping[str, Any], written: Collection[str]) -> str:
    """Return the shell command that makes a package again.

    Args:
        git: State of the code.
        target: Stage that makes the package.
        changed: Parameters that differ from the committed ones.
        written: Dotted names that stand in the committed file; others must be added to it.

    Returns:
        ``git checkout REVISION && dvc repro TARGET``, or with parameters ``dvc exp run -S KEY=VALUE TARGET``.
    """
    steps = [f"git checkout {git.revision}"] if git.revision else []
    settings = []
    for key, value in sorted(changed.items()):
        name = key if key in written else f"++{key}"
        settings.append(f"-S {shlex.quote(f'{name}={_value(value)}')}")
    steps.append(" ".join(["dvc exp run", *settings, target]) if settings else f"dvc repro {target}")
    return " && ".join(steps)


def _value(value: object) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS and not _numeric(value):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
