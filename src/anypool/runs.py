"""Geometry of token pooling: which rows does each output see?

Every layout becomes the same list: an output is a sequence of runs, a run is ``count`` rows of one part of the data
from ``start`` on. A part is a sequence of a padded batch, all rows of a packed array, or an array of a list. What the
runs of an output name, one after the other, are its tokens; nothing else is ever read. Nothing here knows what is done
with the tokens, their dtype or where they are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from anypool.arguments import array_argument, shown
from anypool.cached import cached_property
from anypool.limits import require
from anypool.windows import size_argument

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Runs:
    """The runs of all outputs: those of output ``o`` are ``bounds[o] … bounds[o + 1] - 1``."""

    shape: tuple[int, ...]  # of the outputs
    part: Ints
    start: Ints
    count: Ints
    bounds: Ints
    skipped: Ints | None = None  # tokens of each output that `without_prefix` left out
    one_each: bool = False  # a run for each output, as most layouts have

    @cached_property
    def tokens(self) -> Ints:
        """Number of tokens of each output."""
        if self.one_each:
            return self.count
        before = np.zeros(len(self.count) + 1, np.int64)
        np.cumsum(self.count, out=before[1:])
        ends = before[self.bounds]
        return ends[1:] - ends[:-1]

    @cached_property
    def output(self) -> Ints:
        """The output each run belongs to."""
        return np.repeat(np.arange(len(self.bounds) - 1, dtype=np.int64), np.diff(self.bounds))

    @cached_property
    def ordinal(self) -> Ints:
        """How many tokens of its output come before each run."""
        before = np.cumsum(self.count) - self.count
        first = np.concatenate([before, [0]])[self.bounds[:-1]] if len(self.bounds) > 1 else before
        return before - first[self.output]

    def without_prefix(self, prefix: Any, where: str) -> Runs:
        """Leave out the first tokens of each output: as many as ``prefix`` says, for all or for each."""
        if prefix is None:
            return self
        if isinstance(prefix, (np.ndarray, list, tuple)):
            given = _integers("exclude_prefix", prefix, where)
            if given.shape != self.shape:
                raise ValueError(
                    f"exclude_prefix must be one int or have shape {self.shape}, one for each output, got shape "
                    f"{given.shape} ({where})"
                )
        else:
            given = np.full(self.shape, size_argument("exclude_prefix", prefix, where, at_least=0), np.int64)
        if given.size and given.min() < 0:
            raise ValueError(f"exclude_prefix must be >= 0, got {given.min()} ({where})")
        flat = given.reshape(-1)
        cut = np.clip(flat[self.output] - self.ordinal, 0, self.count)
        return Runs(self.shape, self.part, self.start + cut, self.count - cut, self.bounds,
                    np.minimum(flat, self.tokens), self.one_each)  # fmt: skip

    def first_empty(self) -> int | None:
        """Return an output without a token, if there is one."""
        empty = np.flatnonzero(self.tokens == 0)
        return int(empty[0]) if empty.size else None


def _integers(name: str, value: Any, where: str) -> Ints:
    array = array_argument(name, value, where)
    if array.size == 0 and not isinstance(value, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype} ({where})")
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must be below 2**63, got {array.max()} ({where})")
    return array.astype(np.int64)  # a copy: a pullback uses them again, and the caller may write into theirs


def _first(where: npt.NDArray[np.bool_]) -> int | None:
    """Return the first place of a true element, if there is one."""
    at = int(where.argmax()) if where.size else 0
    return at if where.size and where[at] else None


def _one_each(shape: tuple[int, ...], part: Ints, start: Ints, count: Ints) -> Runs:
    return Runs(shape, part, start, count, np.arange(len(part) + 1, dtype=np.int64), one_each=True)


def _parts(n: int) -> Ints:
    return np.arange(n, dtype=np.int64)


def whole(shape: tuple[int, ...], lengths: Ints) -> Runs:
    """Every row of every part."""
    return _one_each(shape, _parts(len(lengths)), np.zeros(len(lengths), np.int64), lengths)


def from_mask(mask: Any, leading: tuple[int, ...], length: int, where: str) -> Runs:
    """Rows of a padded batch where a mask is true: bool, or numbers that are 0 or 1. Any side, any holes."""
    given = array_argument("mask", mask, where)
    if given.shape != (*leading, length):
        raise ValueError(f"mask must have shape {(*leading, length)}, one for each token, got {given.shape} ({where})")
    if given.dtype.kind != "b":
        if given.dtype.kind not in "iuf" and given.dtype.name != "bfloat16":
            raise TypeError(f"mask must be bool or numbers, got dtype {given.dtype} ({where})")
        ones = given == 1
        if not np.all(ones | (given == 0)):
            wrong = given[~(ones | (given == 0))].reshape(-1)[0]
            raise ValueError(f"mask must be 0 or 1 (what weighs tokens is weights=), got {wrong} ({where})")
        given = ones
    n = math.prod(leading)
    edges = np.zeros((n, length + 1), np.bool_)
    flat = given.reshape(n, length)
    edges[:, 1:length] = flat[:, 1:] != flat[:, :-1]
    if length:
        edges[:, 0], edges[:, length] = flat[:, 0], flat[:, -1]
    changes = np.flatnonzero(edges)  # where runs begin and end, in turn
    begins, ends = changes[0::2], changes[1::2]
    part = begins // (length + 1)
    bounds = np.searchsorted(part, np.arange(n + 1))
    return Runs(leading, part, begins % (length + 1), ends - begins, bounds.astype(np.int64))


def from_lengths(lengths: Any, side: Any, leading: tuple[int, ...], length: int, where: str) -> Runs:
    """The first ``lengths`` rows of each sequence, or the last ones if the padding is on the left."""
    if not isinstance(side, str) or side not in ("right", "left"):
        raise ValueError(f'side must be "right" or "left", the side the padding is on, got {shown(side)} ({where})')
    given = _integers("lengths", lengths, where)
    if given.shape != leading:
        raise ValueError(f"lengths must have shape {leading}, one for each sequence, got {given.shape} ({where})")
    flat = given.reshape(-1)
    i = _first((flat < 0) | (flat > length))
    if i is not None:
        raise ValueError(f"lengths must be in [0, {length}], got {flat[i]} ({where})")
    return _one_each(leading, _parts(len(flat)), np.zeros_like(flat) if side == "right" else length - flat, flat)


def from_offsets(offsets: Any, rows: int, where: str) -> Runs:
    """Segment ``i`` of packed rows is ``offsets[i] … offsets[i + 1] - 1`` (cu_seqlens)."""
    given = _integers("offsets", offsets, where)
    if given.ndim != 1 or given.size == 0:
        raise ValueError(f"offsets must be one-dimensional and begin with 0, got shape {given.shape} ({where})")
    if given[0] != 0:
        raise ValueError(f"offsets must begin with 0, got {given[0]} ({where})")
    i = _first(given[1:] < given[:-1])  # compared: a difference may be beyond 64 bits
    if i is not None:
        raise ValueError(f"offsets must not fall, got {given[i]} before {given[i + 1]} at {i} ({where})")
    if given[-1] != rows:
        raise ValueError(
            f"offsets must end with the number of rows, {rows}, got {given[-1]}: n segments have n + 1 ({where})"
        )
    counts = given[1:] - given[:-1]
    return _one_each((len(counts),), np.zeros(len(counts), np.int64), given[:-1], counts)


def from_segment_ids(ids: Any, rows: int, n_segments: Any, where: str) -> Runs:
    """Segment ``i`` of packed rows is where ``ids`` is ``i``; ids rise, and may leave some out (empty segments)."""
    given = _integers("segment_ids", ids, where)
    if given.shape != (rows,):
        raise ValueError(f"segment_ids must have shape {(rows,)}, one for each row, got {given.shape} ({where})")
    if given.size and given.min() < 0:
        raise ValueError(f"segment_ids must be >= 0, got {given.min()} ({where})")
    i = _first(given[1:] < given[:-1])
    if i is not None:
        raise ValueError(
            f"segment_ids must be sorted, got {given[i]} before {given[i + 1]} at {i}: sort x by them first ({where})"
        )
    needed = int(given[-1]) + 1 if given.size else 0
    n = needed if n_segments is None else size_argument("num_segments", n_segments, where, at_least=0)
    if n < needed:
        raise ValueError(f"num_segments must be above every segment id, {needed - 1}, got {n} ({where})")
    if n > 2**40:
        name, got = ("segment_ids", needed - 1) if n_segments is None else ("num_segments", n)
        raise ValueError(f"{name} must be below 2**40, got {got} ({where})")
    require(n * 64, f"the list of {n} segments", where)
    bounds = np.searchsorted(given, np.arange(n + 1)).astype(np.int64)
    return _one_each((n,), np.zeros(n, np.int64), bounds[:-1], np.diff(bounds))


def from_spans(spans: Any, leading: tuple[int, ...], length: int, where: str) -> Runs:
    """Half-open spans of rows, ``(…, S, 2)``: overlapping, nested, empty, in any order."""
    given = _integers("spans", spans, where)
    if not leading and given.shape == (0,) and not isinstance(spans, np.ndarray):
        given = given.reshape(0, 2)  # an empty list
    if given.ndim != len(leading) + 2 or given.shape[-1] != 2 or given.shape[: len(leading)] != leading:
        wanted = "(" + "".join(f"{n}, " for n in leading) + "S, 2)"
        raise ValueError(f"spans must have shape {wanted}, got {given.shape} ({where})")
    flat = given.reshape(-1, 2)
    start, stop = np.ascontiguousarray(flat[:, 0]), flat[:, 1]
    i = _first((start < 0) | (stop < start) | (stop > length))
    if i is not None:
        a, b = flat[i]
        raise ValueError(f"spans must have 0 <= start <= stop <= {length}, got ({a}, {b}) at {i} ({where})")
    n = given.shape[-2]
    part = np.repeat(_parts(math.prod(leading)), n)
    return _one_each((*leading, n), part, start, stop - start)
