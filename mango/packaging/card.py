"""The model card of a package: README.md with the front matter that model hubs read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mango.auto import AUTO_CLASSES
from mango.evaluation.report_words import KINDS, describe, verdict_of
from mango.evaluation.schema import System, Units
from mango.packaging.manifest import PackageManifest, Parent
from mango.packaging.reproduce import flat

_UNKNOWN = "not declared"

_ROUTERS = {
    "simple": "One decision for each sequence, made while the prompt is read and kept from then on.",
    "token": "Soft weights for each token; every expert runs on every token.",
    "topk": "The best experts for each token; an expert processes the tokens routed to it and, when it is entered, "
    "the last few before that at their true positions. Where tokens see all of a row, the best experts for each row.",
}

_USAGE = """```python
import mango  # lets transformers open the fused architecture
from transformers import {auto}, AutoTokenizer

folder = "path/to/{name}"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder)
{call}
```

`mango.packaging.open_package(folder)` does the same after it has checked every file against `mango.json`.
"""

_CALLS = {
    "causal-lm": """inputs = tokenizer("def main():", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))""",
    "seq2seq-lm": """inputs = tokenizer("def main():", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))""",
    "image-text-to-text": """inputs = tokenizer("def main():", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))  # images: what the trunk's processor makes""",
    "masked-lm": """inputs = tokenizer(f"def {tokenizer.mask_token}():", return_tensors="pt")
print(tokenizer.decode(model(**inputs).logits[0].argmax(-1)))""",
    "sentence-embedding": """inputs = tokenizer(["one text", "another"], return_tensors="pt", padding=True)
print(model(**inputs).pooler_output @ model(**inputs).pooler_output.T)  # cosines""",
}
"""What a model of each task is asked, in the example of its card."""

_TAGS = {
    "masked-lm": "fill-mask",
    "sentence-embedding": "sentence-similarity",
    "seq2seq-lm": "text2text-generation",
    "image-classification": "image-classification",
    "image-text-to-text": "image-text-to-text",
}
"""What model hubs call each task; a causal language model is for text generation."""

_LIMITS = """- The figures above were measured on the test split of this corpus. They say nothing about other text.
- The model repeats what its parents learned, their errors and biases included. It was not tuned to follow
  instructions, and nothing filters what it writes.
- Experts share the trunk's tokenizer. Text that it splits badly is modelled badly.
"""


def model_card(manifest: PackageManifest, *, units: Units, licence: str | None) -> str:
    """Return the model card of a package.

    Args:
        manifest: The package's manifest; its list of files is not read.
        units: What the evaluation's figures are measured in.
        licence: SPDX name of the package's licence; by default what all parents share, else ``other``.

    Returns:
        Markdown with YAML front matter; the same package always gives the same text.
    """
    summary = manifest.evaluation
    systems = list(summary.systems.values())
    sections = [
        _front_matter(manifest, licence),
        f"# {_prose(manifest.name)}\n\n{' '.join(verdict_of(summary.headline, units))}\n",
        f"## Use\n\n{_usage(manifest)}",
        f"## Evaluation\n\n{_evaluation(systems, units)}",
        f"## Router\n\n{_router(manifest.parameters)}",
        f"## Parents\n\n{_parents(manifest.parents)}",
        f"## Licences\n\n{_licences(manifest)}",
        f"## Limitations\n\n{_LIMITS}",
        f"## Provenance\n\n{_provenance(manifest)}",
    ]
    return "\n".join(sections)


def _usage(manifest: PackageManifest) -> str:
    task = _task(manifest)
    return _USAGE.format(name=manifest.name, auto=AUTO_CLASSES[task], call=_CALLS.get(task, "print(model)"))


def _task(manifest: PackageManifest) -> str:
    """Return what the packaged model is for."""
    fusion = manifest.parameters.get("fusion")
    return str(fusion.get("task", "causal-lm")) if isinstance(fusion, dict) else "causal-lm"


def package_licence(parents: Sequence[Parent]) -> str:
    """Return the licence that all parents share in the form of model hubs, or ``other``."""
    licences = {parent.licence for parent in parents}
    only = licences.pop() if len(licences) == 1 else None
    return only.lower() if only else "other"


def _front_matter(manifest: PackageManifest, licence: str | None) -> str:
    from ruamel.yaml import YAML

    data: dict[str, Any] = {
        "license": licence.lower() if licence else package_licence(manifest.parents),
        "library_name": "transformers",
        "pipeline_tag": _TAGS.get(_task(manifest), "text-generation"),
        "base_model": list(dict.fromkeys(parent.source for parent in manifest.parents)),
        "base_model_relation": "merge",
        "tags": ["mango", "model-fusion", "mixture-of-experts", "merge"],
    }
    if data["license"] == "other":
        named = sorted({parent.licence or _UNKNOWN for parent in manifest.parents})
        data["license_name"] = ", ".join(named) or _UNKNOWN
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 4096
    buffer = io.StringIO()
    yaml.dump(data, buffer)
    return f"---\n{buffer.getvalue()}---\n"


