"""Models on a stand-in of the Hub, read by the real client: headers by range, revisions, gates, broken downloads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mango.checkpoints import Checkpoint, sha256_file
from mango.merging import merge
from tests.checkpoints.test_sources import gguf_llama
from tests.merging.conftest import MakeModel
from tests.merging.hub import Hub, commit_of, running

ROOT = Path(__file__).parents[2]
ROWS = 2**15

SCRIPT = """
import json, sys
from pathlib import Path
from mango.checkpoints import ModelSource
from mango.errors import MangoError
from mango.merging import merge, plan
cache, steps = json.loads(sys.argv[1])
for step in steps:
    models = {name: ModelSource(**value) for name, value in step.get("models", {}).items()}
    try:
        if "out" in step:
            report = merge(step["document"], step["out"], models, cache=Path(cache))
            print(json.dumps({"tensors": report.num_tensors}), flush=True)
        else:
            ready = plan(step["document"], models, cache=Path(cache))
            print(json.dumps({"tensors": len(ready.tensors), "unread": ready.unread}), flush=True)
    except MangoError as error:
        print(json.dumps({"error": str(error)}), flush=True)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as found:
        yield found


def linear(*names: str) -> dict[str, Any]:
    return {"merge_method": "linear", "models": [{"model": n} for n in names], "parameters": {"weight": 1.0}}


def run(hub: Hub, cache: Path, *steps: dict[str, Any]) -> list[dict[str, Any]]:
    """Plan and merge in a process that takes the stand-in for the Hub."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environ |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "home"), "HF_HUB_DISABLE_XET": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    argument = json.dumps([str(cache), list(steps)])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, argument], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_planned_by_headers_and_then_downloaded(tmp_path: Path, hub: Hub, make_model: MakeModel) -> None:
    """One revision is sharded, the other is not; weights are fetched when the merge begins, over a line that breaks."""
    a = make_model("a", 1, vocab_size=ROWS)
    b = tmp_path / "b"
    make_model("whole", 2, vocab_size=ROWS)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    model.save_pretrained(b, max_shard_size="200KB")
    for path in (tmp_path / "whole").glob("tokenizer*"):
        (b / path.name).write_bytes(path.read_bytes())
    assert len(list(b.glob("*.safetensors"))) > 1
    hub.repositories = {"me/a": {"main": a}, "me/b": {"main": a, "v2": b}}
    pinned = f"me/b@{commit_of(b)}"
    document = linear(f"me/a@{commit_of(a)}", pinned)

    hub.broken_headers = 1
    broke, told = run(hub, tmp_path / "cache", {"document": document}, {"document": document})
    assert "closed connection" in broke["error"]
    assert len(broke["error"].splitlines()) == 1
    assert told == {"tensors": 29, "unread": True}
    size = sum(path.stat().st_size for path in (a / "model.safetensors", *b.glob("*.safetensors")))
    assert hub.weight_bytes() < size / 4
    assert all(asked is not None for _, _, name, asked, _ in hub.read if name.endswith(".safetensors"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))

    hub.broken = 1
    merging = {"document": document, "out": str(tmp_path / "out")}
    done, here = run(hub, tmp_path / "cache", merging, {"document": document})
    assert done == {"tensors": 29}
    assert here == {"tensors": 29, "unread": False}  # what is here is read here
    assert hub.broken == 0
    merge(linear(str(a), str(b)), tmp_path / "calm")
    for path in (tmp_path / "calm").glob("*.safetensors"):
        assert sha256_file(path) == sha256_file(tmp_path / "out" / path.name)


@pytest.mark.slow
def test_what_cannot_be_had_is_told_in_the_plan(tmp_path: Path, hub: Hub, make_model: MakeModel) -> None:
    a = make_model("a", 1)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    hub.repositories = {"me/a": {"main": a}, "me/bare": {"main": bare}}
    hub.status = {"me/gated": (403, "GatedRepo"), "me/private": (401, "RepoNotFound"), "me/down": (500, "")}
    commit = "0" * 40
    names = [f"me/gated@{commit}", f"me/private@{commit}", f"me/nothing@{commit}", f"me/a@{commit}",
             f"me/bare@{commit_of(bare)}", "me/a"]  # fmt: skip
    found = run(hub, tmp_path / "cache", *({"document": linear(name)} for name in names))
    errors = [one["error"] for one in found]
    for name, error in zip(names, errors, strict=True):
        assert error.startswith(f"model {name!r}: {name.partition('@')[0]}: "), error
        assert len(error.splitlines()) == 1
    assert "403" in errors[0]
    assert "gated model, the access token" in errors[0]
    assert "401" in errors[1]
    assert "404" in errors[2]
    assert f"at revision '{commit}'" in errors[3]
    assert "safetensors" in errors[4]
    assert f"set revision: {commit_of(a)}" in errors[5]  # a branch can move
    assert hub.weight_bytes() == 0


@pytest.mark.slow
def test_a_gguf_file_is_planned_by_its_header(tmp_path: Path, hub: Hub) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    weights = gguf_llama(folder / "model.gguf", inner=200_000)
    size = (folder / "model.gguf").stat().st_size
    hub.repositories = {"me/gguf": {"main": folder}}
    source = {"source": "me/gguf", "revision": commit_of(folder), "gguf_file": "model.gguf"}
    step = {"document": linear("a"), "models": {"a": source}}
    lost = {"document": linear("a"), "models": {"a": {**source, "gguf_file": "other.gguf"}}}
    told, again, missing = run(hub, tmp_path / "cache", step, step, lost)
    assert told == again == {"tensors": len(weights), "unread": True}
    assert "404" in missing["error"]
    assert 0 < sum(sent for _, _, name, _, sent in hub.read if name == "model.gguf") < size / 2
    (done,) = run(hub, tmp_path / "cache", {**step, "out": str(tmp_path / "out")})
    assert done == {"tensors": len(weights)}
    here = Checkpoint.open(tmp_path / "out")
    assert all(torch.equal(here.tensor(name), tensor) for name, tensor in weights.items())
