"""What is killed: four stages and a promotion, each with two versions of its outputs that are told apart by hash."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import sqlite3
import sys
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path

from mango.checkpoints import MANIFEST_NAME, sha256_file
from mango.checkpoints.headers import read_header
from mango.merging.journal import read_journal
from tests.pipeline.project import fingerprint, leftovers, make_project

VERSIONS = ("a", "b")
NAME = "chaos"
MODULES = ("stages.extract_blocks", "stages.merge", "stages.train_adapters_and_routers", "stages.evaluate",
           "stages.package", "mango.cli.app", "mango.cli.registry", "mango.tracking", "mango.gates",
           "mango.evaluation", "mango.packaging", "mango.training", "great_expectations", "mlflow", "matplotlib.figure",
           "matplotlib.backends.backend_agg", "pandas", "pyarrow.parquet", "mlflow.store.tracking.sqlalchemy_store",
           "mlflow.store.model_registry.sqlalchemy_store", "alembic.script",
           "transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2")  # fmt: skip
"""What a child would import by itself, at some seconds each time."""


def import_everything() -> None:
    """Import what stages and commands need, once for all children."""
    for name in MODULES:
        importlib.import_module(name)


class Victim(ABC):
    """Something that makes outputs out of inputs.

    Args:
        name: of the stage or command.
    """

    name: str
    outputs: tuple[str, ...]
    folders: tuple[str, ...]

    @abstractmethod
    def choose(self, root: Path, version: str) -> None:
        """Change the inputs so that the next run makes this version."""

    @abstractmethod
    def run(self, root: Path) -> None:
        """Make the outputs, in a child that is going to end."""

    def state(self, root: Path) -> dict[str, str]:
        """Return a hash of each output, ``-`` where there is none; a damaged one is an error.

        Raises:
            MangoError: an output is there and is not whole.
        """
        from mango.checkpoints import recover_folder, verify

        found = {}
        for output in self.outputs:
            if output in self.folders:
                recover_folder(root / output)
                if (root / output).exists():
                    verify(root / output)
            files = fingerprint(root, output) if (root / output).exists() else {}
            text = json.dumps(files, sort_keys=True)
            found[output] = hashlib.sha256(text.encode()).hexdigest()[:16] if files else "-"
        return found

    def left_behind(self, root: Path) -> list[str]:
        """Return what a run that ended by itself should have cleaned away."""
        return leftovers(root)

    def kept(self, root: Path) -> int | None:
        """Return how much a killed run has left for the next one to go on from; None where that is not counted."""
        return None

    def went_on_from(self, said: str) -> int:
        """Return how much a run says it has found already done."""
        return 0


class StageVictim(Victim):
    """A stage of the pipeline.

    Args:
        name: as in dvc.yaml.
        outputs: files and folders.
        folders: those of them with a manifest.
        edits: for each file, the texts of the two versions.
    """

    def __init__(
        self, name: str, outputs: tuple[str, ...], folders: tuple[str, ...], edits: dict[str, tuple[str, str]]
    ) -> None:
        self.name = name
        self.outputs = (*outputs, f"reports/{name}.json")
        self.folders = folders
        self.edits = edits

    def choose(self, root: Path, version: str) -> None:
        """Edit parameters."""
        for name, texts in self.edits.items():
            path = root / name
            wanted = texts[VERSIONS.index(version)]
            other = texts[1 - VERSIONS.index(version)]
            text = path.read_text()
            if wanted not in text or other in text.replace(wanted, ""):
                assert text.count(other) == 1, (name, other)
                path.write_text(text.replace(other, wanted))

    def run(self, root: Path) -> None:
        """Run the stage as a command does."""
        run_stage(root, self.name)


class MergeVictim(StageVictim):
    """The merge stage, which does not start over: what is left and what is found again are counted in tensors."""

    def run(self, root: Path) -> None:
        """Run the stage, with a mark in the journal behind every tensor."""
        from mango.merging import shards

        shards._MARK_SECONDS = 0.0
        super().run(root)

    def kept(self, root: Path) -> int:
        """Return the tensors of finished merges and of the one in progress."""
        return kept_tensors(root / "models" / "merged")

    def went_on_from(self, said: str) -> int:
        """Return the sum of what the stage says of each merge."""
        return sum(map(int, re.findall(r"^merge \w+: (\d+) of \d+ tensors were there already$", said, re.MULTILINE)))


def kept_tensors(out: Path) -> int:
    """Return how many tensors a killed merge into a folder, or into folders of it, has left finished."""
    total = 0
    for note in out.parent.glob(f".{out.name}.mango-new-merge-*.journal"):
        marks, sealed = read_journal(note)
        manifest = out / MANIFEST_NAME
        if sealed is not None and manifest.is_file() and sha256_file(manifest) == sealed:
            return num_tensors(out)  # it had taken its place already
        folder = note.with_name(note.name.removesuffix(".journal"))
        total += sum(max(mark.num_tensors for mark in found) for found in marks.values())
        for inner in folder.iterdir() if folder.is_dir() else ():
            if inner.is_dir() and not inner.name.startswith("."):
                half = kept_tensors(inner)
                total += half or (num_tensors(inner) if (inner / MANIFEST_NAME).is_file() else 0)
            elif inner.name.endswith(".journal") and not (folder / inner.name.split(".")[1]).exists():
                total += kept_tensors(folder / inner.name.split(".")[1])
    return total


def num_tensors(folder: Path) -> int:
    """Return the number of tensors in all weight files below a folder."""
    return sum(len(read_header(path)) for path in folder.rglob("*.safetensors"))


def run_stage(root: Path, name: str) -> None:
    """Run a stage in this process, which it ends."""
    os.chdir(root)
    module = importlib.import_module(f"stages.{name.replace('-', '_')}")
    work = {"extract-blocks": "extract_blocks", "train-adapters-and-routers": "train"}.get(name, name)
    sys.argv = [f"stages.{name}"]
    from stages.run import run_stage as run

    run(name, getattr(module, work), sections=module.SECTIONS, help_text=None)


class Promotion(Victim):
    """A package becomes champion in place of another."""

    name = "promotion"
    outputs = ("champion", "previous", "versions")
    folders = ()

    def choose(self, root: Path, version: str) -> None:
        """Put the version's package into its place; going back to the first one means an older registry."""
        if version == "a":
            restore(root)
        shutil.rmtree(root / "models" / "package")
        shutil.copytree(root / f"package-{version}", root / "models" / "package")

    def run(self, root: Path) -> None:
        """Promote the package as the command does."""
        os.environ.pop("MANGO_TRACKING", None)
        os.chdir(root)
        from mango.cli.app import main

        main(["promote", NAME])

    def state(self, root: Path) -> dict[str, str]:
        """Return who is champion and whether all that is registered is whole."""
        from mango.tracking.manifest import check_files, read_manifest

        database = root / "mlflow.db"
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            aliases = dict(
                connection.execute("SELECT alias, version FROM registered_model_aliases WHERE name = ?", (NAME,))
            )
            versions = connection.execute(
                "SELECT version, source FROM model_versions WHERE name = ? ORDER BY version", (NAME,)
            ).fetchall()
            tags = connection.execute(
                "SELECT version, key, value FROM model_version_tags WHERE name = ? ORDER BY version, key", (NAME,)
            ).fetchall()
        for _, source in versions:
            folder = Path(source.removeprefix("file://"))
            check_files(folder, read_manifest(folder)[0])
        assert aliases.get("champion") in {number for number, _ in versions}, "the champion is not registered"
        text = json.dumps([[str(part).replace(str(root), "") for part in row] for row in (*versions, *tags)])
        return {
            "champion": str(aliases.get("champion")),
            "previous": str(aliases.get("previous")),
            "versions": hashlib.sha256(text.encode()).hexdigest()[:16],
        }

    def left_behind(self, root: Path) -> list[str]:
        """Return folders of packages that are not in their place."""
        packages = root / "mlartifacts" / "packages"
        return [*leftovers(root), *sorted(path.name for path in packages.iterdir() if path.name.startswith("."))]


