"""What a source encoder-decoder model computes on a few tokens, and whether its parts compute the same on their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mango.architectures import ComponentMap, block_list
from mango.fusion.comparison import check_stream, compare
from mango.fusion.seq2seq_shells import Context, DecoderBody, SourceEncoder
from mango.fusion.shells import Body, Tail

NUM_TOKENS = 4


class Seq2SeqTrace:
    """States of the encoder, between the blocks of the decoder, and the logits.

    Args:
        source: the whole model, with its weights.
        parts: where it keeps its parts.
    """

    def __init__(self, source: PreTrainedModel, parts: ComponentMap) -> None:
        count = min(NUM_TOKENS, parts.max_positions or NUM_TOKENS)
        step = max(1, parts.vocab_size // (4 * count + 1))
        ids = (torch.arange(4 * count).view(2, 2, count) * step + 3) % parts.vocab_size
        self.source_ids, self.ids = ids[0], ids[1]
        self.source_mask = torch.ones(2, count, dtype=torch.bool)
        self.source_mask[1, -1] = count == 1
        self.mask = torch.ones(2, count, dtype=torch.bool)
        self.states: list[Tensor] = []

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.states.append((args[0] if args else kwargs["hidden_states"]).clone())

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            self.states.append((output if isinstance(output, Tensor) else output[0]).clone())

        blocks = list(block_list(source, parts))
        handles: list[Any] = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
        handles.append(blocks[-1].register_forward_hook(after))
        try:
            out = source(
                input_ids=self.source_ids,
                attention_mask=self.source_mask.long(),
                decoder_input_ids=self.ids,
                use_cache=False,
            )
        finally:
            for handle in handles:
                handle.remove()
        self.logits: Tensor = out.logits
        self.encoded: Tensor = out.encoder_last_hidden_state
        if len(self.states) != parts.num_blocks + 1:
            raise TypeError(f"{type(source).__name__} ran {len(self.states) - 1} of its {parts.num_blocks} blocks")
        check_stream(self.states[0], self.ids, type(source).__name__)

    def check_encoder(self, encoder: SourceEncoder, what: str) -> None:
        """Compare the whole encoder with the model's own."""
        compare(encoder(self.source_ids, self.source_mask), self.encoded, self.source_mask, what)

    def check_body(self, body: Body, what: str) -> None:
        """Compare a span with the blocks that it is, at once and in two steps with its cache."""
        assert isinstance(body, DecoderBody)
        context = Context(self.encoded, self.source_mask)
        inputs = self.ids if body.front else self.states[body.start]
        wanted = self.states[body.start + body.num_blocks]
        compare(body(inputs, self.mask, None, None, context), wanted, self.mask, what)
        cache, split = body.new_cache(), inputs.shape[1] // 2
        chunks = [slice(None, split), slice(split, None)] if split else [slice(None)]
        steps = [body(inputs[:, chunk], self.mask[:, : chunk.stop], None, cache, context) for chunk in chunks]
        compare(torch.cat(steps, 1), wanted, self.mask, f"{what}, with a cache")

    def check_tail(self, tail: Tail, what: str) -> None:
        """Compare norm and head with the model's own."""
        found = tail(self.states[-1].flatten(0, 1)).view_as(self.logits)
        compare(found, self.logits, self.mask, what)
