"""``kill -9`` of merges that measure or learn before they write: the same command repeats nothing that was finished.

``python -m tests.robustness.measured_kills`` kills ``mango merge`` 50 times at random moments of reading, measuring and
writing; it merges by Fisher information, Gram matrices, learned coefficients and a search in turn. It prints what was
found and writes it to ``build/measured-kills.json``; exit code 1 says that bits differed, that work was lost, or that
something was left behind.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mango.checkpoints import verify
from mango.console import result, table
from tests.merging.conftest import VOCABULARY, save_tokenizer, tiny_llama, write_text
from tests.pipeline.project import leftovers
from tests.robustness.forks import Ended, Kill, run_forked
from tests.robustness.merge_kills import ROOT, hashes, mango_command, must
from tests.robustness.victims import kept_tensors

STEPS = 6
"""Of learning and of searching; models that are measured are three."""

SECTIONS: dict[str, dict[str, Any]] = {
    "fisher": {"merge_method": "fisher"},
    "regmean": {"merge_method": "regmean"},
    "adamerging": {
        "merge_method": "adamerging",
        "base_model": "base",
        "parameters": {"coefficient": 0.3},
        "learn": {"steps": STEPS, "batch_size": 2, "learning_rate": 0.01},
    },
    "search": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "parameters": {"weight": 0.3},
        "search": {"parameters": {"weight": [0, 0.6]}, "groups": 2, "evaluations": STEPS},
    },
}
MODULES = ("cma", "mango.cli.app", "mango.cli.merging", "mango.corpus", "mango.merging",
           "transformers.models.llama.modeling_llama")  # fmt: skip
"""What each child would import by itself."""

STEP, MEASURES, WRITES, WROTE = "has taken a step", "begins to measure", "begins to write", "has written"
"""What a run tells of itself, each with the seconds since it was started."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--rows", type=int, default=2**15, help="of the embedding, which is most of a model")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "measured-kills.json", help="report")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mango-measured-kills-") as folder:
        found = kill_measured(Path(folder), given.kills, given.rows, random.Random(given.seed))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    rows = [[name, len(value) if isinstance(value, list) else value] for name, value in found.items()]
    result(table(rows, ["kill -9", "found"]))
    return 1 if any(found[name] for name in ("different", "lost", "left")) else 0


def write_family(root: Path, rows: int) -> Path:
    """Write a base and three models of ``rows`` times 16 elements and some blocks, and text; return the text's file."""
    for seed, name in enumerate(("base", "a", "b", "c")):
        tiny_llama(seed, vocab_size=max(rows, VOCABULARY)).save_pretrained(root / name)
        save_tokenizer(root / name)
    return write_text(root / "text.txt")


def kill_measured(root: Path, wanted: int, rows: int, chance: random.Random) -> dict[str, Any]:
    """Kill merges that measure until it has been done often enough, and return what was found.

    Args:
        root: an empty folder.
        wanted: kills.
        rows: see `write_family`.
        chance: of the moments.
    """
    for module in MODULES:
        importlib.import_module(module)
    text, log = write_family(root, rows), root / "log"
    commands, whole, usual = {}, {}, {}
    for name, section in SECTIONS.items():
        document = {
            "models": [{"model": str(root / model)} for model in "abc"],
            "calibration": {"data": str(text), "sequences": 6, "tokens": 24},
            **section,
        }
        if "base_model" in section:
            document["base_model"] = str(root / "base")
        path, out = root / f"{name}.json", root / "calm" / name
        path.write_text(json.dumps(document))
        commands[name] = ["merge", str(path), "OUT", "--threads", "1", "--json"]
        usual[name] = must(_run(commands[name], out, log, None))
        whole[name] = hashes(out)
    found: dict[str, Any] = {
        "kills": 0, "while reading": 0, "while measuring": 0, "while writing": 0, "with all in its place": 0,
        "runs to the end": 0, "that went on": 0, "steps that they found": 0, "steps that they took": 0,
        "different": [], "lost": [], "left": [],
    }  # fmt: skip
    out, target, steps, kept = root / "out", next(iter(SECTIONS)), 0, 0
    while found["kills"] < wanted or steps or kept:
        all_steps = len(_times(usual[target], STEP))
        kill = _moment(chance, usual[target])
        if found["kills"] >= wanted or ((steps or kept) and chance.random() < 0.4):
            kill = None
        ended = _run(commands[target], out, log, kill)
        made = len(_times(ended, STEP))
        if steps + made > all_steps:
            found["lost"].append(f"{target}: {steps} of {all_steps} steps were done, and the next run took {made}")
        if ended.killed:
            found["kills"] += 1
            if hashes(out) == whole[target]:
                found["with all in its place"] += 1
                steps, kept = all_steps, kept_tensors(out)
                if not list(root.glob(".out.*.journal")):  # all is done, and to run it again is another run
                    target, steps, kept = following(target), 0, 0
                continue
            left = kept_steps(out), kept_tensors(out)
            if left[0] < steps + made - 1 or left[1] < kept:  # the last step may not have been noted yet
                done = f"{steps + made} steps and {kept} tensors were done"
                found["lost"].append(f"{target}: {done}, and after another kill {left[0]} and {left[1]} are left")
            steps, kept = left
            writes, measures = (bool(_times(ended, word)) for word in (WRITES, MEASURES))
            found["while writing" if writes else "while measuring" if measures else "while reading"] += 1
            continue
        resumed = int(re.findall(r'"num_resumed": (\d+)', must(ended).said)[0])
        if resumed < kept:
            found["lost"].append(f"{target}: {kept} tensors were done, and the next run found {resumed}")
        found["runs to the end"] += 1
        found["that went on"] += bool(steps or kept)
        found["steps that they found"] += steps
        found["steps that they took"] += made
        if hashes(out) != whole[target]:
            found["different"].append(target)
        verify(out)
        found["left"] += leftovers(root)
        target, steps, kept = following(target), 0, 0
    return found


