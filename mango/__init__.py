"""Mango composes new language models out of pretrained ones, reproducibly.

``import mango`` is cheap, and from then on ``AutoModelForCausalLM.from_pretrained`` opens fused models: the heavy
libraries load when one is opened, or when a room of the package is imported.
"""

from __future__ import annotations

from mango.auto import announce

__all__ = ["__version__"]

__version__ = "0.1.0"

announce()
