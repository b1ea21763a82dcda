"""Models changed or measured without training, beside the merge: adapters, experts, vocabularies, diagnoses."""

from __future__ import annotations

__all__: list[str] = []
