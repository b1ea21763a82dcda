"""One expert of a fused model: spans of its source model, and what leads into and out of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mango.architectures import ComponentMap
from mango.fusion.adapters import Adapter
from mango.fusion.bridge.module import Bridge, BridgeSizes
from mango.fusion.encoder_shells import EncoderTail
from mango.fusion.layout import Expert
from mango.fusion.names import shared_names, true_names
from mango.fusion.params import AdapterParams
from mango.fusion.registries import ADAPTERS
from mango.fusion.seq2seq_shells import SourceEncoder
from mango.fusion.shells import Body, Tail


@dataclass(frozen=True)
class Shells:
    """How a kind of fused model runs parts of its source models.

    Args:
        body: runs a span.
        tail: runs the final norm and head.
        headed: whether models end in heads, in which experts may end too, and whose distributions are mixed; otherwise
            all end in the trunk's norm, through adapters.
        encoder: runs a model's encoder, where spans are of its decoder.
        host: runs the anchor's spans, where they are run in another way than those of guests: it reads images. Every
            guest then has an adapter at its entrance, through which images come.
    """

    body: type[Body]
    tail: type[Tail]
    headed: bool = True
    encoder: type[SourceEncoder] | None = None
    host: type[Body] | None = None

    def tail_of(self, config: Any, parts: ComponentMap) -> Tail:
        """Return the final norm and head of a source model.

        Args:
            config: its configuration.
            parts: where it keeps its parts.
        """
        # A head of several layers, like BERT's, has to get its states at its beginning.
        layered = parts.head is not None and "." in parts.head and not parts.after
        return EncoderTail(config, parts) if layered and self.tail is Tail else self.tail(config, parts)

    def own_tail(self, expert: Expert, parts: ComponentMap, last: int, *, anchor: bool) -> bool:
        """Tell whether an expert ends in its own norm and head.

        Args:
            expert: its place in the layout.
            parts: where its source model keeps its parts.
            last: the last cut.
            anchor: whether it is the anchor.
        """
        end = expert.spans[-1]
        return (self.headed or anchor) and expert.own_edges and end.exit == last and end.stop == parts.num_blocks


class FusedExpert(nn.Module):
    """An expert's parts: its spans, its adapters, and its own norm and head if it has them.

    Args:
        expert: its place in the layout.
        config: configuration of its source model.
        parts: where the source model keeps its parts.
        width: width of the trunk.
        adapter: parameters of the adapters.
        shells: how parts of its source model are run.
        anchor: whether it is the anchor, which has no adapters.
        last: the last cut.
        bridge: sizes of the bridge, where it has a tokenizer of its own.
    """

    def __init__(
        self,
        expert: Expert,
        config: Any,
        parts: ComponentMap,
        width: int,
        adapter: AdapterParams,
        shells: Shells,
        *,
        anchor: bool,
        last: int,
        bridge: BridgeSizes | None = None,
    ) -> None:
        super().__init__()
        self.fronts = [expert.own_edges and span.enter == 0 and span.start == 0 for span in expert.spans]
        self.encoder = None if shells.encoder is None else shells.encoder(config, parts)
        self.own_tail = shells.own_tail(expert, parts, last, anchor=anchor)
        make_body = shells.host if anchor and shells.host is not None else shells.body
        self.bodies = nn.ModuleList(
            make_body(config, parts, span.start, span.stop, front=front)
            for span, front in zip(expert.spans, self.fronts, strict=True)
        )
        self.tail = shells.tail_of(config, parts) if self.own_tail else None
        self.bridge = None if bridge is None else Bridge(bridge)
        make = ADAPTERS[adapter.type]
        chosen = adapter.chosen()

        def new(width_in: int, width_out: int) -> Adapter:
            return make(width_in, width_out, chosen)  # type: ignore[call-arg, arg-type]

        count = len(expert.spans)
        inputs = [(not front or shells.host is not None) and not anchor for front in self.fronts]
        outputs = [not anchor and not (self.own_tail and i == count - 1) for i in range(count)]
        self.inputs = nn.ModuleDict({str(i): new(width, parts.width) for i in range(count) if inputs[i]})
        self.outputs = nn.ModuleDict({str(i): new(parts.width, width) for i in range(count) if outputs[i]})

        self.spans = [(span.start, span.stop) for span in expert.spans]
        weights = {name for name, _ in self.named_parameters(remove_duplicate=False)}  # buffers are stored each
        names = true_names(self, config, parts, self.spans)
        self.ties = shared_names({name: true for name, true in names.items() if name in weights})

    def enter(self, span: int, states: Tensor) -> Tensor:
        """Bring states of the trunk to a span."""
        return _adapted(self.inputs[str(span)], states) if str(span) in self.inputs else states

    def leave(self, span: int, states: Tensor) -> Tensor:
        """Bring states of a span to the trunk."""
        return _adapted(self.outputs[str(span)], states) if str(span) in self.outputs else states


def _adapted(adapter: nn.Module, states: Tensor) -> Tensor:
    """Apply an adapter in its own precision; streams keep theirs."""
    parameter = next(adapter.parameters(), states)
    return adapter(states.to(parameter.dtype)).to(states.dtype)  # type: ignore[no-any-return]
