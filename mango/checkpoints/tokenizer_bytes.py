"""Opening a tokenizer that lies in a tensor and not in a file of its own."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mango.checkpoints.tokenizer_rules import check_tokenizer
from mango.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def tokenizer_from_bytes(data: bytes) -> Tokenizer:
    """Open the content of a ``tokenizer.json``, checked first as a file is.

    Args:
        data: the content.

    Raises:
        CheckpointError: it is malformed.
        UnsafeFileError: it holds more than any real tokenizer.
    """
    from tokenizers import Tokenizer

    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(data)
        check_tokenizer(folder)
        try:
            json.loads(data)
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare exceptions
            raise CheckpointError(f"a bridge's tensors hold no tokenizer: {error}; build the model again") from error
