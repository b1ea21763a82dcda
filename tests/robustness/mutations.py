"""Mutations of documents: of their bytes, of their JSON trees, and of YAML text; each from a seeded generator."""

from __future__ import annotations

import json
from random import Random
from typing import Any

NUMBERS = [
    0, -1, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**9, 10**12, 10**30, -(2**63),
    0.5, 1e9, 1e12, 1e308, -1e-308, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
TEXTS = [
    "", " ", "\0", "a\0b", "../../x", "/etc/passwd", "..", ".", "\\", "\ud800", "\u202e", "\x1b[2J", "None", "null",
    "eval", "__class__", "__import__('os').system('id')", "os\nsystem", "x" * 5000, "\U0010ffff", "{{ 1 }}", "auto",
    "BF16", "F64", "bfloat16", "someone/kernel", "model.safetensors", "__metadata__", "sdpa", "llama", "gpt2", "mol",
]  # fmt: skip
KEYS = [
    "auto_map", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation", "kernel_config",
    "quantization_config", "to_dict", "get_text_config", "__class__", "__dict__", "attribute_map", "sub_configs",
    "num_labels", "id2label", "vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim",
    "layer_types", "rope_parameters", "rope_scaling", "per_layer_config", "dtype", "torch_dtype", "model_type", "",
    "added_tokens", "merges", "vocab", "padding", "truncation", "normalizer", "pre_tokenizer", "chat_template",
    "weight_map", "shape", "data_offsets", "use_return_dict", "output_attentions", "is_encoder_decoder",
]  # fmt: skip


def deep(depth: int) -> Any:
    """Return a list inside a list, so many times."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def odd(random: Random) -> Any:
    """Return a value that a field is unlikely to expect."""
    choice = random.randrange(12)
    if choice < 4:
        return random.choice(NUMBERS)
    if choice < 7:
        return random.choice(TEXTS)
    if choice == 7:
        return random.choice([None, True, False])
    if choice == 8:
        return [odd(random) for _ in range(random.randrange(4))]
    if choice == 9:
        return {random.choice(KEYS): odd(random) for _ in range(random.randrange(3))}
    if choice == 10:
        return deep(random.choice([3, 30, 200]))
    return ["a"] * random.choice([10, 1000, 20_000])


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key or position) of everything inside a tree."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left and len(found) < 5000:
        one = left.pop()
        items = one.items() if isinstance(one, dict) else enumerate(one)
        for key, inner in items:
            found.append((one, key))
            if isinstance(inner, dict | list):
                left.append(inner)
    return found


def mutate_tree(random: Random, document: Any) -> Any:
    """Change a JSON tree in place, in one to four places, and return it."""
    for _ in range(random.randint(1, 4)):
        every = places(document)
        if not every:
            return document
        container, key = random.choice(every)
        action = random.randrange(6)
        if action < 3:
            container[key] = odd(random)
        elif action == 3:
            del container[key]
        elif isinstance(container, dict) and action == 4:
            container[random.choice(KEYS + TEXTS)] = odd(random)
        elif isinstance(container, dict):
            container[random.choice(KEYS + TEXTS)] = container.pop(key)
        else:
            container.insert(random.randrange(len(container) + 1), container[key])
    return document


def to_text(random: Random, document: Any) -> bytes:
    """Return the JSON text of a tree; lone surrogates stay escaped."""
    return json.dumps(document, ensure_ascii=True, indent=random.choice([None, 1])).encode()


def mutate_bytes(random: Random, content: bytes) -> bytes:
    """Flip, drop, repeat, insert or cut bytes, in one to four places."""
    data = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(data) + 1)
        length = min(random.choice([1, 1, 2, 8, 64, 1000]), len(data) - at)
        action = random.randrange(7)
        if action < 2 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif action == 2:
            del data[at : at + length]
        elif action == 3:
            data[at:at] = data[at : at + length] * random.choice([1, 2, 50])
        elif action == 4:
            data[at:at] = random.randbytes(random.choice([1, 4, 32]))
        elif action == 5:
            data[at:at] = random.choice(
                [b"{", b"}", b"[" * 2000, b'"', b",", b":", b"\\u0000", b"9" * 500, b"-", b"e9"]
            )
        else:
            del data[at:]
    return bytes(data)


JSON_PIECES = [b"{", b"}", b"[" * 2000, b'"', b",", b":", b"\\u0000", b"9" * 500, b"-", b"e9"]
YAML_PIECES = [
    "&a ", "*a", "&b [*a, *a]", "!!python/object:os.system ", "!!binary ", "!!set ", "!!timestamp ", "!x ", "<<: *a\n",
    "? ", "- ", ": ", "{", "}", "[", "]", "|\n ", ">-\n ", "%YAML 9.9\n", "---\n", "...\n", "\t", "#", "'", '"', "@",
    "2026-99-99", "0o9", "0x" + "f" * 400, "1e999", ".nan", ".inf", "~", "9" * 5000, "[" * 300, "{a: " * 300, "\0",
    "\ufeff", "\u2028", "- [*a]\n", "a: &a {x: *a}\n", "1_000", "12:30:45", "yes", "=", "!!int x", "!!float y",
]  # fmt: skip


def mutate_text(random: Random, text: str) -> bytes:
    """Change YAML text: pieces put in, lines moved, repeated or dropped, or bytes changed."""
    lines = text.split("\n")
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(lines))
        action = random.randrange(6)
        if action < 2:
            column = random.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:column] + random.choice(YAML_PIECES) + lines[at][column:]
        elif action == 2:
            lines.insert(at, lines[random.randrange(len(lines))])
        elif action == 3 and len(lines) > 1:
            del lines[at]
        elif action == 4:
            lines[at] = random.choice([" ", "  ", "\t", ""]) + lines[at].lstrip()
        else:
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {json.dumps(odd(random))[:3000]}"
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    return mutate_bytes(random, content) if random.random() < 0.2 else content
