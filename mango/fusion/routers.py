"""Routers: from the pooled state of each token to the weight of each expert."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import initialization as init

from mango.fusion.evidence import LEAST_EVIDENCE, filtered, sticky
from mango.fusion.params import HeadParams, SimpleParams, TemperatureParams, TokenParams, TopKParams
from mango.fusion.pooling import Pool
from mango.fusion.registries import ROUTERS

CATCH_UP = 16
"""Tokens that an expert reads first where a router that runs every expert is made to choose one."""


@dataclass(frozen=True)
class Selection:
    """How tokens choose among experts.

    Args:
        k: the number of experts that process a token; None means all of them, softly.
        catch_up: with `k`, tokens that an expert reads first each time that it is entered.
        frozen_after: with `k`, tokens after which the choice is made; before, the anchor has the token.
        straight_through: whether a weight of 1 carries the gradient of its probability.
        mass: with `k`, only the most probable experts whose probabilities add up to this much; at least one.
        stickiness: with ``k == 1``, nats by which another expert must be more probable than that of the token before.
    """

    k: int | None = None
    catch_up: int = 0
    frozen_after: int = 0
    straight_through: bool = False
    mass: float = 1.0
    stickiness: float = 0.0


@dataclass
class Recalled:
    """What a router remembers of each row; deciding brings it up to date.

    Args:
        valid: which of the tokens to decide on are tokens, ``[rows, length]``.
        belief: log-probabilities of the experts after the token before, float64 ``[rows, experts]``.
        choice: the expert of the token before, ``[rows]``; before any, the number of experts.
    """

    valid: Tensor
    belief: Tensor
    choice: Tensor

    @classmethod
    def nothing(cls, valid: Tensor, num_experts: int) -> Recalled:
        """Return what is remembered before the first token of rows like those of `valid`."""
        rows = valid.shape[0]
        belief = torch.full((rows, num_experts), -math.log(num_experts), dtype=torch.float64, device=valid.device)
        return cls(valid, belief, torch.full((rows,), num_experts, device=valid.device))


@dataclass(frozen=True)
class Decision:
    """What a router says of each token.

    Args:
        log_probs: log-probabilities of the experts after the temperature, float32 ``[..., experts]``.
        weights: their weights, ``[..., experts]``; they sum to one.
        selected: who processes the token, or None for everyone.
        pooled: what the decision was made from, ``[..., width]``.
        log_total: log of the sum of the exponentials of the scores, after the temperature, ``[...]``.
    """

    log_probs: Tensor
    weights: Tensor
    selected: Tensor | None
    pooled: Tensor
    log_total: Tensor


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


class Switch(nn.Module):
    """The learned probability that the best expert changes between two tokens."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = start
        self.theta = nn.Parameter(torch.zeros(()))

    def start_weights(self, std: float) -> None:
        """Give the parameter its value before training."""
        init.constant_(self.theta, math.log(self.start / (1 - self.start)))

    def forward(self) -> Tensor:
        """Return the probability, a scalar."""
        return torch.sigmoid(self.theta.float()).clamp(1e-6, 1 - 1e-6)


