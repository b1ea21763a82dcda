"""Who may be trusted with what: signatures, trust tiers, checks of what a file asks for, the sandbox."""

from __future__ import annotations

__all__: list[str] = []
