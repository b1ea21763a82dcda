"""Licences that do not combine are warned of, and those that do are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mango.packaging import DataSource, DataState, Licensed, build_package, licence_warnings, read_manifest
from mango.packaging.licence_terms import _ALIASES, _ALL, _TABLE, terms_of

KNOWN = [terms.name for terms in _ALL]


def warnings(*licences: str | None, **more: Any) -> list[str]:
    names = (f"m{i}" for i in range(len(licences)))
    return licence_warnings([Licensed(name, licence) for name, licence in zip(names, licences, strict=True)], **more)


@pytest.mark.parametrize(
    "licences",
    [
        ("apache-2.0",),
        ("apache-2.0", "MIT", "BSD-3-Clause", "cc-by-4.0", "cc0-1.0"),
        ("MIT OR GPL-3.0", "apache-2.0"),
        ("(MIT AND Apache-2.0)", "mit"),
        ("gpl-3.0", "GPL-3.0-or-later"),
        ("cc-by-sa-4.0",),
    ],
)
def test_what_combines_needs_no_warning(licences: tuple[str, ...]) -> None:
    assert warnings(*licences) == []


@pytest.mark.parametrize(
    ("licences", "said"),
    [
        (("gpl-3.0", "cc-by-nc-4.0"), r"m0 \(GPL-3.0\) and m1 \(CC-BY-NC-4.0\) do not combine: .*commercial use"),
        (("agpl-3.0", "proprietary"), r"m0 \(AGPL-3.0\) and m1 \(proprietary\) do not combine"),
        (("llama3.1", "gpl-3.0"), r"m1 \(GPL-3.0\) and m0 \(Llama 3.1\) do not combine|m0 .* and m1 .* do not combine"),
        (("gemma", "agpl-3.0"), "do not combine"),
        (("cc-by-sa-4.0", "cc-by-nc-sa-4.0"), "do not combine: each asks for the whole"),
        (("cc-by-sa-4.0", "bigscience-openrail-m"), "do not combine"),
        (("gpl-2.0-only", "apache-2.0"), r"GPL-2\.0 allows no further restriction, and Apache-2\.0 has some"),
        (("gpl-2.0-only", "gpl-3.0"), "do not combine"),
        (("gpl-2.0-only", "agpl-3.0"), "do not combine"),
        (("cc-by-nc-4.0", "apache-2.0"), "m0: CC-BY-NC-4.0 forbids commercial use; the package must pass that on"),
        (("cc-by-nd-4.0", "mit"), "m0: CC-BY-ND-4.0 forbids to share what is made of it"),
        (("llama2", "apache-2.0"), "m0: Llama 2 forbids to improve other language models with it: here m1"),
        (("llama3.2", "mit"), r"package\.name .*starts with Llama"),
        (("gemma", "mit"), "m0: Gemma .*; the package must pass that on"),
        (("openrail", "mit"), "m0: OpenRAIL forbids a list of uses"),
        (("gpl-3.0", "mit"), r"m0: GPL-3\.0 asks that the whole be under AGPL-3\.0 or GPL-3\.0; set package\.licence"),
        ((None, "mit"), "m0: declares no licence"),
        (("other", "mit"), "m0: nothing is known here of its licence 'other'"),
        (("my-own-licence AND MIT",), "nothing is known here of its licence 'my-own-licence AND MIT'"),
        (("MIT AND GPL-3.0", "cc-by-nc-4.0"), "do not combine"),
    ],
)
def test_what_does_not_combine_is_said(licences: tuple[str | None, ...], said: str) -> None:
    found = "\n".join(warnings(*licences, name="mango-tiny"))
    assert re.search(said, found), found


@pytest.mark.parametrize(("first", "second"), [("llama3.1", "llama3.2"), ("llama2", "llama3")])
def test_llama_may_improve_llama(first: str, second: str) -> None:
    assert not [w for w in warnings(first, second, name="Llama-x") if "improve other" in w and ": here" in w]


@pytest.mark.parametrize(
    ("package", "licences", "said"),
    [
        ("mit", ("gpl-3.0",), r"package\.licence mit: m0 asks that the whole be under AGPL-3\.0 or GPL-3\.0"),
        ("apache-2.0", ("cc-by-nc-4.0",), r"package\.licence apache-2\.0: m0 .* forbids commercial use"),
        ("apache-2.0", ("gemma",), r"package\.licence apache-2\.0: m0 is under Gemma"),
        ("gpl-3.0", ("cc-by-sa-4.0", "apache-2.0"), None),
        ("agpl-3.0", ("gpl-3.0",), None),
        ("cc-by-nc-4.0", ("cc-by-nc-4.0", "mit"), None),
    ],
)
def test_the_package_s_own_licence_must_suit(package: str, licences: tuple[str, ...], said: str | None) -> None:
    found = warnings(*licences, package=package)
    if said is None:
        assert found == []
    else:
        assert re.search(said, "\n".join(found)), found


def test_data_is_looked_at_too() -> None:
    data = [Licensed(name, name) for name in ("CC-BY-SA-3.0", "cc-by-nc-4.0", "public domain", "odc-by", "stranger")]
    found = licence_warnings([Licensed("m", "apache-2.0")], [*data, Licensed("nothing", None)], package="apache-2.0")
    assert [line.partition(":")[0] for line in found] == [
        "data CC-BY-SA-3.0",
        "data cc-by-nc-4.0",
        "data stranger",
        "data nothing",
    ]
    assert "is share-alike; whether a model is an adaptation of its training text is not settled" in found[0]


@given(st.lists(st.sampled_from([*KNOWN, None, "unheard-of"]), min_size=1, max_size=4), st.randoms())
def test_the_order_of_parents_changes_only_the_order_of_warnings(licences: list[str | None], random: Any) -> None:
    parents = [Licensed(f"m{i}", licence) for i, licence in enumerate(licences)]
    shuffled = random.sample(parents, len(parents))
    conflicts = [
        {frozenset(w.partition(" do not combine")[0].split(" and ")) for w in licence_warnings(order) if "combine" in w}
        for order in (parents, shuffled)
    ]
    assert conflicts[0] == conflicts[1]
    assert len(licence_warnings(parents)) == len(licence_warnings(shuffled))


@pytest.mark.parametrize("name", KNOWN)
def test_each_licence_of_the_table_is_found_and_names_its_text(name: str) -> None:
    ((terms,),) = terms_of(name)
    assert terms is not None
    assert terms.name == name
    assert terms.source.startswith("https://") or terms.name == "proprietary"
    assert terms.whole is None or all(other.lower() in _TABLE for other in terms.whole)
    assert warnings(name, name, package=name, name="Llama") == [
        w for w in warnings(name, name, package=name, name="Llama") if "no-derivatives" in terms.limits or "rights" in w
    ]


def test_aliases_lead_into_the_table() -> None:
    assert [alias for alias, key in _ALIASES.items() if key not in _TABLE] == []


def test_warnings_stand_in_the_manifest_and_on_the_card(fused: Path, facts: dict[str, Any]) -> None:
    facts["parents"][1] = facts["parents"][1].model_copy(update={"licence": "cc-by-nc-4.0"})
    facts["parents"][0] = facts["parents"][0].model_copy(update={"licence": "gpl-3.0"})
    source = DataSource(name="manuals", licence="CC-BY-SA-3.0", documents=2, sha256="2" * 64)
    facts["data"] = DataState(corpus_sha256="c" * 64, files={}, sources=(source,))
    package = build_package(fused, fused.parent / "package", **facts)
    found = read_manifest(package).licence_warnings
    assert any("base (GPL-3.0) and code (CC-BY-NC-4.0) do not combine" in warning for warning in found)
    assert any(warning.startswith("data manuals: CC-BY-SA-3.0 is share-alike") for warning in found)
    card = (package / "README.md").read_text(encoding="utf-8")
    assert "- base (GPL-3.0) and code (CC-BY-NC-4.0) do not combine" in card
    assert "| manuals | CC-BY-SA-3.0 | 2 | `222222222222` |" in card
    facts["parents"] = [parent.model_copy(update={"licence": "mit"}) for parent in facts["parents"]]
    facts["data"] = DataState(corpus_sha256="c" * 64, files={})
    package = build_package(fused, package, **facts)
    assert read_manifest(package).licence_warnings == ()
    assert "found nothing to warn of" in (package / "README.md").read_text(encoding="utf-8")
