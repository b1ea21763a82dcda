"""Only `mango.checkpoints` and the sandbox of `mango.security` read and write model files; others ask them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("mango/checkpoints/", "mango/security/")
SOURCES = [
    path
    for folder in ("mango", "stages")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.relative_to(ROOT).as_posix().startswith(ROOMS)
]
CALLS = {
    "from_pretrained": "reads a folder unchecked: call open_model, open_config or open_tokenizer",
    "get_config_dict": "reads a config.json unchecked: call read_configuration",
    "save_pretrained": "writes a model by itself: do it inside replace_folder",
    "load_file": "reads weights unchecked: call Checkpoint.open",
    "save_file": "writes weights by itself: call write_tensors",
    "safe_open": "reads weights unchecked: call Checkpoint.open",
    "from_file": "maps a file unchecked: call Checkpoint.open(...).tensor",
    "GGUFReader": "reads a GGUF file unchecked: call resolve",
    "snapshot_download": "fetches a model by itself: call resolve",
    "hf_hub_download": "fetches a file by itself: call resolve",
    "apply_chat_template": "renders a program of the model in this process: call render_template",
    "memmap": "maps a file unchecked: call Checkpoint.open(...).tensor",
}
ON = {
    "torch": {
        "load": "runs pickles: call Checkpoint.open, or resolve for a source that holds pickles",
        "save": "writes a pickle: call write_tensors",
    }
}
MODULES = {"safetensors", "pickle", "cloudpickle", "dill", "joblib", "gguf", "marshal", "shelve"}
ALLOWED = {
    ("mango/fusion/core.py", "from_pretrained"): "the method that the Auto class calls; it checks, then calls up",
    ("mango/blocks/inspection.py", "hf_hub_download"): "a configuration alone, after the policy has let it pass",
    (
        "mango/blocks/mapped.py",
        "from_file",
    ): "byte ranges that the store's manifest gives, compared with its hashes or identities",
    ("mango/merging/adapters.py", "snapshot_download"): "an adapter's two files, after the policy has let them pass",
    ("mango/merging/measuring.py", "from_file"): "a scratch file of its own, after its hash",
    ("mango/merging/remote.py", "snapshot_download"): "small files for a plan, after the policy has let them pass",
    ("mango/merging/vocabularies.py", "from_file"): "after check_tokenizer",
    ("mango/surgery/lora/spill.py", "from_file"): "a scratch file of its own",
    ("mango/training/controls.py", "save_pretrained"): "into the new folder of replace_folder",
    ("mango/training/run.py", "save_pretrained"): "into the new folder of replace_folder",
}
"""What may be where, and why. Each entry must still be there, so that the list stays short."""


def found_in(path: Path) -> set[tuple[str, str]]:
    """Return (name, reason against it) of each way to a model file in a source file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found |= {(name, "belongs to checkpoints") for name in names if name.split(".")[0] in MODULES}
        elif isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in CALLS:
                found.add((name, CALLS[name]))
            owner = function.value if isinstance(function, ast.Attribute) else None
            if isinstance(owner, ast.Name) and name in ON.get(owner.id, {}):
                found.add((f"{owner.id}.{name}", ON[owner.id][name]))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_model_file_is_reached_through_checkpoints_alone(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    assert {(call, why) for call, why in found_in(path) if (name, call) not in ALLOWED} == set()


def test_the_list_of_exceptions_holds_nothing_that_is_gone() -> None:
    calls = {(path.relative_to(ROOT).as_posix(), call) for path in SOURCES for call, _ in found_in(path)}
    assert set(ALLOWED) - calls == set()


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load('x')",
        "from safetensors.torch import load_file",
        "AutoModelForCausalLM.from_pretrained('x')",
        "model.save_pretrained('x')",
        "import pickle",
        "torch.save({}, 'x')",
    ],
)
def test_the_rule_sees_each_way(tmp_path: Path, code: str) -> None:
    (tmp_path / "x.py").write_text(code)
    assert found_in(tmp_path / "x.py")
