"""Typed configuration: the base of every parameter model, the one loader, and the settings that change no result."""

from __future__ import annotations

from mango.config.base import ContradictionError, Frozen, Problem, refuse
from mango.config.document import Document, parse_document, read_document
from mango.config.explain import near, section_problems
from mango.config.loader import Loaded, load, validate
from mango.config.settings import Settings

__all__ = [
    "ContradictionError",
    "Document",
    "Frozen",
    "Loaded",
    "Problem",
    "Settings",
    "load",
    "near",
    "parse_document",
    "read_document",
    "refuse",
    "section_problems",
    "validate",
]
