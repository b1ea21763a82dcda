"""Parameters of a fused model: the sections ``fusion``, ``adapter`` and ``router`` of params.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mango.config import Frozen, Problem, refuse, section_problems
from mango.errors import UnknownNameError
from mango.fusion.registries import ADAPTERS, ROUTERS
from mango.fusion.tasks import FusedTask
from mango.registry import Registry

MapKind = Literal["identity", "procrustes", "ridge"]
"""What an adapter starts from."""


class SpanParams(Frozen):
    """A run of an expert's blocks and where it stands in the trunk.

    Args:
        enter: cut of the trunk at which a token enters, from 0.
        exit: cut at which it leaves.
        blocks: first block of the expert, and the one after the last.
    """

    enter: int = Field(ge=0)
    exit: int = Field(ge=1)
    blocks: tuple[int, int]


class ExpertParams(Frozen):
    """One expert of a fused model.

    Args:
        model: name under ``models``.
        cut: ``fine`` cuts it wherever the trunk is cut; ``whole`` never; ``auto`` cuts siblings of the trunk (same
            architecture, width and depth) finely and strangers not at all; or the spans themselves.
        edges: ``own`` starts the first span from the expert's own embedding and ends the last in its own head, mixed
            in probability space; ``trunk`` takes the trunk's through adapters, so that the expert may have another
            tokenizer; ``bridge`` keeps both the expert's own edges and its own tokenizer: it reads the same text in its
            own tokens, whole, and what it says of the next is told in the trunk's.
    """

    model: str
    cut: Literal["auto", "fine", "whole"] | tuple[SpanParams, ...] = "auto"
    edges: Literal["own", "trunk", "bridge"] = "own"


def _expert(value: Any) -> Any:
    return {"model": value} if isinstance(value, str) else _tuples(value)


def _tuples(value: Any) -> Any:
    """Return YAML's lists as the tuples that strict validation asks for behind a validator of our own."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class AutoLayersParams(Frozen):
    """How ``layers: auto`` proposes where experts are cut.

    Args:
        measure: what says that states of trunk and expert are alike at two depths: ``fit``, R squared on held-out text
            of what an adapter starts as, the worse of both directions; or ``cka``, centred kernel alignment, which no
            rotation and no width changes.
        least: an expert is cut only between depths that are at least so alike.
        tokens: tokens of calibration text that are compared.
    """

    measure: Literal["fit", "cka"] = "fit"
    least: float = Field(default=0.8, le=1)
    tokens: int = Field(default=4096, ge=32)


class FusionParams(Frozen):
    """What is fused.

    Args:
        task: what the fused model is for.
        trunk: name of the model whose tokenizer and cuts the fused model has; its spans are the anchor.
        experts: the other experts, each a name under ``models`` or a mapping.
        span: blocks of the trunk between two cuts.
        layers: ``given`` cuts experts as their ``cut`` says; ``auto`` looks where the states of trunk and expert are
            alike on calibration text, and cuts each expert whose ``cut`` is ``auto`` there and nowhere else.
        auto: how ``layers: auto`` looks.
        dtype: element type of the fused model's weights.
    """

    task: FusedTask = "causal-lm"
    trunk: str
    experts: tuple[Annotated[ExpertParams, BeforeValidator(_expert)], ...] = ()
    span: int = Field(default=2, ge=1)
    layers: Literal["given", "auto"] = "given"
    auto: AutoLayersParams = AutoLayersParams()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def across_bridges(self) -> set[str]:
        """Return the names of the models that keep their own tokenizer and edges."""
        return {expert.model for expert in self.experts if expert.edges == "bridge"}


class LinearParams(Frozen):
    """A linear adapter: identity plus low rank at equal width, a full matrix otherwise.

    Args:
        rank: rank of the part that is trained at equal width.
        start: at equal width, ``identity`` with a low-rank part; or a whole affine map that starts from ``procrustes``,
            the rotation that brings paired states closest, or from ``ridge`` regression. Between widths it is ridge.
    """

    rank: int = Field(default=32, ge=1)
    start: MapKind = "identity"


