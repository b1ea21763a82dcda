"""Whether a guest that reads texts side by side reads each as it would alone."""

from __future__ import annotations

import torch

from mango.errors import IncompatibleBlocksError
from mango.fusion.bridge.running import RowReading, read, read_on, refuse_unless_alike
from mango.fusion.comparison import compare
from mango.fusion.core import MolPreTrainedModel
from mango.fusion.expert import FusedExpert
from mango.fusion.shells import Body, Tail

NUM_TOKENS = 6


@torch.no_grad()
def check_bridges(model: MolPreTrainedModel) -> None:
    """Compare what guests across a bridge read of a few tokens with what they read of each text alone.

    Args:
        model: a fused model with its weights.

    Raises:
        ArchitectureError: a guest's blocks cannot read texts side by side.
        IncompatibleBlocksError: a tokenizer has more tokens than its model has rows.
    """
    for expert, fused in zip(model.layout.experts, model.experts, strict=True):
        assert isinstance(fused, FusedExpert)
        if fused.bridge is None:
            continue
        body, tail, bridge = fused.bodies[0], fused.tail, fused.bridge
        assert isinstance(body, Body)
        assert isinstance(tail, Tail)
        refuse_unless_alike(body, expert.name)
        rows = tail(torch.zeros(1, body.width, dtype=next(body.base.parameters()).dtype)).shape[1]
        for whose, tokens, known in (
            (expert.name, bridge.sizes.guest_tokens, rows),
            (model.layout.experts[0].source, bridge.sizes.trunk_tokens, model.config.vocab_size),
        ):
            if tokens > known:
                raise IncompatibleBlocksError(
                    f"fusion: the tokenizer of {whose!r} has {tokens:,} tokens, and its model {known:,} rows for them; "
                    "use the tokenizer that the model was trained with"
                )
        # Every text is the beginning of the next; the tree has a branch wherever a tokenizer joins what was apart.
        words = [token for token, form in enumerate(bridge.opened().trunk.by_id) if form and form.isalpha()]
        ids = [words[place * len(words) // NUM_TOKENS] for place in range(NUM_TOKENS)]
        together = read(bridge, body, [ids])
        on = [read_on(bridge, body, [ids[: NUM_TOKENS // 2]], [RowReading()])]
        on.append(read_on(bridge, body, [ids[NUM_TOKENS // 2 :]], on[0].rows))
        stepwise = [part.states[place.node] for part in on for place in part.places[0]]
        what = f"{expert.name!r}, reading texts that begin alike side by side: its blocks"
        for number in range(NUM_TOKENS):
            text = bridge.opened().reader.read(ids[: number + 1], number)[0]
            alone = torch.tensor([text])
            mask = torch.ones_like(alone, dtype=torch.bool)
            wanted = body(alone, mask, torch.arange(len(text)).unsqueeze(0), None)[:, -1:]
            found = together.states[together.places[0][number].node]
            for states in (found, stepwise[number]):
                compare(states.view(1, 1, -1), wanted, torch.ones(1, 1, dtype=torch.bool), what)
