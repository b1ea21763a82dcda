"""Merge the tiny experts by every applicable method and measure each merge on the test text, in one table.

``--out docs/results/merge_methods.json`` writes the figures there, and a Markdown table beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from mango import console
from mango.corpus import pack, token_losses
from mango.errors import MangoError
from mango.evaluation import bits_per_byte
from mango.merging import MERGERS, merge
from stages.params import load_params

EXPERTS = ("code", "novels", "manuals", "maths")
PER_MODEL = {"weight": 1.0, "density": 0.5}


def document(method: str, names: tuple[str, ...], scale: float | None) -> dict[str, Any]:
    """Return the document that merges experts by a method with its defaults and, where it takes one, a scale."""
    entry, fields = MERGERS[method], MERGERS.entry(method).params.model_fields
    known = {field.alias or name for name, field in fields.items()}
    own = {key: value for key, value in PER_MODEL.items() if key in known}
    data: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": name} for name in names],
        "parameters": {key: value for key, value in own.items() if key in known},
        "dtype": "float32",
    }
    if entry.base != "none":
        data["base_model"] = names[0] if entry.base == "start" else "base"
    if "t" in known:
        data["parameters"]["t"] = 0.5
    if scale is not None and "lambda" in known:
        data["parameters"]["lambda"] = scale
    return data


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
    parser.add_argument("--scale", type=float, default=0.4, help="lambda of methods that have one")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    params = load_params(Path("params.yaml"))
    tokenizer = AutoTokenizer.from_pretrained(params.models["base"].source)
    texts = pack(params.corpus, "test", tokenizer, max_sequences_per_domain=args.sequences, seed=0)
    rows: list[dict[str, Any]] = []
    for name in ("base", *EXPERTS):
        figures = measure(Path(params.models[name].source), texts, 4)
        rows.append({"system": name, "kind": "model", "reason": None, "figures": figures})
    with tempfile.TemporaryDirectory() as temporary:
        for method in MERGERS.names():
            reasons: list[str] = []
            for names in (EXPERTS, EXPERTS[:2], EXPERTS[:1]):
                try:
                    merge(document(method, names, args.scale), Path(temporary) / method, params.models)
                except MangoError as error:
                    reasons.append(str(error).splitlines()[0])
                    continue
                figures = measure(Path(temporary) / method, texts, 4)
                label = method if names == EXPERTS else f"{method} ({', '.join(names)})"
                rows.append({"system": label, "kind": "merge", "reason": None, "figures": figures})
                break
            else:
                rows.append({"system": method, "kind": "refused", "reason": reasons[0], "figures": None})
            console.note(f"{rows[-1]['system']}: {rows[-1]['reason'] or round(rows[-1]['figures']['mean'], 3)}")
    domains = [*texts, "mean"]
    measured = sorted((row for row in rows if row["figures"]), key=lambda row: row["figures"]["mean"])
    console.result(
        console.table([[r["system"], *(r["figures"][d] for d in domains)] for r in measured], ["system", *domains])
    )
    if args.out:
        command = (
            f"python benchmarks/merge_methods.py --sequences {args.sequences} --scale {args.scale} --out {args.out}"
        )
        args.out.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
        lines = [
            "# The tiny experts merged by every method",
            "",
            f"`{command}`; bits per byte on test text, lower is better.",
        ]
        lines += ["", f"| system | {' | '.join(domains)} |", "|---|" + "---|" * len(domains)]
        for row in measured:
            lines.append(f"| {row['system']} | " + " | ".join(f"{row['figures'][d]:.3f}" for d in domains) + " |")
        refused = [row for row in rows if row["reason"]]
        if refused:
            lines += ["", "Not applicable to these models as they are:", ""]
            lines += [f"- {row['system']}: {row['reason'].replace('|', '/')}" for row in refused]
        args.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
