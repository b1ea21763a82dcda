"""From a configuration to a map of the model's parts, by one general method for every family.

The model is built without weights, run once without data, and watched: a stack of blocks is a list of modules that
the forward pass goes through in order; what runs outside it is before, between or after. Parts of a model that its
plainest inputs do not reach, such as the vision tower of a language model, are run on inputs of their own.
"""

from __future__ import annotations

import inspect
import re
import threading
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from mango.architectures.component_map import ComponentMap, Stack
from mango.architectures.meta import MODEL_FAILURES, build_meta, run_any_meta, run_meta, run_small
from mango.architectures.mixing import number
from mango.architectures.stacks import (
    Candidate,
    around,
    candidates,
    measure,
    named_roles,
    num_parameters,
    role_of,
    root_of,
    weight_of,
)
from mango.architectures.tasks import CAUSAL, IMAGE_TEXT, SEQ2SEQ, TASKS, task_of
from mango.architectures.trace import Call, Trace, tracing
from mango.errors import ArchitectureError

_known: dict[tuple[type[PretrainedConfig], str, str], ComponentMap] = {}
_lock = threading.RLock()
_POSITIONS = re.compile(r"pos(ition)?s?(_|$|ition)|rotary|rope|alibi|relative_attention_bias|wpe$")


def describe(config: PretrainedConfig, task: str | None = None) -> ComponentMap:
    """Return where the model of a configuration keeps its parts.

    No weight is allocated, so a configuration of any size will do. Results are kept for each configuration.

    Args:
        config: configuration of any model that ``transformers`` knows; it is not changed.
        task: what it is built for, one of :data:`mango.architectures.TASKS`; by default what
            :func:`mango.architectures.task_of` says.

    Returns:
        The map of its parts.

    Raises:
        ArchitectureError: the model cannot be built or run, or it has no stack of blocks.
        UnknownNameError: there is no such task.
    """
    chosen = task_of(config) if task is None else task
    key = (type(config), config.to_json_string(use_diff=False), chosen)
    with _lock:
        if key not in _known:
            _known[key] = _describe(build_meta(config, chosen), chosen, config)
        return _known[key]


def _describe(model: PreTrainedModel, task: str, config: PretrainedConfig) -> ComponentMap:
    where = f"{type(model).__name__} (model type {model.config.model_type!r})"
    causal = task == CAUSAL
    model, trace, output = _watched(model, task, config)
    embeddings = _embeddings(model, where, needed=causal)
    embeddings_path = "" if embeddings is None else _path_of(model, embeddings, where)
    base_prefix = _base_prefix(model, embeddings_path, where, needed=causal)
    reasons: list[str] = []
    found = [(trace, candidate) for candidate in candidates(model, trace, reasons)]
    for part_trace, candidate in _unreached(model, trace):
        found.append((part_trace, candidate))
    main_trace, main = _main(
        model,
        found,
        base_prefix,
        where,
        reasons,
        trace if task in (CAUSAL, IMAGE_TEXT) else None,
        decodes=_decodes(task, config),
    )
    if not main.path.startswith(f"{base_prefix}."):
        base_prefix = ""
    encodes = task != SEQ2SEQ or getattr(config, "is_encoder_decoder", False)  # not where sounds stand among tokens
    family = (TASKS[task].family if encodes else "multimodal") or _family(model)
    roles = named_roles([(role_of(model, candidate.path, family), candidate) for _, candidate in found])
    traces = {id(candidate): part_trace for part_trace, candidate in found}
    stacks = [measure(model, traces[id(candidate)], candidate, role) for role, candidate in roles]
    stacks.sort(key=lambda stack: stack.path != main.path)

    before, between, after = around(model, main_trace, main, base_prefix)
    if causal and between:
        raise ArchitectureError(
            f"{where}: {', '.join(between)} runs between the blocks of {main.path}, which must follow on, or both "
            "before and after them"
        )
    text = model.config.get_text_config()
    stack = stacks[0]
    num_heads, num_kv_heads, head_dim = stack.num_heads, stack.num_kv_heads, stack.head_dim
    if causal:
        num_heads, num_kv_heads, head_dim = _cached_heads(output, stack, text, where)
        if not stack.width:
            _constant_width(main.calls, where)
    head = _head(model)
    weight = weight_of(embeddings)
    if causal and weight is None:
        raise ArchitectureError(f"{where}: its input embedding is a {type(embeddings).__name__} without a weight")
    first = model.get_submodule(main.path).get_submodule("0") if _zero(model, main) else None
    return ComponentMap(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        base_prefix=base_prefix,
        blocks=main.path.removeprefix(f"{base_prefix}.") if base_prefix else main.path,
        block_class=stack.block_class,
        num_blocks=stack.num_blocks,
        width=stack.width or (main.calls[0].input_shape or (0,))[-1],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=None if first is None else _intermediate_size(text, first, main_trace, main, stack.width),
        vocab_size=0 if weight is None or weight.ndim != 2 else weight.shape[0],
        max_positions=number(text, "max_position_embeddings"),
        embeddings=embeddings_path,
        before=before,
        after=after,
        head=None if head is None else _path_of(model, head, where),
        tied=head is not None and weight is not None and _is_tied(model, head, weight),
        task=task,
        family=family,
        dtype=None if config.dtype is None else str(config.dtype).removeprefix("torch."),
        position_embeddings=_positions(model, main_trace, main),
        final_norm=_final_norm(model, base_prefix, after),
        stacks=tuple(stacks),
    )


