"""How a stage ends: done, refused, interrupted, killed. The previous outputs survive all but the first."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stages.conftest import NAMES, environment, start

PAUSING = """
import sys, time
from mango.merging import batch

merge_plan = batch.merge_plan

def merge_and_pause(*arguments, **options):
    merge_plan(*arguments, **options)
    print("first merge is done", flush=True)
    time.sleep(120)

batch.merge_plan = merge_and_pause
sys.argv = ["stages.merge"]
from stages.merge import NAME, SECTIONS, merge as work
from stages.run import run_stage
run_stage(NAME, work, sections=SECTIONS, help_text=None)
"""


def fingerprint(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, but for what a killed process leaves hidden."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".mango-" not in path.name
    }


@pytest.mark.slow
def test_the_two_stages_that_prepare_models(prepared: Path) -> None:
    report = json.loads((prepared / "reports" / "extract-blocks.json").read_text())
    assert (report["num_models"], report["num_blocks"], report["run_id"]) == (len(NAMES), 2 * len(NAMES), None)
    assert json.loads((prepared / "reports" / "gates" / "blocks.json").read_text())["passed"] is True

    import pandas as pd

    table = pd.read_parquet(prepared / "data" / "blocks.parquet")
    assert sorted(set(table["model"])) == sorted(NAMES)
    assert list((prepared / "reports" / "gates").glob("*.parquet")) == []
    merged = {path.name for path in (prepared / "models" / "merged").iterdir() if path.is_dir()}
    assert merged == {"main", "soup", "slerp", "ties"}


@pytest.mark.slow
def test_a_failed_gate_stops_the_stage_and_keeps_the_older_store(prepared: Path) -> None:
    before = fingerprint(prepared / "models" / "blocks"), fingerprint(prepared / "data")
    done = start("extract_blocks", prepared, "--set", "gates.blocks.max_abs_weight=1e-6", "--set", "extract.mode=copy")
    assert done.returncode == 2
    assert done.stderr.startswith("error: reports/gates/blocks.parquet: the blocks gate failed in")
    assert "See reports/gates/blocks.html" in done.stderr
    assert (fingerprint(prepared / "models" / "blocks"), fingerprint(prepared / "data")) == before
    assert json.loads((prepared / "reports" / "gates" / "blocks.json").read_text())["passed"] is False


def test_wrong_parameters_are_error_lines_and_nothing_is_written(workspace: Path) -> None:
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text.replace("trunk: base", "trunk: bas").replace("mode: ref", "mod: ref"))
    done = start("merge", workspace)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.split(" ")[2].rstrip(":") for line in lines] == ["extract.mod", "fusion.trunk"]
    assert all(line.startswith("error: params.yaml:") for line in lines)
    assert not (workspace / "models" / "merged").exists()
    assert not (workspace / "reports").exists()


def test_inside_dvc_an_override_is_refused(workspace: Path) -> None:
    done = start("merge", workspace, "--set", "merge.method=ties", DVC_STAGE="merge", MANGO_PARAM__seed="1")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: environment MANGO_PARAM__seed: DVC does not see this inside stage 'merge': use `dvc exp run -S seed=1`",
        "error: --set merge.method: DVC does not see this inside stage 'merge': use `dvc exp run -S merge.method=ties`",
    ]


def test_a_misspelt_setting_is_an_error(workspace: Path) -> None:
    done = start("merge", workspace, MANGO_DEVIC="cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: environment MANGO_DEVIC: unknown setting; did you mean 'MANGO_DEVICE'?")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stage_that_is_ended_in_the_middle_leaves_the_older_outputs(prepared: Path, number: int, code: int) -> None:
    before = fingerprint(prepared / "models" / "merged"), fingerprint(prepared / "reports")
    command = [sys.executable, "-c", PAUSING]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=prepared, env=environment(), **pipes) as process:
        assert process.stdout.readline() == "first merge is done\n"
        again = start("merge", prepared)  # while the first one is at work
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert again.returncode == 2
    assert re.search(rf"^error: .*reports/merge\.json: process {process.pid} \(.*\) is writing it; ", again.stderr), (
        again
    )
    assert process.returncode == code
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}.get(signal.Signals(number))
    if word is not None:
        how = "'merged' goes on from what it has written"
        told = f"{word}: nothing was replaced. To go on, run `python -m stages.merge`: {how}"
        assert said.splitlines()[-1] == told
    assert (fingerprint(prepared / "models" / "merged"), fingerprint(prepared / "reports")) == before
    left = [path.name for path in (prepared / "models").iterdir() if path.name.startswith(".")]
    assert any(name.startswith(".merged.mango-new-merge-") for name in left)
    done = start("merge", prepared)
    assert done.returncode == 0
    assert re.search(r"^merge main: (\d+) of \1 tensors were there already$", done.stderr, re.MULTILINE), done.stderr
    assert [path.name for path in (prepared / "models").iterdir() if path.name.startswith(".")] == []
    assert fingerprint(prepared / "models" / "merged") == before[0]
