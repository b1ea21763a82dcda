"""Bringing embeddings of different vocabularies to one: which row of which model each token's embedding comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mango.errors import MergeError
from mango.merging.document import MergeDocument, TokenizerSection, TokenPolicy, TokenSource
from mango.merging.inputs import Input
from mango.merging.tensor_sources import TensorSource, total_read
from mango.merging.vocabularies import Vocabulary
from mango.tensors import torch_dtype

_STALE = frozenset({"vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "tokenizer.model"})


@dataclass(frozen=True, eq=False)
class Alignment:
    """The vocabulary of the result, and where its tokens are in every model.

    Attributes:
        vocabulary: the result's tokenizer.
        num_tokens: ids that it uses, from 0.
        num_rows: rows of the result's embedding: the same, padded.
        rows: for each model, its row of every id; -1 where it lacks the token.
        policies: what the document says of single tokens, by id.
        words: how the vocabulary came about, for people.
    """

    vocabulary: Vocabulary
    num_tokens: int
    num_rows: int
    rows: Mapping[str, torch.Tensor]
    policies: Mapping[int, tuple[str, TokenPolicy]]
    words: str


def section_of(document: MergeDocument) -> TokenizerSection | None:
    """Return what a document says of its vocabulary, in either of the two ways."""
    if document.tokenizer is not None:
        return document.tokenizer
    return None if document.tokenizer_source is None else TokenizerSection(source=document.tokenizer_source)


def align(document: MergeDocument, inputs: Mapping[str, Input]) -> Alignment | None:
    """Return the alignment that a document asks for, or None where it asks for none.

    Raises:
        MergeError: a model has no tokenizer, or a policy names a token that is not there.
    """
    section = section_of(document)
    if section is None:
        return None
    lead = next(iter(inputs.values()))
    known = {key: model.vocabulary for key, model in inputs.items() if model.vocabulary is not None}
    if lead.key not in known:
        raise MergeError(f"model {lead.key!r} has no tokenizer, and tokenizer asks for one: choose another base_model")
    vocabulary, words = _build(section, inputs, {key: known.get(key, known[lead.key]) for key in inputs})
    tokens = vocabulary.tokens
    num_tokens = max(tokens.values(), default=-1) + 1
    multiple = section.pad_to_multiple_of or 1
    rows = {}
    for key, model in inputs.items():
        own = known.get(key, known[lead.key]).tokens
        limit = _num_rows(model)
        found = torch.full((num_tokens,), -1, dtype=torch.int64)
        pairs = [(number, own[token]) for token, number in tokens.items() if own.get(token, limit) < limit]
        if pairs:
            ids = torch.tensor(pairs, dtype=torch.int64)
            found[ids[:, 0]] = ids[:, 1]
        rows[key] = found
    policies = {tokens[token]: (token, policy) for token, policy in (section.tokens or {}).items()}
    return Alignment(
        vocabulary=vocabulary,
        num_tokens=num_tokens,
        num_rows=-(-num_tokens // multiple) * multiple,
        rows=rows,
        policies=policies,
        words=words,
    )


def is_identity(alignment: Alignment, model: Input) -> bool:
    """Tell whether a model's embedding needs no change: every token is in its place, and no row is left over."""
    places = torch.arange(alignment.num_tokens)
    forced = any(policy.force for _, policy in alignment.policies.values())
    same = alignment.num_rows == _num_rows(model) == alignment.num_tokens
    return same and not forced and bool(torch.equal(alignment.rows[model.key], places))


def _num_rows(model: Input) -> int:
    if model.embedding is None:
        raise MergeError(
            f"model {model.key!r}: no tensor is called as an input embedding is, so its vocabulary is fixed"
        )
    return model.tensors[model.embedding].shape[0]


