"""Write docs/results/README.md from the JSON files beside it, which benchmarks/fusion.py makes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from study import spread

INTRODUCTION = """# Results on the tiny models

Written by `python benchmarks/tables.py` from the JSON files in this folder; each names the command that made it. Pure
text is in bits per byte, averaged over the test split of four domains; text that switches domain every 128 tokens is in
nats per token; cost is tokens that experts really processed, in units of one expert that processes every token. A
figure is the mean over the seeds with its standard error; seeds change training text, start, and the test sequences
that are drawn. The source models are the same for all seeds.
"""

DEFAULT = "default"
BEFORE = "start16"
"""An earlier default, which all rows of the last table are changes to."""
AS_BEFORE = (
    "--set 'router.token={window: 32}' --set 'router.topk={k: 1, catch_up: 16, window: 32}' "
    "--set 'train.start={sequences: 16}' --set train.router_learning_rate=0.01"
)
CHANGES = {
    "default_plain": "heads weighed by the router alone (`router.token.posterior: false`)",
    "default_more": "64 calibration sequences a domain and 200 mixture steps, instead of 32 and 100",
    "default_whole": "experts whole (`fusion.span: 4`)",
}
"""Changes to the default of today."""
ABLATIONS = {
    "matching": "100 steps of feature matching before any loss (`train.start.matching_steps`)",
    "distill": "learning from the best source of each token (`train.losses.distill: 0.5`)",
    "evidence_start16": "a router that gathers evidence (`window: 1`, `switch: 0.01`) and is sticky (`stickiness: 4`)",
    "several": "evidence from windows of 1, 8 and 32 states, a hidden layer, 64 calibration sequences a domain, "
    "fitted to the mixture of sources",
    "whole": "the same, experts whole (`fusion.span: 4`)",
    "cut_start16": "the GPT-2 stranger cut into two spans, with ridge-started adapters",
    "cut_matching": "the same, with 100 steps of feature matching",
    "fusion": "4 calibration sequences a domain instead of 16 (`train.start.sequences`); so have all below",
    "sticky": "`stickiness: 4`: a token's expert stays until another is 4 nats more probable",
    "evidence": "a router that gathers evidence and is sticky, as above",
    "batch4": "four sequences a step instead of two; so do all below",
    "bottleneck": "bottleneck adapters",
    "catch0": "no catch-up: an expert sees only what was routed to it",
    "cut": "the GPT-2 stranger cut into two spans, with ridge-started adapters",
    "simple": "`simple` router: one decision a sequence, from its first 32 tokens, trained on pure sequences",
    "sparse": "trained under sparse top-1 semantics, routers supervised",
}


WHAT_FOLLOWS = """Soft routing beats the trunk that got as much training as all experts together by more than two
standard errors on either kind of text; hard top-1 does on text that switches, and not on pure text."""

WHAT_CHANGES_SAY = """A router that sees states alone is behind the posterior-weighted ensemble on pure text. With what
the experts' predictions say (`posterior`) soft routing gains on both kinds of text; hard routing, which cannot know
them, stays as it is. More calibration text is a little better everywhere, and takes longer to start on. Uncut experts
are best on pure text, where they pass the oracle, and keep more of each expert; cut ones are better on text that
switches, and only they give adapters something to do."""


def pair(value: Sequence[float] | None, digits: int = 3) -> str:
    """Return a mean with its standard error."""
    return "-" if value is None else f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def systems_table(result: dict[str, Any]) -> list[str]:
    """Return the rows of all systems, and how far they are from the fused model in standard errors."""
    lines = [
        "| system | pure | switching | cost, pure | cost, switching | pure: behind fused soft, in standard errors |",
        "|---|---|---|---|---|---|",
    ]
    for name, entry in result["summary"]["systems"].items():
        mean, error = entry["pure_mean_minus_fused_soft"]
        behind = "" if name == "fused_soft" else f"{mean:+.3f}" + (f" ({mean / error:+.0f})" if error else "")
        cells = [
            entry["label"],
            *(pair(entry[k]) for k in ("pure_mean", "switching", "cost", "cost_switching")),
            behind,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def headline_lines(result: dict[str, Any]) -> list[str]:
    """Return the headline figures as a list, of comparisons those with what was there."""
    words = {
        "gap_closed_soft": "share of the gap from trunk to per-sequence oracle that is closed on pure text, soft",
        "gap_closed_hard": "the same, hard top-1 with catch-up",
        "switching_hard_minus_posterior_ensemble": "hard top-1 minus posterior-weighted ensemble, switching text, nats",
        "cost_hard_switching": "tokens processed by hard top-1 on switching text, in units of one expert",
        "beats_every_static_merge": "both modes beat every static merge, on both kinds of text, for every seed",
        "beats_self_stitch": "both modes beat self-stitch, on both kinds of text, for every seed",
        "least_kept_soft": "least share of an expert's own strength that is kept on its domain, soft",
        "least_kept_hard": "the same, hard top-1",
        "worst_against_best_single_soft": "by how much the worst domain exceeds the best single model there, soft",
        "worst_against_best_single_hard": "the same, hard top-1",
    }
    out = []
    for key, text in words.items():
        value = result["summary"]["headline"].get(key)
        if isinstance(value, bool) and "self_stitch" not in result["summary"]["systems"]:
            continue
        if value is not None:
            out.append(f"- {text}: **{('yes' if value else 'no') if isinstance(value, bool) else pair(value)}**")
    return out


def data_matched(path: Path) -> list[str]:
    """Return the section on a trunk that got the experts' training itself."""
    if not path.is_file():
        return []
    result = json.loads(path.read_text())
    lines = ["## The trunk, given the experts' own training", ""]
    lines += [f"`{result['command']}` on {result['device']}: the base, trained further on all domains together.", ""]
    lines += ["| steps | pure | switching |", "|---|---|---|"]
    for name, entry in result["summary"].items():
        lines.append(f"| {name} | {pair(entry['pure_mean'])} | {pair(entry['switching'])} |")
    lines += ["", "The fused model minus that trunk, by seed (below 0: the fused model is better):", ""]
    lines += ["| fused model | steps | pure | switching |", "|---|---|---|---|"]
    for recipe, label in ((DEFAULT, "default"), ("default_whole", "default, experts whole")):
        runs = json.loads((path.parent / f"{recipe}.json").read_text())["runs"]
        for mode in ("soft", "hard"):
            ours = [next(s for s in run["systems"] if s["name"] == f"fused_{mode}") for run in runs]
            for name, entry in result["summary"].items():
                each = entry["by_seed"]
                cells = [
                    pair(spread([a[key] - b for a, b in zip(ours, each[key], strict=True)]))
                    for key in ("pure_mean", "switching")
                ]
                lines.append(f"| {label}, {mode} | {name.partition(' ')[0]} | " + " | ".join(cells) + " |")
    lines += ["", WHAT_FOLLOWS]
    return [*lines, ""]


