"""How much memory a merge of large tensors takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.merging.conftest import save_tokenizer, tiny_llama
from tests.merging.documents import DOCUMENTS, MakeModel, document

MEASURED = """
import json, sys, threading
from pathlib import Path
from mango.checkpoints import ModelSource
from mango.merging import merge

def anonymous_bytes():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous_bytes())

documents, out, sources = json.loads(sys.argv[1])
models = {name: ModelSource(source=source) for name, source in sources.items()}
small = {**models, **{name: models["small"] for name in "abc"}}
for document in documents:
    merge(document, out + "-warm", small)
    before, peak, done = anonymous_bytes(), 0, threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    merge(document, out, models)
    done.set()
    watcher.join()
    print(peak - before)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_a_few_pieces(tmp_path: Path, make_model: MakeModel) -> None:
    """Models of 200 MB, most of it in two tensors of 96 MB, are merged in less memory than half of one tensor."""
    make_model("small", 1)
    sources = {"small": str(tmp_path / "small")}
    rows = 3 * 2**20
    config = tiny_llama(0, tie_word_embeddings=False).config
    config.vocab_size = rows
    for seed, name in enumerate("abc"):
        folder = tmp_path / name
        folder.mkdir()
        model = tiny_llama(seed, tie_word_embeddings=False).bfloat16()
        model.config.vocab_size = rows
        model.config.save_pretrained(folder)
        save_tokenizer(folder)
        tensors = dict(model.state_dict())
        for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            generator = torch.Generator().manual_seed(seed)
            tensors[tensor] = torch.randn(rows, 16, generator=generator).bfloat16()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        sources[name] = str(folder)
    data = document("ties", "b", "c", weight=1.0, density=0.2) | {"base_model": "a"}
    argument = json.dumps([[DOCUMENTS["linear"], data], str(tmp_path / "out"), sources])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, argument], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 190e6
    growth = [int(line) for line in done.stdout.split()]
    assert len(growth) == 2
    assert max(growth) < 96 * 2**20 / 2, growth
