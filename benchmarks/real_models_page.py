"""The page of benchmarks/real_models.py: docs/results/real_models.md from the JSON beside it."""

from __future__ import annotations

from typing import Any

INTRODUCTION = """# Results with real models

Written by `python benchmarks/real_models.py`, whose docstring says where the three files come from. The trunk is
SmolLM2-135M-Instruct (Q4_1). Guests are Gemma-3-270M (Q4_K_M) and Qwen2.5-Coder-0.5B-Instruct (Q4_K_M), read from GGUF.
All three have tokenizers of their own. A guest joins with a third of its blocks between adapters that start from
activations paired where tokens end at the same byte (`edges: trunk`), or whole, after `mango transplant` has given it
the trunk's vocabulary; or it keeps its tokenizer and its edges, and joins whole across a bridge (`edges: bridge`). Text
is that of `data/corpus`: modules of the Python standard library and Austen.

Of the runs that are kept here, made in several calls on two CPU cores that other work shared:

**Across bridges, fused softly, all three beat the trunk on code and prose together by far more than two standard
errors, and are better on either; they also beat whole-model routing, each model with its own tokens.** What helps is
the mixture: a hard choice among them gains nothing, since each guest alone loses 0.05 to 0.07 bits per byte on its
bridge. The router has one linear layer, is fitted to the loss of the mixture, and was chosen by cross-validation on
calibration text after the default router of `params.yaml` had learnt twelve calibration sequences by heart and gained
0.010 ± 0.008 on the first draw's test text.

**Where other tokenizers stop it: no other fusion here beats its trunk.** Whole guests with the trunk's vocabulary
lose more by it (unknown tokens spelt with their own, no training) than they may be ahead of the trunk, so routing
among them picks the trunk throughout; Gemma moreover expects a token for the beginning of a text, which the trunk's
rows do not have. Spans between adapters train, but what twenty steps teach is mostly the router's way back to the
trunk: soft fusion ends level with it, and hard top-1 chooses it alone. Not measured: longer training, whole
transplanted guests fused, transplants by sparse combination (`omp`, stopped after 14 minutes of one core on Qwen),
longer texts than 128 tokens, and more than one draw of text across bridges.
"""

LABELS = {
    "trunk": "trunk, SmolLM2-135M",
    "gemma": "Gemma-3-270M, its own tokens",
    "qwen": "Qwen2.5-Coder-0.5B, its own tokens",
    "gemma_transplanted": "Gemma-3-270M, the trunk's vocabulary",
    "qwen_transplanted": "Qwen2.5-Coder-0.5B, the trunk's vocabulary",
    "guest": "guest alone, its own tokens",
    "guest_transplanted": "guest alone, the trunk's vocabulary",
    "by_prompt": "whole model by prompt, each with its own tokens",
    "by_prompt_transplanted": "whole model by prompt, the trunk's vocabulary",
    "oracle": "oracle, best whole model of each sequence, own tokens",
    "oracle_transplanted": "oracle, the trunk's vocabulary",
    "fused_soft": "fused, soft",
    "fused_hard": "fused, hard top-1",
    "gemma_bridged": "Gemma-3-270M, told through its bridge",
    "qwen_bridged": "Qwen2.5-Coder-0.5B, told through its bridge",
    "predicted_bridged": "weights by what each predicted of the tokens so far alone",
    "uniform_bridged": "mean of all three distributions",
    "uniform_gemma": "mean of trunk's and Gemma's",
    "uniform_qwen": "mean of trunk's and Qwen's",
    "fixed_bridged": "the same weights for every token, fitted on calibration text",
    "by_prompt_bridged": "whole model by prompt, guests through their bridges",
    "oracle_bridged": "oracle of each sequence, guests through their bridges",
    "self_stitch": "self-stitch: the trunk in place of both guests",
}
BRIDGE_ORDER = (
    "trunk", "fused_soft", "fused_hard", "predicted_bridged", "fixed_bridged", "uniform_bridged", "uniform_gemma",
    "uniform_qwen", "by_prompt", "oracle", "by_prompt_bridged", "oracle_bridged", "gemma", "gemma_bridged", "qwen",
    "qwen_bridged",
)  # fmt: skip


