"""The bill of materials of a package: every parent model, data set and library, as a CycloneDX document.

Nothing in it comes from the clock or from chance: the same package made in the same environment has the same bill, byte
for byte. Its serial number is derived from what it lists, and it has no time stamp.
"""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mango.errors import PackagingError

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

    from mango.packaging.manifest import DataState, PackageManifest, PackedFile, Parent

RUNTIME = (
    "accelerate",
    "blake3",
    "filelock",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "torch",
    "transformers",
    "typer",
)
"""Libraries that run a package, with all that they need; a test holds it equal to those that Mango requires."""

_LONGEST_LICENCE_NAME = 80
_NAMESPACE = uuid.UUID("0d0ff1ce-6d61-4e67-8f00-6d616e676f01")


def bill_of_materials(manifest: PackageManifest, files: Mapping[str, PackedFile], *, licence: str, version: str) -> str:
    """Return the bill of materials of a package.

    Args:
        manifest: of the package; its list of files is not read.
        files: the model's own files, with their hashes.
        licence: of the package.
        version: of Mango.

    Returns:
        JSON text of CycloneDX 1.6: the package as a model with its files, its parents as models with source, revision,
        licence and hash, the corpus and its sources as data with licence and hash, and the libraries with versions.

    Raises:
        PackagingError: a library that a package needs is not installed.
    """
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    parts = [*map(_parent, manifest.parents), *_data(manifest.data), *_libraries(), _mango(version), _python()]
    root = Component(
        name=manifest.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="package",
        licenses=_licences(licence),
        components=[_file(name, file) for name, file in sorted(files.items())],
    )
    bom = Bom(components=parts)
    bom.metadata.component = root
    bom.register_dependency(root, parts)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    del document["metadata"]["timestamp"], document["serialNumber"]
    name = json.dumps(document, sort_keys=True)
    document["serialNumber"] = uuid.uuid5(_NAMESPACE, name).urn
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _parent(parent: Parent) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=parent.name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{parent.name}",
        version=parent.revision,
        hashes=_hashes(parent.sha256),
        licenses=_licences(parent.licence),
        properties=_properties(source=parent.source, hash_of="blocks, edges and tokenizer"),
    )


def _data(data: DataState) -> Iterator[Component]:
    from cyclonedx.model.component import Component, ComponentType

    for path, digest in sorted(data.files.items()):
        yield Component(name=path, type=ComponentType.DATA, bom_ref=f"data-file:{path}", hashes=_hashes(digest))
    for source in data.sources:
        yield Component(
            name=source.name,
            type=ComponentType.DATA,
            bom_ref=f"data:{source.name}",
            hashes=_hashes(source.sha256),
            licenses=_licences(source.licence),
            properties=_properties(documents=str(source.documents), hash_of="texts in the order of their ids"),
        )


def _libraries() -> Iterator[Component]:
    """Yield the libraries that run a package, and those that they require here, each once."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL
    from packaging.utils import canonicalize_name

    found: dict[str, metadata.Distribution] = {}
    waiting = [(name, "mango") for name in RUNTIME]
    while waiting:
        name, needed_by = waiting.pop()
        key = str(canonicalize_name(name))
        if key in found:
            continue
        try:
            found[key] = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise PackagingError(f"{name}: is not installed, but {needed_by} needs it; install it") from error
        waiting += [(required, name) for required in _required(found[key])]
    for key, library in sorted(found.items()):
        yield Component(
            name=key,
            type=ComponentType.LIBRARY,
            bom_ref=f"pypi:{key}",
            version=library.version,
            licenses=_licences(_library_licence(library)),
            purl=PackageURL("pypi", name=key, version=library.version),
        )


def _library_licence(library: metadata.Distribution) -> str | None:
    """Return the licence that a library declares; an older field sometimes holds the whole text, which is left out."""
    fields = library.metadata.json
    declared = str(fields.get("license_expression") or fields.get("license") or "")
    return declared if 0 < len(declared) <= _LONGEST_LICENCE_NAME and "\n" not in declared else None


def _required(library: metadata.Distribution) -> Iterator[str]:
    """Yield what a library requires on this machine, without its extras."""
    from packaging.requirements import Requirement

    for line in library.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement.name


def _mango(version: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name="mango-compose",
        type=ComponentType.LIBRARY,
        bom_ref="pypi:mango-compose",
        version=version,
        licenses=_licences("Apache-2.0"),
    )


def _python() -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=platform.python_implementation().lower(),
        type=ComponentType.PLATFORM,
        bom_ref="python",
        version=platform.python_version(),
        licenses=_licences("PSF-2.0"),
    )


def _file(name: str, file: PackedFile) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(name=name, type=ComponentType.FILE, bom_ref=f"file:{name}", hashes=_hashes(file.sha256))


def _hashes(sha256: str) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType

    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)]


def _licences(declared: str | None) -> list[License]:
    """Return a declared licence: by its SPDX name or as an expression where it is one, else by its own name."""
    from cyclonedx.contrib.license.factories import LicenseFactory

    return [LicenseFactory().make_from_string(declared)] if declared else []


def _properties(**values: str) -> list[Any]:
    from cyclonedx.model import Property

    return [Property(name=f"mango:{name}", value=value) for name, value in sorted(values.items())]
