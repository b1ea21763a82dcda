"""Shells of encoders: spans and heads of models that read all of a row at once."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mango.architectures import ComponentMap, build_meta
from mango.errors import ArchitectureError
from mango.fusion.shells import Body, Tail, pruned, put
from mango.fusion.span_cache import SpanCache


class Holder:
    """States on their way into a shell.

    Args:
        states: the states while the shell runs.
    """

    def __init__(self) -> None:
        self.states: Tensor | None = None


class Bypass(nn.Module):
    """Stands for what runs before the blocks: it returns the states that come in, whatever it is given.

    What a model reads of the module that it stands for, such as the element type of its weights, it still finds.

    Args:
        holder: has the states.
        original: the module that it stands for, without data.
    """

    def __init__(self, holder: Holder, original: nn.Module) -> None:
        super().__init__()
        self._holder = holder
        self.__dict__["_original"] = original  # no part of this one: it holds no data

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the states."""
        assert self._holder.states is not None
        return self._holder.states


def _bypass(base: nn.Module, parts: ComponentMap, holder: Holder) -> None:
    for path in parts.before:
        put(base, path, Bypass(holder, base.get_submodule(path)))


def takes_tokens(base: PreTrainedModel) -> bool:
    """Tell whether a model reads token ids; otherwise it reads images or sounds."""
    return base.main_input_name in ("input_ids", "inputs_embeds")


class EncoderBody(Body):
    """A span of an encoder's blocks, run on whole rows by the encoder's own forward pass.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
        start: its first block.
        stop: the block after its last.
        front: whether it starts from the model's own input, through its own embedding.
    """

    holder: Holder

    def __init__(self, config: PretrainedConfig, parts: ComponentMap, start: int, stop: int, *, front: bool) -> None:
        self.__dict__["holder"] = Holder()  # before modules can be set
        super().__init__(config, parts, start, stop, front=front)
        self.reads_tokens = takes_tokens(self.base)
        self.input_name: str = self.base.main_input_name

    def drop_before(self, base: nn.Module, parts: ComponentMap) -> None:
        """Let the states that come in stand for what runs before the blocks."""
        _bypass(base, parts, self.holder)

    def new_cache(self) -> SpanCache:
        """Refuse: an encoder keeps nothing."""
        raise ArchitectureError("an encoder has no cache: it reads all of a row at once")

    def entrance(self, ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Return what the source model hands to its first block; only for a front.

        Args:
            ids: the model's main input: token ids ``[rows, length]``, or pixels.
            position_ids: not used: encoders place their tokens themselves.

        Returns:
            States ``[rows, length, width]``.
        """
        out = self.without_blocks()(**{self.input_name: ids})
        return out.last_hidden_state  # type: ignore[no-any-return]

    def forward(
        self,
        inputs: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        cache: SpanCache | None = None,
    ) -> Tensor:
        """Run the span on whole rows.

        Args:
            inputs: the model's main input for a front, states ``[rows, length, width]`` otherwise.
            attention_mask: which tokens are real, ``[rows, length]``.
            position_ids: not used.
            cache: not used.

        Returns:
            States that leave the last block, ``[rows, length, width]``.
        """
        arguments: dict[str, Any] = {"attention_mask": attention_mask} if self.reads_tokens else {}
        name = "inputs_embeds" if self.reads_tokens and not self.front else self.input_name
        self.holder.states = self._incoming = None if self.front else inputs
        try:
            out = self.base(**{name: inputs}, **arguments)
        finally:
            self.holder.states = self._incoming = None
        return out.last_hidden_state  # type: ignore[no-any-return]


class EncoderTail(Tail):
    """What stands behind an encoder's blocks: norm and head, run by the model's own forward pass without blocks.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
    """

    def __init__(self, config: PretrainedConfig, parts: ComponentMap) -> None:
        nn.Module.__init__(self)
        model = pruned(config, parts, 0, 0)
        self.holder = Holder()
        base = model.get_submodule(parts.base_prefix)
        assert isinstance(base, PreTrainedModel)
        _bypass(base, parts, self.holder)
        self.model = model
        self.head_path = parts.head
        self.reads_tokens = takes_tokens(base)
        self.input_name: str = base.main_input_name
        self.base_path = parts.base_prefix
        self.inner_ties = _inner_ties(config, parts)
        self.frozen()

    def forward(self, states: Tensor) -> Tensor:
        """Return logits of states ``[tokens, width]``, one for each, or of rows ``[rows, length, width]``."""
        single = states.ndim == 2
        out = self._through(self.model, states.unsqueeze(1) if single else states).logits
        return out.squeeze(1) if single else out  # type: ignore[no-any-return]

    def _through(self, model: nn.Module, states: Tensor) -> Any:
        self.holder.states = states
        name = "inputs_embeds" if self.reads_tokens else self.input_name
        try:
            return model(**{name: states})
        finally:
            self.holder.states = None


class NormTail(EncoderTail):
    """A source encoder's final norm, where it has one, and no head.

    Args:
        config: the source model's configuration.
        parts: where it keeps its parts.
    """

    def __init__(self, config: PretrainedConfig, parts: ComponentMap) -> None:
        super().__init__(config, parts)
        for name, _ in list(self.model.named_children()):
            if name != self.base_path:
                put(self.model, name, nn.Identity())
        self.head_path = None
        self.inner_ties = {}

    def forward(self, states: Tensor) -> Tensor:
        """Return the normed states of states ``[rows, length, width]``."""
        return self._through(self.model.get_submodule(self.base_path), states).last_hidden_state  # type: ignore[no-any-return]


def _inner_ties(config: PretrainedConfig, parts: ComponentMap) -> dict[str, str]:
    """Return the tensors behind the blocks that are one with another there, such as two names of a head's bias."""
    ties: dict[str, str] = build_meta(deepcopy(config), parts.task).all_tied_weights_keys
    embedding = f"{parts.embeddings}.weight"
    return {name: other for name, other in ties.items() if other != embedding}
