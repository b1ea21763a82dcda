"""``mango diagnose``: how models differ, before they are merged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mango.surgery.diagnosis import Diagnosis


def diagnose(
    models: Annotated[list[str], typer.Argument(help="The models: folders, GGUF files or Hub ids[@revision].")],
    base: Annotated[str | None, typer.Option(help="What they were tuned from.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text file to compare the models' states on.")] = None,
    tokens: Annotated[int, typer.Option(min=32, max=4096, help="Most tokens of the text.")] = 512,
    out: Annotated[Path | None, typer.Option(help="Write an HTML page, or JSON if it ends in .json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure how models differ before they are merged, and say what follows."""
    import json

    from mango import console
    from mango.checkpoints import write_file
    from mango.cli.devices import device_of, without_bars
    from mango.config import Settings
    from mango.errors import ConfigError
    from mango.surgery.diagnosis import diagnose as measure
    from mango.surgery.diagnosis import render

    if out is not None and out.suffix not in (".html", ".json"):
        raise ConfigError(f"--out {out}: the page is written to a file that ends in .html, figures to one in .json")
    without_bars()
    settings = Settings.from_environ()
    content = None
    if text is not None:
        try:
            content = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--text {text}: cannot be read as UTF-8 text ({error})") from error
    with console.Meter("diagnose") as meter:
        found = measure(
            models,
            base,
            text=content,
            num_tokens=tokens,
            cache=settings.cache,
            device=device_of(settings.device),
            on_tensor=meter,
        )
    if out is not None:
        page = render(found) if out.suffix == ".html" else json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n"
        write_file(out, page)
    for note in found.notes:
        console.note(f"note: {note}")
    if as_json:
        console.result_json(found.to_dict())
    else:
        console.result(_shown(found))


def _shown(found: Diagnosis) -> str:
    from mango import console

    pairs = [
        [f"{first} and {second}", cosine]
        for (first, second), cosine in zip(found.pairs, found.whole.cosines, strict=True)
    ]
    norms = [[name, norm] for name, norm in zip(found.models, found.whole.relative_norms, strict=True)]
    sections = [console.table(norms, ["model", "norm" if found.base is None else "difference / base"])]
    if pairs:
        sections.append(console.table(pairs, ["pair", "cosine"]))
    for finding in found.findings:
        sections.append(f"{finding.level}: {finding.title}: {finding.figure}\n  {finding.advice}")
    return "\n\n".join(sections)
