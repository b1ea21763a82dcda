"""What calibration text says about the models of a merge: planned from headers, measured once, kept on disk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mango.checkpoints import TensorSpec, check_room, sha256_file, write_file
from mango.checkpoints.failures import writing
from mango.errors import MergeError
from mango.merging.alignment import Aligned
from mango.merging.outputs import COPY, OutputTensor
from mango.merging.registry import MERGERS, Statistic
from mango.merging.running import TURNED, Runnable
from mango.merging.tensor_sources import TensorSource, Zeros
from mango.merging.texts import CalibrationText
from mango.tensors import torch_dtype

_ALIGNED_BYTES = 64
OnStep = Callable[[int, int], None]


@dataclass(eq=False)
class Measurement:
    """One kind of statistic of one model.

    Attributes:
        kind: what is measured.
        runnable: the model.
        text: what it is measured on.
        specs: what is kept, by the name of the tensor in the merge: float32 of its shape for Fisher information,
            float64 ``[width_in, width_in]`` for Gram matrices.
        file: where it is kept, once it is measured.
    """

    kind: Statistic
    runnable: Runnable
    text: CalibrationText
    specs: dict[str, TensorSpec] = field(default_factory=dict)
    file: Path | None = None

    @property
    def key(self) -> str:
        """What the merge calls the model."""
        return self.runnable.model.key

    @property
    def num_bytes(self) -> int:
        """The size of what is kept."""
        return sum(_padded(spec.num_bytes) for spec in self.specs.values())

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads."""
        return self.text.input_ids.numel()

    @property
    def num_flops(self) -> float:
        """About the floating point operations that it takes."""
        passes = 6.0 if self.kind == "fishers" else 2.0
        squares = sum(2.0 * spec.num_elements for spec in self.specs.values()) if self.kind == "grams" else 0.0
        return self.num_tokens * (passes * self.runnable.num_parameters + squares)

    def want(self, name: str) -> Measured | None:
        """Ask for the statistic of a tensor; None where there is none, since it is of no linear layer.

        Args:
            name: the tensor's name in the merge.
        """
        if name not in self.specs:
            shape = self._shape(name)
            if shape is None:
                return None
            self.specs[name] = TensorSpec(name, "F32" if self.kind == "fishers" else "F64", shape)
        spec = self.specs[name]
        return Measured(name, spec.dtype, spec.shape, self)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        if self.kind == "fishers":
            return self.runnable.model.tensors[name].shape
        kind = self.runnable.linear.get(name)
        if kind is None:
            return None
        width = self.runnable.model.tensors[self.stored(name)].shape[0 if kind == TURNED else 1]
        return width, width

    def stored(self, name: str) -> str:
        """Return the tensor that a name of the merge stands for in this model: a tied head is its embedding."""
        return self.runnable.stored.get(name, name)

    def run(self, file: Path, device: torch.device | str, on_step: OnStep | None = None) -> bool:
        """Measure the model, unless an earlier run has.

        Args:
            file: where what is measured is kept; a file with its hash is put beside it.
            device: where the model runs.
            on_step: called with (sequences done, sequences in all).

        Returns:
            Whether it was measured now; an earlier run had done so otherwise.

        Raises:
            MergeError: a loss or an input of a layer is not finite.
            CheckpointError: there is no room.
        """
        note = file.with_suffix(".json")
        if _is_whole(file, note, self._layout):
            self.file = file
            return False
        check_room(file, self.num_bytes)
        with writing(file), file.open("wb") as stream:
            stream.truncate(max(self.num_bytes, 1))
        self.file = file
        totals = dict(self._views(shared=True))
        model = self.runnable.load(device)
        sequences = [row.unsqueeze(0).to(device) for row in self.text.input_ids]
        add = add_fishers if self.kind == "fishers" else add_grams
        add(model, sequences, {self.runnable.own[name]: total for name, total in totals.items()}, on_step)
        del model
        for name, total in totals.items():
            if not math.isfinite(float(total.sum(dtype=torch.float64))):
                raise MergeError(f"calibration: model {self.key!r} gives {self.kind} of {name!r} that are not finite")
        del totals
        with writing(file):
            descriptor = os.open(file, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        write_file(note, json.dumps({"layout": self._layout, "sha256": sha256_file(file)}))
        return True

    @property
    def _layout(self) -> list[list[Any]]:
        """What lies in the file, in order, as JSON gives it back."""
        return [[spec.name, spec.dtype, list(spec.shape)] for spec in self.specs.values()]

    def load(self, name: str) -> torch.Tensor:
        """Return the statistic of a tensor, mapped from its file."""
        return dict(self._views(shared=False, only=name))[name]

    def _views(self, *, shared: bool, only: str | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        assert self.file is not None, "what is measured is asked for after the measurement"
        size = max(self.num_bytes, 1)
        whole = torch.from_file(str(self.file), shared=shared, size=size, dtype=torch.uint8)
        start = 0
        for name, spec in self.specs.items():
            if only in (None, name):
                yield name, whole[start : start + spec.num_bytes].view(torch_dtype(spec.dtype)).view(spec.shape)
            start += _padded(spec.num_bytes)


@dataclass(frozen=True, eq=False)
class Measured(TensorSource):
    """The statistic of one tensor, which is there when its model is measured."""

    measurement: Measurement

    def load(self) -> torch.Tensor:
        """Map it."""
        return self.measurement.load(self.name)

    @property
    def held_bytes(self) -> int:
        """None: the bytes are the file's."""
        return 0

    @property
    def read_bytes(self) -> int:
        """Its size."""
        return self.measurement.specs[self.name].num_bytes


def with_statistics(output: OutputTensor, measurement: Callable[[Statistic, str], Measurement]) -> OutputTensor:
    """Return a tensor with the statistics that its method takes.

    Args:
        output: the tensor.
        measurement: returns the measurement of a kind and a model, making it when it is first asked for.
    """
    if output.method == COPY or (kind := MERGERS[output.method].statistics) is None:
        return output
    found: list[TensorSource | None] = []
    for key, source in output.sources:
        if isinstance(source, Zeros):  # a bias that the model does not have
            found.append(Zeros(source.name, "F32", source.shape) if kind == "fishers" else None)
            continue
        one = measurement(kind, key)
        if kind == "fishers":
            stored = one.stored(source.name)
            if isinstance(source, Aligned):
                raise MergeError(
                    f"{output.spec.name}: {output.method} knows what the rows of model {key!r} are worth in its own "
                    "vocabulary alone; give this tensor another method, or models of one vocabulary"
                )
            found.append(one.want(stored))
        else:
            found.append(one.want(source.name))
    arguments = dict(output.arguments)
    if kind == "grams" and all(entry is not None for entry in found):
        key, source = output.sources[0]
        arguments["transposed"] = measurement(kind, key).runnable.linear[source.name] == TURNED
    return replace(output, statistics=tuple(found), arguments=arguments)


def add_fishers(
    model: torch.nn.Module,
    sequences: list[torch.Tensor],
    totals: Mapping[str, torch.Tensor],
    on_step: OnStep | None = None,
) -> None:
    """Add the diagonal of a model's empirical Fisher information to totals, in the memory of one gradient.

    It is the mean over sequences of the squared gradient of their log-likelihood, with the tokens of the text as the
    labels. Gradients are squared, added and dropped one by one while the backward pass goes on.

    Args:
        model: takes ``input_ids`` and ``labels`` and returns an object with a ``loss``.
        sequences: token ids, each ``[1, tokens]`` with at least two tokens.
        totals: tensors to add to, by the name of the parameter.
        on_step: called with (sequences done, sequences in all).

    Raises:
        MergeError: there are no sequences, or a loss is not finite.

    Source:
        Matena and Raffel (2021), arXiv:2111.09832, section 3.1.
    """
    parameters = dict(model.named_parameters())
    share = 1.0 / max(1, len(sequences))
    hooks = []

    def square(total: torch.Tensor) -> Callable[[torch.Tensor], None]:
        def add(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            total.add_(parameter.grad.double().square_().mul_(share).to(total.device, total.dtype))
            parameter.grad = None

        return add

    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in totals)
            if name in totals:
                hook = parameter.register_post_accumulate_grad_hook(square(totals[name]))  # type: ignore[no-untyped-call]
                hooks.append(hook)
        with evaluating(model):
            for done, tokens in enumerate(_some(sequences)):
                loss = model(input_ids=tokens, labels=tokens).loss * (tokens.shape[1] - 1)  # a sum, not a mean
                if not bool(torch.isfinite(loss)):
                    raise MergeError(f"calibration: sequence {done} has a loss of {float(loss)}; wanted a number")
                loss.backward()
                if on_step is not None:
                    on_step(done + 1, len(sequences))
    finally:
        for hook in hooks:
            hook.remove()
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])


