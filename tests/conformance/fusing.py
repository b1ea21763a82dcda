# ruff: noqa: E501
"""Fused models of a type and a plain partner, as guest and as trunk: cached against uncached, saved and opened."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertConfig, LlamaConfig, PreTrainedModel

from mango.architectures.meta import MODEL_FAILURES
from mango.architectures.tasks import CAUSAL, MASKED
from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from mango.errors import MangoError
from mango.fusion import AdapterParams, FusionParams, MolForCausalLM, RouterParams, build_fused
from tests.conformance import probe
from tests.conformance.recipe import HEADS, INNER, POSITIONS, VOCAB, WIDTH

if TYPE_CHECKING:
    from tests.conformance.checks import Tiny

TOLERANCE = 1e-4
"""Largest difference of logits, relative to the largest, between cached and uncached float32: kernels of other sizes
sum in another order. What was measured over all types that pass stays below a tenth of it."""
ROUTER = {"type": "token", "token": {"window": 2}}
PROMPT = 5


def fused(tiny: Tiny) -> str | None:
    """Return why a type cannot be fused, as guest and as trunk, and decoded with a cache if it decodes; None if it can."""
    from tests.conformance.checks import one_line

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        try:
            _save(tiny.model, root / "typed")
        except (*MODEL_FAILURES, MangoError) as error:
            return f"not saved by transformers: {one_line(error)}"
        _save(PARTNERS[tiny.task](len_of(tiny)), root / "plain")
        try:
            models = {key: ModelSource(source=str(root / key)) for key in ("typed", "plain")}
            store = extract(models, root / "store", "reference")
        except (MangoError, *MODEL_FAILURES) as error:
            return f"not extracted: {_without(one_line(error), root)}"
        for trunk, expert in (("plain", "typed"), ("typed", "plain")):
            part = "as guest" if expert == "typed" else "as trunk"
            try:
                problem = _fused(store, trunk, expert, root / f"fused_{trunk}", vocabulary=len_of(tiny), task=tiny.task)
            except (MangoError, *MODEL_FAILURES) as error:
                return f"not fused {part}: {_without(one_line(error), root)}"
            if problem is not None:
                return f"not fused {part}: {problem}"
    return None


def len_of(tiny: Tiny) -> int:
    """Return the size of a model's vocabulary."""
    return int(tiny.model.get_input_embeddings().weight.shape[0])


def _without(text: str, root: Path) -> str:
    return text.replace(f"{root}/", "")


def _llama(vocabulary: int) -> PreTrainedModel:
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, vocab_size=vocabulary, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return probe.shaken(model)


def _bert(vocabulary: int) -> PreTrainedModel:
    config = BertConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=2, num_attention_heads=HEADS,
        vocab_size=vocabulary, max_position_embeddings=POSITIONS, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(config)
    return probe.shaken(model)


PARTNERS = {CAUSAL: _llama, MASKED: _bert}
"""What a model of each task is fused with."""


def _save(model: PreTrainedModel, folder: Path) -> None:
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder)
    vocabulary = {f"t{number}": number for number in range(VOCAB)}
    tokenizer = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _fused(store: BlockStore, trunk: str, expert: str, folder: Path, *, vocabulary: int, task: str) -> str | None:
    model = build_fused(
        store,
        FusionParams.model_validate({"trunk": trunk, "experts": [expert], "task": task}),
        RouterParams.model_validate(ROUTER),
        AdapterParams(type="linear"),
        seed=0,
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for router in model.iter_routers():
            router.outer.weight.copy_(torch.randn(router.outer.weight.shape, generator=generator) * 0.7)
    ids = torch.randint(2, vocabulary, (2, 2 * PROMPT), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    for routing in ("soft", "hard"):
        model.set_routing(routing)
        whole = model(ids, attention_mask=mask)
        if routing == "soft" and not bool((whole.processed > 0).all()):
            return f"experts that were chosen did not run: {whole.processed.tolist()} tokens in each span"
        if task != CAUSAL:
            continue
        error = _difference(_stepwise(model, ids, mask), whole.logits, mask)
        if not error <= TOLERANCE:
            return f"{routing} decoding with a cache differs from decoding without by {error:.0e} of the largest logit"
    model.set_routing(None)
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = type(model).from_pretrained(folder)
    with torch.no_grad():
        if not opened(ids, attention_mask=mask).logits.equal(model(ids, attention_mask=mask).logits):
            return "saved and opened again, it computes something else"
    return None


@torch.no_grad()
def _stepwise(model: MolForCausalLM, ids: Tensor, mask: Tensor) -> Tensor:
    out = model(ids[:, :PROMPT], attention_mask=mask[:, :PROMPT], use_cache=True)
    logits = [out.logits]
    for column in range(PROMPT, ids.shape[1]):
        out = model(
            ids[:, column : column + 1],
            attention_mask=mask[:, : column + 1],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        logits.append(out.logits)
    return torch.cat(logits, 1)


def _difference(found: Tensor, wanted: Tensor, mask: Tensor) -> float:
    real = mask.bool()
    scale = wanted[real].float().abs().clamp(max=1e6).max().clamp(min=1e-6)
    return float((found[real].float() - wanted[real].float()).abs().max() / scale)
