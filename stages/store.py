"""The block store as the later stages read it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mango.blocks import BlockStore
    from stages.params import Params

STORE = Path("models/blocks")
MERGED_MODEL = Path("models/merged/main")
WITH_MERGED = Path("models/.blocks-with-merged")
"""Store that also holds the merged model. It only points into other folders, so it costs the reading of headers."""


def open_store(params: Params) -> BlockStore:
    """Return the block store; where the merged model is trunk or expert, one that holds it too.

    Args:
        params: all parameters.

    Raises:
        CheckpointError: a stage before this one has not run.
    """
    from mango.blocks import BlockStore, extract
    from mango.checkpoints import ModelSource
    from stages.params import MERGED

    names = {params.fusion.trunk, *(expert.model for expert in params.fusion.experts)}
    if MERGED not in names:
        return BlockStore.open(STORE)
    sources = {name: params.models[name] for name in sorted(names - {MERGED})}
    return extract({**sources, MERGED: ModelSource(source=str(MERGED_MODEL))}, WITH_MERGED, "reference")
