"""Ctrl-C and ``kill -9`` in the middle of each stage: what was there stays, and ``dvc repro`` goes on by itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mango.checkpoints import verify
from tests.pipeline.project import LATER, OUTPUTS, STAGES, dvc, edit, environment, fingerprint, leftovers, outputs, ran

MIDDLE = {
    "extract-blocks": r"/\.blocks\.mango-new-\w+/",
    "merge": r"/\.merged\.mango-new-merge-\w+/.*config\.json",
    "train-adapters-and-routers": r"checkpoint-1/trainer_state\.json",
    "evaluate": r"reports/\.report\.html\.mango-new",
    "package": r"/\.package\.mango-new-\w+/",
}
"""Files that a stage opens while it makes its outputs."""

END = {
    "train-adapters-and-routers": r"reports/\.train-adapters-and-routers\.json\.mango-new",
    "package": r"reports/\.package\.json\.mango-new",
}
"""Files that a stage opens when some of its outputs are in their places and others are not."""

FOLDERS = ["models/blocks", "models/merged", "models/fused", "models/controls", "models/package"]
WEIGHTS = [*FOLDERS[:2], "models/fused/model.safetensors", "models/controls"]


@pytest.fixture
def pausing(tmp_path: Path) -> Path:
    """Give a folder for the path of Python in which a process learns to pause."""
    folder = tmp_path / "pausing"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("pausing.py"), folder / "sitecustomize.py")
    return folder


def end_repro(root: Path, pausing: Path, stage: str, pattern: str, number: signal.Signals) -> tuple[int, str]:
    """Run the pipeline and end all of its processes when a stage opens a file; return exit code and what was said."""
    mark = pausing / "reached"
    mark.unlink(missing_ok=True)
    environ = environment(PYTHONPATH=str(pausing), PAUSE_AT=pattern, PAUSE_MARK=str(mark))
    log = pausing / "log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=root,
            env=environ,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
        give_up = time.monotonic() + 120
        while not mark.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.02)
        os.killpg(process.pid, number)
        code = process.wait(timeout=60)
    said = log.read_text()
    assert said.count("Running stage") >= 1
    assert said.rpartition("Running stage '")[2].startswith(stage), said
    return code, said


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_each_stage(finished: Path, pausing: Path) -> None:
    edit(finished, "seed: 0", "seed: 1")
    edit(finished, "mode: reference", "mode: copy")
    edit(finished, "name: tiny-mango", "name: other-mango")
    document = finished / "examples" / "merge" / "half.yaml"
    document.write_text(document.read_text().replace("t: 0.5", "t: 0.25"))
    before = outputs(finished)
    for stage in STAGES:
        untouched = [name for later in STAGES[STAGES.index(stage) :] for name in OUTPUTS[later]]
        kept = fingerprint(finished, *untouched)
        code, said = end_repro(finished, pausing, stage, MIDDLE[stage], signal.SIGINT)
        assert code != 0
        assert "Traceback" not in said
        how = "'merged' goes on from what it has written" if stage == "merge" else "it starts over"
        assert f"interrupted: nothing was replaced. To go on, run `dvc repro {stage}`: {how}" in said
        now = fingerprint(finished, *untouched)
        gates = {name for name in now if name.startswith("reports/gates/")}
        assert {n: h for n, h in now.items() if n not in gates} == {n: h for n, h in kept.items() if n not in gates}
        assert all(name.startswith("models/.merged.mango-new-merge-") for name in leftovers(finished))
        assert bool(leftovers(finished)) == (stage == "merge")
    done = dvc(finished, "repro")
    assert (done.returncode, ran(done)) == (0, ["package"]), done.stderr
    after = outputs(finished)
    same = {name for name in before if name.endswith(".safetensors") and before[name] == after.get(name)}
    assert same == {"models/merged/main/model.safetensors"}  # it depends on nothing that was changed
    assert ran(dvc(finished, "repro")) == []


@pytest.mark.slow
def test_kill_9_in_the_middle_of_each_stage(finished: Path, pausing: Path) -> None:
    before = fingerprint(finished, *WEIGHTS)
    (finished / "dvc.lock").unlink()  # nothing is known to be done, so every stage runs again, to the same weights
    for stage in STAGES:
        for moment in (moments[stage] for moments in (MIDDLE, END) if stage in moments):
            code, _ = end_repro(finished, pausing, stage, moment, signal.SIGKILL)
            assert code == -signal.SIGKILL
            for folder in FOLDERS:
                verify(finished / folder)
            assert fingerprint(finished, *WEIGHTS) == before
    done = dvc(finished, "repro")
    assert (done.returncode, ran(done)) == (0, ["package"]), done.stderr
    assert fingerprint(finished, *WEIGHTS) == before  # a training that was resumed twice gave the very same bits
    assert leftovers(finished) == []
    assert not (finished / "models" / ".training").exists()
    assert ran(dvc(finished, "repro")) == []
    assert LATER[0] in (finished / "dvc.lock").read_text()


@pytest.mark.slow
def test_what_a_killed_dvc_leaves_is_mended_by_one_command(finished: Path) -> None:
    lock = finished / "dvc.lock"
    lock.write_text(lock.read_text()[: lock.read_text().index("  package:") + 30] + "\n  : :")
    readers = finished / ".dvc" / "tmp" / "rwlock"
    readers.write_text("")
    assert dvc(finished, "repro").returncode != 0
    command = [sys.executable, "-c", "from mango.cli.app import main; main(['repair'])"]
    done = subprocess.run(command, cwd=finished, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [".dvc/tmp/rwlock", "dvc.lock"]
    done = dvc(finished, "repro")
    assert (done.returncode, ran(done)) == (0, ["package"]), done.stderr
