"""What can be wrong with a merge document that reads as one: everything found is reported at once."""

from __future__ import annotations

from collections.abc import Iterator

from mango.config import Problem, near
from mango.errors import UnknownNameError
from mango.merging.document import Level, MergeDocument, MethodSetting, Module, Slice, TokenSource, key_of
from mango.merging.registry import MERGERS, MergeMethod
from mango.merging.section_checks import section_problems
from mango.merging.settings import HINTS, check_parameters

MODULE_NAMES = ("default", "text_decoder", "vision_tower", "multi_modal_projector", "encoder", "decoder")


def problems(document: MergeDocument) -> Iterator[Problem]:
    """Yield everything that contradicts itself in a document."""
    yield from _structure(document)
    yield from _tokenizer(document)
    unknown = list(_unknown_methods(document))
    yield from unknown
    if not unknown:
        for level in document.levels():
            yield from _parameters(level)
        for path, group in document.groups():
            yield from _group(document, path, group)
        yield from section_problems(document)


def _structure(document: MergeDocument) -> Iterator[Problem]:
    given = [key for key in ("models", "slices", "modules") if getattr(document, key) is not None]
    if not given:
        yield Problem("models", "is missing: list the models to merge, or give slices")
    for key in given[1:]:
        yield Problem(key, f"stands beside {given[0]}: keep one of them", (given[0],))
    for name, module in (document.modules or {}).items():
        if name not in MODULE_NAMES:
            known = ", ".join(MODULE_NAMES)
            yield Problem(
                f"modules.{name}", f"no module is called so{near(name, MODULE_NAMES) or '.'} Known here: {known}"
            )
        if (module.models is None) == (module.slices is None):
            found = "is empty: list models, or give slices" if module.models is None else "has models and slices"
            yield Problem(f"modules.{name}", found if module.models is None else f"{found}: keep one of them")
    for path, group in document.groups():
        yield from _names_and_ranges(path, group)


def _names_and_ranges(path: str, group: Slice | tuple[object, ...]) -> Iterator[Problem]:
    entries = group.sources if isinstance(group, Slice) else group
    inner = f"{path}.sources" if isinstance(group, Slice) else path
    names = [key_of(entry.model) for entry in entries]  # type: ignore[attr-defined]
    for i, name in enumerate(names):
        if name in names[:i]:
            yield Problem(f"{inner}.{i}.model", f"{name!r} is listed twice: list it once, with the sum of the weights")
    if not isinstance(group, Slice):
        return
    lengths = [source.layer_range[1] - source.layer_range[0] for source in group.sources]
    for i, source in enumerate(group.sources):
        start, end = source.layer_range
        if not 0 <= start < end:
            yield Problem(f"{inner}.{i}.layer_range", f"[{start}, {end}] is no range: wanted 0 <= first < end")
        elif lengths[i] != lengths[0]:
            message = f"[{start}, {end}] has {lengths[i]} blocks; the first source has {lengths[0]}"
            yield Problem(f"{inner}.{i}.layer_range", message)


def _tokenizer(document: MergeDocument) -> Iterator[Problem]:
    known = [key_of(value) for value in document.references()]
    if document.tokenizer is not None and document.tokenizer_source is not None:
        yield Problem("tokenizer_source", "stands beside tokenizer: keep one of them", ("tokenizer",))
    sources = [("tokenizer_source", document.tokenizer_source)]
    if document.tokenizer is not None:
        sources.append(("tokenizer.source", document.tokenizer.source))
    for path, source in sources:
        if source not in (None, "base", "union", *known):
            hint = near(str(source), ("base", "union", *known)) or "."
            yield Problem(path, f"{source!r} is neither base nor union nor a model of this document{hint}")
        if source == "base" and document.base_model is None:
            yield Problem(path, "base: the document has no base_model", ("base_model",))
    for token, policy in (document.tokenizer.tokens or {} if document.tokenizer is not None else {}).items():
        at = f"tokenizer.tokens.{token}"
        chosen = policy.source
        if policy.force and chosen is None:
            yield Problem(at, "force needs a source to take the embedding from")
        if not isinstance(chosen, TokenSource):
            continue
        given = [key for key in ("token", "token_id") if getattr(chosen, key) is not None]
        if chosen.kind == "zero" and (given or chosen.model is not None):
            yield Problem(f"{at}.source", "kind zero takes neither model nor token")
        if chosen.kind == "model_token" and (chosen.model is None or len(given) != 1):
            yield Problem(f"{at}.source", "kind model_token takes a model, and one of token and token_id")


