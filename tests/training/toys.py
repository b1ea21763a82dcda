"""A corpus of two toy languages, tiny random models with a real tokenizer, and jobs over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from mango.blocks import BlockStore, extract
from mango.checkpoints import ModelSource
from mango.corpus import COLUMNS, CorpusParams
from mango.fusion import AdapterParams, FusionParams, MolForCausalLM, RouterParams, build_fused
from mango.training import Job, TrainParams

DOMAINS = ("digits", "letters")
LENGTH = 24
WORDS = {"digits": ("12", "345", "67", "8", "90"), "letters": ("ab", "cde", "fg", "h", "ij")}
"""The words of each language; no character stands in both but the space."""

SOURCES = ("base", "sister", "brother", "stranger")
"""A llama trunk of two blocks, two of its shape, and a narrower GPT-2 of three blocks."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={"<|end|>": 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


VOCAB = 257


def config_of(name: str) -> PretrainedConfig:
    """Return the configuration of a source model."""
    tokens: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": VOCAB}
    if name == "stranger":
        return GPT2Config(n_embd=24, n_layer=3, n_head=4, n_inner=40, n_positions=64, **tokens)
    return LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True, **tokens,
    )  # fmt: skip


def save_sources(root: Path) -> dict[str, Path]:
    """Write every source model, with weights from a seed; siblings are the trunk, moved a little."""
    folders: dict[str, Path] = {}
    base: dict[str, torch.Tensor] = {}
    for seed, name in enumerate(SOURCES):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config_of(name), dtype=torch.float32)
            with torch.no_grad():
                for key, parameter in model.named_parameters():
                    noise = torch.randn_like(parameter) * 0.05
                    parameter.copy_(base[key] + noise if name in ("sister", "brother") else parameter + noise)
        if name == "base":
            base = {key: parameter.detach() for key, parameter in model.named_parameters()}
        folders[name] = root / name
        model.save_pretrained(folders[name])
        make_tokenizer().save_pretrained(folders[name])
    return folders


def save_corpus(path: Path, documents: int = 8) -> Path:
    """Write a corpus of both languages."""
    path.mkdir(parents=True)
    schema = pa.schema([(column, pa.string()) for column in COLUMNS])
    for number, split in enumerate(("train", "validation", "test")):
        rng = np.random.default_rng(number)
        rows = [
            {
                "doc_id": f"{split}/{domain}/{i}",
                "domain": domain,
                "text": " ".join(rng.choice(WORDS[domain], 60)),
                "source": "made",
                "licence": "CC0-1.0",
            }
            for domain in DOMAINS
            for i in range(documents)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), path / f"{split}.parquet")
    return path


def make_store(folders: dict[str, Path], path: Path) -> BlockStore:
    """Extract every source model."""
    return extract({n: ModelSource(source=str(f)) for n, f in folders.items()}, path, "reference")


TOKEN = {"type": "token", "token": {"window": 4}}


def make_job(
    corpus: Path,
    train: dict[str, Any] | None = None,
    *,
    experts: tuple[Any, ...] = ("sister", {"model": "stranger", "cut": "fine"}),
    router: dict[str, Any] | None = None,
    adapter: str = "linear",
) -> Job:
    """Return a job of a few steps."""
    values: dict[str, Any] = {
        "steps": 4, "batch_size": 2, "save_every": 0, "validation_sequences": 1,
        "start": {"sequences": 2, "router_steps": 20, "window": 4}, **(train or {}),
    }  # fmt: skip
    return Job(
        seed=0,
        corpus=CorpusParams(path=corpus, sequence_length=LENGTH, segment_length=8),
        fusion=FusionParams.model_validate({"trunk": "base", "experts": list(experts), "span": 1}),
        router=RouterParams.model_validate(router or TOKEN),
        adapter=AdapterParams.model_validate({"type": adapter, "linear": {"rank": 4}, "bottleneck": {"size": 4}}),
        train=TrainParams.model_validate(values),
    )


def build(job: Job, store: BlockStore) -> MolForCausalLM:
    """Build the untrained fused model of a job."""
    return build_fused(store, job.fusion, job.router, job.adapter, seed=job.seed)


def is_trained(name: str) -> bool:
    """Tell adapters and routers from the weights of source models."""
    return name.startswith("routers.") or name.split(".")[2] in ("inputs", "outputs")


def stir(model: MolForCausalLM, scale: float = 0.05) -> MolForCausalLM:
    """Move adapters and routers off their start, where some gradients are zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_trained(name):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model
