"""Where a registered model may lie: in the artifact store, under the hash of its manifest, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from mango.errors import RegistryError
from mango.redaction import redact_text
from mango.tracking.settings import TrackingSettings

PACKAGES = "packages"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_source(source: str, settings: TrackingSettings) -> None:
    """Check that a registered address lies in the artifact store.

    The registry's database holds these addresses, and who can write there, through MLflow's interface for one, could
    name any file of this machine or any server. So an address is used only when it is one that `promote` makes:
    ``STORE/packages/SHA256``, on a local store without a link on the way.

    Raises:
        RegistryError: it lies elsewhere, or there is a link in it.
    """
    name = source.removeprefix(f"{settings.artifact_uri}/{PACKAGES}/")
    if name == source or not _SHA256.fullmatch(name):
        raise RegistryError(
            f"{redact_text(source)}: lies outside the artifact store {redact_text(settings.artifact_uri)}, so it is "
            "not read; set MANGO_ARTIFACT_ROOT to the store that it was registered in, or register the package again"
        )
    folder = local_folder(source, settings)
    if folder is not None:
        for path in (folder.parent, folder, *(folder.rglob("*") if folder.is_dir() else ())):
            if path.is_symlink():
                raise RegistryError(
                    f"{path}: is a link, and the store holds none; remove it, register the package again"
                )


def local_folder(source: str, settings: TrackingSettings) -> Path | None:
    """Return the folder of a checked address, or None where the store is not on this machine."""
    if settings.local_artifacts is None:
        return None
    return settings.local_artifacts / PACKAGES / source.rpartition("/")[2]
