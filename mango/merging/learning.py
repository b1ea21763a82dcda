"""Coefficients that calibration text teaches: by gradients of the merged model's entropy, for coefficients alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mango import console
from mango.checkpoints import TensorSpec
from mango.errors import MergeError
from mango.merging.candidates import Groups, Notes, fill, with_settings
from mango.merging.combining import Prepared, piece_calls, prepare
from mango.merging.document import MergeDocument
from mango.merging.outputs import COPY, OutputTensor
from mango.merging.pipeline import compute_threads
from mango.merging.registry import MERGERS, Learned
from mango.merging.running import Runnable
from mango.merging.sections import LearnSection
from mango.merging.texts import CalibrationText
from mango.tensors.pieces import pieces

if TYPE_CHECKING:
    from mango.merging.plan import MergePlan


class Learning:
    """Adam on the coefficients of a merge, to minimise the mean entropy of the merged model's predictions.

    The merged weights are linear in the coefficients, so that the gradient of a coefficient is the scalar product of
    the weights' gradient with what the coefficient multiplies. Weights' gradients are used and dropped one by one, and
    what they are multiplied with is read from the models: memory is that of one model in float32, however many there
    are.

    Args:
        ready: the merge with the document's own values, from which learning starts.
        one: the merged model.
        text: what it learns on.

    Source:
        Yang et al., "AdaMerging" (2023), arXiv:2310.02575, equations 3 to 5; for language models the mean is taken
        over all predicted tokens.
    """

    def __init__(self, ready: MergePlan, one: Runnable, text: CalibrationText) -> None:
        self.text = text
        self.runnable = one
        self._document = ready.document
        self._section = ready.document.learn or LearnSection()
        self._outputs = {
            output.spec.name: replace(output, spec=TensorSpec(output.spec.name, "F32", output.spec.shape))
            for output in ready.tensors
            if output.method != COPY and MERGERS[output.method].learned is not None
        }
        self._groups = Groups(list(self._outputs.values()), ready.lead.stacks, None)
        first = next(iter(self._outputs.values()))
        self._models = [key for key, _ in first.sources]
        self._group_names = self._groups.names if self._section.granularity == "layer" else ["task"]
        self._places = {group: i for i, group in enumerate(self._group_names)}
        self._order = torch.randperm(
            len(text.input_ids),
            generator=torch.Generator().manual_seed(ready.document.calibration.seed),  # type: ignore[union-attr]
        )

    @property
    def num_flops(self) -> float:
        """Forward and backward passes of all steps."""
        size = self._section.batch_size * self.text.input_ids.shape[1]
        return 6.0 * self._section.steps * size * self.runnable.num_parameters

    @property
    def num_merges(self) -> int:
        """One a step, and one for the gradient."""
        return 2 * self._section.steps

    @property
    def words(self) -> str:
        """What is done, for people."""
        section = self._section
        number = len(self._group_names) * len(self._models)
        return (
            f"learn {number} coefficients in {section.steps} steps of {section.batch_size} sequences of "
            f"{self.text.input_ids.shape[1]} tokens"
        )

    def solve(self, bench: Path, device: torch.device | str) -> MergeDocument:
        """Learn the coefficients, and return the document that has them.

        Args:
            bench: where the gradient of every step is noted; steps that are noted there are not run again.
            device: where the merged model runs.

        Raises:
            MergeError: the entropy is not finite.
        """
        section = self._section
        values = self._start().requires_grad_()
        adam = torch.optim.Adam([values], lr=section.learning_rate, betas=(0.9, 0.999))
        notes = Notes(bench / "learning.jsonl")
        if notes.known:
            console.note(f"learn coefficients: {len(notes.known)} of {section.steps} steps were there already")
        runner: _Runner | None = None
        entropies = []
        with compute_threads(torch.get_num_threads()) as (pool, count), console.Meter("learn coefficients") as meter:
            for step in range(section.steps):
                if step < len(notes.known):
                    entry = notes.known[step]
                else:
                    runner = runner or _Runner(self.runnable, self._outputs, device, pool, count)
                    entropy, gradient = runner.step(self._batch(step), self._by_tensor(values.detach()))
                    entry = {"entropy": entropy, "gradient": self._gathered(gradient).tolist()}
                    notes.add(entry)
                if not math.isfinite(entry["entropy"]):
                    raise MergeError(
                        f"learn: the entropy is {entry['entropy']} after {step} steps; lower learning_rate"
                    )
                entropies.append(entry["entropy"])
                values.grad = torch.tensor(entry["gradient"], dtype=torch.float64)
                adam.step()
                meter(step + 1, section.steps)
        few = max(1, len(entropies) // 10)
        first, last = (sum(part) / len(part) for part in (entropies[:few], entropies[-few:]))
        console.note(f"learn coefficients: entropy from {first:.4f} to {last:.4f} nats in {section.steps} steps")
        return self._told(values.detach())

    def _learned(self, output: OutputTensor) -> Learned:
        learned = MERGERS[output.method].learned
        assert learned is not None
        return learned

    def _start(self) -> torch.Tensor:
        """Return the document's own values: the mean over the tensors of each group."""
        total = torch.zeros(len(self._group_names), len(self._models), dtype=torch.float64)
        counts = torch.zeros(len(self._group_names), 1, dtype=torch.float64)
        for name, output in self._outputs.items():
            row = self._row(name)
            total[row] += torch.tensor(output.arguments[self._learned(output).parameter], dtype=torch.float64)
            counts[row] += 1
        return total / counts

    def _row(self, name: str) -> int:
        return 0 if self._section.granularity == "task" else self._places[self._groups.of(name)]

    def _by_tensor(self, values: torch.Tensor) -> dict[str, tuple[float, ...]]:
        return {name: tuple(values[self._row(name)].tolist()) for name in self._outputs}

    def _gathered(self, gradient: dict[str, torch.Tensor]) -> torch.Tensor:
        total = torch.zeros(len(self._group_names), len(self._models), dtype=torch.float64)
        for name in self._outputs:  # in this order, whatever the backward pass did first
            if name in gradient:
                total[self._row(name)] += gradient[name]
        return total

    def _batch(self, step: int) -> torch.Tensor:
        size, rows = self._section.batch_size, len(self._order)
        places = [(step * size + i) % rows for i in range(min(size, rows))]
        return self.text.input_ids[self._order[places]]

    def _told(self, values: torch.Tensor) -> MergeDocument:
        own: dict[str, dict[str, Any]] = {}
        parameters = {self._learned(output).parameter for output in self._outputs.values()}
        for parameter in sorted(parameters):
            for column, model in enumerate(self._models):
                found = {
                    group: float(values[0 if self._section.granularity == "task" else row, column])
                    for row, group in enumerate(self._groups.names)
                }
                own.setdefault(parameter, {})[model] = self._groups.setting(found)
        return with_settings(self._document, {}, own)


