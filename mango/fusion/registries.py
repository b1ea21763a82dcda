"""The registries of adapters and routers; packages add to them through ``mango.adapters`` and ``mango.routers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mango.registry import Registry

if TYPE_CHECKING:
    from mango.fusion.adapters import Adapter
    from mango.fusion.routers import Router

ADAPTERS: Registry[type[Adapter]] = Registry("adapters", "adapter")
ROUTERS: Registry[type[Router]] = Registry("routers", "router")
