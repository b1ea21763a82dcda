"""Uploading a model folder to the Hub, after every byte of it was checked and nothing in it looks like a secret."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mango.checkpoints.manifest import MANIFEST_NAME, read_manifest, verify
from mango.errors import CheckpointError, UnsafeFileError

_SECRET_NAMES = re.compile(
    r"(^|/)(\.env[^/]*|\.netrc|\.git(/|$)|id_[a-z0-9]+|[^/]*\.(pem|key|p12|pfx)|token|credentials)$"
)
_SECRETS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_TEXT_BYTES = 4 << 20


@dataclass(frozen=True)
class UploadReport:
    """What an upload did, or would do.

    Attributes:
        repo_id: the repository.
        revision: its branch.
        files: files uploaded, by name with their size.
        num_bytes: size of all.
        dry_run: whether nothing was sent.
        url: where the commit is; None for a dry run.
    """

    repo_id: str
    revision: str
    files: dict[str, int]
    num_bytes: int
    dry_run: bool
    url: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values for JSON."""
        return asdict(self)


def upload(
    folder: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    revision: str = "main",
    message: str | None = None,
    dry_run: bool = False,
) -> UploadReport:
    """Upload a model folder in one commit; the repository is made where there is none.

    Args:
        folder: a folder with a manifest; files that are not in it, or differ from it, are refused.
        repo_id: ``owner/name``.
        private: make a new repository private.
        revision: branch; it is made where there is none.
        message: of the commit.
        dry_run: check everything and send nothing.

    Returns:
        What was sent.

    Raises:
        IntegrityError: the folder has no manifest, or is not as the manifest says.
        UnsafeFileError: a file is a pickle, or looks like a secret.
        CheckpointError: the name is no repository's, or the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    folder = Path(folder)
    if "/" not in repo_id:
        raise CheckpointError(f"{repo_id}: is no repository; wanted OWNER/NAME")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo_id}: is no repository ({str(error).splitlines()[0]}); wanted OWNER/NAME"
        ) from error
    verify(folder)
    files = {name: entry["size"] for name, entry in read_manifest(folder).items()}
    files[MANIFEST_NAME] = (folder / MANIFEST_NAME).stat().st_size
    for name in files:
        _refuse_unsafe(folder / name, name)
    report = UploadReport(repo_id, revision, files, sum(files.values()), dry_run, None)
    if dry_run:
        return report
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message or f"Upload {folder.name} with Mango",
            allow_patterns=[re.sub(r"([\[*?])", r"[\1]", name) for name in files],
        )
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:  # a large file's failure is a bare one
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{repo_id}: the Hub did not take the upload ({reason}); check the name, the network and your "
            "token, which must be allowed to write (hf auth login)"
        ) from error
    return UploadReport(repo_id, revision, files, report.num_bytes, False, str(commit.commit_url))


def _refuse_unsafe(path: Path, name: str) -> None:
    if path.suffix in _PICKLES:
        raise UnsafeFileError(f"{path}: is a pickle, which can run code where it is opened; upload safetensors alone")
    if _SECRET_NAMES.search(name):
        raise UnsafeFileError(f"{path}: has the name of a secret; remove it and write the folder again")
    if path.suffix != ".safetensors":
        with path.open("rb") as file:
            content = file.read(_TEXT_BYTES)
        if found := _SECRETS.search(content):
            kind = found[0][:4].decode("ascii", errors="replace")
            raise UnsafeFileError(
                f"{path}: holds what looks like a secret ({kind}...); remove it and write the folder again"
            )
