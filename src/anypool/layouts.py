"""Layout: an array of any rank, axis order and strides as the canonical view ``(outer…, d, h, w, inner)``.

Channels-first has ``inner = 1``; channels-last has the channels there. What decides is where the elements lie in
memory, not the order in which the user names the axes: a PyTorch tensor in channels_last memory has ``inner = C`` too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How the axes of some arrays of one shape (but for their pooled axes) map to the canonical view."""

    outer: tuple[tuple[int, ...], ...]  # groups of axes that are one axis in memory, the last of each the fastest
    outer_sizes: tuple[int, ...]
    pooled: tuple[int, ...]  # at most three: d, h, w
    inner: tuple[int, ...]
    inner_size: int

    def strides(self, strides: Sequence[int]) -> list[int]:
        """Return an array's strides for the outer axes, then d, h, w (0 for missing axes) and inner."""
        missing = [0] * (3 - len(self.pooled))
        inner = [strides[self.inner[-1]] if self.inner else 0]
        return [*(strides[g[-1]] for g in self.outer), *missing, *(strides[a] for a in self.pooled), *inner]


def axis_order(strides: Sequence[int]) -> list[int]:
    """Return the axes from the slowest to the fastest in memory."""
    return sorted(range(len(strides)), key=lambda a: -abs(strides[a]))


def canonical(shape: Sequence[int], pooled: Sequence[int], *strides: Sequence[int]) -> Layout:
    """Return the canonical layout for arrays of these strides (in elements); the first decides, all must agree.

    ``shape`` is that of any of them: only the axes that are not pooled matter.
    """
    free = [a for a in range(len(shape)) if a not in pooled and shape[a] != 1]
    lead = strides[0]

    def follows(slow: int, group: tuple[int, ...]) -> bool:
        size = math.prod(shape[a] for a in group)
        return all(s[slow] == s[group[-1]] * size for s in strides)

    inner: tuple[int, ...] = tuple(a for a in free if lead[a] == 1)[-1:]
    while inner and (slower := [a for a in free if a not in inner and follows(a, inner)]):
        inner = (slower[0], *inner)
    outer: list[tuple[int, ...]] = []
    for a in sorted((a for a in free if a not in inner), key=lambda a: abs(lead[a])):
        if outer and follows(a, outer[-1]):
            outer[-1] = (a, *outer[-1])
        else:
            outer.append((a,))
    outer.reverse()
    sizes = tuple(math.prod(shape[a] for a in g) for g in outer)
    return Layout(tuple(outer), sizes, tuple(pooled), inner, math.prod(shape[a] for a in inner))
