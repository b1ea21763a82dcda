"""Tokens that a model does not know, as combinations of those that it knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mango.checkpoints.vocabulary import Vocabulary
from mango.surgery.vocabulary.matching import Matches
from mango.surgery.vocabulary.rows import Combination
from mango.surgery.vocabulary.spelling import Speller
from mango.tensors.pursuit import matching_pursuit

BATCH = 256


def by_spelling(missing: Sequence[int], model: Vocabulary, donor: Vocabulary, *, rows: int) -> dict[int, Combination]:
    """Return each missing token as the mean of the model's tokens that spell it; what nothing spells is left out.

    The mean of n rows is moved towards the mean of all rows until its distance from that is 1 / sqrt(n): a word is
    no more like its parts than that, and with a tied head it would take too much probability from them.

    Args:
        missing: ids of the donor.
        model: the model's vocabulary.
        donor: the donor's.
        rows: rows of the model's table.
    """
    speller = Speller({form: number for form, number in model.by_form().items() if number < rows and form})
    found: dict[int, Combination] = {}
    for number in missing:
        form = donor.forms.get(number) or donor.special.get(number, "").encode()
        if spelt := speller.spell(form):
            count = len(spelt)
            found[number] = Combination(spelt, [count**-1.5] * count, 1.0 - count**-0.5)
    return found


def by_pursuit(
    missing: Sequence[int], matches: Matches, table: Tensor, k: int, *, device: torch.device | str = "cpu"
) -> dict[int, Combination]:
    """Return each missing token as the combination of shared tokens that the donor's own table has for it.

    Args:
        missing: ids of the donor.
        matches: which tokens are shared.
        table: the donor's embeddings (or head), ``[rows, width]``.
        k: most tokens of a combination.
        device: where it is computed.

    Source: Goddard and Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit"
    (2025), section 3.
    """
    shared = [(theirs, ours) for theirs, ours in matches.exact.items() if theirs < len(table)]
    atoms = table[torch.tensor([theirs for theirs, _ in shared])].float().to(device)
    own = torch.tensor([ours for _, ours in shared])
    known = [number for number in missing if number < len(table)]
    found: dict[int, Combination] = {}
    for start in range(0, len(known), BATCH):
        batch = known[start : start + BATCH]
        chosen, weights = matching_pursuit(table[torch.tensor(batch)].float().to(device), atoms, k)
        for number, places, values in zip(batch, own[chosen.cpu()].tolist(), weights.cpu().tolist(), strict=True):
            if any(values):
                found[number] = Combination(places, values)
    return found
