"""Random numbers as functions of a seed and a position, so that any piece of a tensor can draw its own."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch

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
    if torch.device(device).type == "cpu":
        return torch.from_numpy(_random_array(seed, first, count).view(np.int64))
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
        bool of shape [count].
    """
    if torch.device(device).type == "cpu":
        return torch.from_numpy(kept_at_random(seed, first, count, probability))
    bounds = _bounds(probability)
    if bounds is None or not count:
        return torch.full((count,), probability >= 0.5, dtype=torch.bool, device=device)
    start, end = first // _LANES, -(-(first + count) // _LANES)
    words = random_words(seed, start, end - start, device)
    wide = words.view(torch.int16)[first - start * _LANES :][:count].int().bitwise_and_(0xFFFF)
    kept, equal = wide < bounds[0], (wide == bounds[0]).nonzero().view(-1)
    if bounds[1] and len(equal):
        more = _mixed((equal + first).mul_(_signed(_STEP)).bitwise_xor_(_signed(~seed)))  # bits used for nothing else
        kept[equal] = more.bitwise_and_(0xFFFFFFFF) < bounds[1]
    return kept


def kept_at_random(seed: int, first: int, count: int, probability: float) -> npt.NDArray[np.bool_]:
    """Choose elements as `keep_at_random` does, as an array and without torch."""
    bounds = _bounds(probability)
    if bounds is None or not count:
        return np.full(count, probability >= 0.5)
    start, end = first // _LANES, -(-(first + count) // _LANES)
    words = _random_array(seed, start, end - start)
    lanes = words.view(np.uint16)[first - start * _LANES :][:count]  # four from each word, the lowest bits first
    kept, equal = lanes < bounds[0], np.flatnonzero(lanes == bounds[0])
    if bounds[1] and len(equal):
        more = (equal + first).astype(np.uint64) * np.uint64(_STEP) ^ np.uint64(~seed & (2**64 - 1))
        kept[equal] = (_mixed_array(more) & np.uint64(0xFFFFFFFF)) < np.uint64(bounds[1])
    return kept


def _bounds(probability: float) -> tuple[int, int] | None:
    """Return what 16 random bits, and 32 more where these are equal, must be below; None for everything or nothing."""
    scaled = round(probability * 2**_EXACT_BITS)
    return divmod(scaled, 2 ** (_EXACT_BITS - 16)) if probability < 1.0 and scaled > 0 else None


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


def _random_array(seed: int, first: int, count: int) -> npt.NDArray[np.uint64]:
    words = np.arange(first + 1, first + 1 + count, dtype=np.uint64)
    np.multiply(words, np.uint64(_STEP), out=words)
    np.add(words, np.uint64(seed & (2**64 - 1)), out=words)
    return _mixed_array(words)


def _mixed_array(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply the finaliser of SplitMix64 in place; NumPy shifts in zeros, which takes fewer steps than in torch."""
    shifted = np.empty_like(words)
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        np.right_shift(words, np.uint64(shift), out=shifted)
        np.bitwise_xor(words, shifted, out=words)
        np.multiply(words, np.uint64(factor), out=words)
    np.right_shift(words, np.uint64(31), out=shifted)
    return np.bitwise_xor(words, shifted, out=words)


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
