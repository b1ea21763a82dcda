"""Shells of encoders: spans and heads of models that read all of a row at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from mango.architectures import ComponentMap
from mango.architectures.handlers import Handler, handler_for
from mango.errors import ArchitectureError
from mango.fusion.pruning import closed, is_opaque, pruned, put
from mango.fusion.shells import Body, StatesAlone, Tail
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
        handler: knows in what form it returns them.
    """

    def __init__(self, holder: Holder, original: nn.Module, handler: Handler) -> None:
        super().__init__()
        self._holder = holder
        self._handler = handler
        self.__dict__["_original"] = original  # no part of this one: it holds no data

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the states."""
        assert self._holder.states is not None
        return self._handler.bypassed(self._holder.states)


def _bypass(base: nn.Module, parts: ComponentMap, holder: Holder) -> None:
    for path in parts.before:
        put(base, path, Bypass(holder, base.get_submodule(path), handler_for(parts.model_type)))


def enter_behind(base: nn.Module, parts: ComponentMap, holder: Holder) -> None:
    """Let what stands behind the blocks get the states that come in, whatever was added to them on their way there.

    Args:
        base: a model without blocks.
        parts: where it keeps its parts.
        holder: has the states.
    """

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (holder.states, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": holder.states}

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = holder.states
        return output

    if parts.after:
        base.get_submodule(parts.after[0]).register_forward_pre_hook(enter, with_kwargs=True)
    else:
        base.register_forward_hook(leave)


class Given(nn.Module):
    """Stands for a model without blocks that does nothing behind them: it returns the states that come in.

    Args:
        holder: has the states.
        original: the model that it stands for, without data.
    """

    def __init__(self, holder: Holder, original: nn.Module) -> None:
        super().__init__()
        self._holder = holder
        self.__dict__["_original"] = original

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> StatesAlone:
        """Return the states."""
        return StatesAlone(last_hidden_state=self._holder.states)


def takes_tokens(base: PreTrainedModel) -> bool:
    """Tell whether a model reads token ids; otherwise it reads images or sounds."""
    return base.main_input_name in ("input_ids", "inputs_embeds")


class _FirstBlock(Exception):  # noqa: N818  # no error: it ends a forward pass that has gone far enough
    """Says that a forward pass has come to the first block.

    Args:
        states: what the block is given.
    """

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def _stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _FirstBlock(args[0] if args else kwargs["hidden_states"])


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
        super().__init__(config, closed(parts), start, stop, front=front)
        self.reads_tokens = takes_tokens(self.base)
        if self.reads_tokens and not front and "inputs_embeds" not in self._accepted:
            raise ArchitectureError(
                f"{parts.architecture}: its forward pass takes no embeddings in the place of token ids, so only a span "
                "that starts at its own embedding (edges: own, from block 0) can be fused"
            )
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
        if not self.reads_tokens:
            return self.without_blocks()(**{self.input_name: ids}).last_hidden_state  # type: ignore[no-any-return]
        first = self.base.get_submodule(self._blocks_path).get_submodule("0")
        handle = first.register_forward_pre_hook(_stop, with_kwargs=True)
        try:
            self.base(**{self.input_name: ids})
        except _FirstBlock as reached:
            return reached.states[:, : ids.shape[1]]  # some pad their rows
        finally:
            handle.remove()
        raise AssertionError("a model ran without its first block")

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
        if is_opaque(parts):
            parts = closed(parts)
            if not parts.base_prefix:
                raise ArchitectureError(f"{parts.architecture}: its head is no part of its own beside its blocks")
        model = pruned(config, parts, 0, 0)
        self.holder = Holder()
        base = model.get_submodule(parts.base_prefix)
        assert isinstance(base, PreTrainedModel)
        self.reads_tokens = takes_tokens(base)
        if self.reads_tokens and parts.base_prefix and not parts.after:
            put(model, parts.base_prefix, Given(self.holder, base))  # some do not run without blocks
        else:
            _bypass(base, parts, self.holder)
            enter_behind(base, parts, self.holder)
        self.model = model
        self.head_path = parts.head
        self.input_name: str = base.main_input_name
        self.base_path = parts.base_prefix
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

    def forward(self, states: Tensor) -> Tensor:
        """Return the normed states of states ``[rows, length, width]``."""
        return self._through(self.model.get_submodule(self.base_path), states).last_hidden_state  # type: ignore[no-any-return]
