"""The ways in which Mango opens a model folder as a configuration, a tokenizer or a model: checked first, then built.

No other part of Mango calls ``from_pretrained`` on a folder by itself. Code of a repository is never run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mango.auto import AUTO_CLASSES, MODEL_TYPE
from mango.checkpoints.configurations import (
    BOUNDS,
    GENERATION_NAME,
    check_configuration,
    read_configuration,
)
from mango.checkpoints.documents import read_json
from mango.checkpoints.names import check_inside
from mango.checkpoints.reader import INDEX_NAME, SINGLE_NAME, Checkpoint
from mango.checkpoints.templates import chat_templates
from mango.checkpoints.tokenizer_rules import check_tokenizer
from mango.checkpoints.vouching import check_hashes, checked_hashes
from mango.errors import CheckpointError, MangoError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_CLOSED: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def open_config(folder: Path | str) -> PretrainedConfig:
    """Return the configuration of a model folder, checked before transformers sees it.

    Args:
        folder: the model folder.

    Raises:
        CheckpointError: ``config.json`` is missing or malformed, or transformers refuses it.
        IntegrityError: a file differs from its hash.
        UnsafeFileError: it selects code, or asks for more than any real model has.
    """
    folder = Path(folder)
    check_hashes(folder)
    read_configuration(folder)
    from transformers import AutoConfig

    with _building(folder / "config.json"):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, **_CLOSED)
    return config


def open_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model folder, its files checked before any library reads them.

    Args:
        folder: a folder with a tokenizer, and perhaps a model.

    Raises:
        CheckpointError: a file is missing or malformed, or the tokenizers library refuses it.
        IntegrityError: a file differs from its hash.
        UnsafeFileError: it holds more than any real tokenizer, or chooses code.
    """
    folder = Path(folder)
    check_hashes(folder)
    if not check_tokenizer(folder):
        raise CheckpointError(f"{folder}: holds no tokenizer; copy tokenizer.json and tokenizer_config.json there")
    chat_templates(folder)
    if (folder / "config.json").is_file():  # the tokenizer's class may depend on it
        read_configuration(folder)
    from transformers import AutoTokenizer

    with _building(folder, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **_CLOSED)
    return tokenizer


def open_processor(folder: Path | str) -> Any:
    """Return what turns images and text into a model's inputs, from a folder that is checked first.

    Args:
        folder: a folder with a tokenizer and a processor.

    Raises:
        CheckpointError: a file is missing or malformed, or the processor cannot be built.
        IntegrityError: a file differs from its hash.
        UnsafeFileError: a file holds more than any real tokenizer, or chooses code.
    """
    open_tokenizer(folder)
    from transformers import AutoProcessor

    opener: Any = AutoProcessor
    try:
        return opener.from_pretrained(folder, **_CLOSED)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{folder}: holds no processor of images and text that can be opened: {first}") from error


def open_model(
    folder: Path | str, *, dtype: torch.dtype | str = "auto", finite: bool = False, task: str = "causal-lm"
) -> PreTrainedModel:
    """Return the model of a folder, checked first, in evaluation mode and on the CPU.

    Large files are hashed while they load; the model is returned when every hash is right.

    Args:
        folder: the model folder.
        dtype: element type of its weights; as stored with ``"auto"``.
        finite: read every weight and refuse NaN and infinite numbers.
        task: what to open it for, of :data:`mango.auto.AUTO_CLASSES`; a fused model says itself what it is for.

    Raises:
        CheckpointError: a file is missing or malformed, transformers refuses the model, or tensors are missing,
            surplus or of another shape than the configuration asks for.
        IntegrityError: a file differs from its hash, or, if asked for, a weight is not finite.
        UnsafeFileError: a file was made to mislead; see :class:`Checkpoint` and :func:`read_configuration`.
    """
    folder = Path(folder)
    with prepared(folder) as checkpoint:
        if finite:
            from mango.checkpoints.values import check_values

            check_values(checkpoint)
        with _building(folder):
            opened: Any = _auto_class(folder, task).from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **_CLOSED
            )
    model, info = opened
    refuse_other_tensors(folder, info)
    loaded: PreTrainedModel = model
    loaded.train(False)
    return loaded


def check_tensors(folder: Path | str) -> str:
    """Check that the tensors of a model folder are those that its configuration asks for; no weight is read.

    Returns:
        The class of the model.

    Raises:
        CheckpointError: tensors are missing, surplus or of another shape, or transformers refuses the model.
        UnsafeFileError: a file was made to mislead.
    """
    folder = Path(folder)
    check_size(read_configuration(folder), Checkpoint.open_unhashed(folder), str(folder / "config.json"))
    with _building(folder):
        opened: Any = _own_class(folder).from_pretrained(
            folder, device_map="meta", use_safetensors=True, output_loading_info=True, **_CLOSED
        )
    model, info = opened
    refuse_other_tensors(folder, info)
    return type(model).__name__


