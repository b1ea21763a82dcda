"""What a source encoder computes on a small input, block by block, and whether spans of it compute the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mango.architectures import ComponentMap, InputMaker, block_list
from mango.fusion.comparison import UnfitError, compare
from mango.fusion.encoder_shells import EncoderTail, NormTail, takes_tokens
from mango.fusion.pruning import is_opaque
from mango.fusion.shells import Body, Tail

NUM_TOKENS = 6


class EncoderTrace:
    """States between the blocks of an encoder, and what comes out of it.

    Args:
        source: the whole model, with its weights.
        parts: where it keeps its parts.
    """

    def __init__(self, source: PreTrainedModel, parts: ComponentMap) -> None:
        base: Any = source.get_submodule(parts.base_prefix)
        maker = InputMaker(source, batch=2, length=min(NUM_TOKENS, parts.max_positions or NUM_TOKENS))
        inputs: Tensor = maker.make(base.main_input_name)
        self.inputs = inputs.to(source.dtype) if inputs.is_floating_point() else inputs
        given: dict[str, Tensor] = {base.main_input_name: self.inputs}
        text = takes_tokens(base)
        if text:
            self.mask = torch.ones(inputs.shape, dtype=torch.bool)
            self.mask[1, -1] = False
            given["attention_mask"] = self.mask.long()
        self._whole = is_opaque(parts)
        self.states: list[Tensor] = []
        self.normed = torch.empty(0)
        handles = self._watch(source, parts, base)
        try:
            self.logits: Tensor = source(**given).logits
        finally:
            for handle in handles:
                handle.remove()
        if text:  # some pad their rows
            self.states = [state[:, : inputs.shape[1]] for state in self.states]
        else:
            self.mask = torch.ones(self.states[0].shape[:2], dtype=torch.bool)
        if len(self.states) != parts.num_blocks + 1:
            raise UnfitError(f"{type(base).__name__} ran {len(self.states) - 1} of its {parts.num_blocks} blocks")

    def _watch(self, source: PreTrainedModel, parts: ComponentMap, base: nn.Module) -> list[Any]:
        seen: set[nn.Module] = set()

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module not in seen:  # some run several times on each other's states
                seen.add(module)
                self.states.append((args[0] if args else kwargs["hidden_states"]).clone())

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            del self.states[parts.num_blocks :]
            self.states.append((output if isinstance(output, Tensor) else output[0]).clone())

        def end(_module: nn.Module, _args: Any, output: Any) -> None:
            self.normed = output.last_hidden_state
            if self._whole:  # it has no end of its blocks within
                self.states = [*self.states[:1] * parts.num_blocks, self.normed.clone()]

        blocks = list(block_list(source, parts))
        handles: list[Any] = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
        return [*handles, blocks[-1].register_forward_hook(after), base.register_forward_hook(end)]

    def check_body(self, body: Body, what: str) -> None:
        """Compare a span with the blocks that it is."""
        inputs = self.inputs if body.front else self.states[body.start]
        found = body(inputs, self.mask, self.mask, None)
        compare(found, self.states[body.start + body.num_blocks], self.mask, what)

    def check_tail(self, tail: Tail, what: str) -> None:
        """Compare norm and head with the model's own; padding is left out."""
        assert isinstance(tail, EncoderTail)
        last = self.states[-1]
        if isinstance(tail, NormTail):
            compare(tail(last), self.normed, self.mask, what)
        elif self.logits.ndim == 3:
            found = tail(last.flatten(0, 1)).view_as(self.logits)
            compare(found, self.logits, self.mask, what)
        else:
            every = torch.ones(len(self.logits), 1, dtype=torch.bool)
            compare(tail(last).unsqueeze(1), self.logits.unsqueeze(1), every, what)
