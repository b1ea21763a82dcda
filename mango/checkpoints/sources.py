"""Where a model comes from: a folder, the Hugging Face Hub, or a GGUF file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from mango.checkpoints.durable import recover_folder
from mango.checkpoints.gguf import convert_gguf
from mango.checkpoints.hashing import sha256_file
from mango.checkpoints.names import check_inside
from mango.checkpoints.pickles import SIDE_FILES, SUFFIXES, convert_pickles, pickled_weights
from mango.config import Frozen
from mango.errors import CheckpointError, UnsafeFileError
from mango.security import Place, Policy, Tier, current_policy, may_depend_on_bytes, tier_of

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_FILES = ["*.safetensors", "model.safetensors.index.json", *SIDE_FILES]
_HUB_PICKLES = ["*.bin.index.json", *(f"*{suffix}" for suffix in SUFFIXES)]


class ModelSource(Frozen):
    """Where a model is.

    Attributes:
        source: a model folder, a ``.gguf`` file, or the id of a Hub repository.
        revision: branch, tag or commit of the Hub repository; pin a commit for results that can be repeated.
        gguf_file: the file to take, inside the folder or repository, when that holds GGUF files.
    """

    source: str = Field(min_length=1)
    revision: str | None = None
    gguf_file: str | None = Field(default=None, pattern=r"\.gguf$")


def default_cache() -> Path:
    """Return the folder for converted models: ``$MANGO_CACHE``, else ``~/.cache/mango``."""
    return Path(os.environ.get("MANGO_CACHE") or Path.home() / ".cache" / "mango")


def resolve(source: ModelSource, cache: Path | None = None, policy: Policy | None = None) -> Path:
    """Return the local folder of a model, with ``config.json`` and safetensors weights.

    A folder with safetensors is returned as it is. A Hub repository is downloaded: safetensors, configuration and
    tokenizer files only, never code. A GGUF file is converted once into the cache, and so are pickled checkpoints
    where the policy gives the model the tier ``unknown`` (in the sandbox) or ``trusted`` (as weights only).

    Args:
        source: where the model is.
        cache: where converted files and downloads are kept; by default :func:`default_cache` for conversions and the
            Hub's own cache for downloads.
        policy: whom to trust; by default the one in force, see :func:`mango.security.current_policy`.

    Raises:
        CheckpointError: the model is missing, cannot be downloaded or cannot be converted.
        UnsafeFileError: the tier of the model does not allow what it is.
        IntegrityError: the policy asks for a signature, and the model's does not fit.
    """
    policy = current_policy() if policy is None else policy
    path = Path(source.source).expanduser()
    recover_folder(path)
    if path.is_file() and path.suffix == ".gguf":
        if source.gguf_file is not None:
            raise CheckpointError(f"{path}: is a GGUF file already; leave out gguf_file: {source.gguf_file}")
        return convert_gguf(path, cache or default_cache())
    if path.is_dir():
        if source.revision is not None:
            raise CheckpointError(
                f"{path}: a local folder has no revision {source.revision!r}; leave out revision, or rename the folder "
                "if the Hub repository of that name is meant"
            )
        if source.gguf_file is not None:
            return convert_gguf(gguf_inside(path, source.gguf_file), cache or default_cache())
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path}: holds no config.json, so it is no model folder")
        return _weights_of(path, tier_of(_place(path), policy, sha256_file), cache)
    if path.is_file():
        raise CheckpointError(
            f"{path}: is a file; a model folder, a .gguf file or a Hub id was wanted. A checkpoint alone becomes "
            f"safetensors by: mango convert {path} --out FOLDER"
        )
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(source.source):
        raise CheckpointError(f"{source.source}: no such model folder or file; check the path in the models section")
    return _from_hub(source, cache, policy)


def admit_hub(source: ModelSource, policy: Policy | None = None) -> None:
    """Refuse a Hub repository whose revision is not pinned, where its tier asks for that.

    Args:
        source: the repository.
        policy: whom to trust; by default the one in force.

    Raises:
        UnsafeFileError: the revision is no full commit; the message gives the commit to pin.
        CheckpointError: the repository cannot be had.
    """
    policy = current_policy() if policy is None else policy
    commit = source.revision if source.revision and _COMMIT.fullmatch(source.revision) else None
    if commit is not None:
        return
    place = Place(hub=source.source)
    if tier_of(place, policy, sha256_file) is Tier.COMMUNITY and not may_depend_on_bytes(place, policy):
        _refuse_unpinned(source)


def _refuse_unpinned(source: ModelSource) -> None:
    from huggingface_hub import HfApi

    with hub_errors(source):
        commit = HfApi().model_info(source.source, revision=source.revision).sha
    given = f"revision {source.revision!r} can move" if source.revision else "no revision is given"
    raise UnsafeFileError(
        f"{source.source}: {given}, and the policy gives it the tier `community`, which wants a commit: set "
        f"revision: {commit}"
    )


def tier_of_folder(folder: Path, policy: Policy | None = None) -> Tier:
    """Return the tier of a model folder or checkpoint file on this machine.

    Args:
        folder: the folder or file.
        policy: whom to trust; by default the one in force.

    Raises:
        IntegrityError: a rule asks for a signature, and the folder has one that does not fit.
    """
    return tier_of(_place(folder), current_policy() if policy is None else policy, sha256_file)


def _place(path: Path, hub: str | None = None) -> Place:
    weights = [path]
    if path.is_dir():
        weights = sorted(path.glob("*.safetensors")) or pickled_weights(path)
    return Place(hub=hub, path=path, commit=path.name if hub else None, weights=tuple(weights))


def _weights_of(folder: Path, tier: Tier, cache: Path | None) -> Path:
    """Return the folder itself, or where it has pickles only, that of its conversion."""
    if any(folder.glob("*.safetensors")) or not pickled_weights(folder):
        return folder
    return convert_pickles(folder, cache or default_cache(), tier=tier)


def gguf_inside(folder: Path, name: str) -> Path:
    """Return the path of a GGUF file in a folder.

    Raises:
        CheckpointError: it is not there.
        UnsafeFileError: it lies outside.
    """
    try:
        path = check_inside(folder / name, folder)  # a snapshot of the Hub's cache consists of links to its blobs
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{folder}: gguf_file {name!r} lies outside of it") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: no such GGUF file")
    return path


def _from_hub(source: ModelSource, cache: Path | None, policy: Policy) -> Path:
    admit_hub(source, policy)
    folder = _fetch(source, cache, _HUB_FILES if source.gguf_file is None else [source.gguf_file])
    pinned = source.revision is not None and bool(_COMMIT.fullmatch(source.revision))
    before = tier_of(Place(hub=source.source, commit=folder.name), policy, sha256_file)
    if source.gguf_file is None:
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{source.source}: the Hub repository holds no config.json, so it is no model")
        if not any(folder.glob("*.safetensors")):
            if before is Tier.COMMUNITY and not may_depend_on_bytes(Place(hub=source.source), policy):
                raise UnsafeFileError(
                    f"{source.source}: the Hub repository holds no safetensors weights, and the policy gives it the "
                    "tier `community`, which reads no pickles because they can run code. Give it the tier `unknown` "
                    "to convert it in the sandbox (docs/security.md)"
                )
            folder = _fetch(source, cache, [*_HUB_FILES, *_HUB_PICKLES])
            if not pickled_weights(folder):
                raise CheckpointError(f"{source.source}: the Hub repository holds no weights")
    if source.gguf_file is None:
        place = _place(folder, source.source)
    else:
        file = gguf_inside(folder, source.gguf_file)
        place = Place(hub=source.source, path=folder, commit=folder.name, weights=(file,))
    tier = tier_of(place, policy, sha256_file)
    if tier is Tier.COMMUNITY and not pinned:
        _refuse_unpinned(source)
    if source.gguf_file is not None:
        return convert_gguf(gguf_inside(folder, source.gguf_file), cache or default_cache())
    return _weights_of(folder, tier, cache)


def _fetch(source: ModelSource, cache: Path | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    hub_cache = None if cache is None else cache / "hub"
    with hub_errors(source):
        return Path(
            snapshot_download(source.source, revision=source.revision, allow_patterns=wanted, cache_dir=hub_cache)
        )


@contextmanager
def hub_errors(source: ModelSource) -> Iterator[None]:
    """Turn what the Hub's client raises, a broken connection included, into one line that names the repository.

    Raises:
        CheckpointError: the body met such an error.
    """
    from huggingface_hub import errors

    broken = errors.HTTPError  # type: ignore[attr-defined]  # of the client's own HTTP library, whichever it is
    known = (errors.HfHubHTTPError, errors.HFValidationError, errors.LocalEntryNotFoundError, broken, OSError)
    try:
        yield
    except (*known, errors.NotASafetensorsRepoError, errors.SafetensorsParsingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        at = f" at revision {source.revision!r}" if source.revision else ""
        raise CheckpointError(
            f"{source.source}: there is no such folder, and no model of that name{at} could be had from the Hub "
            f"({reason}). Check the name, the network and, for a gated model, the access token"
        ) from error
