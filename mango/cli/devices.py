"""The device that a setting means, for commands that run models."""

from __future__ import annotations


def device_of(word: str) -> str:
    """Return the device for ``auto`` (a GPU where there is one), or the word itself."""
    import torch

    if word != "auto":
        return word
    return "cuda" if torch.cuda.is_available() else "cpu"


def without_bars() -> None:
    """Keep transformers from drawing bars of its own beside the command's."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
