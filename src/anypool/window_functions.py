"""Algebra of the reductions that need every input of a window at once: order statistics, moments, weights, draws.

A `WindowFunction` works on arrays of windows, ``(…, taps)``, and is the definition. ``valid`` says which taps are
inputs; the others lie in the padding, or are left out, and may hold anything. All sums are balanced trees over the taps
of one axis after the other, as in `anypool.backends.reference`, so that they depend on nothing but the window. Nothing
here knows where the windows come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Gathered:
    """The taps of some windows."""

    values: Array  # (…, taps), row-major over the kernel's axes
    valid: Array  # bool, broadcasts to `values`
    kernel: tuple[int, ...]  # taps on each axis; their product is the length of the last one
    draws: Array | None = None  # (…), uniform in [0, 1), for the functions that draw

    def counts(self) -> Array:
        """Return how many inputs each window has; broadcasts to ``(…)``."""
        n: Array = np.count_nonzero(self.valid, axis=-1)
        return n

    def filled(self, value: Any) -> Array:
        """Return the values, with this one where a tap is no input."""
        return self.values if self.valid.all() else np.where(self.valid, self.values, self.values.dtype.type(value))

    def total(self, terms: Array) -> Array:
        """Add up the taps of every window, as a balanced tree on each axis."""
        parts = terms.reshape(*terms.shape[:-1], *self.kernel)
        for _ in self.kernel:
            parts = np.moveaxis(parts, terms.ndim - 1, 0)
            while len(parts) > 1:
                pairs = parts[:-1:2] + parts[1::2]
                parts = pairs if len(parts) % 2 == 0 else np.concatenate([pairs, parts[-1:]])
            parts = parts[0]
        return parts

    def at(self, taps: Array) -> Array:
        """Return the value of one tap of each window."""
        return np.take_along_axis(self.values, taps[..., None], -1)[..., 0]


@dataclass(frozen=True)
class WindowFunction:
    """How windows become results, and what a gradient of the result gives to each tap.

    ``result(windows, p)`` is ``(…)``; of windows without any input it is not used. With ``chooses`` it is the number
    of one tap, whose value is the result. ``gradient(windows, grad, p)`` is ``(…, taps)``.
    """

    result: Callable[[Gathered, float], Array]
    gradient: Callable[[Gathered, Array, float], Array] | None = None
    wide: bool = True  # values come as float64; else in the dtype of x, halves as float32
    chooses: bool = False
    draws: bool = False


# ---- order statistics ------------------------------------------------------------------------------------------------


def _last_nan(values: Array, nan: Array) -> Array:
    """Return the last NaN of each window that has one: the rule of max and min."""
    last: Array = values.shape[-1] - 1 - np.argmax(nan[..., ::-1], axis=-1)
    return last


def _greatest(dtype: np.dtype[Any]) -> Any:
    return np.inf if dtype.kind == "f" else True if dtype.kind == "b" else np.iinfo(dtype).max


def _lanes(windows: Gathered) -> tuple[Array, Array]:
    """Return the values as rows of their own, what is no input replaced by the greatest value; and the counts.

    A real greatest value may stand among those that were put there: they are equal, so the first of a sorted row, as
    many as it has inputs, are right.
    """
    taps = windows.values.shape[-1]
    rows = np.array(windows.filled(_greatest(windows.values.dtype)), order="C").reshape(-1, taps)
    return rows, np.broadcast_to(windows.counts(), windows.values.shape[:-1]).reshape(-1)


def _order(rows: Array, n: Array, q: float) -> tuple[Array, Array, Array]:
    """Return the places, counted from 0, of the two order statistics around a quantile, and how far it lies between."""
    place = q * np.maximum(n - 1, 0)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, np.maximum(n - 1, 0)), place - low


def _partitioned(rows: Array, n: Array, low: Array, high: Array) -> None:
    """Put the order statistics at their places. Most rows are full and need no sorting."""
    full = n == rows.shape[1]
    if full.all():
        rows.partition(sorted({int(low[0]), int(high[0])}), axis=1)
        return
    if full.any():
        one = int(np.argmax(full))
        rows[full] = np.partition(rows[full], sorted({int(low[one]), int(high[one])}), axis=1)
    rows[~full] = np.sort(rows[~full], axis=1)


def _between(a: Array, b: Array, part: Array) -> Array:
    """Interpolate; between equal values is that value, infinities too."""
    halfway = a + b
    halfway = np.where(np.isinf(halfway) & np.isfinite(a) & np.isfinite(b), a / 2 + b / 2, halfway / 2)
    y = np.where(part == 0.5, halfway, a * (1 - part) + b * part)
    chosen: Array = np.where((part == 0) | (a == b), a, y) + 0.0  # which of equal zeros came first is no rule
    return chosen


def _statistics(windows: Gathered, q: float) -> tuple[Array, ...]:
    """Return low and high order statistics, their places, the part between them, and where a NaN is, all ``(…)``."""
    rows, n = _lanes(windows)
    nan = (rows != rows).any(axis=1)
    low, high, part = _order(rows, n, q)
    if len(rows):
        _partitioned(rows, n, low, high)
    values = (np.take_along_axis(rows, k[:, None], 1)[:, 0] for k in (low, high))
    shape = windows.values.shape[:-1]
    return tuple(a.reshape(shape) for a in (*values, low, high, part, nan))


def _quantile(windows: Gathered, q: float) -> Array:
    a, b, _, _, part, nan = _statistics(windows, q)
    y = _between(a.astype(np.float64), b.astype(np.float64), part)
    return np.where(nan, np.nan, y)


def _quantile_gradient(windows: Gathered, grad: Array, q: float) -> Array:
    """Give to the two inputs between which the quantile lies their weights; equal inputs stand in the order of taps."""
    a, b, low, high, part, nan = _statistics(windows, q)
    values, valid = windows.values, windows.valid
    slope = np.zeros(values.shape)

    def give(value: Array, place: Array, weight: Array, where: Array) -> None:
        equal = (values == value[..., None]) & valid
        before = np.count_nonzero((values < value[..., None]) & valid, axis=-1)
        nth = np.cumsum(equal, axis=-1, dtype=np.int32) == (place - before + 1)[..., None]
        tap = np.where(nan, _last_nan(values, (values != values) & valid), np.argmax(equal & nth, axis=-1))
        given = np.where(where, weight * np.where(where, grad, 0.0), 0.0)
        np.put_along_axis(slope, tap[..., None], np.take_along_axis(slope, tap[..., None], -1) + given[..., None], -1)

    give(a, low, np.where(nan, 1.0, 1 - part), np.ones_like(nan))
    give(b, high, part, (part > 0) & ~nan)
    return slope


def _mode(windows: Gathered, _: float) -> Array:
    """Return the value that occurs most often, the smallest of several."""
    rows, n = _lanes(windows)
    rows.sort(axis=1)
    place = np.arange(rows.shape[1], dtype=np.int32)
    starts = np.zeros(rows.shape, np.int32)
    np.copyto(starts[:, 1:], place[1:], where=rows[:, 1:] != rows[:, :-1])
    np.maximum.accumulate(starts, axis=1, out=starts)
    lengths = np.where(place < n[:, None], place - starts, np.int32(-1))
    best = np.argmax(lengths, axis=1)  # the first: runs ascend
    return np.take_along_axis(rows, best[:, None], 1).reshape(windows.values.shape[:-1])


# ---- moments ---------------------------------------------------------------------------------------------------------


def _deviations(windows: Gathered, correction: float) -> tuple[Array, Array, Array, Array]:
    """Return distances from the mean, their mean square, its divisor, and the power of two in which both are measured.

    The mean is that of distances from the first input, so that equal inputs have none and an offset costs no bits.
    Very large and very small windows are measured in units in which squares neither overflow nor vanish.
    """
    values, valid = windows.values, windows.valid
    size = np.abs(windows.filled(0)).max(axis=-1)
    scale = np.where(size > 2.0**500, 2.0**-600, np.where((size < 2.0**-400) & (size > 0), 2.0**600, 1.0))
    first = windows.at(np.broadcast_to(np.argmax(valid, axis=-1), size.shape)) * scale
    n = windows.counts()
    away = np.where(valid, values * scale[..., None] - first[..., None], 0.0)
    mean = windows.total(away) / n
    away = np.where(valid, away - mean[..., None], 0.0)
    divisor = np.where(n > correction, n - correction, np.nan)
    return away, windows.total(away * away) / divisor, divisor, scale


def _variance(windows: Gathered, correction: float) -> Array:
    _, square, _, scale = _deviations(windows, correction)
    return square / scale / scale


def _variance_gradient(windows: Gathered, grad: Array, correction: float) -> Array:
    away, _, divisor, scale = _deviations(windows, correction)
    return away * (2 * grad / divisor / scale)[..., None]


def _deviation(windows: Gathered, correction: float) -> Array:
    _, square, _, scale = _deviations(windows, correction)
    return np.sqrt(square) / scale


def _deviation_gradient(windows: Gathered, grad: Array, correction: float) -> Array:
    away, square, divisor, _ = _deviations(windows, correction)
    root = np.sqrt(square)
    flat = (root == 0)[..., None]
    slope = away / np.where(flat, 1.0, root[..., None]) * (grad / divisor)[..., None]
    return np.where(flat, 0.0, slope)


# ---- softmax weights -------------------------------------------------------------------------------------------------


def _softmax(windows: Gathered, r: float) -> tuple[Array, Array, Array]:
    """Return the input of most weight, the others' distances from it, and their weights, which add up to 1."""
    top = (windows.filled(-np.inf).max if r > 0 else windows.filled(np.inf).min)(axis=-1)
    values = windows.values
    away = np.where(values == top[..., None], 0.0, values - top[..., None])
    away = np.where(windows.valid, away, -math.copysign(np.inf, r))
    weights = np.exp(r * away)
    return top, away, weights / windows.total(weights)[..., None]


