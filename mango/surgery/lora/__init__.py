"""LoRA adapters out of fine-tuned models."""

from __future__ import annotations

from mango.surgery.lora.extraction import AdapterReport, LayerReport, extract_adapter
from mango.surgery.lora.params import ExtractionParams

__all__ = ["AdapterReport", "ExtractionParams", "LayerReport", "extract_adapter"]
