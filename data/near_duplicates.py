"""Groups of near-duplicate documents: exact Jaccard similarity of word shingles, joined into connected components."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence


def shingles(text: str, size: int = 5) -> frozenset[tuple[str, ...]]:
    """Return the set of runs of `size` lower-case words."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1)))


def similar_pairs(sets: Sequence[frozenset[tuple[str, ...]]], threshold: float) -> list[tuple[int, int]]:
    """Return every pair whose Jaccard similarity reaches `threshold`.

    With the shingles of each set ordered from rare to common, two sets that are similar enough share a shingle among
    their first `n - ceil(threshold * n) + 1`: only such pairs are compared, and none is missed.

    Source: Chaudhuri, Ganti and Kaushik, A Primitive Operator for Similarity Joins in Data Cleaning (2006).
    """
    count = Counter(shingle for group in sets for shingle in group)
    seen: dict[tuple[str, ...], list[int]] = {}
    pairs = []
    for index, group in enumerate(sets):
        ordered = sorted(group, key=lambda shingle: (count[shingle], shingle))
        prefix = ordered[: len(ordered) - -(-int(threshold * 1000) * len(ordered) // 1000) + 1]
        candidates = {other for shingle in prefix for other in seen.get(shingle, ())}
        for other in sorted(candidates):
            shared = len(group & sets[other])
            if shared >= threshold * (len(group) + len(sets[other]) - shared):
                pairs.append((other, index))
        for shingle in prefix:
            seen.setdefault(shingle, []).append(index)
    return pairs


def components(size: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the connected components of `size` items, each sorted, in the order of their first item."""
    parent = list(range(size))

    def find(item: int) -> int:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for item in range(size):
        groups.setdefault(find(item), []).append(item)
    return list(groups.values())
