"""What a ``config.json`` may say: plain values of possible sizes, and nothing that chooses code to run.

transformers takes every key of the file: known ones as parameters, unknown ones as attributes of the configuration
object. Some choose code: a module of the repository, a kernel to download, a class of a quantisation library. Others
replace a method of the object. Real files hold keys that no class knows (notes of tools, parameters of older releases),
so unknown keys pass as long as they are inert; the rules below say what is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mango.checkpoints.documents import Bounds, read_json, shown
from mango.checkpoints.names import check_inside
from mango.checkpoints.reserved import config_methods
from mango.errors import UnsafeFileError
from mango.tensors import floating_name

CONFIG_NAME = "config.json"
GENERATION_NAME = "generation_config.json"
BOUNDS = Bounds(4 << 20, 200_000, depth=24, constants=True)
MAX_TEXT = 1 << 16

BUILT_IN = ("eager", "sdpa", "flex_attention", "grouped_mm", "batched_mm")
CODE_KEYS = frozenset(
    {
        "auto_map",
        "custom_code",
        "custom_generate",
        "custom_pipelines",
        "trust_remote_code",
        "code_revision",
        "module_path",
        "kernel_config",
        "kernel_mapping",
        "kernels",
        "kernel_repo",
        "use_kernels",
        "hub_kernel",
        "hub_kernels",
        "attribute_map",
        "sub_configs",
        "base_config_key",
        "_auto_class",
    }
)
_IMPLEMENTATION = re.compile(r"implementation(_internal|_autoset)?$")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_LONG = re.compile(r"token|_ids?$|position|length|seq|ctx|window|theta|base$|pixels|tokens|seed|steps|temperature")
_SIZE = re.compile(r"size|dim|width|hidden|inner|channels|rank|features|embd|d_model|d_ff|d_kv|ffn")
_COUNT = re.compile(r"^(n|num)_|layer|block|depth|stage|expert|head|group|stack|labels|codebook|repeat|beams")
_CAPS = (  # the first pattern that fits a key decides
    (re.compile(r"vocab"), 1 << 24),
    (_LONG, 1 << 32),
    (re.compile(r"(layers?|blocks?|depths?)(_num)?$"), 1024),
    (_SIZE, 1 << 20),
    (_COUNT, 1 << 14),
)
_CAP = 1 << 48
_WORDS = frozenset({"id2label", "label2id", "task_specific_params"})


def read_configuration(folder: Path | str) -> dict[str, Any]:
    """Return the content of a model folder's ``config.json``, checked.

    Keys that choose code pass in a folder that the policy in force trusts; see :func:`is_trusted`. Mango runs no code
    of a repository either way.

    Args:
        folder: the model folder.

    Raises:
        CheckpointError: the file is missing or malformed.
        UnsafeFileError: it selects code, replaces a method, or asks for more than any real model has.
    """
    folder = Path(folder)
    path = check_inside(folder / CONFIG_NAME, folder)
    return check_configuration(read_json(path, BOUNDS), str(path), trusted=lambda: is_trusted(folder))


def is_trusted(folder: Path) -> bool:
    """Tell whether the policy in force puts a local model folder into the trusted tier.

    Raises:
        ConfigError: the policy has an error.
        UnsafeFileError: others may write the policy.
    """
    from mango.checkpoints.hashing import sha256_file
    from mango.security.policy import Place, Tier, current_policy, tier_of

    place = Place(path=folder, weights=tuple(sorted(folder.glob("*.safetensors"))))
    return tier_of(place, current_policy(), sha256_file) is Tier.TRUSTED


def check_configuration(
    raw: dict[str, Any], where: str, *, trusted: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Check the content of a ``config.json`` before anything is built from it.

    Args:
        raw: the content; configurations inside it are checked alike.
        where: the file, for messages.
        trusted: asked when a key chooses code: whether it may.

    Returns:
        The same content.

    Raises:
        UnsafeFileError: the first key that is wrong, with what to do.
    """
    for path, key, value in _walk(raw, ()):
        at = f"{where}: {'.'.join(path)}"
        if not _WORDS.isdisjoint(path[:-1]):
            _check_text(at, value)  # these map words of the model's maker, not parameters
            continue
        problem = _code(at, key, value)
        if problem and not trusted():
            raise UnsafeFileError(problem)
        _check_value(at, key, value)
        if key in config_methods():
            raise UnsafeFileError(f"{at} would replace a method of the configuration; remove the key")
    return raw


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, Any]]:
    """Yield (path, nearest key, value) of everything below; the value of a list stands for each of its items."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in items:
        here = (*path, shown(name)[1:-1] if isinstance(name, str) else str(name))
        key = name if isinstance(name, str) else path[-1] if path else ""
        yield here, key, inner
        if isinstance(inner, dict | list):
            yield from _walk(inner, here)


def _code(at: str, key: str, value: Any) -> str | None:
    """Return what is wrong with a key that chooses code, or None."""
    if value is None or value is False:
        return None
    if key in CODE_KEYS:
        return f"{at} chooses code to run; remove the key, or put the source into the trusted tier"
    if key == "quantization_config":
        return (
            f"{at} chooses classes of a quantisation library: the weights are quantised; dequantise the model and save "
            "it first"
        )
    if _IMPLEMENTATION.search(key):
        chosen = value.values() if isinstance(value, dict) else [value]
        if not all(isinstance(one, bool | None) or (isinstance(one, str) and _built_in(key, one)) for one in chosen):
            return (
                f"{at} is {shown(value)}, which may name code to download; wanted one of {', '.join(BUILT_IN)}, or no "
                "such key"
            )
    if "kernel" in key and isinstance(value, str) and ("/" in value or ":" in value):
        return f"{at} is {shown(value)}, which names code to download; remove the key"
    return None


def _built_in(key: str, value: str) -> bool:
    if "attn" in key or "attention" in key or "expert" in key:
        return value in BUILT_IN
    return _IDENTIFIER.fullmatch(value) is not None  # such as the kind of cache, which names a class of transformers


def _check_value(at: str, key: str, value: Any) -> None:
    if (len(key) > 256 or not key.isprintable() or key.startswith("__")) and key != "__float__":
        raise UnsafeFileError(f"{at}: is no name that a parameter can have; remove it")
    _check_text(at, value)
    if isinstance(value, str):
        if key in ("model_type", "tokenizer_class") and value and not _IDENTIFIER.fullmatch(value):
            raise UnsafeFileError(f"{at} is {shown(value)}, which is no name; wanted letters, digits, dots and dashes")
        if key in ("dtype", "torch_dtype"):
            _check_dtype(at, value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        pattern, limit = next((cap for cap in _CAPS if cap[0].search(key)), (_LONG, _CAP))
        if not abs(value) <= limit and (isinstance(value, int) or pattern is not _LONG):
            raise UnsafeFileError(f"{at} is {value}; more than {limit} is in no real model and is not built")
    elif isinstance(value, list) and key == "architectures":
        for name in value:
            if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
                raise UnsafeFileError(f"{at} holds {shown(name)}, which is no name of a class")


def _check_text(at: str, value: Any) -> None:
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise UnsafeFileError(f"{at} has {len(value)} characters; at most {MAX_TEXT} are read")


def _check_dtype(at: str, value: str) -> None:
    word = value.removeprefix("torch.")
    if word == "auto":
        return
    try:
        floating_name(word)
    except KeyError:
        raise UnsafeFileError(
            f"{at} is {shown(value)}, which is no floating point type; wanted bfloat16, say"
        ) from None
