"""Mango composes new language models out of pretrained ones, reproducibly.

``import mango`` is cheap: the heavy libraries load when a name that needs them is first used, or when
``transformers`` opens a fused model.
"""

from __future__ import annotations

__version__ = "0.1.0"
