"""From stored blocks to a fused model."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mango.architectures import ComponentMap, build_meta, describe
from mango.architectures.meta import is_unsaved
from mango.architectures.tasks import CAUSAL, IMAGE_TEXT, MASKED, SEQ2SEQ, class_for
from mango.blocks import BlockStore
from mango.errors import ArchitectureError, IncompatibleBlocksError
from mango.fusion.agreement import check_agreement
from mango.fusion.bridge import make_bridge
from mango.fusion.bridge.agreement import check_bridges
from mango.fusion.configuration import MolConfig
from mango.fusion.core import TRAINED, MolPreTrainedModel, source_configs
from mango.fusion.expert import FusedExpert
from mango.fusion.heads import HEADS
from mango.fusion.layout import OTHER_WAYS, Layout, make_layout
from mango.fusion.names import canonical, true_names
from mango.fusion.params import AdapterParams, FusionParams, RouterParams
from mango.fusion.pruning import why_opaque
from mango.fusion.stages import why_no_row
from mango.fusion.tasks import IMAGES, SOURCE_TASKS, task_of_source, why_no_task


def build_fused(
    store: BlockStore, fusion: FusionParams, router: RouterParams, adapter: AdapterParams, *, seed: int
) -> MolPreTrainedModel:
    """Build a fused model from a block store; adapters and routers get their untrained start.

    Args:
        store: holds every model that `fusion` names.
        fusion: trunk, experts and cuts.
        router: the router.
        adapter: the adapter.
        seed: of the random part of that start.

    Returns:
        The model on the CPU, in evaluation mode, of the class that ``fusion.task`` says.

    Raises:
        IncompatibleBlocksError: tokenizers differ, or models do not fit together.
        ArchitectureError: the stored tensors are not all that the model needs, or a model's blocks do not compute on
            their own what they compute inside it.
    """
    names = sorted({fusion.trunk, *(expert.model for expert in fusion.experts)})
    configs = {name: store.config(name) for name in names}
    maps: dict[str, ComponentMap] = {name: store.model(name).architecture for name in names}
    for name in names:
        if fusion.task == CAUSAL and maps[name].task == MASKED:
            configs[name], maps[name] = as_decoder(configs[name], maps[name], name)
        if fusion.task == IMAGE_TEXT:
            maps[name] = as_reader(configs[name], maps[name], name, trunk=name == fusion.trunk)
    for name in names:
        if maps[name].task != task_of_source(fusion.task, configs[name]):
            never = why_no_task(maps[name])
            if never is not None:
                raise ArchitectureError(f"fusion: {name!r} ({maps[name].architecture}) {never}")
            raise ArchitectureError(
                f"fusion: {name!r} ({maps[name].architecture}) is for {maps[name].task}, and fusion.task is "
                f"{fusion.task}, which fuses models for {SOURCE_TASKS[fusion.task]}; `mango architectures` lists what "
                "can be fused"
            )
    head = HEADS[fusion.task]
    for name in names:
        reason = _why_not(fusion.task, configs[name], maps[name])
        if reason is not None:
            raise ArchitectureError(
                f"fusion: {name!r} ({maps[name].architecture}): {reason}; it can be neither trunk nor expert"
            )
    _check_classes(store, fusion, names)
    _check_tokenizers(store, fusion, names)
    layout = make_layout(fusion, maps)
    _check_cuts(layout, maps)
    bridges = {
        expert.source: make_bridge(
            store.tokenizer_folder(fusion.trunk), store.tokenizer_folder(expert.source), expert.source
        )
        for expert in layout.experts
        if expert.bridged
    }
    trunk = configs[fusion.trunk]
    text = trunk.get_text_config()
    config = MolConfig(
        sources=source_configs(configs),
        layout=layout.to_dict(),
        router=router.model_dump(mode="json"),
        adapter=adapter.model_dump(mode="json"),
        vocab_size=maps[fusion.trunk].vocab_size,
        hidden_size=maps[fusion.trunk].width,
        max_position_embeddings=min(maps[n].max_positions or 2**31 for n in names),
        bos_token_id=getattr(text, "bos_token_id", None),
        eos_token_id=getattr(text, "eos_token_id", None),
        pad_token_id=getattr(text, "pad_token_id", None),
        architectures=[head.__name__],
        task=fusion.task,
        bridges={name: sizes.to_dict() for name, (sizes, _) in bridges.items()},
        **_of_task(fusion.task, trunk),
    )
    dtype: torch.dtype = getattr(torch, fusion.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta"):
            skeleton = head(config)
        weights, computed = _weights(store, skeleton, configs, maps)
        for number, expert in enumerate(layout.experts):
            if expert.bridged:
                tensors = bridges[expert.source][1]
                weights |= {f"experts.{number}.bridge.{name}": tensor for name, tensor in tensors.items()}
        wanted = set(skeleton.state_dict()) - set(skeleton.all_tied_weights_keys)
        ours = {name for name in wanted if _is_trained(name)}
        missing = sorted(wanted - ours - set(weights) - computed)
        if missing:
            raise ArchitectureError(f"the stored blocks do not make the model: missing {missing}")
        model = head(config)
        # Only what a checkpoint holds: tables of positions keep the precision that they are computed in.
        for name, tensor in model.state_dict(keep_vars=True).items():
            if tensor.is_floating_point() and name not in ours:
                tensor.data = tensor.data.to(dtype)
        _fill(model, weights)
    model.freeze_experts()
    model.train(False)
    check_agreement(model, store)
    check_bridges(model)
    _check_heads(model)
    return model


def _why_not(task: str, config: PretrainedConfig, parts: ComponentMap) -> str | None:
    """Return why a source model for a task cannot be fused at all, as far as its map tells, or None."""
    if task == IMAGES:
        if parts.vocab_size:
            return "it reads images as token ids and not as pixel_values, which all experts must share"
        return why_no_row(parts)
    if task == SEQ2SEQ and not getattr(config, "is_encoder_decoder", False):
        return (
            "what it reads stands among the tokens that it writes, and none of its stacks is a decoder that attends to "
            "an encoder"
        )
    if not parts.vocab_size:
        return "none of its modules is the table that its token ids are looked up in, so its tokens cannot be told"
    return None


def _check_cuts(layout: Layout, maps: dict[str, ComponentMap]) -> None:
    """Refuse to cut a masked language model that has no list of whole blocks which its stream goes through."""
    for expert in layout.experts:
        parts = maps[expert.source]
        reason = why_opaque(parts)
        whole = [(span.start, span.stop) for span in expert.spans] == [(0, parts.num_blocks)]
        ends = expert.spans[0].enter == 0 and expert.spans[-1].exit == layout.num_positions
        if reason is not None and not (whole and ends and expert.own_edges):
            raise ArchitectureError(
                f"fusion: {expert.source!r} ({parts.architecture}): {reason}; it is fused whole alone, as an expert "
                f"with cut: whole and edges: own, as the trunk with span: {parts.num_blocks}"
            )


def _check_heads(model: MolPreTrainedModel) -> None:
    """Refuse experts whose distributions are over other numbers of tokens."""
    rows: dict[str, int] = {}
    for expert, fused in zip(model.layout.experts, model.experts, strict=True):
        assert isinstance(fused, FusedExpert)
        if fused.bridge is None and fused.tail is not None and fused.tail.head_path is not None:
            weight = fused.tail.model.get_submodule(fused.tail.head_path).weight
            assert isinstance(weight, Tensor)
            rows[expert.name] = len(weight)
    if len(set(rows.values())) > 1:
        found = ", ".join(f"that of {name!r} {count:,}" for name, count in rows.items())
        raise IncompatibleBlocksError(
            f"fusion: heads tell different numbers of tokens apart: {found}; experts whose distributions are mixed "
            "must agree, or end in the trunk's head (edges: trunk)"
        )


def _is_trained(name: str) -> bool:
    """Tell tensors of routers and adapters, ``routers.*`` and ``experts.N.inputs.*``, from those of source models."""
    path = name.split(".")
    return path[0] in TRAINED or (path[0] == "experts" and path[2] in TRAINED)


@torch.no_grad()
def _fill(model: MolPreTrainedModel, weights: dict[str, Tensor]) -> None:
    for name, tensor in weights.items():
        module_name, _, leaf = name.rpartition(".")
        target = getattr(model.get_submodule(module_name), leaf)
        if target.shape != tensor.shape:
            raise ArchitectureError(f"{name}: stored as {list(tensor.shape)}, wanted {list(target.shape)}")
        target.copy_(tensor)


def as_decoder(config: PretrainedConfig, parts: ComponentMap, name: str) -> tuple[PretrainedConfig, ComponentMap]:
    """Return an encoder's configuration and map as those of a decoder of the same weights, masked causally.

    Args:
        config: the encoder's configuration; it is not changed.
        parts: the encoder's map.
        name: of the model, for messages.

    Raises:
        ArchitectureError: its architecture has no causal form, so its blocks would see the future.
    """
    if class_for(config, CAUSAL) is not None and hasattr(config, "is_decoder"):
        decoder = deepcopy(config)
        decoder.is_decoder, decoder.architectures = True, None
        found = describe(decoder, CAUSAL)
        if (found.blocks_path, found.num_blocks, found.width) == (parts.blocks_path, parts.num_blocks, parts.width):
            table = build_meta(decoder, CAUSAL).get_submodule(found.embeddings.rpartition(".")[0])
            if not hasattr(table, "create_position_ids_from_input_ids"):
                return decoder, found
            raise ArchitectureError(
                f"fusion: {name!r} ({parts.architecture}) counts its positions from its padding token on and not from "
                "0, so it cannot be a causal expert; fuse it with fusion.task masked-lm"
            )
    raise ArchitectureError(
        f"fusion: {name!r} ({parts.architecture}) is for {parts.task}, and fusion.task is {CAUSAL}: its blocks see "
        "what follows a token, and its architecture has no causal form; fuse it with fusion.task masked-lm"
    )


def as_reader(config: PretrainedConfig, parts: ComponentMap, name: str, *, trunk: bool) -> ComponentMap:
    """Return the map of a model in a fused model that reads images: of the blocks that its text goes through.

    Args:
        config: the model's configuration.
        parts: its map as it was extracted.
        name: of the model, for messages.
        trunk: whether it is the trunk, which reads the images.

    Raises:
        ArchitectureError: it reads no images though it is the trunk, or it reads them in a way that experts of text
            cannot follow.
    """
    task = task_of_source(IMAGE_TEXT, config)
    found = parts if parts.task == task else describe(config, task)
    where = f"fusion: {name!r} ({found.architecture})"
    if trunk and task != IMAGE_TEXT:
        raise ArchitectureError(
            f"{where} reads no images, so it cannot be the trunk of a model for {IMAGE_TEXT}; name the model that "
            "reads them as fusion.trunk, or use fusion.task causal-lm"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ArchitectureError(
            f"{where} reads images in an encoder that its decoder attends to, and has no places for them among its "
            "tokens: it can be neither trunk nor expert of a model for image-text-to-text"
        )
    if found.blocks_path != parts.blocks_path:
        raise ArchitectureError(
            f"{where} was extracted with the blocks of {parts.blocks_path}, and its text goes through those of "
            f"{found.blocks_path}; run extract-blocks again"
        )
    return found


def _of_task(task: str, trunk: PretrainedConfig) -> dict[str, Any]:
    """Return what the configuration of a fused model has of its trunk's beside the special tokens."""
    if task == IMAGES:
        return {"id2label": dict(trunk.id2label or {})}
    if task == SEQ2SEQ:
        return {"is_encoder_decoder": True, "decoder_start_token_id": getattr(trunk, "decoder_start_token_id", None)}
    return {}


