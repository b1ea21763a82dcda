"""Merging models of one architecture into one: documents, plan, engine and methods."""

from __future__ import annotations

from mango.merging.batch import merge_all, merge_into_one, plan_all
from mango.merging.document import MergeDocument
from mango.merging.engine import MergeReport, merge, merge_tensors
from mango.merging.loading import load_document, load_documents
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
    "load_documents",
    "merge",
    "merge_all",
    "merge_into_one",
    "merge_method",
    "merge_tensors",
    "plan",
    "plan_all",
]
