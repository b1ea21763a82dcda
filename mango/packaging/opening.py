"""Opens a package after a check of every byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mango.checkpoints import open_model, open_tokenizer
from mango.packaging.manifest import verify_package
from mango.security.signing import verify_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_package(folder: Path, *, key: Path | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Open a package: nothing is loaded before every file is found to be what the manifest says.

    Args:
        folder: The package.
        key: Public key (PEM) whose owner must have signed the package; None takes an unsigned one too.

    Returns:
        The model, in evaluation mode as `transformers` opens it, and its tokenizer; None for a model of images.

    Raises:
        PackagingError: The manifest cannot be read, or a file is missing, surplus, a link or changed; it is named.
        CheckpointError: A file is malformed or was made to mislead, a tensor is missing, or a weight is not finite.
        IntegrityError: The package is not signed by the key's owner, or differs from what was signed.
        ConfigError: The key cannot be read.
    """
    if key is not None:
        verify_folder(folder, key)
    verify_package(folder)
    model = open_model(folder, finite=True)
    return model, None if model.main_input_name == "pixel_values" else open_tokenizer(folder)