def _check_classes(store: BlockStore, fusion: FusionParams, names: list[str]) -> None:
    if fusion.task != IMAGES:
        return
    wanted = store.config(fusion.trunk).id2label or {}
    for name in names:
        found = store.config(name).id2label or {}
        if found != wanted:
            what = f"{len(found)} classes apart, the trunk {fusion.trunk!r} {len(wanted)}"
            if len(found) == len(wanted):
                what = f"other classes apart than the trunk {fusion.trunk!r}"
            raise IncompatibleBlocksError(f"fusion: {name!r} tells {what}: experts must have the trunk's (id2label)")


def _check_tokenizers(store: BlockStore, fusion: FusionParams, names: list[str]) -> None:
    trunk = fusion.trunk
    wanted = store.model(trunk).tokenizer_sha256
    own = {trunk, *(expert.model for expert in fusion.experts if expert.edges == "own" or fusion.task != CAUSAL)}
    # A bridge between two equal vocabularies would only cost what it loses.
    for expert in fusion.experts:
        if expert.edges == "bridge" and store.model(expert.model).tokenizer_sha256 == wanted:
            raise IncompatibleBlocksError(
                f"fusion: {expert.model!r} has the tokenizer of the trunk {trunk!r}, so it needs no bridge: set its "
                "edges to own"
            )
    for name in names:
        found = store.model(name).tokenizer_sha256
        if found is None and store.model(name).architecture.vocab_size:
            raise IncompatibleBlocksError(
                f"fusion: {name!r} has no tokenizer, so nothing tells whether its tokens are those of the others; copy "
                f"tokenizer.json into {store.tokenizer_folder(name)} and run extract-blocks again"
            )
        if found != wanted and name in own:
            raise IncompatibleBlocksError(
                f"fusion: the tokenizer of {name!r} is not that of the trunk {trunk!r} "
                f"({str(found)[:12]} and {str(wanted)[:12]}): experts must share the trunk's tokenizer"
                + (OTHER_WAYS if fusion.task == CAUSAL else "")
            )


