"""What a peer hands back, and what several of them ask about a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.measure import Run
from benchmarks.ours import Array
from benchmarks.rows import Row

Results = tuple[Array, ...]


@dataclass(frozen=True)
class Prepared:
    """What is timed, and what it gives, in the row's order; indices as the values they point to."""

    run: Run
    results: Callable[[], Results]


def sliding(row: Row) -> tuple[int, ...] | None:
    """Return the kernel and stride of adaptive windows that are all alike, for peers that know only sliding ones."""
    if any(n % o for n, o in zip(row.spatial, row.output_size, strict=True)):
        return None
    return tuple(n // o for n, o in zip(row.spatial, row.output_size, strict=True))


def windows(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return kernel and stride on each pooled axis, or None if the windows do not slide."""
    if row.output_size:
        kernel = sliding(row)
        return None if kernel is None else (kernel, kernel)
    return (row.kernel,) * row.rank, (row.stride,) * row.rank


def pointed_at(x: Array, indices: Array) -> Array:
    """Return the values at flat positions in the pooled axes; equal values may win in any order."""
    n, c, *spatial = indices.shape
    return np.take_along_axis(x.reshape(n, c, -1), indices.reshape(n, c, -1), -1).reshape(n, c, *spatial)
