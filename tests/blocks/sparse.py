"""Checkpoints of any size whose weights are holes: headers and configuration are real, and no byte lies on the disk."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

BIG = {"layers": 32, "width": 4096, "inner": 14336, "vocab": 128256, "kv_width": 1024, "shards": 5}
"""The shape of an 8B model."""


def sparse_model(
    folder: Path, *, layers: int, width: int, inner: int, vocab: int, kv_width: int, shards: int, tokens: int = 64
) -> Path:
    """Write a sharded bfloat16 llama of zeros that takes no room.

    Args:
        folder: where to.
        layers: number of blocks.
        width: of the stream, 128 a head.
        inner: width of the feed-forward part.
        vocab: rows of the embedding.
        kv_width: width of keys.
        shards: number of files.
        tokens: entries of the tokenizer.
    """
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": width // 128, "num_key_value_heads": kv_width // 128,
        "vocab_size": vocab, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    block = {
        "input_layernorm": (width,), "post_attention_layernorm": (width,), "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner), "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_width, width), "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, width),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for index in range(layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in block.items()}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocab, width)}
    names = list(shapes)
    per_shard = -(-len(names) // shards)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = names[number * per_shard : (number + 1) * per_shard]
        weight_map |= dict.fromkeys(own, file)
        write_holes(folder / file, {name: shapes[name] for name in own})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_tokenizer(folder, tokens)
    return folder


def write_holes(file: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16", item_bytes: int = 2) -> None:
    """Write a safetensors file whose data is one hole."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = item_bytes * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)


def write_tokenizer(folder: Path, tokens: int) -> None:
    """Write a byte-pair tokenizer of so many tokens, of which all but 256 are merged from two."""
    letters = [chr(code) for code in range(0x100, 0x200)]
    vocabulary, merges = {letter: number for number, letter in enumerate(letters[: min(tokens, 256)])}, []
    queue = list(vocabulary)
    while len(vocabulary) < tokens:
        left = queue.pop(0)
        for right in letters:
            if len(vocabulary) < tokens and left + right not in vocabulary:
                vocabulary[left + right] = len(vocabulary)
                merges.append(f"{left} {right}")
                queue.append(left + right)
    document = {
        "version": "1.0", "added_tokens": [],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document))
