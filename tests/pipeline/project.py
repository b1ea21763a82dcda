"""A whole project that runs in seconds: this code, models of a few thousand weights, a corpus of a few kilobytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from mango.corpus import COLUMNS, SPLITS

ROOT = Path(__file__).parents[2]
STAGES = ["extract-blocks", "merge", "train-adapters-and-routers", "evaluate", "package"]
LATER = STAGES[2:]
OUTPUTS = {
    "extract-blocks": ["models/blocks", "data/blocks.parquet", "reports/gates/blocks.json"],
    "merge": ["models/merged", "reports/merge.json"],
    "train-adapters-and-routers": ["models/fused", "models/controls", "reports/gates/corpus.json"],
    "evaluate": ["reports/evaluation.json", "reports/report.html", "reports/plots", "reports/evaluate.json"],
    "package": ["models/package", "reports/gates/metrics.json", "reports/package.json"],
}
VOCABULARY = 300
CODE = "def return if else for in import self None True lambda yield class ( ) : = += [ ]"
NOVELS = "she he said walked garden letter the of and very evening heart never spoke , ."
WORDS = {"code": [*CODE.split(), "\n"], "novels": [*NOVELS.split(), "\n"]}

PARAMS = """\
seed: 0
models:
  base: {source: models/tiny/base}
  code: {source: models/tiny/code}
  novels: {source: models/tiny/novels}
security: {default: community, rules: []}
extract: {mode: reference}
merge:
  method: linear
  base: base
  models: [base, code]
  linear: {}
  slerp: {t: 0.5}
  ties: {density: 0.2, lambda: 0.3}
  task_arithmetic: {lambda: 0.2}
  documents: [examples/merge/half.yaml]
  calibration: {data: data/corpus, sequences: 2, tokens: 24}
  learn: {steps: 2, batch_size: 1}
  fisher: {}
corpus: {path: data/corpus, sequence_length: 48, segment_length: 16}
fusion: {trunk: base, experts: [code, novels], span: 1}
router:
  type: token
  simple: {prompt: 8}
  token: {window: 8}
  topk: {k: 1, catch_up: 4, window: 8}
adapter:
  type: linear
  linear: {rank: 2}
  bottleneck: {size: 4}
train:
  steps: 2
  batch_size: 2
  validation_sequences: 1
  save_every: 1
  controls: {self_stitch: false}
  start: {sequences: 1, router_steps: 2}
evaluate: {sequences: 2, switching_sequences: 2, prompt: 8, speed_repeats: 1, lm_eval: {tasks: [], limit: 2}}
gates:
  corpus: {min_documents: 5}
  blocks: {max_abs_weight: 1e4}
  metrics: {required_systems: [trunk, best_single]}
package: {name: tiny-mango}
"""
MERGE = """\
merge_method: slerp
base_model: base
models: [{model: base}, {model: code}]
parameters: {t: 0.5}
dtype: float32
"""


def make_project(root: Path) -> Path:
    """Make the project with one commit, as a clone has it."""
    for name in ("mango", "stages", "examples/lm_eval"):  # with the bytecode, which `.dvcignore` leaves out
        shutil.copytree(ROOT / name, root / name)
    for name in (".dvcignore", ".gitignore", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, root / ".dvc")
    (root / "params.yaml").write_text(PARAMS)
    (root / "examples" / "merge").mkdir()
    (root / "examples" / "merge" / "half.yaml").write_text(MERGE)
    (root / "models" / "sources").mkdir(parents=True)
    (root / "models" / "sources" / "README.md").write_text("Models of your own go here.\n")
    write_corpus(root / "data" / "corpus")
    write_models(root / "models" / "tiny")
    git(root, "init", "-q")
    commit(root)
    return root


def write_corpus(folder: Path) -> None:
    """Write three splits of two domains, eight documents each, all of them different."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for split in SPLITS:
        rows = [
            {
                "doc_id": f"{split}/{domain}/{number}",
                "domain": domain,
                "text": f"{split} {number} " + " ".join(chance.choices(words, k=120)),
                "source": "made",
                "licence": "CC0-1.0",
            }
            for domain, words in WORDS.items()
            for number in range(8)
        ]
        write_rows(folder / f"{split}.parquet", rows)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write documents as a split of a corpus."""
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in COLUMNS])), path)


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Make a byte-level tokenizer whose few merges come from a text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


def write_models(folder: Path) -> None:
    """Write two Llamas of one shape and a GPT-2 that is narrower, with one tokenizer."""
    tokenizer = make_tokenizer(" ".join(" ".join(words) * 3 for words in WORDS.values()))
    shape = {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    llama = LlamaConfig(
        **shape,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    gpt2 = GPT2Config(**shape, n_embd=12, n_layer=3, n_head=2, n_positions=256)
    for seed, (name, make, config) in enumerate(
        [("base", LlamaForCausalLM, llama), ("code", LlamaForCausalLM, llama), ("novels", GPT2LMHeadModel, gpt2)]
    ):
        torch.manual_seed(seed)
        model: PreTrainedModel = make(config)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def git(root: Path, *arguments: str) -> str:
    """Run Git and return what it prints."""
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    """Commit everything that Git does not ignore."""
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "t")


def environment(*, tracking: bool = False, **variables: str) -> dict[str, str]:
    """Return the environment of DVC and its stages: this Python first on the path, the project's own code."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": path, "DVC_NO_ANALYTICS": "true", "MANGO_DEVICE": "cpu"}
    return os.environ | own | ({} if tracking else {"MANGO_TRACKING": "off"}) | variables


def dvc(root: Path, *arguments: str, tracking: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run DVC in a project."""
    command = [sys.executable, "-m", "dvc", *arguments]
    environ = environment(tracking=tracking, **variables)
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environ)


def stage(root: Path, name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a stage in a project, without DVC."""
    command = [sys.executable, "-m", f"stages.{name.replace('-', '_')}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment(**variables))


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the stages that a run says it ran."""
    return re.findall(r"Running stage '([\w-]+)'", done.stdout + done.stderr)


def fingerprint(root: Path, *names: str) -> dict[str, str]:
    """Return the SHA-256 of every file below some paths of a project."""
    files: list[Path] = []
    for name in names:
        path = root / name
        files += [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def outputs(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that stages made."""
    return fingerprint(root, "models/blocks", "models/merged", "models/fused", "models/controls", "models/package",
                       "data/blocks.parquet", "reports")  # fmt: skip


def leftovers(root: Path) -> list[str]:
    """Return the temporary files and folders that are still there."""
    return sorted(str(path.relative_to(root)) for path in root.rglob(".*.mango-*") if ".dvc" not in path.parts)


def edit(root: Path, old: str, new: str) -> None:
    """Change params.yaml in one place."""
    path = root / "params.yaml"
    text = path.read_text()
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new))


def read_json(path: Path) -> dict[str, object]:
    """Read a report."""
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found
