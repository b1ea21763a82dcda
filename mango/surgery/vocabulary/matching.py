"""Which tokens of a donor's vocabulary a model knows already."""

from __future__ import annotations

from dataclasses import dataclass

from mango.checkpoints.vocabulary import Vocabulary


@dataclass(frozen=True)
class Matches:
    """The donor's tokens, sorted by how the model knows them.

    Attributes:
        exact: id in the model by id in the donor: the same bytes, the same special token, or another of the same role.
        missing: ids of the donor that the model does not know, in order.
        num_special: how many of the exact ones are special tokens.
    """

    exact: dict[int, int]
    missing: tuple[int, ...]
    num_special: int


def match(model: Vocabulary, donor: Vocabulary, *, rows: int) -> Matches:
    """Match the donor's tokens to the model's.

    Args:
        model: the model's vocabulary.
        donor: the donor's.
        rows: rows of the model's embedding; a token beyond them has none, and counts as unknown.
    """
    specials = {text: number for number, text in model.special.items() if number < rows}
    forms = {form: number for form, number in model.by_form().items() if number < rows}
    exact: dict[int, int] = {}
    for number, text in donor.special.items():
        if text in specials:
            exact[number] = specials[text]
        elif text.encode() in forms:
            exact[number] = forms[text.encode()]
    num_special = len(exact)
    for role, number in donor.roles.items():
        if number in donor.special and number not in exact and model.roles.get(role, rows) < rows:
            exact[number] = model.roles[role]
            num_special += 1
    for number, form in donor.forms.items():
        if form in forms:
            exact[number] = forms[form]
    missing = tuple(sorted(number for number in {*donor.forms, *donor.special} if number not in exact))
    return Matches(dict(sorted(exact.items())), missing, num_special)
