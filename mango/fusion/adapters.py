"""Adapters: what leads from one model's residual stream into another's."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from transformers import initialization as init

from mango.fusion.params import BottleneckParams, LinearParams, MapKind
from mango.fusion.registries import ADAPTERS


class Adapter(nn.Module):
    """Maps states of width `width_in` to width `width_out`.

    At equal width an untrained adapter is the identity. Where `fitted` says so, it starts from an affine map that
    `start_from` sets, fitted in closed form on paired activations.

    Args:
        width_in: width of its input.
        width_out: width of its output.
        start: the map that it starts from at equal width.
    """

    def __init__(self, width_in: int, width_out: int, *, start: MapKind = "identity") -> None:
        super().__init__()
        self.width_in = width_in
        self.width_out = width_out
        self.fitted: MapKind = "ridge" if width_in != width_out else start

    @abstractmethod
    def forward(self, states: Tensor) -> Tensor:
        """Map states ``[..., width_in]`` to ``[..., width_out]``."""

    @abstractmethod
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Start from the affine map ``x @ weight + bias``.

        Args:
            weight: shape ``[width_in, width_out]``.
            bias: shape ``[width_out]``.
        """

    def keep_start(self) -> None:
        """Take where its affine map is now for its start, if it has one."""

    @abstractmethod
    def distance(self) -> Tensor:
        """Return how far training has moved it: the mean square of the change of its maps, a scalar with a gradient."""


class _ZeroLinear(nn.Linear):
    """A linear map that starts at zero."""

    def start_weights(self, std: float) -> None:
        init.zeros_(self.weight)
        init.zeros_(self.bias)


class _Affine(nn.Module):
    """A full affine map that remembers where it started."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(width_out))
        self.register_buffer("start_weight", torch.zeros(width_in, width_out))
        self.register_buffer("start_bias", torch.zeros(width_out))

    def start_weights(self, std: float) -> None:
        weight = torch.empty_like(self.weight)
        nn.init.normal_(weight, std=self.weight.shape[0] ** -0.5)
        if weight.shape[0] == weight.shape[1]:
            weight = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        for name in ("weight", "start_weight"):
            init.copy_(getattr(self, name), weight)
        for name in ("bias", "start_bias"):
            init.zeros_(getattr(self, name))

    def forward(self, states: Tensor) -> Tensor:
        return torch.addmm(self.bias, states.flatten(0, -2), self.weight).view(*states.shape[:-1], self.weight.shape[1])

    @torch.no_grad()
    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.get_buffer("start_weight").copy_(weight)
        self.get_buffer("start_bias").copy_(bias)

    def keep_start(self) -> None:
        self.start_from(self.weight.detach().clone(), self.bias.detach().clone())

    def distance(self) -> Tensor:
        moved = (self.weight - self.get_buffer("start_weight")).square().sum()
        return (moved + (self.bias - self.get_buffer("start_bias")).square().sum()) / self.weight.numel()


@ADAPTERS.register("linear", LinearParams)
class LinearAdapter(Adapter):
    """Identity plus a low-rank map that starts at zero at equal width; an affine map otherwise, or where one is fitted.

    Source: the low-rank form is that of LoRA (2106.09685), with the zero matrix on the output side.
    """

    def __init__(self, width_in: int, width_out: int, params: LinearParams) -> None:
        super().__init__(width_in, width_out, start=params.start)
        if self.fitted == "identity":
            self.affine = None
            self.down = nn.Parameter(torch.zeros(width_in, params.rank))
            self.up = nn.Parameter(torch.zeros(params.rank, width_out))
        else:
            self.affine = _Affine(width_in, width_out)

    def start_weights(self, std: float) -> None:
        """Give the low-rank part its start: the inner map random, the outer one zero."""
        if self.affine is None:
            init.normal_(self.down, std=std)
            init.zeros_(self.up)

    def forward(self, states: Tensor) -> Tensor:
        """Map states ``[..., width_in]`` to ``[..., width_out]``."""
        if self.affine is not None:
            return self.affine(states)  # type: ignore[no-any-return]
        return states + (states @ self.down) @ self.up

    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Start from the affine map ``x @ weight + bias``; only where one is to be fitted."""
        if self.affine is None:
            raise ValueError("a linear adapter between equal widths starts from the identity")
        self.affine.start_from(weight, bias)

    def keep_start(self) -> None:
        """Take where its affine map is now for its start; a low-rank part keeps zero for its own."""
        if self.affine is not None:
            self.affine.keep_start()

    def distance(self) -> Tensor:
        """Return the mean square of what was added to the identity, or of the change of the affine map."""
        if self.affine is not None:
            return self.affine.distance()
        return (self.down @ self.up).square().mean()


@ADAPTERS.register("bottleneck", BottleneckParams)
class BottleneckAdapter(Adapter):
    """Identity, or a fitted affine map, plus a bottleneck whose output starts at zero.

    Source: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP" (1902.00751), with a norm before.
    """

    def __init__(self, width_in: int, width_out: int, params: BottleneckParams) -> None:
        super().__init__(width_in, width_out, start=params.start)
        self.affine = None if self.fitted == "identity" else _Affine(width_in, width_out)
        self.norm = nn.LayerNorm(width_in)
        self.down = nn.Linear(width_in, params.size)
        self.up = _ZeroLinear(params.size, width_out)

    def forward(self, states: Tensor) -> Tensor:
        """Map states ``[..., width_in]`` to ``[..., width_out]``."""
        straight = states if self.affine is None else self.affine(states)
        change = self.up(nn.functional.gelu(self.down(self.norm(states))))
        return straight + change  # type: ignore[no-any-return]

    def start_from(self, weight: Tensor, bias: Tensor) -> None:
        """Start from the affine map ``x @ weight + bias``; only where one is to be fitted."""
        if self.affine is None:
            raise ValueError("a bottleneck adapter between equal widths starts from the identity")
        self.affine.start_from(weight, bias)

    def keep_start(self) -> None:
        """Take where its affine map is now for its start; the bottleneck keeps zero for its own."""
        if self.affine is not None:
            self.affine.keep_start()

    def distance(self) -> Tensor:
        """Return the mean square of the bottleneck's output map, plus that of the change of the affine map."""
        moved = self.up.weight.square().mean() + self.up.bias.square().mean()
        return moved if self.affine is None else moved + self.affine.distance()
