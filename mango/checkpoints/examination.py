"""Everything that can be checked of a model folder, one step after another; every problem is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mango.checkpoints.configurations import BOUNDS, GENERATION_NAME, check_configuration, read_configuration
from mango.checkpoints.documents import read_json
from mango.checkpoints.magic import recognise
from mango.checkpoints.manifest import MANIFEST_NAME, list_files, verify
from mango.checkpoints.names import check_inside
from mango.checkpoints.opening import check_size, check_tensors, open_tokenizer
from mango.checkpoints.reader import Checkpoint
from mango.checkpoints.templates import chat_templates, render_template
from mango.checkpoints.tokenizer_rules import TOKENIZER_CONFIG, check_tokenizer
from mango.checkpoints.values import wrong_values
from mango.checkpoints.vouching import check_hashes
from mango.errors import IntegrityError, MangoError, UnsafeFileError

_DOCUMENTS = {".safetensors": "safetensors", ".json": "json", ".gguf": "gguf"}
_NEVER = {"pickle", "zip", "executable", "script", "tar", "gzip", "bzip2", "xz", "zstd", "7z", "hdf5", "numpy"}
_TEXT = {".txt", ".md", ".jinja", ".yaml", ".yml", ".svg", ".html", ".csv"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: what was checked, such as ``"hashes"``.
        subject: the file or folder.
        problem: what is wrong, or None.
        detail: what was found where nothing is wrong.
    """

    what: str
    subject: str
    problem: str | None
    detail: str = ""


@dataclass
class Examination:
    """What was checked of a folder, in order.

    Attributes:
        folder: the folder.
        kind: what it is: ``"model"``, ``"fused model"``, ``"package"``, ``"block store"`` or ``"output"``.
        checks: every check.
    """

    folder: Path
    kind: str
    checks: list[Check] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Return every problem; each names its file."""
        return [check.problem for check in self.checks if check.problem]

    def attempt(self, what: str, subject: Path | str, look: Callable[[], str]) -> bool:
        """Make a check: ``look`` returns what was found, or raises a MangoError.

        Returns:
            Whether nothing is wrong.
        """
        try:
            self.checks.append(Check(what, str(subject), None, look()))
        except MangoError as error:
            self.checks.append(Check(what, str(subject), str(error)))
            return False
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return {
            "folder": str(self.folder),
            "kind": self.kind,
            "ok": not self.problems,
            "problems": self.problems,
            "checks": [vars(check) for check in self.checks],
        }


def examine_hashes(found: Examination, folder: Path) -> None:
    """Check a folder's files against its manifest, or against that of the folder around it."""

    def look() -> str:
        if (folder / MANIFEST_NAME).is_file():
            verify(folder)
            return f"{len(list_files(folder))} files as {MANIFEST_NAME} says"
        if (folder.absolute().parent / MANIFEST_NAME).is_file():
            check_hashes(folder)
            return f"as {MANIFEST_NAME} of the folder around it says, if it is of that folder"
        return f"no {MANIFEST_NAME}: no output of Mango, so nothing vouches for its bytes"

    found.attempt("hashes", folder, look)


def examine_model(found: Examination, folder: Path) -> None:
    """Check a model folder: its files, headers, index, configuration, tensors, values, tokenizer and templates."""
    found.attempt("files", folder, lambda: _files(folder))
    opened: list[Checkpoint] = []

    def headers() -> str:
        opened.append(Checkpoint.open_unhashed(folder))
        return f"{len(opened[0])} tensors in {len(opened[0].files())} files"

    def configuration() -> str:
        raw = read_configuration(folder)
        if opened:
            check_size(raw, opened[0], str(folder / "config.json"))
        generation = folder / GENERATION_NAME
        if generation.is_file():
            check_configuration(read_json(check_inside(generation, folder), BOUNDS), str(generation))
        return f"{len(raw)} keys of model type {raw.get('model_type')}"

    whole = found.attempt("headers", folder, headers)
    whole = found.attempt("configuration", folder / "config.json", configuration) and whole
    if whole:
        found.attempt("tensors", folder, lambda: f"those that {check_tensors(folder)} wants")
    if opened:
        found.attempt("values", folder, lambda: _values(opened[0]))
    _tokenizer(found, folder)


def _files(folder: Path) -> str:
    """Look at every file's first bytes: one whose name promises data must not be a program or a pickle."""
    left_out = []
    count = 0
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        kind = recognise(check_inside(path, folder))
        promised = _DOCUMENTS.get(path.suffix)
        if (promised or path.suffix in _TEXT) and kind in _NEVER | {"gguf", "safetensors"} and kind != promised:
            raise UnsafeFileError(f"{path}: is of the kind {kind}, whatever its name says; remove it")
        if promised is None and kind in _NEVER:
            left_out.append(f"{path.name} ({kind})")
        count += 1
    note = f"; Mango does not read {', '.join(left_out[:3])}" if left_out else ""
    return f"{count} files of the kinds that their names say{note}"


def _values(checkpoint: Checkpoint) -> str:
    wrong = wrong_values(checkpoint)
    if wrong:
        raise IntegrityError("\n".join(map(str, wrong)))
    return f"all elements of {len(checkpoint)} tensors are finite"


def _tokenizer(found: Examination, folder: Path) -> None:
    checked: list[Path] = []

    def rules() -> str:
        checked.extend(check_tokenizer(folder))
        return f"{len(checked)} files within bounds" if checked else "none in this folder"

    if not found.attempt("tokenizer", folder, rules) or not checked:
        return
    if not found.attempt("tokenizer opens", folder, lambda: f"{len(open_tokenizer(folder))} tokens"):
        return
    for name, (path, template) in chat_templates(folder).items():

        def render(path: Path = path, template: str = template) -> str:
            text = render_template(template, tokens=_special_tokens(folder), where=path)
            return f"renders {len(text)} characters in a limited process"

        found.attempt(f"chat template {name}", path, render)


def _special_tokens(folder: Path) -> dict[str, str]:
    config = folder / TOKENIZER_CONFIG
    given = read_json(config) if config.is_file() else {}
    tokens = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = given.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        tokens[key] = value if isinstance(value, str) else ""
    return tokens
