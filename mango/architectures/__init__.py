"""Where each model family keeps its blocks, found by watching the model run rather than by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mango.architectures.component_map import ComponentMap, Stack
from mango.lazy import lazily

if TYPE_CHECKING:
    from mango.architectures.capture import BlockCall, block_list, capture_block_calls
    from mango.architectures.description import describe
    from mango.architectures.handlers import ARCHITECTURES, Handler, NoParams
    from mango.architectures.inputs import InputMaker
    from mango.architectures.meta import build_meta
    from mango.architectures.tasks import TASKS, build_class, task_of
else:
    __getattr__ = lazily(
        __name__,
        {
            "BlockCall block_list capture_block_calls": "capture",
            "describe": "description",
            "ARCHITECTURES Handler NoParams": "handlers",
            "InputMaker": "inputs",
            "build_meta": "meta",
            "TASKS build_class task_of": "tasks",
        },
    )

__all__ = [
    "ARCHITECTURES",
    "TASKS",
    "BlockCall",
    "ComponentMap",
    "Handler",
    "InputMaker",
    "NoParams",
    "Stack",
    "block_list",
    "build_class",
    "build_meta",
    "capture_block_calls",
    "describe",
    "task_of",
]
