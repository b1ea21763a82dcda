"""The report's pictures as PNG, for people who read them outside the page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mango.evaluation.report_svg import Point as ChartPoint
from mango.evaluation.report_svg import visible_limit
from mango.evaluation.report_words import KINDS, spaced
from mango.evaluation.schema import Evaluation, System
from mango.evaluation.schema_base import SystemKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACCENT, _GREY, _DARK, _PALE = "#0b5fc2", "#6b7480", "#16191d", "#c9ced5"
_COLOURS: dict[SystemKind, str] = {"fused": _ACCENT, "trunk": _DARK, "oracle": _PALE}
_MARKERS: dict[SystemKind, str] = {
    "fused": "o",
    "trunk": "s",
    "expert": "D",
    "merge": "^",
    "control": "v",
    "ensemble": "h",
    "routing": "p",
    "oracle": "o",
}
_DPI = 150


def draw(evaluation: Evaluation) -> dict[str, bytes]:
    """Draw every picture.

    Args:
        evaluation: A checked evaluation.

    Returns:
        PNG bytes by file name; the same evaluation gives the same bytes with the same matplotlib.
    """
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rc("font", family="DejaVu Sans", size=9)
        mpl.rc("axes", edgecolor=_GREY, axisbelow=True, titlesize=10, titleweight="bold", titlelocation="left")
        mpl.rc("axes.spines", top=False, right=False)
        pictures = {
            "systems.png": _png(_systems(evaluation)),
            "quality_cost.png": _png(_quality_cost(evaluation)),
            "router.png": _png(_router(evaluation)),
        }
        if evaluation.layers:
            pictures["similarity.png"] = _png(_similarity(evaluation))
        if evaluation.training.curve:
            pictures["training.png"] = _png(_training(evaluation))
    return pictures


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colour(system: System) -> str:
    return _COLOURS.get(system.kind, _GREY)


def _bars(
    axes: Axes, systems: list[System], values: list[float | None], errors: list[float | None], title: str
) -> None:
    known = [value for value in values if value is not None]
    limit = visible_limit([ChartPoint("", "fused", 1.0, value) for value in known]) * 1.12 if known else 1.0
    for row, (system, value, error) in enumerate(zip(systems, values, errors, strict=True)):
        if value is None:
            axes.text(0, row, " not measured", va="center", color=_GREY, fontsize=8)
            continue
        length = min(value, limit)
        axes.barh(
            row, length, 0.72, color=_colour(system), xerr=error if value <= limit else None, error_kw={"elinewidth": 1}
        )
        shown = f"{value:.3f}" if value <= limit else f"{value:.3f} →"
        axes.text(
            length * 0.985,
            row,
            shown,
            va="center",
            ha="right",
            fontsize=8,
            color=_DARK if system.kind == "oracle" else "white",
        )
    axes.set(title=title, xlim=(0, limit * 1.04), ylim=(len(systems) - 0.4, -0.6), yticks=range(len(systems)))
    axes.set_yticklabels([system.label for system in systems])
    axes.tick_params(axis="y", length=0)


def _systems(evaluation: Evaluation) -> Figure:
    systems = [system for kind in KINDS for system in evaluation.systems if system.kind == kind]
    figure = _figure(10, 1.1 + 0.27 * len(systems))
    left, right = figure.subplots(1, 2, sharey=True)
    pure, switching = spaced(evaluation.units.pure), spaced(evaluation.units.switching)
    _bars(left, systems, [s.pure_mean for s in systems], [s.pure_se for s in systems], f"Pure domains, {pure}")
    _bars(
        right,
        systems,
        [s.switching for s in systems],
        [s.switching_se for s in systems],
        f"Switching text, {switching}",
    )
    right.tick_params(axis="y", labelleft=False)
    return figure


def _scatter(axes: Axes, points: list[tuple[System, float, float]], title: str, unit: str) -> None:
    limit = visible_limit([ChartPoint("", "fused", cost, loss) for _, cost, loss in points])
    shown = [(system, cost, loss) for system, cost, loss in points if loss <= limit]
    fused = sorted((cost, loss) for system, cost, loss in shown if system.kind == "fused")
    axes.plot([cost for cost, _ in fused], [loss for _, loss in fused], color=_ACCENT, linewidth=1.2, alpha=0.6)
    for system, cost, loss in shown:
        hollow = system.kind == "oracle"
        face, edge = ("white", _GREY) if hollow else (_colour(system), "white")
        axes.scatter(
            cost, loss, s=64, marker=_MARKERS[system.kind], color=face, edgecolors=edge, zorder=3, linewidths=1.2
        )
        named = system.name in ("fused_soft", "fused_hard") or system.kind in ("trunk", "ensemble", "control")
        if named:
            raised, colour = (4, _ACCENT) if system.kind == "fused" else (0, _DARK)
            axes.annotate(
                system.label,
                (cost, loss),
                xytext=(7, raised),
                textcoords="offset points",
                verticalalignment="center",
                fontsize=8,
                color=colour,
            )
    axes.set_xscale("log", base=2)
    low, high = min(cost for _, cost, _ in points), max(cost for _, cost, _ in points)
    axes.set_xlim(low * 0.8, high * 3.4)
    ticks = [tick for tick in (0.5, 1, 2, 3, 4, 6, 8, 12, 16) if low * 0.8 <= tick <= high * 1.3]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(axis="y", color="#e3e6ea")
    hidden = len(points) - len(shown)
    axes.set(title=title, ylabel=unit, xlabel="cost, in experts" + (f"   ({hidden} above the frame)" if hidden else ""))


def _quality_cost(evaluation: Evaluation) -> Figure:
    figure = _figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    on_pure = [(s, s.cost, s.pure_mean) for s in evaluation.systems if s.cost is not None]
    on_switching = [
        (s, s.cost_switching, s.switching)
        for s in evaluation.systems
        if s.switching is not None and s.cost_switching is not None
    ]
    for axes, points, title, unit in (
        (left, on_switching, "Text that switches domain", evaluation.units.switching),
        (right, on_pure, "Pure domains", evaluation.units.pure),
    ):
        if points:
            _scatter(axes, points, title, spaced(unit))
        else:
            axes.set(title=f"{title}: not measured", xticks=[], yticks=[])
    return figure


def _router(evaluation: Evaluation) -> Figure:
    positions = evaluation.routing.positions
    columns = min(len(positions), 3)
    rows = -(-len(positions) // columns)
    widest = max(len(position.experts) for position in positions)
    figure = _figure(1.1 + columns * (0.6 + 0.5 * widest), 0.4 + rows * (1.1 + 0.42 * len(evaluation.domains)))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(positions) :]:
        axes.axis("off")
    for axes, position in zip(grid.flat, positions, strict=False):
        table = [position.by_domain[domain].utilisation for domain in evaluation.domains]
        axes.imshow(table, vmin=0.0, vmax=1.0, cmap="Blues", aspect="auto")
        for y, row in enumerate(table):
            for x, share in enumerate(row):
                axes.text(
                    x, y, f"{share:.2f}", ha="center", va="center", fontsize=7, color="white" if share > 0.6 else _DARK
                )
        axes.set_xticks(range(len(position.experts)), position.experts, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(evaluation.domains)), evaluation.domains)
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
        axes.set_title(f"Position {position.position}")
    figure.suptitle("Mean weight of each expert by domain", fontsize=10, x=0.01, ha="left")
    return figure


def _similarity(evaluation: Evaluation) -> Figure:
    """Return how alike trunk and each expert are at each pair of depths; cuts are ringed."""
    found = evaluation.layers
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    deep = max(len(one.cka) for one in found)
    wide = max(len(one.cka[0]) for one in found)
    figure = _figure(1.0 + columns * (0.7 + 0.42 * wide), 0.6 + rows * (1.0 + 0.36 * deep))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(found) :]:
        axes.axis("off")
    for axes, one in zip(grid.flat, found, strict=False):
        axes.imshow(one.cka, vmin=0.0, vmax=1.0, cmap="Blues", aspect="auto")
        for y, row in enumerate(one.cka):
            for x, value in enumerate(row):
                colour = "white" if value > 0.6 else _DARK
                axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        axes.scatter([b for _, b in one.taken], [a for a, _ in one.taken], s=420, facecolors="none", edgecolors=_DARK)
        axes.set(title=one.expert, xlabel="depth of the expert", ylabel="depth of the trunk")
        axes.tick_params(length=0, labelsize=8)
        axes.spines[:].set_visible(False)
    figure.suptitle("Centred kernel alignment of states", fontsize=10, x=0.01, ha="left")
    return figure


def _training(evaluation: Evaluation) -> Figure:
    curve = evaluation.training.curve
    steps = [point.step for point in curve]
    figure = _figure(10, 3.4)
    main, balance, entropy, adapter = figure.subplots(1, 4, width_ratios=(2.4, 1, 1, 1))
    main.plot(steps, [point.lm for point in curve], color=_ACCENT, label="training")
    checked = [(point.step, point.validation) for point in curve if point.validation is not None]
    if checked:
        main.plot(
            *zip(*checked, strict=True), color="#c77700", linestyle="--", marker="o", markersize=4, label="validation"
        )
    main.legend(frameon=False)
    main.set(title="Language-model loss, nats per token", xlabel="step")
    for axes, title, values in (
        (balance, "Load balance", [point.balance for point in curve]),
        (entropy, "Router entropy", [point.entropy for point in curve]),
        (adapter, "Adapter distance", [point.adapter for point in curve]),
    ):
        axes.plot(steps, values, color=_ACCENT)
        axes.set(title=title, xlabel="step")
    for axes in (main, balance, entropy, adapter):
        axes.grid(axis="y", color="#e3e6ea")
    return figure