def _weights(
    store: BlockStore,
    skeleton: MolPreTrainedModel,
    configs: dict[str, PretrainedConfig],
    maps: dict[str, ComponentMap],
) -> tuple[dict[str, Tensor], set[str]]:
    """Return every tensor of the source models under its name in the fused model, found by its name in the source.

    The second value names those that are in no checkpoint, since their model's constructor computes them.
    """
    out: dict[str, Tensor] = {}
    computed: set[str] = set()
    for number, expert in enumerate(skeleton.layout.experts):
        parts, config = maps[expert.source], configs[expert.source]
        fused = skeleton.experts[number]
        assert isinstance(fused, FusedExpert)
        own, _ = canonical(config, parts)
        source = build_meta(config, parts.task)
        blocks: dict[str, Tensor] = {}
        first = () if fused.encoder is None else (0,)  # it lends the others what they share
        for index in sorted({*first, *(index for start, stop in fused.spans for index in range(start, stop))}):
            prefix = parts.block_prefix(index)
            blocks |= {f"{prefix}{name}": t for name, t in store.block_tensors(expert.source, index).items()}
        stored = blocks | {own.get(name, name): t for name, t in store.edge_tensors(expert.source).items()}
        names = true_names(fused, config, parts, fused.spans)
        for name, true in names.items():
            if name in fused.ties:
                continue
            if true in stored:
                out[f"experts.{number}.{name}"] = stored[true]
            elif is_unsaved(source, true):
                computed.add(f"experts.{number}.{name}")
    return out, computed
