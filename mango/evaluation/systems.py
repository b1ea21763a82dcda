"""The systems that are compared, each as losses on the test sequences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mango.corpus import Sequences, token_losses
from mango.errors import EvaluationError
from mango.evaluation.calibration import Guesses, losses_and_guesses
from mango.evaluation.metrics import bits_per_byte, mean_of, nats_per_token
from mango.evaluation.routing import RoutingTotals
from mango.evaluation.speed import PeakMemory, relative_time
from mango.evaluation.work import per_token
from mango.fusion import MolForCausalLM
from mango.surgery.vocabulary import Retold

SWITCHING = "switching"
"""Name of the text that switches domain, beside the names of the domains."""

Texts = Mapping[str, Sequences]


@dataclass
class Measured:
    """One system's losses on every text, and what it cost.

    Args:
        losses: ``[sequences, length - 1]`` nats, by domain and for text that switches domain.
        cost: tokens that experts processed on each text, in units of one expert.
        relative_time: time of a pass over that of the trunk.
        peak_memory_mb: memory of a loaded model and a pass.
        totals: what routers chose on each text.
        flops: floating-point operations for each token of each text; empty where nothing was counted.
        guesses: the first guess of each next token of pure text; None where they are not known.
    """

    losses: dict[str, Tensor]
    cost: dict[str, float]
    relative_time: float | None = None
    peak_memory_mb: float | None = None
    totals: dict[str, RoutingTotals] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    guesses: Guesses | None = None


@dataclass(frozen=True)
class Bench:
    """What every system is measured on.

    Args:
        texts: test sequences, by domain and for text that switches domain.
        batch_size: sequences a forward pass.
        repeats: timed passes.
        device: where models run.
        trunk: the model that others are timed beside.
        counted: sequences of each text on which floating-point operations are counted.
    """

    texts: Texts
    batch_size: int
    repeats: int
    device: torch.device
    trunk: nn.Module
    counted: int = 1

    def timing_batch(self) -> Tensor:
        """Return the batch that is timed."""
        return self.texts[SWITCHING].input_ids[: self.batch_size].to(self.device)

    def measure(self, load: Callable[[], nn.Module]) -> Measured:
        """Load a model, measure it on every text, and time it beside the trunk."""
        memory = PeakMemory(self.device)
        model = load()
        batch = self.timing_batch()
        with torch.no_grad():
            model(input_ids=batch)
            peak = memory.read()
            time = relative_time(
                lambda: model(input_ids=batch), lambda: self.trunk(input_ids=batch), self.repeats, self.device
            )
        measured = self._told_again(model) if isinstance(model, Retold) else self._scored(model)
        measured.relative_time = time
        measured.peak_memory_mb = peak
        measured.flops = per_token(model, self.texts, self.counted)
        return measured

    def _told_again(self, model: Retold) -> Measured:
        """Return the losses of a model with another tokenizer, which guesses tokens of its own."""
        losses = {n: token_losses(model, text.input_ids, batch_size=self.batch_size) for n, text in self.texts.items()}
        return Measured(losses, dict.fromkeys(self.texts, 1.0))

    def _scored(self, model: nn.Module) -> Measured:
        """Return losses on every text, guesses on pure text, and what routers chose, from one pass over each text."""
        losses: dict[str, Tensor] = {}
        totals: dict[str, RoutingTotals] = {}
        guesses: list[Guesses] = []
        for name, text in self.texts.items():
            watched = Watched(model, RoutingTotals(model)) if isinstance(model, MolForCausalLM) else None
            if name == SWITCHING:
                losses[name] = token_losses(watched or model, text.input_ids, batch_size=self.batch_size)
            else:
                watch = None if watched is None else watched.note
                losses[name], found = losses_and_guesses(model, text.input_ids, batch_size=self.batch_size, watch=watch)
                guesses.append(found)
            if watched is not None:
                totals[name] = watched.totals
        cost = {name: totals[name].cost() if name in totals else 1.0 for name in self.texts}
        return Measured(losses, cost, totals=totals, guesses=Guesses.of(guesses))


class Watched(nn.Module):
    """A fused model whose routing is summed while it runs."""

    def __init__(self, model: MolForCausalLM, totals: RoutingTotals) -> None:
        super().__init__()
        self.model = model
        self.totals = totals

    def token_losses(self, input_ids: Tensor) -> Tensor:
        """Return the loss of each token, ``[rows, length - 1]``, and note what routers chose."""
        output = self.model(input_ids=input_ids, labels=input_ids, losses_only=True)
        self.note(output, input_ids)
        return output.token_losses  # type: ignore[no-any-return]

    def note(self, output: Any, input_ids: Tensor) -> None:
        """Note what routers chose in a pass over rows of tokens."""
        self.totals.add(output, input_ids.numel())


def row(
    name: str, label: str, kind: str, measured: Measured, texts: Texts, *, trunk_tokens_per_s: float, note: str = ""
) -> dict[str, Any]:
    """Return a system's entry in the evaluation."""
    domains = [text for text in texts if text != SWITCHING]
    try:
        pure = {domain: bits_per_byte(measured.losses[domain], texts[domain].num_bytes) for domain in domains}
        switching = nats_per_token(measured.losses[SWITCHING])
    except EvaluationError as error:
        raise EvaluationError(f"{label}: {error}") from error
    mean = mean_of(pure)
    time = measured.relative_time
    return {
        "name": name,
        "label": label,
        "kind": kind,
        "pure": {domain: estimate.value for domain, estimate in pure.items()},
        "pure_mean": mean.value,
        "pure_se": mean.error,
        "switching": switching.value,
        "switching_se": switching.error,
        "cost": sum(measured.cost[domain] for domain in domains) / len(domains),
        "cost_switching": measured.cost[SWITCHING],
        "flops": sum(measured.flops[domain] for domain in domains) / len(domains) if measured.flops else None,
        "flops_switching": measured.flops.get(SWITCHING),
        "tokens_per_s": None if time is None else trunk_tokens_per_s / time,
        "peak_memory_mb": measured.peak_memory_mb,
        "note": note,
    }
