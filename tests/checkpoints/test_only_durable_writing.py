"""Nothing writes a file by itself: everything goes through the durable writer, but for a list with reasons."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITER = {f"mango/checkpoints/{name}.py" for name in ("durable", "exchange", "sealing", "siblings", "writer")}
WRITES = {
    "write_text", "write_bytes", "to_parquet", "to_csv", "to_json", "to_pickle", "write_table", "savefig", "save_file",
    "save_pretrained", "copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "hardlink_to", "symlink_to",
    "rename", "replace", "tofile", "link", "symlink", "save",
}  # fmt: skip
MODULES = {"copy": "shutil", "move": "shutil", "link": "os", "symlink": "os", "save": "torch"}
"""Names that mean something else elsewhere: they count as functions of these modules alone."""

NEW_FOLDER = "into a new folder of replace_folder, which makes it durable"
TEMPORARY = "a temporary folder, of which nothing is kept"
ALLOWED = {
    "mango/checkpoints/gguf.py:_convert": NEW_FOLDER,
    "mango/checkpoints/gguf_outline.py:_write_small_files": NEW_FOLDER,
    "mango/packaging/build.py:_copy": NEW_FOLDER,
    "mango/packaging/build.py:_link": NEW_FOLDER,
    "mango/training/controls.py:save_ordinary": NEW_FOLDER,
    "mango/training/run.py:_save": NEW_FOLDER,
    "mango/training/trainer.py:_save_checkpoint": NEW_FOLDER,
    "mango/evaluation/plots.py:_png": "a buffer in memory",
    "mango/checkpoints/conversion.py:_write": NEW_FOLDER,
    "mango/checkpoints/conversion.py:convert": NEW_FOLDER,
    "mango/checkpoints/pickles.py:_read": NEW_FOLDER,
    "mango/checkpoints/tokenizer_bytes.py:tokenizer_from_bytes": TEMPORARY,
    "mango/evaluation/speed.py:__post_init__": "a switch of the kernel's, no file",
    "mango/merging/candidates.py:add": "steps of a search: a torn line does not count",
    "mango/merging/measuring.py:run": "what is measured of a model: known by its hash, written when it is whole",
    "mango/merging/journal.py:__init__": "progress of a merge: who reads it checks the hash of what it speaks of",
    "mango/merging/shards.py:__init__": "a merge that can be resumed: what is not whole is not taken, by its journal",
    "mango/security/keys.py:_write_new": "a new key with the mode of a key, durable, never over another",
    "mango/security/launch.py:_stage": "an empty place in the sandbox to mount a file on",
    "mango/security/signing.py:_write": "a signature into a finished folder: durable, by one rename",
    "mango/security/signing.py:verify_folder": TEMPORARY,
    "mango/surgery/lora/extraction.py:_write": NEW_FOLDER,
    "mango/surgery/lora/spill.py:put": TEMPORARY,
    "mango/tracking/package_store.py:store_package": "package store: a signature to a package stored before, by rename",
    "mango/tracking/runs.py:_without_secrets": TEMPORARY,
    "stages/extract_blocks.py:check": "a function of that name, which calls write_file",
    "stages/extract_blocks.py:write_table": "a buffer in memory, for write_file",
    "mango/tracking/package_store.py:_reflink": "package store: made durable before its one rename",
    "mango/tracking/package_store.py:_rename_new": "package store: the one rename",
    "mango/tracking/package_store.py:share_file": "package store: made durable before its one rename",
    "mango/tracking/store.py:_create": "MLflow's database, built beside its place",
    "mango/tracking/store.py:migrate": "a copy of MLflow's database before it is upgraded",
    "stages/package.py:command": TEMPORARY,
}
"""Functions that write otherwise, and why that is no harm."""


def test_only_what_is_listed_writes_without_the_durable_writer() -> None:
    sources = [path for folder in ("mango", "stages") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {place for path in sources for place in writes(path)}
    assert sorted(found - set(ALLOWED)) == [], "use mango.checkpoints.write_file or replace_folder"
    assert sorted(set(ALLOWED) - found) == [], "nothing is written there any more: take it off the list"


def test_every_way_to_write_is_seen(tmp_path: Path) -> None:
    lines = [
        "open(p, 'w')", "p.open('ab')", "open(p, mode='x')", "p.open(mode='r+b')", "os.fdopen(d, 'wb')",
        "p.write_text(t)", "p.write_bytes(b)", "shutil.copyfile(a, b)", "shutil.move(a, b)", "model.save_pretrained(f)",
        "torch.save(x, f)", "frame.to_parquet(f)", "a.rename(b)", "os.replace(a, b)", "Path(a).replace(b)",
    ]  # fmt: skip
    harmless = ["open(p)", "p.open('rb')", "text.replace('a', 'b')", "x.copy()", "model.save(x)", "p.read_text()"]
    for number, line in enumerate([*lines, *harmless]):
        path = tmp_path / "source.py"
        path.write_text(f"def f():\n    {line}\n")
        assert bool(list(writes(path, tmp_path))) is (number < len(lines)), line


def writes(path: Path, root: Path = ROOT) -> Iterator[str]:
    """Yield ``file:function`` for each function that writes a file."""
    name = path.relative_to(root).as_posix()
    if name in WRITER:
        return
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        own = [node for node in ast.walk(function) if isinstance(node, ast.Call) and is_write(node)]
        inner = {
            node
            for below in ast.walk(function)
            if below is not function and isinstance(below, ast.FunctionDef)
            for node in ast.walk(below)
        }
        if any(node not in inner for node in own):
            yield f"{name}:{function.name}"


def is_write(call: ast.Call) -> bool:
    """Tell calls that write to the file system."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(call.func.value, "id", "") if isinstance(call.func, ast.Attribute) else ""
    if called in ("open", "fdopen"):
        if owner == "os" and called == "open":
            return "O_WRONLY" in ast.dump(call) or "O_RDWR" in ast.dump(call)
        given = [word.value for word in call.keywords if word.arg == "mode"] + call.args
        modes = [
            a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str) and len(a.value) < 4
        ]
        return any(set(mode) & set("wax+") and set(mode) <= set("rwabxt+") for mode in modes)
    if called == "replace" and owner != "os":
        return len(call.args) == 1 and not call.keywords  # two arguments: text
    if called in MODULES:
        return owner == MODULES[called]
    return called in WRITES
