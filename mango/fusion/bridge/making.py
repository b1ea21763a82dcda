"""Making a bridge from the tokenizers of two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mango.checkpoints import open_tokenizer
from mango.checkpoints.vocabulary import Vocabulary, read_vocabulary
from mango.errors import IncompatibleBlocksError
from mango.fusion.bridge.forms import Forms
from mango.fusion.bridge.module import BridgeSizes

_ROLES = ("eos_token", "bos_token")
_NEEDED = (0x09, 0x0A, *range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1))
"""Bytes of text in UTF-8. Others stand for control characters and planes that hold hardly any; some vocabularies lack
them, and such characters are not seen."""


def make_bridge(trunk: Path, guest: Path, name: str) -> tuple[BridgeSizes, dict[str, Tensor]]:
    """Return the sizes and the tensors of a bridge.

    Args:
        trunk: folder with the trunk's tokenizer.
        guest: folder with the guest's.
        name: of the guest, for messages.

    Raises:
        CheckpointError: a tokenizer cannot be read.
        IncompatibleBlocksError: the guest's tokenizer cannot spell every text, or has no token that a text begins with.
    """
    ours, theirs = read_vocabulary(trunk), read_vocabulary(guest)
    tokenizer: Any = open_tokenizer(guest)
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    mine, other = _forms(ours), _forms(theirs)
    where = f"fusion: {name!r} cannot be joined by edges: bridge"
    lacking = [byte for byte in _NEEDED if other.token_of(bytes([byte])) is None]
    if lacking:
        raise IncompatibleBlocksError(
            f"{where}: its tokenizer has no token for the byte {lacking[0]:#04x} ({len(lacking)} are missing), so "
            "there are texts that it cannot spell; let it take the trunk's tokens through adapters (edges: trunk)"
        )
    begin = theirs.roles.get("bos_token", theirs.roles.get("eos_token"))
    if begin is None:
        raise IncompatibleBlocksError(
            f"{where}: its tokenizer has neither a token for the beginning of a text (bos_token) nor one for its end "
            "(eos_token), so it has nothing to say before the first token; set one in its tokenizer_config.json"
        )
    special = _special(ours, theirs)
    tensors: dict[str, Tensor] = {}
    tensors["trunk_text"], tensors["trunk_sizes"] = mine.pack()
    tensors["guest_text"], tensors["guest_sizes"] = other.pack()
    tensors["tokenizer"] = torch.frombuffer(bytearray(backend.to_str().encode()), dtype=torch.uint8).clone()
    tensors["special"] = torch.tensor(special, dtype=torch.int32).reshape(-1, 2).T.contiguous()
    sizes = BridgeSizes(
        trunk_bytes=len(tensors["trunk_text"]),
        trunk_tokens=ours.size,
        guest_bytes=len(tensors["guest_text"]),
        guest_tokens=theirs.size,
        tokenizer_bytes=len(tensors["tokenizer"]),
        special=len(special),
        begin=begin,
    )
    return sizes, tensors


def _forms(vocabulary: Vocabulary) -> Forms:
    return Forms([vocabulary.forms.get(number) for number in range(vocabulary.size)])


def _special(ours: Vocabulary, theirs: Vocabulary) -> list[tuple[int, int]]:
    """Return special tokens of the guest's that stand for one of the trunk's: of the same text, or the same role."""
    named = {text: number for number, text in theirs.special.items()}
    found = {number: named[text] for number, text in ours.special.items() if text in named}
    for role in _ROLES:
        number, other = ours.roles.get(role), theirs.roles.get(role)
        if number in ours.special and other in theirs.special:
            found.setdefault(number, other)
    return [(other, number) for number, other in sorted(found.items())]
