"""What can be wrong with the sections of a document that calibration text is for."""

from __future__ import annotations

from collections.abc import Iterator

from mango.config import Problem, near
from mango.merging.document import MergeDocument, key_of
from mango.merging.registry import MERGERS
from mango.merging.sections import text_problems
from mango.merging.settings import check_parameters


def section_problems(document: MergeDocument) -> Iterator[Problem]:
    """Yield everything that contradicts itself in ``calibration``, ``learn`` and ``search``."""
    methods = dict.fromkeys(name for level in document.levels() for name in level.methods)
    measuring = [name for name in methods if MERGERS[name].statistics is not None]
    learning = [name for name in methods if MERGERS[name].learned is not None]
    if document.calibration is None:
        for name in measuring:
            message = f"{name} measures the models on text: name it, as 'calibration: {{data: FILE}}'"
            yield Problem("merge_method", message, ("calibration",))
        if document.search is not None:
            yield Problem(
                "search", "measures the merged model on text: name it, as 'calibration: {data: FILE}'", ("calibration",)
            )
        if document.learn is not None:
            yield Problem(
                "learn", "has no text to learn from: name it, as 'calibration: {data: FILE}'", ("calibration",)
            )
    else:
        known = [key_of(value) for value in document.references()]
        for problem in text_problems(document.calibration, known):
            yield Problem(f"calibration.{problem.key}", problem.message)
        if not measuring and not learning and document.search is None:
            readers = [name for name in MERGERS.names() if MERGERS[name].statistics or MERGERS[name].learned]
            yield Problem(
                "calibration", f"nothing here reads text: leave it out, or take one of {', '.join(readers)}, or search"
            )
    if document.learn is not None and not learning:
        found = ", ".join(name for name in MERGERS.names() if MERGERS[name].learned)
        yield Problem("learn", f"{', '.join(methods)} learns nothing; {found} do")
    if document.learn is not None and document.search is not None:
        yield Problem("search", "stands beside learn: keep one of them", ("learn",))
    searched = document.search is not None or (bool(learning) and document.calibration is not None)
    if searched and document.models is None:
        what = "search" if document.search is not None else "calibration"
        yield Problem(what, "sets parameters by block, which slices and modules cut anew: list whole models")
    if document.search is not None:
        yield from _search(document, list(methods))


def _search(document: MergeDocument, methods: list[str]) -> Iterator[Problem]:
    assert document.search is not None
    schemas = [MERGERS.entry(name).params for name in methods]
    fields = {field.alias or name: field for schema in schemas for name, field in schema.model_fields.items()}
    numbers = sorted(name for name, field in fields.items() if field.annotation in (float, float | None))
    for name, (low, high) in document.search.parameters.items():
        at = f"search.parameters.{name}"
        if name not in numbers:
            hint = near(name, numbers) or "."
            yield Problem(at, f"is no number that {', '.join(methods)} takes{hint} Known here: {', '.join(numbers)}")
        elif low >= high:
            yield Problem(at, f"[{low}, {high}]: the first bound must be below the second")
        else:
            for problem in check_parameters({name: [low, high]}, schemas, "search.parameters"):
                yield Problem(problem.key, problem.message)
