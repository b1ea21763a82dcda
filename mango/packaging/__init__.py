"""Packages: a fused checkpoint with a manifest that vouches for every byte, and a model card."""

from __future__ import annotations

from mango.packaging.build import build_package
from mango.packaging.card import model_card
from mango.packaging.data_sources import data_state
from mango.packaging.examination import examine
from mango.packaging.git import GitState, committed_text, git_state
from mango.packaging.licences import Licensed, licence_warnings
from mango.packaging.manifest import (
    DataSource,
    DataState,
    EvaluationSummary,
    GateResult,
    Metric,
    PackageManifest,
    PackedFile,
    Parent,
    metric_value,
    read_manifest,
    verify_package,
)
from mango.packaging.opening import open_package
from mango.packaging.params import PackageParams
from mango.packaging.parents import content_sha256, parents_of
from mango.packaging.reproduce import changes, flat, reproduce_command

__all__ = [
    "DataSource",
    "DataState",
    "EvaluationSummary",
    "GateResult",
    "GitState",
    "Licensed",
    "Metric",
    "PackageManifest",
    "PackageParams",
    "PackedFile",
    "Parent",
    "build_package",
    "changes",
    "committed_text",
    "content_sha256",
    "data_state",
    "examine",
    "flat",
    "git_state",
    "licence_warnings",
    "metric_value",
    "model_card",
    "open_package",
    "parents_of",
    "read_manifest",
    "reproduce_command",
    "verify_package",
]
