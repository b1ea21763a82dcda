"""Runs and promotions on a real PostgreSQL."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mango.errors import RegistryError
from mango.tracking import TrackingSettings, migrate, promote, rollback, stage_run, why
from mango.tracking.locks import store_lock
from mango.tracking.store import open_store

PASSWORD = "hunter2"

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ordinary_user() -> str | None:
    """Give the user that the server runs as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    known = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


@pytest.fixture(scope="module")
def postgresql(need: Callable[[str], Path]) -> Iterator[str]:
    """Give the address of a server on a free port, started for these tests and ended after them."""
    programs = need("initdb").parent
    if not (programs / "postgres").exists():  # a wrapper on the path: the server lies with the real one
        programs = need("initdb").resolve().parent
    user, port = ordinary_user(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="mango-postgresql-"))
    (folder / "password").write_text(PASSWORD)
    for path in (folder, folder / "password"):
        if user is not None:
            shutil.chown(path, user)
    data = str(folder / "data")
    identity = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
    identity |= {"cwd": folder, "env": {**os.environ, "HOME": str(folder)}}
    make = [str(programs / "initdb"), "-D", data, "-U", "mango", "--auth=scram-sha-256", "-N"]
    subprocess.run([*make, f"--pwfile={folder / 'password'}"], check=True, capture_output=True, **identity)
    options = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
    flags = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([str(programs / "postgres"), "-D", data, *flags], stderr=log, **identity) as server,
    ):
        try:
            wait_for(port, server, folder / "log")
            yield f"postgres://mango:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(2)  # SIGINT: a fast shutdown
            server.wait(60)
    shutil.rmtree(folder)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            psycopg.connect(f"postgresql://mango:{PASSWORD}@127.0.0.1:{port}/postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"PostgreSQL did not start: {log.read_text()[-500:]}")


@pytest.fixture(scope="module")
def store(postgresql: str, tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    """Give settings of a migrated PostgreSQL store."""
    settings = TrackingSettings(root=tmp_path_factory.mktemp("root"), uri=postgresql)
    with ThreadPoolExecutor(2) as pool:  # two that find it fresh at the same time
        assert list(pool.map(migrate, [settings] * 2)) == [None, None]
    return settings


def test_a_run(store: TrackingSettings, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<html>")
    with stage_run("train", settings=store, params={"seed": 0}) as run:
        for step in range(3):
            run.log_metrics({"loss": float(step)}, step)
        run.log_artifact(tmp_path / "report.html")
        run.log_dataset("corpus", Path("data/corpus"), "ab" * 32)
    client = open_store(store)
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.params, found.data.metrics) == ("FINISHED", {"seed": "0"}, {"loss": 2.0})
    assert [item.path for item in client.list_artifacts(run.run_id)] == ["report.html"]
    assert PASSWORD not in str(found.to_dictionary())


def test_promote_roll_back_and_why(store: TrackingSettings, make_package: Callable[..., Path]) -> None:
    promote("one", make_package(3.0, "a"), settings=store)
    promote("one", make_package(2.0, "b"), settings=store)
    assert not promote("one", make_package(2.5, "c"), settings=store).promoted
    assert why("models:/one@champion", settings=store).metric["value"] == 2.0
    assert rollback("one", settings=store).champion == 1
    assert why("models:/one@champion", settings=store).package == "intact"


def test_concurrent_promotions_leave_the_best(store: TrackingSettings, make_package: Callable[..., Path]) -> None:
    values = [1.0 + (7 * index % 16) / 16 for index in range(16)]
    packages = [make_package(value, f"package-{value}") for value in values]
    with ThreadPoolExecutor(8) as pool:  # each call has a connection, hence an advisory lock, of its own
        results = list(pool.map(lambda package: promote("many", package, settings=store), packages))
    assert len({result.version for result in results}) == 16
    assert why("models:/many@champion", settings=store).metric["value"] == 1.0


def test_the_lock_is_in_the_database(store: TrackingSettings) -> None:
    impatient = store.model_copy(update={"lock_timeout_s": 0.1})
    with (
        store_lock(store, "promote"),
        pytest.raises(RegistryError, match=r"postgresql\+psycopg://\*\*\*@127.*: another process has held the promote"),
        store_lock(impatient, "promote"),
    ):
        pytest.fail("two holders")
    with store_lock(impatient, "promote"):
        assert not list(store.root.glob("*.lock"))


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    nowhere = TrackingSettings(root=tmp_path, uri=f"postgresql://mango:{PASSWORD}@127.0.0.1:{free_port()}/postgres")
    with pytest.raises(RegistryError, match=r"cannot connect: .*refused") as caught:
        migrate(nowhere)
    assert PASSWORD not in str(caught.value)
    assert "\n" not in str(caught.value)
