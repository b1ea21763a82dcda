"""Models whose blocks work on no row of tokens of one width: those of stages, and of feature maps."""

from __future__ import annotations

from mango.architectures import ComponentMap


def why_no_row(parts: ComponentMap) -> str | None:
    """Return why the blocks of an image classifier cannot be cut into spans, or None where they can.

    Args:
        parts: where it keeps its parts.
    """
    main, *others = parts.stacks
    if not main.isotropic:
        return (
            f"its stream has another shape behind the entries of {main.path} than in front of them, as where stages "
            "halve an image and widen its channels; a fused stream has one vector of one width for each token"
        )
    around = [f"{main.root}.{path}".strip(".") for path in (*main.before, *main.between, *main.after)]
    stages = [
        other.path
        for other in others
        if any(path == other.path or other.path.startswith(f"{path}.") or path.startswith(f"{other.path}.")
               for path in around)
    ]  # fmt: skip
    if stages:
        return (
            f"its stream goes through {_few(stages)} beside {main.path}: blocks in stages, whose streams have other "
            "shapes; a fused stream has one vector of one width for each token"
        )
    return None


def _few(paths: list[str]) -> str:
    more = len(paths) - 3
    return f"{', '.join(paths[:3])} and {more} more" if more > 0 else ", ".join(paths)