def changes(folder: Path, rows: dict[str, str]) -> list[str]:
    """Return a table of the fused model, soft and hard, with a row for each change, by the name of its file."""
    lines = ["| change | soft, pure | hard, pure | soft, switching | hard, switching | hard cost, switching |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, text in rows.items():
        systems = json.loads((folder / f"{name}.json").read_text())["summary"]["systems"]
        soft, hard = systems["fused_soft"], systems["fused_hard"]
        cells = [soft["pure_mean"], hard["pure_mean"], soft["switching"], hard["switching"], hard["cost_switching"]]
        lines.append("| " + " | ".join([text, *map(pair, cells)]) + " |")
    return lines


def commands(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the commands that made files."""
    return ["Commands:", "", *(f"- {n}: `{json.loads((folder / f'{n}.json').read_text())['command']}`" for n in names)]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    folder: Path = parser.parse_args().folder
    found = json.loads((folder / f"{DEFAULT}.json").read_text())
    lines = [INTRODUCTION, "## The default, and every baseline", ""]
    lines += [f"`{found['command']}` on {found['device']}, torch {found['torch']}.", ""]
    lines += [*headline_lines(found), "", *systems_table(found), ""]
    lines += data_matched(folder / "data_matched.json")
    lines += ["## What a change does", "", *changes(folder, {DEFAULT: "none", **CHANGES}), ""]
    lines += [WHAT_CHANGES_SAY, "", *commands(folder, CHANGES), "", "## What changes did before", ""]
    lines += [
        "Changes to an earlier default: a router on the mean of the last 32 states, and 16 calibration sequences a"
    ]
    lines += ["domain unless a row says otherwise. The commands were run then; today each needs"]
    lines += [f"`{AS_BEFORE}`", "before its own settings.", ""]
    lines += [*changes(folder, {BEFORE: "none", **ABLATIONS}), "", *commands(folder, {BEFORE: "", **ABLATIONS})]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
