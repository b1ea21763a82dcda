"""Which blocks of which models make each block of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mango.merging.document import MergeDocument
from mango.merging.inputs import Input, Place


@dataclass(frozen=True)
class Member:
    """One model's part in an output tensor.

    Attributes:
        model: reference of the model.
        block: index of its block, -1 outside of the blocks.
        parameters: those that the document gives this model here.
    """

    model: str
    block: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """The models' parts that make one output block, or the tensors outside of the blocks.

    Attributes:
        members: in the order of the document; a base model that it does not list comes last.
        parameters: those of the slice.
        depth: where gradients are read: 0 at the first block of a slice, 1 at the last, 0 outside of the blocks.
    """

    members: tuple[Member, ...]
    parameters: Mapping[str, Any]
    depth: float


def block_groups(document: MergeDocument, inputs: Mapping[str, Input]) -> Iterator[Group]:
    """Yield a group for each block of the output, in order."""
    if document.slices is None:
        num_blocks = next(iter(inputs.values())).parts.num_blocks
        for block in range(num_blocks):
            yield Group(_whole(document, block), {}, _depth(block, num_blocks))
        return
    for piece in document.slices:
        start, end = piece.sources[0].layer_range
        for offset in range(end - start):
            members = (
                Member(source.model, source.layer_range[0] + offset, source.parameters) for source in piece.sources
            )
            yield Group(tuple(members), piece.parameters, _depth(offset, end - start))


def edge_group(document: MergeDocument, lead: Input, place: Place) -> Group:
    """Return the group of a tensor outside of the blocks.

    What runs before the blocks belongs to the first slice, what runs after them (final norm and head) to the last.
    Gradients are read at depth 0 for both, as mergekit does: use a filter to give the final norm a value of its own.
    """
    last = any(
        place.name.startswith(f"{lead.base_name(path)}.")
        for path in (*lead.parts.after, *([] if lead.parts.head is None else [lead.parts.head]))
    )
    if document.slices is None:
        return Group(_whole(document, -1), {}, 0.0)
    piece = document.slices[-1 if last else 0]
    members = tuple(Member(source.model, -1, source.parameters) for source in piece.sources)
    return Group(members, piece.parameters, 0.0)


def _whole(document: MergeDocument, block: int) -> tuple[Member, ...]:
    members = [Member(entry.model, block, entry.parameters) for entry in document.models or ()]
    if document.base_model is not None and all(member.model != document.base_model for member in members):
        members.append(Member(document.base_model, block, {}))
    return tuple(members)


def _depth(index: int, count: int) -> float:
    return index / (count - 1) if count > 1 else 1.0
