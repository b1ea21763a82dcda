"""The model card of a merged model: README.md with the front matter that model hubs read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

UNKNOWN = "not declared"

_USAGE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "path/to/this/folder"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```
"""


def merge_card(
    *,
    name: str,
    method: str,
    models: Mapping[str, str],
    base: str | None,
    licences: Mapping[str, str | None],
    document: str,
    num_parameters: int,
    dtype: str,
    tokenizer: str,
) -> str:
    """Return the model card of a merged model.

    Args:
        name: what the model is called.
        method: the merge method, or several joined by commas.
        models: where each model is (a folder or Hub id), by what the document calls it.
        base: which of them is the base, or None.
        licences: what each model's own card declares, by the same names; None where it declares nothing.
        document: the resolved merge document, as YAML.
        num_parameters: elements of the result.
        dtype: element type of its weights.
        tokenizer: where its tokenizer comes from.

    Returns:
        Markdown with YAML front matter; the same merge always gives the same text.
    """
    rows = []
    for key, place in models.items():
        role, licence = "base" if key == base else "merged", licences.get(key) or UNKNOWN
        rows.append(f"| {_cell(key)} | {_cell(place)} | {role} | {_cell(licence)} |")
    fence = "`" * max(3, _longest_run(document, "`") + 1)
    return (
        f"---\n{_front(models, licences)}---\n# {_cell(name)}\n\n"
        f"A merge of {len(models)} models by `{method}`, made with Mango: {num_parameters:,} parameters in {dtype}, "
        f"tokenizer of {_cell(tokenizer)}.\n\n"
        "## Parents\n\n| model | source | role | licence |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n"
        "The licences of all parents apply together; where one is not declared, ask its author before you publish.\n\n"
        f"## Use\n\n{_USAGE}\n"
        "## Made by\n\n`mango merge` of this document gives the same bytes again:\n\n"
        f"{fence}yaml\n{document.rstrip()}\n{fence}\n"
    )


def _front(models: Mapping[str, str], licences: Mapping[str, str | None]) -> str:
    from ruamel.yaml import YAML

    declared = {licences.get(key) for key in models}
    only = declared.pop() if len(declared) == 1 else None
    data: dict[str, Any] = {
        "license": only.lower() if only else "other",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": list(dict.fromkeys(models.values())),
        "base_model_relation": "merge",
        "tags": ["mango", "merge"],
    }
    if not only:
        data["license_name"] = ", ".join(sorted({licences.get(key) or UNKNOWN for key in models}))
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 4096
    stream = io.StringIO()
    writer.dump(data, stream)
    return stream.getvalue()


def _cell(text: str) -> str:
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~$" else c for c in text)
    return " ".join(escaped.split())


def _longest_run(text: str, character: str) -> int:
    longest = run = 0
    for found in text:
        run = run + 1 if found == character else 0
        longest = max(longest, run)
    return longest
