"""The support table that ships with the package: what the conformance suite found about each model type."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files

from mango.config import near
from mango.errors import UnknownNameError


@dataclass(frozen=True)
class Support:
    """What can be done with one model type.

    Args:
        model_type: ``config.model_type``.
        task: what it is built for, one of :data:`mango.architectures.TASKS`, or None where it cannot be built.
        family: ``causal``, ``masked``, ``seq2seq``, ``text``, ``vision``, ``multimodal``, ``audio`` or ``other``.
        host: whether its blocks were found, run alone and take wrappers, to the bit.
        guest: whether it was fused as an expert of a plain trunk; of models whose task is not fused in experts, whether
            nothing speaks against their blocks in another model.
        fused: whether it was fused with a model for the same task, as guest and as trunk, and every expert ran.
        cached_decode: whether fused models of it decode with a cache as without.
        reason: why not, or None.
        whole: why it is a trunk in one span of all its blocks alone, or None.
    """

    model_type: str
    task: str | None
    family: str
    host: bool
    guest: bool
    fused: bool
    cached_decode: bool
    reason: str | None
    whole: str | None


@lru_cache(maxsize=1)
def support_table() -> dict[str, Support]:
    """Return the table by model type, sorted."""
    document = json.loads(files("mango.architectures").joinpath("support.json").read_text("utf-8"))
    rows = (Support(**{field.name: row[field.name] for field in fields(Support)}) for row in document["rows"])
    return {row.model_type: row for row in rows}


def support(model_type: str) -> Support:
    """Return what can be done with a model type.

    Raises:
        UnknownNameError: the table has no such type.
    """
    table = support_table()
    if model_type not in table:
        hint = near(model_type, list(table)) or "."
        raise UnknownNameError(f"unknown model type {model_type!r}{hint} `mango architectures` lists all {len(table)}")
    return table[model_type]