class BottleneckParams(Frozen):
    """A bottleneck adapter: a residual of norm, down-projection, GELU and up-projection.

    Args:
        size: width of the bottleneck.
        start: what it stands beside at equal width: the ``identity``, or an affine map that starts from ``procrustes``
            or ``ridge``, as with the linear adapter.
    """

    size: int = Field(default=64, ge=1)
    start: MapKind = "identity"


class TemperatureParams(Frozen):
    """The learned temperature of a router, ``softplus(theta) + floor``.

    Args:
        start: temperature before training.
        floor: temperature that training cannot go below.
        learned: whether it is trained.
    """

    start: float = Field(default=1.0, gt=0)
    floor: float = Field(default=0.1, gt=0)
    learned: bool = True

    @model_validator(mode="after")
    def _agree(self) -> TemperatureParams:
        if self.start <= self.floor:
            refuse([Problem("start", f"{self.start} is not above the floor, {self.floor}", depends=("floor",))])
        return self


class HeadParams(Frozen):
    """What a router computes from the pooled state.

    Args:
        hidden: width of a hidden layer; 0 is a linear router.
        temperature: the temperature before selection.
        gate: ``softmax``, or ``sigmoid``: each expert has a gate of its own, and weights are gates over their sum.
        noise: standard deviation of what is added to scores in training.
        expert_dropout: share of the experts that each row does without in training; one always remains.
    """

    hidden: int = Field(default=0, ge=0)
    temperature: TemperatureParams = TemperatureParams()
    gate: Literal["softmax", "sigmoid"] = "softmax"
    noise: float = Field(default=0.0, ge=0)
    expert_dropout: float = Field(default=0.0, ge=0, lt=1)


class SimpleParams(HeadParams):
    """One decision a sequence, from its prompt.

    Args:
        prompt: tokens after which the decision is frozen.
        k: with a number, only the k best experts run once the decision is frozen, and the anchor before.
        catch_up: with `k`, tokens that an expert reads first when it is entered.
    """

    prompt: int = Field(default=32, ge=1)
    k: int | None = Field(default=None, ge=1)
    catch_up: int = Field(default=32, ge=0)


class TokenParams(HeadParams):
    """A soft decision for each token.

    Args:
        pooling: what the decision is made from: the last ``window`` states, the first ``window`` states (``prompt``),
            the segment of ``window`` states before the current one, or several ``windows`` at once.
        window: number of states that are pooled.
        windows: numbers of states that ``pooling: windows`` pools side by side.
        switch: with a number, the router gathers evidence: what it says of each token adds up, and is forgotten at the
            rate at which the best expert is expected to change. This is that probability for one token, before
            training. Without, the pool of the token is all that counts.
        stickiness: where one expert is chosen, nats by which another must be more probable than that of the token
            before.
        posterior: where all experts read every token and end in heads of their own, also weigh these by how probable
            each found the tokens so far. It counts in soft use alone: a hard choice knows the predictions of the chosen
            expert only.
    """

    pooling: Literal["window", "prompt", "segment", "windows"] = "window"
    window: int = Field(default=32, ge=1)
    windows: tuple[int, ...] = (4, 32, 128)
    switch: float | None = Field(default=None, gt=0, lt=1)
    stickiness: float = Field(default=0.0, ge=0)
    posterior: bool = False

    @model_validator(mode="after")
    def _agree(self) -> TokenParams:
        problems: list[Problem] = []
        if not self.windows or min(self.windows) < 1:
            problems.append(Problem("windows", f"{list(self.windows)}: give at least one number, all of them above 0"))
        if self.switch is not None and self.gate == "sigmoid":
            problems.append(
                Problem("gate", "sigmoid gates are no evidence that adds up: leave out switch", ("switch",))
            )
        refuse(problems)
        return self


