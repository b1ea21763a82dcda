"""Runs, registry and promotion on MLflow; the only room that imports it, and only when it is used."""

from __future__ import annotations

from mango.redaction import redact_text
from mango.tracking.package_store import open_package
from mango.tracking.pipeline import stage_run
from mango.tracking.promotion import PromotionResult, RollbackResult, promote, register, rollback
from mango.tracking.provenance import Provenance, why
from mango.tracking.repair import repair
from mango.tracking.runs import StageRun
from mango.tracking.settings import TrackingSettings
from mango.tracking.store import migrate
from mango.tracking.sync import SyncedRun, sync
from mango.tracking.ui import serve_ui, ui_server

__all__ = [
    "PromotionResult",
    "Provenance",
    "RollbackResult",
    "StageRun",
    "SyncedRun",
    "TrackingSettings",
    "migrate",
    "open_package",
    "promote",
    "redact_text",
    "register",
    "repair",
    "rollback",
    "serve_ui",
    "stage_run",
    "sync",
    "ui_server",
    "why",
]
