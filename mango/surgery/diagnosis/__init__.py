"""How models differ, measured before they are merged."""

from __future__ import annotations

from mango.surgery.diagnosis.diagnose import diagnose
from mango.surgery.diagnosis.findings import Finding
from mango.surgery.diagnosis.html import render
from mango.surgery.diagnosis.result import Diagnosis

__all__ = ["Diagnosis", "Finding", "diagnose", "render"]
