"""Bad input: one clear line, exit code 2, nothing half written, and the outputs of the last good run intact."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.evaluate import evaluate
from stages.extract_blocks import extract_blocks
from stages.merge import merge
from stages.package import package
from stages.run import Work, run_stage
from stages.train_adapters_and_routers import train
from tests.pipeline.project import (
    WORDS,
    edit,
    environment,
    leftovers,
    make_tokenizer,
    outputs,
    stage,
    write_rows,
)

WORK: dict[str, tuple[Work, tuple[str, ...]]] = {
    "extract-blocks": (extract_blocks, ("models", "extract", "gates")),
    "merge": (merge, ("models", "merge")),
    "train-adapters-and-routers": (train, ("seed", "corpus", "fusion", "router", "adapter", "train", "gates")),
    "evaluate": (evaluate, ("seed", "corpus", "evaluate")),
    "package": (package, ("gates", "package")),
}
TRAIN = "train-adapters-and-routers"
GATES = "reports/gates/"
INPUTS = ("params.yaml", "data/corpus", "models/tiny", "models/blocks", "models/merged", "models/fused")

Refused = Callable[[str], str]


@pytest.fixture
def project(finished_for_all: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the finished project, and put back afterwards whatever a test did to it."""
    kept = finished_for_all.with_name("kept")
    if not kept.exists():
        shutil.copytree(finished_for_all, kept, symlinks=True)
    monkeypatch.chdir(finished_for_all)
    monkeypatch.setenv("MANGO_TRACKING", "off")
    monkeypatch.setenv("MANGO_DEVICE", "cpu")
    yield finished_for_all
    for name in (*INPUTS, "reports", "models/controls", "models/package"):
        target, source = finished_for_all / name, kept / name
        if target.is_dir():
            shutil.rmtree(target)
            shutil.copytree(source, target, symlinks=True)
        else:
            target.unlink(missing_ok=True)
            shutil.copy(source, target)
    shutil.rmtree(finished_for_all / "models" / ".training", ignore_errors=True)


@pytest.fixture
def refused(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a stage that must refuse, check what it leaves, and return its one line."""

    def run(name: str) -> str:
        work, sections = WORK[name]
        monkeypatch.setattr(sys, "argv", ["stages"])
        before = outputs(project)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_stage(name, work, sections=sections, help_text=None)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert stop.value.code == 2
        assert len(lines) == 1, lines
        after = outputs(project)
        changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        assert {path for path in changed if not path.startswith(GATES)} == set()
        assert leftovers(project) == []
        return lines[0].removeprefix("error: ")

    return run


@pytest.mark.slow  # the first of these tests waits for the project
def test_unknown_router(project: Path, refused: Refused) -> None:
    edit(project, "type: token", "type: tokn")
    line = refused(TRAIN)
    assert line == (
        f"params.yaml:{line_of('type: tokn')} router.type: unknown router 'tokn'; did you mean 'token'? "
        "Known: simple, token, topk"
    )


def line_of(text: str) -> int:
    """Return the number of the line of params.yaml that holds a text."""
    lines = Path("params.yaml").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.slow
def test_k_above_the_number_of_experts(project: Path, refused: Refused) -> None:
    edit(project, "type: token", "type: topk")
    edit(project, "topk: {k: 1", "topk: {k: 4")
    assert refused(TRAIN).endswith("router.topk.k: 4 is more than the 3 experts (the trunk and 2 more)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("span", "found"),
    [("{enter: 0, exit: 2, blocks: [0, 9]}", "9"), ("{enter: 0, exit: 7, blocks: [0, 2]}", "exits at 7")],
)
def test_span_out_of_range(project: Path, refused: Refused, span: str, found: str) -> None:
    edit(project, "experts: [code, novels]", f"experts: [{{model: code, cut: [{span}]}}, novels]")
    line = refused(TRAIN)
    assert line.startswith("fusion.experts.0.cut.0")
    assert found in line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["extract-blocks", "merge"])
def test_missing_model(project: Path, refused: Refused, name: str) -> None:
    shutil.rmtree(project / "models" / "tiny" / "code")
    assert "models/tiny/code" in refused(name)


@pytest.mark.slow
def test_two_tokenizers_that_do_not_match_are_not_merged(project: Path, refused: Refused) -> None:
    make_tokenizer(" ".join(WORDS["novels"][::-1]) * 3).save_pretrained(project / "models" / "tiny" / "code")
    line = refused("merge")
    assert "tokenizer" in line
    assert "code" in line


@pytest.mark.slow
def test_two_tokenizers_that_do_not_match_are_not_fused(project: Path, refused: Refused) -> None:
    make_tokenizer(" ".join(WORDS["novels"][::-1]) * 3).save_pretrained(project / "models" / "tiny" / "novels")
    assert stage(project, "extract-blocks").returncode == 0  # as DVC does: the models have changed
    line = refused(TRAIN)
    assert "tokenizer" in line
    assert "novels" in line


@pytest.mark.slow
def test_empty_corpus(project: Path, refused: Refused) -> None:
    write_rows(project / "data" / "corpus" / "train.parquet", [])
    assert "corpus" in refused(TRAIN)


@pytest.mark.slow
def test_corpus_row_with_nul(project: Path, refused: Refused) -> None:
    path = project / "data" / "corpus" / "train.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[3]["text"] = rows[3]["text"][:40] + "\0" + rows[3]["text"][40:]
    write_rows(path, rows)
    line = refused(TRAIN)
    assert "the corpus gate failed" in line
    assert "reports/gates/corpus.html" in line
    assert rows[3]["doc_id"] in Path("reports/gates/corpus.html").read_text()


def flip(path: Path) -> None:
    """Turn one bit of a file's last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # not through a link into DVC's cache
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Take away a file's end."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-100])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shard", "damage"),
    [
        ("extract-blocks", "models/tiny/code/model.safetensors", cut),
        ("merge", "models/tiny/code/model.safetensors", cut),
        (TRAIN, "models/tiny/code/model.safetensors", cut),
        (TRAIN, "models/tiny/code/model.safetensors", flip),
        ("evaluate", "models/fused/model.safetensors", cut),
        ("evaluate", "models/fused/model.safetensors", flip),
        ("package", "models/fused/model.safetensors", cut),
        ("package", "models/fused/model.safetensors", flip),
    ],
)
def test_corrupted_shard(
    project: Path, refused: Refused, name: str, shard: str, damage: Callable[[Path], None]
) -> None:
    damage(project / shard)
    assert str(Path(shard).parent) in refused(name)


LIMITS = {"extract-blocks": 2_000, "merge": 20_000, TRAIN: 40_000, "evaluate": 10_000, "package": 12_000}
"""Bytes that a file may have before the disk is full: room for a stage's first files, not for its last."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_disk_full(project: Path, name: str) -> None:
    before = outputs(project)
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name.replace('-', '_')}"],
        cwd=project,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMITS[name], LIMITS[name])),
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(lines)) == (2, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert "no room" in lines[0]
    after = outputs(project)
    assert {path for path in before if before[path] != after.get(path) and not path.startswith(GATES)} == set()
    assert leftovers(project) == []
