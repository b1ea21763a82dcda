"""A merge that is killed goes on where it was, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mango.checkpoints import ModelSource, sha256_file, verify
from mango.errors import CheckpointError, MergeError
from mango.merging import merge
from tests.merging.conftest import MakeModel, tiny_llama
from tests.robustness.merge_kills import write_models

ROOT = Path(__file__).parents[2]
ROWS = 2**15


def document(names: list[str]) -> dict[str, Any]:
    models = [{"model": name, "parameters": {"weight": 1.0, "density": 0.5}} for name in names]
    return {"merge_method": "ties", "base_model": names[0], "models": models}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_fifty_kills_change_no_bit_and_lose_no_work(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.robustness.merge_kills", "--rows", str(ROWS), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert (found["kills"], found["different"], found["lost"], found["left"]) == (50, [], [], [])
    assert found["with a part to go on from"] >= 10
    assert found["that went on"] >= 5


class Stopped(KeyboardInterrupt):
    """Ends a merge in its middle as Ctrl-C does."""


def stop(*_arguments: object) -> None:
    raise Stopped


def stop_at(count: int) -> Any:
    def on_tensor(done: int, total: int) -> None:
        if done == count:
            raise Stopped

    return on_tensor


@pytest.fixture
def pair(make_model: MakeModel) -> dict[str, ModelSource]:
    return {name: ModelSource(source=str(make_model(name, seed))) for seed, name in enumerate("ab")}


DATA = document(["a", "b"])


def journal_of(grown: Path) -> Path:
    return grown.with_name(f"{grown.name}.journal")


def interrupted(tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch, count: int) -> Path:
    monkeypatch.setattr("mango.merging.shards._MARK_SECONDS", 0.0)
    with pytest.raises(Stopped):
        merge(DATA, tmp_path / "out", pair, max_shard_bytes=2000, on_tensor=stop_at(count))
    (grown,) = (path for path in tmp_path.glob(".out.mango-new-merge-*") if path.is_dir())
    return grown


def test_it_does_not_start_over(tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch) -> None:
    calm = merge(DATA, tmp_path / "calm", pair, max_shard_bytes=2000)
    grown = interrupted(tmp_path, pair, monkeypatch, 20)
    assert journal_of(grown).is_file()
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
    with journal_of(grown).open("a") as journal:
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


@pytest.mark.parametrize("moment", ["put_in_place", "forget", "remove_old"])
def test_the_moments_around_the_swap(
    tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """An older version of more files changes places with the new one; none of them may get into it."""
    calm = merge(DATA, tmp_path / "calm", pair)
    merge({**DATA, "parameters": {"lambda": 0.5}}, tmp_path / "out", pair, max_shard_bytes=2000)
    older = hashes(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(f"mango.merging.workspace.{moment}", stop)
        with pytest.raises(Stopped):
            merge(DATA, tmp_path / "out", pair)
    assert hashes(tmp_path / "out") == (older if moment == "put_in_place" else hashes(tmp_path / "calm"))
    report = merge(DATA, tmp_path / "out", pair)
    assert report.num_resumed == calm.num_tensors
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    verify(tmp_path / "out")
    assert not list(tmp_path.glob(".out.*"))


def test_a_finished_folder_that_was_changed_is_made_anew(
    tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(DATA, tmp_path / "calm", pair)
    with monkeypatch.context() as patched:
        patched.setattr("mango.merging.workspace.forget", stop)
        with pytest.raises(Stopped):
            merge(DATA, tmp_path / "out", pair)
    (tmp_path / "out" / "config.json").write_text("{}")
    assert merge(DATA, tmp_path / "out", pair).num_resumed == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")


def test_a_folder_without_its_journal_is_not_trusted(
    tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge(DATA, tmp_path / "calm", pair, max_shard_bytes=2000)
    grown = interrupted(tmp_path, pair, monkeypatch, 20)
    journal_of(grown).unlink()
    (grown / "stranger.json").write_text("{}")
    assert merge(DATA, tmp_path / "out", pair, max_shard_bytes=2000).num_resumed == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_model_that_changes_while_it_is_merged(tmp_path: Path, pair: dict[str, ModelSource], name: str) -> None:
    file = Path(pair["b"].source) / name

    def touch(done: int, total: int) -> None:
        if done == 5:
            os.utime(file, ns=(1, 1))

    with pytest.raises(CheckpointError, match="a model was changed while it was merged"):
        merge(DATA, tmp_path / "out", pair, on_tensor=touch)
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
    names = write_models(tmp_path, ROWS)
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


def test_what_lies_beside_a_result_under_a_similar_name_stays(
    tmp_path: Path, pair: dict[str, ModelSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out.calibration").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr("mango.merging.workspace.forget", stop)
        with pytest.raises(Stopped):
            merge(DATA, tmp_path / "out", pair)
    merge(DATA, tmp_path / "out", pair)
    assert (tmp_path / "out.calibration").is_dir()
