"""The ``mango`` command: one Typer app, a module for each command group, imported when a command of it runs."""

from __future__ import annotations

__all__: list[str] = []