def _prose(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too."""
    escaped = "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~$" else c for c in text)
    return " ".join(escaped.split())


def _code(text: str) -> str:
    flat = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{flat}`" if flat else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers_from: int) -> str:
    rule = ["---" if i < numbers_from else "---:" for i in range(len(header))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows)) + "\n"


def _number(value: float | None, digits: int, spread: float | None = None) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _evaluation(systems: Sequence[System], units: Units) -> str:
    domains = list(systems[0].pure) if systems else []
    ordered = [system for kind in KINDS for system in systems if system.kind == kind]
    pure, switching = units.pure.replace("_", " "), units.switching.replace("_", " ")
    header = ["System", "Mean", *map(_prose, domains), "Switching text", "Cost, switching", "Tokens per s"]
    rows = [
        [
            f"**{_prose(system.label)}**" if system.kind == "fused" else _prose(system.label),
            _number(system.pure_mean, 3, system.pure_se),
            *(_number(system.pure[domain], 3) for domain in domains),
            _number(system.switching, 3, system.switching_se),
            _number(system.cost_switching, 2),
            _number(system.tokens_per_s, 0),
        ]
        for system in ordered
    ]
    words = (
        f"Domains and their mean in {_prose(pure)}, switching text in {_prose(switching)}: lower is better. "
        f"Cost: {_prose(units.cost)}. ± is one standard error.\n\n"
    )
    what = "\n".join(f"- {_prose(system.label)}: {_prose(describe(system))}" for system in ordered)
    return f"{words}{_table(header, rows, 1)}\n{what}\n"


def _router(parameters: Mapping[str, Any]) -> str:
    router = parameters.get("router")
    kind = router.get("type") if isinstance(router, Mapping) else None
    if not isinstance(router, Mapping) or not isinstance(kind, str):
        return "The package's parameters name no router.\n"
    own = router.get(kind)
    settings = flat(own) if isinstance(own, Mapping) else {}
    words = _ROUTERS.get(kind, "A router from a package outside Mango.")
    lines = [f"- {_code(key)}: {_code(json.dumps(value, ensure_ascii=False))}" for key, value in settings.items()]
    return "\n".join([f"{_fused(parameters)}Type {_code(kind)}. {words}", "", *lines]).rstrip() + "\n"


def _fused(parameters: Mapping[str, Any]) -> str:
    """Return what is fused, in one sentence, where the parameters say it."""
    fusion = parameters.get("fusion")
    if not isinstance(fusion, Mapping):
        return ""
    experts = []
    for expert in fusion["experts"]:
        cut = expert["cut"] if isinstance(expert["cut"], str) else "by hand"
        experts.append(f"{_code(expert['model'])} (cut {_code(cut)}, edges {_code(expert['edges'])})")
    return f"Trunk {_code(fusion['trunk'])}; experts {', '.join(experts) or 'none'}.\n\n"


def _parents(parents: Sequence[Parent]) -> str:
    rows = [
        [_prose(p.name), _code(p.source), _code(p.revision or ""), _prose(p.licence or _UNKNOWN), _code(p.sha256[:12])]
        for p in parents
    ]
    return _table(["Name", "Source", "Revision", "Licence", "SHA-256"], rows, 5)


def _licences(manifest: PackageManifest) -> str:
    """Return what the check of licences found, and the licences of the text."""
    lines = [
        "The licences of all parents apply together; where one is not declared, ask its author before you publish.",
        "",
    ]
    if manifest.licence_warnings:
        lines += ["A check against a table of common licences, which is no legal advice, warns:", ""]
        lines += [f"- {_prose(warning)}" for warning in manifest.licence_warnings]
    else:
        lines.append("A check against a table of common licences, which is no legal advice, found nothing to warn of.")
    if manifest.data.sources:
        rows = [
            [_prose(s.name), _prose(s.licence or _UNKNOWN), str(s.documents), _code(s.sha256[:12])]
            for s in manifest.data.sources
        ]
        lines += ["", _table(["Text", "Licence", "Documents", "SHA-256"], rows, 2).rstrip()]
    return "\n".join([*lines, "", "Everything that is in here, libraries included: `bom.cdx.json` (CycloneDX)."]) + "\n"


def _provenance(manifest: PackageManifest) -> str:
    dirty = " with uncommitted changes" if manifest.git.dirty else ""
    gates = ", ".join(
        f"{_prose(name)} {'passed' if g.success else 'failed'}" for name, g in sorted(manifest.gates.items())
    )
    lines = [
        f"- Code: {_code(manifest.git.revision or 'not in a git repository')}{dirty}",
        f"- Corpus: SHA-256 {_code(manifest.data.corpus_sha256)}",
        f"- Gates: {gates or 'none'}",
        f"- Competes on: {_code(manifest.metric.name)} = {manifest.metric.value:.6g} ({manifest.metric.mode})",
        f"- Made again with: {_code(manifest.reproduce)}",
        "- All parameters and the SHA-256 of every file: `mango.json`",
    ]
    return "\n".join(lines) + "\n"
