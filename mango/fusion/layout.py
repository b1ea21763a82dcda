"""Which spans of which models stand where in a fused model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mango.architectures import ComponentMap
from mango.architectures.tasks import CAUSAL
from mango.errors import ConfigError, IncompatibleBlocksError
from mango.fusion.params import ExpertParams, FusionParams, SpanParams

OTHER_WAYS = ", take its tokens through adapters (edges: trunk), or keep their own across a bridge (edges: bridge)"
"""What a causal model may do that does not share the trunk's tokenizer, for messages."""


@dataclass(frozen=True)
class Span:
    """Blocks ``start`` to ``stop - 1`` of a source model, standing between two cuts of the trunk."""

    enter: int
    exit: int
    start: int
    stop: int


@dataclass(frozen=True)
class Expert:
    """One expert: a source model, its spans in order, whose edges it has, and whether it has a tokenizer of its own."""

    name: str
    source: str
    own_edges: bool
    spans: tuple[Span, ...]
    bridged: bool = False


@dataclass(frozen=True)
class Layout:
    """All experts of a fused model; the first is the anchor, the trunk's own spans.

    Args:
        cuts: the trunk's blocks at which it is cut, from 0 to its number of blocks.
        experts: the anchor, then the others in their order.
    """

    cuts: tuple[int, ...]
    experts: tuple[Expert, ...]

    @property
    def num_positions(self) -> int:
        """Number of fused positions, one fewer than cuts."""
        return len(self.cuts) - 1

    def entering(self, position: int) -> list[tuple[int, int]]:
        """Return (expert, span) of every span that is entered at a position, in the order of experts."""
        return [
            (number, index)
            for number, expert in enumerate(self.experts)
            for index, span in enumerate(expert.spans)
            if span.enter == position
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Layout:
        """Return the layout that :meth:`to_dict` wrote."""
        experts = tuple(
            Expert(
                e["name"],
                e["source"],
                e["own_edges"],
                tuple(Span(**span) for span in e["spans"]),
                e.get("bridged", False),
            )
            for e in value["experts"]
        )
        return cls(tuple(value["cuts"]), experts)


def make_layout(params: FusionParams, maps: Mapping[str, ComponentMap]) -> Layout:
    """Work out the layout of a fused model.

    Args:
        params: what is fused.
        maps: the parts of every model that is named, by name.

    Raises:
        ConfigError: a span is out of range, the spans of an expert leave a gap, or ``layers: auto`` is not made spans
            yet.
        IncompatibleBlocksError: models do not fit together.
    """
    if params.layers == "auto":
        raise ConfigError(
            "fusion.layers: auto has to be made spans first, from calibration text: mango.training.propose_layers does "
            "that, and `mango layers` shows it"
        )
    for name in (params.trunk, *(expert.model for expert in params.experts)):
        if name not in maps:
            raise ConfigError(f"fusion: unknown model {name!r}. Known: {', '.join(sorted(maps))}")
    trunk = maps[params.trunk]
    if params.span > trunk.num_blocks:
        raise ConfigError(f"fusion.span: {params.span} is more than the {trunk.num_blocks} blocks of {params.trunk!r}")
    cuts = (*range(0, trunk.num_blocks, params.span), trunk.num_blocks)
    anchor = Expert("anchor", params.trunk, True, _fine(cuts))
    experts = [anchor]
    for number, expert in enumerate(params.experts):
        where = f"fusion.experts.{number}"
        guest = maps[expert.model]
        bridged = expert.edges == "bridge"
        _check_bridge(params, expert, where)
        takes_ours = params.task == CAUSAL and expert.edges != "own"
        if guest.vocab_size != trunk.vocab_size and not takes_ours:
            raise IncompatibleBlocksError(
                f"{where}: {expert.model!r} has a vocabulary of {guest.vocab_size:,} tokens, the trunk "
                f"{params.trunk!r} one of {trunk.vocab_size:,}: experts must share the trunk's tokenizer"
                + (OTHER_WAYS if params.task == CAUSAL else "")
            )
        spans = (Span(0, len(cuts) - 1, 0, guest.num_blocks),) if bridged else _spans(expert, where, trunk, guest, cuts)
        experts.append(Expert(_name(expert, experts), expert.model, expert.edges != "trunk", spans, bridged))
    return Layout(cuts, tuple(experts))


def _check_bridge(params: FusionParams, expert: ExpertParams, where: str) -> None:
    """Refuse to cut a guest that reads tokens of its own, or to fuse it where there is no next token."""
    if expert.edges != "bridge":
        return
    if params.task != CAUSAL:
        raise ConfigError(
            f"{where}.edges: bridge tells what a guest says of the next token, and fusion.task is {params.task}; it is "
            f"for {CAUSAL}"
        )
    if expert.cut not in ("auto", "whole"):
        raise ConfigError(
            f"{where}.cut: a guest across a bridge has tokens of its own, which stand beside no states of the trunk's, "
            "so it is fused whole: leave out cut, or set it to whole"
        )


def _name(expert: ExpertParams, taken: list[Expert]) -> str:
    names = {other.name for other in taken}
    name, copy = expert.model, 2
    while name in names:
        name, copy = f"{expert.model}_{copy}", copy + 1
    return name


def _fine(cuts: tuple[int, ...]) -> tuple[Span, ...]:
    return tuple(Span(i, i + 1, cuts[i], cuts[i + 1]) for i in range(len(cuts) - 1))


def _spans(
    expert: ExpertParams, where: str, trunk: ComponentMap, guest: ComponentMap, cuts: tuple[int, ...]
) -> tuple[Span, ...]:
    last = len(cuts) - 1
    if not isinstance(expert.cut, str):
        return _explicit(expert.cut, where, expert.model, guest, last)
    sibling = (guest.architecture, guest.width, guest.num_blocks) == (trunk.architecture, trunk.width, trunk.num_blocks)
    if expert.cut == "whole" or (expert.cut == "auto" and not sibling):
        return (Span(0, last, 0, guest.num_blocks),)
    if guest.num_blocks < last:
        raise ConfigError(f"{where}.cut: {expert.model!r} has {guest.num_blocks} blocks, fewer than {last} positions")
    # Blocks are shared out in proportion to the trunk's depth; siblings so get exactly the trunk's cuts.
    bounds = [round(cut * guest.num_blocks / trunk.num_blocks) for cut in cuts]
    for i in range(1, last):
        bounds[i] = min(max(bounds[i], bounds[i - 1] + 1), guest.num_blocks - (last - i))
    return tuple(Span(i, i + 1, bounds[i], bounds[i + 1]) for i in range(last))


def _explicit(
    spans: tuple[SpanParams, ...], where: str, model: str, guest: ComponentMap, last: int
) -> tuple[Span, ...]:
    problems: list[str] = []
    if not spans:
        problems.append(f"{where}.cut: no span is given")
    for number, span in enumerate(spans):
        at = f"{where}.cut.{number}"
        if not 0 <= span.enter < span.exit <= last:
            problems.append(f"{at}: it enters at cut {span.enter} and exits at {span.exit}; cuts go from 0 to {last}")
        if not 0 <= span.blocks[0] < span.blocks[1] <= guest.num_blocks:
            problems.append(
                f"{at}.blocks: {list(span.blocks)} is out of range: {model!r} has blocks 0 to {guest.num_blocks - 1}"
            )
        if number and (span.enter < spans[number - 1].exit or span.blocks[0] < spans[number - 1].blocks[1]):
            problems.append(f"{at}: it starts before the span in front of it ends")
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(Span(span.enter, span.exit, *span.blocks) for span in spans)
