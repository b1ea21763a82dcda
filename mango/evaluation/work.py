"""Work: the floating-point operations of a forward pass, counted while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mango.corpus import Sequences
from mango.fusion import MolForCausalLM


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *rest: object, **more: object) -> int:
    """Return the operations of attention with these shapes, ``[rows, heads, length, width]``; a mask saves none."""
    rows, heads, length, width = query
    return 2 * rows * heads * length * key[2] * (width + value[3])


# The kernel of CPUs is missing in torch's own table.
_MORE = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def operations(run: Callable[[], object]) -> float:
    """Return the floating-point operations of matrix products and attention in a call.

    Each product is counted with the shapes that it really had, padding included.

    Args:
        run: the call.
    """
    with FlopCounterMode(display=False, custom_mapping=_MORE) as counter, torch.no_grad():
        run()
    return float(counter.get_total_flops())


def per_token(model: nn.Module, texts: Mapping[str, Sequences], rows: int) -> dict[str, float]:
    """Return the floating-point operations of a model for each token of each text.

    Args:
        model: a causal language model. A fused model that routes sparsely does other work on other text, and is
            counted on every text; any other one does the same work on all texts of a length, and is counted once.
        texts: test sequences.
        rows: sequences of each text that are counted, one a pass.
    """
    device = next(model.parameters()).device

    def of(ids: Tensor) -> float:
        if isinstance(model, MolForCausalLM):  # as it is evaluated
            return operations(lambda: model(input_ids=ids, labels=ids, losses_only=True))
        return operations(lambda: model(input_ids=ids))

    def on(text: Sequences, number: int) -> float:
        parts = torch.split(text.input_ids[:number].to(device), 1)
        return sum(of(ids) for ids in parts) / sum(ids.numel() for ids in parts)

    if isinstance(model, MolForCausalLM):
        return {name: on(text, rows) for name, text in texts.items()}
    return dict.fromkeys(texts, on(next(iter(texts.values())), 1))
