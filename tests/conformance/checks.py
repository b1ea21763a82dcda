"""What is checked of one model type, and what comes out as a row of the table."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mango.architectures import InputMaker, Stack, build_class, describe, task_of
from mango.architectures.handlers import handler_for
from mango.architectures.meta import MODEL_FAILURES
from mango.architectures.tasks import CAUSAL, IMAGE_TEXT, SEQ2SEQ, TASKS
from mango.architectures.trace import tensors_in
from mango.errors import ArchitectureError, MangoError
from mango.fusion.tasks import why_no_task
from tests.conformance import probe
from tests.conformance.recipe import MAX_PARAMETERS, filled_config, num_parameters, shallow_config, tiny_config

FAILURES = (*MODEL_FAILURES, MangoError)
REASON_LENGTH = 600


@dataclass
class Row:
    """What the suite found about a model type."""

    model_type: str
    family: str = "other"
    task: str | None = None
    architecture: str | None = None
    built: bool = False
    stacks: dict[str, int] = field(default_factory=dict)
    host: bool = False
    guest: bool = False
    fused: bool = False
    cached_decode: bool = False
    reason: str | None = None
    whole: str | None = None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Tiny:
    """A tiny random model with inputs that it runs on."""

    config: PretrainedConfig
    task: str
    model: PreTrainedModel
    inputs: dict[str, Any]


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    # What a message says of memory, paths and versions is not the same everywhere.
    text = re.sub(r"`?pip install [^.]*\.?", "", text)
    return f"{type(error).__name__}: {text}"[:REASON_LENGTH]


def build(model_type: str) -> Tiny:
    """Build a tiny model of a type and find inputs for it.

    Raises:
        RuntimeError: it cannot be built or run; says why.
    """
    problems: list[str] = []
    for make in (tiny_config, filled_config, shallow_config):
        try:
            config = make(model_type)
            task = task_of(config)
            found = build_class(config, task)
            assert found is not None
            model_class, part = found
            with torch.device("meta"):
                size = num_parameters(model_class._from_config(part))
            if size > MAX_PARAMETERS:
                problems.append(f"the smallest model that the recipe makes has {size / 1e6:.0f} million parameters")
                continue
            torch.manual_seed(0)
            model = probe.shaken(model_class._from_config(part))
        except FAILURES as error:
            problems.append(one_line(error))
            continue
        maker = InputMaker(model, batch=2)
        first: str | None = None
        for given in handler_for(model.config.model_type).inputs(maker) or maker.candidates():
            inputs = _without_cache(model, given)
            try:
                probe.run(model, inputs)
            except FAILURES as error:
                first = first or f"on {', '.join(given)}: {one_line(error)}"
                continue
            return Tiny(config, task, model, inputs)
        needs = ", ".join(n for n, p in maker.parameters.items() if p.default is p.empty) or model.main_input_name
        problems.append(first or f"the suite makes no inputs for it: it takes {needs}")
    raise RuntimeError(problems[0])


def _without_cache(model: PreTrainedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    accepts = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {}
    if "use_cache" in accepts:
        extra["use_cache"] = False
    if "input_ids" in inputs and "attention_mask" in accepts and "attention_mask" not in inputs:
        extra["attention_mask"] = torch.ones_like(inputs["input_ids"])
    decodes = getattr(model.config, "is_encoder_decoder", False) and "decoder_input_ids" in accepts
    if decodes and "input_ids" in inputs and "decoder_input_ids" not in inputs:
        extra["decoder_input_ids"] = inputs["input_ids"].flip(0)
    return inputs | extra


def check(model_type: str, *, fuse: bool = True) -> Row:
    """Check one model type.

    Args:
        model_type: the type.
        fuse: whether to fuse causal language models too.
    """
    row = Row(model_type)
    try:
        tiny = build(model_type)
    except RuntimeError as error:
        row.reason = f"not built: {error}"
        return row
    row.task, row.family, row.built = tiny.task, TASKS[tiny.task].family or "other", True
    row.architecture = type(tiny.model).__name__
    try:
        parts = describe(tiny.config, tiny.task)
    except FAILURES as error:
        row.reason = f"blocks not found: {one_line(error)}"
        return row
    row.family = parts.family
    row.stacks = {stack.role: stack.num_blocks for stack in parts.stacks}
    problem = host(tiny, parts.stacks)
    row.host = problem is None
    if problem is not None:
        row.reason = f"not a host: {problem}"
        return row
    from tests.conformance.fusing import EXPERTS, PARTNERS, fused

    if tiny.task not in EXPERTS:
        problem = portable(tiny, parts.stacks[0])
        row.guest = problem is None
        if problem is not None:
            row.reason = f"not a guest: {problem}"
    if not fuse:
        return row
    if tiny.task not in PARTNERS:
        refused = one_line(ArchitectureError(f"fusion: 'typed' ({parts.architecture}) {why_no_task(parts)}"))
        row.reason = f"{row.reason}; {refused}" if row.reason else refused
        return row
    found = fused(tiny)
    problem, row.whole = found.problem, found.whole
    row.guest = found.guest if tiny.task in EXPERTS else row.guest
    row.fused = problem is None
    row.cached_decode = row.fused and tiny.task in (CAUSAL, SEQ2SEQ, IMAGE_TEXT)
    if problem is not None:
        row.reason = f"{row.reason}; {problem}" if row.reason else problem
    elif not row.cached_decode:
        row.reason = row.reason or "it decodes nothing step by step"
    return row


def host(tiny: Tiny, stacks: tuple[Stack, ...]) -> str | None:
    """Return why the blocks of a model cannot be replaced by wrappers, or None where they can."""
    model, inputs = tiny.model, tiny.inputs
    wanted = probe.run(model, inputs)
    if not probe.same(probe.run(model, inputs), wanted):
        return "the same inputs give other outputs on a second run"
    ran = 0
    for stack in stacks:
        try:
            calls = probe.record(model, stack, inputs)
        except AttributeError as error:
            return f"stack {stack.role}: {one_line(error)}"
        if not calls:
            continue  # a tower that these inputs do not reach
        ran += 1
        try:
            problem = probe.replay(calls)
        except FAILURES as error:
            return f"stack {stack.role}: a block does not run alone: {one_line(error)}"
        if problem is not None:
            return f"stack {stack.role}: {problem}"
        entries = list(model.get_submodule(stack.path).children())
        proxies: list[nn.Module] = [probe.Proxy(block) for block in entries]
        with probe.swapped(model, stack, proxies):
            try:
                found = probe.run(model, inputs)
            except FAILURES as error:
                return f"stack {stack.role}: the model does not take wrappers: {one_line(error)}"
        if not probe.same(found, wanted):
            return f"stack {stack.role}: with wrappers the outputs have other bits"
    return None if ran else "none of its stacks runs on the inputs that were made"


def portable(tiny: Tiny, stack: Stack) -> str | None:
    """Return why the blocks of a stack could not run in another model, or None where nothing speaks against it.

    It is asked of models that are not fused as experts so far; of the others, fusing them answers.
    """
    model, inputs = tiny.model, tiny.inputs
    if not stack.isotropic:
        return f"the stream changes its shape within {stack.path}"
    calls = probe.record(model, stack, inputs)
    if not calls:
        return f"{stack.path} does not run on the inputs that were made"
    handler = handler_for(tiny.config.model_type)
    zeros = _zeroed(model, inputs, keep=handler.keeps_ids())
    if zeros is None:
        return "its forward pass takes no embeddings in the place of token ids"
    notes: list[dict[str, Any]] = []
    entries = list(model.get_submodule(stack.path).children())
    likes = {id(call.block): call.output for call in calls}
    stubs = [probe.Stub(block, likes[id(block)], handler, notes) for block in entries]
    try:
        with probe.stubbed(entries, stubs):
            probe.run(model, zeros)
    except FAILURES as error:
        return _why_not_without(model, zeros, calls, error)
    if len(notes) != len(calls):
        return f"without its blocks {len(notes)} of {len(calls)} are called"
    wrong: dict[str, None] = {}
    for call, note in zip(calls, notes, strict=True):
        wrong |= dict.fromkeys(probe.differing(call.named(), note))
    if wrong:
        what = "data passes from block to block in" if set(wrong) & set(stack.carried) else "blocks are given other"
        return f"{what} {', '.join(sorted(wrong))} when the model runs on zero inputs without its blocks"
    return None


def _why_not_without(
    model: PreTrainedModel, zeros: dict[str, Any], calls: list[probe.Ran], error: BaseException
) -> str:
    """Return what a model misses that does not run on zero inputs without its blocks."""
    try:
        probe.run(model, zeros)
    except FAILURES:
        return "its forward pass does not run on embeddings in the place of token ids"
    extra = any(len(list(tensors_in(call.output))) > 1 for call in calls)
    if extra or any(isinstance(call.output, tuple) and len(call.output) > 1 for call in calls):
        return "its blocks return more than the stream, and their model reads it, so none of them can be left out"
    return f"its model does not run without its blocks: {one_line(error)}"


def _zeroed(model: PreTrainedModel, inputs: dict[str, Any], *, keep: bool) -> dict[str, Any] | None:
    """Return the inputs of a guest: zeros in the place of what is embedded, and everything else as it is."""
    if keep:
        return inputs
    accepts = inspect.signature(model.forward).parameters
    out = dict(inputs)
    width = (
        getattr(getattr(model.get_input_embeddings(), "weight", None), "shape", (0, 0))[-1] if _has_table(model) else 0
    )
    decoder = "decoder_input_ids" in inputs
    if decoder:
        if "decoder_inputs_embeds" in accepts and width:
            ids = out.pop("decoder_input_ids")
            out["decoder_inputs_embeds"] = torch.zeros(*ids.shape, width)
            return out
        out["decoder_input_ids"] = torch.zeros_like(out["decoder_input_ids"])
        return out
    if "input_ids" in inputs:
        if "inputs_embeds" not in accepts or not width:
            return None
        ids = out.pop("input_ids")
        out["inputs_embeds"] = torch.zeros(*ids.shape, width)
        return out
    return {
        name: torch.zeros_like(value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _has_table(model: PreTrainedModel) -> bool:
    try:
        return isinstance(model.get_input_embeddings(), nn.Module)
    except (NotImplementedError, AttributeError):
        return False