def add_grams(
    model: torch.nn.Module,
    sequences: list[torch.Tensor],
    totals: Mapping[str, torch.Tensor],
    on_step: OnStep | None = None,
) -> None:
    """Add the Gram matrices of the inputs of linear layers to totals.

    Args:
        model: takes ``input_ids``.
        sequences: token ids, each ``[1, tokens]``.
        totals: float64 ``[width_in, width_in]`` to add to, by the name of the layer's weight.
        on_step: called with (sequences done, sequences in all).

    Raises:
        MergeError: there are no sequences.

    Source:
        Jin et al. (2022), arXiv:2212.09849, section 4.
    """

    def hook(total: torch.Tensor) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], Any], None]:
        def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _output: Any) -> None:
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).to(total.dtype)
            total.add_((rows.T @ rows).to(total.device))

        return add

    hooks = []
    try:
        for name, total in totals.items():
            layer = model.get_submodule(name.removesuffix(".weight"))
            hooks.append(layer.register_forward_hook(hook(total)))
        with evaluating(model), torch.no_grad():
            for done, tokens in enumerate(_some(sequences)):
                model(input_ids=tokens)
                if on_step is not None:
                    on_step(done + 1, len(sequences))
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _some(sequences: list[torch.Tensor]) -> list[torch.Tensor]:
    if not sequences:
        raise MergeError("calibration: there are no sequences; give some text")
    return sequences


def _padded(size: int) -> int:
    return -(-size // _ALIGNED_BYTES) * _ALIGNED_BYTES


def _is_whole(file: Path, note: Path, layout: list[list[Any]]) -> bool:
    if not file.is_file() or not note.is_file():
        return False
    try:
        known = json.loads(note.read_text("utf-8"))
        return bool(known["layout"] == layout and known["sha256"] == sha256_file(file))
    except (ValueError, KeyError, TypeError):
        return False
