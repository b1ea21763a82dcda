"""Where each model family keeps its blocks, found by watching the model run rather than by its name."""

from mango.architectures.capture import BlockCall, block_list, capture_block_calls
from mango.architectures.component_map import ComponentMap
from mango.architectures.description import describe
from mango.architectures.meta import build_meta

__all__ = ["BlockCall", "ComponentMap", "block_list", "build_meta", "capture_block_calls", "describe"]
