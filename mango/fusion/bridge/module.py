"""The bridge between a guest that keeps its own tokenizer and the trunk, as a fused model holds it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from mango.checkpoints.tokenizer_bytes import tokenizer_from_bytes
from mango.errors import CheckpointError
from mango.fusion.bridge.forms import Forms
from mango.fusion.bridge.links import Links, partners
from mango.fusion.bridge.reader import Reader
from mango.fusion.bridge.telling import Back, Place, tell
from mango.fusion.bridge.tree import Tree

STEPS_BACK = 3
"""Tokens at the end of a text that the guest's next token may have begun before."""
KEPT_PAIRS = 4_000_000
"""Pairs of tokens, of all beginnings together, that are kept (about 100 MB); the same few come again and again."""


@dataclass(frozen=True)
class BridgeSizes:
    """What ``config.json`` keeps of a bridge: how large its tensors are, and which token begins a text.

    Args:
        trunk_bytes: bytes of all forms of the trunk.
        trunk_tokens: tokens of the trunk.
        guest_bytes: bytes of all forms of the guest.
        guest_tokens: tokens of the guest.
        tokenizer_bytes: bytes of the guest's ``tokenizer.json``.
        special: special tokens of the trunk that the guest has one for.
        begin: the guest's token for the beginning of a text.
    """

    trunk_bytes: int
    trunk_tokens: int
    guest_bytes: int
    guest_tokens: int
    tokenizer_bytes: int
    special: int
    begin: int

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> BridgeSizes:
        """Return what :meth:`to_dict` wrote.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            found = cls(**value)
        except TypeError as error:
            raise CheckpointError(f"config.json: bridges: {error}; build the fused model again") from error
        if not all(type(number) is int and 0 <= number < 2**31 for number in found.to_dict().values()):
            raise CheckpointError(f"config.json: bridges: {value} is not all numbers of tokens and bytes")
        return found

    def to_dict(self) -> dict[str, int]:
        """Return plain values that JSON can hold."""
        return asdict(self)


class Bridge(nn.Module):
    """Reads the trunk's tokens as the guest's, and tells what the guest says in the trunk's.

    Everything it needs is in its tensors, the guest's tokenizer among them, so a fused model is saved, sent and opened
    as it is without one.

    Args:
        sizes: how large its tensors are.
    """

    def __init__(self, sizes: BridgeSizes) -> None:
        super().__init__()
        self.sizes = sizes
        for name, size in (
            ("trunk_text", sizes.trunk_bytes),
            ("guest_text", sizes.guest_bytes),
            ("tokenizer", sizes.tokenizer_bytes),
        ):
            self.register_buffer(name, torch.zeros(size, dtype=torch.uint8))
        for name, size in (("trunk_sizes", sizes.trunk_tokens), ("guest_sizes", sizes.guest_tokens)):
            self.register_buffer(name, torch.zeros(size, dtype=torch.int32))
        self.register_buffer("special", torch.zeros(2, sizes.special, dtype=torch.int32))
        self._opened: _Opened | None = None

    def start_weights(self, std: float) -> None:
        """Hold a vocabulary of one letter until tensors are loaded, so that a model without weights runs too."""
        letter = b'{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'
        for name, content in (
            ("trunk_text", b"a"),
            ("guest_text", b"a"),
            ("trunk_sizes", [1]),
            ("guest_sizes", [1]),
            ("tokenizer", letter),
        ):
            tensor = self.get_buffer(name)
            filled = torch.full_like(tensor, -1 if name.endswith("sizes") else ord(" "))
            filled[: len(content)] = torch.tensor(list(content), dtype=tensor.dtype)
            init.copy_(tensor, filled)
        init.zeros_(self.get_buffer("special"))

    def __getstate__(self) -> dict[str, Any]:
        """Copy what the tensors hold alone: the rest is opened again."""
        return {**self.__dict__, "_opened": None}

    def opened(self) -> _Opened:
        """Return what the tensors hold, opened once.

        Raises:
            CheckpointError: they hold no tokenizer.
            UnsafeFileError: the tokenizer holds more than any real one.
        """
        if self._opened is None:
            tensor: dict[str, Tensor] = dict(self.named_buffers())
            trunk = Forms.unpack(tensor["trunk_text"], tensor["trunk_sizes"])
            guest = Forms.unpack(tensor["guest_text"], tensor["guest_sizes"])
            theirs, ours = tensor["special"].tolist()
            tokenizer = tokenizer_from_bytes(tensor["tokenizer"].cpu().numpy().tobytes())
            reader = Reader(tokenizer, trunk, guest, dict(zip(ours, theirs, strict=True)), self.sizes.begin)
            self._opened = _Opened(trunk, guest, reader, list(zip(theirs, ours, strict=True)))
        return self._opened

    def places(self, tree: Tree) -> list[Place]:
        """Return the end of each text of a tree, with the steps back from there."""
        forms = self.opened().guest.by_id
        places: list[Place] = []
        for path in tree.paths:
            read, back = b"", list[Back]()
            for place in range(len(path) - 1, max(0, len(path) - 1 - STEPS_BACK), -1):
                token = tree.tokens[path[place]]
                form = forms[token] if token < len(forms) else None
                if form is None:
                    break
                read = form + read
                back.append(Back(path[place - 1], token, read))
            places.append(Place(path[-1], tuple(back)))
        return places

    def tell(self, logits: Tensor, places: Sequence[Place], trunk: Tensor) -> Tensor:
        """Return log-probabilities of the trunk's next token.

        Tokens of the guest's that have no partner, as special ones, are left out of what it says.

        Args:
            logits: what the guest's head says at each node, ``[nodes, rows of its head]``.
            places: ends of texts, with numbers of these nodes.
            trunk: what the trunk's head says at each, ``[places, rows of its head]``.

        Returns:
            float32 ``[places, rows of the trunk's head]``.
        """
        opened, device = self.opened(), logits.device
        known = torch.zeros(logits.shape[1], dtype=torch.bool, device=device)
        known[opened.links(b"", device).guests] = True
        said = logits.float().masked_fill(~known, -torch.inf).log_softmax(-1)
        probabilities = trunk.float().softmax(-1)
        told = tell(said, places, probabilities, lambda read: opened.links(read, device))
        return told.clamp(min=torch.finfo(torch.float32).tiny).log()


class _Opened:
    """The content of a bridge's tensors.

    Args:
        trunk: forms of the trunk.
        guest: forms of the guest.
        reader: reads the trunk's tokens.
        special: a special token of the guest's, and the trunk's that it stands for.
    """

    def __init__(self, trunk: Forms, guest: Forms, reader: Reader, special: list[tuple[int, int]]) -> None:
        self.trunk = trunk
        self.guest = guest
        self.reader = reader
        self._special = special
        self._whole: dict[torch.device, Links] = {}
        self._kept: OrderedDict[tuple[bytes, torch.device], Links] = OrderedDict()
        self._num_pairs = 0

    def links(self, read: bytes, device: torch.device) -> Links:
        """Return the links of the guest's tokens of which these bytes have been read."""
        if not read:
            if device not in self._whole:
                self._whole[device] = Links.of([*partners(self.guest, self.trunk), *self._special]).to(device)
            return self._whole[device]
        found = self._kept.pop((read, device), None)
        if found is None:
            found = Links.of(partners(self.guest, self.trunk, read)).to(device)
            self._num_pairs += found.num_pairs
        self._kept[read, device] = found
        while self._num_pairs > KEPT_PAIRS and len(self._kept) > 1:
            self._num_pairs -= self._kept.popitem(last=False)[1].num_pairs
        return found
