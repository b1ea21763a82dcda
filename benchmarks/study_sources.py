"""The source models of the fusion study: their sizes, their tokenizer, and their training."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from study import ORDER
from study_corpus import CORE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from mango.corpus import token_losses

EOS = "<|endoftext|>"


class Sizes:
    """How large everything is."""

    def __init__(self, name: str) -> None:
        tiny, small = name == "tiny", name == "small"
        self.vocabulary = 512 if tiny else 2048 if small else 4096
        self.context = 64 if tiny else 512
        self.width, self.blocks, self.heads = (64, 8, 4) if tiny else (128, 4, 4) if small else (384, 8, 6)
        self.base_steps, self.expert_steps, self.batch = (4, 4, 4) if tiny else (200, 800 if small else 300, 32)
        self.other_steps = 4 if tiny else 200
        self.sequences, self.switching, self.flop_rows = (2, 2, 1) if tiny else (32, 48, 2)
        self.steps, self.train_batch = (2, 2) if tiny else (80, 8)
        self.calibration, self.most_calibration = (1, 1) if tiny else (16, 256)
        self.lengths = {"sequence_length": self.context, "segment_length": self.context // 4}


def read(corpus: Path, split: str) -> dict[str, list[str]]:
    """Return the texts of a split by domain."""
    import pyarrow.parquet as pq

    table = pq.read_table(corpus / f"{split}.parquet", columns=["domain", "text"]).to_pydict()
    out: dict[str, list[str]] = {}
    for domain, text in zip(table["domain"], table["text"], strict=True):
        out.setdefault(domain, []).append(text)
    return out


def make_tokenizer(corpus: Path, sizes: Sizes) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on 400 kB of every domain."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=sizes.vocabulary,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = [
        "\n".join(texts)[: 400_000 if domain in CORE else 100_000]
        for domain, texts in sorted(read(corpus, "train").items())
    ]
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, model_max_length=sizes.context, padding_side="left"
    )


def stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """Return one stream of token ids, each document closed by its end."""
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def train_source(
    model: Any, streams: Sequence[Tensor], steps: int, peak: float, sizes: Sizes, batch: int, seed: int, device: str
) -> None:
    """Train a source model in place: AdamW, a cosine, windows drawn evenly from the streams."""
    generator = torch.Generator().manual_seed(seed)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    data = [s.to(device) for s in streams]
    offsets = torch.arange(sizes.context)
    for step in range(steps):
        rate = peak * min((step + 1) / 50, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = []
        for place, one in enumerate(data):
            count = len(range(place, batch, len(data)))
            at = torch.randint(len(one) - sizes.context, (count, 1), generator=generator)
            rows.append(one[(at + offsets).to(device)])
        ids = torch.cat(rows)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.train(False)


def make_source(args: argparse.Namespace, sizes: Sizes) -> None:
    """Train and save the base, an expert, or the base trained further on all core domains."""
    what = args.job[0]
    name = {"base": "base", "expert": args.job[-1], "dense": f"dense_{args.job[-1]}"}[what]
    folder = args.work / ("models" if what != "dense" else "dense") / name
    if (folder / "config.json").is_file():
        return
    texts = read(args.corpus, "train")
    torch.manual_seed(0)
    if what == "base":
        tokenizer = make_tokenizer(args.corpus, sizes)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=sizes.vocabulary, hidden_size=sizes.width, intermediate_size=sizes.width * 8 // 3,
                num_hidden_layers=sizes.blocks, num_attention_heads=sizes.heads, num_key_value_heads=sizes.heads,
                max_position_embeddings=sizes.context, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
                pad_token_id=0,
            )
        )  # fmt: skip
        domains, steps, peak = list(CORE), sizes.base_steps, 1.5e-3
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.work / "models/base")
        model = AutoModelForCausalLM.from_pretrained(args.work / "models/base", dtype=torch.float32)
        domains = list(CORE) if what == "dense" else [name]
        steps = sizes.expert_steps * (len(CORE) if args.job[-1] == "all" else 1)
        if what == "expert" and name not in CORE:
            steps = sizes.other_steps
        peak = 8e-4
    streams = [stream(tokenizer, texts[d]) for d in domains]
    start = time.monotonic()
    batch = sizes.batch * (2 if what == "base" else 1)
    seed = 1 + ORDER.index(name) if name in ORDER else 0
    train_source(model, streams, steps, peak, sizes, batch, seed, args.device)
    took = time.monotonic() - start
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    validation = read(args.corpus, "validation")
    ids = {d: stream(tokenizer, validation[d])[: 16 * sizes.context].view(-1, sizes.context) for d in domains}
    losses = {d: float(token_losses(model, one, batch_size=8).mean()) for d, one in ids.items()}
    print(
        f"{name}: {model.num_parameters():,} parameters, {steps} steps, {took:.0f} s, validation {losses}", flush=True
    )
