"""The reference backend: NumPy, one axis after the other, in the order of summation that defines the results.

It runs everything and is there to be read; reductions that need whole windows are in `anypool.backends.gathered`.
Memory beyond the output is bounded by working through the leading axes in pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from anypool.backends import Array, Divisor, Pass
from anypool.limits import require
from anypool.reductions import (
    FINISHES,
    LIFTS,
    MERGES,
    State,
    divide_half_even,
    finish_gradient,
    identity,
    lift_gradient,
)
from anypool.windows import Axis, Transposed

_PIECE = 4 << 20  # elements of the input taken at once


class Reference:
    """See `anypool.backends.Backend`."""

    name = "reference"
    at_once = False

    def supports(self, job: Pass, x: Array) -> str | None:
        return None

    def describe(self, job: Pass, x: Array) -> dict[str, Any]:
        kernel = f"{job.lift}+{job.merge}+{job.finish}" if job.function is None else "gathered windows"
        return {"kernel": kernel, "isa": "NumPy", "threads": 1}

    def run(self, job: Pass, x: Array, out: Array, codes: Array | None = None, aux: Array | None = None,
            post: Array | None = None) -> None:  # fmt: skip
        if out.size == 0:
            return
        for piece in _pieces(x, job.axes):
            require(x[piece].size * job.accumulator.itemsize, f"a copy of the input in {job.accumulator}")
            at = [None if a is None else a[piece] for a in (aux, post)]
            y, winners = _pool(job, x[piece], *at)
            out[piece] = y
            if codes is not None:
                codes[piece] = winners

    def select_backward(self, job: Pass, grad: Array, codes: Array, out: Array) -> None:
        out[...] = 0
        if grad.size == 0 or out.size == 0:
            return
        for piece in _pieces(out, job.axes):
            _gather_winners(job, grad[piece], codes[piece], out[piece])

    def leave_out(self, x: Array, mask: Array | None, none: Any, omit: bool) -> tuple[Array, Array]:
        numbers = x == x if omit else None
        valid = mask if numbers is None else numbers if mask is None else numbers & mask
        assert valid is not None
        return np.where(valid, x, none), valid

    def run_selected(self, job: Pass, x: Array, out: Array, mask: Array | None, none: Any, omit: bool,
                     empty: Any) -> bool:  # fmt: skip
        return False

    def describe_selected(
        self, job: Pass, x: Array, mask: Array | None, none: Any, omit: bool
    ) -> dict[str, Any] | None:
        return None


BACKEND = Reference()


def _pieces(x: Array, pooled: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cut along the first axis that is not pooled, so that no temporary is much larger than a piece."""
    free = [a for a in range(x.ndim) if a not in pooled and x.shape[a] > 1]
    if not free or x.size <= _PIECE:
        yield (slice(None),) * x.ndim
        return
    step = max(1, x.shape[free[0]] * _PIECE // x.size)
    for i in range(0, x.shape[free[0]], step):
        yield (slice(None),) * free[0] + (slice(i, i + step),) + (slice(None),) * (x.ndim - free[0] - 1)


def _pool(job: Pass, x: Array, aux: Array | None, post: Array | None) -> tuple[Array, Array | None]:
    """Return the results and, if asked for, the winners' codes."""
    state = _lifted(job, x.astype(job.accumulator), aux)
    empty = identity(job.merge, job.accumulator)
    if job.codes:
        state, empty = (*state, np.zeros(x.shape, np.int64)), (*empty, np.iinfo(np.int64).max // 2)
    unit = math.prod(a.n_in if job.codes == "index" else a.kernel for a in job.windows.axes)
    for axis, windows in zip(job.axes, job.windows.axes, strict=True):
        unit //= windows.n_in if job.codes == "index" else windows.kernel
        state = _reduce_axis(job, windows, axis, state, empty, unit)
    return _finished(job, state, post), state[-1] if job.codes else None


def _lifted(job: Pass, x: Array, aux: Array | None) -> State:
    if job.lift == "over_divisor":
        assert job.divisor is not None
        return (x / _divisors(job.divisor, job.axes, x.ndim).astype(x.dtype),)
    if job.lift in LIFTS:
        with np.errstate(all="ignore"):
            return LIFTS[job.lift](x, job.p)
    assert aux is not None
    with np.errstate(all="ignore"):
        return lift_gradient(job.lift, x, aux.astype(x.dtype), job.p, plain=job.merge == "sum")


def _divisors(divisor: Divisor, axes: tuple[int, ...], ndim: int) -> Any:
    if divisor.constant is not None:
        return np.float64(divisor.constant).reshape((1,) * ndim)
    total = np.ones((1,) * ndim, np.int64)
    for axis, counts in zip(axes, divisor.per_axis(), strict=True):
        total = total * counts.reshape([-1 if a == axis else 1 for a in range(ndim)])
    return total


def _reduce_axis(job: Pass, windows: Axis, axis: int, state: State, empty: tuple[Any, ...], unit: int) -> State:
    """Merge every window on one axis; taps in the padding count as the identity."""
    merge = MERGES[job.merge]
    start, taps, lo, hi = windows.spans()
    offsets = job.codes == "offset"

    def tap(outputs: Array, t: int) -> State:
        at = start[outputs] + t * windows.step
        inside = (lo[outputs] <= t) & (t < hi[outputs])
        column = inside.reshape([-1 if a == axis else 1 for a in range(state[0].ndim)])
        places = np.where(inside, at, 0)
        parts = [np.take(part, places, axis=axis) for part in state]
        if job.codes:
            parts[-1] = parts[-1] + (t if offsets else places.reshape(column.shape)) * unit
        return tuple(np.where(column, part, none) for part, none in zip(parts, empty, strict=True))

    def tree(outputs: Array, first: int, n: int) -> State | None:
        """Merge n taps: the largest power of two below n, then the others; None where all lie in the padding."""
        if first + n <= lo[outputs].min() or first >= hi[outputs].max():
            return None
        if n == 1:
            return tap(outputs, first)
        half = 1 << (n - 1).bit_length() - 1
        left, right = tree(outputs, first, half), tree(outputs, first + half, n - half)
        if left is None or right is None:
            return left or right
        with np.errstate(all="ignore"):
            return merge(left, right)

    shape = list(state[0].shape)
    shape[axis] = windows.n_out
    result = tuple(np.empty(shape, part.dtype) for part in state)
    for n in np.unique(taps):  # windows of different lengths are merged in trees of their own
        outputs = np.flatnonzero(taps == n)
        where = (slice(None),) * axis + (outputs,)
        merged = tree(outputs, 0, int(n)) if n else None
        for part, values in zip(result, empty if merged is None else merged, strict=True):
            part[where] = values
    return result


def _finished(job: Pass, state: State, post: Array | None) -> Array:
    y: Array
    with np.errstate(all="ignore"):
        if job.finish == "divide":
            assert job.divisor is not None
            by = _divisors(job.divisor, job.axes, state[0].ndim)
            if state[0].dtype.kind == "f":
                y = state[0] / by.astype(state[0].dtype)
            elif job.result.kind in "iu":
                y = divide_half_even(state[0], by.astype(state[0].dtype))
            else:
                y = state[0].astype(np.float64) / by
        elif job.finish in FINISHES:
            y = FINISHES[job.finish](state, job.p)
        else:
            assert post is not None
            y = finish_gradient(job.finish, state, post.astype(state[0].dtype), job.p)
        if any(isinstance(axis, Transposed) for axis in job.windows.axes):
            y = y + y.dtype.type(0)  # an input that no window saw: 0.0, not -0.0
        rounded: Array = y.astype(job.result)
        return rounded


def _gather_winners(job: Pass, grad: Array, codes: Array, out: Array) -> None:
    """Add each output's gradient at its winner's place, in the order of the outputs."""
    rank = len(job.axes)
    last = tuple(range(out.ndim - rank, out.ndim))
    g, c, o = (np.moveaxis(a, job.axes, last) for a in (grad, codes, out))
    where: list[Array] = list(np.indices(g.shape, sparse=True))
    rest = c.astype(np.int64)
    for windows, axis in reversed(list(zip(job.windows.axes, last, strict=True))):
        start = windows.spans()[0].reshape([-1 if a == axis else 1 for a in range(g.ndim)])
        at = start + rest % windows.kernel * windows.step
        where[axis] = np.clip(at, 0, windows.n_in - 1)  # a window without input has a gradient of zero, and no winner
        rest = rest // windows.kernel
    total = np.zeros(o.shape, np.float64 if job.accumulator == np.float64 else np.float32)
    np.add.at(total, tuple(where), g.astype(total.dtype))
    o[...] = total
