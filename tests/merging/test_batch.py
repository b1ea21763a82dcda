"""Several merges as one piece of work: planned together, finished ones not made again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mango.checkpoints import ModelSource, sha256_file, verify
from mango.errors import CheckpointError, MergeError
from mango.merging import MergeDocument, merge_all, merge_into_one
from tests.merging.conftest import tiny_llama

Family = dict[str, ModelSource]


class Stopped(KeyboardInterrupt):
    """Ends a merge in its middle as ``kill -9`` does: nothing is cleaned up behind it."""


@contextmanager
def quiet(name: str) -> Iterator[Any]:
    yield lambda done, total: None


def stopping(at: str, after: int = 3) -> Any:
    """Stop the merge of a name in its middle."""
    calls: list[str] = []

    @contextmanager
    def watch(name: str) -> Iterator[Any]:
        def meter(done: int, total: int) -> None:
            calls.append(name)
            if name == at and calls.count(name) == after:
                raise Stopped

        yield meter

    return watch


def documents(t: float = 0.5) -> dict[str, MergeDocument]:
    slerp = {"merge_method": "slerp", "base_model": "a", "models": [{"model": "a"}, {"model": "b"}]}
    linear = {"merge_method": "linear", "models": [{"model": "b"}, {"model": "c"}], "parameters": {"weight": 1.0}}
    found = {"one": linear, "two": {**slerp, "parameters": {"t": t}}, "three": {**linear, "dtype": "float32"}}
    return {name: MergeDocument.model_validate(data) for name, data in found.items()}


def hashes(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mango.merging.shards._MARK_SECONDS", 0.0)
    monkeypatch.setattr("mango.merging.shards._BATCH_BYTES", 1)


def test_one_folder_of_several_goes_on_after_a_kill(tmp_path: Path, family: Family) -> None:
    calm = merge_into_one(documents(), tmp_path / "calm", family, watch=quiet)
    assert [report.num_resumed for report in calm.values()] == [0, 0, 0]
    assert [report.out for report in calm.values()] == [tmp_path / "calm" / name for name in documents()]
    merge_into_one(documents(0.1), tmp_path / "out", family, watch=quiet)
    older = hashes(tmp_path / "out")
    with pytest.raises(Stopped):
        merge_into_one(documents(), tmp_path / "out", family, threads=1, watch=stopping("two", 12))
    assert hashes(tmp_path / "out") == older
    (grown,) = (path for path in tmp_path.glob(".out.*") if path.is_dir())
    (grown / ".one.mango-lock").touch()  # as a kill behind the swap leaves it
    reports = merge_into_one(documents(), tmp_path / "out", family, watch=quiet)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    total = calm["one"].num_tensors
    assert reports["one"].num_resumed == total
    assert 0 < reports["two"].num_resumed < total
    assert reports["three"].num_resumed == 0
    verify(tmp_path / "out")
    assert not list(tmp_path.glob(".out.*"))


def test_what_other_parameters_or_inputs_made_is_not_taken(tmp_path: Path, family: Family) -> None:
    merge_into_one(documents(0.1), tmp_path / "calm", family, watch=quiet)
    with pytest.raises(Stopped):
        merge_into_one(documents(), tmp_path / "out", family, watch=stopping("three"))
    reports = merge_into_one(documents(0.1), tmp_path / "out", family, watch=quiet)
    assert [report.num_resumed for report in reports.values()] == [0, 0, 0]
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    with pytest.raises(Stopped):
        merge_into_one(documents(0.1), tmp_path / "out", family, watch=stopping("three"))
    tiny_llama(9).bfloat16().save_pretrained(family["c"].source)
    reports = merge_into_one(documents(0.1), tmp_path / "out", family, watch=quiet)
    assert [report.num_resumed for report in reports.values()] == [0, 0, 0]


def test_a_finished_part_that_was_damaged_is_made_again(tmp_path: Path, family: Family) -> None:
    merge_into_one(documents(), tmp_path / "calm", family, watch=quiet)
    with pytest.raises(Stopped):
        merge_into_one(documents(), tmp_path / "out", family, watch=stopping("two"))
    (file,) = tmp_path.glob(".out.*/one/model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert merge_into_one(documents(), tmp_path / "out", family, watch=quiet)["one"].num_resumed == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")


def test_the_moment_behind_the_swap(tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = merge_into_one(documents(), tmp_path / "calm", family, watch=quiet)
    merge_into_one(documents(0.1), tmp_path / "out", family, watch=quiet)
    with monkeypatch.context() as patched:

        def stop(old: Path | None) -> None:
            if old is not None and old.parent == tmp_path:
                raise Stopped

        patched.setattr("mango.merging.workspace.forget", lambda *_: None)
        patched.setattr("mango.merging.workspace.remove_old", stop)
        with pytest.raises(Stopped):
            merge_into_one(documents(), tmp_path / "out", family, watch=quiet)
    reports = merge_into_one(documents(), tmp_path / "out", family, watch=quiet)
    assert all(report.num_resumed == calm[name].num_tensors for name, report in reports.items())
    assert hashes(tmp_path / "out") == hashes(tmp_path / "calm")
    assert not list(tmp_path.glob(".out.*"))


def test_a_batch_does_not_make_again_what_is_finished(tmp_path: Path, family: Family) -> None:
    places = {name: tmp_path / "out" / name for name in documents()}
    with pytest.raises(Stopped):
        merge_all(documents(), places, family, watch=stopping("two", 12), threads=1)
    one = places["one"] / "model.safetensors"
    before = one.stat().st_mtime_ns
    assert not places["two"].exists()
    reports = merge_all(documents(), places, family, watch=quiet)
    assert one.stat().st_mtime_ns == before
    assert reports["one"].num_resumed == reports["one"].num_tensors
    assert 0 < reports["two"].num_resumed < reports["two"].num_tensors
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "three", "two"]
    reports = merge_all(documents(), places, family, watch=quiet)  # nothing was left to go on from
    assert [report.num_resumed for report in reports.values()] == [0, 0, 0]


def test_every_problem_of_every_document_comes_before_anything_is_written(tmp_path: Path, family: Family) -> None:
    wrong = documents()
    wrong["two"] = wrong["two"].model_copy(update={"base_model": "x"})
    wrong["three"] = wrong["three"].model_copy(update={"tokenizer_source": "c", "base_model": "y"})
    with pytest.raises(MergeError, match=r"^two: model 'x'.*\nthree: model 'y'") as caught:
        merge_into_one(wrong, tmp_path / "out", family, watch=quiet)
    assert len(str(caught.value).splitlines()) == 2
    assert not list(tmp_path.glob("*out*"))


def test_room_for_all_is_asked_for_at_once(tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(r.num_bytes for r in merge_into_one(documents(), tmp_path / "calm", family, watch=quiet).values())
    monkeypatch.setenv("MANGO_DISK_RESERVE", "0")
    monkeypatch.setattr("mango.checkpoints.room.free_bytes", lambda path: size - 1)
    with pytest.raises(CheckpointError, match="no room to write"):
        merge_into_one(documents(), tmp_path / "out", family, watch=quiet)
    assert not (tmp_path / "out").exists()