class _Runner:
    """The merged model while its coefficients change."""

    def __init__(
        self,
        one: Runnable,
        outputs: dict[str, OutputTensor],
        device: torch.device | str,
        pool: ThreadPoolExecutor,
        num_threads: int,
    ) -> None:
        self._one, self._outputs, self._pool, self._num_threads = one, outputs, pool, num_threads
        self._model = one.load(device)
        self._arguments = {name: prepare(output).arguments for name, output in outputs.items()}
        self._gradient: dict[str, torch.Tensor] = {}
        for name in outputs:
            parameter = self._model.get_parameter(one.own[name])
            parameter.register_post_accumulate_grad_hook(self._use(name))  # type: ignore[no-untyped-call]
        learned = {one.own[name] for name in outputs}
        for own, parameter in self._model.named_parameters():
            parameter.requires_grad_(own in learned)

    def step(self, tokens: torch.Tensor, values: dict[str, tuple[float, ...]]) -> tuple[float, dict[str, torch.Tensor]]:
        """Return the mean entropy of the predictions, and its gradient by tensor and model.

        Args:
            tokens: ids ``[sequences, tokens]``.
            values: coefficients of each tensor.
        """
        self._values = values
        fill(self._model, self._one, list(self._outputs), self._merged, self._pool)
        self._gradient = {}
        torch.set_num_threads(self._num_threads)
        try:
            logits = self._model(input_ids=tokens.to(self._model.device), use_cache=False).logits.float()
            log_probs = logits.log_softmax(-1)
            entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
            entropy.backward()
        finally:
            torch.set_num_threads(1)
        return float(entropy.detach()), self._gradient

    def _prepared(self, name: str) -> Prepared:
        output = self._outputs[name]
        learned = MERGERS[output.method].learned
        assert learned is not None
        assert output.base is not None
        tensors = tuple(source.load().reshape(-1) for _, source in output.sources)
        arguments = {**self._arguments[name], learned.parameter: self._values[name]}
        return Prepared(output, tensors, output.base[1].load().reshape(-1), arguments, torch.device("cpu"))

    def _merged(self, name: str) -> torch.Tensor:
        ready = self._prepared(name)
        return torch.cat([call() for call in piece_calls(ready)]).view(ready.output.spec.shape)

    def _use(self, name: str) -> Callable[[torch.Tensor], None]:
        def use(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            gradient = parameter.grad.reshape(-1).cpu()
            parameter.grad = None
            ready = self._prepared(name)
            learned = MERGERS[ready.output.method].learned
            assert learned is not None
            assert ready.base is not None
            total = torch.zeros(len(ready.tensors), dtype=torch.float64)
            position = 0
            for *tensors, base, part in pieces([*ready.tensors, ready.base, gradient]):
                changes = learned.directions(tensors, base, first_position=position, **ready.arguments)
                wide = part.double()
                total += torch.stack([torch.dot(change.reshape(-1), wide) for change in changes])
                position += len(part)
            self._gradient[name] = total

        return use
