"""Parameters of an evaluation: the section ``evaluate`` of params.yaml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue, field_validator

from mango.config import Frozen

Routing = Literal["soft", "hard"]
HarnessKind = Literal["fused", "trunk", "expert", "merge", "control"]


class LmEvalParams(Frozen):
    """Tasks of the lm-evaluation-harness (extra ``lm-eval``), on the fused model and what it is compared with."""

    tasks: tuple[str, ...] = Field(
        (),
        description="names of tasks, tags or groups that lm-eval ships, patterns of such names, and paths of your own "
        "task files or of folders of them; none turns this off",
    )
    limit: int | None = Field(None, ge=1, description="examples of each task; all by default")
    num_fewshot: int | None = Field(
        None, ge=0, description="worked examples in each prompt; by default what each task asks for"
    )
    batch_size: int = Field(4, ge=1, description="requests a forward pass")
    max_length: int | None = Field(
        None,
        ge=2,
        description="tokens that a model may see at once; by default as many as the shortest of the fused model's "
        "sources takes, so that all see the same",
    )
    routing: tuple[Routing, ...] = Field(("soft", "hard"), min_length=1, description="how the fused model routes")
    systems: tuple[HarnessKind, ...] = Field(
        ("fused", "trunk", "expert", "merge", "control"),
        min_length=1,
        description="kinds of models that are scored; the best single model is among them with trunk and experts",
    )
    bootstrap: int = Field(
        1000, ge=0, description="draws for the standard errors of metrics without a formula for it; 0 gives no errors"
    )
    metadata: dict[str, JsonValue] = Field(
        {}, description="what tasks that make their own data are told, such as {max_seq_lengths: [1024]} for ruler_vt"
    )


class EvaluateParams(Frozen):
    """How systems are compared.

    Args:
        sequences: test sequences of each domain.
        switching_sequences: test sequences that switch domain.
        batch_size: sequences a forward pass.
        prompt: tokens by which whole-model routing chooses its model.
        speed_repeats: timed passes of each system, each beside one of the trunk.
        counted_sequences: sequences of each text on which floating-point operations are counted.
        budget: points of the curve of quality against compute: the experts of a token are the most probable ones that
            make up this share of the router's probability. With any, one expert without catch-up is a point too.
        lm_eval: tasks of the lm-evaluation-harness, and how they are run.
    """

    sequences: int = Field(default=8, ge=2)
    switching_sequences: int = Field(default=16, ge=2)
    batch_size: int = Field(default=4, ge=1)
    prompt: int = Field(default=32, ge=1)
    speed_repeats: int = Field(default=3, ge=1)
    counted_sequences: int = Field(default=2, ge=1)
    budget: tuple[float, ...] = (0.8, 0.97)
    lm_eval: LmEvalParams = LmEvalParams()

    @field_validator("budget")
    @classmethod
    def _shares(cls, budget: tuple[float, ...]) -> tuple[float, ...]:
        for share in budget:
            if not 0 < share < 1:
                raise ValueError(f"{share:g} is no share of the probability between 0 and 1")
        return budget
