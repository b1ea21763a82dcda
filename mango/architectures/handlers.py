"""What watching a model cannot tell: a registry of handlers by model type, open to other packages.

A handler is looked up by ``config.model_type``. Another package registers its own through the entry-point group
``mango.architectures``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mango.config import Frozen
from mango.registry import Registry

if TYPE_CHECKING:
    from mango.architectures.inputs import InputMaker


class Handler:
    """Knowledge about one model type; each method's default is what holds for all others."""

    def inputs(self, maker: InputMaker) -> Iterator[dict[str, Any]] | None:
        """Return the inputs that the model runs on, or None to have them made from the names of its arguments.

        Args:
            maker: makes values by the names of arguments.
        """
        return None

    def stub(self, block: nn.Module, arguments: dict[str, Any], output: Any) -> Any:
        """Return what a block that is left out returns in a guest's forward pass, so that the others get their data.

        Args:
            block: the block.
            arguments: what it was given, by name.
            output: the incoming stream in the form in which the block returns its own.
        """
        return output

    def lend(self, first: nn.Module, block: nn.Module) -> None:
        """Give a block what it needs to run before all others of its model, from the model's first block.

        Args:
            first: the first block; its modules may be taken.
            block: a later block, which changes in place.
        """

    def keeps_ids(self) -> bool:
        """Tell whether the blocks are given something that is made of token ids, so that a guest needs them too."""
        return False

    def places_keys(self) -> bool:
        """Tell whether its blocks learn the places of tokens from what :meth:`placed` gives them, and nothing else."""
        return False

    def places_rows_alike(self) -> bool:
        """Tell whether what :meth:`placed` gives is the same for all rows, so that only rows alike can run together."""
        return False

    def placed(self, arguments: dict[str, Any], key_positions: torch.Tensor) -> dict[str, Any]:
        """Return the arguments of a block whose tokens stand at these places.

        Args:
            arguments: what its model gives it, by name, for tokens that follow on each other.
            key_positions: positions of the cached and new tokens, ``[rows, keys]``; any number where there is none.
        """
        return arguments

    def steps_singly(self) -> bool:
        """Tell whether its states take one token at a time, since its scan of several begins without a state."""
        return False

    def rereads(self) -> bool:
        """Tell whether its cache cannot carry a span, so that a span reads all its tokens again in each step."""
        return False

    def bypassed(self, states: torch.Tensor) -> Any:
        """Return what a module in front of the blocks returns where the stream is given instead.

        Args:
            states: the stream.
        """
        return states

    def settle(self, config: Any) -> None:
        """Change a configuration so that the model computes the same wherever its blocks are, and leaves its weights.

        Args:
            config: of the model; it changes in place.
        """


class NoParams(Frozen):
    """A handler has no parameters."""


ARCHITECTURES: Registry[Handler] = Registry("architectures", "architecture")
_PLAIN = Handler()


def handler_for(model_type: str) -> Handler:
    """Return the handler of a model type, or one that adds nothing."""
    return ARCHITECTURES[model_type] if model_type in ARCHITECTURES else _PLAIN  # noqa: SIM401  # it has no get()


class SharedBias(Handler):
    """Blocks that hand the first one's position bias on (T5 and its kin, arXiv:1910.10683)."""

    def stub(self, block: nn.Module, arguments: dict[str, Any], output: Any) -> Any:
        """Return the incoming stream with the position bias that the block's own attention makes.

        Args:
            block: the block.
            arguments: what it was given, by name.
            output: the incoming stream in the form in which the block returns its own.
        """
        if not isinstance(output, tuple) or len(output) < 2:
            return output
        passed = [arguments.get("position_bias"), arguments.get("encoder_decoder_position_bias")]
        if passed[0] is not None:
            return (output[0], *_filled(output[1:], passed))
        with torch.no_grad():
            real = block(**arguments)
        return (output[0], *real[1:])

    def lend(self, first: nn.Module, block: nn.Module) -> None:
        """Give a block the table of relative positions that the first block has for all.

        Args:
            first: the first block; its modules may be taken.
            block: a later block, which changes in place.
        """
        for path, module in first.named_modules():
            table = getattr(module, "relative_attention_bias", None)
            if isinstance(table, nn.Module):
                attention: Any = block.get_submodule(path)
                attention.relative_attention_bias = table
                attention.has_relative_attention_bias = True


def _filled(values: tuple[Any, ...], passed: list[Any]) -> tuple[Any, ...]:
    queue = [value for value in passed if value is not None]
    return tuple(queue[i] if i < len(queue) else value for i, value in enumerate(values))


class TokenIds(Handler):
    """Blocks that read something looked up by token ids beside the stream."""

    def keeps_ids(self) -> bool:
        """Return True."""
        return True


