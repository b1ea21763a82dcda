"""One pickled file to one safetensors file: by the sandboxed child, or by torch in this process as weights only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mango import security
from mango.checkpoints.failures import writing
from mango.checkpoints.hashing import Hasher
from mango.checkpoints.headers import read_header
from mango.checkpoints.sealing import remember_hashes, start_writing
from mango.checkpoints.siblings import FILE_MODE
from mango.checkpoints.vouching import remember_digests
from mango.checkpoints.writer import TensorSpec, write_tensors
from mango.errors import CheckpointError, UnsafeFileError

_MOST_SHOWN = 5
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Reading:
    """How a file was read.

    Args:
        format: what it is by its first bytes.
        method: ``inertly`` without running anything, ``by loading`` it in the sandbox, ``as weights only``, or ``as it
            is``.
        report: what the child found in it: names that it would import, what was left out.
        scanners: what each scanner said.
        sandbox: how the child was locked.
    """

    format: str
    method: str
    report: Mapping[str, Any]
    scanners: Mapping[str, Any]
    sandbox: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values for JSON."""
        return {
            "format": self.format,
            "read": self.method,
            "names": _words(self.report.get("names")),
            "left_out": _words(self.report.get("left_out")),
            "scanners": dict(self.scanners),
            "sandbox": dict(self.sandbox),
        }

    def warnings(self) -> Iterator[str]:
        """Yield a line for each thing that a person should know."""
        for scanner, said in sorted(self.scanners.items()):
            if said["status"] != "done":
                yield f"{scanner}: {said['status']}"
            grave = [f"{found['what']} ({found['severity']})" for found in said["findings"]]
            if grave:
                more = f" and {len(grave) - _MOST_SHOWN} more" if len(grave) > _MOST_SHOWN else ""
                yield f"{scanner} warns of {', '.join(grave[:_MOST_SHOWN])}{more}"
        left_out = _words(self.report.get("left_out"))
        if left_out:
            yield f"{len(left_out)} entries are no tensors and were left out (first: {left_out[0]})"


def scan(file: Path) -> dict[str, Any]:
    """Return what picklescan and fickling say of a file; they run in the sandbox.

    Returns:
        For each scanner its ``status`` and ``findings``, each with ``severity``, ``pickle`` and ``what``.

    Raises:
        UnsafeFileError: a part of the sandbox is missing.
    """
    try:
        outcome = security.run("scan", file)
    except UnsafeFileError as error:
        if str(error).startswith("sandbox:"):
            raise
        outcome = security.Outcome(refusal=str(error))  # the file made a scanner break its limits
    result: dict[str, Any] = {}
    for scanner in ("picklescan", "fickling"):
        said = outcome.report.get(scanner)
        said = said if isinstance(said, dict) else {}
        findings = said.get("findings") if isinstance(said.get("findings"), list) else []
        result[scanner] = {
            "status": _word(said.get("status") or outcome.refusal or "no answer"),
            "findings": [
                {key: _word(found.get(key)) for key in ("severity", "pickle", "what")}
                for found in (findings or [])
                if isinstance(found, dict)
            ],
        }
    return result


class InSandbox:
    """Reads a file in the sandbox: inertly, or where that is not enough by loading it there."""

    def convert(self, file: Path, target: Path) -> Reading:
        """Write the state dict of ``file`` to the safetensors file ``target``.

        Raises:
            UnsafeFileError: a part of the sandbox is missing, or the child broke its limits.
            CheckpointError: the file has no state dict that safetensors can hold.
        """
        with ThreadPoolExecutor(1, "mango-scan") as pool:
            scanning = pool.submit(scan, file)
            outcome, method = self._convert(file, target)
            scanners = scanning.result()
        if outcome.refusal:
            raise CheckpointError(f"{file}: {outcome.refusal}{_accused(scanners)}")
        format_ = _word(outcome.report.get("format"))
        return Reading(format_, method, outcome.report, scanners, outcome.locked)

    def _convert(self, file: Path, target: Path) -> tuple[security.Outcome, str]:
        def take(size: int, pieces: Iterator[bytes]) -> None:
            with writing(target):
                _write(target, size, pieces)
            read_header(target)

        inert = security.run("convert", file, sink=take, stop=lambda report: bool(report.get("unread")))
        if not inert.unclear and not inert.report.get("unread"):
            return inert, "inertly"
        loaded = security.run("load", file, sink=take)
        if loaded.refusal and inert.report.get("tensors"):
            inert = security.run("convert", file, sink=take)
            return inert, "inertly"
        loaded.report.setdefault("names", inert.report.get("names", []))
        if inert.report.get("names"):
            loaded.report["names"] = inert.report["names"]
        return loaded, "by loading"


