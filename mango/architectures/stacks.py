"""Finding the stacks of blocks in a model that was watched while it ran."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from mango.architectures.component_map import Stack
from mango.architectures.mixing import attention_kinds, heads_of
from mango.architectures.trace import Call, Trace, first_hidden, tensors_in

_MODALITIES = {
    "vision": re.compile(r"vision|visual|image|(^|[._])vit([._]|$)|pixel|video"),
    "audio": re.compile(r"audio|speech|mel([._]|$)|acoustic|wav|conformer"),
}
_READS = {"vision": re.compile(r"pixel|image|video"), "audio": re.compile(r"feature|input_values|audio|mel")}


@dataclass
class Candidate:
    """A list whose entries all ran.

    Args:
        path: its path inside the model.
        calls: the calls of its entries, in order.
        order: which entry each of them was.
        blocklike: whether ``transformers`` marks the entries as blocks.
    """

    path: str
    calls: list[Call]
    order: tuple[int, ...]
    blocklike: bool

    @property
    def once(self) -> bool:
        """Whether the entries run once and in order."""
        return self.order == tuple(range(len(self.order)))

    @property
    def isotropic(self) -> bool:
        """Whether every entry returns a stream of the one shape that all are given."""
        shape = self.calls[0].input_shape
        return shape is not None and all(call.input_shape == shape == call.output_shape for call in self.calls)


def candidates(model: nn.Module, trace: Trace, reasons: list[str]) -> list[Candidate]:
    """Return the lists that may be stacks, outer lists without the lists inside their entries.

    Args:
        model: the root that was traced.
        trace: what ran.
        reasons: gets a line for each list that ran and is no stack.
    """
    by_path: dict[str, list[Call]] = {}
    for call in trace.calls:
        by_path.setdefault(call.path, []).append(call)
    position = {id(call): number for number, call in enumerate(trace.calls)}
    found: list[Candidate] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
            continue
        entries = [f"{path}.{name}" for name, _ in module.named_children()]
        calls = sorted((call for entry in entries for call in by_path.get(entry, ())), key=lambda c: position[id(c)])
        if not calls:
            continue  # this list is not on the way from inputs to outputs
        order = tuple(entries.index(call.path) for call in calls)
        missing = len(entries) - len(set(order))
        if missing:
            reasons.append(f"{path}: {missing} of {len(entries)} entries did not run")
            continue
        if any(not isinstance(c.input_shape, tuple) for c in calls):
            continue  # entries that read no stream, such as lists of token tables
        blocklike = any(isinstance(entry, GradientCheckpointingLayer) for entry in module)
        if isinstance(module, nn.Sequential) and not blocklike and len(module) < 2:
            continue
        found.append(Candidate(path, calls, order, blocklike))
    return _outermost(found)


def _outermost(found: list[Candidate]) -> list[Candidate]:
    """Drop lists inside the entries of others, and outer lists of stages whose blocks lie in lists inside."""
    if any(candidate.blocklike for candidate in found):
        inner_paths = [candidate for candidate in found if candidate.blocklike]
    else:
        inner_paths = found
    kept: list[Candidate] = []
    for candidate in inner_paths:
        if any(_inside(candidate, outer) for outer in kept):
            continue
        inside = [other for other in inner_paths if _inside(other, candidate)]
        stages = {other.path.removeprefix(f"{candidate.path}.").partition(".")[0] for other in inside}
        if (
            not candidate.isotropic
            and len(stages) >= max(1, len(set(candidate.order)) - 1)
            and any(other.isotropic for other in inside)
        ):
            continue  # a list of stages
        kept.append(candidate)
    return kept


def _inside(inner: Candidate, outer: Candidate) -> bool:
    return inner.path.startswith(f"{outer.path}.")


def measure(model: PreTrainedModel, trace: Trace, candidate: Candidate, role: str) -> Stack:
    """Return what is to be known of a stack."""
    blocks = model.get_submodule(candidate.path)
    root_path, root = root_of(model, candidate.path)
    entries = [blocks.get_submodule(name) for name, _ in blocks.named_children()]
    widths = {call.input_shape[-1] for call in candidate.calls if call.input_shape} | {
        call.output_shape[-1] for call in candidate.calls if call.output_shape
    }
    width = widths.pop() if len(widths) == 1 else 0
    before, between, after = around(model, trace, candidate, root_path)
    num_heads, num_kv_heads, head_dim = heads_of(root.config, role, width)
    return Stack(
        role=role,
        path=candidate.path,
        root=root_path,
        block_class="|".join(sorted({type(entry).__name__ for entry in entries})),
        num_blocks=len(entries),
        width=width,
        isotropic=candidate.isotropic,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        attention=attention_kinds(entries, root.config),
        order=candidate.order,
        carried=carried(candidate),
        before=before,
        after=after,
        between=between,
    )


def root_of(model: PreTrainedModel, path: str) -> tuple[str, PreTrainedModel]:
    """Return the innermost model, with its path, whose forward pass runs the modules at `path`."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        parent = model.get_submodule(".".join(parts[:end]))
        if isinstance(parent, PreTrainedModel):
            return ".".join(parts[:end]), parent
    return "", model


