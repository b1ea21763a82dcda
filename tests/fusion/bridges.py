"""Tiny models whose tokenizers differ: a trunk and guests with tokens of several bytes, in other orders and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from mango.fusion import AdapterParams, FusionParams, MolForCausalLM, RouterParams, build_fused

TRUNK_MERGES = ("ab", "de", "cde", " c", "12", "45", " 1")
GUEST_MERGES = ("bc", "abc", "cd", " a", "  ", "34", "345", "23", "é")
"""Of one text they make tokens that end at other places, shorter and longer ones."""

TEXTS = ("abcde  abé 12345", "12 345abc\n  cde", "éa ab1234 5 bcd")


def bpe(merges: tuple[str, ...], special: dict[str, str]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer.

    Args:
        merges: what two tokens become, each from tokens that stand before it.
        special: text of the special token of each role, the first ids.
    """
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = list(dict.fromkeys(special.values()))
    vocabulary = {name: number for number, name in enumerate(names)}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=len(names) > 1):
        vocabulary[character] = len(vocabulary)
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        written = level.pre_tokenize_str(merge)[0][0]
        split = next(i for i in range(1, len(written)) if written[:i] in vocabulary and written[i:] in vocabulary)
        pairs.append((written[:split], written[split:]))
        vocabulary[written] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    inner.pre_tokenizer = level
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(names)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def trunk_tokenizer() -> PreTrainedTokenizerFast:
    """Return the trunk's tokenizer: a token for the end of a text, none for its beginning."""
    return bpe(TRUNK_MERGES, {"eos_token": "<|end|>"})


def guest_tokenizer() -> PreTrainedTokenizerFast:
    """Return the guests': their tokens for beginning and end are others."""
    return bpe(GUEST_MERGES, {"bos_token": "<s>", "eos_token": "</s>"})


def configs() -> dict[str, PretrainedConfig]:
    """Return a llama trunk, a GPT-2, and a Gemma whose first block sees the last four tokens alone."""
    ours, theirs = len(trunk_tokenizer()), len(guest_tokenizer())
    llama: dict[str, Any] = {"intermediate_size": 48, "num_attention_heads": 4, "max_position_embeddings": 64}
    return {
        "base": LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_key_value_heads=2, vocab_size=ours, bos_token_id=0,
            eos_token_id=0, **llama,
        ),
        "gpt": GPT2Config(
            n_embd=24, n_layer=3, n_head=4, n_inner=40, n_positions=64, vocab_size=theirs + 3, bos_token_id=0,
            eos_token_id=1,
        ),
        "gemma": Gemma3TextConfig(
            hidden_size=16, num_hidden_layers=2, num_key_value_heads=2, vocab_size=theirs, bos_token_id=0,
            eos_token_id=1, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"], **llama,
        ),
    }  # fmt: skip


def save_models(root: Path) -> dict[str, Path]:
    """Write every model with its tokenizer, with weights that are not small."""
    folders: dict[str, Path] = {}
    for seed, (name, config) in enumerate(configs().items()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.15)
        folders[name] = root / name
        model.save_pretrained(folders[name])
        (trunk_tokenizer() if name == "base" else guest_tokenizer()).save_pretrained(folders[name])
    return folders


def make_store(root: Path) -> BlockStore:
    """Extract every model."""
    sources = {name: ModelSource(source=str(folder)) for name, folder in save_models(root).items()}
    return extract(sources, root / "blocks", "reference")


TOKEN = {"type": "token", "token": {"window": 2}}


def build(
    store: BlockStore, *guests: str, router: dict[str, Any] | None = None, span: int = 2, **guest: Any
) -> MolForCausalLM:
    """Build a fused model of guests across bridges, whose router is not at a tie."""
    experts = [{"model": name, "edges": "bridge", **guest} for name in guests]
    model = build_fused(
        store,
        FusionParams.model_validate({"trunk": "base", "experts": experts, "span": span}),
        RouterParams.model_validate(router or TOKEN),
        AdapterParams(),
        seed=0,
    )
    assert isinstance(model, MolForCausalLM)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.routers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def rows(*texts: str) -> torch.Tensor:
    """Return the trunk's tokens of texts, as many of each as the shortest has."""
    ids = [trunk_tokenizer()(text).input_ids for text in texts]
    length = min(map(len, ids))
    return torch.tensor([row[:length] for row in ids])