def _own_class(folder: Path) -> Any:
    """Return the class of transformers that a checked folder's configuration names, else that of causal models."""
    import transformers

    names = read_json(folder / "config.json").get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    return _auto_class(folder, "causal-lm")


def _auto_class(folder: Path, task: str) -> Any:
    """Return the Auto class that opens a checked folder; a fused model's configuration says what it is for."""
    import transformers

    raw = read_json(folder / "config.json")
    if raw.get("model_type") == MODEL_TYPE:
        task = raw.get("task", "causal-lm")
        if task not in AUTO_CLASSES:
            known = ", ".join(AUTO_CLASSES)
            raise CheckpointError(f"{folder / 'config.json'}: task {task!r} is unknown. Known: {known}")
    return getattr(transformers, AUTO_CLASSES[task])


@contextmanager
def prepared(folder: Path | str) -> Iterator[Checkpoint]:
    """Check everything of a model folder that can be checked without a model, and let the body load it.

    Headers, index, configuration and every small file are checked before the body starts; hashes of large files are
    known at its end.

    Args:
        folder: the model folder.

    Yields:
        The opened checkpoint.

    Raises:
        CheckpointError: a file is missing or malformed.
        IntegrityError: a file differs from its hash.
        UnsafeFileError: a file was made to mislead.
    """
    folder = Path(folder)
    with checked_hashes(folder):
        raw = read_configuration(folder)
        checkpoint = Checkpoint.open_unhashed(folder)
        check_size(raw, checkpoint, str(folder / "config.json"))
        generation = folder / GENERATION_NAME
        if generation.is_file():
            check_configuration(read_json(check_inside(generation, folder), BOUNDS), str(generation))
        for info in checkpoint.infos():
            if info.dtype == "BOOL":
                checkpoint.tensor(info.name)
        yield checkpoint


def check_size(raw: Mapping[str, Any], checkpoint: Checkpoint, where: str) -> None:
    """Refuse a configuration that asks for more blocks, or a larger vocabulary, than the weights can hold.

    This bounds what is built by the size of the files, before anything is built.

    Raises:
        CheckpointError: there are fewer tensors than blocks, or fewer elements than tokens.
    """
    fused = raw.get("model_type") == MODEL_TYPE  # holds parts of models: fewer blocks than their configurations say
    sources = raw.get("sources")
    configs = [raw, *(sources.values() if fused and isinstance(sources, dict) else ())]
    limits = {"vocab_size": (sum(info.end - info.start for info in checkpoint.infos()), "bytes")}
    if not fused:
        limits |= dict.fromkeys(
            ("num_hidden_layers", "n_layer", "n_layers", "num_layers"), (len(checkpoint), "tensors")
        )
    for config in configs:
        for key, (limit, what) in limits.items():
            wanted = config.get(key) if isinstance(config, dict) else None
            if isinstance(wanted, int | float) and wanted > limit:
                raise CheckpointError(
                    f"{where}: {key} is {wanted}, but the weights hold {limit} {what}; "
                    "the configuration is not that of these weights"
                )


def refuse_other_tensors(folder: Path | str, info: Mapping[str, Any]) -> None:
    """Refuse a model whose tensors were not those of its configuration.

    Args:
        folder: the model folder, for messages.
        info: what ``from_pretrained`` returns with ``output_loading_info``.

    Raises:
        CheckpointError: tensors are missing, surplus or of another shape; they are named.
    """
    problems: list[str] = []
    for words, key in (("missing", "missing_keys"), ("surplus", "unexpected_keys"), ("misshapen", "mismatched_keys")):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ())
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{words} {', '.join(names[:3])}{more}")
    problems += [str(message).splitlines()[0] for message in list(info.get("error_msgs") or ())[:1]]
    if problems:
        place = next((Path(folder, name) for name in (SINGLE_NAME, INDEX_NAME) if Path(folder, name).is_file()), folder)
        raise CheckpointError(
            f"{place}: its tensors are not those that its config.json wants: "
            f"{'; '.join(problems)}; bring the checkpoint back or make it again"
        )


@contextmanager
def _building(where: Path, what: str = "model") -> Iterator[None]:
    try:
        yield
    except (MangoError, MemoryError):
        raise
    except Exception as error:  # these libraries raise every kind, down to plain Exception, at content they cannot use
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise CheckpointError(f"{where}: transformers cannot open this {what}: {reason}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how a library written in Rust fails at an assertion
            raise
        raise CheckpointError(f"{where}: a library cannot read this {what}: {str(error)[:300]}") from error
