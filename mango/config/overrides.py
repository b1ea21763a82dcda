"""Overrides from the environment and the command line, and where DVC must be asked instead."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mango.config.document import Key, parse_value
from mango.errors import ConfigError

PREFIX = "MANGO_PARAM__"


@dataclass(frozen=True)
class Override:
    """One parameter set outside the YAML file.

    Args:
        key: path of the parameter.
        value: its value, read as YAML.
        text: the value as it was written.
        origin: how messages call the place (``"--set router.type"``).
    """

    key: Key
    value: Any
    text: str
    origin: str


def read_overrides(environ: Mapping[str, str], assignments: Sequence[str]) -> list[Override]:
    """Return the overrides in the order in which they apply: environment, then command line.

    Args:
        environ: ``MANGO_PARAM__router__type=topk`` sets ``router.type``; other names are left alone.
        assignments: ``"router.type=topk"``, as given to ``--set``.

    Raises:
        ConfigError: an assignment has no ``=`` or no key, or, inside a DVC stage, there is any override at all:
            DVC would not see it, and would take the result for that of params.yaml.
    """
    found, problems = [], []
    for name in sorted(environ):
        if name.startswith(PREFIX):
            found.append((name.removeprefix(PREFIX).split("__"), environ[name], f"environment {name}"))
    for assignment in assignments:
        dotted, equals, text = assignment.partition("=")
        if equals:
            found.append((dotted.split("."), text, f"--set {dotted}"))
        else:
            problems.append(f"--set {assignment}: has no '=': write KEY=VALUE, for example router.type=topk")
    overrides = []
    for parts, text, origin in found:
        if all(parts):
            overrides.append(Override(tuple(parts), parse_value(text, origin), text, origin))
        else:
            problems.append(f"{origin}: has an empty part in its key: write SECTION.KEY, for example router.type")
    if environ.get("DVC_STAGE"):
        problems += [_refusal(override, environ["DVC_STAGE"]) for override in overrides]
    if problems:
        raise ConfigError("\n".join(problems))
    return overrides


def _refusal(override: Override, stage: str) -> str:
    assignment = shlex.quote(f"{'.'.join(map(str, override.key))}={override.text}")
    return f"{override.origin}: DVC does not see this inside stage {stage!r}: use `dvc exp run -S {assignment}`"