class TopKParams(TokenParams):
    """A sparse decision for each token.

    Args:
        k: experts that process a token.
        mass: the budget: only the most probable experts whose probabilities add up to this much, `k` at most; 0 is one
            expert for each token, 1 is all `k`.
        catch_up: tokens that an expert reads first each time that it is entered.
        training: ``soft`` trains with every expert and the soft weights, ``sparse`` with the experts that are chosen.
        balance_rate: with ``training: sparse``, step by which the bias of an expert that gets less than its share of
            the tokens rises, and that of others falls; biases count in choosing and not in weights.
    """

    k: int = Field(default=1, ge=1)
    mass: float = Field(default=1.0, ge=0, le=1)
    catch_up: int = Field(default=16, ge=0)
    training: Literal["soft", "sparse"] = "soft"
    balance_rate: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _choices_agree(self) -> TopKParams:
        problems: list[Problem] = []
        if self.mass < 1 and self.k == 1:
            problems.append(
                Problem("mass", f"{self.mass} of the probability, but k allows one expert: raise k", ("k",))
            )
        if self.stickiness and self.k > 1:
            problems.append(Problem("stickiness", f"a choice that sticks is one expert, but k is {self.k}", ("k",)))
        if self.posterior:
            text = "true, but experts that are not chosen predict nothing: use router.type token, or leave it out"
            problems.append(Problem("posterior", text))
        if self.balance_rate and self.training == "soft":
            problems.append(Problem("balance_rate", "soft training chooses nobody to balance", ("training",)))
        refuse(problems)
        return self


def check_choice(section: BaseModel, registry: Registry[Any]) -> list[Problem]:
    """Return what is wrong with a section that names a registered part in ``type`` and holds a namespace for each."""
    problems: list[Problem] = []
    chosen = getattr(section, "type")  # noqa: B009
    try:
        registry.entry(chosen)
    except UnknownNameError as error:
        problems.append(Problem("type", str(error)))
    for name, value in (section.model_extra or {}).items():
        try:
            entry = registry.entry(name)
        except UnknownNameError as error:
            problems.append(Problem(name, str(error)))
            continue
        problems += section_problems(entry.params, value, name)
    return problems


class _Choice(Frozen):
    model_config = ConfigDict(extra="allow")


class AdapterParams(_Choice):
    """The adapter and a namespace of parameters for each kind.

    Args:
        type: name of a registered adapter.
        linear: parameters of the linear adapter.
        bottleneck: parameters of the bottleneck adapter.
    """

    type: str = "linear"
    linear: LinearParams = LinearParams()
    bottleneck: BottleneckParams = BottleneckParams()

    @model_validator(mode="after")
    def _agree(self) -> AdapterParams:
        refuse(check_choice(self, ADAPTERS))
        return self

    def chosen(self) -> BaseModel:
        """Return the validated parameters of the chosen adapter."""
        return _chosen(self, ADAPTERS)


class RouterParams(_Choice):
    """The router and a namespace of parameters for each kind.

    Args:
        type: name of a registered router.
        simple: parameters of ``simple``.
        token: parameters of ``token``.
        topk: parameters of ``topk``.
    """

    type: str = "token"
    simple: SimpleParams = SimpleParams()
    token: TokenParams = TokenParams()
    topk: TopKParams = TopKParams()

    @model_validator(mode="after")
    def _agree(self) -> RouterParams:
        refuse(check_choice(self, ROUTERS))
        return self

    def chosen(self) -> BaseModel:
        """Return the validated parameters of the chosen router."""
        return _chosen(self, ROUTERS)


def _chosen(section: AdapterParams | RouterParams, registry: Registry[Any]) -> BaseModel:
    entry = registry.entry(section.type)
    value = getattr(section, section.type, None)
    if isinstance(value, BaseModel):
        return value
    return entry.params.model_validate(value or {})
