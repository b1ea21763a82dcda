"""The report's section on what the fused model still sees."""

from __future__ import annotations

from mango.evaluation.schema_pictures import Pictures
from mango.pages import scrolling

_LABELS = {"trunk": "Trunk alone", "fused_soft": "Fused, soft", "fused_hard": "Fused, hard top-1"}


def pictures_section(found: Pictures | None) -> str:
    """Return the section; empty where no pairs of image and text were given.

    Args:
        found: what was measured.
    """
    if found is None:
        return ""
    body = "".join(
        f'<tr><th scope="row">{_LABELS[one.system]}</th><td>{one.own_image:.3f} ± {one.own_image_se:.3f}</td>'
        f"<td>{one.other_image:.3f} ± {one.other_image_se:.3f}</td><td>{one.cost:.2f}</td></tr>"
        for one in found.systems
    )
    table = (
        '<table><caption>Texts given images</caption><thead><tr><td></td><th scope="col">own image</th>'
        f'<th scope="col">another image</th><th scope="col">cost</th></tr></thead><tbody>{body}</tbody></table>'
    )
    return (
        "<section><h2>What it says of images</h2>"
        f'<p class="muted">Bits per byte of the texts of {found.pairs} pairs ({found.text_bytes} bytes), given the '
        "image that a text is of, and given another pair's.</p>"
        f"{scrolling(table, 'Texts given images')}</section>"
    )
