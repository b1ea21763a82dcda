"""Draw what each merge method does to one tensor: ``python benchmarks/method_pictures.py`` writes docs/img/methods.

A tensor of 6 x 10 elements of two or three models, and what the method makes of it, are drawn as coloured cells; below
them stand the values of one row, or where a method works on matrices, their singular values. The base model is zero,
so that what is drawn are changes. Numbers come from the merge itself (`mango.merge`), with fixed inputs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import mango
from mango.merging.methods import fisher, regmean

FOLDER = Path(__file__).parents[1] / "docs" / "img" / "methods"
ROWS, COLUMNS, SHOWN_ROW = 6, 10, 2
CELL, GAP, STRIP, TOP, LEFT = 13, 26, 46, 22, 6
_NAME = "w"


@dataclass(frozen=True)
class Picture:
    """What is drawn of one method.

    Args:
        caption: what a reader should see, in one line.
        models: which of the models are merged, by letter.
        parameters: of the document; a tuple has a value for each model.
        spectrum: show singular values in place of one row.
        direct: a function of the tensors, for methods that need to know more than the tensors.
    """

    caption: str
    models: str = "ABC"
    parameters: dict[str, Any] = field(default_factory=dict)
    spectrum: bool = False
    direct: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None = None


def changes() -> dict[str, torch.Tensor]:
    """Return the changes of three models: many small ones, some large, with signs that agree here and not there."""
    generator = torch.Generator().manual_seed(4)
    small = [torch.randn(ROWS, COLUMNS, generator=generator) * 0.12 for _ in range(3)]
    shared = torch.zeros(ROWS, COLUMNS)
    shared[1:4, 1:4] = 0.6
    left, right, third = torch.zeros_like(shared), torch.zeros_like(shared), torch.zeros_like(shared)
    left[2, 4:8] = 0.8
    right[2, 5:9] = -0.6
    right[4:, 6:9] = 0.5
    third[0, 7:] = 0.7
    third[2, 2] = -0.4
    left[5, 0] = 1.4  # an outlier
    parts = zip("ABC", (shared + left, 0.7 * shared + right, 0.4 * shared + third), small, strict=True)
    return {name: (part + noise).round(decimals=2) for name, part, noise in parts}


def _fisher(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    known = [torch.full_like(tensor, 0.05) for tensor in tensors]
    for i, information in enumerate(known):
        information[:, i * 3 : i * 3 + 4] = 1.0  # each model's text speaks of other columns
    return fisher(tensors, fishers=known, weight=[1.0] * len(tensors))


def _regmean(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    grams = []
    for i in range(len(tensors)):
        inputs = torch.full((COLUMNS,), 0.2, dtype=torch.float64)
        inputs[i * 3 : i * 3 + 4] = 1.0
        grams.append(torch.outer(inputs, inputs) * (0.6 + 0.4 * torch.eye(COLUMNS)))  # inputs that go together
    return regmean(tensors, grams=grams, reduction=0.9)


_ONE = {"weight": 1.0}
PICTURES: dict[str, Picture] = {
    "linear": Picture("The mean: what only one model has is divided by their number.", parameters=_ONE),
    "slerp": Picture("From A to B along the arc: half way, and as long as both.", "AB", {"t": 0.5}),
    "nuslerp": Picture("The same by weights, here 1 to 3: nearer to B.", "AB", {"weight": (1.0, 3.0)}),
    "multislerp": Picture("The mean direction of three, at the mean length: like the mean, but not shorter.",
                          parameters=_ONE),
    "karcher": Picture("The point of the sphere nearest to all three directions."),
    "task_arithmetic": Picture("The sum of all changes: what agrees grows, what disagrees cancels.", parameters=_ONE),
    "ties": Picture("The largest 30% of each; where signs differ, the heavier side stays alone.",
                    parameters={**_ONE, "density": 0.3}),
    "dare_linear": Picture("Half of each at random, doubled: right on average, and noisy.",
                           parameters={**_ONE, "density": 0.5}),
    "dare_ties": Picture("Half of each at random, doubled, and one sign elected.",
                         parameters={**_ONE, "density": 0.5}),
    "della": Picture("Half of each at random, the large ones sooner, and one sign elected.",
                     parameters={**_ONE, "density": 0.5, "epsilon": 0.4}),
    "della_linear": Picture("Half of each at random, the large ones sooner, and summed.",
                            parameters={**_ONE, "density": 0.5, "epsilon": 0.4}),
    "breadcrumbs": Picture("Neither the many small ones nor the outliers (bottom left in A): the middle, summed.",
                           parameters={**_ONE, "density": 0.3, "gamma": 0.05}),
    "breadcrumbs_ties": Picture("The same middle, with one sign elected.",
                                parameters={**_ONE, "density": 0.3, "gamma": 0.05}),
    "sce": Picture("The 30% in which the models differ most, each model weighted by how much it changed there.",
                   parameters={"select_topk": 0.3}),
    "model_stock": Picture("The mean, drawn back towards the base, since the changes point apart."),
    "ram": Picture("What one model alone changed stays whole; the rest is the mean.", parameters={"epsilon": 0.3}),
    "ramplus_tl": Picture("The same, with what one model alone changed made stronger.",
                          parameters={"epsilon": 0.3, "r": 0.5, "alpha": 1.0}),
    "nearswap": Picture("A, moved towards B by no more than 0.2 in any element.", "AB", {"t": 0.2}),
    "arcee_fusion": Picture("A, with B's values only where B matters most.", "AB"),
    "passthrough": Picture("A as it is, or scaled (here by a half).", "A", {"scale": 0.5}),
    "tsv": Picture("Each model's first directions, made orthogonal: none drowns the others.", spectrum=True),
    "iso_c": Picture("The sum with all singular values alike: no direction rules.", spectrum=True),
    "iso_cts": Picture("The same, with directions kept for what single models learned.", spectrum=True),
    "magmax": Picture("In each element the largest change, whoever made it."),
    "emr": Picture("The elected sign, at the largest magnitude that has it: all that each model needs is still in it."),
    "fisher": Picture("Each column from the models whose text speaks of it: here A, B, C, from left to right.",
                      direct=_fisher),
    "regmean": Picture("The layer that answers most like each model to that model's own inputs, here other columns "
                       "each.", direct=_regmean),
    "adamerging": Picture("The sum with one learned coefficient a model, here 0.9, 0.3 and 0.1.",
                          parameters={"coefficient": (0.9, 0.3, 0.1)}),
    "adamerging_pp": Picture("The same after TIES has trimmed and elected.",
                             parameters={"coefficient": (0.9, 0.3, 0.1), "density": 0.3}),
}  # fmt: skip
"""What is drawn, by the name of the method; `tests/merging/test_method_pictures.py` sees that none is missing."""


def merged(method: str, picture: Picture, models: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what a method makes of the tensor."""
    tensors = [models[name] for name in picture.models]
    if picture.direct is not None:
        return picture.direct(tensors)
    entries = []
    for i, name in enumerate(picture.models):
        own = {key: value[i] for key, value in picture.parameters.items() if isinstance(value, tuple)}
        entries.append({"model": name, "parameters": own})
    part = mango.merging.MERGERS[method]
    shared = {key: value for key, value in picture.parameters.items() if not isinstance(value, tuple)}
    document = {"merge_method": method, "models": entries, "parameters": shared}
    if part.base in ("reference", "start"):
        document["base_model"] = "base" if part.base == "reference" else picture.models[0]
    states = {name: {_NAME: tensor} for name, tensor in {**models, "base": torch.zeros(ROWS, COLUMNS)}.items()}
    return mango.merge(document, models=states)[_NAME]


