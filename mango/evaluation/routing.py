"""What routers choose: by domain and position, token by token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mango.corpus import Sequences
from mango.fusion import MolForCausalLM, MolPreTrainedModel


class RoutingTotals:
    """Sums what routers choose over forward passes.

    Args:
        model: the fused model.
    """

    def __init__(self, model: MolPreTrainedModel) -> None:
        self.model = model
        self.num_tokens = 0
        self.processed = torch.zeros(len(model.spans), dtype=torch.long)
        self.weights: dict[int, Tensor] = {}
        self.entropy: dict[int, float] = {}
        self.experts: dict[int, tuple[str, ...]] = {}
        self.present: dict[int, int] = {}

    def add(self, output: Any, num_tokens: int) -> None:
        """Add a forward pass on so many tokens."""
        self.num_tokens += num_tokens
        self.processed += output.processed.cpu()
        for routing in output.routing:
            present = routing.present
            log_probs = routing.log_probs[present].double().cpu()
            position = routing.position
            self.experts[position] = routing.experts
            weights = routing.weights[present].double().sum(0).cpu()
            self.weights[position] = self.weights.get(position, torch.zeros_like(weights)) + weights
            self.entropy[position] = self.entropy.get(position, 0.0) - float((log_probs.exp() * log_probs).sum())
            self.present[position] = self.present.get(position, 0) + int(present.sum())

    def cost(self) -> float:
        """Return the tokens that experts processed, in units of one expert that processes every token."""
        return sum(self.by_expert().values()) / max(self.num_tokens, 1)

    def by_expert(self) -> dict[str, float]:
        """Return the tokens that each expert processed; a span counts by its share of the trunk's extent."""
        layout = self.model.layout
        out = dict.fromkeys((expert.name for expert in layout.experts), 0.0)
        for (number, index), count in zip(self.model.spans, self.processed.tolist(), strict=True):
            span = layout.experts[number].spans[index]
            out[layout.experts[number].name] += count * (span.exit - span.enter) / layout.num_positions
        return out


def positions(by_domain: Mapping[str, RoutingTotals]) -> list[dict[str, Any]]:
    """Return the rows of the report: for each position, what was chosen in each domain."""
    first = next(iter(by_domain.values()))
    rows: list[dict[str, Any]] = []
    for position, experts in sorted(first.experts.items()):
        domains: dict[str, Any] = {}
        for domain, totals in by_domain.items():
            present = max(totals.present[position], 1)
            shares = (totals.weights[position] / present).clamp(0, 1)
            domains[domain] = {
                "utilisation": [round(float(share), 6) for share in shares],
                "entropy_nats": max(0.0, totals.entropy[position] / present),
            }
        rows.append({"position": position, "experts": list(experts), "by_domain": domains})
    return rows


def sample(
    model: MolForCausalLM, tokenizer: PreTrainedTokenizerBase, sequences: Sequences, row: int, title: str
) -> dict[str, Any]:
    """Return a text whose tokens name the expert of each of them, at every position.

    Args:
        model: the fused model, routed as the text is to be routed; of several weights, the largest counts.
        tokenizer: its tokenizer.
        sequences: the sequences that the text is one of.
        row: which of them.
        title: its title.
    """
    ids = sequences.input_ids[row : row + 1]
    device = next(model.parameters()).device
    with torch.no_grad():
        routings = model(input_ids=ids.to(device), labels=ids.to(device), losses_only=True).routing
    anchor = model.layout.experts[0].name
    paths: list[list[str]] = [[] for _ in range(ids.shape[1])]
    for routing in routings:
        best, present = routing.weights[0].argmax(-1).tolist(), routing.present[0].tolist()
        for path, choice, here in zip(paths, best, present, strict=True):
            # A token that an expert of longer extent has is not asked again until that expert ends.
            path.append(routing.experts[choice] if here else path[-1])
    tokens = [
        {"text": tokenizer.decode([token]), "expert": path[0] if path else anchor, "domain": sequences.domains[domain],
         "path": path}
        for token, path, domain in zip(ids[0].tolist(), paths, sequences.domain_ids[row].tolist(), strict=True)
    ]  # fmt: skip
    return {"title": title, "tokens": tokens}
