"""What importing costs: the command line and the package stay light."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

HEAVY = {
    "accelerate",
    "boto3",
    "datasets",
    "dvc",
    "fsspec",
    "gguf",
    "great_expectations",
    "huggingface_hub",
    "jinja2",
    "lm_eval",
    "matplotlib",
    "mlflow",
    "nltk",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
    "requests",
    "rich",
    "safetensors",
    "scipy",
    "sqlalchemy",
    "sympy",
    "tokenizers",
    "torch",
    "transformers",
}
"""Packages that neither ``import mango`` nor ``mango --help`` may import."""

PIPELINE = {
    "datasets",
    "dvc",
    "gguf",
    "great_expectations",
    "lm_eval",
    "matplotlib",
    "mlflow",
    "pandas",
    "psycopg",
    "boto3",
}
"""Packages of the pipeline extra: the library must import without them."""


def imported_by(code: str) -> set[str]:
    """Return the top-level modules that are imported when a fresh interpreter runs ``code``."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("code", ["import mango", "from mango.cli.app import main; main(['--help'])"])
def test_light_ways_in_import_nothing_heavy(code: str) -> None:
    assert imported_by(code) & HEAVY == set()


def test_help_takes_less_than_half_a_second_of_cpu() -> None:
    spent_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", "from mango.cli.app import main; main(['--help'])"], capture_output=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent_s) < 0.5


@pytest.mark.parametrize(
    "room",
    ["tensors", "checkpoints", "architectures", "blocks", "merging", "fusion", "training", "evaluation", "packaging"],
)
def test_the_library_imports_without_the_pipeline_extra(room: str) -> None:
    blocked = f"sys.modules.update(dict.fromkeys({sorted(PIPELINE)!r}))"  # None there makes the import fail
    modules = imported_by(f"{blocked}; import mango.{room}")
    assert "mango" in modules