def draw(method: str) -> str:
    """Return the picture of a method as SVG."""
    picture, models = PICTURES[method], changes()
    panels = [(name, models[name]) for name in picture.models]
    panels.append(("merged", merged(method, picture, models)))
    width = LEFT * 2 + len(panels) * COLUMNS * CELL + (len(panels) - 1) * GAP
    height = TOP + ROWS * CELL + 10 + STRIP + 6
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{method}: {picture.caption}">',
        "<style>text{font:12px sans-serif;fill:#808890}.g{stroke:#808890;stroke-opacity:.35;fill:none}"
        ".a{stroke:#808890}.p{fill:#e0663a}.n{fill:#3d84d6}.k{stroke:#808890;stroke-width:1.5;fill:none}</style>",
    ]
    strips = [_strip(tensor, picture.spectrum) for _, tensor in panels]
    largest = max(abs(value) for strip in strips for value in strip)
    for i, ((name, tensor), strip) in enumerate(zip(panels, strips, strict=True)):
        x = LEFT + i * (COLUMNS * CELL + GAP)
        if name == "merged":
            middle = TOP + ROWS * CELL / 2
            parts.append(f'<path class="k" d="M{x - 19} {middle:g}h11m-4 -4l4 4l-4 4"/>')
        parts.append(f'<text x="{x}" y="14">{name}</text>')
        parts += _cells(x, tensor, marked=not picture.spectrum)
        parts += _bars(x, strip, largest, picture.spectrum)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _strip(tensor: torch.Tensor, spectrum: bool) -> list[float]:
    values = torch.linalg.svdvals(tensor.double()) if spectrum else tensor[SHOWN_ROW].double()
    return [round(float(value), 3) for value in values]


