"""Models that cannot be extracted are refused in a moment, before torch is imported, by every way in."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.blocks.bad_models import BAD, llama

SCRIPT = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    if sys.argv[0] == "mango":
        from mango.cli.app import main
        main(sys.argv[1:])
    runpy.run_module(sys.argv[0], run_name="__main__")
finally:
    peak = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
    print(peak, *sorted({"torch", "transformers"} & set(sys.modules)))
"""


def run(cwd: Path, *arguments: str) -> tuple[int, str, int, list[str], float]:
    """Return (exit code, stderr, peak in KiB, heavy modules, CPU seconds) of a module that is run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], cwd=cwd, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak, *heavy = done.stdout.splitlines()[-1].split()
    return (
        done.returncode,
        done.stderr,
        int(peak),
        heavy,
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    )


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_is_refused_in_a_moment(tmp_path: Path, name: str) -> None:
    make, words = BAD[name]
    make(tmp_path / "bad")
    (tmp_path / "params.yaml").write_text("models:\n  base: {source: bad}\n")
    commands = [
        ("mango", "inspect", "bad"),
        ("mango", "extract", "bad", "--out", "store"),
        ("stages.extract_blocks",),
    ]
    for command in commands if name == "no blocks" else commands[1:2]:
        code, said, peak_kib, heavy, cpu_s = run(tmp_path, *command)
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert (code, len(errors), heavy) == (2, 1, []), said
        assert words in errors[0]
        assert peak_kib < 300 * 1024
        assert cpu_s < 2
    assert not (tmp_path / "store").exists()


def test_what_a_command_line_changes_is_left_to_the_schema(tmp_path: Path) -> None:
    from stages.extract_blocks import refuse_models

    llama(tmp_path / "bad", num_hidden_layers=0)
    (tmp_path / "params.yaml").write_text(f"models:\n  base: {{source: {tmp_path / 'bad'}}}\n")
    refuse_models(tmp_path / "params.yaml", ["models.base.source=elsewhere"])
    refuse_models(tmp_path / "missing.yaml", [])
    (tmp_path / "wrong.yaml").write_text("models: 3\n")
    refuse_models(tmp_path / "wrong.yaml", [])


def test_a_trusted_source_may_name_its_code(tmp_path: Path) -> None:
    from stages.extract_blocks import refuse_models

    llama(tmp_path / "mine", auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    file = tmp_path / "params.yaml"
    file.write_text(
        f"models:\n  base: {{source: {tmp_path / 'mine'}}}\n"
        f"security:\n  default: community\n  rules: [{{source: {tmp_path}/*, tier: trusted}}]\n"
    )
    refuse_models(file, [])
