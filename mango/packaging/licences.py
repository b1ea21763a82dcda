"""Whether the licences of what a package is made of combine: warnings for people, each with where to read on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mango.packaging.licence_terms import Limit, Terms, terms_of

_LIMITS: dict[Limit, str] = {
    "non-commercial": "forbids commercial use",
    "use": "forbids a list of uses, which whoever passes the model on must repeat",
    "naming": "asks for names, notices or limits of its publisher",
    "other-models": "forbids to improve other language models with it",
    "no-derivatives": "forbids to share what is made of it, and a merged or fused model is",
    "proprietary": "gives no rights",
}


@dataclass(frozen=True)
class Licensed:
    """Something that a package is made of, and the licence that it declares; None where it declares none."""

    what: str
    licence: str | None


def licence_warnings(
    parents: Sequence[Licensed], data: Sequence[Licensed] = (), *, package: str | None = None, name: str = ""
) -> list[str]:
    """Say in which ways licences do not combine, or ask for something that is easily forgotten.

    This is a check against a table (`mango.packaging.licence_terms`) and no legal advice.

    Args:
        parents: the models that the package is made of.
        data: the data sets that it was trained on.
        package: the licence that the package declares; None where it declares none of its own.
        name: the package's name, which some licences have a say in.

    Returns:
        One sentence for each warning; empty where every licence asks for notices at most.
    """
    known: list[tuple[Licensed, Terms]] = []
    found: list[str] = []
    for parent in parents:
        chosen = _chosen(parent.licence)
        known += [(parent, terms) for terms in chosen if terms is not None]
        if not chosen:
            found.append(f"{parent.what}: declares no licence, so nobody may pass it on; ask its author")
        elif None in chosen:
            found.append(f"{parent.what}: nothing is known here of its licence {parent.licence!r}; read it")
    found += _alone(known)
    found += _together(known)
    found += _as_whole(known, package, name)
    found += _of_data(data, package)
    return list(dict.fromkeys(found))


def _chosen(declared: str | None) -> list[Terms | None]:
    """Return the terms that hold, of the alternative that asks for least; none where nothing is declared."""
    if declared is None or not declared.strip():
        return []
    return min(terms_of(declared), key=lambda one: sum(9 if t is None else len(t.limits) + t.is_copyleft for t in one))


def _alone(known: Sequence[tuple[Licensed, Terms]]) -> Iterator[str]:
    for item, terms in known:
        for limit in ("no-derivatives", "proprietary"):
            if limit in terms.limits:
                yield f"{item.what}: {terms.name} {_LIMITS[limit]}; ask its owner ({terms.source})"
        others = sorted({other.what for other, its in known if its.name != terms.name and not _is_llama(its)})
        if "other-models" in terms.limits and others:
            yield f"{item.what}: {terms.name} {_LIMITS['other-models']}: here {', '.join(others)} ({terms.source})"


def _together(known: Sequence[tuple[Licensed, Terms]]) -> Iterator[str]:
    claims = [(item, terms) for item, terms in known if terms.whole is not None]
    pairs = all(not _clash(a, b) for _, a in claims for _, b in claims if a.name != b.name)
    if claims and pairs and not frozenset.intersection(*(terms.whole or frozenset() for _, terms in claims)):
        told = ", ".join(f"{item.what} ({terms.name})" for item, terms in claims)
        yield f"{told} do not combine: no licence suits the whole"
    for i, (first, a) in enumerate(known):
        for second, b in known[i + 1 :]:
            if a.name == b.name:
                continue
            if problem := _clash(a, b) or _clash(b, a):
                yield f"{first.what} ({a.name}) and {second.what} ({b.name}) do not combine: {problem}"


def _clash(a: Terms, b: Terms) -> str | None:
    """Return why a work cannot follow both licences, as far as ``a`` is the one that claims the whole."""
    if a.whole is None:
        return None
    if b.whole is not None:
        return None if a.whole & b.whole else f"each asks for the whole ({a.source}, {b.source})"
    if a.whole <= b.clashes:
        return f"{a.name} allows no further restriction, and {b.name} has some ({a.source})"
    further = sorted(b.limits - a.limits)
    if further:
        return f"{a.name} allows no further restriction, and {b.name} {_LIMITS[further[0]]} ({a.source}, {b.source})"
    return None


def _as_whole(known: Sequence[tuple[Licensed, Terms]], package: str | None, name: str) -> Iterator[str]:
    given = [terms for terms in _chosen(package) if terms is not None]
    mixed = len({terms.name for _, terms in known}) > 1
    for item, terms in known:
        passed_on = terms.limits & {"non-commercial", "use", "naming", "other-models"}
        covered = any(terms.name == own.name for own in given)
        if package is not None and not covered:
            if terms.whole is not None and not any(own.name in terms.whole for own in given):
                yield (
                    f"package.licence {package}: {item.what} asks that the whole be under "
                    f"{' or '.join(sorted(terms.whole))} ({terms.source})"
                )
            missing = sorted(limit for limit in passed_on if not any(limit in own.limits for own in given))
            if missing:
                yield f"package.licence {package}: {item.what} is under {terms.name}, which {_LIMITS[missing[0]]}"
        elif package is None and terms.whole is not None and mixed:
            yield (
                f"{item.what}: {terms.name} asks that the whole be under {' or '.join(sorted(terms.whole))}; set "
                f"package.licence to it ({terms.source})"
            )
        if package is None and passed_on:
            told = " and ".join(_LIMITS[limit] for limit in sorted(passed_on))
            yield f"{item.what}: {terms.name} {told}; the package must pass that on ({terms.source})"
        if _is_llama(terms) and "other-models" not in terms.limits and not name.lower().startswith("llama"):
            yield f"package.name {name}: {item.what} is under {terms.name}: it wants a name that starts with Llama"


def _of_data(data: Sequence[Licensed], package: str | None) -> Iterator[str]:
    unsettled = "whether a model is an adaptation of its training text is not settled"
    for item in data:
        chosen = _chosen(item.licence)
        if not chosen or None in chosen:
            told = "no licence is declared" if not chosen else f"nothing is known here of its licence {item.licence!r}"
            yield f"data {item.what}: {told}; find out whether it may be used to train"
        for terms in chosen:
            if terms is None:
                continue
            if limits := sorted(terms.limits):
                told = " and ".join(_LIMITS[limit] for limit in limits)
                yield f"data {item.what}: {terms.name} {told}; {unsettled} ({terms.source})"
            elif terms.whole is not None and not any(own and own.name in terms.whole for own in _chosen(package)):
                yield f"data {item.what}: {terms.name} is share-alike; {unsettled} ({terms.source})"


def _is_llama(terms: Terms) -> bool:
    return terms.name.startswith("Llama")
