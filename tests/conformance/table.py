"""The table of what is supported, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conformance.checks import Row

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "architectures.md"
SUPPORT = ROOT / "mango" / "architectures" / "support.json"
FAMILIES = ("causal", "masked", "seq2seq", "text", "vision", "multimodal", "audio", "other")
_HEAD = """# Architectures

What Mango can do with each model type of transformers {version}, as `make conformance` found it on tiny random models;
the file is written by that command. `mango architectures` prints the same.

- **host**: the blocks were found; each, run alone with the arguments that it got inside the model, returned the
  same bits; and with every block behind a wrapper the model returned the same bits.
- **guest**: of causal, masked, encoder-decoder and image classification models: fused as the expert of a plain trunk it
  ran, was saved and opened, and decoded with a cache as without where it decodes. Other models are not fused as experts
  so far. Of those it says only that nothing speaks against it: the stream of the blocks has one shape, and no other
  argument of theirs changes when their model runs on zero inputs without its blocks.
- **fused**: fused with a plain model for the same task, as guest and as trunk, every expert ran, and saving and opening
  changed nothing: causal language models with a llama, masked ones with a BERT, encoder-decoder models with a BART,
  image classifiers with a ViT. A trunk is cut into spans of two blocks; where that cannot be and one span of all its
  blocks can, the reason says so. Experts end in the trunk's head (`edges: trunk`) where heads tell other numbers of
  tokens apart than embeddings have rows, as Moshi's does. Models that read images were the trunk of a llama, and an
  image was among their tokens.
- **cached decode**: so fused, decoding with a cache equals decoding without, softly and hard routed.

{summary}

"""


def summary(rows: Sequence[Row]) -> str:
    """Return a table of counts by family."""
    lines = ["| family | types | built | host | guest | fused | cached decode |", "|---|---|---|---|---|---|---|"]
    for family in (*FAMILIES, "all"):
        own = [row for row in rows if family in (row.family, "all")]
        if own:
            counts = [
                sum(getattr(row, name) for row in own) for name in ("built", "host", "guest", "fused", "cached_decode")
            ]
            lines.append(f"| {family} | {len(own)} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def write(rows: Sequence[Row], version: str) -> None:
    """Write the document and the JSON that ships inside the package."""
    parts = [_HEAD.format(version=version, summary=summary(rows))]
    for family in FAMILIES:
        own = [row for row in rows if row.family == family]
        if own:
            parts.append(f"## {family}\n\n| model type | host | guest | fused | cached decode | stacks | reason |\n")
            parts.append("|---|---|---|---|---|---|---|\n")
            parts += [_line(row) for row in own]
            parts.append("\n")
    DOCUMENT.write_text("".join(parts).rstrip() + "\n", "utf-8")
    SUPPORT.write_text(json.dumps(document(rows, version), indent=1, ensure_ascii=False) + "\n", "utf-8")


def merged(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the table that was written last, with these in the places of those of their types."""
    if not SUPPORT.is_file():
        return list(rows)
    old = [Row(**row) for row in json.loads(SUPPORT.read_text("utf-8"))["rows"]]
    by_type = {row.model_type: row for row in (*old, *rows)}
    return [by_type[name] for name in sorted(by_type)]


def document(rows: Sequence[Row], version: str) -> dict[str, Any]:
    """Return what the JSON holds."""
    names = (
        "model_type",
        "family",
        "task",
        "architecture",
        "built",
        "host",
        "guest",
        "fused",
        "cached_decode",
        "reason",
        "whole",
        "stacks",
    )
    return {
        "format_version": 1,
        "transformers": version,
        "rows": [{name: getattr(row, name) for name in names} for row in rows],
    }


def _line(row: Row) -> str:
    stacks = ", ".join(f"{role} x{count}" for role, count in row.stacks.items())
    told = [row.reason or "", f"as trunk in one span alone: {row.whole}" if row.whole else ""]
    reason = "; ".join(filter(None, told)).replace("|", r"\|").replace("<", "&lt;").replace("\n", " ")
    marks = " | ".join("yes" if value else "no" for value in (row.host, row.guest, row.fused, row.cached_decode))
    return f"| `{row.model_type}` | {marks} | {stacks} | {reason} |\n"
