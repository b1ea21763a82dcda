"""Random numbers as functions of a seed and a position, so that any piece of a tensor can draw its own."""

from __future__ import annotations

import hashlib

import torch

from mango.tensors.masks import positions_of

_STEP = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_LANES = 4  # numbers of 16 bits in a word
_EXACT_BITS = 48  # of a probability: 16 compared for every element, 32 more for the few that are equal in these


def tensor_seed(seed: int, tensor: str, model: str) -> int:
    """Return the seed of one model's random numbers in one tensor.

    Args:
        seed: of the whole merge.
        tensor: name of the tensor.
        model: what the document calls the model.

    Returns:
        64 bits, hashed from the three.
    """
    text = "\0".join((str(seed), tensor, model))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def random_words(seed: int, first: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return 64 random bits for each of ``count`` consecutive indices.

    Args:
        seed: any integer; its lowest 64 bits count.
        first: first index.
        count: how many.
        device: where to compute them; the bits are the same everywhere.

    Returns:
        int64 of shape [count]. Word i is the finaliser of SplitMix64 on ``seed + (i + 1) * golden``.

    Source:
        Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators" (2014), figure 15 (mix64variant13).
    """
    return _mixed(torch.arange(first + 1, first + 1 + count, device=device).mul_(_signed(_STEP)).add_(_signed(seed)))


def keep_at_random(
    seed: int, first: int, count: int, probability: float, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Choose elements independently of each other, each with one probability.

    Args:
        seed: of the tensor.
        first: flat position of the first element.
        count: number of elements.
        probability: of keeping an element, 0 to 1; taken to 48 bits.
        device: where to compute it.

    Returns:
        float32 of shape [count], 1 for what is kept and 0 for the rest.
    """
    if probability >= 1.0:
        return torch.ones(count, device=device)
    scaled = round(probability * 2**_EXACT_BITS)
    if scaled <= 0:
        return torch.zeros(count, device=device)
    high, low = divmod(scaled, 2 ** (_EXACT_BITS - 16))
    below = _lanes(seed, first, count, device).neg_().add_(high)  # small integers: exact in float32
    equal = positions_of(below, 0.0) if low else torch.empty(0, dtype=torch.int64)
    kept = below.clamp_(0.0, 1.0)
    if len(equal):
        more = _mixed((equal + first).mul_(_signed(_STEP)).bitwise_xor_(_signed(~seed)))  # bits used for nothing else
        kept[equal] = (more.bitwise_and_(0xFFFFFFFF) < low).to(kept.dtype)
    return kept


def uniform(seed: int, first: int, count: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return numbers that are uniform in [0, 1), for consecutive positions.

    Args:
        seed: of the tensor.
        first: flat position of the first element.
        count: number of elements.
        device: where to compute them.

    Returns:
        float64 of shape [count], multiples of 2**-53.
    """
    return _shifted(random_words(seed, first, count, device), 11).double().mul_(2.0**-53)


def _lanes(seed: int, first: int, count: int, device: torch.device | str) -> torch.Tensor:
    """Return 16 random bits for each position, as float32 from 0 to 65535: four from each word, the lowest first."""
    start, end = first // _LANES, -(-(first + count) // _LANES)
    words = random_words(seed, start, end - start, device)
    lanes = words.view(torch.int16).float().add_(32768.0)
    return lanes[first - start * _LANES :][:count]


def _mixed(words: torch.Tensor) -> torch.Tensor:
    """Apply the finaliser of SplitMix64 in place."""
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        words.bitwise_xor_(_shifted(words, shift)).mul_(_signed(factor))
    return words.bitwise_xor_(_shifted(words, 31))


def _shifted(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift to the right and fill up with zeros, which torch does not offer for signed integers."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
