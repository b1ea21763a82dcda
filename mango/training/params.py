"""Parameters of training adapters and routers: the section ``train`` of params.yaml."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mango.config import Frozen, Problem, refuse


class LossParams(Frozen):
    """Weights of what is added to the language-modelling loss.

    Args:
        balance: of the load-balancing loss.
        entropy: of the entropy term, which rewards confident tokens and a spread-out batch.
        adapter: of the pull of adapters toward their start.
        supervision: of the cross-entropy of routers against the expert with the lowest loss around each token.
        z: of the loss that keeps the scores of routers small.
        distill: of the divergence of each next token's distribution from that of the source model that is best around
            the token.
    """

    balance: float = Field(default=0.005, ge=0)
    entropy: float = Field(default=0.01, ge=0)
    adapter: float = Field(default=0.01, ge=0)
    supervision: float = Field(default=0.0, ge=0)
    z: float = Field(default=0.0, ge=0)
    distill: float = Field(default=0.0, ge=0)


class StartParams(Frozen):
    """How adapters and routers start.

    Args:
        sequences: calibration sequences a domain; as many that switch domain are added as domains have together.
        ridge: strength of the ridge regression that adapters between different widths start from.
        matching_steps: gradient steps in which adapters learn to match paired states of trunk and expert, after their
            start in closed form and before any language-model loss; 0 leaves it out.
        matching_learning_rate: learning rate of that phase.
        window: tokens around a token over which source models are compared to find its best expert.
        router_steps: gradient steps of the supervised start of each router; 0 leaves routers undecided.
        router_learning_rate: learning rate of that start.
        mixture_steps: further gradient steps in which each router lowers what a mixture of the whole source models with
            its weights loses on the next token; 0 leaves it at the labels.
        batch_size: calibration sequences a forward pass; 0 is as many as ``train.batch_size``.
    """

    sequences: int = Field(default=16, ge=1)
    ridge: float = Field(default=1e-3, gt=0)
    matching_steps: int = Field(default=0, ge=0)
    matching_learning_rate: float = Field(default=1e-3, gt=0)
    window: int = Field(default=32, ge=1)
    router_steps: int = Field(default=200, ge=0)
    router_learning_rate: float = Field(default=0.02, gt=0)
    mixture_steps: int = Field(default=0, ge=0)
    batch_size: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _starts_from_labels(self) -> Self:
        if self.mixture_steps and not self.router_steps:
            text = f"{self.mixture_steps}, but routers are left undecided: set router_steps above 0, or this to 0"
            refuse([Problem("mixture_steps", text, depends=("router_steps",))])
        return self


class ControlParams(Frozen):
    """Models that are trained beside the fused one, to tell what fusion itself gains.

    Args:
        self_stitch: the same adapters and routers with the trunk's spans as every expert.
        continued_trunk: the trunk, trained further on the same sequences.
        trunk_learning_rate: learning rate of the trunk's training.
    """

    self_stitch: bool = True
    continued_trunk: bool = True
    trunk_learning_rate: float = Field(default=2e-4, gt=0)


class TrainParams(Frozen):
    """How adapters and routers are trained.

    Args:
        steps: optimizer steps.
        batch_size: sequences a step and device.
        accumulation: steps whose gradients are added up before one is taken.
        switching_share: share of the training sequences that switch domain; a router that decides once a sequence is
            trained on none of them.
        adapter_learning_rate: peak learning rate of adapters.
        router_learning_rate: peak learning rate of routers.
        weight_decay: of adapters and routers.
        warmup: share of the steps in which learning rates rise; they fall along a cosine after.
        max_grad_norm: gradients are clipped to this norm.
        precision: ``fp32``, or mixed precision in ``bf16`` or ``fp16``.
        gradient_checkpointing: recompute spans in the backward pass to save memory.
        validation_sequences: sequences a domain for validation.
        validate_every: steps between two validations; 0 validates at the end only.
        patience: validations in a row without a better loss after which the training ends with the weights of the best
            one; 0 trains all steps and keeps the last.
        save_every: steps between two checkpoints that a killed run resumes from; 0 keeps none.
        log_every: steps between two lines of the log.
        losses: weights of the further losses.
        start: how adapters and routers start.
        controls: models that are trained beside the fused one.
    """

    steps: int = Field(default=40, ge=0)
    batch_size: int = Field(default=2, ge=1)
    accumulation: int = Field(default=1, ge=1)
    switching_share: float = Field(default=0.5, ge=0, le=1)
    adapter_learning_rate: float = Field(default=2e-3, gt=0)
    router_learning_rate: float = Field(default=1e-2, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.1, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    validation_sequences: int = Field(default=2, ge=1)
    validate_every: int = Field(default=0, ge=0)
    patience: int = Field(default=0, ge=0)
    save_every: int = Field(default=16, ge=0)
    log_every: int = Field(default=1, ge=1)
    losses: LossParams = LossParams()
    start: StartParams = StartParams()
    controls: ControlParams = ControlParams()

    @model_validator(mode="after")
    def _has_validations(self) -> Self:
        if self.patience and not self.validate_every:
            text = "counts validations, and validate_every is 0: set that above 0"
            refuse([Problem("patience", text, depends=("validate_every",))])
        return self
