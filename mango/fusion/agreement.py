"""Whether the parts of a fused model compute what their source models compute."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from mango.architectures import ComponentMap, capture_block_calls, describe
from mango.architectures.capture import BlockCall, block_list
from mango.architectures.handlers import handler_for
from mango.architectures.meta import MODEL_FAILURES, is_unsaved
from mango.architectures.tasks import SEQ2SEQ, class_for
from mango.blocks import BlockStore
from mango.errors import ArchitectureError
from mango.fusion.comparison import UnfitError, check_stream, compare
from mango.fusion.core import MolPreTrainedModel
from mango.fusion.encoder_agreement import EncoderTrace
from mango.fusion.expert import FusedExpert
from mango.fusion.image_agreement import check_images
from mango.fusion.image_text import MolForImageTextToText
from mango.fusion.seq2seq_agreement import Seq2SeqTrace
from mango.fusion.shells import Body, Tail, accepted, rereads
from mango.fusion.span_cache import keeps_state_alone, layer_makers
from mango.fusion.tasks import TEXT_TASKS

NUM_TOKENS = 4

_STATES = {"ssm", "linear", "conv"}
"""Kinds of blocks that know of places nothing but the order of what they have read."""
_NEEDED = ("input_ids", "inputs_embeds", "attention_mask")


@torch.no_grad()
def check_agreement(model: MolPreTrainedModel, store: BlockStore) -> None:
    """Run every span and every head on a few tokens, and compare with the source models.

    Each span is run at once and in two steps with its cache, with a padded row beside a full one.

    Args:
        model: a fused model with its weights, on the CPU.
        store: holds its source models.

    Raises:
        ArchitectureError: a part does not compute what its source model computes, so the model cannot be fused.
    """
    layout = model.layout
    dtype = next(model.parameters()).dtype
    for name in sorted({expert.source for expert in layout.experts}):
        config = model.config.source_config(name)
        parts = describe(config, model.config.source_task(config))
        try:
            source = _open(store, name, dtype, config, parts)
            trace = _trace(source, parts)
            if isinstance(model, MolForImageTextToText) and name == layout.experts[0].source:
                check_images(model, source)
            for number, expert in enumerate(layout.experts):
                fused = model.experts[number]
                if expert.source == name and isinstance(fused, FusedExpert):
                    if isinstance(trace, Seq2SeqTrace) and fused.encoder is not None:
                        trace.check_encoder(fused.encoder, f"{name!r}: the encoder's blocks")
                    for span, body in zip(expert.spans, fused.bodies, strict=True):
                        assert isinstance(body, Body)
                        trace.check_body(body, f"{name!r}: blocks {span.start} to {span.stop - 1}")
                    if fused.tail is not None:
                        assert isinstance(fused.tail, Tail)
                        trace.check_tail(fused.tail, f"{name!r}: the final norm and head")
        except UnfitError as error:
            raise ArchitectureError(f"{name!r} ({parts.architecture}) cannot be fused: {error}") from error
        except MODEL_FAILURES as error:
            raise ArchitectureError(
                f"{name!r} ({parts.architecture}) cannot be fused: its blocks do not run on their own: "
                f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"
            ) from error


def _trace(source: PreTrainedModel, parts: ComponentMap) -> _Trace | EncoderTrace | Seq2SeqTrace:
    if parts.task in TEXT_TASKS:
        return _Trace(source, parts)
    return Seq2SeqTrace(source, parts) if parts.task == SEQ2SEQ else EncoderTrace(source, parts)


def _open(
    store: BlockStore, name: str, dtype: torch.dtype, config: PretrainedConfig, parts: ComponentMap
) -> PreTrainedModel:
    config = deepcopy(config)
    handler_for(parts.model_type).settle(config)
    with torch.random.fork_rng(devices=[]), no_init_weights(), init_empty_weights(include_buffers=False):
        model_class: Any = class_for(config, parts.task)
        model: PreTrainedModel = model_class._from_config(config)
    tensors = dict(store.edge_tensors(name))
    for index in range(parts.num_blocks):
        prefix = parts.block_prefix(index)
        tensors |= {f"{prefix}{key}": value for key, value in store.block_tensors(name, index).items()}
    ties = model.all_tied_weights_keys  # such as those of head and embedding, or of two names of a head's bias
    for tied, other in ties.items():
        if tied in tensors:
            tensors.setdefault(other, tensors[tied])
    for tied, other in ties.items():
        if other in tensors:
            tensors.setdefault(tied, tensors[other])
    if parts.tied:
        tensors.setdefault(f"{parts.head}.weight", tensors[f"{parts.embeddings}.weight"])
    values = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    missing, surplus = model.load_state_dict(values, strict=False, assign=True)
    stored = [key for key in missing if not is_unsaved(model, key)]
    if stored or surplus:
        raise ArchitectureError(f"{name!r}: the store lacks {stored}, and has {surplus} beside what the model has")
    for path in sorted({key.rpartition(".")[0] for key in missing}):
        module = model.get_submodule(path).to_empty(device="cpu")
        _owner(model, path)._init_weights(module)
        module.to(dtype)
    model.train(False)
    return model


def _owner(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """Return the innermost model that a module is in, which knows how the module starts."""
    parts = path.split(".")
    inside = (model.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, 0, -1))
    return next((found for found in inside if isinstance(found, PreTrainedModel)), model)


def _refuse_inner_states(base: nn.Module, num_rows: int) -> None:
    """Refuse modules that keep a state of rows beside the cache, where calls would mix theirs."""
    for path, module in base.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == num_rows:
                raise UnfitError(f"{type(base).__name__} keeps a state in {path}.{name} and not in its cache")


def _incoming(call: BlockCall) -> Tensor:
    """Return the states that a block was given."""
    states: Tensor = call.args[0] if call.args else call.kwargs["hidden_states"]
    return states


class _Trace:
    """What a source model computes on a few tokens, block by block."""

    def __init__(self, source: PreTrainedModel, parts: ComponentMap) -> None:
        base: Any = source.get_submodule(parts.base_prefix)
        taken = accepted(base, parts)
        missing = [name for name in _NEEDED if name not in taken]
        if missing:
            raise UnfitError(
                f"{type(base).__name__} takes no {', '.join(missing)}, which a causal model's spans are given"
            )
        length = min(NUM_TOKENS, parts.max_positions or NUM_TOKENS)
        step = max(1, parts.vocab_size // (2 * length + 1))
        self.ids = (torch.arange(2 * length).view(2, length) * step + 1) % parts.vocab_size
        self.mask = torch.ones(2, length, dtype=torch.bool)
        self.mask[1, 0] = length == 1
        self.positions = (self.mask.long().cumsum(1) - 1).clamp(min=0)
        logits: list[Tensor] = []
        handle = source.register_forward_hook(lambda _module, _args, output: logits.append(output.logits))
        self._placed = "position_ids" in taken
        self._dtype = next(source.parameters()).dtype
        calls = capture_block_calls(source, self.ids, self.mask.long(), self.positions if self._placed else None)
        handle.remove()
        self.logits = logits[0]
        self._rereads = rereads(base, parts)
        if self._rereads and length > 1:
            self._refuse_looking_ahead(source, type(base).__name__)
        check_stream(_incoming(calls[0]), self.ids, type(base).__name__)
        handler = handler_for(parts.model_type)
        if length > 2 and not handler.places_keys() and self._same_elsewhere(source):
            self._refuse_order(source, parts, calls, type(base).__name__)
        if length > 2 and not self._placed:
            self._refuse_counting(source, calls[0], type(base).__name__)
        self.states = [_incoming(call) for call in calls]
        last = calls[-1].output
        self.states.append(last if isinstance(last, Tensor) else last[0])

    def _same_elsewhere(self, source: PreTrainedModel) -> bool:
        """Tell whether the last token does not notice that it stands further from those before it."""
        if not self._placed:
            return True
        moved = self.positions.clone()
        moved[:, -1] += 1
        logits = source(input_ids=self.ids, attention_mask=self.mask.long(), position_ids=moved, use_cache=False).logits
        return bool(logits[:, -1].equal(self.logits[:, -1]))

    def _refuse_looking_ahead(self, source: PreTrainedModel, name: str) -> None:
        """Refuse a model in which a token changes what stands before it."""
        ids = self.ids.clone()
        ids[:, -1] = self.ids[:, 0]
        mask = self.mask.long()
        placed = {"position_ids": self.positions} if self._placed else {}
        found = source(input_ids=ids, attention_mask=mask, use_cache=False, **placed).logits
        real = self.mask[:, :-1]
        if not found[:, :-1][real].allclose(self.logits[:, :-1][real], rtol=1e-3, atol=1e-5):
            raise UnfitError(f"in {name} a token sees those behind it, so it does not write text token by token")

    def _refuse_counting(self, source: PreTrainedModel, call: BlockCall, name: str) -> None:
        """Refuse a model that gives a token another vector at another place, without being told the place."""
        order = [1, 0, *range(2, self.ids.shape[1])]
        moved = capture_block_calls(source, self.ids[:1, order])[0]
        found, wanted = _incoming(moved), _incoming(call)
        if not found[0].allclose(wanted[0, order], rtol=1e-3, atol=1e-5 * float(wanted.abs().max())):
            raise UnfitError(
                f"{name} takes no position_ids and places tokens by counting them, so an expert that processes some "
                "tokens alone would place them wrongly"
            )

    def _refuse_order(self, source: PreTrainedModel, parts: ComponentMap, calls: list[BlockCall], name: str) -> None:
        """Refuse a model whose attention knows the order of keys: it would count other distances than are true.

        Attention without positions returns the same for the last token, however those before it are ordered. A state
        is read in order, and that is all it knows of places.
        """
        makers, _ = layer_makers(source.config, parts.num_blocks, 0, parts.num_blocks)
        each = len(makers) // parts.num_blocks
        order = [1, 0, *range(2, self.ids.shape[1])]
        for number, (block, call) in enumerate(zip(block_list(source, parts), calls, strict=True)):
            alone = keeps_state_alone(makers[each * number : each * (number + 1)])
            if alone or (self._rereads and set(parts.stacks[0].attention[number].split("+")) <= _STATES):
                continue
            states = _incoming(call)
            args, kwargs = (states[:, order], *call.args[1:]) if call.args else (), dict(call.kwargs)
            if not call.args:
                kwargs["hidden_states"] = states[:, order]
            found, wanted = (
                out if isinstance(out, Tensor) else out[0] for out in (block(*args, **kwargs), call.output)
            )
            if not found[0, -1].allclose(wanted[0, -1], rtol=1e-3, atol=1e-5 * float(wanted.abs().max())):
                raise UnfitError(
                    f"{name} does not place tokens where position_ids say, and its blocks tell the order of tokens "
                    f"apart (block {number})"
                )

    def check_body(self, body: Body, what: str) -> None:
        inputs = self.ids if body.front else self.states[body.start]
        wanted = self.states[body.start + body.num_blocks]
        compare(body(inputs, self.mask, self.positions, None), wanted, self.mask, what, computed=self._dtype)
        cache, split = body.new_cache(), inputs.shape[1] // 2
        chunks = [slice(None, split), slice(split, None)] if split else [slice(None)]
        steps = [
            body(inputs[:, chunk], self.mask[:, : chunk.stop], self.positions[:, chunk], cache) for chunk in chunks
        ]
        compare(torch.cat(steps, 1), wanted, self.mask, f"{what}, with a cache", computed=self._dtype)
        if not body.rereads:  # what is left in its modules of a run without a cache, the next one does not read
            _refuse_inner_states(body.base, len(self.ids))

    def check_tail(self, tail: Tail, what: str) -> None:
        wanted = self.logits
        compare(tail(self.states[-1].flatten(0, 1)).view_as(wanted), wanted, self.mask, what)
