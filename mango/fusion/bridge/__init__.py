"""A guest that keeps its own tokenizer and its own edges: it reads the same text, and is told in the trunk's tokens."""

from __future__ import annotations

from mango.fusion.bridge.group import BridgedGroup
from mango.fusion.bridge.making import make_bridge
from mango.fusion.bridge.module import Bridge, BridgeSizes
from mango.fusion.bridge.running import Reading, RowReading, read, read_on, refuse_unless_alike

__all__ = [
    "Bridge",
    "BridgeSizes",
    "BridgedGroup",
    "Reading",
    "RowReading",
    "make_bridge",
    "read",
    "read_on",
    "refuse_unless_alike",
]