def _unknown_methods(document: MergeDocument) -> Iterator[Problem]:
    settings: list[tuple[str, MethodSetting | None]] = [("merge_method", document.merge_method)]
    for path, part in document.parts():
        if isinstance(part, Module):
            settings.append((f"{path}merge_method", part.merge_method))
        for i, piece in enumerate(part.slices or ()):
            settings.append((f"{path}slices.{i}.merge_method", piece.merge_method))
    for path, setting in settings:
        if isinstance(setting, str):
            yield from _unknown(path, setting)
        for i, entry in enumerate(setting if isinstance(setting, tuple) else ()):
            yield from _unknown(f"{path}.{i}.value", entry.value)
            if entry.filter in (None, "*") and i + 1 < len(setting or ()):
                message = "an entry without filter takes every tensor: put it last, or give it a filter"
                yield Problem(f"{path}.{i}", message)
        if path != "merge_method" or not isinstance(setting, tuple):
            continue
        if not setting or setting[-1].filter not in (None, "*"):
            yield Problem(path, "no method for the other tensors: end with an entry that has no filter")


def _unknown(path: str, name: str) -> Iterator[Problem]:
    try:
        MERGERS.entry(name)
    except UnknownNameError as error:
        yield Problem(path, str(error))


def _parameters(level: Level) -> Iterator[Problem]:
    schemas = [MERGERS.entry(name).params for name in level.methods]
    methods = [MERGERS[name] for name in level.methods]
    ignored = HINTS.union(*(method.without_effect for method in methods))
    yield from check_parameters(level.parameters, schemas, level.path, ignored)
    if level.model is None:
        return
    for name in level.parameters:
        fields = [_field(schema, name) for schema in schemas]
        owners = [method for method, field in zip(methods, fields, strict=True) if field is not None]
        if name in ignored or (
            owners and not any(f in m.per_model for m, f in zip(methods, fields, strict=True) if f is not None)
        ):
            message = "is the same for all models: move it to the document's parameters"
            yield Problem(f"{level.path}.{name}", message)


def _field(schema: type, name: str) -> str | None:
    fields = schema.model_fields.items()  # type: ignore[attr-defined]
    return next((field for field, described in fields if name == (described.alias or field)), None)


def _group(document: MergeDocument, path: str, group: Slice | tuple[object, ...]) -> Iterator[Problem]:
    whole = not isinstance(group, Slice)
    module = next((part for at, part in document.parts() if path.startswith(at)), document)
    here = (module.merge_method,) if isinstance(module, Module) else ()
    own = () if whole else (group.merge_method,)  # type: ignore[union-attr]
    base = document.base_model if whole or group.base_model is None else group.base_model  # type: ignore[union-attr]
    key = None if base is None else key_of(base)
    entries = group if whole else group.sources  # type: ignore[union-attr]
    names = [key_of(entry.model) for entry in entries]  # type: ignore[union-attr]
    for name in document.method_names(*own, *here):
        yield from _fits(name, MERGERS[name], path if whole else f"{path}.sources", key, names, whole)


def _fits(
    name: str, method: MergeMethod, path: str, base: str | None, names: list[str], whole: bool
) -> Iterator[Problem]:
    """Find out whether a method can run on these models; a base that whole models do not list is added to them."""
    if method.base in ("reference", "start") and base is None:
        yield Problem("base_model", f"is missing: {name} needs one")
        return
    others = [other for other in names if other != base]
    if not whole and base is not None and method.base != "none" and len(others) == len(names):
        yield Problem(path, f"lacks the base model {base!r}: add it with its layer_range")
    counted = others if method.base in ("reference", "optional") else list(dict.fromkeys([*names, base or names[0]]))
    if not whole and method.base == "none":
        counted = names
    if method.base == "reference" and not others:
        yield Problem(path, "has no model besides the base: add one", ("base_model",))
    elif method.num_models is not None and len(counted) != method.num_models:
        listed = "" if len(counted) == len(names) else " with the base model"
        yield Problem(path, f"has {len(counted)}{listed}; {name} takes {method.num_models}")
    elif len(counted) < method.min_models:
        yield Problem(path, f"has {len(counted)}; {name} takes at least {method.min_models}")
