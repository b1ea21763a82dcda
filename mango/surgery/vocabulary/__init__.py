"""Giving a model the vocabulary of another."""

from __future__ import annotations

from mango.surgery.vocabulary.params import TransplantParams
from mango.surgery.vocabulary.transplant import TransplantReport, transplant

__all__ = ["TransplantParams", "TransplantReport", "transplant"]
