"""The independent truth: pooling as plain loops over Python numbers.

Nothing here imports anypool and nothing here is fast. A window is a list of input positions
per axis; a window set of several axes is their product, visited in row-major order; a
reduction is a function of the list of values seen. Sums use `math.fsum`, so a float truth is
correctly rounded float64, and integers are Python integers.

Besides the values a `Truth` says how exactly they can be asked for: `scale` is the largest
magnitude that entered the result and `weight` how often it did (see tolerance.py).
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

import window_oracle

WindowAxes = tuple[tuple["Window", ...], ...]  # one tuple of windows per pooled axis

NAMED_PADDINGS = ("valid", "same", "same_lower", "causal")


class EmptyWindow(ValueError):
    """Some window sees no input at all, or there is no window: the geometry is an error."""


@dataclass(frozen=True)
class Window:
    """One output position along one axis: the inputs it sees, and the taps its mean counts."""

    positions: tuple[int, ...]
    counted: int


@dataclass
class Truth:
    """What a call must return; arrays of the output's shape."""

    values: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    indices: np.ndarray | None = None


# ---------------------------------------------------------------- geometry, one axis at a time


def named_padding(name: str, n: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Low and high padding of a named rule."""
    reach = dilation * (kernel - 1)
    if name == "valid":
        return 0, 0
    if name == "causal":
        return reach, 0
    total = max((-(-n // stride) - 1) * stride + reach + 1 - n, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if name == "same" else (large, small)


def sliding(n: int, kernel: int, stride: int, lo: int, hi: int, dilation: int, ceil: bool) -> tuple[Window, ...]:
    """Sliding windows; PyTorch's output size and PyTorch's divisor, generalised to dilation.

    With ceil_mode the last window must start inside the input or the low padding. A tap counts
    for the mean when it lies before the end of the high padding, so a ceil overhang never does.
    """
    room = n + lo + hi - dilation * (kernel - 1) - 1 + (stride - 1 if ceil else 0)
    n_out = room // stride + 1
    if ceil and (n_out - 1) * stride >= n + lo:
        n_out -= 1
    windows = []
    for o in range(n_out):
        taps = [o * stride - lo + t * dilation for t in range(kernel)]
        seen = tuple(t for t in taps if 0 <= t < n)
        windows.append(Window(seen, sum(t < n + hi for t in taps)))
    return tuple(windows)


def adaptive(n: int, n_out: int) -> tuple[Window, ...]:
    """PyTorch's adaptive bins: floor(i n / o) up to ceil((i + 1) n / o), overlapping."""
    windows = []
    for i in range(n_out):
        start, stop = i * n // n_out, -(-(i + 1) * n // n_out)
        windows.append(Window(tuple(range(start, stop)), stop - start))
    return tuple(windows)


def whole(n: int) -> tuple[Window, ...]:
    """One window over the whole axis."""
    return (Window(tuple(range(n)), n),)


def sliding_axes(sizes, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False) -> WindowAxes:
    """`sliding` for every pooled axis, from the arguments as a user writes them."""
    rank = len(sizes)

    def each(value):
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank

    kernels, dilations = each(kernel_size), each(dilation)
    strides = kernels if stride is None else each(stride)
    axes = []
    for a, n in enumerate(sizes):
        k, s, d = kernels[a], strides[a], dilations[a]
        pad = padding if isinstance(padding, str) else each(padding)[a]
        if isinstance(pad, str):
            lo, hi = named_padding(pad, n, k, s, d)
        else:
            lo, hi = (pad, pad) if isinstance(pad, int) else pad
        axes.append(sliding(n, k, s, lo, hi, d, ceil_mode))
    return tuple(axes)


def has_empty_window(window_axes: WindowAxes) -> bool:
    """Whether these windows are a geometry error."""
    return any(not axis or any(not w.positions for w in axis) for axis in window_axes)


# ------------------------------------------------------------------- reductions, one window


def first_best(values, better) -> int:
    """Place of the winner: the first of equals, but the last NaN when there is one."""
    best = 0
    for i, v in enumerate(values):
        if v != v or (values[best] == values[best] and better(v, values[best])):
            best = i
    return best


def float_sum(values) -> float:
    """Exactly rounded sum that knows infinities."""
    if any(math.isnan(v) for v in values):
        return math.nan
    infinite = {v for v in values if math.isinf(v)}
    if infinite:
        return math.nan if len(infinite) == 2 else infinite.pop()
    return math.fsum(values)


def wrap(total: int, unsigned: bool) -> int:
    """An integer sum as 64 bits hold it."""
    total %= 1 << 64
    return total if unsigned or total < 1 << 63 else total - (1 << 64)


def divide(total, divisor: int, keep_integer: bool):
    """A mean; integers that stay integers round half to even."""
    if keep_integer:
        return round(Fraction(total, divisor))
    return float(Fraction(total, divisor)) if isinstance(total, int) else total / divisor


def lp_norm(values, p: float) -> float:
    """(sum |x|^p)^(1/p); p = inf is the largest magnitude.

    In units of the largest magnitude, because |x|^p may not be representable and because rounding
    1/p would show in the root of a number far from 1.
    """
    if any(math.isnan(v) for v in values):
        return math.nan
    largest = max(abs(v) for v in values)
    if math.isinf(p) or math.isinf(largest) or largest == 0:
        return largest
    return largest * math.fsum((abs(v) / largest) ** p for v in values) ** (1 / p)


def lp_signed(values, p: float) -> float:
    """PyTorch's lp_pool without its NaN: s = sum x^p for odd p, sign(s) |s|^(1/p)."""
    if p % 2 != 1:
        return lp_norm(values, p)
    if not all(map(math.isfinite, values)):
        return float_sum([math.copysign(abs(v) if math.isinf(v) else 0.0, v) if v == v else v for v in values])
    largest = max(abs(v) for v in values)
    if largest == 0:
        return 0.0
    total = math.fsum((v / largest) ** p for v in values)
    return largest * math.copysign(abs(total) ** (1 / p), total)


def log_sum_exp(values, r: float) -> float:
    """log(sum exp(r x)) / r."""
    top = values[first_best(values, lambda a, b: a > b)]
    if not math.isfinite(top):
        return top
    return top + math.log(math.fsum(math.exp(r * (v - top)) for v in values)) / r


def mean_divisor(windows, include_pad: bool, override: int | None, missing: int = 0) -> int:
    """What a mean over this product of windows divides by, some of its inputs missing."""
    if override is not None:
        return override
    return math.prod(w.counted if include_pad else len(w.positions) for w in windows) - missing


# ----------------------------------------------------------------- whole arrays, any axes


class Planes:
    """An array seen as (outer index) -> flat list of the pooled axes, in row-major order."""

    def __init__(self, x: np.ndarray, axes):
        self.axes = tuple(a % x.ndim for a in axes)
        moved = np.moveaxis(x, self.axes, range(-len(self.axes), 0))
        self.outer = moved.shape[: x.ndim - len(self.axes)]
        self.inner = moved.shape[x.ndim - len(self.axes) :]
        self.plain = moved if moved.dtype.kind in "biuf" else moved.astype(np.float64)

    def flat(self, index) -> list:
        return self.plain[index].reshape(-1).tolist()

    def back(self, planes: np.ndarray) -> np.ndarray:
        """Move the pooled axes of a result to where the input had them."""
        return np.moveaxis(planes, range(-len(self.axes), 0), self.axes)


@functools.lru_cache(maxsize=256)
def flat_windows(window_axes: WindowAxes, sizes: tuple[int, ...]) -> list:
    """(the windows, the flat positions they see) for each output, everything in row-major order."""

    def flat(taps) -> int:
        position = 0
        for t, n in zip(taps, sizes, strict=True):
            position = position * n + t
        return position

    return [
        (ws, [flat(taps) for taps in itertools.product(*(w.positions for w in ws))])
        for ws in itertools.product(*window_axes)
    ]


def result_dtype(reduction: str, dtype: np.dtype) -> np.dtype:
    """The dtype a reduction returns when none is asked for."""
    if reduction in ("any", "all"):
        return np.dtype(bool)
    if reduction in ("max", "min", "mode", "stochastic") or dtype.kind not in "biu":
        return dtype
    if reduction == "sum":
        return np.dtype(np.uint64 if dtype.kind == "u" else np.int64)
    if reduction == "mean" and dtype.kind != "b":
        return dtype
    return np.dtype(np.float64)


def magnitude(values) -> float:
    """Largest finite magnitude."""
    return max((abs(float(v)) for v in values if math.isfinite(v)), default=0.0)


def pool(
    x,
    axes,
    window_axes,
    reduction,
    *,
    include_pad=True,
    divisor=None,
    norm_type=2.0,
    r=1.0,
    signed=False,
    dtype=None,
    mask=None,
    weights=None,
    empty=None,
    q=None,
    correction=0,
    ignore=(),
) -> Truth:
    """Reduce `x` over windows of `axes`; floats come as float64, integers as they must be.

    Where `mask` is False an input is not there. A window of none gives `empty`, with index -1; None is an error.
    """
    if empty is None and has_empty_window(window_axes):
        raise EmptyWindow
    x = np.asarray(x)
    planes = Planes(x, axes)
    wanted = result_dtype(reduction, x.dtype) if dtype is None else np.dtype(dtype)
    option = Options(include_pad, divisor, norm_type, r, signed, wanted.kind in "iu", x.dtype.kind == "u",
                     q=q, correction=correction, ignore=ignore)  # fmt: skip
    counts, factors = Planes(counting(x, mask), axes), Planes(counting(x, weights), axes)
    rows = []
    for outer in np.ndindex(*planes.outer):
        flat, there, factor = planes.flat(outer), counts.flat(outer), factors.flat(outer)
        for ws, inside in flat_windows(tuple(window_axes), planes.inner):
            positions = [i for i in inside if there[i]]
            if not positions:
                if empty is None:
                    raise EmptyWindow
                rows.append((empty, 0.0, 1.0, -1))
                continue
            option = replace(option, missing=len(inside) - len(positions))
            seen = [flat[i] for i in positions]
            if weights is not None:
                rows.append((*weighted(seen, [factor[i] for i in positions], reduction), 0))
                continue
            if reduction in BETTER:
                won = first_best(seen, BETTER[reduction])
                rows.append((seen[won], 0.0, 1.0, positions[won]))
            else:
                rows.append((*reduced(seen, ws, reduction, option), 0))
    shape = planes.outer + tuple(len(axis) for axis in window_axes)
    holder = wanted if wanted.kind in "biu" or reduction in BETTER else np.float64
    columns = zip(*rows, strict=True) if rows else ((),) * 4
    values, scale, weight, indices = (
        planes.back(np.array(column, kind).reshape(shape))
        for column, kind in zip(columns, (holder, float, float, np.int64), strict=True)
    )
    return Truth(values, scale, weight, indices if reduction in BETTER else None)


def counting(x, array) -> np.ndarray:
    """A mask or weights in the shape of x; ones where there are none."""
    return np.broadcast_to(True if array is None else array, x.shape)


def weighted(seen, weights, reduction: str) -> tuple:
    """(value, largest magnitude, how often it entered) of a sum or mean of weighted values."""
    parts = [float(v) * float(w) for v, w in zip(seen, weights, strict=True)]
    by = math.fsum(map(float, weights)) if reduction == "mean" else 1.0
    total = float_sum(parts)
    mass = math.fsum(abs(float(w)) for w in weights) / by if reduction == "mean" and by else 1.0
    return (total / by if by else math.nan), magnitude(parts), (len(seen) + 2) * max(mass, 1 / abs(by) if by else 1.0)


@dataclass(frozen=True)
class Options:
    """What a reduction needs to know besides the values."""

    include_pad: bool = True
    divisor: int | None = None
    norm_type: float = 2.0
    r: float = 1.0
    signed: bool = False
    keep_integer: bool = False
    unsigned: bool = False
    missing: int = 0  # inputs of the window that are masked
    q: float | None = None
    correction: float = 0
    ignore: tuple[int, ...] = ()


def reduced(seen, ws, reduction: str, option: Options) -> tuple:
    """(value, largest magnitude, how often it entered) of one window, for everything but max, min."""
    if reduction in window_oracle.NAMES:
        return window_oracle.reduced(seen, reduction, option)
    if reduction in ("sum", "mean"):
        whole_numbers = not isinstance(seen[0], float)
        total = sum(map(int, seen)) if whole_numbers else float_sum(seen)
        if reduction == "sum":
            d, total = 1, wrap(total, option.unsigned) if whole_numbers else total
        else:
            d = mean_divisor(ws, option.include_pad, option.divisor, option.missing)
            total = divide(total, d, option.keep_integer)
        return total, magnitude(seen), len(seen) / abs(d)
    seen = [float(v) for v in seen]
    if reduction == "logsumexp":
        y = log_sum_exp(seen, option.r)
        return y, max(magnitude(seen), 1 / option.r, magnitude([y])), 1.0
    norm = lp_norm(seen, option.norm_type)
    weight = 1.0
    if math.frexp(option.norm_type)[0] != 0.5 and 0 < norm < math.inf:  # 1/p is rounded: s^(1/p) is off by |log y|
        weight += abs(math.log(norm)) / 4
    if not option.signed:
        return norm, norm, weight
    return lp_signed(seen, option.norm_type), norm, weight * cancellation(seen, option.norm_type)


BETTER = {"max": lambda a, b: a > b, "min": lambda a, b: a < b}


def cancellation(values, p: float) -> float:
    """How much an error in sum x^p is magnified in its root (odd p); 1 where nothing cancels."""
    if p % 2 != 1 or not all(map(math.isfinite, values)):
        return 1.0
    largest = max(map(abs, values))
    if largest == 0:
        return 1.0
    total, mass = (math.fsum(f(v / largest) ** p for v in values) for f in (float, abs))
    return mass / max(abs(total), 1e-6 * mass)


# ------------------------------------------------------------------------------- adjoints


def local_gradient(seen, ws, reduction: str, option: Options) -> list:
    """Derivative of a window's result with respect to each of its values."""
    if reduction in window_oracle.GRADIENTS:
        return window_oracle.gradient(seen, reduction, option)
    if reduction == "sum":
        return [1.0] * len(seen)
    if reduction == "mean":
        return [1.0 / mean_divisor(ws, option.include_pad, option.divisor, option.missing)] * len(seen)
    if reduction == "logsumexp":
        y = log_sum_exp(seen, option.r)
        return [math.exp(option.r * (v - y)) for v in seen]
    norm_type = option.norm_type
    odd = option.signed and norm_type % 2 == 1
    y = (lp_signed if option.signed else lp_norm)(seen, norm_type)
    if y == 0:
        return [0.0] * len(seen)
    if math.isinf(norm_type):
        won = first_best([abs(v) for v in seen], BETTER["max"])
        return [math.copysign(float(i == won), v) for i, v in enumerate(seen)]
    ratios = [(abs(v) / abs(y)) ** (norm_type - 1) for v in seen]
    return [q if odd else math.copysign(q, v) if v else 0.0 for q, v in zip(ratios, seen, strict=True)]


def pullback(
    x,
    grad,
    axes,
    window_axes,
    reduction,
    *,
    include_pad=True,
    divisor=None,
    norm_type=2.0,
    r=1.0,
    signed=False,
    q=None,
    correction=0,
    mask=None,
    weights=None,
) -> Truth:
    """The gradient with respect to `x`: every window scatters its part, exactly added up."""
    planes, grads = Planes(np.asarray(x), axes), Planes(np.asarray(grad), axes)
    counts, factors = (Planes(counting(np.asarray(x), a), axes) for a in (mask, weights))
    option = Options(include_pad, divisor, norm_type, r, signed, q=q, correction=correction)
    rows = []
    for outer in np.ndindex(*planes.outer):
        flat = [float(v) for v in planes.flat(outer)]
        there, factor = counts.flat(outer), factors.flat(outer)
        parts = [[] for _ in flat]
        steepest = [0.0] * len(flat)
        whats = flat_windows(tuple(window_axes), planes.inner)
        for (ws, inside), g in zip(whats, grads.flat(outer), strict=True):
            positions = [i for i in inside if there[i]]
            if not positions:
                continue
            option = replace(option, missing=len(inside) - len(positions))
            seen = [flat[i] for i in positions]
            if weights is not None:
                by = math.fsum(factor[i] for i in positions) if reduction == "mean" else 1.0
                for i in positions:
                    parts[i].append(g * factor[i] / by)
                continue
            if reduction in BETTER:  # the others get nothing, not 0 times g
                parts[positions[first_best(seen, BETTER[reduction])]].append(g)
                continue
            least = window_oracle.steepness(seen, reduction, option) if reduction in window_oracle.GRADIENTS else 0.0
            for i, d in zip(positions, local_gradient(seen, ws, reduction, option), strict=True):
                if d != 0:
                    parts[i].append(g * d)
                steepest[i] = max(steepest[i], abs(g * least))
        rows += [
            (float_sum(part), max(magnitude(part), least), max(len(part), 1))
            for part, least in zip(parts, steepest, strict=True)
        ]
    columns = np.array(rows, float).reshape(-1, 3)
    shape = planes.outer + planes.inner
    return Truth(*(planes.back(columns[:, i].reshape(shape)) for i in range(3)))


# ---------------------------------------------------------------------------- unpooling


def unpool(x, indices, rank: int, sizes) -> np.ndarray:
    """Put every value at its flat index in the last `rank` axes, zeros elsewhere."""
    lead = x.shape[: x.ndim - rank]
    y = np.zeros((*lead, math.prod(sizes)), x.dtype)
    for outer in np.ndindex(*lead):
        for v, i in zip(x[outer].reshape(-1), indices[outer].reshape(-1), strict=True):
            y[(*outer, int(i))] = v
    return y.reshape(*lead, *sizes)
