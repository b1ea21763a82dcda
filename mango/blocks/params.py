"""Parameters of the extract-blocks stage."""

from __future__ import annotations

from typing import Literal

from mango.config import Frozen

Mode = Literal["reference", "copy"]


class ExtractParams(Frozen):
    """How blocks are stored.

    Args:
        mode: ``reference`` points into the models' own files; ``copy`` makes the store self-contained.
    """

    mode: Mode = "reference"
