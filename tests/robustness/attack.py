"""Malicious checkpoints and packages at every tier: nothing may run outside the sandbox, and nothing may get out of it.

    python -m tests.robustness.attack

A payload counts as held when it ran inside and came back with nothing; a file when it was refused or converted
without an effect. Evidence of an effect: a canary file, a connection to a listening socket, or a planted secret in
anything that came back. Exit code 1 when something got through.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mango.checkpoints import ModelSource, open_config, resolve
from mango.errors import MangoError
from mango.security import Limits, Policy, Tier
from tests.robustness import attack_packages
from tests.robustness.attack_files import CONFIG, FILES
from tests.robustness.attack_packages import PACKAGES
from tests.robustness.attack_payloads import DEADLY, INSIDE, source

LIMIT_S = 6.0
SLOWEST_S = 60.0
TOKEN = "planted-secret-5f2c"


class Runs:
    """Pickles as the run of a program."""

    def __init__(self, program: str) -> None:
        self.program = program

    def __reduce__(self) -> Any:
        return exec, (self.program, {})


class Ground:
    """What an attack may reach for outside: a canary, a secret, listening sockets.

    Args:
        root: an empty folder.
    """

    def __init__(self, root: Path) -> None:
        root.chmod(0o777)
        self.root = root
        self.canary = root / "canary"
        home = root / "home"
        (home / ".ssh").mkdir(parents=True)
        (home / ".ssh" / "id_rsa").write_text(TOKEN)
        os.environ["MANGO_TRACKING"] = TOKEN
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        self.unix = socket.socket(socket.AF_UNIX)
        abstract = f"\0mango-attack-{os.getpid()}"
        self.unix.bind(abstract)
        self.unix.listen()
        for listener in (self.tcp, self.udp, self.unix):
            listener.setblocking(False)
        self.names = {
            "canary": str(self.canary), "secret_file": str(home / ".ssh" / "id_rsa"), "home": str(home),
            "port": self.port, "abstract": abstract, "token": TOKEN, "token_name": "MANGO_TRACKING",
            "host": socket.gethostname(),
        }  # fmt: skip

    def effects(self) -> str:
        """Return what happened outside since the last call; empty if nothing."""
        found = []
        if self.canary.exists():
            found.append("wrote outside")
            self.canary.unlink()
        for name, wait in (("TCP", self.tcp.accept), ("UDP", lambda: self.udp.recv(9)), ("UNIX", self.unix.accept)):
            try:
                wait()
                found.append(f"reached {name}")
            except BlockingIOError:
                pass
        return ", ".join(found)


def open_it(path: Path, cache: Path, tier: Tier) -> str:
    """Open a model as inspect, extract and merge do; return what came of it."""
    try:
        folder = resolve(ModelSource(source=str(path)), cache, Policy(default=tier))
        open_config(folder)
    except MangoError as error:
        return f"{type(error).__name__}: {error}"
    return "opened " + " ".join(p.read_text(errors="replace") for p in folder.glob("*.json"))


def open_package(path: Path, cache: Path, tier: Tier) -> str:
    """Look at a package, open it as a package and as a model; return what came of it."""
    return "\n".join([*attack_packages.open_it(path), open_it(path, cache, tier)])


def judge(ground: Ground, said: str, seconds: float, *, must_run: bool) -> str:
    """Return ``held``, or what went wrong."""
    effects = ground.effects()
    if effects:
        return effects
    if TOKEN in said:
        return "read a secret"
    if "\x1b" in said:
        return "let a terminal escape through"
    if seconds > SLOWEST_S:
        return f"took {seconds:.0f} s"
    if must_run and "got <blocked" not in said:
        return f"not blocked: {said[-200:]}"
    return "held"


def run(root: Path, chosen: set[str] | None = None) -> list[dict[str, Any]]:
    """Run every attack at every tier, or those that are named; return a row for each."""
    own = Limits.for_file
    Limits.for_file = classmethod(  # type: ignore[method-assign,assignment]
        lambda cls, kind, size: (lambda x: Limits(x.memory_bytes, LIMIT_S, x.threads, x.max_bytes))(own(kind, size))
    )
    ground = Ground(root)
    rows = []
    try:
        for tier in Tier:
            cases = [("inside", n, b) for n, b in INSIDE.items()] + [("deadly", n, b) for n, b in DEADLY.items()]
            for kind, name, body in cases:
                if chosen is not None and name not in chosen:
                    continue
                folder = root / f"{tier}-{name}"
                folder.mkdir()
                (folder / "config.json").write_text(json.dumps(CONFIG))
                content = pickle.dumps({"state_dict": Runs(source(body, ground.names))})
                (folder / "pytorch_model.bin").write_bytes(content)
                rows.append(_row(ground, folder, tier, name, must_run=tier is Tier.UNKNOWN and kind == "inside"))
            for name, make in (FILES | PACKAGES).items():
                if chosen is not None and name not in chosen:
                    continue
                path = make(root / f"{tier}-{name}", ground.names)
                ground.effects()
                use = open_package if name in PACKAGES else open_it
                rows.append(_row(ground, path, tier, name, must_run=False, use=use))
    finally:
        attack_packages.forget_the_honest_one()
        Limits.for_file = own  # type: ignore[method-assign]
    return rows


def _row(
    ground: Ground, path: Path, tier: Tier, name: str, *, must_run: bool, use: Callable[..., str] = open_it
) -> dict[str, Any]:
    start = time.monotonic()
    said = use(path, ground.root / "cache", tier)
    seconds = time.monotonic() - start
    verdict = judge(ground, said, seconds, must_run=must_run)
    return {"tier": tier.value, "attack": name, "verdict": verdict, "seconds": round(seconds, 2), "said": said[-300:]}


def main() -> int:
    """Run the suite as this user, and where that is root as an ordinary user too; print what was not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of attacks")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    root = Path(tempfile.mkdtemp(prefix="mango-attack-"))
    try:
        rows = run(root, set(args.only) if args.only else None)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    bad = [row for row in rows if row["verdict"] != "held"]
    for row in bad:
        print(json.dumps(row))
    count = dict(Counter(row["tier"] for row in rows))
    print(f"user {os.geteuid()}: {len(rows)} attacks {count}, {len(bad)} not held", flush=True)
    if os.geteuid() == 0:
        command = [sys.executable, "-m", "tests.robustness.attack_as_user", "tests.robustness.attack", *sys.argv[1:]]
        bad += [{}] * subprocess.run(command, check=False).returncode
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
