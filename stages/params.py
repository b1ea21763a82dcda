"""The schema of params.yaml: the parameter models of the rooms, and what they must agree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from mango.blocks import ExtractParams
from mango.checkpoints import ModelSource
from mango.config import Frozen, Loaded, load
from mango.corpus import CorpusParams
from mango.gates import GateParams
from mango.merging import MergeParams
from mango.packaging import PackageParams

PATH = Path("params.yaml")

CHOICES = {"router": "type", "adapter": "type", "merge": "method"}
"""Sections that hold one namespace for each choice, and the key that chooses."""


class Params(Frozen):
    """All parameters of the pipeline. Each section is the parameter model of the room that uses it."""

    seed: int = Field(0, ge=0, lt=2**32, description="start of every random number")
    models: dict[str, ModelSource] = Field(description="source models by name")
    corpus: CorpusParams = CorpusParams()
    extract: ExtractParams = ExtractParams()
    merge: MergeParams
    gates: GateParams = GateParams()
    package: PackageParams = PackageParams()


def load_params(
    path: Path = PATH, *, environ: Mapping[str, str] | None = None, overrides: Sequence[str] = ()
) -> Params:
    """Load params.yaml with the overrides of the environment and the command line.

    Args:
        path: the file.
        environ: the process's environment by default.
        overrides: ``"router.type=topk"``.

    Returns:
        The parameters.

    Raises:
        ConfigError: one line for each problem, with its file and line.
    """
    return load_with_origins(path, environ=environ, overrides=overrides).value


def load_with_origins(
    path: Path = PATH, *, environ: Mapping[str, str] | None = None, overrides: Sequence[str] = ()
) -> Loaded[Params]:
    """Load params.yaml and keep where each value came from; see `load_params`."""
    return load(Params, path, environ=environ, overrides=overrides)


def effective(params: Params, sections: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of some sections without the namespaces of choices that were not taken.

    Args:
        params: all parameters.
        sections: names of sections.

    Returns:
        Nested plain values: of ``router``, its ``type`` and the section of that type.
    """
    data = params.model_dump(mode="json", by_alias=True, include=set(sections))
    for section, chooser in CHOICES.items():
        values = data.get(section, {})
        for name in [n for n, v in values.items() if isinstance(v, dict) and n != values[chooser]]:
            del values[name]
    return data
