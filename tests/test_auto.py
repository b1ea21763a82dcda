"""``import mango`` costs nothing and lets transformers open fused models, whichever is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
{first}
import mango
assert "mango.fusion" not in sys.modules
from transformers import AutoConfig, AutoModelForCausalLM
assert "mol" in AutoConfig.for_model.__globals__["CONFIG_MAPPING"]
assert "mango.fusion" not in sys.modules
config = AutoConfig.for_model("mol")
assert type(config) in AutoModelForCausalLM._model_mapping
print(type(config).__module__, config.model_type)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["assert 'transformers' not in sys.modules", "from transformers import AutoConfig, AutoModelForCausalLM"]
)
def test_the_model_type_is_known_before_and_after_transformers(first: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(first=first)], capture_output=True, text=True)
    assert done.stdout == "mango.fusion.configuration mol\n", done.stderr


def test_announcing_twice_changes_nothing() -> None:
    code = "import sys, mango.auto as a; n = len(sys.meta_path); a.announce(); print(len(sys.meta_path) - n)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "0\n"


@pytest.mark.slow
def test_the_classes_are_registered_for_whoever_imports_them() -> None:
    code = (
        "from mango.fusion import MolConfig\nfrom transformers import AutoModelForCausalLM\n"
        "print(AutoModelForCausalLM._model_mapping[MolConfig].__name__)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "MolForCausalLM\n"