def restore(root: Path) -> None:
    """Give the registry back as it was when the first package had become champion."""
    for path in root.glob("mlflow.db*"):
        path.unlink()
    shutil.copy(root / "registry" / "mlflow.db", root)
    shutil.rmtree(root / "mlartifacts")
    shutil.copytree(root / "registry" / "mlartifacts", root / "mlartifacts")


VICTIMS: dict[str, Victim] = {
    "extract": StageVictim(
        "extract-blocks",
        ("models/blocks", "data/blocks.parquet", "reports/gates/blocks.json", "reports/gates/blocks.html"),
        ("models/blocks",),
        {"params.yaml": ("extract: {mode: reference}", "extract: {mode: copy}")},
    ),
    "merge": MergeVictim(
        "merge", ("models/merged",), ("models/merged",), {"examples/merge/half.yaml": ("{t: 0.5}", "{t: 0.25}")}
    ),
    "train": StageVictim(
        "train-adapters-and-routers",
        ("models/fused", "models/controls", "reports/gates/corpus.json"),
        ("models/fused", "models/controls"),
        {"params.yaml": ("seed: 0\n", "seed: 1\n")},
    ),
    "package": StageVictim(
        "package",
        ("models/package", "reports/gates/metrics.json"),
        ("models/package",),
        {"params.yaml": ("package: {name: tiny-mango}", "package: {name: other-mango}")},
    ),
    "promotion": Promotion(),
}


def prepare_project(root: Path) -> None:
    """Make a project, in a child."""
    make_project(root)
    path = root / "params.yaml"
    text = path.read_text()
    text = text.replace("steps: 2", "steps: 4").replace(
        "controls: {self_stitch: false}", "controls: {self_stitch: true, continued_trunk: true}"
    )
    path.write_text(text)


def prepare_registry(root: Path) -> None:
    """Keep two packages of which the second is better, promote the first, and keep the registry; in a child."""
    shutil.copytree(root / "models" / "package", root / "package-a")
    shutil.copytree(root / "models" / "package", root / "package-b")
    path = root / "package-b" / "mango.json"
    manifest = json.loads(path.read_text())
    manifest["metric"]["value"] *= 0.5 if manifest["metric"]["mode"] == "min" else 2.0
    path.write_text(json.dumps(manifest, indent=1))
    whole = json.loads((root / "package-b" / "MANIFEST.json").read_text())
    data = path.read_bytes()
    whole["files"]["mango.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (root / "package-b" / "MANIFEST.json").write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")
    os.environ.pop("MANGO_TRACKING", None)
    os.chdir(root)
    from mango.tracking import promote

    result = promote(NAME, Path("models/package"))
    assert result.promoted
    (root / "registry").mkdir()
    shutil.copy(root / "mlflow.db", root / "registry")
    shutil.copytree(root / "mlartifacts", root / "registry" / "mlartifacts")
