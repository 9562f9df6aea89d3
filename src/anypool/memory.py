"""Memory for results: large ones lie in mappings that are kept, so that the next one costs no page faults.

The C library keeps small blocks for the next call, but returns those of 32 MB and more to the system at once. A
result that large would be paid for twice: the system hands out every page zeroed, which takes as long as the pooling
and, on a virtual machine short of large pages, ten times as long (docs/design.md, Speed). So the mapping of a large
result is kept when its last view is gone, and marked as free: the system takes the pages back as soon as it runs
short, and gives them to the next result unchanged otherwise.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool import limits
from anypool.layouts import axis_order
from anypool.limits import require

Array = npt.NDArray[Any]

LARGE = 1 << 25  # bytes; from here on the C library returns memory to the system at once
KEPT_BLOCKS, KEPT_BYTES = 4, 1 << 31
PAGE = 1 << 21

_kept: deque[mmap.mmap] = deque(maxlen=KEPT_BLOCKS)
limits.kept = lambda: sum(map(len, tuple(_kept)))
_can_keep = all(hasattr(mmap, name) for name in ("MAP_ANONYMOUS", "MAP_PRIVATE", "MADV_FREE"))


class _Lease:
    """What the views of one large result lie in, seen by NumPy as bytes."""

    def __init__(self, block: mmap.mmap) -> None:
        self.block = block
        self.__array_interface__ = np.frombuffer(block, np.uint8).__array_interface__

    def __del__(self) -> None:
        block, self.block = self.block, None  # type: ignore[assignment]
        try:
            block.madvise(mmap.MADV_FREE)
        except OSError:  # a kernel that cannot; the mapping goes with its last name
            return
        if sum(map(len, tuple(_kept))) + len(block) <= KEPT_BYTES:
            _kept.append(block)


def _block(n_bytes: int) -> mmap.mmap:
    """Return a kept mapping of at least, and not far more than, so many bytes, or a new one."""
    for _ in range(len(_kept)):
        try:
            block = _kept.popleft()  # each step of its own is safe among threads
        except IndexError:
            break
        if n_bytes <= len(block) <= 2 * n_bytes:
            return block
        _kept.append(block)
    size = -(-n_bytes // PAGE) * PAGE
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


def empty(shape: Sequence[int], dtype: np.dtype[Any], order: Sequence[int] | None = None) -> Array:
    """Return an array that is not initialised, its axes lying in memory in ``order``, the slowest first.

    Raises
    ------
    MemoryError
        If there is not enough of it.
    """
    lying = shape if order is None else [shape[a] for a in order]
    n_bytes = math.prod(lying) * dtype.itemsize
    whole: Array | None = None
    if n_bytes >= LARGE:
        require(n_bytes, f"an array of shape {tuple(shape)} and dtype {dtype}")
        if _can_keep:
            try:
                whole = np.asarray(_Lease(_block(n_bytes)))
            except (OSError, OverflowError):  # NumPy's error, below, says how much was asked for
                _kept.clear()  # of other sizes, in whose place there may be room
    flat = np.empty(lying, dtype) if whole is None else whole[:n_bytes].view(dtype).reshape(lying)
    array: Array = flat if order is None else flat.transpose(np.argsort(order))
    return array


def empty_like(x: Array, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """Return an array that is not initialised, of another dtype and shape but with the axis order of ``x``."""
    if math.prod(shape) * dtype.itemsize < LARGE:
        return np.empty_like(x, dtype, shape=shape, subok=False)
    return empty(shape, dtype, axis_order(x.strides))


def described_like(x: Array, dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
    """Return what `empty_like` would, to be asked how it lies in memory and never to be touched: it may have none."""
    if math.prod(shape) * dtype.itemsize < LARGE:
        return empty_like(x, dtype, shape)
    strides, step = [0] * len(shape), dtype.itemsize
    for axis in reversed(axis_order(x.strides)):
        strides[axis], step = step, step * max(1, shape[axis])
    return np.lib.stride_tricks.as_strided(np.empty(1, dtype), shape, strides, writeable=False)
