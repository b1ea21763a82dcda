"""What is wrong with a model that can be told from its configuration and its headers."""

from __future__ import annotations

from pathlib import Path

from mango.architectures.screening import screen, screen_tensors
from mango.checkpoints import Checkpoint, ModelSource, read_configuration

CONFIG_NAME = "config.json"


def refuse_early(source: ModelSource) -> None:
    """Refuse a model folder that cannot be extracted, in a moment; what is no folder is looked at when it is fetched.

    Args:
        source: where the model is.

    Raises:
        ArchitectureError: its model type is unknown, it has no blocks, or its parts do not fit.
        CheckpointError: its configuration and its weights do not belong together, or a file is malformed.
        UnsafeFileError: its configuration selects code, or asks for more than any real model has.
    """
    folder = Path(source.source).expanduser()
    if source.gguf_file is not None or not (folder / CONFIG_NAME).is_file():
        return
    refuse_folder(folder)


def refuse_folder(folder: Path) -> Checkpoint | None:
    """Refuse a model folder as `refuse_early` does, and return its checkpoint, or None where it has no weights.

    Args:
        folder: the folder, with its ``config.json``.

    Raises:
        ArchitectureError: as `refuse_early` does.
        CheckpointError: as `refuse_early` does.
        UnsafeFileError: as `refuse_early` does.
    """
    raw = read_configuration(folder)
    screen(raw, str(folder / CONFIG_NAME))
    if not any(folder.glob("*.safetensors")):
        return None
    checkpoint = Checkpoint.open_unhashed(folder)
    screen_tensors(raw, {info.name: info.shape for info in checkpoint.infos()}, str(folder))
    return checkpoint
