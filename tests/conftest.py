"""What every test gets: one thread, no network, no telemetry, no settings from outside, and honest skips."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "MPLBACKEND": "agg",
    }
)  # before the first import of the libraries that read them

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "mango",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("mango")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell that starts the tests in the background ignores it, and what they start to interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)

IN_CI = os.environ.get("CI") == "true"
MAY_BE_MISSING = "no accelerator"
"""The one reason to skip that CI accepts: no test machine has one."""

PROGRAMS = {
    "initdb": ("postgresql", "/usr/lib/postgresql/*/bin/initdb"),
    "chromium": ("chromium", "/usr/bin/chromium"),
    "bwrap": ("bubblewrap", "/usr/bin/bwrap"),
}
"""Programs that tests start: the Debian package and where it puts the program."""


@pytest.fixture(scope="session")
def need() -> Callable[[str], Path]:
    """Give the path of a program that a test starts; skip the test, with the reason, where it is not installed."""

    def find(program: str) -> Path:
        package, pattern = PROGRAMS[program]
        found = shutil.which(program) or next(iter(sorted(map(str, Path("/").glob(pattern[1:])), reverse=True)), None)
        if found is None:
            pytest.skip(f"needs {program}: install Debian's {package} (as root, `make test` does)")
        return Path(found)

    return find


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Give a migrated, empty tracking database; it is made once, also when several workers run the tests."""
    from filelock import FileLock

    from mango.tracking import TrackingSettings, migrate

    shared = tmp_path_factory.getbasetemp() if worker_id == "master" else tmp_path_factory.getbasetemp().parent
    with FileLock(shared / "migrated.lock"):
        migrate(TrackingSettings(root=shared / "migrated"))
    return shared / "migrated" / "mlflow.db"


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["MANGO_CACHE"] = str(tmp_path_factory.getbasetemp() / "mango-cache")  # never that of the user


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(os.environ) - {"MANGO_CACHE"}:
        if name.startswith(("MANGO_", "DVC_", "MLFLOW_RUN", "MLFLOW_TRACKING", "MLFLOW_EXPERIMENT")):
            monkeypatch.delenv(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With ``CI=true`` a skip is a failure: a part that is missing there is a test that never runs."""
    report = yield
    expected = hasattr(report, "wasxfail")
    if IN_CI and report.skipped and not expected and MAY_BE_MISSING not in str(report.longrepr):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome, report.longrepr = "failed", f"skipped although CI=true: {reason}"
    return report