class Balance(nn.Module):
    """Biases of the experts that count in choosing and in nothing else; no gradient moves them.

    Source: Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts" (2408.15664), alg. 1.
    """

    def __init__(self, num_experts: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.bias = nn.Parameter(torch.zeros(num_experts), requires_grad=False)

    def start_weights(self, std: float) -> None:
        """Start without a bias."""
        init.zeros_(self.bias)

    @torch.no_grad()
    def update(self, load: Tensor) -> None:
        """Move each bias by one step against the load.

        Args:
            load: tokens, or the share of them, that each expert was given, ``[experts]``.
        """
        self.bias.add_(self.rate * torch.sign(load.float().mean() - load.float()).to(self.bias))


class Router(nn.Module):
    """A head on a pooled state, a learned temperature, and a rule by which tokens choose.

    Pooled states are normalised to zero mean and unit variance (no parameters), so that the head sees the same scale
    at every position.

    Args:
        width: width of the trunk's residual stream.
        num_experts: number of experts that can be entered here; the first is the anchor.
        params: the router's own parameters.
        parts: pools that stand side by side.
    """

    def __init__(self, width: int, num_experts: int, params: HeadParams, *, parts: int = 1) -> None:
        super().__init__()
        self.width = width
        self.num_experts = num_experts
        self.head = params
        self.parts = parts
        self.temperature = Temperature(params.temperature)
        if params.hidden:
            self.inner: nn.Linear | None = nn.Linear(parts * width, params.hidden)
        else:
            self.inner = None
        self.outer = nn.Linear(params.hidden or parts * width, num_experts)
        self.switch: Switch | None = None
        self.balance: Balance | None = None

    @property
    def pool(self) -> Pool:
        """The pooling rule."""
        raise NotImplementedError(f"{type(self).__name__} has no pooling rule")

    @property
    def posterior(self) -> bool:
        """Whether heads are weighed by what they predicted, too."""
        return False

    @property
    def selection(self) -> Selection:
        """How tokens choose when the model is used."""
        return Selection()

    @property
    def training_selection(self) -> Selection:
        """How tokens choose while the model is trained."""
        return self.selection

    @property
    def hard_selection(self) -> Selection:
        """How tokens choose when the model is made to use one expert for each token."""
        return Selection(k=1, catch_up=self.selection.catch_up if self.selection.k else CATCH_UP)

    def scores(self, pooled: Tensor) -> Tensor:
        """Return the scores of the experts before the temperature, float32 ``[..., experts]``."""
        parts = pooled.float().view(*pooled.shape[:-1], self.parts, self.width)
        features = nn.functional.layer_norm(parts, (self.width,)).flatten(-2)
        if self.inner is not None:
            features = nn.functional.gelu(self.inner(features.to(self.inner.weight.dtype)))
        return self.outer(features.to(self.outer.weight.dtype)).float()  # type: ignore[no-any-return]

    def log_probs(self, pooled: Tensor, recalled: Recalled | None = None) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the experts, float32 ``[..., experts]``, and the log of what they sum to.

        Args:
            pooled: shape ``[..., width]``; of a router that gathers evidence, ``[rows, length, width]``.
            recalled: what is remembered of each row, which moves on; nothing without.
        """
        scores = self.scores(pooled) / self.temperature()
        if self.training:
            scores = self._disturbed(scores)
        total = scores.logsumexp(-1)
        if self.switch is not None:
            if recalled is None:
                valid = torch.ones(scores.shape[:-1], dtype=torch.bool, device=scores.device)
                recalled = Recalled.nothing(valid, self.num_experts)
            log_probs, recalled.belief = filtered(scores, recalled.valid, self.switch(), recalled.belief)
            return log_probs, total
        if self.head.gate == "sigmoid":
            scores = nn.functional.logsigmoid(scores)
        return torch.log_softmax(scores, dim=-1), total

    def _disturbed(self, scores: Tensor) -> Tensor:
        """Return scores with noise, and without the experts that rows have to do without."""
        if self.head.noise:
            scores = scores + self.head.noise * torch.randn_like(scores)
        if self.head.expert_dropout:
            rows = scores.shape[0] if scores.ndim > 1 else 1
            chance = torch.rand(rows, self.num_experts, device=scores.device)
            dropped = (chance < self.head.expert_dropout) & (chance < chance.max(-1, keepdim=True).values)
            shape = (rows, *(1,) * (scores.ndim - 2), self.num_experts)
            scores = scores + LEAST_EVIDENCE * dropped.view(shape).to(scores.dtype)
        return scores

    def decide(self, pooled: Tensor, index: Tensor, selection: Selection, recalled: Recalled | None = None) -> Decision:
        """Decide for every token.

        The temperature comes before the selection, and before every statistic that is taken of the decision.

        Args:
            pooled: shape ``[..., width]``.
            index: each token's number among the tokens of its row, ``[...]``.
            selection: how tokens choose.
            recalled: what is remembered of each row, which moves on; nothing without.
        """
        log_probs, total = self.log_probs(pooled, recalled)
        if selection.k is None:
            return Decision(log_probs, log_probs.exp(), None, pooled, total)
        ranking = log_probs.detach()
        if self.balance is not None:
            ranking = ranking + self.balance.bias
        if selection.stickiness and selection.k == 1:
            if recalled is None:
                recalled = Recalled.nothing(torch.ones_like(index, dtype=torch.bool), self.num_experts)
            chosen, recalled.choice = sticky(ranking, recalled.valid, selection.stickiness, recalled.choice)
            # Where no token has come yet, nothing is chosen and nothing is looked at.
            chosen = chosen.clamp(max=self.num_experts - 1)
            ranking = nn.functional.one_hot(chosen, self.num_experts).to(ranking.dtype)
        decision = choose(log_probs, pooled, index, selection, ranking)
        return replace(decision, log_total=total)


def choose(
    log_probs: Tensor, pooled: Tensor, index: Tensor, selection: Selection, ranking: Tensor | None = None
) -> Decision:
    """Return the decision that keeps the `selection.k` most probable experts of each token.

    Their weights are renormalised for ``k > 1`` and 1 for ``k == 1``. Ties go to the expert that is listed first.

    Args:
        log_probs: shape ``[..., experts]``.
        pooled: what they were made from, ``[..., width]``.
        index: each token's number among the tokens of its row, ``[...]``.
        selection: how tokens choose; its `k` is a number.
        ranking: by what they are chosen, ``[..., experts]``, where it is not their probability.
    """
    assert selection.k is not None
    ranking = log_probs.detach() if ranking is None else ranking
    order = torch.sort(ranking, dim=-1, descending=True, stable=True).indices[..., : selection.k]
    wanted = torch.ones_like(order, dtype=torch.bool)
    if selection.mass < 1:
        ranked = log_probs.detach().gather(-1, order).double().exp()
        wanted = ranked.cumsum(-1) - ranked < selection.mass
        wanted[..., 0] = True
    selected = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, order, wanted)
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
    return Decision(log_probs, weights, selected, pooled, log_probs.logsumexp(-1))


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
        several = params.pooling == "windows"
        super().__init__(width, num_experts, params, parts=len(params.windows) if several else 1)
        self.params = params
        if params.switch is not None:
            self.switch = Switch(params.switch)

    @property
    def pool(self) -> Pool:
        """As ``pooling``, ``window`` and ``windows`` say."""
        if self.params.pooling == "windows":
            return Pool("windows", max(self.params.windows), self.params.windows)
        return Pool(self.params.pooling, self.params.window)

    @property
    def posterior(self) -> bool:
        """As ``posterior`` says."""
        return self.params.posterior

    @property
    def hard_selection(self) -> Selection:
        """The best expert, which stays until another is better by ``stickiness``."""
        return replace(super().hard_selection, stickiness=self.params.stickiness)


@ROUTERS.register("topk", TopKParams)
class TopKRouter(TokenRouter):
    """A sparse decision for each token; an expert reads what it was given and the last few tokens before an entry."""

    params: TopKParams

    def __init__(self, width: int, num_experts: int, params: TopKParams) -> None:
        super().__init__(width, num_experts, params)
        if params.balance_rate:
            self.balance = Balance(num_experts, params.balance_rate)

    @property
    def selection(self) -> Selection:
        """The `k` most probable experts."""
        params = self.params
        return Selection(
            params.k, params.catch_up, straight_through=True, mass=params.mass, stickiness=params.stickiness
        )

    @property
    def training_selection(self) -> Selection:
        """The same, or everyone softly, as ``training`` says."""
        return self.selection if self.params.training == "sparse" else Selection()
