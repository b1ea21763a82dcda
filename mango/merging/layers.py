"""Which tensors of which models make each tensor of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mango.errors import MergeError
from mango.merging.document import MergeDocument, MethodSetting, ModelEntry, Module, Slice, key_of
from mango.merging.inputs import Input
from mango.merging.names import Place, is_after, module_of, place_of


@dataclass(frozen=True)
class Member:
    """One model's part in an output tensor.

    Attributes:
        key: the model.
        block: index of its block, -1 outside of the blocks.
        parameters: those that the document gives this model here.
    """

    key: str
    block: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """What is merged with each other, and by what.

    Attributes:
        members: in the order of the document; a base model that it does not list comes last.
        levels: parameters of the slice and the module, nearest first.
        methods: merge methods of the slice and the module, nearest first.
        base: key of the base model.
        depth: where gradients are read: 0 at the first block of a slice, 1 at the last, 0 outside of the blocks.
    """

    members: tuple[Member, ...]
    levels: tuple[Mapping[str, Any], ...]
    methods: tuple[MethodSetting | None, ...]
    base: str | None
    depth: float


@dataclass(frozen=True)
class Cut:
    """How a stack of the output is put together of blocks, where slices say so.

    Attributes:
        stack: its name.
        blocks: for each output block, the first source's model and its block.
    """

    stack: str
    blocks: tuple[tuple[str, int], ...]


def cuts(document: MergeDocument, inputs: Mapping[str, Input]) -> dict[str, Cut]:
    """Return the stacks that slices put together anew, by name.

    Raises:
        MergeError: one line for each slice that goes beyond a model's blocks, or that cuts what is no single stack.
    """
    found, problems = {}, []
    for path, part in document.parts():
        if part.slices is None:
            continue
        try:
            stack = _stack_of(document, path, part, inputs)
        except MergeError as error:
            problems.append(str(error))
            continue
        blocks: list[tuple[str, int]] = []
        for i, piece in enumerate(part.slices):
            for j, source in enumerate(piece.sources):
                model = inputs[key_of(source.model)]
                num_blocks = model.stacks.get(stack, 0)
                if source.layer_range[1] > num_blocks:
                    problems.append(
                        f"{path}slices.{i}.sources.{j}.layer_range: {list(source.layer_range)} goes beyond the "
                        f"{num_blocks} blocks of model {model.key!r}"
                    )
            first = piece.sources[0]
            blocks += [(key_of(first.model), block) for block in range(*first.layer_range)]
        found[stack] = Cut(stack, tuple(blocks))
    if problems:
        raise MergeError("\n".join(problems))
    return found


def _stack_of(document: MergeDocument, path: str, part: MergeDocument | Module, inputs: Mapping[str, Input]) -> str:
    lead = next(iter(inputs.values()))
    module = path.removeprefix("modules.").removesuffix(".")
    stacks = [stack for stack in lead.stacks if _inside(module, f"{stack}.0.x", document)]
    inner = [stack for stack in stacks if not any(other != stack and stack.startswith(f"{other}.") for other in stacks)]
    if len(inner) != 1:
        found = ", ".join(inner) or "none"
        raise MergeError(
            f"{path}slices: cut one stack of blocks, and {lead.key!r} has {len(inner)} here ({found}): say which under "
            "modules"
        )
    return inner[0]


def _inside(module: str, name: str, document: MergeDocument) -> bool:
    if document.modules is None or module == "default":
        return True
    return module_of(name) == module


def part_names(document: MergeDocument, path: str, lead: Input) -> list[str]:
    """Return the lead's tensors that a part of the document speaks of."""
    module = path.removeprefix("modules.").removesuffix(".")
    return [name for name in lead.tensors if _inside(module, name, document)]


