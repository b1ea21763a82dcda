"""Configurations whose model is too large to be built even without weights are refused before anything is built."""

from __future__ import annotations

import math
import re

from transformers import PretrainedConfig

from mango.errors import ArchitectureError

MAX_BLOCKS = 4096
MAX_WIDTH = 1 << 20
MAX_ROWS = 1 << 28
MAX_MODULES = 1 << 20

_BLOCKS = re.compile(r"(^|_)(num_)?(hidden_)?layers?$|^n_layers?$|^depth$|^num_blocks$|_repeats?$")
_WIDTHS = re.compile(
    r"^(hidden_size|d_model|n_embd|dim|embed_dim|intermediate_size|ffn_dim|d_ff|n_inner)$|_hidden_size$"
)
_ROWS = re.compile(r"vocab_size|position_embeddings$|^n_positions$")
_EXPERTS = re.compile(r"num_(local_|routed_)?experts$|n_routed_experts$")


def check_size(config: PretrainedConfig) -> None:
    """Refuse a configuration with more blocks, a wider stream or a larger table than any real model has.

    Args:
        config: the configuration; the ones inside it are looked at too.

    Raises:
        ArchitectureError: a number in it is absurd.
    """
    where = f"{getattr(config, 'name_or_path', '') or 'this configuration'} (model type {config.model_type!r})"
    for level in levels(config):
        blocks, experts = 1, 1
        for name, value in vars(level).items():
            total = _total(value)
            if total is None:
                continue
            for pattern, most in ((_BLOCKS, MAX_BLOCKS), (_WIDTHS, MAX_WIDTH), (_ROWS, MAX_ROWS)):
                if pattern.search(name) and total > most:
                    raise ArchitectureError(
                        f"{where}: {name} is {total}; at most {most} are built. No real model has as many: correct "
                        "its config.json"
                    )
            if _BLOCKS.search(name):
                blocks = max(blocks, total)
            elif _EXPERTS.search(name):
                experts = max(experts, total)
        if blocks * experts > MAX_MODULES:
            raise ArchitectureError(
                f"{where}: {blocks} blocks of {experts} experts make {blocks * experts} parts; at most {MAX_MODULES} "
                "are built: correct its config.json"
            )


def _total(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value)
    if isinstance(value, list | tuple) and value and all(isinstance(v, int) for v in value):
        return sum(int(v) for v in value if v > 0)
    return None


def levels(config: PretrainedConfig) -> list[PretrainedConfig]:
    """Return a configuration and every one inside it."""
    found = [config]
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            found += levels(value)
    return found