class InProcess:
    """Reads a file of a trusted source with torch in this process, as weights only."""

    def convert(self, file: Path, target: Path) -> Reading:
        """Write the state dict of ``file`` to the safetensors file ``target``.

        Raises:
            CheckpointError: torch does not take it as weights only, or it has no state dict that safetensors can hold.
        """
        import pickle
        import zipfile

        import torch

        from mango.security.inside.selecting import select
        from mango.tensors import dtype_name

        try:
            value = torch.load(file, map_location="cpu", weights_only=True)
            chosen, rest = select(value, torch.is_tensor, lambda _: None)
        except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
            reason = _word(_ANSI.sub("", str(error).strip() or type(error).__name__).splitlines()[0])[:300]
            raise CheckpointError(
                f"{file}: torch does not read it as weights only ({reason}); give it the tier `unknown` to convert it "
                "in the sandbox"
            ) from error
        if not chosen:
            raise CheckpointError(f"{file}: holds no state dict of tensors")
        try:
            specs = [TensorSpec(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in sorted(chosen.items())]
        except KeyError as error:
            raise CheckpointError(f"{file}: holds {error}, which safetensors files cannot hold") from error
        part = target.with_name(f".{target.name}.part")
        part.mkdir()
        written = write_tensors(part, specs, lambda name: chosen[name].detach(), max_shard_bytes=2**62)
        written[0].rename(target)
        part.rmdir()
        report = {"left_out": sorted(map(str, rest)), "tensors": len(chosen)}
        return Reading("torch", "as weights only", report, scan_if_possible(file))


def scan_if_possible(file: Path) -> dict[str, Any]:
    """Return what the scanners say, or that there is no sandbox to run them in; nothing rests on them."""
    try:
        return scan(file)
    except UnsafeFileError as error:
        return {name: {"status": str(error), "findings": []} for name in ("picklescan", "fickling")}


def _write(target: Path, size: int, pieces: Iterator[bytes]) -> None:
    """Write a file of a known size as it comes, hashed on another core meanwhile."""
    hasher = Hasher()
    position = 0
    pending: Future[None] | None = None
    with target.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        os.posix_fallocate(file.fileno(), 0, size)
        os.fchmod(file.fileno(), FILE_MODE)
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[file.write(view) :]
            if pending is not None:
                pending.result()
            pending = pool.submit(hasher.update, piece)
            start_writing(file.fileno(), position, len(piece))
            position += len(piece)
        if pending is not None:
            pending.result()
    if position != size:
        raise UnsafeFileError(f"{target}: {position} bytes came of {size}")
    remember_hashes(target, hasher.digests())
    remember_digests(target, hasher.digests())


def _accused(scanners: Mapping[str, Any]) -> str:
    found = [item["what"] for item in scanners["picklescan"]["findings"] if item["severity"] == "dangerous"]
    return f" (picklescan warns of {found[0]})" if found else ""


def _word(value: object) -> str:
    """Return a hostile word as one printable line."""
    return "".join(c if c.isprintable() else "?" for c in str(value))[:400]


def _words(value: object) -> list[str]:
    return [_word(item) for item in value][:1000] if isinstance(value, list) else []
