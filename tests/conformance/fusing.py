"""Fused models of a type and a plain partner, as guest and as trunk: cached against uncached, saved and opened."""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    LlamaConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from mango.architectures.meta import MODEL_FAILURES
from mango.architectures.tasks import CAUSAL, IMAGE_TEXT, MASKED, SEQ2SEQ
from mango.blocks import BlockStore, extract, load_source
from mango.checkpoints import ModelSource
from mango.errors import ConfigError, IncompatibleBlocksError, MangoError
from mango.fusion import AdapterParams, FusionParams, MolForImageTextToText, RouterParams, build_fused
from mango.fusion.image_agreement import image_inputs
from mango.fusion.tasks import IMAGES
from tests.conformance import probe
from tests.conformance.recipe import HEADS, INNER, POSITIONS, VOCAB, WIDTH

if TYPE_CHECKING:
    from tests.conformance.checks import Tiny

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest, between cached and uncached float32: kernels of other sizes
sum in another order. What was measured over all types that pass stays below a tenth of it."""
ROUTER = {"type": "token", "token": {"window": 2}}
PROMPT = 5
SPAN = 2
"""Blocks of the trunk in a span."""


@dataclass(frozen=True)
class Found:
    """What came of fusing a type.

    Args:
        problem: why it cannot be fused, as guest or as trunk; None where it can.
        guest: whether it was fused as an expert of a plain trunk.
        whole: why it can be a trunk in one span alone; None where it can in several.
    """

    problem: str | None
    guest: bool
    whole: str | None = None


def fused(tiny: Tiny) -> Found:
    """Fuse a type as guest and as trunk, and decode with a cache if it decodes."""
    from tests.conformance.checks import one_line

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        try:
            _save(tiny.model, root / "typed")
        except (*MODEL_FAILURES, MangoError) as error:
            return Found(f"not saved by transformers: {one_line(error)}", False)
        try:
            _save(PARTNERS[tiny.task](tiny), root / "plain")
        except MODEL_FAILURES as error:
            return Found(f"no plain model fits it: {one_line(error)}", False)
        try:
            models = {key: ModelSource(source=str(root / key)) for key in ("typed", "plain")}
            store = extract(models, root / "store", "reference")
        except (MangoError, *MODEL_FAILURES) as error:
            return Found(f"not extracted: {_without(one_line(error), root)}", False)
        if tiny.task in EXPERTS:
            problem = _tried(store, "plain", "typed", root / "fused_plain", tiny, span=SPAN)
            if problem is not None:
                return Found(f"not fused as guest: {problem}", False)
        problem = _tried(store, "typed", "plain", root / "fused_typed", tiny, span=SPAN)
        if problem is None:
            return Found(None, True)
        blocks = store.model("typed").architecture.num_blocks
        if blocks > SPAN and _tried(store, "typed", "plain", root / "fused_whole", tiny, span=blocks) is None:
            return Found(None, True, problem)
        return Found(f"not fused as trunk: {problem}", True)


def _tried(store: BlockStore, trunk: str, expert: str, folder: Path, tiny: Tiny, *, span: int) -> str | None:
    """Return why two models cannot be fused, or None where they can."""
    from tests.conformance.checks import one_line

    try:
        return _fused(store, trunk, expert, folder, tiny, span=span)
    except IncompatibleBlocksError as error:
        if tiny.task != CAUSAL or "heads tell different numbers" not in str(error):
            return _without(one_line(error), folder.parent)
        return _tried_between_edges(store, trunk, expert, folder, tiny, span=span)
    except (MangoError, *MODEL_FAILURES) as error:
        return _without(one_line(error), folder.parent)


def _tried_between_edges(
    store: BlockStore, trunk: str, expert: str, folder: Path, tiny: Tiny, *, span: int
) -> str | None:
    """Return why two models cannot be fused with the trunk's embedding and head alone, or None where they can."""
    from tests.conformance.checks import one_line

    try:
        return _fused(store, trunk, {"model": expert, "edges": "trunk"}, folder, tiny, span=span)
    except (MangoError, *MODEL_FAILURES) as error:
        return _without(one_line(error), folder.parent)


def len_of(tiny: Tiny) -> int:
    """Return the size of a model's vocabulary."""
    try:
        table = getattr(tiny.model.get_input_embeddings(), "weight", None)
    except NotImplementedError:
        table = None
    return int(tiny.model.config.get_text_config().vocab_size if table is None else table.shape[0])


def _without(text: str, root: Path) -> str:
    return text.replace(f"{root}/", "")


def _llama(tiny: Tiny) -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, vocab_size=len_of(tiny), max_position_embeddings=POSITIONS,
    )  # fmt: skip
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return probe.shaken(model)


def _bert(tiny: Tiny) -> PreTrainedModel:
    config = BertConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=HEADS,
        vocab_size=len_of(tiny), max_position_embeddings=POSITIONS, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(config)
    return probe.shaken(model)


def _bart(tiny: Tiny) -> PreTrainedModel:
    config = BartConfig(
        d_model=WIDTH, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=HEADS, decoder_attention_heads=HEADS, vocab_size=len_of(tiny),
        max_position_embeddings=POSITIONS,
    )  # fmt: skip
    torch.manual_seed(1)
    return probe.shaken(BartForConditionalGeneration(config))


