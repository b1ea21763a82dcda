"""Giving a model the vocabulary of another, and reading text of one tokenizer as that of another."""

from __future__ import annotations

from mango.surgery.vocabulary.pairing import Retokenised, Retokeniser, Retold
from mango.surgery.vocabulary.params import TransplantParams
from mango.surgery.vocabulary.transplant import TransplantReport, transplant

__all__ = ["Retokenised", "Retokeniser", "Retold", "TransplantParams", "TransplantReport", "transplant"]
