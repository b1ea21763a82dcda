"""Routers: from the pooled state of each token to the weight of each expert."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from mango.fusion.params import HeadParams, SimpleParams, TemperatureParams, TokenParams, TopKParams
from mango.fusion.pooling import Pool
from mango.fusion.registries import ROUTERS


@dataclass(frozen=True)
class Selection:
    """How tokens choose among experts.

    Args:
        k: the number of experts that process a token; None means all of them, softly.
        catch_up: with `k`, tokens that an expert reads first each time that it is entered.
        frozen_after: with `k`, tokens after which the choice is made; before, the anchor has the token.
        straight_through: whether a weight of 1 carries the gradient of its probability.
    """

    k: int | None = None
    catch_up: int = 0
    frozen_after: int = 0
    straight_through: bool = False


@dataclass(frozen=True)
class Decision:
    """What a router says of each token.

    Args:
        log_probs: log-probabilities of the experts after the temperature, float32 ``[..., experts]``.
        weights: their weights, ``[..., experts]``; they sum to one.
        selected: who processes the token, or None for everyone.
        pooled: what the decision was made from, ``[..., width]``.
    """

    log_probs: Tensor
    weights: Tensor
    selected: Tensor | None
    pooled: Tensor


class Temperature(nn.Module):
    """``tau = softplus(theta) + floor``, so that no training can bring it to zero."""

    def __init__(self, params: TemperatureParams) -> None:
        super().__init__()
        self.params = params
        self.theta = nn.Parameter(torch.zeros(()), requires_grad=params.learned)

    def start_weights(self, std: float) -> None:
        """Give the parameter its value before training."""
        init.constant_(self.theta, math.log(math.expm1(self.params.start - self.params.floor)))

    def forward(self) -> Tensor:
        """Return the temperature, a scalar."""
        return nn.functional.softplus(self.theta.float()) + self.params.floor


class Router(nn.Module):
    """A head on a pooled state, a learned temperature, and a rule by which tokens choose.

    Pooled states are normalised to zero mean and unit variance (no parameters), so that the head sees the same scale
    at every position.

    Args:
        width: width of the trunk's residual stream.
        num_experts: number of experts that can be entered here; the first is the anchor.
        params: the router's own parameters.
    """

    def __init__(self, width: int, num_experts: int, params: HeadParams) -> None:
        super().__init__()
        self.width = width
        self.num_experts = num_experts
        self.temperature = Temperature(params.temperature)
        if params.hidden:
            self.inner: nn.Linear | None = nn.Linear(width, params.hidden)
        else:
            self.inner = None
        self.outer = nn.Linear(params.hidden or width, num_experts)

    @property
    def pool(self) -> Pool:
        """The pooling rule."""
        raise NotImplementedError(f"{type(self).__name__} has no pooling rule")

    @property
    def selection(self) -> Selection:
        """How tokens choose when the model is used."""
        return Selection()

    @property
    def training_selection(self) -> Selection:
        """How tokens choose while the model is trained."""
        return self.selection

    def scores(self, pooled: Tensor) -> Tensor:
        """Return the scores of the experts before the temperature, float32 ``[..., experts]``."""
        features = nn.functional.layer_norm(pooled.float(), (self.width,))
        if self.inner is not None:
            features = nn.functional.gelu(self.inner(features.to(self.inner.weight.dtype)))
        return self.outer(features.to(self.outer.weight.dtype)).float()  # type: ignore[no-any-return]

    def decide(self, pooled: Tensor, index: Tensor, selection: Selection) -> Decision:
        """Decide for every token.

        The temperature comes before the selection, and before every statistic that is taken of the decision.

        Args:
            pooled: shape ``[..., width]``.
            index: each token's number among the tokens of its row, ``[...]``.
            selection: how tokens choose.
        """
        log_probs = torch.log_softmax(self.scores(pooled) / self.temperature(), dim=-1)
        if selection.k is None:
            return Decision(log_probs, log_probs.exp(), None, pooled)
        return choose(log_probs, pooled, index, selection)


def choose(log_probs: Tensor, pooled: Tensor, index: Tensor, selection: Selection) -> Decision:
    """Return the decision that keeps the `selection.k` most probable experts of each token.

    Their weights are renormalised for ``k > 1`` and 1 for ``k == 1``. Ties go to the expert that is listed first.

    Args:
        log_probs: shape ``[..., experts]``.
        pooled: what they were made from, ``[..., width]``.
        index: each token's number among the tokens of its row, ``[...]``.
        selection: how tokens choose; its `k` is a number.
    """
    assert selection.k is not None
    order = torch.sort(log_probs.detach(), dim=-1, descending=True, stable=True).indices[..., : selection.k]
    selected = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, order, True)
    if selection.frozen_after:
        anchor = torch.zeros_like(selected)
        anchor[..., 0] = True
        selected = torch.where((index + 1 < selection.frozen_after).unsqueeze(-1), anchor, selected)
    if selection.k == 1:
        weights = selected.to(log_probs.dtype)
        if selection.straight_through:
            probs = log_probs.exp() * selected
            weights = weights + (probs - probs.detach())  # the difference is exactly zero
    else:
        # A softmax over the chosen, since probabilities that are forced upon a token may be too small to divide by.
        weights = log_probs.masked_fill(~selected, -torch.inf).softmax(-1)
    return Decision(log_probs, weights, selected, pooled)


@ROUTERS.register("simple", SimpleParams)
class SimpleRouter(Router):
    """One decision a sequence: it settles while the prompt is read, and is frozen from its end on."""

    def __init__(self, width: int, num_experts: int, params: SimpleParams) -> None:
        super().__init__(width, num_experts, params)
        self.params = params

    @property
    def pool(self) -> Pool:
        """The running mean of the first ``prompt`` states."""
        return Pool("prompt", self.params.prompt)

    @property
    def selection(self) -> Selection:
        """Everyone, or the `k` best of the frozen decision."""
        if self.params.k is None:
            return Selection()
        return Selection(self.params.k, self.params.catch_up, self.params.prompt, straight_through=True)

    @property
    def training_selection(self) -> Selection:
        """Everyone, softly."""
        return Selection()


@ROUTERS.register("token", TokenParams)
class TokenRouter(Router):
    """A soft decision for each token; every expert processes all tokens."""

    def __init__(self, width: int, num_experts: int, params: TokenParams) -> None:
        super().__init__(width, num_experts, params)
        self.params = params

    @property
    def pool(self) -> Pool:
        """As ``pooling`` and ``window`` say."""
        return Pool(self.params.pooling, self.params.window)


@ROUTERS.register("topk", TopKParams)
class TopKRouter(TokenRouter):
    """A sparse decision for each token; an expert reads what it was given and the last few tokens before an entry."""

    params: TopKParams

    @property
    def selection(self) -> Selection:
        """The `k` most probable experts."""
        return Selection(self.params.k, self.params.catch_up, straight_through=True)

    @property
    def training_selection(self) -> Selection:
        """The same, or everyone softly, as ``training`` says."""
        return self.selection if self.params.training == "sparse" else Selection()
