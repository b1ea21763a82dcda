"""Model folders that cannot be extracted, each with what the error says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.blocks.sparse import sparse_model, write_holes, write_tokenizer

SMALL = {"layers": 2, "width": 256, "inner": 512, "vocab": 64, "kv_width": 128, "shards": 1}


def llama(folder: Path, **changes: Any) -> Path:
    """Write a small llama of holes whose configuration says something else."""
    sparse_model(folder, **SMALL)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def _composed(folder: Path) -> Path:
    """Write a BERT encoder and a BERT decoder that reads another width."""
    part = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    decoder = {**part, "is_decoder": True, "add_cross_attention": True, "cross_attention_hidden_size": 96}
    config = {"model_type": "encoder-decoder", "is_encoder_decoder": True, "encoder": part, "decoder": decoder}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_holes(folder / "model.safetensors", {"encoder.embeddings.word_embeddings.weight": (64, 64)})
    write_tokenizer(folder, 64)
    return folder


def _bart(folder: Path) -> Path:
    """Write a BART whose cross-attention was trained with a wider encoder."""
    config = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "d_model": 64,
              "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
              "vocab_size": 64}  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {f"model.decoder.layers.0.encoder_attn.{name}_proj.weight": (64, 96) for name in "kv"}
    write_holes(folder / "model.safetensors", shapes | {"model.shared.weight": (64, 64)})
    write_tokenizer(folder, 64)
    return folder


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no blocks": (lambda f: llama(f, num_hidden_layers=0), "num_hidden_layers is 0: the model has no blocks"),
    "a type without a list of blocks": (
        lambda f: llama(f, model_type="squeezebert", architectures=["SqueezeBertForMaskedLM"]),
        "models of type 'squeezebert' have no blocks",
    ),
    "remote code": (
        lambda f: llama(f, auto_map={"AutoModelForCausalLM": "modeling.Mine"}), "auto_map chooses code to run",
    ),
    "unknown type": (lambda f: llama(f, model_type="llamma"), "model type 'llamma' is unknown"),
    "cross-attention of another width": (_composed, "decoder.cross_attention_hidden_size is 96"),
    "cross-attention weights of another width": (_bart, "its cross-attention reads 96 numbers a position"),
    "a billion blocks": (lambda f: llama(f, num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
}  # fmt: skip
