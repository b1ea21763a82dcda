"""A search for parameters by merged models' bits per byte on calibration text, under a fixed budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mango import console
from mango.errors import MergeError
from mango.merging.candidates import Groups, Notes, fill, with_settings
from mango.merging.combining import combine_whole
from mango.merging.document import MergeDocument, key_of
from mango.merging.layers import cuts
from mango.merging.measuring import with_statistics
from mango.merging.outputs import COPY, OutputTensor, plan_outputs
from mango.merging.pipeline import compute_threads
from mango.merging.registry import MERGERS
from mango.merging.running import Runnable
from mango.merging.texts import CalibrationText

if TYPE_CHECKING:
    from mango.merging.plan import MergePlan

Coordinate = tuple[str, str | None, str]
"""Parameter, model (None where all share it), group."""


class Search:
    """CMA-ES over parameters by group of blocks; the document's own values are measured first.

    Args:
        ready: the merge with the document's own values.
        one: the merged model.
        text: what candidates are measured on.

    Raises:
        MergeError: the package ``cma`` is missing, or a parameter is of no model that is merged.

    Source:
        Hansen, "The CMA Evolution Strategy: A Tutorial" (2016), arXiv:1604.00772; for merges Akiba et al.,
        "Evolutionary Optimization of Model Merging Recipes" (2024), arXiv:2403.13187.
    """

    def __init__(self, ready: MergePlan, one: Runnable, text: CalibrationText) -> None:
        assert ready.document.search is not None
        self.text = text
        self.runnable = one
        self._ready = ready
        self._section = ready.document.search
        outputs = [output for output in ready.tensors if output.method != COPY]
        self._groups = Groups(outputs, ready.lead.stacks, self._section.groups)
        self._coordinates, self._start = _space(outputs, self._groups, self._section.parameters)
        _import_cma()
        entries = {key_of(entry.model) for entry in ready.document.models or ()}
        for name, model, _ in self._coordinates:
            if model is not None and model not in entries:
                raise MergeError(f"search.parameters.{name}: model {model!r} has no entry under models: list it there")

    @property
    def num_flops(self) -> float:
        """A forward pass for each evaluation."""
        return 2.0 * self._section.evaluations * self.text.input_ids.numel() * self.runnable.num_parameters

    @property
    def num_merges(self) -> int:
        """One an evaluation."""
        return self._section.evaluations

    @property
    def words(self) -> str:
        """What is done, for people."""
        return (
            f"search {len(self._coordinates)} values of {', '.join(self._section.parameters)} in "
            f"{self._section.evaluations} evaluations of {self.text.input_ids.numel()} tokens"
        )

    @property
    def batch_size(self) -> int:
        """Sequences of a forward pass."""
        return self._section.batch_size

    def solve(self, bench: Path, device: torch.device | str) -> MergeDocument:
        """Return the document with the best values of all that were measured, the start among them.

        Args:
            bench: where every evaluation is noted; those that are noted there are not repeated.
            device: where the merged models run.

        Raises:
            MergeError: the start cannot be measured.
        """
        budget = self._section.evaluations
        notes = Notes(bench / "search.jsonl")
        if notes.known:
            console.note(f"search: {len(notes.known)} of {budget} evaluations were there already")
        plain = with_settings(self._ready.document, {}, {})
        best, best_loss, start_loss = plain, math.inf, math.inf
        with compute_threads(torch.get_num_threads()) as (pool, count), console.Meter("search") as meter:
            judge = _Judge(self, device, pool, count)
            candidates = _Candidates(self._start, self._section.step, self._section.seed)
            for number in range(budget):
                point = None if number == 0 else candidates.ask()
                document = plain if point is None else self._document(point)
                known = notes.known[number] if number < len(notes.known) else None
                if known is not None and known["point"] == (None if point is None else point.tolist()):
                    loss = math.inf if known["loss"] is None else float(known["loss"])
                else:
                    loss = judge.loss(document, must=point is None)
                    listed = None if point is None else point.tolist()
                    notes.add({"point": listed, "loss": loss if math.isfinite(loss) else None})
                if point is None:
                    start_loss = loss
                else:
                    candidates.tell(loss)
                if loss < best_loss:
                    best, best_loss = document, loss
                    console.note(f"search: {loss:.4f} bits per byte after {number + 1} of {budget} evaluations")
                meter(number + 1, budget)
        console.note(f"search: the best of {budget} has {best_loss:.4f} bits per byte, the start {start_loss:.4f}")
        return best

    def outputs_of(self, document: MergeDocument) -> tuple[OutputTensor, ...]:
        """Return the tensors of a candidate.

        Raises:
            MergeError: its values cannot be merged with.
        """
        ready = self._ready
        known = {(one.kind, one.key): one for one in ready.measurements}
        put_together = cuts(document, ready.inputs)
        tensors, _ = plan_outputs(document, ready.inputs, put_together, ready.alignment, ready.tied)
        return tuple(with_statistics(output, lambda kind, key: known[kind, key]) for output in tensors)

    def _document(self, point: np.ndarray) -> MergeDocument:
        shared: dict[str, Any] = {}
        own: dict[str, dict[str, Any]] = {}
        for name, (low, high) in self._section.parameters.items():
            values: dict[str | None, dict[str, float]] = {}
            for (parameter, model, group), share in zip(self._coordinates, point, strict=True):
                if parameter == name:
                    values.setdefault(model, {})[group] = float(min(max(low + share * (high - low), low), high))
            for model, by_group in values.items():
                setting = self._groups.setting(by_group)
                if model is None:
                    shared[name] = setting
                else:
                    own.setdefault(name, {})[model] = setting
        return with_settings(self._ready.document, shared, own)


def _space(
    outputs: Sequence[OutputTensor], groups: Groups, bounds: Mapping[str, tuple[float, float]]
) -> tuple[list[Coordinate], np.ndarray]:
    """Return the coordinates, and where the document is in them: shares of the bounds' distance, means of groups."""
    sums: dict[Coordinate, list[float]] = {}
    for output in outputs:
        method, fields = MERGERS[output.method], MERGERS.entry(output.method).params.model_fields
        for field_name, described in fields.items():
            name = described.alias or field_name
            if name not in bounds:
                continue
            low, high = bounds[name]
            value = output.arguments[field_name]
            keys = [key for key, _ in output.sources] if field_name in method.per_model else [None]
            for key, number in zip(keys, value if field_name in method.per_model else [value], strict=True):
                share = 0.5 if number is None else (min(max(float(number), low), high) - low) / (high - low)
                sums.setdefault((name, key, groups.of(output.spec.name)), []).append(share)
    if missing := [name for name in bounds if all(name != coordinate[0] for coordinate in sums)]:
        raise MergeError(f"search.parameters.{missing[0]}: no tensor is merged by a method that takes it")
    return list(sums), np.array([sum(shares) / len(shares) for shares in sums.values()])