def _watched(model: PreTrainedModel, task: str, config: PretrainedConfig) -> tuple[PreTrainedModel, Trace, Any]:
    """Run a model without data; where it reads values, in float32, and where that does not help, with data."""
    try:
        with tracing(model) as trace:
            return model, trace, run_meta(model) if task == CAUSAL else run_any_meta(model)
    except ArchitectureError as error:
        problem = error
    single = build_meta(config, task, dtype=torch.float32)
    try:
        with tracing(single) as trace:
            return single, trace, run_meta(single) if task == CAUSAL else run_any_meta(single)
    except ArchitectureError:
        pass
    try:
        built, run = run_small(single)
        with tracing(built) as trace:
            return built, trace, run()
    except (ArchitectureError, *MODEL_FAILURES):
        raise problem from None


def _zero(model: nn.Module, main: Candidate) -> bool:
    return "0" in dict(model.get_submodule(main.path).named_children())


def _embeddings(model: PreTrainedModel, where: str, *, needed: bool) -> nn.Module | None:
    try:
        found = model.get_input_embeddings()
    except (NotImplementedError, AttributeError, TypeError) as error:
        if needed:
            raise ArchitectureError(f"{where}: it says of no module that it is its input embedding") from error
        return None
    return found if isinstance(found, nn.Module) and any(found is module for module in model.modules()) else None


def _head(model: PreTrainedModel) -> nn.Module | None:
    try:
        found: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    except (NotImplementedError, AttributeError, TypeError):
        return None
    return found if isinstance(found, nn.Module) and any(found is module for module in model.modules()) else None


def _base_prefix(model: PreTrainedModel, embeddings: str, where: str, *, needed: bool) -> str:
    """Return the attribute that holds the base model: the declared one, else the child that holds the embeddings."""
    declared = model.base_model_prefix
    if declared and isinstance(getattr(model, declared, None), nn.Module):
        return _within(model, declared)
    if not needed:
        return ""
    child, _, inner = embeddings.partition(".")
    if not inner:
        raise ArchitectureError(f"{where}: it has no base model, neither under its prefix {declared!r} nor elsewhere")
    return child


def _within(model: nn.Module, path: str) -> str:
    """Return the path of the model that a wrapper hands on all that it is given to, or that of a model itself."""
    module = model.get_submodule(path)
    kinds = {parameter.kind for parameter in inspect.signature(module.forward).parameters.values()}
    children = [name for name, _ in module.named_children()]
    if kinds <= {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} and len(children) == 1:
        return _within(model, f"{path}.{children[0]}")
    return path


def _unreached(model: PreTrainedModel, trace: Trace) -> list[tuple[Trace, Candidate]]:
    """Run the parts that did not run, each on inputs of its own, and return the stacks in them."""
    ran = {call.path for call in trace.calls}
    found: list[tuple[Trace, Candidate]] = []
    taken: list[str] = []
    for path, part in model.named_modules():
        if not path or path in ran or not isinstance(part, PreTrainedModel):
            continue
        if any(path.startswith(f"{other}.") for other in taken) or any(call.startswith(f"{path}.") for call in ran):
            continue
        try:
            with tracing(part) as inner:
                run_any_meta(part)
        except ArchitectureError:
            continue  # what it reads cannot be made here; the parts inside it may still run
        taken.append(path)
        prefixed = Trace([_prefixed(call, path) for call in inner.calls])
        found += [(prefixed, candidate) for candidate in candidates(model, prefixed, [])]
    return found


def _prefixed(call: Call, path: str) -> Call:
    call.path = f"{path}.{call.path}".rstrip(".")
    call.parents = tuple(f"{path}.{parent}".rstrip(".") for parent in call.parents)
    return call


def _decodes(task: str, config: PretrainedConfig) -> bool:
    return task == SEQ2SEQ and bool(getattr(config, "is_encoder_decoder", False))


