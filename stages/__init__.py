"""The pipeline: one module for each stage, run by DVC as ``python -m stages.NAME``."""

from __future__ import annotations

__all__: list[str] = []
