"""What the scanners say about the pickles of a file; they run in here, so a file that fools them harms nothing."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

from mango.security.inside import archives
from mango.security.inside.wire import Answers, describe

_MOST = 500
_MAX_SCANNED_BYTES = 32 * 2**20
_ITS_OWN = re.compile(
    r"`from torch import \w+Storage` |`from torch\._(utils|tensor) import _rebuild_\w+` |"
    r"Call to `(_rebuild_\w+|_var\d+\.(update|append|extend))\(|`from torch\.nn\.parameter import Parameter` |"
    r"Variable `_var\d+` is assigned value `_rebuild_\w+\("
)
"""What fickling says of the names that torch itself writes into every checkpoint."""


def scan(file: IO[bytes], options: Mapping[str, Any], answers: Answers) -> None:
    """Run the scanners that are installed on every pickle in the file, and send their findings.

    Args:
        file: the file, open.
        options: none are known.
        answers: where to.

    Raises:
        RefusalError: the archive is damaged or was made to mislead.
    """
    pickles = [(name, content[:_MAX_SCANNED_BYTES]) for name, content in archives.pickles(file)]
    scanners = {"picklescan": _picklescan, "fickling": _fickling}
    report: dict[str, Any] = {}
    for scanner, run in scanners.items():
        findings: list[dict[str, str]] = []
        status = "done"
        try:
            for name, content in pickles:
                for severity, what in run(name, content):
                    if len(findings) < _MOST:
                        findings.append({"severity": severity, "pickle": name[:200], "what": what[:400]})
        except ImportError:
            status = "not installed"
        except (Exception, RecursionError) as error:  # noqa: BLE001  (scanners stumble over hostile files)
            status = f"gave up ({describe(error)[:200]})"
        report[scanner] = {"status": status, "findings": findings}
        answers.text(b"J", json.dumps(report))


def _picklescan(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    from picklescan.scanner import SafetyLevel, scan_pickle_bytes

    result = scan_pickle_bytes(io.BytesIO(content), name)
    for found in result.globals:
        if found.safety is not SafetyLevel.Innocuous:
            yield found.safety.value, f"{found.module}.{found.name}"
    if result.scan_err and not result.globals:
        yield "unclear", "picklescan could not parse it"


def _fickling(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    from fickling.analysis import Severity, check_safety
    from fickling.fickle import Pickled

    for result in check_safety(Pickled.load(io.BytesIO(content))).results:
        said = " ".join(str(result.message or result.analysis_name).split())
        if result.severity != Severity.LIKELY_SAFE and not _ITS_OWN.match(said):
            yield result.severity.name.lower(), said
