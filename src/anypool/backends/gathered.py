"""Windows gathered with all their inputs, for the reductions that cannot merge states.

Works through the result in boxes, along all its axes, so that temporaries stay below about 32 MB whatever the array;
a single window is the least that is gathered. Inputs are copied by slices, never by lists of positions: for every tap
the inputs of all outputs, or for every output all its taps, whichever are fewer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from anypool.backends import Array, Pass
from anypool.layouts import axis_order
from anypool.limits import require
from anypool.reductions import is_float
from anypool.window_functions import Gathered
from anypool.windows import Axis, Sliding

PIECE = 1 << 19  # taps gathered at once: 4 MB as float64, and up to seven times that while they are worked on

_PER_TAP = 32  # bytes: an input as float64, whether it counts, its rank and its weight

Box = tuple[slice, ...]
Widen = Callable[[Array], Array]


class Source(NamedTuple):
    """Where inputs come from, and which of them count."""

    x: Array
    mask: Array | None = None  # bool, of the shape of x: False where an input is left out
    omit_nan: bool = False
    widen: Widen | None = None  # of bits that NumPy has no dtype for: what makes floats of them


def run(job: Pass, source: Source, out: Array, *, codes: Array | None = None, counts: Array | None = None,
        draws: Array | None = None) -> None:  # fmt: skip
    """Write the results of all windows; also the chosen taps or positions, and how many inputs each window has.

    A window without inputs gives NaN, or any value where the result is an integer.
    """
    assert job.function is not None
    require(_PER_TAP * job.windows.n_taps, "a window's inputs, ordered and weighed,", f"x: {source.x.shape}")
    for boxes in _boxes(job, source.x):
        for box in boxes:
            windows = _gather(job, source, box, draws)
            n = windows.counts()
            with np.errstate(all="ignore"):
                y = job.function.result(windows, job.p)
                if job.function.chooses:
                    if codes is not None:
                        codes[box] = _flat(job, box, y) if job.codes == "index" else y
                    y = windows.at(y)
                if is_float(job.result) and not n.all():
                    y = np.where(n > 0, y, np.nan)
                out[box] = _rounded(y, out)
            if counts is not None:
                counts[box] = n


def pull(job: Pass, grad: Array, source: Source, out: Array) -> None:
    """Write the gradient of x: what each window gives to its taps, added up in the order of the outputs, in float64.

    Only the inputs that the windows of one box see are kept as float64; they are written when no further window sees
    them.
    """
    assert job.function is not None
    assert job.function.gradient is not None
    out[...] = 0
    axis, reach = job.axes[0], job.windows.axes[0]
    starts = reach.spans()[0]
    for boxes in _boxes(job, source.x):
        base, live = 0, np.zeros(0)
        for box in boxes:
            windows = _gather(job, source, box, None)
            with np.errstate(all="ignore"):
                slope = job.function.gradient(windows, grad[box].astype(np.float64), job.p)
            slope = np.where(windows.valid, slope, 0.0)
            first, last = (int(starts[o]) for o in (box[axis].start, box[axis].stop - 1))
            start = min(max(0, first), reach.n_in)  # a box may lie in the padding, before the data or behind it
            seen = slice(start, max(start, min(reach.n_in, last + (reach.kernel - 1) * reach.step + 1)))
            base, live = _moved(job, box, base, live, seen, out)
            taps = np.moveaxis(slope, -1, 0).reshape(*job.kernel, *slope.shape[:-1])
            for here, there, moved in _copies(job, box, last_tap_first=True):
                near = [s if a in job.axes else slice(None) for a, s in enumerate(there)]
                near[axis] = slice(there[axis].start - base, there[axis].stop - base, there[axis].step)
                into = _moved_axes(live[tuple(near)], moved)
                into += taps[here]
        if live.size:
            _write(job, live, base, out, box)


# ---- boxes -----------------------------------------------------------------------------------------------------------


def _boxes(job: Pass, x: Array) -> Iterator[Iterator[Box]]:
    """Cut the result: for each part of the axes that are not pooled, the boxes in the order of the outputs.

    An axis is cut only if those before it are cut into single outputs, so that this order is row-major over the pooled
    axes, wherever they are cut. Axes that lie close together in memory stay whole as long as they can.
    """
    shape = job.shape(x.shape)
    if 0 in shape:
        return
    per_output = max(job.windows.n_taps, math.prod(getattr(a, "stride", 1) for a in job.windows.axes))
    room = max(1, PIECE // per_output)
    pooled = iter(job.axes)
    order = [next(pooled) if a in job.axes else a for a in axis_order(x.strides)]
    step = [1] * x.ndim
    for a in reversed(order):
        step[a] = min(shape[a], room)
        room //= step[a]

    def parts(axes: list[int]) -> Iterator[tuple[slice, ...]]:
        cuts = ([slice(i, min(i + step[a], shape[a])) for i in range(0, shape[a], step[a])] for a in axes)
        return itertools.product(*cuts)

    free = [a for a in order if a not in job.axes]

    def within(outside: tuple[slice, ...]) -> Iterator[Box]:
        for inside in parts(list(job.axes)):
            place = dict(zip((*free, *job.axes), (*outside, *inside), strict=True))
            yield tuple(place[a] for a in range(x.ndim))

    for outside in parts(free):
        yield within(outside)


class _Piece(NamedTuple):
    """On one axis: some taps of some outputs of a box, and the inputs they see. One of the first two is a number."""

    taps: int | slice
    outputs: int | slice
    inputs: slice


def _pieces(axis: Axis, outputs: slice, *, last_tap_first: bool) -> Iterator[_Piece]:
    """Yield the pieces on one axis, for a sum in the order of the outputs."""
    start, _, lo, hi = axis.spans(np.arange(outputs.start, outputs.stop, dtype=np.int64))
    if not isinstance(axis, Sliding) or len(start) <= axis.kernel:
        for o, (s, a, b) in enumerate(zip(start.tolist(), lo.tolist(), hi.tolist(), strict=True)):
            if a < b:
                yield _Piece(slice(a, b), o, slice(s + a * axis.step, s + (b - 1) * axis.step + 1, axis.step))
        return
    for t in reversed(range(axis.kernel)) if last_tap_first else range(axis.kernel):
        inside = np.flatnonzero((lo <= t) & (t < hi))  # neighbours, as windows ascend
        if inside.size:
            a, b = int(inside[0]), int(inside[-1])
            first, last = (int(start[o]) + t * axis.step for o in (a, b))
            yield _Piece(t, slice(a, b + 1), slice(first, last + 1, axis.stride))


def _copies(job: Pass, box: Box, *, last_tap_first: bool = False) -> Iterator[tuple[Any, Any, list[int]]]:
    """Yield where taps lie in an array ``(*kernel, *box)``, where in x, and which axes of that are axes of taps."""
    on_axes = [
        list(_pieces(windows, box[axis], last_tap_first=last_tap_first))
        for axis, windows in zip(job.axes, job.windows.axes, strict=True)
    ]
    there = list(box)
    here: list[Any] = [slice(None)] * (len(job.axes) + len(box))
    for pieces in itertools.product(*on_axes):
        moved = []
        for i, (axis, piece) in enumerate(zip(job.axes, pieces, strict=True)):
            here[i], here[len(job.axes) + axis], there[axis] = piece
            if isinstance(piece.outputs, int):
                moved.append(axis)
        yield tuple(here), tuple(there), moved


def _moved_axes(a: Array, axes: list[int]) -> Array:
    return np.moveaxis(a, axes, range(len(axes))) if axes else a


# ---- gathering -------------------------------------------------------------------------------------------------------


def _gather(job: Pass, source: Source, box: Box, draws: Array | None) -> Gathered:
    """Return the windows of a box of outputs."""
    assert job.function is not None
    x, mask, omit_nan, widen = source
    room = (*job.kernel, *(s.stop - s.start for s in box))
    values = np.zeros(room, job.accumulator)
    counted = None if mask is None else np.zeros(room, bool)
    for here, there, moved in _copies(job, box):
        part = _moved_axes(x[there], moved)
        values[here] = part if widen is None else widen(part)
        if counted is not None and mask is not None:
            counted[here] = _moved_axes(mask[there], moved)
    taps = job.windows.n_taps
    windows = np.moveaxis(values.reshape(taps, *room[len(job.axes) :]), 0, -1)
    valid = _inside(job, box)
    if counted is not None:
        valid = np.moveaxis(counted.reshape(taps, *room[len(job.axes) :]), 0, -1)
    if omit_nan:
        valid = valid & (windows == windows)
    if job.ignore:
        valid = valid & ~np.isin(windows, [np.array(i, x.dtype) for i in job.ignore if _holds(x.dtype, i)])
    return Gathered(windows, valid, job.kernel, None if draws is None else draws[box])


def _holds(dtype: np.dtype[Any], value: int) -> bool:
    if dtype.kind == "b":
        return value in (0, 1)
    info = np.iinfo(dtype)
    return bool(info.min <= value <= info.max)


def _inside(job: Pass, box: Box) -> Array:
    """Return which taps lie in the data, ``(…, taps)``, 1 for the axes that do not matter."""
    ndim, rank = len(box), len(job.axes)
    inside = np.ones((1,) * (ndim + rank), bool)
    for i, (axis, windows) in enumerate(zip(job.axes, job.windows.axes, strict=True)):
        _, _, lo, hi = windows.spans(np.arange(box[axis].start, box[axis].stop, dtype=np.int64))
        t = np.arange(windows.kernel)
        within = (lo[:, None] <= t) & (t < hi[:, None])
        shape = [1] * (ndim + rank)
        if not within.all():
            shape[axis] = len(lo)
        else:
            within = within[:1]
        shape[ndim + i] = windows.kernel
        inside = inside & within.reshape(shape)
    flat: Array = inside.reshape((*inside.shape[:ndim], -1))
    return flat


def _flat(job: Pass, box: Box, taps: Array) -> Array:
    """Return the flat positions, in the pooled axes, of taps given by their numbers."""
    flat: Any = 0
    unit, rest = 1, taps
    for axis, windows in reversed(list(zip(job.axes, job.windows.axes, strict=True))):
        start = windows.spans(np.arange(box[axis].start, box[axis].stop, dtype=np.int64))[0]
        place = start.reshape([-1 if a == axis else 1 for a in range(taps.ndim)]) + rest % windows.kernel * windows.step
        flat, rest, unit = flat + place * unit, rest // windows.kernel, unit * windows.n_in
    positions: Array = flat
    return positions


# ---- the sums of a gradient ------------------------------------------------------------------------------------------


def _moved(job: Pass, box: Box, base: int, live: Array, seen: slice, out: Array) -> tuple[int, Array]:
    """Return the sums of the inputs that a box sees, on the first pooled axis; write those of the inputs before it."""
    axis = job.axes[0]
    shape = [n if a in job.axes else box[a].stop - box[a].start for a, n in enumerate(out.shape)]
    shape[axis] = seen.stop - seen.start
    if not live.size:
        return seen.start, np.zeros(shape)
    known = base + live.shape[axis]
    if (base, known) == (seen.start, seen.stop):
        return base, live
    _write(job, _between(live, axis, 0, seen.start - base), base, out, box)
    moved = np.zeros(shape)
    if known > seen.start:
        _between(moved, axis, 0, known - seen.start)[...] = _between(live, axis, seen.start - base, None)
    return seen.start, moved


def _between(a: Array, axis: int, start: int, stop: int | None) -> Array:
    return a[(slice(None),) * axis + (slice(start, stop),)]


def _write(job: Pass, sums: Array, base: int, out: Array, box: Box) -> None:
    axis = job.axes[0]
    place = [slice(None) if a in job.axes else s for a, s in enumerate(box)]
    place[axis] = slice(base, base + sums.shape[axis])
    out[tuple(place)] = _rounded(sums, out)


def _rounded(a: Array, out: Array) -> Array:
    """Round float64 to float32 on the way to bfloat16, as PyTorch does; ml_dtypes did so before 0.7."""
    return a.astype(np.float32, copy=False) if out.dtype.name == "bfloat16" else a