def _cells(x: int, tensor: torch.Tensor, *, marked: bool) -> list[str]:
    shades: dict[tuple[str, int], str] = {}
    for row in range(ROWS):
        for column in range(COLUMNS):
            value = float(tensor[row, column])
            strength = min(10, round(abs(value) * 10))  # of 10 steps, full at 1
            if strength:
                at = ("p" if value > 0 else "n", strength)
                cell = f"M{x + column * CELL} {TOP + row * CELL}h{CELL}v{CELL}h-{CELL}z"
                shades[at] = shades.get(at, "") + cell
    parts = [
        f'<path class="{kind}" fill-opacity="{0.1 + 0.09 * strength:.2f}" d="{cells}"/>'
        for (kind, strength), cells in sorted(shades.items())
    ]
    lines = "".join(f"M{x} {TOP + row * CELL}h{COLUMNS * CELL}" for row in range(ROWS + 1))
    lines += "".join(f"M{x + column * CELL} {TOP}v{ROWS * CELL}" for column in range(COLUMNS + 1))
    parts.append(f'<path class="g" d="{lines}"/>')
    if marked:
        parts.append(f'<path class="k" d="M{x} {TOP + SHOWN_ROW * CELL}h{COLUMNS * CELL}v{CELL}h-{COLUMNS * CELL}z"/>')
    return parts


def _bars(x: int, strip: list[float], largest: float, spectrum: bool) -> list[str]:
    top = TOP + ROWS * CELL + 10
    zero = top + STRIP if spectrum else top + STRIP / 2
    scale = (STRIP if spectrum else STRIP / 2) / (largest or 1.0)
    step = COLUMNS * CELL / len(strip)
    parts = [f'<path class="a" d="M{x} {zero:g}h{COLUMNS * CELL}"/>']
    bars = {"p": "", "n": ""}
    for i, value in enumerate(strip):
        size = round(abs(value) * scale, 1)
        if size:
            up = "-" if value > 0 else ""
            back = "" if value > 0 else "-"
            wide = f"{step - 4:.1f}"
            bars["p" if value > 0 else "n"] += f"M{x + i * step + 2:.1f} {zero:g}v{up}{size}h{wide}v{back}{size}z"
    return [*parts, *(f'<path class="{kind}" d="{path}"/>' for kind, path in bars.items() if path)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pictures and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the pictures")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    for method in PICTURES:
        (given.out / f"{method}.svg").write_text(draw(method), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