def pair(value: list[float], digits: int = 3) -> str:
    """Return a figure with its standard error."""
    return f"{value[0]:.{digits}f} ± {value[1]:.{digits}f}"


def built(results: dict[str, Any]) -> list[str]:
    """Return the table of what was built, trained, saved and asked to generate."""
    yes = {True: "yes", False: "no"}
    lines = [
        "## End to end",
        "",
        "| guest | R² of the closed-form start, in and out | loss of the first and last steps | opened = saved "
        "| cached = uncached | tokens processed by each span |",
        "|---|---|---|---|---|---|",
    ]
    for entry in results.values():
        if "built" not in entry:
            continue
        found = entry["built"]
        fits = ", ".join(f"{fit:.2f}" for fit in found["starts"]["adapters"].values()) or "no adapter"
        lines.append(
            f"| {entry['what']} | {fits} | {found['loss_first']:.3f} to {found['loss_last']:.3f} (each over "
            f"{found['averaged_steps']} steps) | {yes[found['saved_equals_opened']]} "
            f"| {yes[found['cached_equals_uncached']]} | {found['tokens_processed_by_each_span']} |"
        )
    return [*lines, ""]


def measured(entry: dict[str, Any]) -> list[str]:
    """Return the table of what a fusion is beside trunk, guest and whole-model routing."""
    found = entry["measured"]
    if "seeds" in entry:
        found = {**found, "systems": {n: found["systems"][n] for n in BRIDGE_ORDER}}
    texts = ", ".join(
        f"{found['test_sequences'][d]} of {d} ({found['test_bytes'][d]:,} bytes)" for d in ("code", "novels")
    )
    lines = [
        f"## {entry['what'][0].upper()}{entry['what'][1:]}, in bits per byte",
        "",
        f"Held-out sequences of {found['test_length']} tokens of the trunk: {texts}. Errors are standard errors over "
        "sequences; differences are paired.",
        "",
        "| system | code | prose | mean | minus trunk, code | minus trunk, prose | minus trunk, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, system in found["systems"].items():
        apart = system["minus_trunk"]
        cells = [system["code"], system["novels"], system["mean"], apart["code"], apart["novels"]]
        cells.append(system["minus_trunk_mean"])
        shown = (
            [LABELS[name], *map(pair, cells)] if name != "trunk" else [LABELS[name], *map(pair, cells[:3]), "", "", ""]
        )
        lines.append("| " + " | ".join(shown) + " |")
    judge = verdict if "fused_soft" in found["systems"] else price_of_a_vocabulary
    more = price_of_a_bridge(entry) if "seeds" in entry else []
    return [*lines, "", *judge(found["systems"]), *more, ""]


def price_of_a_bridge(entry: dict[str, Any]) -> list[str]:
    """Return what telling guests in the trunk's tokens costs, every draw, and what was seen of the model itself."""
    lines: list[str] = []
    systems = entry["measured"]["systems"]
    for name, label in (("gemma", "Gemma-3-270M"), ("qwen", "Qwen2.5-Coder-0.5B")):
        words = (("code", "code"), ("novels", "prose"))
        costs = ", ".join(f"{systems[f'{name}_bridged'][d][0] - systems[name][d][0]:+.3f} on {w}" for d, w in words)
        lines.append(f"- Its bridge costs {label} {costs} (bits per byte, against its own tokens).")
    mean, error = systems["fused_soft"]["minus_by_prompt_mean"]
    lines.append(f"- Fused, soft, against whole-model routing by prompt, paired: {mean:+.3f} ± {error:.3f}.")
    stitch, error = entry["seeds"][0]["measured"]["systems"]["self_stitch"]["minus_trunk_mean"]
    lines.append(f"- Self-stitch, the trunk in place of both guests, on the first draw: {stitch:+.3f} ± {error:.3f}.")
    lines += ["", "Every draw of calibration and test text:", ""]
    lines += [
        "| seed | fused, soft, minus trunk: code | prose | mean | weights on code (trunk, Gemma, Qwen) | on prose |",
        "|---|---|---|---|---|---|",
    ]
    for one in entry["seeds"]:
        apart, built = one["measured"]["systems"]["fused_soft"], one["built"]
        shares = [", ".join(f"{share:.2f}" for share in built["mean_weights"][d].values()) for d in ("code", "novels")]
        cells = [apart["minus_trunk"]["code"], apart["minus_trunk"]["novels"], apart["minus_trunk_mean"]]
        lines.append(f"| {built['seed']} | " + " | ".join([*map(pair, cells), *shares]) + " |")
    built = entry["seeds"][0]["built"]
    yes = {True: "yes", False: "no"}
    lines += [
        "",
        f"Saved and opened again it gives the same logits bit for bit: {yes[built['saved_equals_opened']]}. Greedy "
        f"text with a cache is that without: {yes[built['cached_equals_uncached']]}. Of {built['tokens_of_the_trunk']} "
        f"tokens of the trunk in two padded rows the spans processed {built['tokens_processed_by_each_span']} of their "
        "own. Losses of the model's forward pass are those in the table within "
        f"{built['forward_differs_from_heads_by']:.0e} nats.",
    ]
    return lines


def verdict(systems: dict[str, Any]) -> list[str]:
    """Return what the figures say of the claim, computed from them."""
    lines: list[str] = []
    for name in ("fused_soft", "fused_hard"):
        mean, error = systems[name]["minus_trunk_mean"]
        worst = max(systems[name]["minus_trunk"][d][0] / systems["trunk"][d][0] for d in ("code", "novels"))
        beats = mean < -2 * error
        lines.append(
            f"- {LABELS[name]}: {'better' if beats else 'not better'} than the trunk by more than two standard errors "
            f"on both together ({mean:+.3f} ± {error:.3f}); on the domain where it does worst, {worst:+.1%}."
        )
    control = systems["by_prompt"]["mean"][0]
    fused = systems["fused_soft"]["mean"][0]
    lines.append(
        f"- Whole-model routing with each model's own tokens is at {control:.3f}, the fused model at {fused:.3f}: "
        f"{'fusion wins' if fused < control else 'whole-model routing wins'}."
    )
    return lines


def price_of_a_vocabulary(systems: dict[str, Any]) -> list[str]:
    """Return what giving the guests the trunk's vocabulary costs, computed from the figures."""
    lines: list[str] = []
    for name, label in (("gemma", "Gemma-3-270M"), ("qwen", "Qwen2.5-Coder-0.5B")):
        own, given = systems[name], systems[f"{name}_transplanted"]
        costs = ", ".join(
            f"{given[d][0] - own[d][0]:+.3f} on {word}" for d, word in (("code", "code"), ("novels", "prose"))
        )
        lines.append(f"- The trunk's vocabulary costs {label} {costs} (bits per byte, against its own tokens).")
    for kind, label in (("", "their own tokens"), ("_transplanted", "the trunk's vocabulary")):
        mean, error = systems[f"by_prompt{kind}"]["minus_trunk_mean"]
        lines.append(
            f"- Whole-model routing by prompt, guests with {label}: {mean:+.3f} ± {error:.3f} against the trunk."
        )
    return lines


def page(results: dict[str, Any]) -> str:
    """Return the page.

    Args:
        results: what is in the JSON, by fusion.
    """
    lines = [INTRODUCTION, *built(results)]
    for entry in results.values():
        if "measured" in entry:
            lines += measured(entry)
    lines += ["## Commands", ""]
    for name, entry in results.items():
        took = f"; built and trained in {entry['built']['seconds']:.0f} s" if "built" in entry else ""
        seeds = f"seeds {', '.join(str(s['built']['seed']) for s in entry['seeds'])}" if "seeds" in entry else "seed 0"
        lines.append(f"- {name}: `{entry['command']}` on {entry['device']}, torch {entry['torch']}, {seeds}{took}")
    return "\n".join(lines) + "\n"