def groups(
    document: MergeDocument, inputs: Mapping[str, Input], put_together: Mapping[str, Cut], extra: Sequence[str] = ()
) -> Iterator[tuple[str, Place, Group]]:
    """Yield (name in the output, place, group) of every tensor of the output, in the order of writing.

    Args:
        document: what to merge.
        inputs: the models, the lead first.
        put_together: the stacks that slices put together.
        extra: names that the output has beyond those of the lead's tensors.
    """
    lead = next(iter(inputs.values()))
    stacks = lead.stacks
    spoken: set[str] = set()
    for path, part in document.parts():
        levels = (part.parameters,) if isinstance(part, Module) else ()
        methods = (part.merge_method,) if isinstance(part, Module) else ()
        names = [*part_names(document, path, lead), *extra]
        spoken.update(names)
        if part.models is not None:
            yield from _whole(document, part.models, names, stacks, levels, methods)
        elif part.slices is not None:
            stack = next(s for s in put_together if s in stacks and _covers(put_together[s], part))
            yield from _sliced(document, part.slices, names, stack, stacks, inputs, levels, methods)
    for name in sorted(set(lead.tensors) - spoken):  # what no module speaks of stays as it is in the lead
        place = place_of(name, stacks)
        yield name, place, Group((Member(lead.key, place.block, {}),), (), ("copy",), None, 0.0)


def _covers(cut: Cut, part: MergeDocument | Module) -> bool:
    first = (part.slices or ())[0].sources[0]
    return cut.blocks[0] == (key_of(first.model), first.layer_range[0])


def _whole(
    document: MergeDocument,
    entries: Sequence[ModelEntry],
    names: Sequence[str],
    stacks: Mapping[str, int],
    levels: tuple[Mapping[str, Any], ...],
    methods: tuple[MethodSetting | None, ...],
) -> Iterator[tuple[str, Place, Group]]:
    base = None if document.base_model is None else key_of(document.base_model)
    named = [(key_of(entry.model), entry.parameters) for entry in entries]
    if base is not None and all(key != base for key, _ in named):
        named.append((base, {}))
    made: dict[tuple[str, int], Group] = {}
    for place in sorted(place_of(name, stacks) for name in names):
        at = (place.stack, place.block)
        if at not in made:
            members = tuple(Member(key, place.block, parameters) for key, parameters in named)
            depth = _depth(place.block, stacks[place.stack]) if place.stack else 0.0
            made[at] = Group(members, levels, methods, base, depth)
        yield place.name, place, made[at]


def _sliced(
    document: MergeDocument,
    slices: Sequence[Slice],
    names: Sequence[str],
    stack: str,
    stacks: Mapping[str, int],
    inputs: Mapping[str, Input],
    levels: tuple[Mapping[str, Any], ...],
    methods: tuple[MethodSetting | None, ...],
) -> Iterator[tuple[str, Place, Group]]:
    def group(piece: Slice, offset: int | None, depth: float) -> Group:
        base = document.base_model if piece.base_model is None else piece.base_model
        members = tuple(
            Member(key_of(s.model), -1 if offset is None else s.layer_range[0] + offset, s.parameters)
            for s in piece.sources
        )
        key = None if base is None else key_of(base)
        return Group(members, (piece.parameters, *levels), (piece.merge_method, *methods), key, depth)

    for place in sorted(place_of(name, [stack]) for name in names):
        if not place.stack:  # what runs in front of the blocks is of the first slice, what runs behind of the last
            yield place.name, place, group(slices[-1 if is_after(place.name) else 0], None, 0.0)
    index = 0
    for piece in slices:
        start, end = piece.sources[0].layer_range
        first = inputs[key_of(piece.sources[0].model)]
        prefix = f"{stack}."
        own = [place_of(name, [stack]) for name in first.tensors if name.startswith(prefix)]
        rests: dict[int, list[str]] = {}
        for place in own:
            rests.setdefault(place.block, []).append(place.rest)
        for offset in range(end - start):
            made = group(piece, offset, _depth(offset, end - start))
            for rest in sorted(rests.get(start + offset, ())):
                place = Place(stack, index, rest)
                yield place.name, place, made
            index += 1


def _depth(index: int, count: int) -> float:
    return index / (count - 1) if count > 1 else 1.0
