"""Packages that attack: each maker spoils a real one, and makes its manifests fit again, as who spoils one would."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from mango.checkpoints.hashing import sha256_file
from mango.checkpoints.sealing import seal
from mango.packaging import DataState, GitState, PackageParams, Parent, build_package, examine, open_package
from mango.packaging.manifest import MANIFEST_FILE
from tests.robustness.attack_files import Make, safetensors, touch

PACKAGES: dict[str, Make] = {}
_EVALUATION = Path(__file__).parents[1] / "evaluation" / "example.json"


def package(spoil: Callable[[Path, dict[str, Any]], None]) -> Make:
    """Register a maker of a package that ``spoil`` changes."""

    def make(folder: Path, names: dict[str, Any]) -> Path:
        shutil.copytree(_honest(), folder)
        spoil(folder, names)
        fit(folder)
        return folder

    PACKAGES[f"package-{spoil.__name__.replace('_', '-')}"] = make
    return make


@cache
def _honest() -> Path:
    from tests.packaging.conftest import save_tiny_checkpoint

    root = Path(tempfile.mkdtemp(prefix="mango-package-"))
    save_tiny_checkpoint(root / "fused")
    parents = [Parent(name="base", source="models/base", revision=None, licence="apache-2.0", sha256="a" * 64)]
    build_package(
        root / "fused", root / "package", params=PackageParams(), parents=parents,
        evaluation=json.loads(_EVALUATION.read_text(encoding="utf-8")), gates={"corpus": True, "metrics": True},
        parameters={"seed": 0}, data=DataState(corpus_sha256="c" * 64, files={"data/corpus/train.parquet": "d" * 64}),
        git=GitState(revision="e" * 40, dirty=False), reproduce="dvc repro package",
    )  # fmt: skip
    return root / "package"


def forget_the_honest_one() -> None:
    """Remove what was built to be spoiled."""
    if _honest.cache_info().currsize:
        shutil.rmtree(_honest().parent)
        _honest.cache_clear()


def fit(folder: Path) -> None:
    """Make both manifests fit what the folder holds, as far as they can."""
    file = folder / MANIFEST_FILE
    if file.is_file() and not file.is_symlink():
        try:
            manifest = json.loads(file.read_text())
        except ValueError:
            manifest = None
        if isinstance(manifest, dict) and manifest.pop("fit", True):
            manifest["files"] = {
                path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
                for path in folder.rglob("*")
                if path.is_file() and not path.is_symlink() and path.name not in {MANIFEST_FILE, "MANIFEST.json"}
            }
            file.write_text(json.dumps(manifest))
    if not any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in folder.rglob("*")):
        seal(folder)


def open_it(folder: Path) -> list[str]:
    """Look at a package as ``mango verify`` does, and open it as its users do; return everything that was said."""
    from mango.errors import MangoError

    said = []
    for use in (lambda: "\n".join(examine(folder).problems), lambda: str(open_package(folder)[0].config)):
        try:
            said.append(use())
        except MangoError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def _edit(file: Path, **changes: Any) -> None:
    document = json.loads(file.read_text()) if file.is_file() else {}
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(document | changes))


def _program(names: dict[str, Any]) -> str:
    return f"open({names['canary']!r}, 'w')\n"


@package
def with_code_by_auto_map(folder: Path, names: dict[str, Any]) -> None:
    (folder / "own.py").write_text(_program(names))
    _edit(folder / "config.json", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}, model_type="own")


@package
def with_code_in_the_tokenizer(folder: Path, names: dict[str, Any]) -> None:
    (folder / "own.py").write_text(_program(names))
    _edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", None]}, tokenizer_class="T")


@package
def with_code_for_generation(folder: Path, names: dict[str, Any]) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(_program(names))
    _edit(folder / "generation_config.json", custom_generate=str(folder))


@package
def with_a_kernel(folder: Path, names: dict[str, Any]) -> None:
    _edit(folder / "config.json", _attn_implementation="someone/kernel:run")


@package
def with_quantisation_code(folder: Path, names: dict[str, Any]) -> None:
    _edit(folder / "config.json", quantization_config={"quant_method": "own", "modules": _program(names)})


@package
def with_a_pickle_beside_the_weights(folder: Path, names: dict[str, Any]) -> None:
    (folder / "training_args.bin").write_bytes(pickle.dumps(touch(names)))


@package
def with_pickled_weights(folder: Path, names: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": touch(names)}))


@package
def with_a_pickle_called_safetensors(folder: Path, names: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(pickle.dumps(touch(names)))


@package
def with_an_adapter_of_code(folder: Path, names: dict[str, Any]) -> None:
    auto = {"base_model_class": "system", "parent_library": "os"}
    _edit(folder / "adapter_config.json", peft_type="LORA", auto_mapping=auto, base_model_name_or_path=str(folder))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(touch(names)))


@package
def with_other_tensors(folder: Path, names: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    safetensors(folder / "model.safetensors")


@package
def with_a_template_that_climbs(folder: Path, names: dict[str, Any]) -> None:
    climb = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch X') }}"
    (folder / "chat_template.jinja").write_text(climb.replace("X", names["canary"]))


@package
def with_an_endless_template(folder: Path, names: dict[str, Any]) -> None:
    loop = "{% for a in range(99999999) %}{% for b in range(99999999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)


@package
def with_an_endless_pattern(folder: Path, names: dict[str, Any]) -> None:
    document = json.loads((folder / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(" * 20_000 + ")" * 20_000}, "content": ""}
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(document))


@package
def with_a_billion_layers(folder: Path, names: dict[str, Any]) -> None:
    _edit(folder / "config.json", num_hidden_layers=10**9)


@package
def with_a_fused_model_of_nothing(folder: Path, names: dict[str, Any]) -> None:
    hostile = {"model_type": "llama", "auto_map": {"AutoConfig": "own.C"}, "num_hidden_layers": 10**9}
    (folder / "own.py").write_text(_program(names))
    _edit(folder / "config.json", model_type="mol", sources={"base": hostile}, architectures=["MolForCausalLM"])


@package
def with_names_that_climb(folder: Path, names: dict[str, Any]) -> None:
    climb = "../" * 12 + names["secret_file"].lstrip("/")
    _edit(folder / MANIFEST_FILE, fit=False, files={climb: {"sha256": "0" * 64, "bytes": 1}})


@package
def with_words_for_the_terminal(folder: Path, names: dict[str, Any]) -> None:
    _edit(folder / MANIFEST_FILE, fit=False, **{"name": "\x1b]0;owned\x07", "\x1b[2J": 1})


@package
def with_nested_documents(folder: Path, names: dict[str, Any]) -> None:
    for name in ("config.json", "bom.cdx.json", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")


@package
def with_weights_that_are_a_link(folder: Path, names: dict[str, Any]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(names["secret_file"])


@package
def with_a_pipe(folder: Path, names: dict[str, Any]) -> None:
    (folder / "generation_config.json").unlink()
    os.mkfifo(folder / "generation_config.json")


@package
def with_a_manifest_that_is_a_link(folder: Path, names: dict[str, Any]) -> None:
    (folder / "MANIFEST.json").unlink()
    (folder / "MANIFEST.json").symlink_to(names["secret_file"])


@package
def without_a_manifest(folder: Path, names: dict[str, Any]) -> None:
    (folder / MANIFEST_FILE).unlink()
    (folder / "own.py").write_text(_program(names))
