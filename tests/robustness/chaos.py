"""``make chaos``: kill stages and a promotion at random moments, fill the disk, start two at once.

``python -m tests.robustness.chaos`` takes a minute or so; ``--full`` kills each of the five 200 times and fills the
disk at 20 sizes. What is found goes into ``build/chaos.json`` and a table; exit code 1 says that a promise was broken.
"""

from __future__ import annotations

import os

os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                   "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "GX_ANALYTICS_ENABLED": "false",
                   "MPLBACKEND": "agg", "MANGO_TRACKING": "off", "MANGO_DEVICE": "cpu", "DO_NOT_TRACK": "1",
                   "MANGO_DISK_RESERVE": "0"})  # fmt: skip

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mango.console import note, result, table
from mango.errors import MangoError
from tests.robustness.forks import Ended, random_kill, run_forked, small_disk
from tests.robustness.victims import (
    VERSIONS,
    VICTIMS,
    Victim,
    import_everything,
    prepare_project,
    prepare_registry,
    run_stage,
)

ROOT = Path(__file__).parents[2]
FINISH_EVERY = 5
"""Kills between two runs to the end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="200 kills of each, 20 sizes of disk")
    parser.add_argument("--kills", type=int, help="kills of each")
    parser.add_argument("--sizes", type=int, help="sizes of disk")
    parser.add_argument("--only", nargs="*", choices=sorted(VICTIMS), default=sorted(VICTIMS), help="whom")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "chaos.json", help="report")
    given = parser.parse_args(arguments)
    kills = given.kills if given.kills is not None else (200 if given.full else 3)
    sizes = given.sizes if given.sizes is not None else (20 if given.full else 3)
    begin_s = time.monotonic()
    import_everything()
    note(f"imported everything in {time.monotonic() - begin_s:.0f} s")
    with tempfile.TemporaryDirectory(prefix="mango-chaos-") as folder:
        project = make_finished(Path(folder))
        report: dict[str, Any] = {"kills": {}, "disk": {}, "two_at_once": {}}
        for name in given.only:
            victim = VICTIMS[name]
            root = Path(folder) / name
            shutil.copytree(project, root, symlinks=True)
            arena = Arena(victim, root, random.Random(f"{given.seed} {name}"))
            report["kills"][name] = arena.kill(kills)
            note(f"{name}: {report['kills'][name]}")
            report["two_at_once"][name] = arena.two_at_once()
            if name != "promotion":
                report["disk"][name] = arena.fill_disk(sizes)
                note(f"{name}: {report['disk'][name]}")
            shutil.rmtree(root)
    report["seconds"] = round(time.monotonic() - begin_s, 1)
    report["broken"] = broken(report)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    result(shown(report))
    for line in report["broken"]:
        note(f"broken: {line}")
    return 1 if report["broken"] else 0


def make_finished(folder: Path) -> Path:
    """Make a project in which all stages have run, and a registry with a champion."""
    root = folder / "project"
    log = folder / "log"
    must(run_forked(lambda: prepare_project(root), log))
    for stage in ("extract-blocks", "merge", "train-adapters-and-routers", "evaluate", "package"):
        must(run_forked(lambda stage=stage: run_stage(root, stage), log))  # type: ignore[misc]
    return root


def must(ended: Ended) -> Ended:
    """Return how a run ended, if that was well.

    Raises:
        RuntimeError: it was not.
    """
    if ended.code != 0:
        raise RuntimeError(f"exit code {ended.code}: {ended.said}")
    return ended


class Arena:
    """One victim in a project of its own, whose outputs are there in version a.

    Args:
        victim: what is run.
        root: the project.
        chance: of the moments.
    """

    def __init__(self, victim: Victim, root: Path, chance: random.Random) -> None:
        self.victim = victim
        self.root = root
        self.chance = chance
        self.log = root.parent / f"{root.name}.log"
        self.whole: dict[str, dict[str, str]] = {}
        self.runs: dict[str, Ended] = {}
        if victim.name == "promotion":
            must(run_forked(lambda: prepare_registry(root), self.log))
        for version in (*VERSIONS, *VERSIONS):  # twice, to see that undisturbed runs agree
            victim.choose(root, version)
            ended = must(run_forked(lambda: victim.run(root), self.log, count=True))
            state = victim.state(root)
            if self.whole.setdefault(version, state) != state:
                raise RuntimeError(f"{victim.name}: two undisturbed runs differ: {state}, {self.whole[version]}")
            self.runs[version] = ended
        self.now = VERSIONS[1]
        if victim.name == "promotion":
            victim.choose(root, "a")
            self.now, self.whole["a"] = "a", victim.state(root)

    def _next(self) -> str:
        if self.victim.name == "promotion" and self.now == "b":
            self.victim.choose(self.root, "a")
            self.now = "a"
        return VERSIONS[1 - VERSIONS.index(self.now)]

    def kill(self, wanted: int) -> dict[str, Any]:
        """Kill runs at random moments until it has been done often enough; return what was found."""
        found: dict[str, Any] = {
            "kills": 0, "ended_before": 0, "old": 0, "new": 0, "between": 0, "finished": 0, "apart": 0, "corrupt": [],
            "repairs": [], "different": [], "left": [], "went_on": 0, "started_over": [],
        }  # fmt: skip
        kept = 0
        target = self._next()
        self.victim.choose(self.root, target)
        while found["kills"] < wanted:
            usual = self.runs[target]
            kill = random_kill(self.chance, usual.seconds, usual.num_events)
            ended = run_forked(lambda: self.victim.run(self.root), self.log, kill=kill)
            if ended.killed:
                found["kills"] += 1
                look = self._look(found, target)
                found[look] += 1
                kept = self._kept(found, kept, look)
                if found["kills"] % FINISH_EVERY and found["kills"] < wanted:
                    continue
                ended = run_forked(lambda: self.victim.run(self.root), self.log)
            else:
                found["ended_before"] += 1
            found["finished"] += 1
            if ended.code != 0:
                found["repairs"].append(ended.said[-500:])
            resumed = self.victim.went_on_from(ended.said)
            found["went_on"] += resumed > 0
            if resumed < kept:
                found["started_over"].append(f"{kept} were done, and the next run found {resumed}")
            kept = 0
            self._compare(found, target)
            self.now = target
            target = self._next()
            self.victim.choose(self.root, target)
        return found

    def _kept(self, found: dict[str, Any], before: int, look: str) -> int:
        """Return what is left to go on from, which is no less than before; nothing once all is in its place."""
        kept = self.victim.kept(self.root)
        if kept is None:
            return 0
        if kept < before and look == "old":
            found["started_over"].append(f"{before} were done, and {kept} are left after another kill")
        return kept

    def _look(self, found: dict[str, Any], target: str) -> str:
        """Return whether the outputs are the old ones, the new ones, or some of each, all of them whole."""
        try:
            state = self.victim.state(self.root)
        except (MangoError, AssertionError, OSError) as error:
            found["corrupt"].append(f"{error}")
            return "between"
        old, new = self.whole[self.now], self.whole[target]
        strange = [name for name, value in state.items() if value not in (old[name], new[name])]
        if strange and self.victim.name != "promotion":
            found["corrupt"].append(f"neither version: {strange}")
        if strange and state["champion"] not in (old["champion"], new["champion"]):
            found["corrupt"].append(f"champion: {state}")
        sides = {state[name] == new[name] for name in self.victim.folders if old[name] != new[name]}
        found["apart"] += len(sides) > 1
        return "old" if state == old else "new" if state == new else "between"

    def _compare(self, found: dict[str, Any], target: str) -> None:
        try:
            state = self.victim.state(self.root)
        except (MangoError, AssertionError, OSError) as error:
            found["different"].append(f"{error}")
            return
        if state != self.whole[target]:
            found["different"].append(f"{state} instead of {self.whole[target]}")
        found["left"] += self.victim.left_behind(self.root)

    def two_at_once(self) -> dict[str, Any]:
        """Start a second run while the first one writes; return how both ended."""
        target = self._next()
        self.victim.choose(self.root, target)
        held, second_log = self.root.parent / "held", self.root.parent / "second.log"
        held.unlink(missing_ok=True)
        first_code, second = run_both(self.victim, self.root, held, self.log, second_log)
        state = self.victim.state(self.root)
        self.now = target
        lines = second.said.strip().splitlines()
        return {
            "first": first_code,
            "second": second.code,
            "second_s": round(second.seconds, 2),
            "said": lines[-1] if lines else "",
            "new_version": state == self.whole[target],
        }

    def fill_disk(self, sizes: int) -> dict[str, Any]:
        """Run on disks of many sizes, asking for room first and not asking; return how often which version was left."""
        target = self._next()
        self.victim.choose(self.root, target)
        found: dict[str, Any] = {"disk": "tmpfs", "bytes": [], "refused": 0, "full": 0, "done": 0, "corrupt": [],
                                 "unclear": []}  # fmt: skip
        told = self.root.parent / "told.json"
        try:
            probe = self._on_disk(2**29, told, guard=True)
        except OSError as error:
            return {**found, "disk": f"none: {error}"}
        start, needed = probe["used"], 2**29 - probe["lowest_free"]
        for guard in (True, False):
            for number in range(sizes):
                size = start + int((needed - start) * (number + 0.5) / sizes * 1.05)
                done = self._on_disk(size, told, guard=guard)
                found["bytes"].append(size)
                if done["state"] is None or done["state"] not in (self.whole[self.now], self.whole[target]):
                    mixed = done["state"] is not None and all(
                        value in (self.whole[self.now][name], self.whole[target][name])
                        for name, value in done["state"].items()
                    )
                    if not mixed:
                        found["corrupt"].append(f"{size}: {done['problem'] or done['state']}")
                if done["code"] == 0:
                    found["done"] += 1
                elif done["code"] == 2 and "no room to write" in done["said"] and "Traceback" not in done["said"]:
                    found["refused" if "in reserve" in done["said"] else "full"] += 1
                else:
                    found["unclear"].append(f"{size}: exit code {done['code']}: {done['said'][-300:]}")
        return found

    def _on_disk(self, size: int, told: Path, *, guard: bool) -> dict[str, Any]:
        told.unlink(missing_ok=True)
        disk = self.root.parent / "disk"
        disk.mkdir(exist_ok=True)
        ended = run_forked(lambda: self._inside(disk, size, told, guard=guard), self.log)
        if not told.exists():
            raise OSError(f"no small disk: {ended.said[-300:]}")
        found: dict[str, Any] = json.loads(told.read_text())
        return found

    def _inside(self, disk: Path, size: int, told: Path, *, guard: bool) -> None:
        """Copy the project onto a small disk, run there, and tell what is left; in a child."""
        small_disk(disk, size)
        root = disk / "project"
        shutil.copytree(self.root, root, symlinks=True, ignore=shutil.ignore_patterns("tmp"))
        at_first = os.statvfs(disk)
        if not guard:
            from mango.checkpoints import room

            room.free_bytes = lambda path: 2**60
        ended = run_forked(lambda: self.victim.run(root), self.log.with_suffix(".inner"), count=True, disk=disk)
        state, problem = None, ""
        try:
            state = self.victim.state(root)
        except (MangoError, AssertionError, OSError) as error:
            problem = str(error)
        told.write_text(
            json.dumps(
                {
                    "code": ended.code, "said": ended.said, "state": state, "problem": problem,
                    "lowest_free": ended.lowest_free,
                    "used": (at_first.f_blocks - at_first.f_bfree) * at_first.f_frsize,
                }
            )
        )  # fmt: skip


def run_both(victim: Victim, root: Path, held: Path, log: Path, second_log: Path) -> tuple[int, Ended]:
    """Run a victim that waits before its first swap until a second run of it has ended."""
    go = held.with_suffix(".go")
    go.unlink(missing_ok=True)

    def first() -> None:
        pause_at_first_rename(victim, held, go)
        victim.run(root)

    child = os.fork()
    if not child:
        ended = run_forked(first, log)
        os._exit(ended.code & 0xFF)
    give_up_s = time.monotonic() + 120
    while not held.exists():
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"{victim.name} wrote nothing: {log.read_text()}")
        time.sleep(0.01)
    os.environ["MANGO_LOCK_TIMEOUT_S"] = "0.5"
    try:
        second = run_forked(lambda: victim.run(root), second_log)
    finally:
        del os.environ["MANGO_LOCK_TIMEOUT_S"]
        go.touch()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), second


def pause_at_first_rename(victim: Victim, held: Path, go: Path) -> None:
    """Wait, once, when the outputs begin to be written."""
    middle = "/packages/" if victim.name == "promotion" else ".mango-new-"

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.mkdir", "open") and middle in str(arguments[0]) and not held.exists():
            held.touch()
            while not go.exists():
                time.sleep(0.01)

    sys.addaudithook(hook)


def broken(report: dict[str, Any]) -> list[str]:
    """Return every promise that was not kept."""
    found = []
    for name, kills in report["kills"].items():
        kinds = ("corrupt", "repairs", "different", "left", "started_over")
        found += [f"{name}, killed: {kind}: {what}" for kind in kinds for what in kills[kind]]
    for name, two in report["two_at_once"].items():
        told = "is writing it" in two["said"] or "has held the" in two["said"]
        if (two["first"], two["second"], two["new_version"]) != (0, 2, True) or not told:
            found.append(f"{name}, two at once: {two}")
    for name, disk in report["disk"].items():
        found += [f"{name}, disk full: {kind}: {what}" for kind in ("corrupt", "unclear") for what in disk[kind]]
        if disk["disk"] != "tmpfs":
            found.append(f"{name}, disk full: {disk['disk']}")
    return found


def shown(report: dict[str, Any]) -> str:
    """Return the report as tables."""
    kills = [
        [name, k["kills"], k["old"], k["new"], k["between"], k["apart"], len(k["corrupt"]), len(k["repairs"]),
         k["finished"], k["went_on"], len(k["started_over"]), len(k["different"]),
         len(k["left"])]
        for name, k in report["kills"].items()
    ]  # fmt: skip
    header = ["killed", "kills", "all old", "all new", "some of each", "folders apart", "corrupt", "repairs",
              "run to the end", "went on", "started over", "different", "left behind"]  # fmt: skip
    disks = [
        [name, len(d["bytes"]), d["refused"], d["full"], d["done"], len(d["corrupt"]), len(d["unclear"])]
        for name, d in report["disk"].items()
    ]
    two = [[name, t["first"], t["second"], t["second_s"], t["said"][:90]] for name, t in report["two_at_once"].items()]
    return "\n\n".join(
        [
            table(kills, header),
            table(disks, ["disk full", "sizes", "refused first", "found full", "done", "corrupt", "unclear"]),
            table(two, ["two at once", "first", "second", "left after s", "said"]),
            f"{report['seconds']:.0f} s; broken promises: {len(report['broken'])}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
