"""What licences ask for, as far as it decides whether models can be combined: a table, with where each is written.

It names the licences that model cards and data sets declare most. It is a reading aid and no legal advice: a licence
that is not in it is reported as unknown, never taken as harmless.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Limit = Literal["non-commercial", "no-derivatives", "use", "naming", "other-models", "proprietary"]
"""What a licence forbids or asks for beyond notices, so that the whole must carry it on:

- non-commercial: no commercial use;
- no-derivatives: nothing made of it may be shared, and a merged or fused model is made of it;
- use: a list of forbidden uses, which every further licence must repeat;
- naming: names, notices or size limits of the publisher;
- other-models: neither it nor its output may improve other language models;
- proprietary: no rights are given.
"""


@dataclass(frozen=True)
class Terms:
    """What one licence asks for.

    Args:
        name: SPDX identifier where there is one.
        source: address of its text.
        limits: what it forbids; empty for one that asks for notices at most.
        whole: licences under which a work that contains this one may be released; None where it does not matter.
        clashes: licences of a whole that it cannot be part of.
    """

    name: str
    source: str
    limits: frozenset[Limit] = frozenset()
    whole: frozenset[str] | None = None
    clashes: frozenset[str] = frozenset()

    @property
    def is_copyleft(self) -> bool:
        """Whether the whole must be released under this licence or one of a few that it names."""
        return self.whole is not None


def terms_of(declared: str) -> list[list[Terms | None]]:
    """Return what a declared licence asks for.

    Args:
        declared: an SPDX name or expression, or the name that a model hub uses (``"apache-2.0"``, ``"llama3.1"``).

    Returns:
        Alternatives (``OR``), each with all that hold together (``AND``); None stands for an unknown licence.
    """
    text = declared.strip()
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    alternatives = re.split(r"\s+or\s+", text, flags=re.IGNORECASE)
    return [[_lookup(part) for part in re.split(r"\s+and\s+", one, flags=re.IGNORECASE)] for one in alternatives]


def _lookup(name: str) -> Terms | None:
    base = re.split(r"\s+with\s+", name, flags=re.IGNORECASE)[0]
    key = re.sub(r"[\s_]+", "-", base.strip().lower())
    return _TABLE.get(_ALIASES.get(key, key))


_SPDX = "https://spdx.org/licenses/{}.html"
_CC = "https://creativecommons.org/licenses/{}/legalcode"
_GNU = "https://www.gnu.org/licenses/{}.html"
_GPL3 = frozenset({"GPL-3.0", "AGPL-3.0"})  # section 13 of either lets them be combined
_GPL2_LATER = _GPL3 | {"GPL-2.0"}


def _permissive(*names: str) -> list[Terms]:
    return [Terms(name, _SPDX.format(name)) for name in names]


def _limited(name: str, source: str, *limits: Limit) -> Terms:
    return Terms(name, source, frozenset(limits))


def _copyleft(name: str, source: str, whole: frozenset[str], *limits: Limit) -> Terms:
    return Terms(name, source, frozenset(limits), whole | {name})


_ALL = [
    *_permissive("MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "Unlicense", "CC0-1.0", "BSL-1.0"),
    *_permissive("PSF-2.0", "Python-2.0", "AFL-3.0", "WTFPL", "ECL-2.0", "PostgreSQL", "NCSA", "MS-PL", "Artistic-2.0"),
    *_permissive("PDDL-1.0", "ODC-By-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0"),
    Terms("public domain", "https://creativecommons.org/publicdomain/mark/1.0/"),
    # The FSF holds Apache 2.0's patent clauses to be a further restriction in the sense of GPL 2.
    Terms("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", clashes=frozenset({"GPL-2.0"})),
    *[Terms(f"CC-BY-{v}", _CC.format(f"by/{v}")) for v in ("2.0", "2.5", "3.0", "4.0")],
    _copyleft("GPL-2.0", _GNU.format("old-licenses/gpl-2.0"), frozenset()),
    Terms("GPL-2.0-or-later", _GNU.format("old-licenses/gpl-2.0"), whole=_GPL2_LATER),
    _copyleft("GPL-3.0", _GNU.format("gpl-3.0"), _GPL3),
    _copyleft("AGPL-3.0", _GNU.format("agpl-3.0"), frozenset()),
    _copyleft("LGPL-2.1", _GNU.format("old-licenses/lgpl-2.1"), _GPL2_LATER),
    _copyleft("LGPL-3.0", _GNU.format("lgpl-3.0"), _GPL3),
    _copyleft("MPL-2.0", "https://www.mozilla.org/MPL/2.0/", _GPL2_LATER | {"LGPL-2.1", "LGPL-3.0"}),
    _copyleft("EPL-2.0", "https://www.eclipse.org/legal/epl-2.0/", frozenset()),
    _copyleft(
        "EUPL-1.2",
        "https://eupl.eu/1.2/en/",
        _GPL2_LATER | {"LGPL-2.1", "LGPL-3.0", "MPL-2.0", "EPL-2.0", "CC-BY-SA-3.0"},
    ),
    _copyleft("CC-BY-SA-2.0", _CC.format("by-sa/2.0"), frozenset({"CC-BY-SA-3.0", "CC-BY-SA-4.0"})),
    _copyleft("CC-BY-SA-3.0", _CC.format("by-sa/3.0"), frozenset({"CC-BY-SA-4.0"})),
    # https://creativecommons.org/share-your-work/licensing-considerations/compatible-licenses/: GPL 3 one way
    _copyleft("CC-BY-SA-4.0", _CC.format("by-sa/4.0"), frozenset({"GPL-3.0"})),
    _copyleft("GFDL-1.3", _GNU.format("fdl-1.3"), frozenset()),
    _copyleft("ODbL-1.0", "https://opendatacommons.org/licenses/odbl/1-0/", frozenset()),
    _copyleft("CDLA-Sharing-1.0", "https://cdla.dev/sharing-1-0/", frozenset()),
    *[_limited(f"CC-BY-NC-{v}", _CC.format(f"by-nc/{v}"), "non-commercial") for v in ("2.0", "3.0", "4.0")],
    _copyleft("CC-BY-NC-SA-3.0", _CC.format("by-nc-sa/3.0"), frozenset({"CC-BY-NC-SA-4.0"}), "non-commercial"),
    _copyleft("CC-BY-NC-SA-4.0", _CC.format("by-nc-sa/4.0"), frozenset(), "non-commercial"),
    *[_limited(f"CC-BY-ND-{v}", _CC.format(f"by-nd/{v}"), "no-derivatives") for v in ("3.0", "4.0")],
    *[
        _limited(f"CC-BY-NC-ND-{v}", _CC.format(f"by-nc-nd/{v}"), "non-commercial", "no-derivatives")
        for v in ("3.0", "4.0")
    ],
    _limited("OpenRAIL", "https://www.licenses.ai/ai-licenses", "use"),
    _limited("OpenRAIL++", "https://huggingface.co/stabilityai/stable-diffusion-2/blob/main/LICENSE-MODEL", "use"),
    _limited("BigScience-OpenRAIL-M", "https://bigscience.huggingface.co/blog/bigscience-openrail-m", "use"),
    _limited("BigScience-BLOOM-RAIL-1.0", "https://huggingface.co/spaces/bigscience/license", "use"),
    _limited("CreativeML-OpenRAIL-M", "https://huggingface.co/spaces/CompVis/stable-diffusion-license", "use"),
    _limited(
        "BigCode-OpenRAIL-M", "https://huggingface.co/spaces/bigcode/bigcode-model-license-agreement", "use", "naming"
    ),
    # Section 1.b.v of the agreements of 2 and 3; 3.1 dropped it and asks for "Llama" in the name instead.
    _limited("Llama 2", "https://ai.meta.com/llama/license/", "use", "naming", "other-models"),
    _limited("Llama 3", "https://www.llama.com/llama3/license/", "use", "naming", "other-models"),
    *[
        _limited(f"Llama {v}", f"https://www.llama.com/llama{v.replace('.', '_')}/license/", "use", "naming")
        for v in ("3.1", "3.2", "3.3", "4")
    ],
    _limited("Gemma", "https://ai.google.dev/gemma/terms", "use", "naming"),
    _limited("Qwen", "https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE", "naming"),
    _limited("Qwen-Research", "https://huggingface.co/Qwen/Qwen2.5-3B/blob/main/LICENSE", "non-commercial", "naming"),
    _limited("DeepSeek", "https://github.com/deepseek-ai/DeepSeek-V3/blob/main/LICENSE-MODEL", "use"),
    _limited("Mistral-Research", "https://mistral.ai/static/licenses/MRL-0.1.md", "non-commercial", "naming"),
    _limited("Apple-AMLR", "https://huggingface.co/apple/OpenELM/blob/main/LICENSE", "non-commercial", "naming"),
    _limited("proprietary", "the owner's own text", "proprietary"),
]
_TABLE = {terms.name.lower().replace(" ", "-"): terms for terms in _ALL}

_ALIASES = {
    "apache": "apache-2.0",
    "apache2": "apache-2.0",
    "apache-license-2.0": "apache-2.0",
    "bsd": "bsd-3-clause",
    "cc0": "cc0-1.0",
    "pddl": "pddl-1.0",
    "odc-by": "odc-by-1.0",
    "odbl": "odbl-1.0",
    "mpl": "mpl-2.0",
    "psf": "psf-2.0",
    "gfdl": "gfdl-1.3",
    "cc-by-sa": "cc-by-sa-4.0",
    "cc-by": "cc-by-4.0",
    "cc-by-nc": "cc-by-nc-4.0",
    "cc-by-nc-sa": "cc-by-nc-sa-4.0",
    "cc-by-nc-nd": "cc-by-nc-nd-4.0",
    "cc-by-nd": "cc-by-nd-4.0",
    "pd": "public-domain",
    "gpl": "gpl-3.0",
    "gpl-2.0+": "gpl-2.0-or-later",
    "gpl-2.0-only": "gpl-2.0",
    "gpl-3.0+": "gpl-3.0",
    "gpl-3.0-only": "gpl-3.0",
    "gpl-3.0-or-later": "gpl-3.0",
    "agpl": "agpl-3.0",
    "agpl-3.0-only": "agpl-3.0",
    "agpl-3.0-or-later": "agpl-3.0",
    "lgpl": "lgpl-3.0",
    "lgpl-2.1-only": "lgpl-2.1",
    "lgpl-2.1-or-later": "lgpl-2.1",
    "lgpl-3.0-only": "lgpl-3.0",
    "lgpl-3.0-or-later": "lgpl-3.0",
    "openrail-m": "openrail",
    "bloom-rail-1.0": "bigscience-bloom-rail-1.0",
    "llama2": "llama-2",
    "llama3": "llama-3",
    "llama3.1": "llama-3.1",
    "llama3.2": "llama-3.2",
    "llama3.3": "llama-3.3",
    "llama4": "llama-4",
    "qwen-license": "qwen",
    "tongyi-qianwen": "qwen",
    "qwen-research-license": "qwen-research",
    "deepseek-license": "deepseek",
    "mrl": "mistral-research",
    "apple-amlr": "apple-amlr",
    "apple-ascl": "apple-amlr",
    "commercial": "proprietary",
    "all-rights-reserved": "proprietary",
}
