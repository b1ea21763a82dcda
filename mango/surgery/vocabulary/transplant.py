"""Writing a model with the vocabulary of another."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mango.checkpoints import (
    ModelSource,
    TensorSpec,
    copy_tokenizer,
    read_json,
    replace_folder,
    write_file,
    write_tensors,
)
from mango.checkpoints.vocabulary import Vocabulary, read_vocabulary
from mango.errors import MergeError
from mango.surgery.opened import OpenedModel, open_model
from mango.surgery.vocabulary.approximation import by_pursuit, by_spelling
from mango.surgery.vocabulary.matching import Matches, match
from mango.surgery.vocabulary.params import TransplantParams
from mango.surgery.vocabulary.rows import Combination, Rows
from mango.tensors import torch_dtype

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id")


@dataclass(frozen=True)
class TransplantReport:
    """What a transplantation did.

    Attributes:
        out: the folder written.
        approximation: how tokens that the model does not know were made.
        num_tokens: tokens of the new vocabulary.
        num_rows: rows of the new tables.
        num_exact: tokens that the model has itself.
        num_special: special tokens among them.
        num_approximated: tokens that are combinations of others.
        num_filled: tokens that got the mean (or noise, or zeros), since nothing is known of them.
        seconds: wall-clock time.
        notes: what a person should know and is no error.
    """

    out: Path
    approximation: str
    num_tokens: int
    num_rows: int
    num_exact: int
    num_special: int
    num_approximated: int
    num_filled: int
    seconds: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return {**asdict(self), "out": self.out.as_posix()}


def transplant(
    model: str,
    donor: str,
    out: Path | str,
    params: TransplantParams | None = None,
    models: Mapping[str, ModelSource] | None = None,
    *,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
) -> TransplantReport:
    """Give a model the vocabulary of a donor: its tokenizer, and embeddings and head in the order of its tokens.

    Tokens of the same bytes keep the model's own rows, in whatever style the two tokenizers write them. The others
    are combinations of the model's rows. All other weights stay bit for bit.

    Args:
        model: the model: a name from ``models``, a folder, or a Hub id.
        donor: the model whose vocabulary it gets; a folder with a tokenizer alone will do.
        out: folder of the result; an older version is replaced in one step at the end.
        params: how unknown tokens are made.
        models: where named models are.
        cache: see :func:`mango.checkpoints.resolve`.
        device: where combinations are computed.

    Returns:
        What was done.

    Raises:
        MergeError: the vocabularies share no token, or the approximation needs weights that the donor does not have.
        CheckpointError: a model or tokenizer cannot be read, or the result cannot be written; an older version is
            intact.
    """
    start = time.monotonic()
    params = params or TransplantParams()
    host = open_model(model, models, cache=cache)
    giver = _Donor.open(donor, models, cache)
    own, theirs = read_vocabulary(host.folder), read_vocabulary(giver.folder)
    old_rows = host.tensors[host.embeddings].shape[0]
    matches = match(own, theirs, rows=old_rows)
    if not matches.exact:
        raise MergeError(f"{donor}: shares no token with {model}, so nothing of its vocabulary can be placed")
    method, notes = _method(params, giver, matches, donor)
    num_rows = _num_rows(params, giver, theirs)
    makers = {
        name: _combinations(method, name, host, giver, matches, own, theirs, params, device) for name in _tables(host)
    }
    rows = {name: _rows(num_rows, matches, found) for name, found in makers.items()}
    specs = [
        TensorSpec(name, source.dtype, (num_rows, *source.shape[1:]) if name in rows else source.shape)
        for name, source in host.tensors.items()
    ]

    def produce(name: str) -> Tensor | Iterator[Tensor]:
        tensor = host.tensor(name).to(torch_dtype(host.tensors[name].dtype))
        return _new_table(tensor, rows[name], matches, params, method) if name in rows else tensor

    with replace_folder(out) as folder:
        write_tensors(folder, specs, produce)
        config, generation = _configurations(host, giver, theirs, num_rows)
        write_file(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        copy_tokenizer(giver.folder, folder, generation_config=False)
        if generation is not None:
            write_file(folder / "generation_config.json", json.dumps(generation, indent=2, sort_keys=True) + "\n")
    approximated = len(makers[host.embeddings])
    return TransplantReport(
        out=Path(out),
        approximation=method,
        num_tokens=len({*theirs.forms, *theirs.special}),
        num_rows=num_rows,
        num_exact=len(matches.exact),
        num_special=matches.num_special,
        num_approximated=approximated,
        num_filled=len(matches.missing) - approximated,
        seconds=time.monotonic() - start,
        notes=notes,
    )


@dataclass(frozen=True)
class _Donor:
    """Where a vocabulary comes from: a whole model, or a folder with a tokenizer alone."""

    folder: Path
    opened: OpenedModel | None

    @classmethod
    def open(cls, reference: str, models: Mapping[str, ModelSource] | None, cache: Path | None) -> _Donor:
        path = Path(reference).expanduser()
        if path.is_dir() and reference not in (models or {}) and not any(path.glob("*.safetensors")):
            return cls(path, None)
        opened = open_model(reference, models, cache=cache)
        return cls(opened.folder, opened)

    def table(self, name: str, host: OpenedModel) -> Tensor | None:
        """Return the donor's counterpart of one of the host's tables."""
        if self.opened is None:
            return None
        if name == host.embeddings or self.opened.head is None:
            return self.opened.tensor(self.opened.embeddings)
        return self.opened.tensor(self.opened.head)


def _tables(host: OpenedModel) -> list[str]:
    """Return the names of the tensors that have a row for each token."""
    rows = host.tensors[host.embeddings].shape[0]
    found = [host.embeddings]
    if host.parts.head is not None:
        found += [name for name in (host.head, f"{host.parts.head}.bias") if name in host.tensors]
    if wrong := [name for name in found if host.tensors[name].shape[0] != rows]:
        raise MergeError(
            f"{host.reference}: {wrong[0]} has {host.tensors[wrong[0]].shape[0]} rows, the embedding {rows}"
        )
    return found


def _method(params: TransplantParams, giver: _Donor, matches: Matches, donor: str) -> tuple[str, tuple[str, ...]]:
    shared = len(matches.exact) - matches.num_special
    wanted = params.approximation
    if wanted == "omp" and giver.opened is None:
        raise MergeError(f"{donor}: holds a tokenizer and no weights, which omp needs; use subword")
    if wanted != "auto":
        return wanted, ()
    if giver.opened is None:
        return "subword", (f"{donor} holds no weights, so tokens are spelt with the model's own",)
    if shared < 2 * params.k:
        return "subword", (f"only {shared} tokens are shared, too few for combinations of {params.k}: they are spelt",)
    return "omp", ()


def _num_rows(params: TransplantParams, giver: _Donor, theirs: Vocabulary) -> int:
    if params.pad_to_multiple_of is not None:
        multiple = params.pad_to_multiple_of
        return -(-theirs.size // multiple) * multiple
    own = 0 if giver.opened is None else giver.opened.tensors[giver.opened.embeddings].shape[0]
    return max(theirs.size, own)


def _combinations(
    method: str,
    name: str,
    host: OpenedModel,
    giver: _Donor,
    matches: Matches,
    own: Vocabulary,
    theirs: Vocabulary,
    params: TransplantParams,
    device: torch.device | str,
) -> dict[int, Combination]:
    if method not in ("omp", "subword") or not matches.missing:
        return {}
    rows = host.tensors[host.embeddings].shape[0]
    spelt = by_spelling(matches.missing, own, theirs, rows=rows)
    if method == "subword":
        return spelt
    table = giver.table(name, host)
    assert table is not None
    return spelt | by_pursuit(matches.missing, matches, table, params.k, device=device)


def _rows(num_rows: int, matches: Matches, made: Mapping[int, Combination]) -> Rows:
    combinations: list[Combination | None] = [None] * num_rows
    for number, source in matches.exact.items():
        combinations[number] = Combination([source], [1.0])
    for number, combination in made.items():
        combinations[number] = combination
    return Rows.of(combinations)


def _new_table(table: Tensor, rows: Rows, matches: Matches, params: TransplantParams, method: str) -> Iterator[Tensor]:
    """Yield the new table; a row of which nothing is known is the mean of shared ones, zeros, or drawn like them."""
    shared = table[torch.tensor(sorted(set(matches.exact.values())))].float()
    mean = shared.mean(0)
    if method == "zero":
        mean = torch.zeros_like(mean)
    noise = None
    if method == "random":
        generator = torch.Generator().manual_seed(params.seed)
        count = int((rows.starts.diff() == 0).sum())
        spread = shared.std(0) if len(shared) > 1 else torch.zeros_like(mean)
        noise = torch.randn(count, *mean.shape, generator=generator) * spread
        noise = noise.reshape(count, -1)
    yield from rows.apply(table, mean, noise=noise)


def _configurations(
    host: OpenedModel, giver: _Donor, theirs: Vocabulary, num_rows: int
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the model's configuration and its settings for generation, with the donor's size and special tokens."""
    declared = {} if giver.opened is None else giver.opened.config
    ids: dict[str, Any] = {}
    for key in _IDS:
        role = key.removesuffix("_id")
        ids[key] = declared.get(key, theirs.roles.get(role))
    config = {key: value for key, value in host.config.items() if key != "_name_or_path"}
    text = config.get("text_config")
    for section in [config, *([text] if isinstance(text, dict) else [])]:
        if "vocab_size" in section or (section is config and not isinstance(text, dict)):
            section["vocab_size"] = num_rows
        for key, value in ids.items():
            if key in section or (value is not None and key in _IDS[:3]):
                section[key] = value
    path = host.folder / "generation_config.json"
    if not path.is_file():
        return config, None
    generation = read_json(path)
    given = giver.folder / "generation_config.json"
    ids |= {key: value for key, value in (read_json(given) if given.is_file() else {}).items() if key in _IDS}
    for key, value in ids.items():
        if key in generation or value is not None:
            generation[key] = value
    return config, {key: value for key, value in generation.items() if value is not None}
