"""Quantised weights, turned into float32 while they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mango.errors import MergeError
from mango.merging.tensor_sources import TensorSource

_INSTEAD = "dequantise it into an ordinary checkpoint first, or merge the model that it was made from"


@dataclass(frozen=True)
class Scaled(TensorSource):
    """Small numbers times scales: one scale for the tensor, for each row, or for each block of rows and columns.

    Attributes:
        weight: the small numbers, float8 or int8.
        scale: factors, of shape [], [1], [rows], [rows, 1] or [row blocks, column blocks].
        zero: what stands for zero, of the scale's shape, or None.
        divisor: what the product is divided by.
        block: rows and columns that share a scale, where they do.
    """

    weight: TensorSource
    scale: TensorSource
    zero: TensorSource | None = None
    divisor: float = 1.0
    block: tuple[int, int] | None = None

    def load(self) -> torch.Tensor:
        """Return the weight in float32."""
        result = self.weight.load().float()
        if self.zero is not None:
            result = result.sub_(self._spread(self.zero))
        return result.mul_(self._spread(self.scale).div_(self.divisor))

    def _spread(self, source: TensorSource) -> torch.Tensor:
        factor = source.load().float().clone()
        if factor.numel() == 1:
            return factor.reshape([1] * len(self.shape))
        if factor.shape[0] == self.shape[0] and factor.numel() == self.shape[0]:
            return factor.reshape([self.shape[0], *[1] * (len(self.shape) - 1)])
        rows, columns = self.block or tuple(-(-e // n) for e, n in zip(self.shape, factor.shape, strict=True))
        spread = factor.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        return spread[: self.shape[0], : self.shape[1]]

    @property
    def kept_dtype(self) -> str:
        """Bfloat16, since the small numbers hold no more than that."""
        return "BF16"

    @property
    def held_bytes(self) -> int:
        """The float32 result, and the scales spread over it."""
        return self.num_elements * 8

    @property
    def read_bytes(self) -> int:
        """Numbers and scales."""
        return self.weight.read_bytes + self.scale.read_bytes


def dequantised(
    place: str, config: Mapping[str, Any], tensors: dict[str, TensorSource]
) -> tuple[dict[str, TensorSource], tuple[str, ...]]:
    """Return a model's tensors as plain weights, and what to note of it.

    Args:
        place: where the model is, for messages.
        config: content of its ``config.json``.
        tensors: its tensors by name.

    Returns:
        The tensors, and notes; as they were where nothing is quantised.

    Raises:
        MergeError: the weights are quantised in a way that is not read here, with the reason.
    """
    quantisation = config.get("quantization_config")
    if quantisation is None:
        return tensors, ()
    method = quantisation.get("quant_method") if isinstance(quantisation, Mapping) else None
    if method == "fp8":
        size = quantisation.get("weight_block_size")
        block = tuple(map(int, size)) if isinstance(size, list) and len(size) == 2 else None
        words = ("weight_scale_inv", "weight_scale")
        return _scaled(place, tensors, words, 1.0, ("activation_scale", "input_scale"), block), (_note("fp8"),)
    if method == "bitsandbytes" and quantisation.get("load_in_8bit"):
        return _scaled(place, tensors, ("SCB",), 127.0, drop=("weight_format",)), (_note("8-bit bitsandbytes"),)
    if method == "compressed-tensors" and quantisation.get("format") in {
        "float-quantized",
        "int-quantized",
        "naive-quantized",
    }:
        drop = ("input_scale", "input_zero_point", "output_scale", "k_scale", "v_scale")
        return _scaled(place, tensors, ("weight_scale",), 1.0, drop=drop), (_note("compressed"),)
    reason = {
        "gptq": "its codes are packed by groups in an order that only its own kernels define",
        "awq": "its codes are packed by groups in an order that only its own kernels define",
        "bitsandbytes": "its 4-bit codes unpack on its own kernels",
        "compressed-tensors": "its codes are packed",
    }.get(str(method), "there is no way to read it on a CPU here")
    raise MergeError(f"{place}: its weights are quantised ({method}), and {reason}; {_INSTEAD}")


def _note(kind: str) -> str:
    return f"its {kind} weights are turned into float32 while they are read"


def _scaled(
    place: str,
    tensors: dict[str, TensorSource],
    words: tuple[str, ...],
    divisor: float,
    drop: tuple[str, ...] = (),
    block: Any = None,
) -> dict[str, TensorSource]:
    result: dict[str, TensorSource] = {}
    scales = {name for name in tensors if name.endswith(tuple(f".{word}" for word in words))}
    zeros = {name for name in tensors if name.endswith(".weight_zero_point")}
    for name, tensor in tensors.items():
        stem = name.removesuffix(".weight")
        scale = next((f"{stem}.{word}" for word in words if f"{stem}.{word}" in tensors), None)
        if name in scales or name in zeros or name.endswith(tuple(f".{word}" for word in drop)):
            continue
        if name.endswith(".weight") and scale is not None:
            zero = tensors.get(f"{stem}.weight_zero_point")
            factor = tensors[scale]
            ends = (1, tensor.shape[0])
            grid = len(factor.shape) == 2 and len(tensor.shape) == 2 and not (factor.shape[1] == 1 or block is None)
            if factor.num_elements not in ends and not grid:
                message = f"{name} of {list(tensor.shape)} has scales of {list(factor.shape)}: no way to read these"
                raise MergeError(f"{place}: {message}; {_INSTEAD}")
            result[name] = Scaled(name, "F32", tensor.shape, tensor, factor, zero, divisor, block if grid else None)
        elif tensor.dtype in {"F8_E4M3", "F8_E5M2", "I8"}:
            raise MergeError(f"{place}: {name} is {tensor.dtype} and has no scale; the checkpoint is not whole")
        else:
            result[name] = tensor
    return result
