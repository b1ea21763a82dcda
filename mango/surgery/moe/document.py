"""Documents that say which dense models become the experts of one model, as mergekit-moe's YAML has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mango.config import Document, Frozen, Problem, near, read_document, refuse, validate
from mango.merging.document import DTypeWord
from mango.merging.references import plain_references
from mango.surgery.moe.targets import TARGETS, named_target

GateMode = Literal["hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random", "uniform"]
BY_PROMPT = frozenset({"hidden", "hidden_avg", "hidden_last", "cheap_embed"})
"""Gate modes that are made from prompts."""

Prompts = tuple[str, ...]
ModelText = Annotated[
    str, BeforeValidator(lambda value: plain_references({"model": value})["model"]), Field(min_length=1)
]


class ExpertEntry(Frozen):
    """A dense model whose feed-forward layers become one expert of every layer.

    Attributes:
        source_model: the model.
        positive_prompts: text that is to be sent to it.
        negative_prompts: text that is not.
        noise_scale: standard deviation of noise that is added to its weights, to tell equal experts apart.
        residual_scale: factor of what it adds to the residual stream.
    """

    source_model: ModelText
    positive_prompts: Prompts | None = None
    negative_prompts: Prompts | None = None
    noise_scale: float | None = Field(None, ge=0)
    residual_scale: float | None = None


class MoeDocument(Frozen):
    """A mixture of experts to assemble.

    Attributes:
        base_model: gives everything but the feed-forward layers, and the hidden states that gates are made of.
        experts: the experts among which the gate chooses.
        gate_mode: ``hidden`` (the same as ``hidden_last``) and ``hidden_avg`` take what the base's feed-forward layer
            reads at a prompt's last token or on average over its tokens; ``cheap_embed`` the prompt's embeddings;
            ``random`` and ``uniform_random`` draw gates; ``uniform`` makes all experts count alike.
        dtype: type of the weights, by default the base's.
        experts_per_token: how many experts process a token.
        shared_experts: experts that process every token; without prompts they are always on.
        architecture: what the result is; chosen from the models by default.
        seed: of random gates and noise.
    """

    base_model: ModelText
    experts: tuple[ExpertEntry, ...]
    gate_mode: GateMode = "hidden"
    dtype: DTypeWord | None = None
    experts_per_token: int = Field(2, ge=1)
    shared_experts: tuple[ExpertEntry, ...] | None = None
    architecture: str | None = Field(None, min_length=1)
    seed: int = Field(0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _check(self) -> MoeDocument:
        refuse([*self._gate_problems(), *self._architecture_problems()])
        return self

    def references(self) -> tuple[str, ...]:
        """Return every model that the document names, the base first."""
        entries = (*self.experts, *(self.shared_experts or ()))
        return tuple(dict.fromkeys((self.base_model, *(entry.source_model for entry in entries))))

    def _gate_problems(self) -> Iterator[Problem]:
        count = len(self.experts)
        if not count:
            yield Problem("experts", "is empty: name the models that become experts")
            return
        if self.experts_per_token > count:
            yield Problem("experts_per_token", f"{self.experts_per_token} is more than the {count} experts")
        if self.gate_mode == "uniform" and self.experts_per_token != count:
            yield Problem(
                "experts_per_token",
                f"{self.experts_per_token}: gate_mode uniform makes all experts count alike, so all {count} must run",
                ("gate_mode",),
            )
        if self.gate_mode not in BY_PROMPT:
            return
        for i, entry in enumerate(self.experts):
            if not any(entry.positive_prompts or ()):
                message = f"gate_mode {self.gate_mode} needs prompts that are to be sent to this expert"
                yield Problem(f"experts.{i}.positive_prompts", message, ("gate_mode",))
        prompts = {(entry.positive_prompts, entry.negative_prompts or ()) for entry in self.experts}
        if count > 1 and len(prompts) == 1 and self.experts[0].positive_prompts:
            yield Problem(
                "experts", "all have the same prompts, so the gate cannot tell them apart: give each its own",
                ("gate_mode",),
            )  # fmt: skip

    def _architecture_problems(self) -> Iterator[Problem]:
        if self.architecture is not None and named_target(self.architecture) is None:
            names = [name for target in TARGETS for name in (target.name, target.model_type)]
            hint = near(self.architecture, names) or "."
            known = ", ".join(target.name for target in TARGETS)
            yield Problem(
                "architecture", f"{self.architecture!r} is no architecture that is written{hint} Known: {known}"
            )
        if self.architecture is not None and named_target(self.architecture) == "deepseek":
            yield Problem(
                "architecture",
                "DeepSeek MoE needs code from its repository, and models that bring code are not run: use Qwen MoE, "
                "which has a shared expert too",
            )


def load_moe_document(path: Path | str) -> MoeDocument:
    """Read a document.

    Raises:
        ConfigError: one line for each problem: file, line, key, what was found and what was wanted.
    """
    return validate(MoeDocument, read_document(Path(path))).value


def parse_moe_mapping(data: Mapping[str, Any]) -> MoeDocument:
    """Return the document that a mapping holds.

    Raises:
        ConfigError: one line for each problem.
    """
    return validate(MoeDocument, Document("moe document", dict(data))).value
