"""Write the model card of every tiny model from its ``provenance.json``: ``python models/cards.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY = Path(__file__).parent / "tiny"
TEXT = {
    "code": "modules of the Python 3.11 standard library (PSF-2.0)",
    "manuals": "pages of LibreOffice's German help (MPL-2.0) and of the German Debian handbook (CC-BY-SA-3.0)",
    "maths": "theorems of Metamath's set.mm (CC0-1.0)",
    "novels": "chapters of Jane Austen's novels (public domain)",
}
"""What each domain of the corpus is, with its licence."""
LANGUAGES = {"code": "en", "manuals": "de", "maths": "en", "novels": "en"}


def card(name: str, config: dict[str, Any], provenance: dict[str, Any]) -> str:
    """Return the card of a model.

    Args:
        name: name of its folder.
        config: its ``config.json``.
        provenance: its ``provenance.json``.
    """
    domains = provenance["domains"]
    if provenance["parent"]:
        origin = f"Branched from [`{provenance['parent']}`](../{provenance['parent']}) and trained on"
    else:
        origin = "Trained from scratch on"
    if config["model_type"] == "gpt2":
        shape = f"{config['n_layer']} blocks, width {config['n_embd']}, {config['n_head']} heads"
    else:
        shape = (
            f"{config['num_hidden_layers']} blocks, width {config['hidden_size']}, {config['num_attention_heads']} "
            f"heads, {config['num_key_value_heads']} of keys and values"
        )
    languages = sorted({LANGUAGES[domain] for domain in domains})
    recipe = provenance["recipe"]
    scores = provenance["test_bits_per_byte"]
    lines = [
        "---",
        "license: apache-2.0",
        f"language: [{', '.join(languages)}]",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        "",
        f"# {name}",
        "",
        f"A tiny {provenance['architecture']} for Mango's demo and tests: {provenance['parameters']:,} parameters,",
        f"{shape},",
        f"a vocabulary of {config['vocab_size']:,}, bfloat16. It shows how models fuse; it is of no other use.",
        "",
        f"{origin} the train split of [the corpus](../../../data/corpus/README.md):",
        "",
        *[f"- `{domain}`: {TEXT[domain]}" for domain in domains],
        "",
        f"{recipe['steps']} steps of {recipe['batch']} x 512 tokens at a peak learning rate of {recipe['peak_lr']:g},",
        f"seed {provenance['seed']}, on {provenance['device']}, torch {provenance['torch']}.",
        "[provenance.json](provenance.json) has the whole recipe and the hashes of the data.",
        "",
        "| test split | " + " | ".join(sorted(scores)) + " |",
        "|---" * (len(scores) + 1) + "|",
        "| bits per byte | " + " | ".join(f"{scores[domain]:.3f}" for domain in sorted(scores)) + " |",
        "",
        f"On the validation split of what it was trained on: {provenance['validation_bits_per_byte']:.3f}. Measured by",
        "`python models/train_tiny.py`, which makes the model.",
        "",
        "## Licence",
        "",
        "The project releases the weights under Apache-2.0. They were trained on text under the licences that stand",
        "above; the text keeps those, and the model may reproduce parts of it.",
        "",
    ]
    return "\n".join(lines)


def write_cards(root: Path = TINY) -> None:
    """Write ``README.md`` into every model folder of `root`."""
    for path in sorted(root.glob("*/provenance.json")):
        config = json.loads((path.parent / "config.json").read_text())
        text = card(path.parent.name, config, json.loads(path.read_text()))
        (path.parent / "README.md").write_text(text)


if __name__ == "__main__":
    write_cards()