class LinearBias(Handler):
    """Blocks with linear biases of attention by the position of the key (ALiBi, arXiv:2108.12409), a row each."""

    def places_keys(self) -> bool:
        """Return True."""
        return True

    def placed(self, arguments: dict[str, Any], key_positions: torch.Tensor) -> dict[str, Any]:
        """Return the arguments with biases of these positions, ``[rows * heads, 1, keys]``.

        Args:
            arguments: what the model gives the block, by name.
            key_positions: positions of the cached and new tokens, ``[rows, keys]``.
        """
        given = arguments["alibi"]
        rows, keys = key_positions.shape
        slopes = linear_bias_slopes(given.shape[0] // rows).to(given.device)
        bias = slopes[:, None, None] * key_positions[:, None, None, :]
        return {**arguments, "alibi": bias.reshape(-1, 1, keys).to(given.dtype)}


class SharedLinearBias(Handler):
    """Blocks with such biases that are the same for all rows (MPT)."""

    def places_keys(self) -> bool:
        """Return True."""
        return True

    def places_rows_alike(self) -> bool:
        """Return True."""
        return True

    def placed(self, arguments: dict[str, Any], key_positions: torch.Tensor) -> dict[str, Any]:
        """Return the arguments with biases of the first row's positions, ``[heads, 1, keys]``.

        Args:
            arguments: what the model gives the block, by name.
            key_positions: positions of the cached and new tokens, ``[rows, keys]``, up to a shift the same in each row.
        """
        given = arguments["position_bias"]  # of keys that follow on each other
        slopes = given[:, :, -1:] - given[:, :, -2:-1]
        return {**arguments, "position_bias": slopes * (key_positions[0] - key_positions[0].max())}


def linear_bias_slopes(num_heads: int) -> torch.Tensor:
    """Return the slope of each head: powers of ``2 ** (-8 / n)`` for `n` heads, a power of two; else some between.

    Args:
        num_heads: number of heads.

    Returns:
        float32 ``[num_heads]``. Source: arXiv:2108.12409, section 3, and its footnote on other numbers of heads.
    """
    whole = 2 ** (num_heads.bit_length() - 1)
    exponents = [-8 / whole * (head + 1) for head in range(whole)]
    exponents += [-4 / whole * (2 * head + 1) for head in range(num_heads - whole)]
    return 2.0 ** torch.tensor(exponents, dtype=torch.float32)


class SingleSteps(Handler):
    """Blocks whose state only a step of one token goes on from."""

    def steps_singly(self) -> bool:
        """Return True."""
        return True


class Rereads(Handler):
    """Blocks whose cache is of a class of their own, lies beside the cache, or holds what no text has."""

    def rereads(self) -> bool:
        """Return True."""
        return True


class PairedEmbeddings(Handler):
    """Models whose embedding returns the number of patches beside the stream."""

    def bypassed(self, states: torch.Tensor) -> Any:
        """Return the stream and nothing beside it.

        Args:
            states: the stream.
        """
        return states, None


class NoRescaling(Rereads):
    """RWKV halves its stream every few blocks, and weights to match, by changing them where they are."""

    def settle(self, config: Any) -> None:
        """Let weights and stream be as they were trained.

        Args:
            config: of the model; it changes in place.
        """
        config.rescale_every = 0


class Languages(Handler):
    """Models that need a language to be chosen before they run."""

    def inputs(self, maker: InputMaker) -> Iterator[dict[str, Any]]:
        """Yield token ids with the index of the first language.

        Args:
            maker: makes values by the names of arguments.
        """
        ids = maker.make("input_ids")
        yield {"input_ids": ids, "lang_ids": torch.zeros(ids.shape[0], dtype=torch.long)}


class TokensWithBoxes(Handler):
    """Models of documents: tokens with the place of each on the page."""

    def inputs(self, maker: InputMaker) -> Iterator[dict[str, Any]]:
        """Yield token ids and boxes, with decoder ids where there is a decoder.

        Args:
            maker: makes values by the names of arguments.
        """
        ids = maker.make("input_ids")
        boxes = torch.zeros(*ids.shape, 4)
        extra = {"decoder_input_ids": maker.make("input_ids")} if "decoder_input_ids" in maker.parameters else {}
        yield {"input_ids": ids, "bbox": boxes, **extra}


for _name in ("t5", "mt5", "umt5", "longt5", "pop2piano", "switch_transformers", "pix2struct"):
    ARCHITECTURES.register(_name, NoParams)(SharedBias())
for _name in ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"):
    ARCHITECTURES.register(_name, NoParams)(TokenIds())
ARCHITECTURES.register("bloom", NoParams)(LinearBias())
ARCHITECTURES.register("mpt", NoParams)(SharedLinearBias())
for _name in ("git", "minimax", "recurrent_gemma"):
    ARCHITECTURES.register(_name, NoParams)(Rereads())
ARCHITECTURES.register("data2vec-vision", NoParams)(PairedEmbeddings())
ARCHITECTURES.register("rwkv", NoParams)(NoRescaling())
for _name in ("mamba", "falcon_mamba", "jamba"):
    ARCHITECTURES.register(_name, NoParams)(SingleSteps())
ARCHITECTURES.register("xmod", NoParams)(Languages())
ARCHITECTURES.register("udop", NoParams)(TokensWithBoxes())
