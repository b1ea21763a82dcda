"""Registries: decorators, look-ups that miss, and entry points that break."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from mango import registry
from mango.config import Frozen
from mango.errors import ConfigError, MangoError, UnknownNameError
from mango.registry import Registry


class Sharpness(Frozen):
    amount: float = 1.0


@pytest.fixture
def knives() -> Registry[object]:
    knives: Registry[object] = Registry("knives", "knife")
    for name in ("ties", "slerp"):
        knives.register(name, Sharpness)(name.upper())
    return knives


def test_a_part_is_found_with_its_parameter_model(knives: Registry[object]) -> None:
    assert knives["ties"] == "TIES"
    assert knives.entry("ties").params is Sharpness
    assert list(knives) == ["slerp", "ties"]
    assert "ties" in knives
    assert "tise" not in knives


def test_a_miss_says_what_is_near_and_what_is_known(knives: Registry[object]) -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown knife 'tise'; did you mean 'ties'\? Known: slerp, ties$"):
        knives["tise"]
    with pytest.raises(KeyError, match=r"^unknown knife 'fork'\. Known: slerp, ties$") as caught:
        knives["fork"]
    assert isinstance(caught.value, MangoError)


def test_a_name_is_given_once(knives: Registry[object]) -> None:
    with pytest.raises(ConfigError, match="knife 'ties' is registered twice"):
        knives.register("ties", Sharpness)


def test_an_entry_point_is_imported_on_the_first_look_up_that_needs_it(
    knives: Registry[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Point(EntryPoint):
        def load(self) -> object:
            asked.append(self.name)
            return knives.register("cleaver", Sharpness)("CLEAVER")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point("cleaver", "kitchen", group)])
    assert knives["ties"] == "TIES"
    assert asked == []
    assert knives["cleaver"] == "CLEAVER"
    assert asked == ["cleaver"]


def test_an_entry_point_that_does_not_import_is_named(
    knives: Registry[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = EntryPoint("cleaver", "no_such_kitchen:cleaver", "mango.knives")
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    with pytest.raises(ConfigError, match="knife 'cleaver' of a package cannot be imported from 'no_such_kitchen"):
        knives["cleaver"]