class _Candidates:
    """Points within 0 and 1, each of which is told its loss before the next one is asked for.

    When the strategy has come to its end before the budget has, it starts again from its best point.
    """

    def __init__(self, start: np.ndarray, step: float, seed: int) -> None:
        self._size = len(start)
        # the strategy has no covariance in one dimension: a second one then changes nothing
        self._centre = np.concatenate([start, np.full(max(0, 2 - len(start)), 0.5)])
        self._step = step
        self._random = np.random.default_rng(seed)
        self._strategy: Any = None
        self._points: list[np.ndarray] = []
        self._losses: list[float] = []

    def ask(self) -> np.ndarray:
        """Return the next point."""
        if len(self._losses) == len(self._points):
            if self._strategy is None or self._strategy.stop():
                self._restart()
            self._points, self._losses = self._strategy.ask(), []
        return np.asarray(self._points[len(self._losses)][: self._size], dtype=np.float64)

    def tell(self, loss: float) -> None:
        """Take the loss of the last point; one that could not be measured is worse than all others."""
        self._losses.append(loss)
        if len(self._losses) == len(self._points):
            worst = max((known for known in self._losses if math.isfinite(known)), default=1e6) + 1.0
            self._strategy.tell(self._points, [known if math.isfinite(known) else worst for known in self._losses])

    def _restart(self) -> None:
        best = None if self._strategy is None else self._strategy.result.xbest
        options = {
            "bounds": [0.0, 1.0],
            "randn": lambda *shape: self._random.standard_normal(shape),
            "seed": math.nan,  # numbers come from randn, and the global generator is left alone
            "verbose": -9,
        }
        centre = self._centre if best is None else np.clip(best, 0.0, 1.0)
        self._strategy = _import_cma().CMAEvolutionStrategy(centre, self._step, options)


def _import_cma() -> Any:
    try:
        import cma
    except ImportError as error:
        raise MergeError(
            f"search: the package cma is missing ({error}): install the extra 'search' (pip install cma)"
        ) from error
    return cma


class _Judge:
    """Measures candidates, all in one model."""

    def __init__(self, search: Search, device: torch.device | str, pool: ThreadPoolExecutor, num_threads: int) -> None:
        self._search, self._device, self._pool, self._num_threads = search, device, pool, num_threads
        self._model: Any = None

    def loss(self, document: MergeDocument, *, must: bool) -> float:
        """Return the bits per byte of a candidate, infinite where it cannot be merged or gives no numbers.

        Args:
            document: the candidate.
            must: raise what goes wrong.
        """
        from mango.corpus import token_losses

        search = self._search
        if self._model is None:
            self._model = search.runnable.load(self._device)
        try:
            outputs = {output.spec.name: output for output in search.outputs_of(document)}
            fill(
                self._model,
                search.runnable,
                list(search.runnable.names.values()),
                lambda name: combine_whole(outputs[name]),
                self._pool,
            )
        except MergeError:
            if must:
                raise
            return math.inf
        torch.set_num_threads(self._num_threads)
        try:
            ids, sizes = search.text.input_ids, search.text.num_bytes
            losses = token_losses(self._model, ids, batch_size=search.batch_size)
        finally:
            torch.set_num_threads(1)
        found = float(losses.double().sum()) / math.log(2) / float(sizes[:, 1:].sum())
        if must and not math.isfinite(found):
            raise MergeError(f"search: the document's own values give {found} bits per byte; change them")
        return found if math.isfinite(found) else math.inf