def _vit(tiny: Tiny) -> PreTrainedModel:
    pixels = tiny.inputs.get("pixel_values")  # some read images as tokens
    _, channels, height, width = (1, 3, 32, 32) if pixels is None else pixels.shape
    config = ViTConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=HEADS,
        image_size=[height, width], patch_size=max(1, height // 4), num_channels=channels,
        num_labels=tiny.model.config.num_labels,
    )  # fmt: skip
    torch.manual_seed(1)
    return probe.shaken(ViTForImageClassification(config))


PARTNERS = {CAUSAL: _llama, MASKED: _bert, SEQ2SEQ: _bart, IMAGES: _vit, IMAGE_TEXT: _llama}
"""What a model of each task is fused with."""
EXPERTS = (CAUSAL, MASKED, SEQ2SEQ, IMAGES)
"""Tasks whose models are fused as experts; those that read images are trunks, of experts that read text."""
ONCE = {"type": "simple", "simple": {"prompt": 4}}


def _save(model: PreTrainedModel, folder: Path) -> None:
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    vocabulary = {f"t{number}": number for number in range(VOCAB)}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _fused(
    store: BlockStore, trunk: str, expert: str | dict[str, str], folder: Path, tiny: Tiny, *, span: int
) -> str | None:
    task = tiny.task
    span = min(span, store.model(trunk).architecture.num_blocks)
    model = build_fused(
        store,
        FusionParams.model_validate({"trunk": trunk, "experts": [expert], "task": task, "span": span}),
        RouterParams.model_validate(ROUTER if task in (CAUSAL, MASKED, IMAGE_TEXT) else ONCE),
        AdapterParams(type="linear"),
        seed=0,
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for router in model.iter_routers():
            router.outer.weight.copy_(torch.randn(router.outer.weight.shape, generator=generator) * 0.7)
    if isinstance(model, MolForImageTextToText):
        problem = _sees(model, store, trunk)
        if problem is not None:
            return problem
    inputs, written = _inputs(tiny, generator)
    for routing in ("soft", "hard"):
        model.set_routing(routing)
        with torch.no_grad():
            whole = model(**inputs)
        if routing == "soft" and not bool((whole.processed > 0).all()):
            return f"experts that were chosen did not run: {whole.processed.tolist()} tokens in each span"
        if written is None:
            continue
        mask = inputs["attention_mask"] if written == "input_ids" else torch.ones_like(inputs[written])
        error = _difference(_stepwise(model, inputs, written), whole.logits, mask)
        if not error <= TOLERANCE:
            return f"{routing} decoding with a cache differs from decoding without by {error:.0e} of the largest logit"
    model.set_routing(None)
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = type(model).from_pretrained(folder)
    with torch.no_grad():
        if not opened(**inputs).logits.equal(model(**inputs).logits):
            return "saved and opened again, it computes something else"
    return None


def _inputs(tiny: Tiny, generator: torch.Generator) -> tuple[dict[str, Tensor], str | None]:
    """Return the inputs of a fused model, and which of them it decodes step by step, or None."""
    if tiny.task == IMAGES:
        return {"pixel_values": tiny.inputs["pixel_values"]}, None
    ids = torch.randint(2, len_of(tiny), (2, 2 * PROMPT), generator=generator)
    mask = torch.ones_like(ids)
    if tiny.task == SEQ2SEQ:
        mask[1, -2:] = 0
        target = torch.randint(2, len_of(tiny), (2, 2 * PROMPT), generator=generator)
        return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": target}, "decoder_input_ids"
    mask[1, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}, "input_ids" if tiny.task in (CAUSAL, IMAGE_TEXT) else None


@torch.no_grad()
def _sees(model: MolForImageTextToText, store: BlockStore, trunk: str) -> str | None:
    """Return what goes wrong with an image: an expert that does not run, or another answer with a cache."""
    inputs = image_inputs(load_source(store, trunk), rows=2)
    ids = inputs["input_ids"]
    behind = {"input_ids": ids[:, -2:]}
    first = {name: value[:, :-2] if value.shape == ids.shape else value for name, value in inputs.items()}
    for routing in ("soft", "hard"):
        model.set_routing(routing)
        try:
            whole = model(**inputs)
        except ConfigError as refused:
            if routing == "soft":
                return str(refused)
            continue  # image tokens that see each other are not routed apart, and asking for it says so
        if routing == "soft" and not bool((whole.processed > 0).all()):
            return f"with an image, experts did not run: {whole.processed.tolist()} tokens in each span"
        begun = model(**first, use_cache=True)
        later = model(**behind, past_key_values=begun.past_key_values)
        error = _difference(torch.cat([begun.logits, later.logits], 1), whole.logits, torch.ones_like(ids))
        if not error <= TOLERANCE:
            return f"with an image, {routing} decoding with a cache differs from decoding without by {error:.0e}"
    return None


@torch.no_grad()
def _stepwise(model: Any, inputs: dict[str, Tensor], written: str) -> Tensor:
    ids = inputs[written]
    logits: list[Tensor] = []
    cache: dict[str, Any] = {}
    for start, stop in [(0, PROMPT), *((column, column + 1) for column in range(PROMPT, ids.shape[1]))]:
        given = {**inputs, written: ids[:, start:stop]}
        if written == "input_ids":
            given["attention_mask"] = inputs["attention_mask"][:, :stop]
        out = model(**given, **cache, use_cache=True)
        cache = {"past_key_values": out.past_key_values}
        logits.append(out.logits)
    return torch.cat(logits, 1)


def _difference(found: Tensor, wanted: Tensor, mask: Tensor) -> float:
    real = mask.bool()
    scale = wanted[real].float().abs().clamp(max=1e6).max().clamp(min=1e-6)
    return float((found[real].float() - wanted[real].float()).abs().max() / scale)
