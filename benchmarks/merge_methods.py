"""Merge the tiny experts by every document of examples/merge/every and measure each on the test text, in one table.

The same documents put the same table into the report: ``dvc exp run -S 'merge.documents=[examples/merge/every]'``.
``--out docs/results/merge_methods.json`` writes the figures there, and a Markdown table beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from mango import console
from mango.corpus import pack, token_losses
from mango.evaluation import bits_per_byte
from mango.merging import DOCUMENT_NAME, load_document, merge
from mango.merging.summary import summarise
from stages.params import load_params

EXPERTS = ("code", "novels", "manuals", "maths")
DOCUMENTS = Path("examples/merge/every")


def measure(folder: Path, texts: dict[str, Any], batch_size: int) -> dict[str, float]:
    """Return bits per byte of a model on each domain, and their mean."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train(False)
    found = {
        domain: bits_per_byte(token_losses(model, text.input_ids, batch_size=batch_size), text.num_bytes).value
        for domain, text in texts.items()
    }
    return {**found, "mean": sum(found.values()) / len(found)}


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--merged", type=Path, help="folder of the merges where they are made already: models/merged")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    params = load_params(Path("params.yaml"))
    tokenizer = AutoTokenizer.from_pretrained(params.models["base"].source)
    texts = pack(params.corpus, "test", tokenizer, max_sequences_per_domain=args.sequences, seed=0)
    rows: list[dict[str, Any]] = []
    for name in ("base", *EXPERTS):
        figures = measure(Path(params.models[name].source), texts, 4)
        rows.append({"system": name, "kind": "model", "figures": figures})
    with tempfile.TemporaryDirectory() as temporary:
        for path in sorted(DOCUMENTS.glob("*.yaml")):
            start = time.monotonic()
            out = (args.merged or Path(temporary)) / path.stem
            if not args.merged:
                merge(load_document(path), out, params.models)
            seconds = time.monotonic() - start
            made = summarise(load_document(out / DOCUMENT_NAME))
            rows.append(
                {
                    "system": path.stem,
                    "kind": "merge",
                    "method": made.method,
                    "models": list(made.models),
                    "parameters": made.parameters,
                    "figures": measure(out, texts, 4),
                }
            )
            console.note(f"{path.stem}: {rows[-1]['figures']['mean']:.3f} in {seconds:.1f} s")
    domains = [*texts, "mean"]
    measured = sorted(rows, key=lambda row: row["figures"]["mean"])
    console.result(
        console.table([[r["system"], *(r["figures"][d] for d in domains)] for r in measured], ["system", *domains])
    )
    if args.out:
        command = f"python benchmarks/merge_methods.py --sequences {args.sequences} --out {args.out}"
        args.out.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
        lines = [
            "# The tiny experts merged by every method",
            "",
            f"`{command}`; bits per byte on test text, lower is better.",
        ]
        lines += [
            "",
            f"| system | {' | '.join(domains)} | models and parameters |",
            "|---|" + "---|" * (len(domains) + 1),
        ]
        for row in measured:
            figures = " | ".join(f"{row['figures'][d]:.3f}" for d in domains)
            words = "; ".join(filter(None, (", ".join(row.get("models", ())), row.get("parameters", ""))))
            lines.append(f"| {row['system']} | {figures} | {words} |")
        args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
