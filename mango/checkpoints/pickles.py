"""Pickled checkpoints become safetensors, once, in a cache: in the sandbox, or as weights only if they are trusted."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

import mango
from mango import security
from mango.checkpoints.conversion import InProcess, InSandbox, Reading, scan
from mango.checkpoints.documents import read_json
from mango.checkpoints.durable import replace_folder, write_file
from mango.checkpoints.exchange import recover
from mango.checkpoints.failures import writing
from mango.checkpoints.hashing import sha256_file
from mango.checkpoints.headers import read_header
from mango.checkpoints.magic import recognise
from mango.checkpoints.manifest import MANIFEST_NAME
from mango.checkpoints.names import check_inside, is_file_name
from mango.checkpoints.reader import INDEX_NAME, SINGLE_NAME
from mango.errors import CheckpointError, IntegrityError, UnsafeFileError

REPORT_NAME = "conversion.json"
"""What was converted and how, and what the scanners said; it lies beside the converted weights."""

SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
"""Patterns of what belongs to a model beside its weights; never code."""

_LAYOUT_VERSION = 1  # of the converted folder; a change makes new cache entries
_SINGLE = ("pytorch_model.bin", "model.pt", "model.pth", "model.bin", "model.ckpt")
_INDEX = "pytorch_model.bin.index.json"
_NOT_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")
_MAX_SIDE_BYTES = 256 * 2**20
_PICKLED = ("zip", "tar", "pickle")
_log = logging.getLogger(__name__)


def pickled_weights(folder: Path) -> list[Path]:
    """Return the weight files of a folder that has none in safetensors: its shards, or the one checkpoint in it.

    Raises:
        CheckpointError: there is none, or several and no telling which one is meant.
        UnsafeFileError: the index or a link leads out of the folder.
    """
    if (folder / _INDEX).is_file():
        return [folder / name for name in sorted(set(_weight_map(folder).values()))]
    for name in _SINGLE:
        if (folder / name).is_file():
            return [check_inside(folder / name, folder)]
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES and path.is_file() and not path.name.startswith(_NOT_WEIGHTS)
    )
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: holds {len(found)} checkpoints ({found[0].name}, {found[1].name}, ...), and none of the usual "
            f"name; leave the one that is meant, or call it {_SINGLE[0]}"
        )
    return [check_inside(path, folder) for path in found]


def _weight_map(folder: Path) -> dict[str, str]:
    index = check_inside(folder / _INDEX, folder)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise IntegrityError(f"{index}: has no weight_map; copy or download the model again")
    for name, file in weight_map.items():
        if not is_file_name(file) or Path(file).suffix not in SUFFIXES:
            raise UnsafeFileError(f"{index}: puts {name!r} into {file!r}; a shard lies beside its index")
        if not check_inside(folder / file, folder).is_file():
            raise IntegrityError(f"{folder / file}: shard is missing; copy or download the model again")
    return weight_map


def convert_pickles(source: Path | str, cache: Path, *, tier: security.Tier) -> Path:
    """Return the folder in the cache with a checkpoint's weights as safetensors; convert it there if it is not there.

    The entry is named by the SHA-256 of everything that goes into it. Beside the weights lie copies of the model's
    configuration and tokenizer, where ``source`` is a model folder, and ``conversion.json``: how each file was read,
    what it would have imported, and what picklescan and fickling say of it.

    Args:
        source: a checkpoint that torch or pickle wrote, or a model folder with one, whole or in shards.
        cache: folder for converted models.
        tier: ``unknown``: in the sandbox; ``trusted``: by torch in this process, as weights only.

    Raises:
        UnsafeFileError: the tier does not allow it, a part of the sandbox is missing, or the file broke its limits.
        CheckpointError: the checkpoint is damaged, holds no tensors or some that safetensors cannot hold, or nothing
            can be written.
    """
    source = Path(source)
    files, side = _files_of(source, tier)
    digests = {path: sha256_file(path) for path in [*files, *side]}
    key = hashlib.sha256(
        json.dumps([tier.value, *sorted((path.name, digest) for path, digest in digests.items())]).encode()
    ).hexdigest()
    if not side and len(files) == 1 and tier is security.Tier.UNKNOWN:
        key = digests[files[0]]
    folder = cache / "pickles" / f"v{_LAYOUT_VERSION}-{key}"
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        recover(folder)
        if not (folder / MANIFEST_NAME).is_file():
            _log.info("converting %s into %s", source, folder)
            with replace_folder(folder) as new:
                for line in _convert(source, files, side, digests, tier, new):
                    _log.warning("%s", line)
    return folder


def write_converted(source: Path | str, out: Path | str, *, tier: security.Tier) -> list[str]:
    """Convert a checkpoint as `convert_pickles` does, into a folder of the user's choice.

    Returns:
        What a person should know: what scanners warn of, what was left out.

    Raises:
        CheckpointError: as `convert_pickles`; an older version of ``out`` is intact.
    """
    source = Path(source)
    files, side = _files_of(source, tier)
    digests = {path: sha256_file(path) for path in [*files, *side]}
    with replace_folder(out) as new:
        return _convert(source, files, side, digests, tier, new)


def scan_pickles(source: Path | str) -> dict[str, dict[str, Any]]:
    """Return what picklescan and fickling say of each pickled file of a model folder, or of one file.

    Raises:
        UnsafeFileError: a part of the sandbox, in which they run, is missing.
        CheckpointError: the files cannot be read.
    """
    source = Path(source)
    files = pickled_weights(source) if source.is_dir() else [source]
    return {file.name: scan(file) for file in files if recognise(file) in _PICKLED}


def _files_of(source: Path, tier: security.Tier) -> tuple[list[Path], list[Path]]:
    files = pickled_weights(source) if source.is_dir() else [source]
    if not files:
        raise CheckpointError(f"{source}: holds no checkpoint")
    if tier is security.Tier.COMMUNITY:
        raise UnsafeFileError(
            f"{files[0]}: is no safetensors file, and the policy gives it the tier `community`, which reads no pickles "
            "because they can run code. Give it the tier `unknown` to convert it in the sandbox (docs/security.md)"
        )
    return files, _side_files(source) if source.is_dir() else []


def _side_files(folder: Path) -> list[Path]:
    found = []
    for pattern in SIDE_FILES:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and path.suffix in {".json", ".txt", ".jinja", ".model", ""}:
                if check_inside(path, folder).stat().st_size > _MAX_SIDE_BYTES:
                    raise UnsafeFileError(f"{path}: is larger than any real file of that name; it is not copied")
                found.append(path)
    return list(dict.fromkeys(found))


def _convert(
    source: Path, files: list[Path], side: list[Path], digests: Mapping[Path, str], tier: security.Tier, new: Path
) -> list[str]:
    warnings: list[str] = []
    names = [SINGLE_NAME]
    if len(files) > 1:
        names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    inputs = []
    shards: dict[str, str] = {}
    for file, name in zip(files, names, strict=True):
        before = _identity(file)
        reading = _read(file, new / name, tier)
        if _identity(file) != before:
            raise IntegrityError(f"{file}: was changed while it was read; convert it again")
        inputs.append({"file": file.name, "sha256": digests[file], "size": before[2], **reading.to_dict()})
        for tensor in read_header(new / name):
            if tensor in shards:
                raise IntegrityError(f"{file}: holds {tensor!r}, which another shard holds too")
            shards[tensor] = name
        warnings += [f"{file}: {line}" for line in reading.warnings()]
    if len(files) > 1:
        _check_shards(source, dict(zip(names, files, strict=True)), shards)
        total = sum((new / name).stat().st_size for name in names)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shards.items()))}
        write_file(new / INDEX_NAME, json.dumps(index, indent=1) + "\n")
    for path in side:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digests[path]:
            raise IntegrityError(f"{path}: was changed while it was read; convert it again")
        write_file(new / path.relative_to(source), content)
    report = {"format_version": 1, "mango": mango.__version__, "tier": tier.value, "inputs": inputs}
    write_file(new / REPORT_NAME, json.dumps(report, indent=1, sort_keys=True) + "\n")
    return warnings


def _check_shards(source: Path, files: Mapping[str, Path], shards: Mapping[str, str]) -> None:
    wanted = _weight_map(source)
    for tensor in sorted({*wanted, *shards}):
        place = files[shards[tensor]].name if tensor in shards else None
        if place != wanted.get(tensor):
            raise IntegrityError(
                f"{source / _INDEX}: puts {tensor!r} into {wanted.get(tensor)}, it is in {place}; download it again"
            )


def _read(file: Path, target: Path, tier: security.Tier) -> Reading:
    kind = recognise(file)
    if kind == "safetensors":
        read_header(file)
        with writing(target):
            target.write_bytes(file.read_bytes())
        return Reading(kind, "as it is", {}, {})
    if kind not in _PICKLED:
        raise UnsafeFileError(f"{file}: is no checkpoint that torch or pickle writes, by its first bytes ({kind})")
    method = InProcess() if tier is security.Tier.TRUSTED else InSandbox()
    return method.convert(file, target)


def _identity(path: Path) -> tuple[int, int, int, int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def read_report(folder: Path | str) -> dict[str, Any] | None:
    """Return the report about a conversion, or None for a folder that was not converted.

    Raises:
        CheckpointError: it is malformed.
    """
    path = Path(folder) / REPORT_NAME
    return read_json(path) if path.is_file() else None
