"""The room as a whole: what it exports and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import mango.tracking


def test_the_public_surface() -> None:
    assert sorted(mango.tracking.__all__) == [
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
    assert all(hasattr(mango.tracking, name) for name in mango.tracking.__all__)


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, mango.tracking, mango.cli.registry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {
        "mlflow",
        "torch",
        "transformers",
        "pandas",
        "numpy",
        "sqlalchemy",
        "alembic",
        "psycopg",
        "boto3",
        "psutil",
    }
    assert loaded & heavy == set()
