"""Opens a package after a check of every byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mango.packaging.manifest import verify_package

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_package(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Open a package: nothing is loaded before every file is found to be what the manifest says.

    Args:
        folder: The package.

    Returns:
        The model, in evaluation mode as `transformers` opens it, and its tokenizer.

    Raises:
        PackagingError: The manifest cannot be read, or a file is missing, surplus, a link or changed; it is named.
    """
    verify_package(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import mango  # noqa: F401  (lets transformers open the fused architecture)

    closed = {"local_files_only": True, "trust_remote_code": False}
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **closed)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **closed)
    return model, tokenizer