def _weighted(windows: Gathered, away: Array, weights: Array) -> Array:
    return windows.total(np.where(weights == 0, 0.0, weights * away))


def _softmax_mean(windows: Gathered, r: float) -> Array:
    top, away, weights = _softmax(windows, r)
    return top + _weighted(windows, away, weights)


def _softmax_gradient(windows: Gathered, grad: Array, r: float) -> Array:
    _, away, weights = _softmax(windows, r)
    further = away - _weighted(windows, away, weights)[..., None]
    return grad[..., None] * np.where(weights == 0, 0.0, weights * (1 + r * further))


# ---- draws -----------------------------------------------------------------------------------------------------------


def _drawn(windows: Gathered, _: float) -> Array:
    """Return a tap, drawn with a probability that is its share of the window's sum."""
    assert windows.draws is not None
    values, valid = windows.values, windows.valid
    nan = (values != values) & valid if values.dtype.kind == "f" else np.zeros((1,) * values.ndim, bool)
    shares = np.where(valid, values, 0).astype(np.float64)
    if (negative := shares < 0).any():
        raise ValueError(f"x must be >= 0 for stochastic pooling, got {shares[negative][0]:g}")
    infinite = np.isinf(shares)
    shares = np.where(infinite.any(axis=-1, keepdims=True), infinite, shares)
    largest = shares.max(axis=-1, keepdims=True)
    shares = np.where(largest > 2.0**900, shares * 2.0**-100, shares)  # or their sum might overflow
    reached = np.cumsum(shares, axis=-1)
    beyond = reached > windows.draws[..., None] * reached[..., -1:]
    positive = shares > 0
    last = shares.shape[-1] - 1 - np.argmax(positive[..., ::-1], axis=-1)  # where rounding left nothing beyond
    tap = np.where(beyond.any(axis=-1), np.argmax(beyond, axis=-1), last)
    tap = np.where(positive.any(axis=-1), tap, np.argmax(valid, axis=-1))
    return np.where(nan.any(axis=-1), _last_nan(values, nan), tap)


# ---- the functions, as `anypool.reductions` declares them ------------------------------------------------------------

MEDIAN = WindowFunction(lambda w, _: _quantile(w, 0.5), lambda w, g, _: _quantile_gradient(w, g, 0.5), wide=False)
QUANTILE = WindowFunction(_quantile, _quantile_gradient, wide=False)
MODE = WindowFunction(_mode, wide=False)
VARIANCE = WindowFunction(_variance, _variance_gradient)
DEVIATION = WindowFunction(_deviation, _deviation_gradient)
SOFTMAX = WindowFunction(_softmax_mean, _softmax_gradient)
STOCHASTIC = WindowFunction(_drawn, wide=False, chooses=True, draws=True)
