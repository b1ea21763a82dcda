"""The ``merge`` section of params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, model_validator

from mango.config import Frozen, Problem, near, refuse, section_problems
from mango.config.explain import contradictions, describe
from mango.errors import ConfigError
from mango.merging.document import DTypeWord, MergeDocument
from mango.merging.loading import load_document
from mango.merging.methods import LinearParams, SlerpParams, TaskArithmeticParams, TiesParams
from mango.merging.registry import MERGERS
from mango.merging.sections import CalibrationSection, LearnSection

MAIN = "main"
"""What the merge of the section itself is called, beside those of its documents."""


_KEYS = {"base_model": "base", "merge_method": "method"}
"""What a document calls keys of this section."""


class MergeParams(Frozen):
    """Which merges to make: one said here, and any number in documents of their own.

    A method that another package registers has a section under its name, like the built-in ones.

    Attributes:
        method: name of a registered merge method; its parameters are in the section of that name.
        base: the model that ``ties`` and ``task_arithmetic`` compare with.
        models: the models to merge; ``slerp`` takes two and goes from the first to the second.
        documents: merge documents, or folders of them; each makes ``models/merged/<its file's stem>``.
        calibration: text for methods that measure the models on text, or learn from it; others do not read it.
        learn: how ``adamerging`` and ``adamerging_pp`` learn from it.
        dtype: type of the merged weights, by default that of the base or first model's.
    """

    model_config = ConfigDict(extra="allow")

    method: str = "task_arithmetic"
    base: str = Field("base", min_length=1)
    models: tuple[str, ...] = Field(min_length=1)
    linear: LinearParams = LinearParams()
    slerp: SlerpParams = SlerpParams()
    ties: TiesParams = TiesParams()
    task_arithmetic: TaskArithmeticParams = TaskArithmeticParams()
    documents: tuple[Path, ...] = ()
    calibration: CalibrationSection | None = None
    learn: LearnSection = LearnSection()
    dtype: DTypeWord | None = None

    @model_validator(mode="after")
    def _check(self) -> MergeParams:
        names = MERGERS.names()
        problems = []
        if self.method not in names:
            hint = near(self.method, names) or "."
            problems.append(Problem("method", f"unknown merge method {self.method!r}{hint} Known: {', '.join(names)}"))
        for key, value in (self.model_extra or {}).items():
            problems += _section_problems(key, value, [*names, *type(self).model_fields])
        stems: list[str] = []
        for i, path in enumerate(self.documents):
            if path.is_dir():
                continue
            stem = path.stem
            if stem == MAIN:
                problems.append(
                    Problem(f"documents.{i}", f"is called {MAIN!r}, as the merge of this section: rename it")
                )
            elif stem in stems:
                problems.append(Problem(f"documents.{i}", f"a second document called {stem!r}: rename one of them"))
            stems.append(stem)
        refuse(problems)
        refuse(self._document_problems())
        return self

    def _document_problems(self) -> list[Problem]:
        """Return what is wrong with the document that this section makes, by the keys of the section."""
        try:
            self.to_document()
        except ValidationError as error:
            found = []
            for item in error.errors(include_url=False):
                contradiction = contradictions(item)
                for problem in () if contradiction is None else contradiction.problems:
                    key = _KEYS.get(problem.key, problem.key.removesuffix(".model"))
                    found.append(Problem(key, problem.message + self._advice(key), ("method",)))
                if contradiction is None:
                    found.append(Problem(".".join(map(str, item["loc"])), describe(item, MergeDocument)))
            return found
        return []

    def _advice(self, key: str) -> str:
        """Return what to set where a method takes another number of models."""
        wanted = MERGERS[self.method].num_models
        if key != "models" or wanted is None or wanted >= len(self.models):
            return ""
        return f". Set merge.models to {wanted}, as 'merge.models=[{','.join(self.models[:wanted])}]'"

    def to_document(self) -> MergeDocument:
        """Return the merge that this section describes, as a document."""
        method = MERGERS[self.method]
        section = getattr(self, self.method, None) or {}
        params = MERGERS.entry(self.method).params
        given = section if isinstance(section, params) else params.model_validate(section)
        data: dict[str, Any] = {
            "merge_method": self.method,
            "models": [{"model": name} for name in self.models],
            "parameters": given.model_dump(mode="json", by_alias=True),
            "dtype": self.dtype,
            "name": MAIN,
        }
        if method.base == "reference":
            data["base_model"] = self.base
        elif method.base == "start":
            data["base_model"] = self.models[0]
        if self.calibration is not None and (method.statistics or method.learned):
            own = {name: source for name, source in self.calibration.models.items() if name in self.models}
            data["calibration"] = self.calibration.model_copy(update={"models": own}).model_dump(mode="json")
            if method.learned:
                data["learn"] = self.learn.model_dump(mode="json")
        return MergeDocument.model_validate(data)

    def all_documents(self) -> dict[str, MergeDocument]:
        """Return every merge to make, by the name of its folder: ``main``, then each document's stem.

        Raises:
            ConfigError: a document is missing or wrong, a folder has none, or two have one name.
        """
        found = {MAIN: self.to_document()}
        for path in self.documents:
            files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
            if not files:
                raise ConfigError(f"merge.documents: the folder {path} holds no .yaml file")
            for file in files:
                if file.stem in found:
                    raise ConfigError(f"merge.documents: {file}: a second merge called {file.stem!r}: rename the file")
                found[file.stem] = load_document(file)
        return found


def _section_problems(key: str, value: object, known: list[str]) -> list[Problem]:
    if key not in MERGERS:
        hint = near(key, known) or "."
        return [Problem(key, f"unknown key{hint} Known here: {', '.join(sorted(set(known)))}")]
    return section_problems(MERGERS.entry(key).params, value, key)
