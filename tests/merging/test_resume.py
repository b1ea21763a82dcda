"""A merge that is killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mango.checkpoints import ModelSource, sha256_file, verify
from mango.errors import MergeError
from mango.merging import merge
from mango.merging.journal import JOURNAL_NAME
from tests.merging.conftest import MakeModel, save_tokenizer, tiny_llama

ROWS = 2**15
KILLED = """
import json, sys, threading, time, os, signal
from pathlib import Path
import mango.merging.shards as shards
from mango.merging import merge

shards._MARK_SECONDS = 0.0
document, out, moments = json.loads(sys.argv[1])
for moment in moments:
    child = os.fork()
    if child == 0:
        def kill():
            time.sleep(moment)
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=kill, daemon=True).start()
        merge(document, out, threads=1, max_shard_bytes=3 << 20)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(1 if os.WIFSIGNALED(status) else 0, flush=True)
    if not os.WIFSIGNALED(status):
        break
"""


def wide_models(tmp_path: Path) -> list[str]:
    """Two models of about 8 MB in six tensors of a megabyte and some small ones."""
    found = []
    for seed, name in enumerate("ab"):
        folder = tmp_path / name
        model = tiny_llama(seed, tie_word_embeddings=False, num_hidden_layers=3)
        model.config.vocab_size = ROWS
        folder.mkdir()
        model.config.save_pretrained(folder)
        save_tokenizer(folder)
        tensors = {n: t.detach().bfloat16() for n, t in model.state_dict().items()}
        generator = torch.Generator().manual_seed(seed)
        for tensor in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[tensor] = torch.randn(ROWS, 16, generator=generator).bfloat16()
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
        found.append(str(folder))
    return found


def document(names: list[str]) -> dict[str, Any]:
    models = [{"model": name, "parameters": {"weight": 1.0, "density": 0.5}} for name in names]
    return {"merge_method": "ties", "base_model": names[0], "models": models}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_fifty_kills_change_no_bit(tmp_path: Path) -> None:
    data = document(wide_models(tmp_path))
    merge(data, tmp_path / "calm", threads=1, max_shard_bytes=3 << 20)
    start = time.monotonic()
    merge(data, tmp_path / "again", threads=1, max_shard_bytes=3 << 20)
    whole_s = time.monotonic() - start
    generator = random.Random(7)
    kills = rounds = 0
    while kills < 50 and rounds < 200:
        moments = [generator.uniform(0, 1.1 * whole_s) for _ in range(10)]
        argument = json.dumps([data, str(tmp_path / "out"), moments])
        done = subprocess.run(
            [sys.executable, "-c", KILLED, argument], capture_output=True, text=True, check=True, timeout=300
        )
        kills += sum(map(int, done.stdout.split()))
        rounds += 1
        if (tmp_path / "out").is_dir():
            assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    assert kills >= 50
    merge(data, tmp_path / "out", threads=1, max_shard_bytes=3 << 20)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    verify(tmp_path / "out")
    assert not list(tmp_path.glob(".out.mango-new*"))


class Stopped(KeyboardInterrupt):
    """Ends a merge in its middle as Ctrl-C does."""


def stop_at(count: int) -> Any:
    def on_tensor(done: int, total: int) -> None:
        if done == count:
            raise Stopped

    return on_tensor


@pytest.fixture
def pair(make_model: MakeModel) -> dict[str, ModelSource]:
    return {name: ModelSource(source=str(make_model(name, seed))) for seed, name in enumerate("ab")}


DATA = document(["a", "b"])


def interrupted(tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch, count: int) -> Path:
    monkeypatch.setattr("mango.merging.shards._MARK_SECONDS", 0.0)
    with pytest.raises(Stopped):
        merge(DATA, tmp_path / "out", pair, max_shard_bytes=2000, on_tensor=stop_at(count))
    (grown,) = tmp_path.glob(".out.mango-new-merge-*")
    return grown


def test_it_does_not_start_over(tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch) -> None:
    calm = merge(DATA, tmp_path / "calm", pair, max_shard_bytes=2000)
    grown = interrupted(tmp_path, pair, monkeypatch, 20)
    assert (grown / JOURNAL_NAME).is_file()
    assert not (tmp_path / "out").exists()
    report = merge(DATA, tmp_path / "out", pair, max_shard_bytes=2000)
    assert calm.num_resumed == 0
    assert 15 <= report.num_resumed <= 20
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    assert not list(tmp_path.glob(".out.*"))


def test_bytes_that_changed_meanwhile_are_written_again(
    tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(DATA, tmp_path / "calm", pair, max_shard_bytes=2000)
    grown = interrupted(tmp_path, pair, monkeypatch, 20)
    first = sorted(grown.glob("model-*.safetensors"))[0]
    with first.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"\x55")
    with (grown / JOURNAL_NAME).open("a") as journal:
        journal.write("model-00002-of-0")  # a line that was torn
    merge(DATA, tmp_path / "out", pair, max_shard_bytes=2000)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")


def test_another_merge_starts_anew(
    tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, pair, monkeypatch, 20)
    changed = {**DATA, "parameters": {"lambda": 0.5}}
    assert merge(changed, tmp_path / "out", pair, max_shard_bytes=2000).num_resumed == 0
    interrupted(tmp_path, pair, monkeypatch, 20)
    time.sleep(0.01)
    file = Path(pair["b"].source) / "model.safetensors"
    os.utime(file)  # as if it was written again
    assert merge(DATA, tmp_path / "out", pair, max_shard_bytes=2000).num_resumed == 0
    assert not list(tmp_path.glob(".out.*"))


def test_an_error_leaves_nothing_behind(tmp_path: Path, make_model: MakeModel, pair: dict[str, ModelSource]) -> None:
    broken = tiny_llama(3)
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan
    pair["b"] = ModelSource(source=str(make_model("broken", model=broken)))
    with pytest.raises(MergeError, match="not finite"):
        merge(DATA, tmp_path / "out", pair)
    assert not list(tmp_path.glob(".out.*"))


@pytest.mark.slow
def test_the_same_command_goes_on_after_a_signal(tmp_path: Path) -> None:
    names = wide_models(tmp_path)
    merge(document(names), tmp_path / "calm", max_shard_bytes=3 << 20)
    (tmp_path / "merge.json").write_text(json.dumps(document(names)))
    script = "from mango.cli.app import main; main()"
    arguments = ["merge", str(tmp_path / "merge.json"), str(tmp_path / "out"), "--max-shard-size", str(3 << 20)]
    command = [sys.executable, "-c", script, *arguments]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for _ in range(3000):
        if list(tmp_path.glob(".out.mango-new-merge-*/model-*")):
            break
        time.sleep(0.005)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=60)
    if child.returncode == 143:
        assert "goes on from what it has written" in said
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
