"""Merging models of one architecture into one: documents, plan, engine and methods."""

from __future__ import annotations

from mango.merging.document import MergeDocument, load_document
from mango.merging.engine import MergeReport, merge
from mango.merging.params import MergeParams
from mango.merging.plan import MergePlan, plan
from mango.merging.registry import MERGERS, MergeMethod, merge_method
from mango.merging.resolved import DOCUMENT_NAME

__all__ = [
    "DOCUMENT_NAME",
    "MERGERS",
    "MergeDocument",
    "MergeMethod",
    "MergeParams",
    "MergePlan",
    "MergeReport",
    "load_document",
    "merge",
    "merge_method",
    "plan",
]