def _build(
    section: TokenizerSection, inputs: Mapping[str, Input], known: Mapping[str, Vocabulary]
) -> tuple[Vocabulary, str]:
    lead = next(iter(inputs))
    donor = section.source if section.source not in ("union", "base") else lead
    start = known[donor]
    backend = start.backend()
    before = backend.get_vocab_size(with_added_tokens=True)
    if section.source != "union" and donor == lead:
        backend = _without_rowless(inputs[lead], backend)
    changed = backend.get_vocab_size(with_added_tokens=True) != before
    if section.source == "union":
        added = _missing(inputs, known, set(backend.get_vocab(with_added_tokens=True)))
        for token in added:
            backend.add_tokens([token])
        changed = bool(added)
    present = backend.get_vocab(with_added_tokens=True)
    new = [token for token in section.tokens or {} if token not in present]
    if new:
        backend.add_tokens(new)
    what = f"union of {len(known)} vocabularies" if section.source == "union" else f"that of {donor!r}"
    size = backend.get_vocab_size(with_added_tokens=True)
    words = f"{what}: {size} tokens" + (f", {len(new)} of them new" if new else "")
    if not changed and not new:
        return start, words
    text = json.dumps(json.loads(backend.to_str()), ensure_ascii=False, indent=2)
    settings = {k: v for k, v in start.settings().items() if k != "added_tokens_decoder"}
    files = {"tokenizer.json": text.encode()}
    if settings:
        files["tokenizer_config.json"] = (json.dumps(settings, ensure_ascii=False, indent=2) + "\n").encode()
    return Vocabulary(start.folder, {**start.changed, **files}, start.removed | _STALE), words


def _missing(inputs: Mapping[str, Input], known: Mapping[str, Vocabulary], present: set[str]) -> list[Any]:
    """Return the tokens that the models have beyond these: plain ones first, each model's in the order of its ids."""
    plain: dict[str, None] = {}
    special: dict[str, Any] = {}
    for key, model in inputs.items():
        if known[key] is known[next(iter(inputs))] and key != next(iter(inputs)):
            continue
        limit = _num_rows(model)
        decoder = known[key].backend().get_added_tokens_decoder()
        added = {token.content: token for number, token in sorted(decoder.items()) if number < limit}
        for token, number in sorted(known[key].tokens.items(), key=lambda item: item[1]):
            if number < limit and token not in added and token not in present:
                plain[token] = None
        for content, token in added.items():
            if content not in present:
                special.setdefault(content, token)
    return [*(token for token in plain if token not in special), *special.values()]


