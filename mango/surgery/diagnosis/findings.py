"""What follows from the figures for a merge: each sentence with the figure that it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mango.surgery.diagnosis.result import SpectrumSummary, Summary

Level = Literal["good", "note", "warning"]

ORTHOGONAL = 0.1
ALIKE = 0.5
OPPOSED = 0.55
CONFLICT = 0.35
AGREEMENT = 0.15
CANCELLED = 0.6
IMBALANCE = 3.0
FAR = 0.5
NEAR = 0.002
LOW_RANK = 0.8
ALIGNED = 0.9
APART = 0.6


@dataclass(frozen=True)
class Finding:
    """One thing that follows.

    Attributes:
        level: ``good`` (nothing to fear), ``note`` or ``warning``.
        title: what was found, in a few words.
        figure: the figure that it rests on, in words.
        value: the same as a number.
        threshold: what it was compared with.
        advice: what to do.
    """

    level: Level
    title: str
    figure: str
    value: float
    threshold: float
    advice: str


def findings_of(
    models: Sequence[str],
    base: str | None,
    whole: Summary,
    blocks: Sequence[Summary],
    spectra: Sequence[SpectrumSummary | None],
    overlap: Sequence[float],
    by_chance: float,
    cka: Sequence[Sequence[float]],
    cka_pairs: Sequence[tuple[str, str]],
) -> Iterator[Finding]:
    """Yield what follows from the figures, what matters most first; see :class:`Diagnosis` for the arguments."""
    pairs = [(models[i], models[j]) for i in range(len(models)) for j in range(i + 1, len(models))]
    if base is None:
        yield from _without_base(pairs, whole)
    else:
        yield from _sizes(models, whole)
        yield from _angles(pairs, whole)
        yield from _signs(len(models), whole)
        yield from _blocks(blocks, whole)
        yield from _spectra(models, pairs, spectra, overlap, by_chance)
    yield from _states(cka, cka_pairs)


def _without_base(pairs: Sequence[tuple[str, str]], whole: Summary) -> Iterator[Finding]:
    for pair, cosine in zip(pairs, whole.cosines, strict=True):
        if cosine is None:
            continue
        names = " and ".join(pair)
        figure = f"cosine of the weights {cosine:.3f}"
        if cosine < ALIKE:
            yield Finding(
                "warning", f"{names} do not come from one model", figure, cosine, ALIKE,
                "Their weights have nothing in common, so no merge of weights will work: use moe or "
                "fusion, or find the "
                "common base and give it with --base.",
            )  # fmt: skip
        else:
            yield Finding(
                "note", f"{names} are related", figure, cosine, ALIKE,
                "Between two related models without a known base, slerp or linear is the choice. "
                "With --base, signs and "
                "directions of what each learned can be compared too.",
            )  # fmt: skip


def _sizes(models: Sequence[str], whole: Summary) -> Iterator[Finding]:
    norms = dict(zip(models, whole.relative_norms, strict=True))
    for model, norm in norms.items():
        if norm == 0.0:
            yield Finding(
                "warning", f"{model} is the base", "its difference is 0", 0.0, 0.0, "Leave it out: it adds nothing."
            )
        elif norm < NEAR:
            yield Finding(
                "note", f"{model} is very near to the base", f"its difference is {norm:.2g} of the base's norm",
                norm, NEAR,
                "In bfloat16 most of so small a difference is lost in rounding: merge with out_dtype: float32.",
            )  # fmt: skip
    far = {model: norm for model, norm in norms.items() if norm > FAR}
    if far:
        most = max(far.values())
        yield Finding(
            "warning", f"Far from the base: {', '.join(far)}", f"differences up to {most:.2g} of the base's norm",
            most, FAR,
            "Check that they were tuned from this base. If they were, sums overshoot: scale them down (lambda below "
            f"{FAR / most:.1f}), use slerp or multislerp, or route instead of merging (moe).",
        )  # fmt: skip
    sizes = [norm for norm in whole.relative_norms if norm > 0]
    if len(sizes) > 1 and (ratio := max(sizes) / min(sizes)) >= IMBALANCE:
        largest = models[whole.relative_norms.index(max(sizes))]
        smallest = models[whole.relative_norms.index(min(sizes))]
        yield Finding(
            "warning", f"{largest} outweighs {smallest}",
            f"its difference is {ratio:.1f} times as large", ratio, IMBALANCE,
            f"With equal weights the merge is mostly {largest}: give it about {1 / ratio:.2f} of "
            f"{smallest}'s weight, or use a "
            "method that chooses by size within each model (ties, della, breadcrumbs).",
        )  # fmt: skip


def _angles(pairs: Sequence[tuple[str, str]], whole: Summary) -> Iterator[Finding]:
    known = [(cosine, pair) for cosine, pair in zip(whole.cosines, pairs, strict=True) if cosine is not None]
    if not known:
        return
    most, (first, second) = max(known, key=lambda entry: abs(entry[0]))
    figure = f"largest cosine of two differences {most:.3f} ({first} and {second})"
    if abs(most) < ORTHOGONAL:
        yield Finding(
            "good", "Differences are nearly orthogonal", figure, most, ORTHOGONAL,
            "What one model learned hardly touches what another did: task_arithmetic with weights near 1 is safe.",
        )  # fmt: skip
    elif most <= -ORTHOGONAL:
        yield Finding(
            "warning", f"{first} and {second} pull in opposite directions", figure, most, -ORTHOGONAL,
            "Their sum undoes what both learned: leave one out, or route between them (moe).",
        )  # fmt: skip
    elif most > ALIKE:
        yield Finding(
            "note", f"{first} and {second} learned much of the same", figure, most, ALIKE,
            "A sum takes it twice: use linear (a mean), task_arithmetic with normalize: true, or karcher.",
        )  # fmt: skip
    else:
        yield Finding(
            "note", "Differences share a part", figure, most, ORTHOGONAL,
            f"Scale sums down: task_arithmetic with lambda about {1 / (1 + most):.1f}, or ties, and "
            "choose on held-out text.",
        )  # fmt: skip


def _signs(count: int, whole: Summary) -> Iterator[Finding]:
    if whole.conflict is None:
        return
    figure = f"signs differ in {whole.conflict:.0%} of the elements that at least two models changed much"
    if whole.conflict > OPPOSED:
        yield Finding(
            "warning", "Signs are in conflict", f"{figure}, by chance in 50%", whole.conflict, OPPOSED,
            "Elect a sign for each element: ties, or dare_ties and della where there are many models.",
        )  # fmt: skip
    elif whole.conflict >= CONFLICT:
        yield Finding(
            "note", "Signs differ about as often as by chance", f"{figure}, by chance in 50%", whole.conflict, CONFLICT,
            "Where two models changed an element much, they seldom agree: with three models or more, "
            "ties (or dare_ties) "
            "keeps one side instead of a sum of both.",
        )  # fmt: skip
    elif whole.conflict <= AGREEMENT:
        yield Finding(
            "good", "Signs agree", figure, whole.conflict, AGREEMENT,
            "There is little to elect: linear or task_arithmetic loses nothing against ties.",
        )  # fmt: skip
    if whole.cancelled is not None and count > 2 and whole.cancelled > CANCELLED:
        yield Finding(
            "note", "Much cancels in the sum", f"{whole.cancelled:.0%} of the size of all differences",
            whole.cancelled, CANCELLED,
            "The more models, the less of each is left: merge fewer of them, or raise lambda.",
        )  # fmt: skip


def _blocks(blocks: Sequence[Summary], whole: Summary) -> Iterator[Finding]:
    conflicts = [(block.conflict, index) for index, block in enumerate(blocks) if block.conflict is not None]
    if len(conflicts) < 3 or whole.conflict is None:
        return
    worst, index = max(conflicts)
    if worst > CONFLICT and worst > 1.25 * whole.conflict:
        yield Finding(
            "note", f"Block {index} is where models disagree most",
            f"signs differ in {worst:.0%} of its elements, {whole.conflict:.0%} over all", worst, 1.25 * whole.conflict,
            f"Give weights as a gradient that is low there, or take block {index} from one model (slices).",
        )  # fmt: skip


def _spectra(
    models: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    spectra: Sequence[SpectrumSummary | None],
    overlap: Sequence[float],
    by_chance: float,
) -> Iterator[Finding]:
    for model, found in zip(models, spectra, strict=True):
        if found is not None and found.top_share >= LOW_RANK:
            count = len(found.curve)
            yield Finding(
                "note", f"{model} is of low rank",
                f"{count} singular values hold {found.top_share:.0%} of its difference", found.top_share, LOW_RANK,
                f"It was probably tuned with an adapter: mango extract-lora --rank {count} gets it "
                "back. tsv and iso_c merge by "
                "singular values.",
            )  # fmt: skip
    if overlap and max(overlap) > max(3 * by_chance, 0.3):
        most = max(overlap)
        first, second = pairs[list(overlap).index(most)]
        yield Finding(
            "note", f"{first} and {second} use the same directions",
            f"{most:.0%} of their leading directions are shared, by chance {by_chance:.0%}",
            most, max(3 * by_chance, 0.3),
            "They compete for the same singular vectors: tsv keeps them apart, iso_c evens them out.",
        )  # fmt: skip


def _states(cka: Sequence[Sequence[float]], pairs: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    if not cka or not pairs:
        return
    lowest, block, place = min((value, i, j) for i, row in enumerate(cka) for j, value in enumerate(row))
    first, second = pairs[place]
    figure = f"lowest CKA {lowest:.2f}, of {first} and {second} after block {block}"
    if lowest < APART:
        yield Finding(
            "warning", "States drift apart", figure, lowest, APART,
            f"From block {block} on the models read the text in different terms: merge the blocks "
            "before it and take the "
            "rest from one model, or fuse or route instead (moe).",
        )  # fmt: skip
    elif lowest > ALIGNED:
        yield Finding(
            "good", "States are alike in every block", figure, lowest, ALIGNED,
            "The models read the text in the same terms, so means of their weights are likely to work.",
        )  # fmt: skip
    else:
        yield Finding(
            "note", "States differ somewhat", figure, lowest, ALIGNED,
            f"Watch the blocks from {block} on: choose their weights on held-out text.",
        )  # fmt: skip