def around(
    model: nn.Module, trace: Trace, candidate: Candidate, scope: str
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the modules with parameters that run before, between and after the blocks, relative to `scope`.

    A norm after the blocks counts without parameters too, unless it runs elsewhere as well; one that runs once before
    them and once after them is on both sides.
    """
    blocks = candidate.path
    inner = blocks.removeprefix(f"{scope}.") if scope else blocks
    ancestors = {scope} | {f"{scope}.{p}".strip(".") for p in _ancestors(inner)}
    position = {id(call): number for number, call in enumerate(trace.calls)}
    first, last = position[id(candidate.calls[0])], position[id(candidate.calls[-1])]
    groups: tuple[dict[str, None], dict[str, None], dict[str, None]] = ({}, {}, {})
    framed: dict[str, None] = {}
    for number, call in enumerate(trace.calls):
        inside_scope = not scope or call.path == scope or call.path.startswith(f"{scope}.")
        if not inside_scope or call.path in ancestors or call.path == blocks or call.path.startswith(f"{blocks}."):
            continue
        within = [parent for parent in call.parents if not scope or parent == scope or parent.startswith(f"{scope}.")]
        if not all(parent in ancestors or parent == blocks for parent in within):
            continue
        if any(parent.startswith(f"{blocks}.") for parent in call.parents):
            continue
        module = model.get_submodule(call.path)
        if not any(True for _ in module.parameters()):
            runs = [position[id(other)] for other in trace.calls if other.path == call.path]
            once = runs == [number] and number > last
            framing = len(runs) == 2 and runs[0] < first and runs[1] > last
            if "norm" not in type(module).__name__.lower() or not (once or framing):
                continue
            if framing:
                framed[call.path.removeprefix(f"{scope}.") if scope else call.path] = None
        name = call.path.removeprefix(f"{scope}.") if scope else call.path
        groups[0 if number < first else 2 if number > last else 1][name] = None
    twice = (set(groups[0]) & set(groups[2])) - set(framed)
    for name in sorted(twice):
        groups[0].pop(name)
        groups[2].pop(name)
        groups[1][name] = None
    return tuple(groups[0]), tuple(groups[1]), tuple(groups[2])


def _ancestors(path: str) -> Iterator[str]:
    parts = path.split(".")
    for end in range(len(parts)):
        yield ".".join(parts[:end])


def carried(candidate: Candidate) -> tuple[str, ...]:
    """Return the arguments that take more than the stream from one block to the next."""
    names: dict[str, None] = {}
    for left, right in zip(candidate.calls, candidate.calls[1:], strict=False):
        stream = first_hidden(left.output)
        extra = {id(tensor) for tensor in tensors_in(left.output) if tensor is not stream}
        entered = first_hidden(list(right.arguments.values()) if not right.arguments else right.arguments)
        for name, value in right.arguments.items():
            if any(id(t) in extra and t is not entered for t in tensors_in(value)):
                names[name] = None
            elif name in left.lengths and left.arguments.get(name) is value and len(value or ()) != left.lengths[name]:
                names[name] = None  # a list or dictionary that blocks write into
    return tuple(names)


def role_of(model: PreTrainedModel, path: str, family: str) -> str:
    """Return what a stack does in its model, from what its part of the model reads and the words in its path."""
    _, root = root_of(model, path)
    reads = str(getattr(root, "main_input_name", "input_ids"))
    lowered = path.lower()
    for modality in ("vision", "audio"):
        if _READS[modality].search(reads) and root is not model:
            return modality
    for modality, words in _MODALITIES.items():
        if words.search(lowered) and "decoder" not in lowered:
            return modality
    if re.search(r"decoder", lowered) or family == "causal":
        return "decoder"
    for modality in ("vision", "audio"):
        if _READS[modality].search(reads):
            return modality
    if family == "multimodal":
        return "text"
    return "encoder"


def named_roles(found: list[tuple[str, Candidate]]) -> list[tuple[str, Candidate]]:
    """Return the stacks with roles that name each once: those of the same role are numbered."""
    counts: dict[str, int] = {}
    for role, _ in found:
        counts[role] = counts.get(role, 0) + 1
    seen: dict[str, int] = {}
    out: list[tuple[str, Candidate]] = []
    for role, candidate in found:
        number = seen.get(role, 0)
        seen[role] = number + 1
        out.append((f"{role}.{number}" if counts[role] > 1 else role, candidate))
    return out


def num_parameters(module: nn.Module) -> int:
    """Return the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def weight_of(module: nn.Module | None) -> torch.Tensor | None:
    """Return a module's weight, where it has a single one."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) else None
