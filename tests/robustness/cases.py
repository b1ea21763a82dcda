"""The cases of the fuzzer: a valid document of each kind, its mutations, and what opens it."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.robustness.mutations import mutate_bytes, mutate_text, mutate_tree, to_text

HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": {"dtype": "F32", "shape": [16, 8], "data_offsets": [0, 512]},
    "model.layers.0.mlp.weight": {"dtype": "BF16", "shape": [8, 8], "data_offsets": [512, 640]},
    "model.norm.weight": {"dtype": "F16", "shape": [8], "data_offsets": [640, 656]},
    "mask": {"dtype": "BOOL", "shape": [4], "data_offsets": [656, 660]},
    "scalar": {"dtype": "F32", "shape": [], "data_offsets": [660, 664]},
    "empty": {"dtype": "I64", "shape": [0, 3], "data_offsets": [664, 664]},
}
CONFIGS: list[dict[str, Any]] = [
    {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "dtype": "float32", "tie_word_embeddings": True,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "bos_token_id": 0, "eos_token_id": [1, 2],
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "transformers_version": "5.17.0", "use_cache": True,
    },
    {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2,
        "n_positions": 64, "vocab_size": 16, "activation_function": "gelu_new", "attn_pdrop": 0.1,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    },
    {
        "model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4,
        "num_key_value_heads": 1, "intermediate_size": 16, "vocab_size": 16, "layer_types": ["full_attention"],
        "sliding_window": None, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}, "torch_dtype": "bfloat16",
    },
]  # fmt: skip
_TOKENS = ["a", "b", "c", "d", "e", "f", "g", "h", "ab", "cd", "abcd", "ef", "gh", "efgh"]
TOKENIZER: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{
        "id": 14, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        "special": True,
    }],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "_"}]},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": dict(zip(_TOKENS, range(14), strict=True)),
        "merges": [["a", "b"], ["c", "d"], ["ab", "cd"], ["e", "f"], ["g", "h"], ["ef", "gh"]],
    },
}  # fmt: skip
TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "model_max_length": 10**30,
    "added_tokens_decoder": {"14": {"content": "<s>", "special": True}}, "chat_template": "{{ messages }}",
}  # fmt: skip
MERGES = [
    "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 0.5}\n  - model: b\n    parameters:\n"
    "      weight:\n        - filter: mlp\n          value: [0, 0.5, 1]\n        - value: 0.3\ndtype: bfloat16\n",
    "merge_method: ties\nbase_model: a\nmodels:\n  - model: b\n    parameters: {density: 0.5, weight: 1}\n"
    "  - model: c\n    parameters: {density: [0.1, 0.9], weight: 1}\nparameters:\n  normalize: true\n",
    "merge_method: slerp\nbase_model: a\nslices:\n  - sources:\n      - {model: a, layer_range: [0, 4]}\n"
    "      - {model: b, layer_range: [0, 4]}\nparameters:\n  t: [0, 0.5, 1]\ntokenizer_source: base\n",
]


def safetensors(header: bytes, data: bytes) -> bytes:
    """Return the bytes of a safetensors file with a header as given."""
    return struct.pack("<Q", len(header)) + header + data


def write_weights(folder: Path) -> None:
    """Write weights that are right, for documents beside them."""
    header = {name: entry for name, entry in HEADER.items() if name != "mask"}
    text = json.dumps(header | {"mask": HEADER["mask"]}).encode()
    (folder / "model.safetensors").write_bytes(safetensors(text, bytes(664)))


def header_case(random: Random, folder: Path) -> Callable[[], object]:
    """Mutate a safetensors file; open it and touch every tensor."""
    content = safetensors(json.dumps(HEADER).encode(), bytes(664))
    if random.random() < 0.6:
        text = to_text(random, mutate_tree(random, copy.deepcopy(HEADER)))
        content = safetensors(text, bytes(random.choice([664, 664, 664, 0, 5000])))
    else:
        content = mutate_bytes(random, content)
    if random.random() < 0.02:
        content = header_bomb(random)
    (folder / "model.safetensors").write_bytes(content)

    def run() -> object:
        from mango.checkpoints import Checkpoint, wrong_values

        opened = Checkpoint.open(folder)
        return wrong_values(opened, opened.names()[:50])

    return run


def header_bomb(random: Random) -> bytes:
    """Return a large header: of many empty tensors, of many brackets, or of a huge length."""
    choice = random.randrange(4)
    if choice == 0:
        count = random.choice([1000, 20_000, 240_000, 400_000])
        entries = ",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
        return safetensors(b"{" + entries.encode() + b"}", b"")
    if choice == 1:
        return safetensors(b'{"a":' + b"[" * random.choice([900, 100_000, 10_000_000]), b"")
    if choice == 2:
        return safetensors(b'{"a":[' + b"[]," * 5_000_000 + b"[]]}", b"")
    return struct.pack("<Q", random.choice([2**63, 2**40, 2**30])) + b"{" + bytes(100)


def index_case(random: Random, folder: Path) -> Callable[[], object]:
    """Mutate the index of two shards."""
    names = [name for name in HEADER if name != "__metadata__"]
    weight_map = {}
    for number, part in enumerate((names[:3], names[3:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        start = HEADER[part[0]]["data_offsets"][0]
        entries = {
            name: HEADER[name] | {"data_offsets": [at - start for at in HEADER[name]["data_offsets"]]} for name in part
        }
        end = entries[part[-1]]["data_offsets"][1]
        (folder / file).write_bytes(safetensors(json.dumps(entries).encode(), bytes(end)))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 664}, "weight_map": weight_map}
    if random.random() < 0.6:
        content = to_text(random, mutate_tree(random, index))
    else:
        content = mutate_bytes(random, json.dumps(index).encode())
    if random.random() < 0.002:
        content = b'{"weight_map": {' + b",".join(b'"t%d": "m%d.safetensors"' % (i, i) for i in range(300_000)) + b"}}"
    (folder / "model.safetensors.index.json").write_bytes(content)

    def run() -> object:
        from mango.checkpoints import Checkpoint

        return Checkpoint.open(folder)

    return run


def config_case(random: Random, folder: Path) -> Callable[[], object]:
    """Mutate a configuration; let transformers read it, and now and then build it."""
    document = copy.deepcopy(random.choice(CONFIGS))
    if random.random() < 0.75:
        content = to_text(random, mutate_tree(random, document))
    else:
        content = mutate_bytes(random, json.dumps(document).encode())
    if random.random() < 0.002:
        content = random.choice([
            b'{"model_type": "llama", "x": ' + b"[" * 100_000,
            b'{"model_type": "llama", "x": [' + b"0," * 1_900_000 + b"0]}",
            b'{"model_type": "llama", "num_hidden_layers": 1e9}',
            b'{"model_type": "llama", "num_labels": 1000000000}',
        ])  # fmt: skip
    (folder / "config.json").write_bytes(content)
    write_weights(folder)
    build = random.random() < 0.05

    def run() -> object:
        from mango.checkpoints import check_tensors, open_config

        opened = open_config(folder)
        return check_tensors(folder) if build else opened

    return run


def tokenizer_case(random: Random, folder: Path) -> Callable[[], object]:
    """Mutate a tokenizer's files; load it and encode a text."""
    document, settings = copy.deepcopy(TOKENIZER), copy.deepcopy(TOKENIZER_CONFIG)
    choice = random.random()
    text, config = to_text(random, document), to_text(random, settings)
    if choice < 0.5:
        text = to_text(random, mutate_tree(random, document))
    elif choice < 0.7:
        text = mutate_bytes(random, text)
    elif choice < 0.9:
        config = to_text(random, mutate_tree(random, settings))
    else:
        config = mutate_bytes(random, config)
    if random.random() < 0.002:
        many = [TOKENIZER["added_tokens"][0] | {"id": i, "content": f"<{i}>"} for i in range(20, 300_020)]
        text = json.dumps(document | {"added_tokens": many}).encode()
    (folder / "tokenizer.json").write_bytes(text)
    (folder / "tokenizer_config.json").write_bytes(config)

    def run() -> object:
        from mango.checkpoints import open_tokenizer, tokenizer_sha256

        tokenizer_sha256(folder)
        return open_tokenizer(folder)

    return run


def merge_case(random: Random, folder: Path) -> Callable[[], object]:
    """Mutate a merge document."""
    content = mutate_text(random, random.choice(MERGES))
    if random.random() < 0.003:
        content = random.choice([
            b"a0: &a0 [x, x]\n" + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 60)),
            b"models: " + b"[" * 100_000,
            b"models:\n" + b"".join(b" " * i + b"- \n" for i in range(1, 2000)),
            b"models: [" + b"{model: a}, " * 9_000 + b"]",
            b"x: '" + b"y" * 200_000 + b"'",
        ])  # fmt: skip
    (folder / "merge.yaml").write_bytes(content)

    def run() -> object:
        from mango.merging import load_document

        return load_document(folder / "merge.yaml")

    return run


CASES: dict[str, Callable[[Random, Path], Callable[[], object]]] = {
    "header": header_case,
    "index": index_case,
    "config": config_case,
    "tokenizer": tokenizer_case,
    "merge": merge_case,
}