def _main(
    model: PreTrainedModel,
    found: list[tuple[Trace, Candidate]],
    base: str,
    where: str,
    reasons: list[str],
    written: Trace | None,
    *,
    decodes: bool,
) -> tuple[Trace, Candidate]:
    inside = [pair for pair in found if base and pair[1].path.startswith(f"{base}.")] or found
    inside = [pair for pair in inside if pair[1].blocklike] or inside
    if written is not None:  # of a model that writes text, the stack that its tokens go through, not that of its images
        inside = [pair for pair in inside if pair[0] is written] or inside
    if not inside:
        why = "; ".join(reasons) or f"no list of modules runs{_past_calls(model)}"
        raise ArchitectureError(f"{where}: no block list: wanted a list whose entries run once and in order; {why}")
    if decodes:
        inside = [pair for pair in inside if role_of(model, pair[1].path, "seq2seq") == "decoder"] or inside
    # max() keeps the first of equals, so the order of definition decides last.
    return max(
        inside,
        key=lambda pair: (
            pair[1].once,
            len(pair[1].order),
            num_parameters(model.get_submodule(pair[1].path)),
        ),
    )


def _past_calls(model: nn.Module) -> str:
    """Return which list of modules the model uses without calling its entries, as the end of a sentence."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and next(module.parameters(), None) is not None:
            return f", and the entries of {path} are not called as modules, so nothing can watch or replace them"
    return ""


def _family(model: PreTrainedModel) -> str:
    reads = str(model.main_input_name)
    if re.search(r"pixel|image|video", reads):
        return "vision"
    if re.search(r"features|input_values|audio|mel|waveform|spectrogram", reads):
        return "audio"
    if reads in {"input_ids", "inputs_embeds"}:
        return "text"
    return "other"


def _constant_width(calls: list[Call], where: str) -> None:
    for call in calls:
        if call.input_shape is None or call.output_shape is None or call.input_shape[-1] != call.output_shape[-1]:
            raise ArchitectureError(
                f"{where}: {call.path} reads {call.input_shape} and returns {call.output_shape}: "
                "wanted one residual stream of constant width"
            )


def _cached_heads(output: Any, stack: Stack, text: PretrainedConfig, where: str) -> tuple[int, int, int]:
    """Return query heads, and (heads, size of one head) of the first layer that cached keys; 0 where none has any."""
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        cache = getattr(output, "cache_params", None) or getattr(output, "state", None)
    if cache is None and getattr(text, "is_decoder", True):
        return stack.num_heads, 0, 0  # it caches nothing: each step runs on everything before it
    if cache is None:
        raise ArchitectureError(
            f"{where}: no block cached keys of attention heads or a state: it is no decoder; describe it for another "
            "task than causal-lm"
        )
    for layer in getattr(cache, "layers", ()):
        keys = getattr(layer, "keys", None)
        if isinstance(keys, torch.Tensor) and keys.ndim == 4:
            heads = number(text, "num_attention_heads") or stack.num_heads
            return heads, keys.shape[1], keys.shape[3]
    return 0, 0, 0


def _intermediate_size(
    text: PretrainedConfig, block: nn.Module, trace: Trace, main: Candidate, width: int
) -> int | None:
    """Return the inner width: the configuration's, else what the block's last projection to ``width`` reads."""
    declared = number(text, "intermediate_size")
    if declared is not None:
        return declared
    block_path = f"{main.path}.0"
    for call in reversed(trace.inside(block_path)):
        weight = weight_of(block.get_submodule(call.path.removeprefix(f"{block_path}.")))
        if weight is not None and weight.ndim == 2 and call.input_shape is not None and call.output_shape is not None:
            return call.input_shape[-1] if call.output_shape[-1] == width else None
    return None


def _positions(model: nn.Module, trace: Trace, main: Candidate) -> tuple[str, ...]:
    """Return the modules named for positions that ran in the part that the main stack is in, without repetitions."""
    root, _ = root_of(model, main.path)  # type: ignore[arg-type]
    names: dict[str, None] = {}
    for call in trace.calls:
        last = call.path.rpartition(".")[2].lower()
        inside_later = call.path.startswith(f"{main.path}.") and not call.path.startswith(f"{main.path}.0.")
        if _POSITIONS.search(last) and not inside_later and call.path.startswith(root):
            names[call.path] = None
    return tuple(names)


def _final_norm(model: nn.Module, base: str, after: tuple[str, ...]) -> str | None:
    for name in after:
        path = f"{base}.{name}" if base else name
        if "norm" in type(model.get_submodule(path)).__name__.lower():
            return path
    return None


def _is_tied(model: PreTrainedModel, head: nn.Module, embeddings_weight: torch.Tensor) -> bool:
    # While a model is being loaded, transformers puts off tying; what it is going to tie is known by then.
    path = next(path for path, module in model.named_modules() if module is head)
    return weight_of(head) is embeddings_weight or f"{path}.weight" in model.all_tied_weights_keys


def _path_of(model: nn.Module, wanted: nn.Module, where: str) -> str:
    for path, module in model.named_modules():
        if module is wanted:
            return str(path)
    raise ArchitectureError(f"{where}: its {type(wanted).__name__} embedding is not among its own modules")
