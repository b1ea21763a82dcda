"""Train the tiny models that the demo, the tests and CI run on.

One command makes all of ``models/tiny``: ``python models/train_tiny.py``. It trains a shared byte-level BPE
tokenizer, one Llama base on every domain of ``data/corpus``, one expert a domain branched from the base, and a
narrower GPT-2 from scratch on one domain. Each folder gets ``provenance.json``: recipe, data hashes, seed, and bits
per byte on every domain's test split. It runs on a GPU in a few minutes and on a CPU in a few hours
(``--steps-scale 0.01`` for a trial).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from cards import write_cards  # beside this script
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM

VOCABULARY = 2048
CONTEXT = 512
EOS = "<|endoftext|>"
STRANGER_DOMAIN = "maths"


@dataclass(frozen=True)
class Recipe:
    """How one model is trained: cosine schedule, AdamW, windows drawn evenly from its domains."""

    steps: int
    batch: int
    peak_lr: float
    warmup: int = 50
    weight_decay: float = 0.1
    dropout: float = 0.0
    eval_every: int = 50


BASE = Recipe(steps=200, batch=64, peak_lr=2e-3)
EXPERT = Recipe(steps=400, batch=64, peak_lr=1.2e-3, weight_decay=0.3)
STRANGER = Recipe(steps=1500, batch=32, peak_lr=1.5e-3, dropout=0.1)


def read_domains(corpus: Path, split: str) -> dict[str, list[str]]:
    """Return the texts of a split by domain, in file order."""
    table = pq.read_table(corpus / f"{split}.parquet", columns=["domain", "text"]).to_pydict()
    domains: dict[str, list[str]] = {}
    for domain, text in zip(table["domain"], table["text"], strict=True):
        domains.setdefault(domain, []).append(text)
    return dict(sorted(domains.items()))


def train_tokenizer(domains: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on the same number of bytes of every domain."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    quota = min(sum(map(len, texts)) for texts in domains.values())
    pieces: list[str] = []
    for texts in domains.values():
        taken = 0
        for text in texts:
            if taken >= quota:
                break
            pieces.append(text[: quota - taken])
            taken += len(pieces[-1])
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, model_max_length=CONTEXT, padding_side="left"
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Return one stream of token ids, each document closed by EOS."""
    eos = tokenizer.eos_token_id
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
        ids.extend(encoding.ids)
        ids.append(eos)
    return torch.tensor(ids, dtype=torch.int32)


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Return how many bytes of text each token id stands for; EOS stands for none."""
    vocabulary = tokenizer.get_vocab()
    sizes = torch.zeros(len(vocabulary), dtype=torch.int64)
    for token, index in vocabulary.items():
        sizes[index] = 0 if token == EOS else len(token)  # one character of the byte-level alphabet is one byte
    return sizes


@torch.no_grad()
def bits_per_byte(
    model: PreTrainedModel, stream: torch.Tensor, sizes: torch.Tensor, device: str, windows: int = 64
) -> float:
    """Return bits per byte on up to ``windows`` evenly spaced windows of ``CONTEXT`` tokens of a stream."""
    model.eval()
    available = len(stream) // CONTEXT
    chosen = np.linspace(0, available - 1, min(windows, available)).astype(int)
    nats = 0.0
    num_bytes = 0
    for start in range(0, len(chosen), 16):
        ids = torch.stack([stream[i * CONTEXT : (i + 1) * CONTEXT] for i in chosen[start : start + 16]])
        ids = ids.to(device).long()
        logits = model(input_ids=ids).logits[:, :-1].float()
        nats += torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum").item()
        num_bytes += int(sizes[ids[:, 1:].cpu()].sum())
    return nats / math.log(2) / num_bytes


def train(
    model: PreTrainedModel,
    streams: dict[str, torch.Tensor],
    held_out: dict[str, torch.Tensor],
    sizes: torch.Tensor,
    recipe: Recipe,
    seed: int,
    device: str,
    name: str,
) -> tuple[int, float]:
    """Train in place, keep the weights with the best validation score; return (best step, its bits per byte)."""
    generator = torch.Generator().manual_seed(seed)
    model.to(device).train()
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.peak_lr,
        betas=(0.9, 0.95),
        fused=device == "cuda",
    )
    on_device = [s.to(device) for _, s in sorted(streams.items())]
    offsets = torch.arange(CONTEXT, device=device)
    best, best_step, best_state = float("inf"), 0, None
    start = time.monotonic()
    for step in range(recipe.steps):
        progress = step / recipe.steps
        rate = recipe.peak_lr * min((step + 1) / recipe.warmup, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = []
        for row in range(recipe.batch):
            stream = on_device[row % len(on_device)]
            at = int(torch.randint(len(stream) - CONTEXT, (1,), generator=generator))
            rows.append(stream[at + offsets])
        ids = torch.stack(rows).long()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % recipe.eval_every == 0 or step + 1 == recipe.steps:
            score = sum(bits_per_byte(model, s, sizes, device, 32) for s in held_out.values()) / len(held_out)
            model.train()
            if score < best:
                best, best_step = score, step + 1
                best_state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
            took = time.monotonic() - start
            print(
                f"{name}: step {step + 1} loss {loss.item():.3f} validation {score:.4f} b/B ({took:.0f} s)", flush=True
            )
    assert best_state is not None
    model.load_state_dict(best_state)
    return best_step, best


def llama() -> LlamaForCausalLM:
    """Return the untrained base: 4 blocks of width 192, 2.0M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=528,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def gpt2(dropout: float) -> GPT2LMHeadModel:
    """Return the untrained stranger: GPT-2, 5 blocks of width 160, 2.0M parameters."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=160,
            n_layer=5,
            n_head=5,
            n_inner=672,
            n_positions=CONTEXT,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def main() -> None:
    """Train every tiny model and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus"))
    parser.add_argument("--out", type=Path, default=Path("models/tiny"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiply every number of steps")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")

    texts = {split: read_domains(args.corpus, split) for split in ("train", "validation", "test")}
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(args.corpus.glob("*.parquet"))}
    tokenizer = train_tokenizer(texts["train"])
    sizes = token_bytes(tokenizer)
    streams = {split: {d: encode(tokenizer, t) for d, t in domains.items()} for split, domains in texts.items()}
    print({d: len(s) for d, s in streams["train"].items()}, flush=True)
    args.out.mkdir(parents=True, exist_ok=True)

    def scaled(recipe: Recipe) -> Recipe:
        steps = max(2, round(recipe.steps * args.steps_scale))
        return Recipe(**{**asdict(recipe), "steps": steps, "warmup": max(1, min(recipe.warmup, steps // 4))})

    def finish(
        name: str, model: PreTrainedModel, recipe: Recipe, domains: list[str], seed: int, parent: str | None
    ) -> None:
        step, score = train(
            model,
            {d: streams["train"][d] for d in domains},
            {d: streams["validation"][d] for d in domains},
            sizes,
            recipe,
            seed,
            args.device,
            name,
        )
        kept = {k: v.clone() for k, v in model.state_dict().items()}
        model.to(torch.bfloat16)
        folder = args.out / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        test = {d: round(bits_per_byte(model, s, sizes, args.device), 4) for d, s in streams["test"].items()}
        provenance = {
            "made_by": "python models/train_tiny.py",
            "architecture": type(model).__name__,
            "parameters": model.num_parameters(),
            "parent": parent,
            "domains": domains,
            "recipe": asdict(recipe),
            "seed": seed,
            "best_step": step,
            "validation_bits_per_byte": round(score, 4),
            "test_bits_per_byte": test,
            "corpus_sha256": hashes,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        }
        for file in folder.iterdir():
            file.chmod(0o644)
        (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        print(f"{name}: {model.num_parameters():,} parameters, test {test}", flush=True)
        model.to(torch.float32)
        model.load_state_dict(kept)

    base = llama()
    all_domains = sorted(texts["train"])
    finish("base", base, scaled(BASE), all_domains, args.seed, None)
    start = {k: v.detach().cpu().clone() for k, v in base.state_dict().items()}
    for index, domain in enumerate(all_domains, 1):
        expert = llama()
        expert.load_state_dict(start)
        finish(domain, expert, scaled(EXPERT), [domain], args.seed + index, "base")
    torch.manual_seed(args.seed + 100)
    stranger = gpt2(STRANGER.dropout)
    finish(f"{STRANGER_DOMAIN}-gpt2", stranger, scaled(STRANGER), [STRANGER_DOMAIN], args.seed + 100, None)
    write_cards(args.out)


if __name__ == "__main__":
    main()