def following(name: str) -> str:
    """Return the merge whose turn is next."""
    names = list(SECTIONS)
    return names[(names.index(name) + 1) % len(names)]


def kept_steps(out: Path) -> int:
    """Return how many models a killed merge has left measured, and how many steps noted."""
    folders = out.parent.glob(f".{out.name}.mango-new-*.calibration")
    files = [path for folder in folders for path in folder.iterdir() if not path.name.startswith(".")]
    steps = [line for path in files if path.suffix == ".jsonl" for line in path.read_bytes().splitlines(keepends=True)]
    return sum(path.suffix == ".json" for path in files) + sum(line.endswith(b"\n") for line in steps)


def _moment(chance: random.Random, usual: Ended) -> Kill:
    """Return a random moment: of reading, measuring, writing and the end each as often, or of a change on the disk."""
    if chance.random() < 0.25:
        return Kill(at_event=chance.randint(1, usual.num_events[0]))
    borders = [0.0, *(_times(usual, word)[0] for word in (MEASURES, WRITES, WROTE)), usual.seconds]
    phase = chance.randrange(4)
    return Kill(after_s=chance.uniform(borders[phase], borders[phase + 1]))


def _times(ended: Ended, word: str) -> list[float]:
    """Return when a run has told something."""
    return [float(seconds) for seconds in re.findall(rf"^{word}: ([\d.]+)$", ended.said, re.MULTILINE)]


def _run(command: list[str], out: Path, log: Path, kill: Kill | None) -> Ended:
    begin_s = time.monotonic()
    arguments = [str(out) if word == "OUT" else word for word in command]
    return run_forked(lambda: _telling(arguments, begin_s), log, kill=kill, count=True)


def _telling(arguments: list[str], begin_s: float) -> None:
    """Run the command, which tells how far it is and marks every tensor in the journal; the process ends with it."""
    from mango.merging import engine, learning, measuring, search, shards

    def tell(word: str) -> None:
        os.write(1, f"{word}: {time.monotonic() - begin_s:.4f}\n".encode())

    def told(place: Any, name: str, *, before: str = "", after: str = "") -> None:
        call = getattr(place, name)

        def telling(*arguments: Any, **options: Any) -> Any:
            if before:
                tell(before)
            made = call(*arguments, **options)
            if after:
                tell(after)
            return made

        setattr(place, name, telling)

    told(engine, "settled", before=MEASURES)
    told(engine, "_write_weights", before=WRITES, after=WROTE)
    told(measuring, "add_fishers", after=STEP)
    told(measuring, "add_grams", after=STEP)
    told(learning._Runner, "step", after=STEP)
    told(search._Judge, "loss", after=STEP)
    shards._MARK_SECONDS = 0.0
    mango_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