def _without_rowless(model: Input, backend: Any) -> Any:
    """Return a tokenizer without the tokens for which the embedding has no row."""
    limit = _num_rows(model)
    rowless = {t for t, n in backend.get_vocab(with_added_tokens=True).items() if n >= limit}
    if not rowless:
        return backend
    from tokenizers import Tokenizer

    document = json.loads(backend.to_str())
    inside = document["model"]
    if inside["type"] not in ("BPE", "WordLevel", "WordPiece") and rowless & set(backend.get_vocab(False)):
        raise MergeError(
            f"model {model.key!r}: its tokenizer has {len(rowless)} tokens without a row in the embedding, and they "
            f"cannot be taken out of a {inside['type']} model: use tokenizer_source: union"
        )
    document["added_tokens"] = [entry for entry in document["added_tokens"] if entry["content"] not in rowless]
    if isinstance(inside.get("vocab"), dict):
        inside["vocab"] = {token: number for token, number in inside["vocab"].items() if token not in rowless}
    if "merges" in inside:
        pairs = [(merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in inside["merges"]]
        inside["merges"] = [m for m, parts in pairs if not rowless & {*parts, "".join(parts)}]
    return Tokenizer.from_str(json.dumps(document))


@dataclass(frozen=True, eq=False)
class Aligned(TensorSource):
    """A vocabulary tensor of one model with its rows in the order of the result's ids.

    Rows that the model lacks come from where the others have them: from the one model that has the token, from the
    base model if it does, else the mean of those that have it; zero where none does. Rows for padding are the mean
    of all others.

    Attributes:
        key: the model.
        members: the same tensor of every model that is merged with it, by key, in order.
        donors: the same tensor of models that only give single rows.
        base: key of the base model, if it is one of the members.
        alignment: the vocabulary of the result.
    """

    key: str
    members: Mapping[str, TensorSource]
    donors: Mapping[str, TensorSource]
    base: str | None
    alignment: Alignment

    @property
    def kept_dtype(self) -> str:
        """That of the model's own tensor."""
        return self.members[self.key].kept_dtype

    @property
    def held_bytes(self) -> int:
        """The new tensor, and what its sources hold."""
        own = super().held_bytes
        return own + max(source.held_bytes for source in self.members.values())

    @property
    def read_bytes(self) -> int:
        """About its own tensor."""
        return total_read([self.members[self.key]])

    def load(self) -> torch.Tensor:
        """Gather the rows."""
        alignment, own = self.alignment, self.alignment.rows[self.key]
        result = torch.zeros(self.shape, dtype=torch_dtype(self.dtype))
        forced = torch.zeros(alignment.num_tokens, dtype=torch.bool)
        for number, (_, policy) in alignment.policies.items():
            forced[number] = policy.force
        have = (own >= 0) & ~forced
        result[: alignment.num_tokens][have] = self.members[self.key].load()[own[have]].to(result.dtype)
        self._fill(result, ~have)
        if len(result) > alignment.num_tokens:
            mean = result[: alignment.num_tokens].double().mean(0)
            result[alignment.num_tokens :] = mean.to(result.dtype)
        return result

    def _fill(self, result: torch.Tensor, missing: torch.Tensor) -> None:
        alignment = self.alignment
        has = {key: alignment.rows[key] >= 0 for key in self.members}
        count = torch.stack([mask.long() for mask in has.values()]).sum(0)
        free = missing.clone()
        for number, (token, policy) in alignment.policies.items():
            if missing[number] and policy.source is not None:
                result[number] = self._chosen(number, token, policy.source).to(result.dtype)
            free[number] &= policy.source is None
        if self.base in has:
            self._take(result, self.base, free & has[self.base] & (count > 1))
            free &= ~(has[self.base] & (count > 1))
        for key, mask in has.items():
            self._take(result, key, free & mask & (count == 1))
        shared = (free & (count > 1)).nonzero().view(-1)
        if len(shared):
            total = torch.zeros((len(shared), *self.shape[1:]), dtype=torch.float64)
            for key, mask in has.items():
                inside = mask[shared]
                total[inside] += self.members[key].load()[alignment.rows[key][shared[inside]]].double()
            total /= count[shared].reshape([-1, *[1] * (len(self.shape) - 1)])
            result[shared] = total.to(result.dtype)

    def _take(self, result: torch.Tensor, key: str, mask: torch.Tensor) -> None:
        places = mask.nonzero().view(-1)
        if len(places):
            result[places] = self.members[key].load()[self.alignment.rows[key][places]].to(result.dtype)

    def _chosen(self, number: int, token: str, source: str | TokenSource) -> torch.Tensor:
        if isinstance(source, TokenSource) and source.kind == "zero":
            return torch.zeros(self.shape[1:])
        donor, row = chosen_row(self.alignment, number, token, source, self.donors)
        return self.donors[donor].load()[row]


def chosen_row(
    alignment: Alignment, number: int, token: str, source: str | TokenSource, donors: Mapping[str, TensorSource]
) -> tuple[str, int]:
    """Return the model and the row that a policy takes a token's embedding from.

    Raises:
        MergeError: that model does not have the token.
    """
    if isinstance(source, str):
        row = int(alignment.rows[source][number]) if source in alignment.rows else -1
        if row < 0 or source not in donors:
            raise MergeError(f"tokenizer.tokens: model {source!r} does not have {token!r}")
        return source, row
    model = str(source.model)
    if source.token_id is not None:
        row = source.token_id
    else:
        wanted = alignment.vocabulary.tokens.get(str(source.token), -1)
        row = int(alignment.rows[model][wanted]) if wanted >= 0 and model in alignment.rows else -1
    if model not in donors or not 0 <= row < donors[model].shape[0]:
        what = repr(source.token) if source.token is not None else f"id {source.token_id}"
        raise MergeError(f"tokenizer.tokens: {token!r} takes {what} of model {model!r}, which it does not have")
    return model, row


def aligned(
    alignment: Alignment,
    members: Mapping[str, TensorSource],
    donors: Mapping[str, TensorSource],
    base: str | None,
    keys: Sequence[str],
) -> dict[str, TensorSource]:
    """Return a vocabulary tensor of each model with the rows of the result's vocabulary.

    Raises:
        MergeError: a policy takes what is not there.
    """
    for number, (token, policy) in alignment.policies.items():
        if policy.source is not None and not (isinstance(policy.source, TokenSource) and policy.source.kind == "zero"):
            chosen_row(alignment, number, token, policy.source, donors)
    types = {source.dtype for source in members.values()} | {source.dtype for source in donors.values()}
    dtype = next(iter(types)) if len(types) == 1 and len(members) == 1 else "F32"
    result: dict[str, TensorSource] = {}
    for key in keys:
        own = members[key]
        shape = (alignment.num_rows, *own.shape[1:])
        result[key] = Aligned(own.name, dtype, shape, key, members, donors, base, alignment)
    return result
